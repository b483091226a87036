"""Linear layers whose weights lie in memory as the processor's matrix kernels read them.

oneDNN lays a bfloat16 weight out in blocks for the vector and matrix units.  `F.linear` does so anew in every
call; done once, weights stream up to 1.7 times faster (benchmarks/README.md).  Layers that read the same rows are
one product: fewer, larger products keep the units busy.
"""

from collections.abc import Sequence
from typing import TypeGuard

import torch
from torch import Tensor, nn

_ops = torch.ops.mkldnn

SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""What models call layers that are given the same rows, in the order of their calls."""


class PackedLinear(nn.Module):
    """`nn.Linear` for inference: [..., in] -> [..., out], all in bfloat16."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self._weight = _ops._reorder_linear_weight(weight, None)
        self._bias = bias

    def forward(self, rows: Tensor) -> Tensor:
        packed: Tensor = _ops._linear_pointwise(rows, self._weight, self._bias, "none", [], "")
        return packed


class Joint:
    """Several layers as one.  The first that is asked for some rows computes all; the others take their parts."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        bias = None if layers[0].bias is None else torch.cat([layer.bias for layer in layers])
        self._linear = PackedLinear(torch.cat([layer.weight for layer in layers]), bias)
        self._sizes = [layer.out_features for layer in layers]
        self._rows: Tensor | None = None
        self._parts: list[Tensor | None] = []

    def part(self, at: int, rows: Tensor) -> Tensor:
        if rows is not self._rows or self._parts[at] is None:
            self._rows, self._parts = rows, list(self._linear(rows).split(self._sizes, -1))
        part, self._parts[at] = self._parts[at], None
        assert part is not None
        if not any(left is not None for left in self._parts):
            self._rows = None  # What nobody needs any more is not kept until the next step.
        return part


class PartLinear(nn.Module):
    """One layer of several that are given the same rows."""

    def __init__(self, joint: Joint, at: int) -> None:
        super().__init__()
        self._joint = joint
        self._at = at

    def forward(self, rows: Tensor) -> Tensor:
        return self._joint.part(self._at, rows)


@torch.inference_mode()
def pack(model: nn.Module) -> None:
    """Replace the model's linear layers where that is faster; the originals are freed one after the other."""
    if not _ops._is_mkldnn_bf16_supported():
        return
    for module in list(model.modules()):
        for names in SIBLINGS:
            siblings = [child for name in names if _is_packable(child := getattr(module, name, None))]
            if len(siblings) == len(names) and len({layer.bias is None for layer in siblings}) == 1:
                joint = Joint(siblings)
                for at, name in enumerate(names):
                    setattr(module, name, PartLinear(joint, at))
        for name, child in module.named_children():
            if _is_packable(child):
                setattr(module, name, PackedLinear(child.weight, child.bias))


def _is_packable(layer: object) -> TypeGuard[nn.Linear]:
    # Subclasses compute something else.
    return type(layer) is nn.Linear and layer.weight.dtype is torch.bfloat16 and layer.weight.device.type == "cpu"
