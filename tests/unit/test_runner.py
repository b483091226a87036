"""Real models through the whole engine: the same tokens as transformers alone, in any company."""

import json
import random
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    DiffLlamaConfig,
    DiffLlamaForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    NemotronConfig,
    NemotronForCausalLM,
    PhimoeConfig,
    PhimoeForCausalLM,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from tests.unit import tiny_models
from tests.unit.peer import Peer, new_row
from tests.unit.tiny_models import CONFIGS, VOCABULARY, fresh
from triton_backend.attention import StepKV, UnsupportedModel
from triton_backend.contract import Cancel, End, NewRow, Sampling
from triton_backend.device import Host
from triton_backend.engine import Engine, EngineConfig
from triton_backend.loader import load_model
from triton_backend.paged_runner import PagedRunner
from triton_backend.runner import Runner

pytestmark = pytest.mark.usefixtures("one_thread")

TIE = 1e-4
"""Two candidates whose reference logits are closer than this may both be drawn."""


Kind = Callable[..., Runner | PagedRunner]
KINDS: dict[str, Kind] = {"grouped": Runner, "paged": partial(PagedRunner, block_tokens=8)}
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def new_engine(
    model: PreTrainedModel, kv_tokens: int = 2000, max_prefill_tokens: int = 2048, kind: Kind = Runner
) -> Engine:
    def load(config: EngineConfig) -> Runner | PagedRunner:
        bytes_per_token = kind(model, max_prefill_tokens=1, kv_budget_bytes=0).layout.bytes_per_token
        return kind(
            model,
            max_prefill_tokens=config.chunk_tokens,
            kv_budget_bytes=kv_tokens * bytes_per_token,
        )

    return Engine(EngineConfig(model="", name="tiny", max_prefill_tokens=max_prefill_tokens), load)


def prompts(seed: int, lengths: list[int]) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(VOCABULARY) for _ in range(length)] for length in lengths]


def assert_greedy(name: str, prompt: list[int], tokens: list[int]) -> None:
    """Each token is the reference's best after those before it, as `generate` would make them of the prompt alone;
    ties may fall either way."""
    reference = tiny_models.logits(name, prompt + tokens)[len(prompt) - 1 : -1]
    gaps = reference.max(-1).values - reference.gather(-1, torch.tensor(tokens)[:, None])[:, 0]
    assert gaps.max() < TIE


@kinds
@pytest.mark.parametrize("tpot_s", [0.0, 0.1], ids=["no target", "target"])
@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_tokens_are_those_of_the_prompt_alone(name: str, tpot_s: float, kind: Kind) -> None:
    """Rows of 1 to 60 tokens join and leave in the middle, prompts are run in chunks, the ladder is climbed,
    and the budget is so small that rows are evicted and come back with what they had drawn as a prefix."""
    engine = new_engine(fresh(name), 250, 40, kind)
    peer = Peer(engine)
    engine.step()
    texts = prompts(1, [1, 60, 33, 12, 58, 7, 2])
    peer.put([new_row(at, text, 24, tpot_s=tpot_s) for at, text in enumerate(texts[:3])])
    for _ in range(8):
        engine.step()
    peer.put([new_row(3 + at, text, 20, tpot_s=tpot_s) for at, text in enumerate(texts[3:5])])
    for _ in range(6):
        engine.step()
    peer.end(Cancel, [min(peer.live)])
    peer.put([new_row(5 + at, text, 30, tpot_s=tpot_s) for at, text in enumerate(texts[5:])])
    peer.run()
    assert sum(ticket.attempts for ticket in peer.tickets.values()) > len(texts)
    assert min(step.telemetry.pool_growable_bytes for step in peer.steps) >= 0
    for ticket in peer.tickets.values():
        assert_greedy(name, ticket.first.prompt, ticket.tokens)


def run(engine: Engine, rows: list[NewRow]) -> dict[str, list[int]]:
    peer = Peer(engine)
    engine.step()
    peer.put(rows)
    peer.run()
    return {name: ticket.tokens for name, ticket in peer.tickets.items()}


@kinds
def test_seeded_rows_draw_the_same_alone_in_a_crowd_and_after_being_put_back(kind: Kind) -> None:
    model = fresh("llama")
    kinds = [{}, {"top_p": 0.8}, {"top_k": 7}, {"temperature": 0.7, "top_p": 0.95}, {"temperature": 0.0}]
    rows = [
        new_row(at, prompt, 40, sampling=Sampling(seed=at, **kinds[at % 5]))  # type: ignore[arg-type]
        for at, prompt in enumerate(prompts(2, [5, 9, 30, 31, 40, 3]))
    ]
    crowd = run(new_engine(model, kind=kind), rows)
    squeezed = run(new_engine(model, 330, 16, kind), rows)
    alone = [run(new_engine(model, kind=kind), [row])[row.ticket] for row in rows]
    assert list(crowd.values()) == alone
    assert squeezed == crowd


