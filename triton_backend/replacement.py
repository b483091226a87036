"""Replaces layers of a model by ours, where they are seen to compute the same.

What a layer may be is told by its parts.  What it is, is tried: it and ours are given what it gets in a run of
the model, and numbers that no model has, and have to say the same.  So no model's code is copied, and what does
something else stays.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from triton_backend import native
from triton_backend.native_blocks import NativeBlock, NativeStack
from triton_backend.native_layers import Call, Kernels, NativeAttention, NativeGated, NativeNorm, Watch
from triton_backend.row_kernels import RowKernels
from triton_backend.shortage import is_shortage

TOLERANCES = {torch.bfloat16: 2**-6, torch.float32: 2**-14}
"""Of the largest number: the model's layers round after every operation, ours once."""
POSITIONS = 5
"""Of each row in the run that is watched, spread over the context."""


@torch.inference_mode()
def replace_layers(model: PreTrainedModel, context_tokens: int) -> None:
    """Those for whose numbers there are kernels."""
    kernels = _kernels_of(model)
    if kernels is None:
        return
    calls = _watched(model, context_tokens)
    for kind in (NativeNorm, NativeGated, NativeAttention, NativeBlock):
        for parent in list(model.modules()):
            for name, layer in list(parent.named_children()):
                if call := calls.get(layer):
                    ours = [one for one in kind.like(kernels, layer, call) if _agree(layer, one, call)]
                    if ours:
                        setattr(parent, name, ours[0])
    _stack(model, context_tokens)


def _kernels_of(model: PreTrainedModel) -> Kernels | None:
    """For the model's device and numbers."""
    if model.dtype not in TOLERANCES:
        return None
    if model.device.type == "cuda":
        from triton_backend.cuda_rows_kernel import CudaRows  # Triton comes with torch for CUDA only.

        return CudaRows()
    library = native.library() if model.device.type == "cpu" else None
    return None if library is None else RowKernels(library)


def _stack(model: PreTrainedModel, context_tokens: int) -> None:
    """Make one of all blocks, where they follow on each other and are given the same."""
    for parent in list(model.modules()):
        for name, layers in list(parent.named_children()):
            if isinstance(layers, nn.ModuleList) and (stacks := NativeStack.like(layers)):
                before = _model_said(model, context_tokens)
                setattr(parent, name, nn.ModuleList(stacks))
                if not _are_close(before, _model_said(model, context_tokens)):
                    setattr(parent, name, layers)


def _watched(model: PreTrainedModel, context_tokens: int) -> dict[nn.Module, Call]:
    """What layers are given in a run of two rows."""
    calls = {}

    def keep(layer: nn.Module, given: tuple[Any, ...], options: dict[str, Any]) -> None:
        rows, *more = given or (options.get("hidden_states"),)
        if isinstance(rows, Tensor) and not more:
            calls[layer] = Call(rows, {name: value for name, value in options.items() if name != "hidden_states"})

    handles = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in model.modules()]
    _model_said(model, context_tokens)
    for handle in handles:
        handle.remove()
    return calls


def _model_said(model: PreTrainedModel, context_tokens: int) -> list[object]:
    watch = Watch()
    ids = torch.arange(2 * POSITIONS, device=model.device) % model.config.get_text_config().vocab_size
    positions = torch.linspace(0, context_tokens - 1, POSITIONS, device=model.device).long().expand(2, -1)
    out = model(input_ids=ids.view(2, -1), position_ids=positions, use_cache=False, kv=watch)
    return [out.logits, *watch.said]


def _agree(layer: nn.Module, ours: nn.Module, call: Call) -> bool:
    generator = torch.Generator().manual_seed(0)
    strange = torch.randn(call.rows.shape, generator=generator) * 100 + 10
    for rows in (call.rows, strange.to(call.rows)):
        said = _said(layer, rows, call)
        try:
            ours_said = _said(ours, rows, call)
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
            if is_shortage(error):
                raise
            return False  # It cannot even be given this.
        if not _are_close(said, ours_said):
            return False
    return True


def _said(layer: nn.Module, rows: Tensor, call: Call) -> list[object]:
    watch = Watch()
    options = call.options | {"kv": watch} if "kv" in call.options else call.options
    out = layer(rows, **options)
    is_tuple = isinstance(out, tuple)
    return [is_tuple, *(out if is_tuple else (out,)), *watch.said]


def _are_close(said: list[object], others: list[object]) -> bool:
    return len(said) == len(others) and all(map(_is_close, said, others))


def _is_close(one: object, other: object) -> bool:
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return one == other
    return (
        one.shape == other.shape
        and one.dtype is other.dtype
        and bool((one - other).abs().max() <= TOLERANCES[one.dtype] * one.abs().max())
    )
