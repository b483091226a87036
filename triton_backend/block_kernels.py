"""The kernels in kernels/block.c: what a decoder's block does to rows before attention and after it, and all that
all blocks do."""

from collections.abc import Sequence
from ctypes import CDLL, POINTER, Array, Structure, byref, c_double, c_int64, c_void_p, pointer
from typing import NamedTuple

import torch
from torch import Tensor

from triton_backend.attention import Scores
from triton_backend.native_attention import Part, ScoresBy
from triton_backend.native_linear import Linear, NativeLinear


class Norm(NamedTuple):
    """numbers / sqrt(mean of their squares + epsilon) * (weight + offset)."""

    weight: Tensor
    offset: float
    epsilon: float


class Attention(NamedTuple):
    """What a block's attention is given of a token."""

    layer: int
    num_heads: int
    num_kv_heads: int
    key_dim: int
    scores: Scores


class Layers(NamedTuple):
    attention_norm: Norm
    joint: NativeLinear
    """Queries, keys and values."""
    query_norm: Norm | None
    key_norm: Norm | None
    attended: NativeLinear
    feed_forward_norm: Norm
    gated: NativeLinear
    down: NativeLinear


class _Norm(Structure):
    _fields_ = ("weight", c_void_p), ("offset", c_double), ("epsilon", c_double)

    @classmethod
    def of(cls, norm: Norm | None) -> "_Norm":
        return cls() if norm is None else cls(norm.weight.data_ptr(), norm.offset, norm.epsilon)


class _Block(Structure):
    _fields_ = (
        *((name, c_int64) for name in ("threads", "layer", "heads", "kv_heads", "key_dim", "rotated_dim")),
        ("scores", ScoresBy),
        *((name, _Norm) for name in ("attention_norm", "feed_forward_norm", "query_norm", "key_norm")),
        *((name, Linear) for name in ("joint", "attended", "gated", "down")),
    )


_ARGUMENTS = {
    "before_attention": (c_void_p, c_int64, *[c_void_p] * 5),
    "after_attention": (c_void_p, c_int64, *[c_void_p] * 4),
    "run_blocks": (POINTER(POINTER(_Block)), c_int64, POINTER(Part), c_int64, c_int64, *[c_void_p] * 7),
}


class Workspace(NamedTuple):
    """Of a step's blocks, one after the other."""

    normed: Tensor
    gated: Tensor


class BlockKernels:
    """Of one block, over rows [..., hidden] of bfloat16."""

    def __init__(self, library: CDLL, layers: Layers, attention: Attention) -> None:
        for name, arguments in _ARGUMENTS.items():
            getattr(library, name).argtypes = arguments
        self.library = library
        self.layers = layers
        """The kernels know where these lie."""
        self.block = _Block(
            layer=attention.layer,
            heads=attention.num_heads,
            kv_heads=attention.num_kv_heads,
            key_dim=attention.key_dim,
            scores=ScoresBy.of(attention.scores),
            attention_norm=_Norm.of(layers.attention_norm),
            feed_forward_norm=_Norm.of(layers.feed_forward_norm),
            query_norm=_Norm.of(layers.query_norm),
            key_norm=_Norm.of(layers.key_norm),
            joint=layers.joint.arguments(is_gated=False),
            attended=layers.attended.arguments(is_gated=False),
            gated=layers.gated.arguments(is_gated=True),
            down=layers.down.arguments(is_gated=False),
        )

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Inputs and outputs of the products."""
        block = self.block
        return tuple((one.inputs, one.outputs) for one in (block.joint, block.attended, block.gated, block.down))

    def before_attention(self, rows: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        """Queries and keys, normed and rotated, and values [..., numbers]; cosines and sines are [..., numbers
        rotated of a head]."""
        normed, _ = self.workspace(rows)
        joint = rows.new_empty(*rows.shape[:-1], self.layers.joint.outputs)
        self.prepare(cosines.shape[-1])
        tensors = rows, cosines, sines, normed, joint
        self.library.before_attention(byref(self.block), *_given(*tensors))
        return joint

    def after_attention(self, rows: Tensor, attended: Tensor) -> Tensor:
        """The block's output for the rows before attention and what that said to them [..., numbers]."""
        out = rows.clone()
        workspace = self.workspace(rows)  # It has to live while the kernel runs.
        self.library.after_attention(byref(self.block), *_given(out, attended, *workspace))
        return out

    def prepare(self, rotated_dim: int) -> None:
        """For calls from here on: so many numbers of a head are rotated, by as many threads as torch has now."""
        self.block.threads, self.block.rotated_dim = torch.get_num_threads(), rotated_dim

    def workspace(self, rows: Tensor) -> Workspace:
        layers = self.layers
        assert rows.dtype is torch.bfloat16 and rows.is_contiguous() and rows.shape[-1] == layers.joint.inputs
        return Workspace(normed=torch.empty_like(rows), gated=rows.new_empty(_num(rows), layers.down.inputs))


class StackKernels:
    """Of several blocks of the same sizes, one after the other."""

    def __init__(self, blocks: Sequence[BlockKernels]) -> None:
        self._blocks = blocks
        self._pointers = (POINTER(_Block) * len(blocks))(*(pointer(one.block) for one in blocks))

    def run(
        self, rows: Tensor, cosines: Tensor, sines: Tensor, joint: Tensor, attended: Tensor, parts: Array[Part]
    ) -> Tensor:
        """The last block's output for the first one's rows [..., hidden]; cosines and sines are [..., numbers
        rotated of a head].  The calls `parts` find queries, keys and values in `joint` [..., numbers] and say what
        they attend to in `attended` [..., numbers]."""
        out, first = rows.clone(), self._blocks[0]
        for block in self._blocks:
            block.prepare(cosines.shape[-1])
        normed, gated = first.workspace(out)
        num_rows, *tensors = _given(out, cosines, sines, normed, joint, attended, gated)
        first.library.run_blocks(self._pointers, len(self._pointers), parts, len(parts), num_rows, *tensors)
        return out


def _num(rows: Tensor) -> int:
    return rows.numel() // rows.shape[-1]


def _given(rows: Tensor, *tensors: Tensor) -> list[int]:
    """The number of rows, and where all lie."""
    return [_num(rows), *(tensor.data_ptr() for tensor in (rows, *tensors))]
