"""Linear layers whose weights lie in memory as the processor's matrix kernels read them.

oneDNN lays a bfloat16 weight out in blocks for the vector and matrix units.  `F.linear` does so anew in every
call; done once, weights stream up to 1.7 times faster (benchmarks/README.md).
"""

import torch
from torch import Tensor, nn

from triton_backend.joint import join

_ops = torch.ops.mkldnn


class PackedLinear(nn.Module):
    """`nn.Linear` for inference: [..., in] -> [..., out], all in bfloat16."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self._weight = _ops._reorder_linear_weight(weight, None)
        self._bias = bias

    def forward(self, rows: Tensor) -> Tensor:
        packed: Tensor = _ops._linear_pointwise(rows, self._weight, self._bias, "none", [], "")
        return packed


@torch.inference_mode()
def pack(model: nn.Module) -> None:
    """Replace the model's linear layers where that is faster; the originals are freed one after the other."""
    if not _ops._is_mkldnn_bf16_supported():
        return
    join(model, _is_packable)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Linear and _is_packable(child):
                setattr(module, name, PackedLinear(child.weight, child.bias))


def _is_packable(layer: nn.Linear) -> bool:
    return layer.weight.dtype is torch.bfloat16 and layer.weight.device.type == "cpu"