@kinds
def test_log_probabilities_are_the_references(kind: Kind) -> None:
    engine = new_engine(fresh("llama"), kind=kind)
    peer = Peer(engine)
    engine.step()
    first, second = prompts(3, [9, 17])
    asked = Sampling(temperature=0.8, seed=4, logprobs=3)
    peer.put([new_row(0, first, 12, sampling=asked), new_row(1, second, 12)])
    peer.run()
    ticket = peer.tickets["call/0"]
    reference = tiny_models.logits("llama", first + ticket.tokens)[len(first) - 1 : -1].log_softmax(-1)
    chosen = reference.gather(-1, torch.tensor(ticket.tokens)[:, None])[:, 0]
    assert ticket.logprobs == pytest.approx(chosen.tolist(), abs=1e-4)
    best = reference.topk(3)
    for at, step in enumerate(peer.steps[:12]):
        (alternatives,) = [found for found in step.alternatives if found]
        assert [token for token, _ in alternatives] == best.indices[at].tolist()
        assert [logprob for _, logprob in alternatives] == pytest.approx(best.values[at].tolist(), abs=1e-4)


@kinds
def test_stop_ids_end_a_row_but_not_before_min_tokens(kind: Kind) -> None:
    model = fresh("llama")
    (prompt,) = prompts(4, [8])
    plain = run(new_engine(model, kind=kind), [new_row(0, prompt, 10)])["call/0"]
    stopped = run(new_engine(model, kind=kind), [new_row(0, prompt, 10, stop_ids=[plain[4]])])["call/0"]
    assert stopped == plain[: plain.index(plain[4]) + 1]
    banning = new_row(0, prompt, 10, stop_ids=[plain[0]], min_tokens=3)
    later = run(new_engine(model, kind=kind), [banning])["call/0"]
    assert plain[0] not in later[:3]


@kinds
def test_bfloat16_agrees_with_its_own_reference(kind: Kind) -> None:
    """No token is far from the float32 reference's best; a random model has many near ties."""
    model = fresh("llama").to(torch.bfloat16)  # type: ignore[arg-type]
    (prompt,) = prompts(5, [20])
    tokens = run(new_engine(model, kind=kind), [new_row(0, prompt, 30)])["call/0"]
    reference = tiny_models.logits("llama", prompt + tokens)[len(prompt) - 1 : -1]
    gaps = reference.max(-1).values - reference.gather(-1, torch.tensor(tokens)[:, None])[:, 0]
    assert gaps.mean() < 0.1


@kinds
def test_a_row_that_fills_the_context_ends_there(kind: Kind) -> None:
    (prompt,) = prompts(6, [250])
    tokens = run(new_engine(fresh("gpt2"), kind=kind), [new_row(0, prompt, 100)])["call/0"]
    assert len(prompt) + len(tokens) == tiny_models.CONTEXT_TOKENS


class Tight(LlamaForCausalLM):  # type: ignore[no-untyped-call]
    """Runs out of memory above `max_rows` rows at once, or above `max_length` tokens of a row; or at the forward
    passes counted in `troubles`."""

    max_rows, max_length = 10**6, 10**6
    troubles: frozenset[int] = frozenset()
    num_passes = 0

    def forward(self, input_ids: torch.Tensor, **options: Any) -> Any:
        self.num_passes += 1
        # Rows of a pack begin at position 0.
        positions = options["position_ids"]
        rows = max(input_ids.shape[0], int((positions == 0).sum()))
        length = int(positions.max() - positions.min()) + 1 if input_ids.shape[1] > 1 else 1
        if rows > self.max_rows or length > self.max_length or self.num_passes in self.troubles:
            raise torch.OutOfMemoryError("no room")
        return super().forward(input_ids, **options)


def tight() -> Tight:
    """The weights of `fresh("llama")`."""
    torch.manual_seed(sum(map(ord, "llama")))
    config = deepcopy(CONFIGS["llama"])
    assert isinstance(config, LlamaConfig)
    return Tight(config)


