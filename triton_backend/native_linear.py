"""Linear layers by the kernel in kernels/linear.c."""

from ctypes import CDLL, Structure, byref, c_int64, c_void_p
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import pad

from triton_backend import native

LINES = 16
WIDTH = 32
"""Inputs of a tile of rows, and outputs of a panel: the kernel's units."""


@cache
def usable_library() -> CDLL | None:
    """None where there is no compiler, or no matrix unit that we may use."""
    library = native.library()
    return library if library is not None and library.tiles_are_usable() else None


class Linear(Structure):
    """The kernel's arguments."""

    _fields_ = (
        ("rows", c_void_p),
        ("weight", c_void_p),
        ("bias", c_void_p),
        ("out", c_void_p),
        ("num_rows", c_int64),
        ("inputs", c_int64),
        ("outputs", c_int64),
        ("is_gated", c_int64),
        ("threads", c_int64),
    )


class NativeLinear:
    """`weight` [out, in] and `bias` [out], in bfloat16; inputs are a multiple of `WIDTH`."""

    def __init__(self, library: CDLL, weight: Tensor, bias: Tensor | None) -> None:
        self._library = library
        self.outputs, self.inputs = weight.shape
        assert self.inputs % WIDTH == 0
        self._weight = _panels(weight)
        self._bias = None if bias is None else pad(bias, (0, -self.outputs % WIDTH))

    def __call__(self, rows: Tensor) -> Tensor:
        """[..., in] -> [..., out]"""
        return self._run(rows, is_gated=False)

    @property
    def can_gate(self) -> bool:
        return self.outputs % (2 * WIDTH) == 0

    def gated(self, rows: Tensor) -> Tensor:
        """[..., in] -> [..., out / 2]: silu of the first half of the outputs, times the second."""
        assert self.can_gate
        return self._run(rows, is_gated=True)

    def arguments(self, *, is_gated: bool) -> Linear:
        """Those that are the same for all rows; the weight is this layer's, and stays as long as it."""
        return Linear(
            weight=self._weight.data_ptr(),
            bias=None if self._bias is None else self._bias.data_ptr(),
            inputs=self.inputs,
            outputs=self.outputs // 2 if is_gated else self.outputs,
            is_gated=is_gated,
        )

    def _run(self, rows: Tensor, *, is_gated: bool) -> Tensor:
        assert rows.dtype is torch.bfloat16 and rows.shape[-1] == self.inputs
        rows = rows.contiguous()
        num_rows = rows.numel() // self.inputs
        call = self.arguments(is_gated=is_gated)
        out = rows.new_empty(*rows.shape[:-1], call.outputs)
        call.rows, call.out = rows.data_ptr(), out.data_ptr()
        call.num_rows, call.threads = num_rows, torch.get_num_threads()
        self._library.linear(byref(call))
        return out


def _panels(weight: Tensor) -> Tensor:
    """[panels, inputs / 32, 2, 16, 16, 2]: tiles of the even and the odd outputs, their lines, pairs of inputs."""
    outputs, inputs = weight.shape
    whole = pad(weight, (0, 0, 0, -outputs % WIDTH))
    parts = whole.view(-1, LINES, 2, inputs // WIDTH, LINES, 2)
    return parts.permute(0, 3, 2, 4, 1, 5).contiguous()
