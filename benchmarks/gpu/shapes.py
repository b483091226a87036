"""Models by shape alone: random weights, made on the device from a seed."""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, PreTrainedConfig, PreTrainedModel, Qwen2Config
from transformers.models.auto import AutoModelForCausalLM

_NO_SPECIAL_TOKENS: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}

_EXACT: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "max_position_embeddings": 1024,
    **_NO_SPECIAL_TOKENS,
}
"""Heads as in 8b, so that the same kernels run."""

SHAPES: dict[str, PreTrainedConfig] = {
    "8b": LlamaConfig(
        vocab_size=128_256,
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=4096,
        **_NO_SPECIAL_TOKENS,
    ),
    "1.5b": Qwen2Config(
        vocab_size=151_936,
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        **_NO_SPECIAL_TOKENS,
    ),
    # Wide weights, so that attention matters and text varies.
    "exact": LlamaConfig(**_EXACT, vocab_size=1024, initializer_range=0.1),
    # Narrow ones and few tokens to choose from: in bfloat16, the best two are often equal otherwise.
    "exact-bfloat16": LlamaConfig(**_EXACT, vocab_size=256, initializer_range=0.02),
    "tiny": LlamaConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.4,
        **_NO_SPECIAL_TOKENS,
    ),
}


def build(shape: str, device: str, dtype: torch.dtype, **changes: object) -> PreTrainedModel:
    """Always with the same weights.  `changes` to the shape's config."""
    config = deepcopy(SHAPES[shape])
    config.update(changes)
    torch.manual_seed(1)
    with torch.device(device):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config, dtype=dtype
        )
    model.train(False).requires_grad_(False)
    return model


def read_bytes(model: PreTrainedModel) -> int:
    """Of the weights that a decode step reads: all but the table of embeddings, unless the logits need it too."""
    embeddings: Tensor = model.get_input_embeddings().weight  # type: ignore[assignment]
    total = sum(parameter.nbytes for parameter in model.parameters())
    logits: Tensor = model.get_output_embeddings().weight  # type: ignore[no-untyped-call]
    return total if logits is embeddings else total - embeddings.nbytes


def matrix_weights(model: PreTrainedModel) -> int:
    """Numbers that each token of a prompt is multiplied with: without embeddings and logits."""
    return sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if parameter.dim() == 2 and "embed" not in name and "lm_head" not in name
    )


def logit_weights(model: PreTrainedModel) -> int:
    """Numbers that each row of a decode step is multiplied with besides."""
    logits: Tensor = model.get_output_embeddings().weight  # type: ignore[no-untyped-call]
    return logits.numel()


def kv_bytes_per_token(model: PreTrainedModel) -> int:
    config = model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * config.num_key_value_heads * head_dim * model.dtype.itemsize)
