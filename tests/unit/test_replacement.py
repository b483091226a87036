"""Layers are replaced where that changes nothing, and only there."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, CohereConfig, CohereForCausalLM, Gemma4TextConfig, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from tests.unit.tiny_models import CONFIGS, CONTEXT_TOKENS, Causal, fresh
from triton_backend import native
from triton_backend.contract import NewRow
from triton_backend.loader import adopt
from triton_backend.native_linear import usable_library
from triton_backend.packed import pack
from triton_backend.plan import Prefill
from triton_backend.replacement import TOLERANCES, replace_layers
from triton_backend.runner import Runner
from triton_backend.sequence import Sequence

pytestmark = pytest.mark.skipif(native.library() is None, reason="no compiler here")

LAYERS = 2
REPLACED = {
    "llama": {"NativeNorm": 2 * LAYERS + 1, "NativeGated": LAYERS, "NativeAttention": LAYERS},
    "qwen3": {"NativeNorm": 4 * LAYERS + 1, "NativeGated": LAYERS, "NativeAttention": LAYERS},
    "mistral": {"NativeNorm": 2 * LAYERS + 1, "NativeGated": LAYERS, "NativeAttention": LAYERS},
    # Its gate is another function, and it has a layer more.
    "gemma2": {"NativeNorm": 4 * (LAYERS + 1) + 1, "NativeAttention": LAYERS + 1},
    # Its queries and keys are made otherwise; experts are one tensor.
    "deepseek_v3": {"NativeNorm": 3 * LAYERS + 1, "NativeGated": LAYERS},
    "gpt2": {},
}


def replaced(model: nn.Module) -> dict[str, int]:
    names = [type(layer).__name__ for layer in model.modules()]
    return Counter(name for name in names if name.startswith("Native"))


@torch.inference_mode()
def logits(model: PreTrainedModel) -> Tensor:
    ids = torch.arange(40).view(2, 20)
    positions = torch.arange(20).expand_as(ids)
    out = model(input_ids=ids, position_ids=positions, use_cache=False, kv=Causal())
    return torch.as_tensor(out.logits)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_says_what_it_said_before(name: str, dtype: torch.dtype) -> None:
    model = fresh(name).to(dtype)  # type: ignore[arg-type]
    adopt(model)
    before = logits(model)
    replace_layers(model, CONTEXT_TOKENS)
    assert replaced(model) == REPLACED[name]
    assert (logits(model) - before).abs().max() <= 4 * TOLERANCES[dtype] * before.abs().max()


matrix_units = pytest.mark.skipif(usable_library() is None, reason="no matrix units here")


@matrix_units
@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral", "gemma2"])
def test_layers_that_are_ours_may_become_blocks_and_blocks_one(name: str) -> None:
    model = fresh(name).to(torch.bfloat16)  # type: ignore[arg-type]
    adopt(model)
    before = logits(model)
    pack(model)
    replace_layers(model, CONTEXT_TOKENS)
    blocks = {"NativeStack": 1, "NativeBlock": LAYERS, "NativeNorm": 1}
    assert replaced(model) == (REPLACED[name] if name == "gemma2" else blocks)
    assert (logits(model) - before).abs().max() <= 4 * TOLERANCES[torch.bfloat16] * before.abs().max()


@matrix_units
def test_a_gate_may_be_part_of_a_joint_product() -> None:
    """In a block that has other layers, too."""
    model = fresh("deepseek_v3").to(torch.bfloat16)  # type: ignore[arg-type]
    adopt(model)
    before = logits(model)
    pack(model)
    replace_layers(model, CONTEXT_TOKENS)
    kinds = Counter(type(layer).__name__ for layer in model.modules())
    assert kinds["JointGated"] == 1  # The experts are too narrow.
    assert (logits(model) - before).abs().max() <= 4 * TOLERANCES[torch.bfloat16] * before.abs().max()


def drawn(runner: Runner) -> list[object]:
    """In steps that have the beginnings and the ends of several prompts, rows of two groups that decode, and
    padding."""
    lengths = [5, 40, 38, 23]
    rows = [
        Sequence(NewRow(at, "", 0, "", list(range(at, at + length)), index=0, max_tokens=9))
        for at, length in enumerate(lengths)
    ]
    assert runner.kv_budget_bytes
    rooms = {at: runner.layout.room_tokens(length + 9) for at, length in enumerate(lengths)}
    runner.arrange(rooms, [])
    running = rows[:2]
    _, draws = runner.prefill(running, 0, 40)
    for row, token in zip(running, draws.tokens, strict=True):
        row.prefill(40)
        row.draw(token, runner.context_tokens)
    runner.arrange(rooms, [0, 1])
    all_draws: list[object] = [draws]
    for start in (0, 20):
        drawing, draws = runner.run(Prefill(rows[2:], start, 20), running)
        all_draws.append(draws)
        for row, token in zip(drawing, draws.tokens, strict=True):
            if row in running:
                row.draw(token, runner.context_tokens)
    return all_draws


@matrix_units
@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral"])
def test_one_call_computes_what_several_do_to_the_bit(name: str) -> None:
    model = fresh(name).to(torch.bfloat16)  # type: ignore[arg-type]
    runner = Runner(model, max_prefill_tokens=64)
    assert replaced(model)["NativeStack"] == 1
    by_one = drawn(runner)
    (stack,) = model.get_submodule("model.layers").children()
    model.get_submodule("model").layers = stack.blocks
    assert replaced(model)["NativeStack"] == 0
    assert drawn(runner) == by_one


class Twice(nn.ModuleList):
    def __getitem__(self, _: object) -> list[nn.Module]:  # type: ignore[override]
        return [*self, *self]


@matrix_units
def test_blocks_that_do_not_just_follow_on_each_other_stay() -> None:
    model = fresh("llama").to(torch.bfloat16)  # type: ignore[arg-type]
    adopt(model)
    inner = model.get_submodule("model")
    inner.layers = Twice(model.get_submodule("model.layers").children())
    pack(model)
    replace_layers(model, CONTEXT_TOKENS)
    assert replaced(model) == {"NativeNorm": 1, "NativeBlock": LAYERS}


class Tupled(LlamaDecoderLayer):  # type: ignore[no-untyped-call]
    """Says what it says in a tuple, as blocks of older models do."""

    def forward(self, *given: Any, **options: Any) -> tuple[Tensor]:  # type: ignore[override]
        return (super().forward(*given, **options),)


class Unpacked(nn.ModuleList):
    def __getitem__(self, _: object) -> list[Callable[..., Tensor]]:  # type: ignore[override]
        return [partial(self._first_of, layer) for layer in self]

    @staticmethod
    def _first_of(layer: nn.Module, *given: Any, **options: Any) -> Tensor:
        first: Tensor = layer(*given, **options)[0]
        return first


@matrix_units
def test_a_block_that_says_a_tuple_stays() -> None:
    model = fresh("llama").to(torch.bfloat16)  # type: ignore[arg-type]
    adopt(model)
    layers = list(model.get_submodule("model.layers").children())
    for layer in layers:
        layer.__class__ = Tupled
    model.get_submodule("model").layers = Unpacked(layers)
    pack(model)
    replace_layers(model, CONTEXT_TOKENS)
    assert replaced(model) == {"NativeNorm": 2 * LAYERS + 1, "NativeAttention": LAYERS}


class Clipped(nn.Module):
    """Bounds what no run reaches."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        parts = map(layer.get_submodule, ("gate_proj", "up_proj", "down_proj"))
        self.gate_proj, self.up_proj, self.down_proj = parts

    def forward(self, rows: Tensor) -> Tensor:
        gate = nn.functional.silu(self.gate_proj(rows))
        down: Tensor = self.down_proj(gate * self.up_proj(rows).clamp(-100, 100))
        return down


