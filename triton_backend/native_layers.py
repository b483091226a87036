"""Layers of a model that our kernels run, where they are seen to compute the same.

What a layer may be is told by its parts.  What it is, is tried: it and ours are given what it gets in a run of
the model, and numbers that no model has, and have to say the same.  So no model's code is copied, and what does
something else stays.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from triton_backend import native
from triton_backend.attention import KV, Scores, UnsupportedModel
from triton_backend.joint import PartLinear
from triton_backend.native import TYPES
from triton_backend.native_linear import NativeLinear
from triton_backend.packed import PackedLinear
from triton_backend.row_kernels import RowKernels

TOLERANCES = {torch.bfloat16: 2**-6, torch.float32: 2**-14}
"""Of the largest number: the model's layers round after every operation, ours once."""
POSITIONS = 5
"""Of each row in the run that is watched, spread over the context."""


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
        out = torch.linspace(-1, 1, rows * positions * heads * value.shape[3], dtype=query.dtype)
        return out.view(rows, positions, heads, -1)


class NativeNorm(nn.Module):
    """A norm by the root of the mean square."""

    def __init__(self, kernels: RowKernels, weight: Tensor, offset: float, epsilon: float) -> None:
        super().__init__()
        self._kernels = kernels
        self._weight = weight.contiguous()
        self._offset = offset
        self._epsilon = epsilon

    @classmethod
    def like(cls, kernels: RowKernels, layer: nn.Module, call: Call) -> list["NativeNorm"]:
        """With a weight as it is, or around zero."""
        epsilon = getattr(layer, "variance_epsilon", getattr(layer, "eps", None))
        weights = list(layer.parameters())
        if not isinstance(epsilon, float) or [weight.shape for weight in weights] != [call.rows.shape[-1:]]:
            return []
        return [cls(kernels, weights[0], offset, epsilon) for offset in (0.0, 1.0)]

    def forward(self, rows: Tensor) -> Tensor:
        return self._kernels.rms_norm(rows, self._weight, self._offset, self._epsilon)


class NativeGated(nn.Module):
    """A feed-forward layer with a gate."""

    PARTS = "gate_proj", "up_proj", "down_proj"

    def __init__(self, kernels: RowKernels, layer: nn.Module) -> None:
        super().__init__()
        self._kernels = kernels
        self.gate_proj, self.up_proj, self.down_proj = (getattr(layer, name) for name in self.PARTS)

    @classmethod
    def like(cls, kernels: RowKernels, layer: nn.Module, call: Call) -> list[nn.Module]:
        if not all(hasattr(layer, name) for name in cls.PARTS):
            return []
        return [*JointGated.like(layer), cls(kernels, layer)]

    def forward(self, rows: Tensor) -> Tensor:
        down: Tensor = self.down_proj(self._kernels.silu_gate(self.gate_proj(rows), self.up_proj(rows)))
        return down


class JointGated(nn.Module):
    """A feed-forward layer whose gate is part of the first product: its outputs are read and written once less."""

    def __init__(self, product: NativeLinear, down_proj: nn.Module) -> None:
        super().__init__()
        self._product = product
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
        down: Tensor = self.down_proj(self._product.gated(rows))
        return down


class NativeAttention(nn.Module):
    """Attention with rotated queries and keys, which may be normed before."""

    PARTS = "q_proj", "k_proj", "v_proj", "o_proj"

    def __init__(self, kernels: RowKernels, layer: nn.Module, attended: Attended) -> None:
        super().__init__()
        self._kernels = kernels
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (getattr(layer, name) for name in self.PARTS)
        self.q_norm, self.k_norm = (getattr(layer, name, None) for name in ("q_norm", "k_norm"))
        self._layer, *heads, self._scores = attended
        self._query_heads, self._key_heads, self._value_heads = ((one.shape[1], one.shape[3]) for one in heads)

    @classmethod
    def like(cls, kernels: RowKernels, layer: nn.Module, call: Call) -> list["NativeAttention"]:
        if not all(hasattr(layer, name) for name in cls.PARTS) or not call.options.get("position_embeddings"):
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
        if attention_mask is not None:
            raise UnsupportedModel("an attention layer was given a mask; choose a model without")
        query = self.q_proj(hidden_states).unflatten(-1, self._query_heads)
        key = self.k_proj(hidden_states).unflatten(-1, self._key_heads)
        value = self.v_proj(hidden_states).unflatten(-1, self._value_heads)
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        self._kernels.rotate_(query, *position_embeddings)
        self._kernels.rotate_(key, *position_embeddings)
        heads = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        out = kv.attend(self._layer, *heads, self._scores)
        return self.o_proj(out.flatten(2)), None


@torch.inference_mode()
def replace_layers(model: PreTrainedModel, context_tokens: int) -> None:
    """Those for whose numbers there are kernels."""
    if model.device.type != "cpu" or model.dtype not in TYPES or (library := native.library()) is None:
        return
    kernels = RowKernels(library)
    calls = _watched(model, context_tokens)
    for kind in (NativeNorm, NativeGated, NativeAttention):
        for parent in list(model.modules()):
            for name, layer in list(parent.named_children()):
                if call := calls.get(layer):
                    ours = [one for one in kind.like(kernels, layer, call) if _agree(layer, one, call)]
                    if ours:
                        setattr(parent, name, ours[0])


def _watched(model: PreTrainedModel, context_tokens: int) -> dict[nn.Module, Call]:
    """What layers are given in a run of two rows."""
    calls = {}

    def keep(layer: nn.Module, given: tuple[Any, ...], options: dict[str, Any]) -> None:
        rows, *more = given or (options.get("hidden_states"),)
        if isinstance(rows, Tensor) and not more:
            calls[layer] = Call(rows, {name: value for name, value in options.items() if name != "hidden_states"})

    handles = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in model.modules()]
    ids = torch.arange(2 * POSITIONS).view(2, POSITIONS) % model.config.get_text_config().vocab_size
    positions = torch.linspace(0, context_tokens - 1, POSITIONS).long().expand_as(ids)
    model(input_ids=ids, position_ids=positions, use_cache=False, kv=Watch())
    for handle in handles:
        handle.remove()
    return calls


def _agree(layer: nn.Module, ours: nn.Module, call: Call) -> bool:
    generator = torch.Generator().manual_seed(0)
    strange = torch.randn(call.rows.shape, generator=generator) * 100 + 10
    return all(
        _is_close(one, other)
        for rows in (call.rows, strange.to(call.rows.dtype))
        for one, other in zip(_said(layer, rows, call), _said(ours, rows, call), strict=True)
    )


def _said(layer: nn.Module, rows: Tensor, call: Call) -> list[object]:
    watch = Watch()
    options = call.options | {"kv": watch} if "kv" in call.options else call.options
    out = layer(rows, **options)
    return [*(out if isinstance(out, tuple) else (out,)), *(part for asked in watch.asked for part in asked)]


def _is_close(one: object, other: object) -> bool:
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return one == other
    return (
        one.shape == other.shape
        and one.dtype is other.dtype
        and bool((one - other).abs().max() <= TOLERANCES[one.dtype] * one.abs().max())
    )
