"""Linear layers whose weights lie in memory as the processor's matrix kernels read them.

Ours (native_linear.py) wants Intel's matrix units; elsewhere it is oneDNN, which lays a bfloat16 weight out in
blocks for the vector units.  `F.linear` does so anew in every call; done once, weights stream up to 1.7 times
faster, and by our kernel as much again (benchmarks/README.md).
"""

import torch
from torch import Tensor, nn

from triton_backend.joint import join
from triton_backend.native_linear import WIDTH, NativeLinear, usable_library

_ops = torch.ops.mkldnn


class PackedLinear(nn.Module):
    """`nn.Linear` for inference: [..., in] -> [..., out], all in bfloat16."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        library = usable_library()
        if library is None or weight.shape[1] % WIDTH:
            self.product: OneDnnLinear | NativeLinear = OneDnnLinear(weight, bias)
        else:
            self.product = NativeLinear(library, weight, bias)

    def forward(self, rows: Tensor) -> Tensor:
        return self.product(rows)


class OneDnnLinear:
    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight = _ops._reorder_linear_weight(weight, None)
        self._bias = bias

    def __call__(self, rows: Tensor) -> Tensor:
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
