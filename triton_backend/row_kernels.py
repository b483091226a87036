"""The kernels in kernels/rows.c: what a model does to rows between its matrix products."""

import ctypes
from ctypes import c_double, c_int64, c_void_p

import torch
from torch import Tensor

from triton_backend.native import TYPES

_ARGUMENTS = {
    "rms_norm": (*[c_int64] * 5, c_void_p, c_int64, c_void_p, c_double, c_double, c_void_p, c_int64),
    "silu_gate": (*[c_int64] * 4, c_void_p, c_int64, c_void_p, c_int64, c_void_p),
    "rotate": (*[c_int64] * 5, c_void_p, c_int64, c_int64, c_void_p, c_void_p),
}


class RowKernels:
    """Over tensors [rows, positions, ...] of bfloat16 or float32."""

    def __init__(self, library: ctypes.CDLL) -> None:
        for name, arguments in _ARGUMENTS.items():
            getattr(library, name).argtypes = arguments
        self.library = library

    def rms_norm(self, rows: Tensor, weight: Tensor, offset: float, epsilon: float) -> Tensor:
        """rows [..., dim] / sqrt(mean of their squares + epsilon) * (weight [dim] + offset)."""
        flat, dim = flat_rows(rows), rows.shape[-1]
        out = rows.new_empty(rows.shape)
        self.library.rms_norm(
            TYPES[rows.dtype],
            torch.get_num_threads(),
            flat.shape[0],
            flat.shape[1] // dim,
            dim,
            flat.data_ptr(),
            _stride_bytes(flat),
            weight.data_ptr(),
            offset,
            epsilon,
            out.data_ptr(),
            flat.shape[1] * out.element_size(),
        )
        return out

    def silu_gate(self, gate: Tensor, up: Tensor) -> Tensor:
        """gate [..., dim] * sigmoid(gate) * up."""
        gates, ups = flat_rows(gate), flat_rows(up)
        out = gate.new_empty(gate.shape)
        self.library.silu_gate(
            TYPES[gate.dtype],
            torch.get_num_threads(),
            *gates.shape,
            gates.data_ptr(),
            _stride_bytes(gates),
            ups.data_ptr(),
            _stride_bytes(ups),
            out.data_ptr(),
        )
        return out

    def rotate_(self, heads: Tensor, cosines: Tensor, sines: Tensor) -> None:
        """Of each head [rows, positions, heads, dim] the first numbers, as many as there are cosines and sines
        [rows, positions, numbers], are halves x and y; they become x cos - y sin and y cos + x sin."""
        rows, positions, num_heads, dim = heads.shape
        flat = heads.view(rows * positions, num_heads * dim)
        self.library.rotate(
            TYPES[heads.dtype],
            torch.get_num_threads(),
            flat.shape[0],
            num_heads,
            cosines.shape[-1],
            flat.data_ptr(),
            _stride_bytes(flat),
            dim * flat.element_size(),
            cosines.data_ptr(),
            sines.data_ptr(),
        )


def flat_rows(rows: Tensor) -> Tensor:
    """[rows * positions, numbers], the numbers of each adjacent."""
    flat = rows.reshape(rows.shape[0] * rows.shape[1], -1)
    return flat if flat.stride(1) == 1 else flat.contiguous()


def _stride_bytes(flat: Tensor) -> int:
    return flat.stride(0) * flat.element_size()