def serve(engine: Engine, lengths: list[int]) -> Peer:
    """All rows have ended as they should."""
    peer = Peer(engine)
    engine.step()
    peer.put([new_row(at, prompt, 8) for at, prompt in enumerate(prompts(7, lengths))])
    peer.run()
    for ticket in peer.tickets.values():
        assert ticket.ending is not None
        assert ticket.ending.reason is End.LENGTH
        assert_greedy("llama", ticket.first.prompt, ticket.tokens)
    return peer


def ooms(peer: Peer) -> int:
    assert peer.telemetry is not None
    return peer.telemetry.out_of_memory_total


def attempts(peer: Peer) -> int:
    return sum(ticket.attempts for ticket in peer.tickets.values())


@kinds
@pytest.mark.parametrize(("rows", "length"), [(2, 10**6), (1, 10**6), (1, 1), (2, 7)])
def test_out_of_memory_halves_a_step_and_evicts_nobody(rows: int, length: int, kind: Kind) -> None:
    """Rows of two capacities, so that halves lie in several groups."""
    model = tight()
    engine = new_engine(model, kind=kind)
    model.max_rows, model.max_length = rows, length
    peer = serve(engine, [9, 70, 8, 99, 7, 65, 60])
    assert ooms(peer) >= 8
    assert attempts(peer) == 7


@kinds
@pytest.mark.parametrize("stride", [1, 2], ids=["on end", "by turns"])
@pytest.mark.parametrize("first", range(1, 9))
def test_out_of_memory_at_any_step_changes_no_token(first: int, stride: int, kind: Kind) -> None:
    """For `first` passes, from that one on: in a row, or so that between them some halves of a step are run."""
    model = tight()
    engine = new_engine(model, kind=kind)
    begin = model.num_passes + first
    model.troubles = frozenset(range(begin, begin + first * stride, stride))
    peer = serve(engine, [9, 70, 8])
    assert 1 <= ooms(peer) <= first


@kinds
def test_a_row_that_does_not_fit_alone_is_put_back(kind: Kind) -> None:
    model = tight()
    engine = new_engine(model, kind=kind)
    model.troubles = frozenset(range(model.num_passes + 3, model.num_passes + 7))
    peer = serve(engine, [9, 8, 7])
    assert ooms(peer) >= 2
    assert attempts(peer) > 3


SMALL: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
WINDOWED: dict[str, Any] = SMALL | {"num_key_value_heads": 1, "max_position_embeddings": 64, "sliding_window": 8}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_local_experts": 4, "intermediate_size": 16}
MISFITS: list[tuple[Callable[[], PreTrainedModel], str]] = [
    (lambda: BloomForCausalLM(BloomConfig(**SMALL)), "AttentionInterface"),
    (lambda: MambaForCausalLM(MambaConfig(vocab_size=32, hidden_size=16)), "linear_attention"),
    (lambda: Qwen3NextForCausalLM(Qwen3NextConfig(**SMALL, num_key_value_heads=1)), "linear_attention"),
    (lambda: GptOssForCausalLM(GptOssConfig(**SMALL, num_local_experts=2, num_key_value_heads=1)), "sinks"),
    (
        lambda: T5ForConditionalGeneration(T5Config(vocab_size=32, d_model=16, num_layers=1)),
        "encoder-decoder",
    ),
    (
        lambda: DiffLlamaForCausalLM(DiffLlamaConfig(**SMALL, num_key_value_heads=2, intermediate_size=16)),
        "more than once",
    ),
    (
        lambda: NemotronForCausalLM(NemotronConfig(**SMALL, num_key_value_heads=1, head_dim=8)),
        "is not given",
    ),
    (lambda: PhimoeForCausalLM(PhimoeConfig(**WINDOWED, **EXPERTS)), "windows of 8 tokens"),
    (
        lambda: Qwen2MoeForCausalLM(
            Qwen2MoeConfig(**WINDOWED, **EXPERTS, use_sliding_window=True, max_window_layers=2)
        ),
        "windows of 8 tokens",
    ),
]
MISFIT_NAMES = [
    *("alibi", "state space", "hybrid", "sinks", "encoder", "two in one"),
    *("no options", "a window for all in a mask", "windows for some in masks"),
]


@kinds
@pytest.mark.parametrize(("build", "words"), MISFITS, ids=MISFIT_NAMES)
def test_models_that_would_run_wrongly_are_refused(
    build: Callable[[], PreTrainedModel], words: str, kind: Kind
) -> None:
    with pytest.raises(UnsupportedModel, match=words):
        kind(build(), max_prefill_tokens=8)


