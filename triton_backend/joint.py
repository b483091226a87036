"""Linear layers that are given the same rows, as one product: fewer, larger products keep the units busy."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""What models call layers that are given the same rows, in the order of their calls."""


class Joint(nn.Module):
    """Several layers as one.  The first that is asked for some rows computes all; the others take their parts."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.linear: nn.Module = _joined(layers)
        self._sizes = [layer.out_features for layer in layers]
        self._rows: Tensor | None = None
        self._parts: list[Tensor | None] = [None] * len(layers)

    def part(self, at: int, rows: Tensor) -> Tensor:
        if rows is not self._rows or self._parts[at] is None:
            self._rows, self._parts = rows, list(self.linear(rows).split(self._sizes, -1))
        part, self._parts[at] = self._parts[at], None
        assert part is not None
        if not any(left is not None for left in self._parts):
            self._rows = None  # What nobody needs any more is not kept until the next step.
        return part


class PartLinear(nn.Module):
    """One layer of several that are given the same rows."""

    def __init__(self, joint: Joint, at: int) -> None:
        super().__init__()
        self.joint = joint
        self.at = at

    def forward(self, rows: Tensor) -> Tensor:
        return self.joint.part(self.at, rows)


@torch.inference_mode()
def join(model: nn.Module, is_joinable: Callable[[nn.Linear], bool] = lambda _: True) -> None:
    """Make one layer of siblings wherever all of them may be; the originals are freed one after the other."""
    for module in list(model.modules()):
        for names in SIBLINGS:
            layers = [getattr(module, name, None) for name in names]
            # Subclasses compute something else.
            siblings = [layer for layer in layers if type(layer) is nn.Linear and is_joinable(layer)]
            if len(siblings) == len(names) and len({layer.bias is None for layer in siblings}) == 1:
                joint = Joint(siblings)
                for at, name in enumerate(names):
                    setattr(module, name, PartLinear(joint, at))


def _joined(layers: Sequence[nn.Linear]) -> nn.Linear:
    first = layers[0]
    with torch.device("meta"):
        joined = nn.Linear(first.in_features, sum(layer.out_features for layer in layers), first.bias is not None)
    joined.weight = nn.Parameter(torch.cat([layer.weight for layer in layers]), requires_grad=False)
    if first.bias is not None:
        joined.bias = nn.Parameter(torch.cat([layer.bias for layer in layers]), requires_grad=False)
    return joined
