"""The simulated engine by itself: steps take what the cost model says, and nothing is lost by skipping them."""

import asyncio
import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gateway.simulator import clock
from gateway.simulator.cost import COSTS, Cost, DecodeCost
from gateway.simulator.engine import Engine
from gateway.simulator.job import Padding, Style
from triton_backend.cache import KVCache, LayerShape
from triton_backend.contract import Batch, End, Evict, NewRow, Step
from triton_backend.memory import Grouped
from triton_backend.sequence import Status

COST = Cost(
    name="test",
    kv_tokens=1600,
    kv_token_bytes=10,
    prefill_fixed_s=0.5,
    prefill_token_s=0.01,
    prefill_square_s=0.0001,
    decode=DecodeCost(fixed_s=0.1, row_s=0.02, context_token_s=0.001),
)
IN_GROUPS = msgspec.structs.replace(COST, ladder_tokens=(16, 32, 64, 128, 256, 512), decode_group_s=0.03)


class Heard(NamedTuple):
    at_s: float
    step: Step


class Bench:
    """An engine, and all that it said."""

    def __init__(self, style: Style, padding: Padding, cost: Cost = COST, max_step_tokens: int = 64) -> None:
        self.heard: list[Heard] = []
        self.sizes: dict[str, tuple[int, int]] = {}
        self._loop = asyncio.get_running_loop()
        self._numbers: Iterator[int] = iter(range(1, 10**6))
        self._seq = 0
        self.engine = Engine(cost, style, padding, max_step_tokens, lambda new: self.sizes[new.ticket], self._hear)

    def _hear(self, step: Step) -> None:
        self.heard.append(Heard(self._loop.time(), step))

    def send(self, *sizes: tuple[int, int]) -> None:
        rows = []
        for size in sizes:
            number = next(self._numbers)
            self.sizes[str(number)] = size
            rows.append(NewRow(number, str(number), 0, "o", [0], 0, 10**6, rank=float(number)))
        self._seq += 1
        self.engine.submit(Batch(1, self._seq, rows))

    @property
    def ends(self) -> dict[int, tuple[float, End]]:
        return {ended.row: (at_s, ended.reason) for at_s, step in self.heard for ended in step.ended}

    @property
    def firsts(self) -> dict[int, float]:
        firsts: dict[int, float] = {}
        for at_s, step in self.heard:
            for row in step.rows:
                firsts.setdefault(row, at_s)
        return firsts


def play(scenario: Callable[[], object]) -> None:
    async def main() -> None:
        await scenario()  # type: ignore[misc]

    clock.run(main())


@pytest.mark.parametrize("style", [Style.OURS, Style.MIXED, Style.WHOLE])
@pytest.mark.parametrize("padding", [Padding.PADDED, Padding.PACKED])
def test_one_row_takes_what_the_cost_model_says(style: Style, padding: Padding) -> None:
    async def scenario() -> None:
        bench = Bench(style, padding)
        bench.send((10, 3))
        await asyncio.sleep(100)
        first_s = 0.5 + 0.01 * 10 + 0.0001 * 10 * 10
        # Two more tokens, over contexts of 11 and 12 tokens.
        last_s = first_s + 2 * (0.1 + 0.02) + 0.001 * (11 + 12)
        assert bench.firsts == {1: pytest.approx(first_s, abs=1e-12)}
        assert bench.ends[1][0] == pytest.approx(last_s, abs=1e-12)
        assert bench.ends[1][1] is End.LENGTH
        assert bench.heard[-1].step.indexes == [2]

    play(scenario)


def test_padding_costs_the_longest_for_all() -> None:
    async def scenario() -> None:
        padded, packed = Bench(Style.WHOLE, Padding.PADDED), Bench(Style.WHOLE, Padding.PACKED)
        for bench in (padded, packed):
            bench.send((10, 1), (30, 1))
        await asyncio.sleep(100)
        assert padded.ends[1][0] == pytest.approx(0.5 + 0.01 * 60 + 0.0001 * 2 * 900)
        assert packed.ends[1][0] == pytest.approx(0.5 + 0.01 * 40 + 0.0001 * (900 + 100))
        assert (padded.engine.tally.padded_tokens, padded.engine.tally.useful_tokens) == (60, 40)
        assert packed.engine.tally.padded_tokens == 40

    play(scenario)


