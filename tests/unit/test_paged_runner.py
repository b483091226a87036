"""What makes a step of the paged runner fit to run ahead on a GPU, as far as a CPU can tell.  What it computes is
tested in test_runner."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

from tests.unit.peer import new_row
from tests.unit.tiny_models import Causal, fresh, generate
from triton_backend.contract import NewRow, Sampling
from triton_backend.decoder import Decoder
from triton_backend.graphs import CHUNK_TOKENS, PROMPT_TOKENS, ROWS, SEEN_TOKENS, Graphs, padded
from triton_backend.paged_runner import CHUNK_ROWS, PagedRunner
from triton_backend.sampling import Pick, sample
from triton_backend.sequence import Sequence

pytestmark = pytest.mark.usefixtures("one_thread")

WAITING = {"aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::equal", "aten::masked_select"}
"""What makes the host wait for a GPU: it asks for a value, or for a shape that depends on values."""
INDEXING = {"aten::index", "aten::index_put", "aten::index_put_"}


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations, and notes those that would wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.num_seen = 0
        self.waiting: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().split(".")[0]
        self.num_seen += 1
        by_mask = name in INDEXING and any(at is not None and at.dtype is torch.bool for at in args[1])
        if name in WAITING or by_mask:
            self.waiting.append(name)
        return func(*args, **(kwargs or {}))


def new_runner(kv_tokens: int = 1000) -> PagedRunner:
    model = fresh("llama")
    bytes_per_token = PagedRunner(model, max_prefill_tokens=8, kv_budget_bytes=0).layout.bytes_per_token
    return PagedRunner(model, max_prefill_tokens=64, kv_budget_bytes=kv_tokens * bytes_per_token, block_tokens=8)


def arrange(runner: PagedRunner, rows: list[Sequence]) -> None:
    runner.arrange({row.row: runner.layout.room_tokens(row.held_tokens + 1) for row in rows}, [])


def sequence(number: int, prompt: list[int], **fields: Any) -> Sequence:
    new: NewRow = new_row(number, prompt, 20, row=number, **fields)
    return Sequence(new)


SAMPLINGS = {
    "greedy": Sampling(temperature=0),
    "seeded": Sampling(seed=5),
    "log probabilities": Sampling(seed=5, logprobs=3),
    "top k": Sampling(top_k=7),
}


def fly(rows: list[Sequence]) -> None:
    for row in rows:
        if not row.prefilled_tokens:
            row.prefill(row.prompt_tokens)
        row.fly()


@pytest.mark.parametrize("sampling", [*SAMPLINGS.values(), None], ids=[*SAMPLINGS, "mixed"])
def test_no_step_waits_for_the_device(sampling: Sampling | None) -> None:
    """Neither for what the step before drew: that is still unread when the next one is started."""
    runner = new_runner()
    rows = [sequence(at, [3, 1, 4 + at], sampling=sampling or kind) for at, kind in enumerate(SAMPLINGS.values())]
    arrange(runner, rows)
    with Watch() as watch:
        _, none = runner.prefill(rows, 0, 2)
        drawing, first = runner.prefill(rows, 2, 1)
        fly(drawing)
        _, second = runner.decode(rows)
    assert drawing == rows
    assert watch.num_seen > 100
    assert watch.waiting == []
    assert none.read().tokens == []
    assert all(token >= 0 for token in first.read().tokens + second.read().tokens)


def test_the_watch_sees_what_waits() -> None:
    waits: list[Callable[[torch.Tensor], object]] = [
        lambda tensor: tensor.item(),
        lambda tensor: tensor[tensor > 0],
        lambda tensor: bool(tensor.any()),
        lambda tensor: sample(torch.randn(1, 1000), [Pick(0, Sampling(top_p=0.5), 0, [])]),
    ]
    for wait in waits:
        with Watch() as watch:
            wait(torch.ones(1))
        assert watch.waiting


def test_only_a_nucleus_makes_a_large_vocabulary_wait() -> None:
    with Watch() as watch:
        sample(torch.randn(2, 1000), [Pick(0, Sampling(top_k=40), 0, [3]), Pick(1, Sampling(top_k=900), 0, [])])
    assert watch.waiting == []


def test_steps_follow_each_other_unread() -> None:
    """Five steps are started before the first one is read; a pool that is resized meanwhile changes nothing."""
    runner = new_runner()
    row = sequence(0, [7, 7, 7, 8])
    arrange(runner, [row])
    readings = [runner.prefill([row], 0, 4)[1]]
    for step in range(5):
        fly([row])
        arrange(runner, [row, sequence(1 + step, [1])])
        runner.resize(runner.kv_budget_bytes - step * 8 * runner.layout.bytes_per_token)
        readings.append(runner.decode([row])[1])
    assert [token for reading in readings for token in reading.read().tokens] == generate("llama", [7, 7, 7, 8], 6)


class Unrecorded(Graphs):
    """Runs every step as it is."""

    def __init__(self, step: Callable[[torch.Tensor], torch.Tensor], max_size: int) -> None:
        self.step = step
        self.max_size = max_size
        self.sizes: list[int] = []

    def takes(self, size: int) -> bool:
        return size <= self.max_size

    def run(self, inputs: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(inputs))
        return self.step(inputs)


def test_chunks_of_prompts_may_be_padded_as_a_recorded_step_is() -> None:
    """Beginnings, but not of more prompts than such a step takes; and what comes behind them."""
    runner = new_runner(kv_tokens=3000)
    runner._beginnings = beginnings = Unrecorded(runner._chunk, PROMPT_TOKENS[-1])
    rest = Unrecorded(partial(runner._chunk, tokens=CHUNK_TOKENS[0]), SEEN_TOKENS[-1])
    runner._chunks[CHUNK_TOKENS[0]] = rest
    rows = [sequence(at, [at % 9, 1, 4, 1, 5, 9, 2][: 7 - at % 7]) for at in range(CHUNK_ROWS + 1)]
    for some in (rows[:2], rows[:CHUNK_ROWS], rows):
        arrange(runner, some)
        starts = range(0, 7, 3)
        parts = [runner.prefill([row for row in some if row.prompt_tokens > at], at, 3) for at in starts]
        drawn = {row.row: token for done, got in parts for row, token in zip(done, got.read().tokens, strict=True)}
        assert drawn == {row.row: generate("llama", row.new.prompt, 1)[0] for row in some}
        runner.arrange({}, [])
    assert beginnings.sizes == [64, 96]
    assert rest.sizes == 6 * [SEEN_TOKENS[0]]


@pytest.mark.parametrize(
    ("num_rows", "size"), [(1, 1), (3, 4), (9, 16), (17, 24), (64, 64), (257, 320), (600, 600)]
)
def test_steps_are_padded_to_a_recorded_size(num_rows: int, size: int) -> None:
    assert padded(num_rows, ROWS) == size
    assert size in ROWS or size > ROWS[-1]


@pytest.mark.timeout(60)
def test_layers_of_a_kind_share_what_was_compiled() -> None:
    """Traced without being made faster, which takes no compiler: the same tokens, and nothing is traced again for
    another layer, or another number of rows or tokens.  (A row by itself is, and so is another kind of layer.)"""
    torch._dynamo.reset()
    decoder = Decoder(fresh("gemma2"), None)
    plain = [step_logits(decoder, *shape) for shape in SHAPES]
    before = counters["stats"]["unique_graphs"]
    decoder.compile(backend="eager")
    compiled = [step_logits(decoder, *shape) for shape in SHAPES]
    assert counters["stats"]["unique_graphs"] - before == 2 * KINDS
    for one, two in zip(plain, compiled, strict=True):
        torch.testing.assert_close(one, two)


KINDS = 2
"""Of Gemma's three layers."""
SHAPES = [(1, 7), (3, 1), (1, 12), (5, 1), (2, 1)]
"""Rows and positions: packed prompts, and newest tokens."""


def step_logits(decoder: Decoder, rows: int, positions: int) -> torch.Tensor:
    ids = torch.arange(rows * positions).reshape(rows, positions) * 5 % decoder.vocabulary
    return decoder.logits(ids, torch.arange(positions).expand(rows, -1), Causal())
