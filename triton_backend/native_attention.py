"""Attention by our kernels, which write keys and values too: one call a layer for all rows of the decode pool, and
one for each chunk of a prompt."""

import ctypes
from collections.abc import Callable
from ctypes import POINTER, Structure, byref, c_double, c_int64, c_void_p
from functools import partial

import torch
from torch import Tensor

from triton_backend import native
from triton_backend.attention import KV, DecodeKV, DecodePart, PrefillKV, Scores
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


_HEADS = tuple((name, _Heads) for name in ("query", "key", "value", "out"))
_SIZES = tuple((name, c_int64) for name in ("threads", "heads", "kv_heads", "key_dim", "value_dim"))
_SCORES = ("window", c_int64), ("scaling", c_double), ("softcap", c_double)


class _DecodeGroup(Structure):
    _fields_ = (
        ("keys", c_void_p),
        ("values", c_void_p),
        ("positions", c_void_p),
        ("rows", c_int64),
        ("capacity", c_int64),
    )


class _Step(Structure):
    _fields_ = ("type", c_int64), ("rows", c_int64), *_SIZES, *_SCORES, ("groups", POINTER(_DecodeGroup)), *_HEADS


class _Chunk(Structure):
    _fields_ = (
        *_SIZES,
        ("capacity", c_int64),
        ("start", c_int64),
        ("length", c_int64),
        *_SCORES,
        ("keys", c_void_p),
        ("values", c_void_p),
        *_HEADS,
    )


def _attend(
    kernel: Callable[[object], object],
    call: _Step | _Chunk,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scores: Scores,
) -> Tensor:
    query, key, value = (_with_whole_heads(tensor) for tensor in (query, key, value))
    rows, call.heads, positions, call.key_dim = query.shape
    call.kv_heads, call.value_dim = key.shape[1], value.shape[3]
    call.window, call.scaling, call.softcap = scores.window or 0, scores.scaling, scores.softcap or 0.0
    out = query.new_empty(rows, positions, call.heads, call.value_dim)
    call.query, call.key, call.value = _Heads.of(query), _Heads.of(key), _Heads.of(value)
    call.out = _Heads.of(out.transpose(1, 2))
    kernel(byref(call))
    return out


def _with_whole_heads(tensor: Tensor) -> Tensor:
    """A head's numbers lie next to each other."""
    return tensor if tensor.stride(3) == 1 else tensor.contiguous()


class NativeDecodeKV:
    """The newest token of every row in the decode pool, rows in the order of their places."""

    def __init__(self, library: ctypes.CDLL, parts: list[DecodePart]) -> None:
        self._kernel = library.decode_attention
        self._parts = parts
        self._groups = (_DecodeGroup * len(parts))()
        for group, part in zip(self._groups, parts, strict=True):
            group.rows, group.capacity = part.num_rows, part.group.capacity
            group.positions = part.positions.data_ptr()
        self._step = _Step(threads=torch.get_num_threads(), groups=self._groups)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        for group, part in zip(self._groups, self._parts, strict=True):
            group.keys, group.values = part.group.keys(layer).data_ptr(), part.group.values(layer).data_ptr()
        self._step.type, self._step.rows = TYPES[query.dtype], query.shape[0]
        return _attend(self._kernel, self._step, query, key, value, scores)


class NativePrefillKV:
    """A chunk of one prompt: the positions from `start` on of the only row of `group`."""

    def __init__(self, library: ctypes.CDLL, group: Group, start: int) -> None:
        self._kernel = library.prefill_attention
        self._group = group
        self._chunk = _Chunk(threads=torch.get_num_threads(), capacity=group.capacity, start=start)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        chunk = self._chunk
        chunk.keys, chunk.values = self._group.keys(layer).data_ptr(), self._group.values(layer).data_ptr()
        chunk.length = query.shape[2]
        return _attend(self._kernel, chunk, query, key, value, scores)