def test_a_finished_row_costs_until_its_padded_batch_ends() -> None:
    async def scenario() -> None:
        bench = Bench(Style.WHOLE, Padding.PADDED)
        bench.send((10, 2), (10, 4))
        await asyncio.sleep(100)
        first_s = bench.firsts[1]
        step_s = [0.1 + 0.02 * 2 + 0.001 * 2 * (11 + done) for done in range(3)]
        assert bench.ends[1][0] == pytest.approx(first_s + step_s[0])
        assert bench.ends[2][0] == pytest.approx(first_s + sum(step_s))
        assert bench.engine.ledger.used_bytes == 0

    play(scenario)


def test_a_chunk_shares_its_step_with_the_running_rows() -> None:
    async def scenario() -> None:
        bench = Bench(Style.OURS, Padding.PACKED, max_step_tokens=50)
        bench.send((10, 100))
        await asyncio.sleep(0.0)
        bench.send((100, 2))
        await asyncio.sleep(1000)
        first_s = 0.5 + 0.1 + 0.01
        # The first row decodes beside each of the second one's chunks; the weights' 0.1 s are in theirs.
        chunk_s = 0.5 + 0.01 * 50 + 0.0001 * 2500, 0.5 + 0.01 * 50 + 0.0001 * (10_000 - 2500)
        decode_s = [0.02 + 0.001 * context for context in (11, 12)]
        assert bench.firsts[2] == pytest.approx(first_s + sum(chunk_s) + sum(decode_s))

    play(scenario)


@given(st.sampled_from([COST, IN_GROUPS, COSTS["llama13b-a100"]]), st.integers(1, 200), st.integers(1, 10**6))
def test_the_decode_steps_within_a_time_are_those_that_fit(cost: Cost, rows: int, context_tokens: int) -> None:
    for wanted in (1, 2, 7, 1000):
        took_s = cost.decode_s(rows, context_tokens, 2, wanted)
        assert cost.decodes_within(took_s, rows, context_tokens, 2) == wanted
        assert cost.decodes_within(took_s * (1 - 1e-12), rows, context_tokens, 2) == wanted - 1
    assert cost.decodes_within(0.0, rows, context_tokens, 2) == 0
    assert cost.decodes_within(-1e-12, rows, context_tokens, 2) == 0


def test_a_mixed_step_gives_every_running_row_a_token() -> None:
    async def scenario() -> None:
        bench = Bench(Style.MIXED, Padding.PACKED, max_step_tokens=50)
        bench.send((10, 3))
        await asyncio.sleep(0.0)
        bench.send((80, 1))
        await asyncio.sleep(1000)
        first_s = 0.5 + 0.1 + 0.01
        steps_s = [
            0.5 + 0.01 * 49 + 0.0001 * 49**2 + 0.02 + 0.001 * 11,
            0.5 + 0.01 * 31 + 0.0001 * (80**2 - 49**2) + 0.02 + 0.001 * 12,
        ]
        assert bench.ends[1][0] == pytest.approx(first_s + sum(steps_s))
        assert bench.ends[2][0] == pytest.approx(first_s + sum(steps_s))

    play(scenario)


def test_each_group_by_capacity_costs_its_time() -> None:
    async def scenario() -> None:
        bench = Bench(Style.WHOLE, Padding.PROMPTS, IN_GROUPS)
        bench.send((14, 4), (40, 5))
        await asyncio.sleep(100)
        first_s = 0.5 + 0.01 * 80 + 0.0001 * 2 * 40**2
        assert bench.firsts[1] == pytest.approx(first_s)
        # The first row holds 15, 16 and 17 tokens, the second one always lies in the group of 64.
        step_s = [0.1 + 0.02 * 2 + 0.001 * (15 + 41 + 2 * done) + 0.03 * 2 for done in range(3)]
        assert bench.ends[1][0] == pytest.approx(first_s + sum(step_s))
        assert bench.ends[2][0] == pytest.approx(first_s + sum(step_s) + 0.1 + 0.02 + 0.001 * 44 + 0.03)

    play(scenario)


