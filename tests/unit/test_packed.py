"""Packed linear layers compute what the plain ones do."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from triton_backend.joint import Joint, PartLinear
from triton_backend.packed import OneDnnLinear, PackedLinear, pack

SIZES: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
has_bf16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()


def llama(**more: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, **more))


def qwen() -> PreTrainedModel:
    """Its queries, keys and values have biases."""
    torch.manual_seed(0)
    return Qwen2ForCausalLM(Qwen2Config(**SIZES))


def kinds(model: nn.Module) -> set[str]:
    return {type(module).__name__ for module in model.modules() if "Linear" in type(module).__name__}


@torch.inference_mode()
def logits(model: PreTrainedModel) -> Tensor:
    ids = torch.arange(51).view(3, 17)
    return torch.as_tensor(model(input_ids=ids).logits.float())


@pytest.mark.skipif(not has_bf16, reason="this processor's oneDNN has no bfloat16")
@pytest.mark.parametrize(
    "model", [llama(), llama(tie_word_embeddings=True), qwen()], ids=["llama", "tied", "biases"]
)
def test_a_packed_model_says_what_the_plain_one_does(model: PreTrainedModel) -> None:
    nn.Module.to(model, torch.bfloat16)
    packed = copy.deepcopy(model)
    pack(packed)
    assert kinds(packed) == {"PackedLinear", "PartLinear"}
    plain, ours = logits(model), logits(packed)
    assert (plain - ours).abs().max() <= 0.02 * plain.abs().max()
    assert torch.equal(logits(packed), ours)


def test_other_models_are_left_alone() -> None:
    model = llama()
    pack(model)
    assert kinds(model) == {"Linear"}


def test_siblings_are_computed_once_for_the_same_rows_and_anew_for_others() -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(32, out) for out in (16, 48)]
    joint = Joint(layers)
    parts = [PartLinear(joint, at) for at in range(2)]
    with torch.inference_mode():
        for _ in range(2):
            for order in ((0, 1), (1, 0), (0, 0), (1,)):
                rows = torch.randn(5, 32)
                for at in order:
                    torch.testing.assert_close(parts[at](rows), layers[at](rows))


@pytest.mark.skipif(not has_bf16, reason="this processor's oneDNN has no bfloat16")
@pytest.mark.parametrize("kind", [PackedLinear, OneDnnLinear], ids=["what is best here", "oneDNN"])
@pytest.mark.parametrize("shape", [(32,), (7, 32), (2, 3, 32)], ids=str)
def test_a_packed_layer_takes_rows_of_any_shape(
    kind: type[PackedLinear | OneDnnLinear], shape: tuple[int, ...]
) -> None:
    layer = nn.Linear(32, 16, dtype=torch.bfloat16)
    packed = kind(layer.weight.detach(), layer.bias.detach())
    with torch.inference_mode():
        rows = torch.randn(shape, dtype=torch.bfloat16)
        torch.testing.assert_close(packed(rows), layer(rows), rtol=0.02, atol=0.02)
