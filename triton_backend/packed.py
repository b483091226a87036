"""Linear layers whose weights lie in memory as the processor's matrix kernels read them.

oneDNN lays a bfloat16 weight out in blocks for the vector and matrix units.  `F.linear` does so anew in every
call; done once, weights stream up to 1.7 times faster (benchmarks/README.md).
"""

import torch
from torch import Tensor, nn

_ops = torch.ops.mkldnn


class PackedLinear(nn.Module):
    """`nn.Linear` for inference: [..., in] -> [..., out], all in bfloat16."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self._weight = _ops._reorder_linear_weight(linear.weight.detach(), None)
        self._bias = linear.bias

    def forward(self, rows: Tensor) -> Tensor:
        packed: Tensor = _ops._linear_pointwise(rows, self._weight, self._bias, "none", [], "")
        return packed


def pack(model: nn.Module) -> None:
    """Replace the model's linear layers where that is faster; each original is freed before the next is packed."""
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return
    for module in model.modules():
        for name, child in module.named_children():
            # Subclasses compute something else.
            if (
                type(child) is nn.Linear
                and child.weight.dtype is torch.bfloat16
                and child.weight.device.type == "cpu"
            ):
                setattr(module, name, PackedLinear(child))