@pytest.mark.parametrize("seed", range(4))
def test_the_groups_are_those_of_the_engines_own_cache(seed: int) -> None:
    layout = IN_GROUPS.layout
    assert isinstance(layout, Grouped)
    counts = set()

    async def scenario() -> None:
        rng = random.Random(seed)
        bench = Bench(Style.OURS, Padding.PROMPTS, IN_GROUPS)
        cache = KVCache([LayerShape(1, 1, 1)], layout, 2**30, torch.float32, torch.device("cpu"))
        for _ in range(200):
            await asyncio.sleep(rng.expovariate(0.1))
            bench.send(*((rng.randrange(1, 150), rng.randrange(1, 120)) for _ in range(rng.randrange(2))))
            engine = bench.engine
            engine.catch_up()
            running = [row for row in engine.live.values() if row.status is Status.RUNNING]
            held = {row.row: row.prompt_tokens + row.drawn(engine.decodes) for row in running}
            cache.arrange({row: layout.room_tokens(tokens) for row, tokens in held.items()}, held)
            groups = sum(group.num_running > 0 for group in cache.groups)
            if running:
                assert engine.memory.num_groups == groups
                counts.add(groups)

    play(scenario)
    assert {1, 2, 3} <= counts


class OneByOne(Engine):
    """Takes every step as an event of its own."""

    def _num_steps(self) -> int:
        return 1


@pytest.mark.parametrize("style", list(Style))
@pytest.mark.parametrize("padding", list(Padding))
@pytest.mark.parametrize("cost", [COST, IN_GROUPS], ids=["blocks", "groups"])
@pytest.mark.parametrize("seed", range(4))
def test_skipping_steps_changes_nothing(style: Style, padding: Padding, cost: Cost, seed: int) -> None:
    """Memory is short, so rows are refused and evicted; all of it must happen at the same moments."""

    def run(kind: type[Engine]) -> dict[int, tuple[float, End]]:
        ends = {}

        async def scenario() -> None:
            rng = random.Random(seed)
            bench = Bench(style, padding)
            bench.engine = kind(cost, style, padding, 64, lambda new: bench.sizes[new.ticket], bench._hear)
            for _ in range(60):
                await asyncio.sleep(rng.expovariate(0.4))
                bench.send(*((rng.randrange(1, 200), rng.randrange(1, 120)) for _ in range(rng.randrange(1, 5))))
                if rng.random() < 0.2 and bench.engine.live:
                    bench.engine.submit(Evict(1, 0, [rng.choice(sorted(bench.engine.live))]))
                check_memory(bench.engine)
            await asyncio.sleep(10_000)
            bench.engine.ledger.check_idle()
            ends.update(bench.ends)

        play(scenario)
        return ends

    jumped, stepped = run(Engine), run(OneByOne)
    assert {row: reason for row, (_, reason) in jumped.items()} == {
        row: reason for row, (_, reason) in stepped.items()
    }
    assert all(at_s == pytest.approx(stepped[row][0], abs=1e-9) for row, (at_s, _) in jumped.items())
    assert {End.LENGTH, End.EVICTED, End.REFUSED} <= {reason for _, reason in jumped.values()}


def check_memory(engine: Engine) -> None:
    """What the rows hold by now is within the engine's memory, whatever the ledger was last told."""
    engine.catch_up()
    room = engine.layout.room_tokens
    # The room for the token that the step in progress draws was taken when it began.
    held = sum(
        room(row.prompt_tokens + (row.drawn(engine.decodes) if row.status is Status.RUNNING else 1))
        for row in engine.live.values()
    )
    assert held * engine.layout.bytes_per_token <= engine.ledger.capacity_bytes


def test_published_coefficients_give_the_published_times() -> None:
    cost = msgspec.structs.replace(COSTS["distserve-opt13b-tp1"], step_s=0.0, step_token_s=0.0)
    assert cost.prefill_s(512, 512**2) == pytest.approx(0.0721 + 0.001, abs=1e-4)
    assert cost.decode_s(32, 32 * 512) == pytest.approx(0.0314, abs=1e-4)
    # The other coefficients from 95 rows on.
    assert cost.decode_s(95, 0) == pytest.approx(0.007166 + 95 * 0.15831e-3)