def test_layers_that_look_alike_and_are_not_stay() -> None:
    """Cohere's norms take the mean away first, and its rotations take neighbours for pairs."""
    config = CohereConfig(
        vocab_size=32, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2
    )
    cohere = CohereForCausalLM(config)
    adopt(cohere)
    replace_layers(cohere, 64)
    assert replaced(cohere) == {"NativeGated": 1}
    llama = fresh("llama")
    adopt(llama)
    for layer in llama.get_submodule("model.layers").children():
        layer.mlp = Clipped(layer.get_submodule("mlp"))
    replace_layers(llama, CONTEXT_TOKENS)
    assert "NativeGated" not in replaced(llama)


class Scaled(nn.Linear):
    def forward(self, rows: Tensor, scale: float) -> Tensor:  # type: ignore[override]
        return super().forward(rows) * scale


class Narrow(nn.Linear):
    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features - 1, layer.out_features, bias=False)


class OddlyGated(nn.Module):
    """Has parts of the right names that ours cannot call as it does."""

    def __init__(self, layer: nn.Module, gate: nn.Module) -> None:
        super().__init__()
        self.gate_proj = gate
        self.up_proj, self.down_proj = map(layer.get_submodule, ("up_proj", "down_proj"))

    def forward(self, rows: Tensor) -> Tensor:
        given = (rows, 1.0) if isinstance(self.gate_proj, Scaled) else (rows[..., 1:],)
        down: Tensor = self.down_proj(nn.functional.silu(self.gate_proj(*given)) * self.up_proj(rows))
        return down


@pytest.mark.parametrize("build", [lambda gate: Scaled(gate.in_features, gate.out_features), Narrow])
def test_a_layer_whose_parts_ours_cannot_call_stays(build: Callable[[nn.Linear], nn.Module]) -> None:
    model = fresh("llama")
    adopt(model)
    for layer in model.get_submodule("model.layers").children():
        mlp = layer.get_submodule("mlp")
        gate = mlp.gate_proj
        assert isinstance(gate, nn.Linear)
        layer.mlp = OddlyGated(mlp, build(gate))
    before = logits(model)
    replace_layers(model, CONTEXT_TOKENS)
    assert replaced(model) == {"NativeNorm": 2 * LAYERS + 1, "NativeAttention": LAYERS}
    assert (logits(model) - before).abs().max() <= 4 * TOLERANCES[torch.float32] * before.abs().max()


def test_attention_whose_values_are_its_keys_stays() -> None:
    sizes: dict[str, Any] = {
        "vocab_size": 64,
        "vocab_size_per_layer_input": 64,
        "hidden_size": 32,
        "hidden_size_per_layer_input": 8,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"],
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "global_head_dim": 8,
        "num_kv_shared_layers": 0,
        "attention_k_eq_v": True,
    }
    config = Gemma4TextConfig(**sizes)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
    adopt(model)
    assert model.get_submodule("model.layers.1.self_attn").v_proj is None
    before = logits(model)
    replace_layers(model, CONTEXT_TOKENS)
    assert "NativeAttention" not in replaced(model)
    assert (logits(model) - before).abs().max() <= 4 * TOLERANCES[torch.float32] * before.abs().max()