@kinds
def test_a_window_that_no_row_outgrows_may_be_in_a_mask(kind: Kind) -> None:
    """And what a config has of another model's windows means nothing."""
    load = partial(kind, max_prefill_tokens=8, kv_budget_bytes=2**16)
    load(PhimoeForCausalLM(PhimoeConfig(**WINDOWED, **EXPERTS)), context_tokens=8)
    load(LlamaForCausalLM(LlamaConfig(**WINDOWED, intermediate_size=16)))


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"^cannot load .*\.$"):
        load_model(str(tmp_path), "cpu", "float32", None)


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    fresh("qwen3").save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(UnsupportedModel, match=r"^safetensors in .* are damaged \(.*\); fetch them again$"):
        load_model(str(tmp_path), "cpu", "float32", None)


@pytest.mark.parametrize(
    ("differs", "words"),
    [
        ({"num_hidden_layers": 3}, r"11 weights are missing, such as model\.layers\.2\."),
        ({"vocab_size": 100}, r"lm_head\.weight has shape \[96, 32\], where its config asks for \[100, 32\]"),
    ],
)
def test_weights_that_a_checkpoint_lacks_are_not_drawn_at_random(
    tmp_path: Path, differs: dict[str, int], words: str
) -> None:
    model = fresh("qwen3")
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config.pop("layer_types", None)
    (tmp_path / "config.json").write_text(json.dumps(config | differs))
    with pytest.raises(UnsupportedModel, match=words):
        load_model(str(tmp_path), "cpu", "float32", None)


def test_a_saved_model_is_loaded_and_measured(tmp_path: Path) -> None:
    fresh("qwen3").save_pretrained(tmp_path)
    engine = Engine(EngineConfig(model=str(tmp_path), name="tiny", context_tokens=64))
    (prompt,) = prompts(8, [6])
    peer = Peer(engine)
    engine.step()
    peer.put([new_row(0, prompt, 5)])
    peer.run()
    assert_greedy("qwen3", prompt, peer.tickets["call/0"].tokens)
    assert peer.attached is not None
    assert peer.attached.model.context_tokens == 64
    assert 2**24 < peer.attached.telemetry.pool_growable_bytes < Host().figures().free_bytes


@pytest.mark.parametrize(
    ("rope", "given", "context"),
    [
        ({"rope_type": "default", "rope_theta": 1e4}, None, 256),
        ({"rope_type": "default", "rope_theta": 1e4}, 100, 100),
        ({"rope_type": "default", "rope_theta": 1e4}, 1000, 256),
        (
            {
                "rope_type": "dynamic",
                "factor": 4.0,
                "rope_theta": 1e4,
                "original_max_position_embeddings": 64,
            },
            None,
            64,
        ),
    ],
)
def test_the_context_is_what_the_model_can_hold(rope: dict[str, Any], given: int | None, context: int) -> None:
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=256,
        rope_parameters=rope,
    )
    runner = Runner(LlamaForCausalLM(config), max_prefill_tokens=8, context_tokens=given, kv_budget_bytes=1)
    assert runner.context_tokens == context


@pytest.mark.parametrize(("kv_tokens", "longest"), [(10**6, 256), (256, 256), (255, 192), (100, 96), (0, 64)])
def test_the_start_tries_no_longer_row_than_memory_may_hold(kv_tokens: int, longest: int) -> None:
    """It would be written for nothing: it cannot come in."""
    model = fresh("llama")
    ends = []

    def note(_: nn.Module, given: tuple[Any, ...], options: dict[str, Any]) -> None:
        if isinstance(options["kv"], StepKV):
            ends.append(int(options["position_ids"].max()) + 1)

    bytes_per_token = Runner(model, max_prefill_tokens=1, kv_budget_bytes=0).layout.bytes_per_token
    model.register_forward_pre_hook(note, with_kwargs=True)
    Runner(model, max_prefill_tokens=8, kv_budget_bytes=kv_tokens * bytes_per_token)
    assert max(ends) == longest


@kinds
def test_a_steps_workspace_is_that_of_the_dearest_sampling(kind: Kind) -> None:
    """Logits of 256 rows are 31 MiB, and to filter them and tell log probabilities takes more."""
    model = LlamaForCausalLM(LlamaConfig(**SMALL | {"vocab_size": 32_000}, intermediate_size=16))
    runner = kind(model, max_prefill_tokens=256, context_tokens=64, kv_budget_bytes=2**16)
    assert runner._headroom._workspace_bytes > 96 * 2**20
