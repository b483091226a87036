"""Loading a model, and refusing clearly what the engine would run wrongly."""

from collections.abc import Collection, Sequence
from typing import Any, cast

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from triton_backend import allocator
from triton_backend.attention import NAME, UnsupportedModel
from triton_backend.control_groups import num_processors

HANDLED_LAYERS = {"full_attention", "sliding_attention"}
CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "seq_length")
"""What configs call the longest sequence."""

_Mismatch = tuple[str, Sequence[int], Sequence[int]]
"""A weight's name, its shape, and the one that it should have."""


def load_model(path: str, device: str, dtype: str, threads: int | None) -> PreTrainedModel:
    """A local folder or a Hugging Face id, from safetensors only.  `threads` None: as many as there are
    processors for.  Raises UnsupportedModel."""
    # Threads wait for each other: with more of them than can run, all wait for those that do not.
    torch.set_num_threads(threads or min(torch.get_num_threads(), num_processors()))
    if device == "cpu":
        allocator.keep_freed()
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except SafetensorError as error:
        raise UnsupportedModel(f"safetensors in {path} are damaged ({error}); fetch them again") from error
    except (ImportError, OSError, ValueError) as error:
        # What follows in further lines is for users of the library.
        raise UnsupportedModel(f"cannot load {path}: {str(error).strip().splitlines()[0]}") from error
    model, found = loaded
    _check_complete(path, found["missing_keys"], found["mismatched_keys"])
    return cast("PreTrainedModel", model.to(torch.device(device)))


def _check_complete(path: str, missing: Collection[str], mismatched: Collection[_Mismatch]) -> None:
    """Weights that a checkpoint lacks are drawn at random, with a warning that nobody sees.  Raises
    UnsupportedModel."""
    if missing:
        raise UnsupportedModel(f"cannot load {path}: {len(missing)} weights are missing, such as {min(missing)}")
    if mismatched:
        name, has, wanted = min(mismatched)
        raise UnsupportedModel(
            f"cannot load {path}: {name} has shape {[*has]}, where its config asks for {[*wanted]}"
        )


def adopt(model: PreTrainedModel) -> None:
    """Make the model attend through this engine's cache.  Raises UnsupportedModel."""
    config = model.config.get_text_config()
    name = type(model).__name__
    if model.config.is_encoder_decoder:
        raise UnsupportedModel(f"{name} is an encoder-decoder; choose a decoder-only model")
    if unknown := set(getattr(config, "layer_types", None) or ()) - HANDLED_LAYERS:
        raise UnsupportedModel(f"{name} has layers of types {sorted(unknown)}; choose a model with attention only")
    if not model._supports_attention_backend or model._is_stateful:
        raise UnsupportedModel(f"{name} does not attend through AttentionInterface; choose a model that does")
    if getattr(config, "num_kv_shared_layers", None):
        raise UnsupportedModel(f"{name} shares keys and values between layers; choose a model that does not")
    model.set_attn_implementation(NAME)
    model.train(False).requires_grad_(False)


def check_windows(config: PreTrainedConfig, windows: list[int | None], context_tokens: int) -> None:
    """That layers ask for the windows of their config: some leave them to masks, of which there are none here.
    Raises UnsupportedModel.

    A window that no row outgrows is none.  That of a config without `layer_types` is every layer's, unless the
    config is of a class that knows no windows: what others left in it means nothing.
    """
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        kinds = ["sliding_attention"] * len(windows) if window and hasattr(type(config), "sliding_window") else []
    missing = any(kind == "sliding_attention" and own is None for kind, own in zip(kinds, windows, strict=False))
    if missing and not (window and window >= context_tokens):
        raise UnsupportedModel(
            f"it has windows of {window} tokens in masks only; give a context that is no longer"
        )


def config_context(config: PreTrainedConfig, given: int | None) -> int:
    """The given context or the config's, whichever is smaller.

    Rotary embeddings that are rescaled for long sequences (`dynamic`, `longrope`) take the scale from the
    longest row of a batch; to keep rows independent of each other the context ends before the first
    rescaling.
    """
    known = [int(value) for name in CONTEXT_NAMES if (value := getattr(config, name, None))]
    rope = getattr(config, "rope_parameters", None) or {}
    for kind in (rope, *rope.values()):
        if isinstance(kind, dict) and kind.get("rope_type") in ("dynamic", "longrope"):
            known.append(int(kind.get("original_max_position_embeddings") or min(known)))
    if given is not None:
        known.append(given)
    if not known:
        raise UnsupportedModel("its config names no context length; give one")
    return min(known)
