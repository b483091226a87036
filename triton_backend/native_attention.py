"""Attention by our kernels, which write keys and values too: one call a layer for all rows of the decode pool, and
one for each chunk of a prompt; or one for all layers (native_layers.py)."""

import ctypes
from collections.abc import Callable
from ctypes import POINTER, Array, Structure, addressof, byref, c_double, c_int64, c_void_p, pointer
from functools import partial

import torch
from torch import Tensor

from triton_backend import native
from triton_backend.attention import KV, DecodeKV, DecodePart, PrefillKV, Scores, StepKV
from triton_backend.cache import Group
from triton_backend.native import TYPES


def decode_view(dtype: torch.dtype, device: torch.device) -> Callable[[list[DecodePart]], KV]:
    """The kernel's view of a step where it can be had, else torch's."""
    if device.type == "cpu" and dtype in TYPES and (library := native.library()) is not None:
        return partial(NativeDecodeKV, library)
    return DecodeKV


def prefill_view(dtype: torch.dtype, device: torch.device) -> Callable[[Group, int], KV]:
    """The kernel's view of a chunk where it can be had, else torch's."""
    library = native.library() if device.type == "cpu" and dtype is torch.bfloat16 else None
    if library is not None and library.tiles_are_usable():
        return partial(NativePrefillKV, library)
    return PrefillKV


class _Heads(Structure):
    _fields_ = (
        ("numbers", c_void_p),
        ("row_stride", c_int64),
        ("head_stride", c_int64),
        ("position_stride", c_int64),
    )

    @classmethod
    def of(cls, tensor: Tensor) -> "_Heads":
        """[rows, heads, positions, dim]."""
        row, head, position, _ = tensor.stride()
        size = tensor.element_size()
        return cls(tensor.data_ptr(), row * size, head * size, position * size)


class ScoresBy(Structure):
    """`Scores`, as kernels take them."""

    _fields_ = ("window", c_int64), ("scaling", c_double), ("softcap", c_double)

    @classmethod
    def of(cls, scores: Scores) -> "ScoresBy":
        return cls(scores.window or 0, scores.scaling, scores.softcap or 0.0)


_SIZES = tuple((name, c_int64) for name in ("heads", "kv_heads", "key_dim", "value_dim"))
_HEADS = tuple((name, _Heads) for name in ("query", "key", "value", "out"))


class _Group(Structure):
    _fields_ = (
        ("tensors", c_void_p),
        ("positions", c_void_p),
        ("rows", c_int64),
        ("capacity", c_int64),
    )


class _Step(Structure):
    _fields_ = (
        *((name, c_int64) for name in ("type", "threads", "layer", "rows")),
        *_SIZES,
        ("scores", ScoresBy),
        ("groups", POINTER(_Group)),
        *_HEADS,
    )


class _Chunk(Structure):
    _fields_ = (
        *((name, c_int64) for name in ("threads", "layer")),
        *_SIZES,
        *((name, c_int64) for name in ("capacity", "start", "length")),
        ("scores", ScoresBy),
        ("tensors", c_void_p),
        *_HEADS,
    )


class Part(Structure):
    """A step's rows that attend in one way: by one of these."""

    _fields_ = ("step", POINTER(_Step)), ("chunk", POINTER(_Chunk))


def _with_whole_heads(tensor: Tensor) -> Tensor:
    """A head's numbers lie next to each other."""
    return tensor if tensor.stride(3) == 1 else tensor.contiguous()


def _addresses(group: Group) -> Array[c_void_p]:
    return (c_void_p * len(group.tensors))(*(tensor.data_ptr() for tensor in group.tensors))


class NativeKV:
    """Attends by a kernel."""

    def __init__(self, kernel: Callable[[object], object], call: _Step | _Chunk, part: Part) -> None:
        self.part = part
        """The call."""
        self._kernel = kernel
        self._call = call

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        query, key, value = (_with_whole_heads(tensor) for tensor in (query, key, value))
        rows, heads, positions, _ = query.shape
        out = query.new_empty(rows, positions, heads, value.shape[3])
        self.take(query, key, value, out.transpose(1, 2))
        self._call.layer, self._call.scores = layer, ScoresBy.of(scores)
        self._kernel(byref(self._call))
        return out

    def take(self, query: Tensor, key: Tensor, value: Tensor, out: Tensor) -> None:
        """Where the call reads and writes: [rows, heads, positions, dim], a head's numbers next to each other."""
        call = self._call
        call.heads, call.key_dim = query.shape[1], query.shape[3]
        call.kv_heads, call.value_dim = key.shape[1], value.shape[3]
        call.query, call.key, call.value, call.out = map(_Heads.of, (query, key, value, out))


class NativeDecodeKV(NativeKV):
    """The newest token of every row in the decode pool, rows in the order of their places."""

    def __init__(self, library: ctypes.CDLL, parts: list[DecodePart]) -> None:
        self._parts = parts
        self._tensors = [_addresses(part.group) for part in parts]
        groups = (_Group * len(parts))()
        for group, part, tensors in zip(groups, parts, self._tensors, strict=True):
            group.rows, group.capacity = part.num_rows, part.group.capacity
            group.positions, group.tensors = part.positions.data_ptr(), addressof(tensors)
        self._step = _Step(threads=torch.get_num_threads(), groups=groups)
        super().__init__(library.decode_attention, self._step, Part(step=pointer(self._step)))

    def take(self, query: Tensor, key: Tensor, value: Tensor, out: Tensor) -> None:
        self._step.type, self._step.rows = TYPES[query.dtype], query.shape[0]
        super().take(query, key, value, out)


class NativePrefillKV(NativeKV):
    """A chunk of one prompt: the positions from `start` on of the only row of `group`."""

    def __init__(self, library: ctypes.CDLL, group: Group, start: int) -> None:
        self._group = group
        self._tensors = _addresses(group)
        self._chunk = _Chunk(
            threads=torch.get_num_threads(),
            capacity=group.capacity,
            start=start,
            tensors=addressof(self._tensors),
        )
        super().__init__(library.prefill_attention, self._chunk, Part(chunk=pointer(self._chunk)))

    def take(self, query: Tensor, key: Tensor, value: Tensor, out: Tensor) -> None:
        self._chunk.length = query.shape[2]
        super().take(query, key, value, out)


def native_parts(kv: KV, query: Tensor, key: Tensor, value: Tensor, out: Tensor) -> Array[Part] | None:
    """The calls of a step, for whatever layers are to come, over [1, heads, positions, dim]; None where it attends
    otherwise.  They live as long as `kv`."""
    if not isinstance(kv, StepKV):
        return None
    parts = []
    for view, (own_query, own_key, own_value, own_out) in kv.split(query, key, value, out):
        if not isinstance(view, NativeKV):
            return None
        view.take(own_query, own_key, own_value, own_out)
        parts.append(view.part)
    return (Part * len(parts))(*parts)
