"""Layers of a model that our kernels run."""

from collections.abc import Iterable
from math import prod
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from triton_backend.attention import KV, Scores, UnsupportedModel
from triton_backend.block_kernels import Norm
from triton_backend.joint import PartLinear
from triton_backend.native_linear import NativeLinear
from triton_backend.packed import PackedLinear


class Kernels(Protocol):
    """Over tensors [rows, positions, ...]: row_kernels.py on a CPU, cuda_rows_kernel.py on CUDA."""

    def rms_norm(self, rows: Tensor, weight: Tensor, offset: float, epsilon: float) -> Tensor: ...

    def silu_gate(self, gate: Tensor, up: Tensor) -> Tensor: ...

    def rotate_(self, heads: Tensor, cosines: Tensor, sines: Tensor) -> None: ...


class Call(NamedTuple):
    """What a layer was given."""

    rows: Tensor
    options: dict[str, Any]


class Attended(NamedTuple):
    """What a layer asked the cache."""

    layer: int
    query: Tensor
    key: Tensor
    value: Tensor
    scores: Scores


class Watch:
    """Attends to nothing; keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Attended] = []

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        self.asked.append(Attended(layer, query, key, value, scores))
        rows, heads, positions, _ = query.shape
        shape = rows, positions, heads, value.shape[3]
        return torch.linspace(-1, 1, prod(shape), dtype=query.dtype, device=query.device).view(shape)

    @property
    def said(self) -> list[object]:
        return [part for asked in self.asked for part in asked]


def _has(layer: nn.Module, parts: Iterable[str]) -> bool:
    """One whose values are its keys has the name of their product, and none of that name."""
    return all(getattr(layer, name, None) is not None for name in parts)


class NativeNorm(nn.Module):
    """A norm by the root of the mean square."""

    def __init__(self, kernels: Kernels, weight: Tensor, offset: float, epsilon: float) -> None:
        super().__init__()
        self._kernels = kernels
        self.norm = Norm(weight.contiguous(), offset, epsilon)

    @classmethod
    def like(cls, kernels: Kernels, layer: nn.Module, call: Call) -> list["NativeNorm"]:
        """With a weight as it is, or around zero."""
        epsilon = getattr(layer, "variance_epsilon", getattr(layer, "eps", None))
        weights = list(layer.parameters())
        if not isinstance(epsilon, float) or [weight.shape for weight in weights] != [call.rows.shape[-1:]]:
            return []
        return [cls(kernels, weights[0], offset, epsilon) for offset in (0.0, 1.0)]

    def forward(self, rows: Tensor) -> Tensor:
        return self._kernels.rms_norm(rows, *self.norm)


class NativeGated(nn.Module):
    """A feed-forward layer with a gate."""

    PARTS = "gate_proj", "up_proj", "down_proj"

    def __init__(self, kernels: Kernels, layer: nn.Module) -> None:
        super().__init__()
        self._kernels = kernels
        self.gate_proj, self.up_proj, self.down_proj = (getattr(layer, name) for name in self.PARTS)

    @classmethod
    def like(cls, kernels: Kernels, layer: nn.Module, call: Call) -> list[nn.Module]:
        if not _has(layer, cls.PARTS):
            return []
        return [*JointGated.like(layer), cls(kernels, layer)]

    def forward(self, rows: Tensor) -> Tensor:
        down: Tensor = self.down_proj(self._kernels.silu_gate(self.gate_proj(rows), self.up_proj(rows)))
        return down


class JointGated(nn.Module):
    """A feed-forward layer whose gate is part of the first product: its outputs are read and written once less."""

    def __init__(self, product: NativeLinear, down_proj: nn.Module) -> None:
        super().__init__()
        self.product = product
        self.down_proj = down_proj

    @classmethod
    def like(cls, layer: nn.Module) -> list["JointGated"]:
        match layer.gate_proj, layer.up_proj, layer.down_proj:
            case PartLinear(joint=joint), PartLinear(joint=same), nn.Module() as down_proj if joint is same:
                match joint.linear:
                    case PackedLinear(product=NativeLinear(can_gate=True) as product):
                        return [cls(product, down_proj)]
        return []

    def forward(self, rows: Tensor) -> Tensor:
        down: Tensor = self.down_proj(self.product.gated(rows))
        return down


class NativeAttention(nn.Module):
    """Attention with rotated queries and keys, which may be normed before."""

    PARTS = "q_proj", "k_proj", "v_proj", "o_proj"

    def __init__(self, kernels: Kernels, layer: nn.Module, attended: Attended) -> None:
        super().__init__()
        self._kernels = kernels
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (getattr(layer, name) for name in self.PARTS)
        self.q_norm, self.k_norm = (getattr(layer, name, None) for name in ("q_norm", "k_norm"))
        self.layer_idx, *heads, self.scores = attended
        self.query_heads, self.key_heads, self.value_heads = ((one.shape[1], one.shape[3]) for one in heads)

    @classmethod
    def like(cls, kernels: Kernels, layer: nn.Module, call: Call) -> list["NativeAttention"]:
        if not _has(layer, cls.PARTS) or not call.options.get("position_embeddings"):
            return []
        watch = Watch()
        layer(call.rows, **call.options | {"kv": watch})
        return [cls(kernels, layer, attended) for attended in watch.asked]

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        *,
        kv: KV,
        **_: Any,
    ) -> tuple[Tensor, None]:
        refuse(attention_mask)
        query = self.q_proj(hidden_states).unflatten(-1, self.query_heads)
        key = self.k_proj(hidden_states).unflatten(-1, self.key_heads)
        value = self.v_proj(hidden_states).unflatten(-1, self.value_heads)
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        self._kernels.rotate_(query, *position_embeddings)
        self._kernels.rotate_(key, *position_embeddings)
        heads = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        out = kv.attend(self.layer_idx, *heads, self.scores)
        return self.o_proj(out.flatten(2)), None


def is_native(layer: nn.Module) -> bool:
    """Whether all of its parts are ours."""
    return all(isinstance(part, NativeNorm | NativeGated | NativeAttention) for part in layer.children())


def refuse(attention_mask: Tensor | None) -> None:
    if attention_mask is not None:
        raise UnsupportedModel("an attention layer was given a mask; choose a model without")
