"""A decoder's blocks, whose layers are all ours: each by two calls around its attention, or all by one.

What surrounds the call of a layer takes as long as its kernel where a step has few rows.
"""

from collections.abc import Sequence
from ctypes import CDLL
from typing import Any

from torch import Tensor, nn

from triton_backend.attention import KV
from triton_backend.block_kernels import Attention, BlockKernels, Layers, StackKernels
from triton_backend.joint import Joint, PartLinear
from triton_backend.native_attention import native_parts
from triton_backend.native_layers import Call, JointGated, Kernels, NativeAttention, NativeNorm, refuse
from triton_backend.native_linear import NativeLinear
from triton_backend.packed import PackedLinear
from triton_backend.row_kernels import RowKernels


class _Given(nn.Module):
    """Is called as transformers calls a block."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        *,
        position_embeddings: tuple[Tensor, Tensor],
        kv: KV,
        **_: Any,
    ) -> Tensor:
        refuse(attention_mask)
        return self.run(hidden_states, *position_embeddings, kv)

    def run(self, hidden: Tensor, cosines: Tensor, sines: Tensor, kv: KV) -> Tensor:
        raise NotImplementedError


class NativeBlock(_Given):
    """A block of a decoder: all but its attention by two calls."""

    PARTS = "input_layernorm", "self_attn", "post_attention_layernorm", "mlp"

    def __init__(self, library: CDLL, layers: Layers, attention: NativeAttention) -> None:
        super().__init__()
        self.heads = attention.query_heads, attention.key_heads, attention.value_heads
        self._layer, self._scores = attention.layer_idx, attention.scores
        (num, key_dim), (num_kv, _), _ = self.heads
        self.kernels = BlockKernels(library, layers, Attention(self._layer, num, num_kv, key_dim, self._scores))

    @classmethod
    def like(cls, kernels: Kernels, layer: nn.Module, call: Call) -> list["NativeBlock"]:
        if not isinstance(kernels, RowKernels):
            return []
        match [getattr(layer, name, None) for name in cls.PARTS]:
            case (
                NativeNorm() as attention_norm,
                NativeAttention(
                    q_proj=PartLinear(joint=Joint(linear=PackedLinear(product=NativeLinear() as joint))),
                    o_proj=PackedLinear(product=NativeLinear() as attended),
                    q_norm=None | NativeNorm() as query_norm,
                    k_norm=None | NativeNorm() as key_norm,
                ) as attention,
                NativeNorm() as feed_forward_norm,
                JointGated(product=gated, down_proj=PackedLinear(product=NativeLinear() as down)),
            ):
                layers = Layers(
                    attention_norm=attention_norm.norm,
                    joint=joint,
                    query_norm=None if query_norm is None else query_norm.norm,
                    key_norm=None if key_norm is None else key_norm.norm,
                    attended=attended,
                    feed_forward_norm=feed_forward_norm.norm,
                    gated=gated,
                    down=down,
                )
                return [cls(kernels.library, layers, attention)]
        return []

    def run(self, hidden: Tensor, cosines: Tensor, sines: Tensor, kv: KV) -> Tensor:
        query, key, value = self.heads_of(self.kernels.before_attention(hidden, cosines, sines))
        attended = kv.attend(self._layer, query, key, value, self._scores)
        return self.kernels.after_attention(hidden, attended.contiguous())

    def heads_of(self, joint: Tensor) -> list[Tensor]:
        """Queries, keys and values [rows, heads, positions, dim]."""
        parts = joint.split_with_sizes([num * dim for num, dim in self.heads], -1)
        shaped = zip(parts, self.heads, strict=True)
        return [part.view(*part.shape[:-1], *shape).transpose(1, 2) for part, shape in shaped]


class NativeStack(_Given):
    """All blocks of a decoder, by one call where that can attend, too."""

    def __init__(self, blocks: Sequence[NativeBlock]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self._first = blocks[0]
        self._kernels = StackKernels([block.kernels for block in blocks])

    @classmethod
    def like(cls, layers: nn.ModuleList) -> list["NativeStack"]:
        blocks = [layer for layer in layers if isinstance(layer, NativeBlock)]
        sizes = {(block.heads, block.kernels.sizes) for block in blocks}
        return [cls(blocks)] if len(blocks) == len(layers) and len(sizes) == 1 else []

    def run(self, hidden: Tensor, cosines: Tensor, sines: Tensor, kv: KV) -> Tensor:
        shape = hidden.shape[:-1]
        joint = hidden.new_empty(*shape, sum(num * dim for num, dim in self._first.heads))
        num_heads, value_dim = self._first.heads[0][0], self._first.heads[2][1]
        # Padding attends to nothing, and stays zero.
        attended = hidden.new_zeros(*shape, num_heads, value_dim)
        query, key, value = self._first.heads_of(joint)
        parts = native_parts(kv, query, key, value, attended.transpose(1, 2))
        if parts is not None:
            return self._kernels.run(hidden, cosines, sines, joint, attended, parts)
        for block in self.blocks:
            hidden = block(hidden, position_embeddings=(cosines, sines), kv=kv)
        return hidden
