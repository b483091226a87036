"""Fresh small models, one an architecture, and the rows and references to test them with."""

from copy import deepcopy
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import (
    DeepseekV3Config,
    Gemma2Config,
    GenerationMixin,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
)
from transformers.models.auto import AutoModelForCausalLM

from triton_backend.attention import Scores
from triton_backend.paged_attention import attend

VOCABULARY = 96
CONTEXT_TOKENS = 256

_SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": CONTEXT_TOKENS,
    "initializer_range": 0.4,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}

CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**_SHAPE),
    "qwen3": Qwen3Config(**_SHAPE),
    "mistral": MistralConfig(**_SHAPE, sliding_window=12),
    "gemma2": Gemma2Config(
        **{**_SHAPE, "num_hidden_layers": 3},
        sliding_window=12,
        attn_logit_softcapping=5.0,
        final_logit_softcapping=20.0,
        tie_word_embeddings=False,
    ),
    "deepseek_v3": DeepseekV3Config(
        **{**_SHAPE, "num_key_value_heads": 4, "head_dim": 4},
        q_lora_rank=None,
        kv_lora_rank=16,
        qk_nope_head_dim=8,
        qk_rope_head_dim=4,
        v_head_dim=6,
        moe_intermediate_size=16,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=2,
        topk_group=1,
        first_k_dense_replace=1,
    ),
    "gpt2": GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=CONTEXT_TOKENS,
        initializer_range=0.4,
        bos_token_id=None,
        eos_token_id=None,
    ),
}
"""Between them: grouped heads, windows shorter than the sequences, soft caps, two kinds of layers of which one is
there twice, learned positions, experts, and keys and values of different sizes.  Wide initial weights make
attention matter and greedy text vary."""


def fresh(name: str) -> PreTrainedModel:
    """A new model in float32, always with the same weights."""
    torch.manual_seed(sum(map(ord, name)))
    model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        deepcopy(CONFIGS[name]), dtype=torch.float32
    )
    return model


@cache
def reference(name: str) -> PreTrainedModel:
    """The same weights with transformers' own attention."""
    model = fresh(name)
    model.set_attn_implementation("eager")
    model.train(False)
    return model


def logits(name: str, ids: list[int]) -> torch.Tensor:
    """[tokens, vocabulary] of the reference."""
    with torch.inference_mode():
        out: torch.Tensor = reference(name)(torch.tensor([ids]), use_cache=False).logits[0]
    return out


def generate(name: str, prompt: list[int], num_tokens: int) -> list[int]:
    """What transformers generates greedily for the prompt alone."""
    ids = torch.tensor([prompt])
    out = GenerationMixin.generate(
        reference(name),  # type: ignore[arg-type]
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=num_tokens,
    )
    generated: list[int] = out[0, len(prompt) :].tolist()
    return generated


class Causal:
    """Attention that remembers nothing."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
        at = torch.arange(query.shape[1])
        return attend(query, key, value, (at[:, None] - at).expand(len(query), -1, -1), scores)
