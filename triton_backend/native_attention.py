"""Decode attention by the kernel in kernels/attention.c: one call a layer, for the rows of all groups."""

import ctypes
from collections.abc import Callable
from ctypes import POINTER, Structure, byref, c_double, c_int64, c_void_p
from functools import partial

import torch
from torch import Tensor

from triton_backend import native
from triton_backend.attention import KV, DecodeKV, DecodePart, Scores
from triton_backend.native import TYPES


def decode_view(dtype: torch.dtype, device: torch.device) -> Callable[[list[DecodePart]], KV]:
    """The kernel's view of a step where it can be had, else torch's."""
    if device.type == "cpu" and dtype in TYPES and (library := native.library()) is not None:
        return partial(NativeDecodeKV, library)
    return DecodeKV


class _Group(Structure):
    _fields_ = (
        ("keys", c_void_p),
        ("values", c_void_p),
        ("positions", c_void_p),
        ("rows", c_int64),
        ("capacity", c_int64),
    )


class _Heads(Structure):
    _fields_ = (("numbers", c_void_p), ("row_stride", c_int64), ("head_stride", c_int64))

    def point_to(self, tensor: Tensor) -> None:
        """[rows, heads, positions, dim], of which the first position is meant."""
        size = tensor.element_size()
        self.numbers = tensor.data_ptr()
        self.row_stride = tensor.stride(0) * size
        self.head_stride = tensor.stride(1) * size


class _Step(Structure):
    _fields_ = (
        ("type", c_int64),
        ("threads", c_int64),
        ("rows", c_int64),
        ("heads", c_int64),
        ("kv_heads", c_int64),
        ("key_dim", c_int64),
        ("value_dim", c_int64),
        ("window", c_int64),
        ("scaling", c_double),
        ("softcap", c_double),
        ("groups", POINTER(_Group)),
        ("query", _Heads),
        ("key", _Heads),
        ("value", _Heads),
        ("out", _Heads),
    )


class NativeDecodeKV:
    """The newest token of every row in the decode pool, rows in the order of their places."""

    def __init__(self, library: ctypes.CDLL, parts: list[DecodePart]) -> None:
        self._attend = library.decode_attention
        self._parts = parts
        self._groups = (_Group * len(parts))()
        self._step = _Step(threads=torch.get_num_threads(), groups=self._groups)
        for group, part in zip(self._groups, parts, strict=True):
            group.rows, group.capacity = part.num_rows, part.group.capacity
            group.positions = part.positions.data_ptr()

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        rows, heads, _, key_dim = query.shape
        kv_heads, value_dim = key.shape[1], value.shape[3]
        for group, part in zip(self._groups, self._parts, strict=True):
            group.keys, group.values = part.group.keys(layer).data_ptr(), part.group.values(layer).data_ptr()
        query, key, value = (_with_whole_heads(tensor) for tensor in (query, key, value))
        out = query.new_empty(rows, heads, 1, value_dim)
        step = self._step
        step.type = TYPES[query.dtype]
        step.rows, step.heads, step.kv_heads = rows, heads, kv_heads
        step.key_dim, step.value_dim = key_dim, value_dim
        step.window, step.scaling, step.softcap = scores.window or 0, scores.scaling, scores.softcap or 0.0
        step.query.point_to(query)
        step.key.point_to(key)
        step.value.point_to(value)
        step.out.point_to(out)
        self._attend(byref(step))
        return out.view(rows, 1, heads, value_dim)


def _with_whole_heads(tensor: Tensor) -> Tensor:
    """A head's numbers lie next to each other."""
    return tensor if tensor.stride(3) == 1 else tensor.contiguous()
