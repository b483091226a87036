"""Several gateways learn together over one store, whatever it holds and whether or not it is there."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence

import msgspec
import numpy as np
import pytest

from gateway.errors import StoreLost
from gateway.policy.features import NUM_FIGURES, WIDTH
from gateway.policy.history import Sample, Seen
from gateway.policy.length import Mode
from gateway.policy.snapshot import LengthClass, Snapshot, class_of
from gateway.ports import MAX_SAMPLES
from gateway.profiler import EXCHANGE_S, MAX_PENDING, MIN_NEW, MIN_SAMPLES, TRAIN_S, Profiler, train_in_thread
from gateway.request import Profile, ServiceClass
from gateway.store.memory import MemoryStore
from tests.unit.fakes import clock
from tests.unit.fakes.world import train_in_place

LIMIT = 500
NEAR_20 = range(18, 23)
"""If all answers are alike, the margin keeps nine in ten covered by going above and below."""


class School:
    """Stands for the training: what it was given, and what it returns."""

    def __init__(self, learned: Snapshot | None = None) -> None:
        self.learned = learned
        self.lessons: list[list[Sample]] = []

    async def __call__(self, samples: Sequence[Sample]) -> Snapshot | None:
        self.lessons.append(list(samples))
        return self.learned


def always(tokens: int) -> Snapshot:
    only = LengthClass(class_of(tokens), tokens, tokens, tokens)
    return Snapshot([only], np.zeros((WIDTH + 1, 1), np.float32))


def play(scenario: Callable[[MemoryStore], Awaitable[None]]) -> None:
    async def main() -> None:
        await scenario(MemoryStore(clock=clock.of_store()))

    clock.run(main())


def serve(profiler: Profiler, count: int, tokens: int = 9, first: int = 0) -> None:
    for number in range(count):
        features = profiler.features([first + number], LIMIT, ServiceClass.DEFAULT, "")
        profiler.observe(features, LIMIT, tokens, ended_by_limit=False)


def predicted(profiler: Profiler, token: int = 1) -> Profile:
    features = profiler.features([token], LIMIT, ServiceClass.DEFAULT, "")
    return profiler.predict(features, LIMIT, ignore_eos=False)


def test_one_gateway_trains_on_what_all_have_seen_and_all_take_the_model() -> None:
    async def scenario(store: MemoryStore) -> None:
        school = School(always(9))
        gateways = [Profiler(f"gateway-{number}", store, school) for number in range(3)]
        for profiler in gateways:
            serve(profiler, MIN_SAMPLES // 2)
            await profiler.exchange()
        await asyncio.sleep(TRAIN_S)
        for profiler in gateways:
            await profiler.exchange()
        assert [len(lesson) for lesson in school.lessons] == [MIN_SAMPLES // 2 * 3]
        await gateways[0].exchange()
        published = await store.snapshot(0)
        assert published is not None
        assert {profiler._version for profiler in gateways} == {published[0]}

    play(scenario)


def test_a_learned_model_that_is_right_takes_over() -> None:
    async def scenario(store: MemoryStore) -> None:
        profiler = Profiler("gateway-1", store, train_in_place)
        for _ in range(4):
            for number in range(200):
                features = profiler.features([number % 2], LIMIT, ServiceClass.DEFAULT, "")
                profiler.observe(features, LIMIT, (5, 300)[number % 2], ended_by_limit=False)
            await asyncio.sleep(TRAIN_S)
            await profiler.exchange()
            await profiler.exchange()
        assert profiler.mode is Mode.LEARNED
        assert predicted(profiler, 0) == Profile(5, 5)
        assert predicted(profiler, 1).upper_tokens in range(290, 310)

    play(scenario)


def test_nothing_is_trained_before_there_is_enough_or_without_news() -> None:
    async def scenario(store: MemoryStore) -> None:
        school = School(always(9))
        profiler = Profiler("gateway-1", store, school)
        for count, lessons in ((MIN_SAMPLES - 1, 0), (1, 1), (MIN_NEW - 1, 1), (1, 2), (0, 2)):
            serve(profiler, count)
            await asyncio.sleep(TRAIN_S)
            await profiler.exchange()
            assert len(school.lessons) == lessons
        serve(profiler, MIN_NEW)
        for _ in range(3):
            await profiler.exchange()
        assert len(school.lessons) == 3, "the first exchange comes one pause after the last training"
        serve(profiler, MIN_NEW)
        await profiler.exchange()
        assert len(school.lessons) == 3, "too soon"

    play(scenario)


def test_the_lease_passes_to_another_when_its_holder_is_gone() -> None:
    async def scenario(store: MemoryStore) -> None:
        schools = [School(always(9)), School(always(9))]
        first, second = (Profiler(f"gateway-{at}", store, school) for at, school in enumerate(schools))
        for profiler in (first, second):
            serve(profiler, MIN_SAMPLES)
            await profiler.exchange()
        assert len(schools[1].lessons) == 0
        await asyncio.sleep(60)
        await second.exchange()
        assert [len(lesson) for lesson in schools[1].lessons] == [2 * MIN_SAMPLES]

    play(scenario)


def test_a_gateway_that_comes_later_is_not_cold() -> None:
    async def scenario(store: MemoryStore) -> None:
        first, later = Profiler("gateway-1", store, School()), Profiler("gateway-2", store, School())
        serve(first, 100, tokens=20)
        assert predicted(later).upper_tokens == LIMIT
        await first.exchange()
        await later.exchange()
        assert predicted(later) == Profile(20, 20)

    play(scenario)


def test_a_store_that_is_down_costs_nothing_but_staleness() -> None:
    class Down(MemoryStore):
        is_down = True

        async def samples(self, after: str, limit: int) -> list[tuple[str, bytes]]:
            if self.is_down:
                raise StoreLost("down")
            return await super().samples(after, limit)

    async def main() -> None:
        store = Down(clock=clock.of_store())
        profiler = Profiler("gateway-1", store, School())
        running = asyncio.create_task(profiler.run())
        serve(profiler, 100, tokens=20)
        await asyncio.sleep(10 * EXCHANGE_S)
        assert not running.done()
        assert predicted(profiler).upper_tokens in NEAR_20
        assert await MemoryStore.samples(store, "", 9) == []
        store.is_down = False
        await asyncio.sleep(2 * EXCHANGE_S)
        assert len(await store.samples("", 1000)) == 100
        running.cancel()

    clock.run(main())


@pytest.mark.parametrize("data", [b"", b"nonsense", b"\x91" * 3000, bytes(100_000)])
def test_a_model_that_is_none_is_left_alone(data: bytes) -> None:
    async def scenario(store: MemoryStore) -> None:
        profiler = Profiler("gateway-1", store, School())
        serve(profiler, 100, tokens=20)
        await store.publish(data, 0)
        for _ in range(2):
            await profiler.exchange()
            assert predicted(profiler).upper_tokens in NEAR_20

    play(scenario)


def test_samples_that_are_none_are_skipped() -> None:
    async def scenario(store: MemoryStore) -> None:
        good = [[1, 2], 3, [0.5] * NUM_FIGURES]
        bad = [
            b"",
            b"nonsense",
            *map(
                msgspec.msgpack.encode,
                [
                    [2, good, [9, False]],
                    [1, good, [0, False]],
                    [1, good, [10**9, False]],
                    [1, [[10**6], 3, good[2]], [9, False]],
                    [1, [list(range(1000)), 3, good[2]], [9, False]],
                    [1, [[1], -1, good[2]], [9, False]],
                    [1, [[1], 3, [0.5]], [9, False]],
                    [1, [[1], 3, [float("nan")] * NUM_FIGURES], [9, False]],
                    [1, [[1], 3, [float("inf")] * NUM_FIGURES], [9, False]],
                ],
            ),
        ]
        await store.append_samples(bad * MIN_SAMPLES)
        await store.append_samples([msgspec.msgpack.encode([1, good, [9, False]])] * MIN_SAMPLES)
        school = School()
        await Profiler("gateway-1", store, school).exchange()
        assert [len(lesson) for lesson in school.lessons] == [MIN_SAMPLES]

    play(scenario)


def test_memory_is_bounded() -> None:
    async def scenario(store: MemoryStore) -> None:
        school = School()
        trainer, other = Profiler("gateway-1", store, school), Profiler("gateway-2", store, school)
        await trainer.exchange()
        for _ in range(MAX_SAMPLES // MAX_PENDING + 5):
            serve(other, 2 * MAX_PENDING)
            assert len(other._pending) == MAX_PENDING
            await other.exchange()
            assert not other._pending
            assert not other._window
        await asyncio.sleep(TRAIN_S)
        await trainer.exchange()
        assert len(school.lessons[-1]) == MAX_SAMPLES

    play(scenario)


@pytest.mark.asyncio
async def test_the_training_leaves_the_event_loop_alone() -> None:
    rng = random.Random(0)
    profiler = Profiler("gateway-1", MemoryStore())
    samples = []
    for _ in range(MIN_SAMPLES):
        prompt = [rng.randrange(50)]
        features = profiler.features(prompt, LIMIT, ServiceClass.DEFAULT, "")
        samples.append(Sample(features, Seen(1 + prompt[0], False)))
    training = asyncio.create_task(train_in_thread(samples))
    turns = 0
    while not training.done():
        turns += 1
        await asyncio.sleep(0)
    assert turns > 1
    assert isinstance(training.result(), Snapshot)
