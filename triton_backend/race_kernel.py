"""The kernel in kernels/race.c: the largest of logits over temperature plus noise, in one pass over the logits."""

import ctypes
from ctypes import c_int64, c_void_p

import torch
from torch import Tensor

from triton_backend.native import TYPES

_ARGUMENTS: tuple[type[c_int64 | c_void_p], ...] = (*[c_int64] * 4, c_void_p, c_int64, *[c_void_p] * 5)


def race(
    library: ctypes.CDLL, logits: Tensor, temperatures: Tensor, floors: Tensor | None, keys: Tensor
) -> tuple[Tensor, Tensor]:
    """What was largest, NaN if anything in its row is, and where; [rows] each.

    logits are [rows, vocabulary]; temperatures and floors [rows] float32: what is below its row's floor, once
    divided, is left out.  keys [rows, 2] int32 are the low and high halves of the noise's.
    """
    library.race.argtypes = _ARGUMENTS
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    scores = torch.empty(len(logits))
    ids = torch.empty(len(logits), dtype=torch.long)
    library.race(
        TYPES[logits.dtype],
        torch.get_num_threads(),
        *logits.shape,
        logits.data_ptr(),
        logits.stride(0) * logits.element_size(),
        temperatures.data_ptr(),
        None if floors is None else floors.data_ptr(),
        keys.data_ptr(),
        scores.data_ptr(),
        ids.data_ptr(),
    )
    return scores, ids
