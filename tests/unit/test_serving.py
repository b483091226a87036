"""Origin and driver together: every request gets exactly its tokens, whatever dies, and leaves nothing behind."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from gateway.errors import BadRequest, Poisoned, TooManyRequests, Unavailable
from gateway.policy.features import Features
from gateway.policy.length import MIN_HISTORY, Mode
from gateway.ports import Limits, Store
from gateway.profiler import Profiler
from gateway.request import Delta, FinishReason, Profile, Request, ServiceClass
from gateway.store.memory import MemoryStore
from tests.unit.fakes import clock
from tests.unit.fakes.engine import STEP_S, FakeBackend, token_at
from tests.unit.fakes.line import Line
from tests.unit.fakes.world import DRIVER, ORIGIN, World
from triton_backend.contract import Attach, Sampling

Scenario = Callable[[World], Awaitable[None]]


def play(
    scenario: Scenario,
    replicas: int = 1,
    config: Any = ORIGIN,
    profiler: Callable[[str, Store], Profiler] = Profiler,
    **engine: int,
) -> None:
    """Run the scenario in a fresh world; afterwards nothing may be left anywhere."""

    async def main() -> None:
        store = MemoryStore(clock=clock.of_store())
        backends = [FakeBackend(f"r{number}", **engine) for number in range(replicas)]
        world = World(store, backends, config, profiler("g", store))
        async with world.running():
            async with asyncio.timeout(600):
                await scenario(world)
            await asyncio.sleep(1.0)
            assert await world.is_idle()

    clock.run(main())


def expected(prompt: list[int], max_tokens: int) -> list[int]:
    return [token_at(prompt, index) for index in range(max_tokens)]


def prompts(count: int, seed: int = 0) -> list[tuple[list[int], int]]:
    rng = random.Random(seed)
    return [
        ([rng.randrange(1, 1000) for _ in range(rng.randrange(1, 120))], rng.randrange(1, 60))
        for _ in range(count)
    ]


async def all_exact(world: World, requests: list[tuple[list[int], int]]) -> None:
    answers = await asyncio.gather(
        *(world.answer(prompt, most, f"call{at}") for at, (prompt, most) in enumerate(requests))
    )
    for (prompt, most), answer in zip(requests, answers, strict=True):
        assert answer == expected(prompt, most)


def test_one_request() -> None:
    async def scenario(world: World) -> None:
        assert await world.answer([5, 6, 7], 8) == expected([5, 6, 7], 8)

    play(scenario)


def test_a_crowd_on_two_replicas() -> None:
    play(lambda world: all_exact(world, prompts(200)), replicas=2)


def test_the_running_set_follows_the_memory() -> None:
    """Others take all but a sixth of it, for a while."""

    async def scenario(world: World) -> None:
        backend = world.backends[0]
        crowd = asyncio.create_task(all_exact(world, prompts(150)))
        await asyncio.sleep(1.0)
        assert max(backend.arranged_bytes) > 3000
        backend.executor.kv_budget_bytes = 1500
        await asyncio.sleep(0.1)
        few = len(backend.arranged_bytes)
        # Longer than there is room for now: it waits.
        long = asyncio.create_task(all_exact(world, [([7] * 200, 50)]))
        await asyncio.sleep(3.0)
        assert 1000 < max(backend.arranged_bytes[few:]) <= 1500
        backend.executor.kv_budget_bytes = 9000
        await asyncio.sleep(0.5)
        assert backend.arranged_bytes[-1] > 3000
        await asyncio.gather(crowd, long)

    play(scenario, kv_budget_bytes=9000)


def test_out_of_memory_costs_a_pause_and_caution() -> None:
    async def scenario(world: World) -> None:
        [replica] = world.fleet.replicas.values()
        crowd = asyncio.create_task(all_exact(world, prompts(150)))
        await asyncio.sleep(1.0)
        world.backends[0].executor.short_steps = 3
        await asyncio.sleep(0.2)
        assert replica.safety_factor == pytest.approx(0.9 * 0.75, abs=0.01)
        await crowd
        await asyncio.sleep(30.0)
        assert replica.safety_factor == 0.9
        page = world.metrics.render().decode()
        assert 'bucketserve_out_of_memory_total{replica="r0"} 3.0' in page
        assert 'bucketserve_safety_factor{replica="r0"} 0.9' in page

    play(scenario, kv_budget_bytes=9000)


def test_memory_for_a_tenth_of_the_load_serves_everybody() -> None:
    async def scenario(world: World) -> None:
        over = []

        async def watch() -> None:
            while True:
                telemetry = world.fleet.replicas["r0"].telemetry
                over.append(telemetry.pool_used_bytes > 5000)
                await asyncio.sleep(0.01)

        watching = asyncio.create_task(watch())
        await all_exact(world, prompts(100))
        watching.cancel()
        assert not any(over)

    play(scenario, kv_budget_bytes=5000)


class Half(Profiler):
    """Predicts half of what every answer will be."""

    def predict(self, features: Features, max_tokens: int, ignore_eos: bool) -> Profile:
        return Profile(max(1, max_tokens // 2), max(1, max_tokens // 2))


@pytest.mark.parametrize("budget_bytes", [3200, 5000, 20_000])
def test_answers_twice_as_long_as_predicted_are_exact_and_memory_holds(budget_bytes: int) -> None:
    async def scenario(world: World) -> None:
        await all_exact(world, prompts(100))
        used_bytes = world.backends[0].arranged_bytes
        assert 0.6 * budget_bytes < max(used_bytes) <= budget_bytes
        page = world.metrics.render().decode()
        assert 'bucketserve_put_backs_total{reason="evicted"}' in page, "the engine had nothing to make good"

    play(scenario, profiler=Half, kv_budget_bytes=budget_bytes)


def test_answers_are_learned_from_unless_made_to_ignore_their_end() -> None:
    async def scenario(world: World) -> None:
        for at in range(MIN_HISTORY):
            await world.answer([9], 30, f"made{at}")
        modes = [world.profiler.mode]
        request = Request(model="fake", prompts=[[9]], max_tokens=30, stop=[chr(expected([9], 30)[5])])
        for at in range(MIN_HISTORY):
            async with world.origin.open(request, f"call{at}", 0.0) as call:
                await call.read(lambda deltas: None)
        modes.append(world.profiler.mode)
        assert modes == [Mode.COLD, Mode.GLOBAL]
        features = world.profiler.features([9], 30, ServiceClass.DEFAULT, "")
        assert world.profiler.predict(features, 30, ignore_eos=False) == Profile(6, 6)
        page = world.metrics.render().decode()
        assert f'bucketserve_predicted_lengths_total{{covered="yes"}} {MIN_HISTORY}.0' in page
        assert 'bucketserve_length_predictor{mode="global"} 1.0' in page

    play(scenario)


@pytest.mark.parametrize("when_s", [0.0, 0.02, 0.1, 0.3])
def test_an_engine_that_dies_costs_a_pause(when_s: float) -> None:
    async def scenario(world: World) -> None:
        running = asyncio.create_task(all_exact(world, prompts(40)))
        await asyncio.sleep(when_s)
        world.backends[0].kill()
        await running
        assert world.backends[0].revivals == 1

    play(scenario)


def test_a_hung_engine_is_declared_lost_and_replaced() -> None:
    async def scenario(world: World) -> None:
        running = asyncio.create_task(all_exact(world, prompts(20)))
        await asyncio.sleep(0.1)
        world.backends[0].hang()
        await running
        assert world.backends[0].revivals == 1

    play(scenario)


def test_a_session_taken_over_and_won_back_loses_nothing() -> None:
    async def scenario(world: World) -> None:
        running = asyncio.create_task(all_exact(world, prompts(40)))
        await asyncio.sleep(0.1)
        intruder = await world.backends[0].attach(Attach(round(1e6 * clock.of_store()()), "intruder"))
        await intruder.aclose()
        await running

    play(scenario)


@pytest.mark.parametrize("max_messages", [2, 9, 60])
def test_sessions_that_wear_out_are_replaced_and_nothing_is_recomputed(max_messages: int) -> None:
    async def main() -> None:
        store = MemoryStore(clock=clock.of_store())
        driver = msgspec.structs.replace(DRIVER, max_messages=max_messages)
        world = World(store, [FakeBackend("r0")], driver=driver)
        async with world.running():
            await all_exact(world, prompts(60))
            assert world.backends[0].sessions > 1
            await asyncio.sleep(1.0)
            told = world.metrics.render().decode()
            assert not any(f'reason="{why}"' in told for why in ("engine died", "unknown to the store", "gap"))
            assert await world.is_idle()

    clock.run(main())


def test_a_session_that_wears_out_while_the_store_does_not_answer_is_replaced_afterwards() -> None:
    """Its rows stream on meanwhile, and Triton keeps something of each of their messages."""

    async def main() -> None:
        line: Any = Line(MemoryStore(clock=clock.of_store()))
        driver = msgspec.structs.replace(DRIVER, max_messages=100)
        world = World(line, [FakeBackend("r0")], driver=driver)
        async with world.running():
            running = asyncio.create_task(world.answer([7], 400))
            await asyncio.sleep(0.5)
            line.is_cut = True
            await asyncio.sleep(1.0)
            assert world.backends[0].sessions == 1
            line.is_cut = False
            await asyncio.sleep(0.2)
            assert world.backends[0].sessions == 2
            assert await running == expected([7], 400)

    clock.run(main())


def test_the_next_prompts_are_sent_when_those_before_them_have_run() -> None:
    """There is room for one at a time, and each takes one step."""

    async def scenario(world: World) -> None:
        loop = asyncio.get_running_loop()
        begun_s, first_s = loop.time(), dict[str, float]()

        async def ask(name: str) -> None:
            def take(deltas: list[Delta]) -> None:
                first_s.setdefault(name, loop.time() - begun_s)

            request = Request(model="fake", prompts=[[7] * 400], max_tokens=100, ignore_eos=True)
            async with world.origin.open(request, name, loop.time()) as call:
                await call.read(take)

        await asyncio.gather(*(ask(f"call{number}") for number in range(20)))
        assert sorted(first_s.values()) == [pytest.approx(number * STEP_S) for number in range(20)]

    play(scenario, kv_budget_bytes=10**6)


@pytest.mark.parametrize("seed", range(5))
def test_clients_that_leave_at_any_moment_leave_nothing_behind(seed: int) -> None:
    async def scenario(world: World) -> None:
        rng = random.Random(seed)
        tasks = []
        for at, (prompt, most) in enumerate(prompts(60, seed)):
            tasks.append(asyncio.create_task(world.answer(prompt, most, f"call{at}")))
            await asyncio.sleep(rng.choice([0, 0, 0.001, 0.01]))
        for task in tasks:
            await asyncio.sleep(rng.choice([0, 0, 0.003, 0.01]))
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    play(scenario)


def test_one_that_was_waited_for_and_left_holds_nobody_up() -> None:
    """It is held for after a second, and memory for the small ones is there all the while."""

    async def scenario(world: World) -> None:
        loop = asyncio.get_running_loop()
        running = [asyncio.create_task(world.answer([1] * 16, most, f"long{most}")) for most in (900, 490)]
        await asyncio.sleep(0.1)
        big = asyncio.create_task(world.answer([2] * 500, 450, "big"))
        took_s = []

        async def small(number: int) -> None:
            asked_s = loop.time()
            await world.answer([3, number], 30, f"small{number}")
            took_s.append(loop.time() - asked_s)

        small_ones = []
        for number in range(40):
            small_ones.append(asyncio.create_task(small(number)))
            await asyncio.sleep(0.1)
            if number == 18:
                assert not big.done()
                big.cancel()
        await asyncio.gather(*small_ones)
        assert max(took_s) < 0.5
        await asyncio.gather(*running)

    play(scenario, kv_budget_bytes=20_000, context_tokens=1000)


def test_a_store_that_forgot_everything_is_filled_again() -> None:
    async def scenario(world: World) -> None:
        running = asyncio.create_task(all_exact(world, prompts(60)))
        await asyncio.sleep(0.1)
        MemoryStore.__init__(world.store, clock=clock.of_store())
        await running

    play(scenario)


def test_rows_that_are_heard_of_outlive_the_store() -> None:
    """They need not be run again: nothing is put back, over several audits and a new election."""

    async def scenario(world: World) -> None:
        running = [asyncio.create_task(world.answer([tokens], tokens, f"call{tokens}")) for tokens in (200, 400)]
        await asyncio.sleep(0.5)
        MemoryStore.__init__(world.store, clock=clock.of_store())
        assert await asyncio.gather(*running) == [expected([tokens], tokens) for tokens in (200, 400)]
        assert b"put_backs_total{" not in world.metrics.render()

    play(scenario)


@pytest.mark.parametrize("is_engine", [True, False])
def test_what_is_silent_is_put_back_unless_it_was_this_process_that_was_stopped(is_engine: bool) -> None:
    async def scenario(world: World) -> None:
        running = asyncio.create_task(world.answer([7], 200))
        await asyncio.sleep(0.5)
        world.backends[0].hang()
        await asyncio.sleep(1.5)
        await world.origin.audit()
        world.backends[0].is_hung = is_engine
        await asyncio.sleep(0.2)
        await world.origin.audit()
        assert (b'put_backs_total{reason="silent"} 1.0' in world.metrics.render()) == is_engine
        world.backends[0].is_hung = False
        assert await running == expected([7], 200)

    play(scenario, config=msgspec.structs.replace(ORIGIN, progress_timeout_s=1.0, audit_s=1000.0))


def test_a_choice_ends_at_its_stop_string_and_frees_its_row() -> None:
    async def scenario(world: World) -> None:
        answer = expected([9], 30)
        request = Request(model="fake", prompts=[[9]], max_tokens=30, stop=[chr(answer[5])])
        async with world.origin.open(request, "call", 0.0) as call:
            deltas: list[Delta] = []
            await call.read(deltas.extend)
        assert "".join(delta.text for delta in deltas) == "".join(map(chr, answer[:5]))
        assert deltas[-1].finish_reason is FinishReason.STOP

    play(scenario)


def test_the_token_that_ends_an_answer_counts_and_is_not_shown() -> None:
    async def scenario(world: World) -> None:
        end = token_at([5], 3)
        sampling = Sampling(0.0, logprobs=0)
        request = Request(model="fake", prompts=[[5]], max_tokens=50, stop_token_ids=[end], sampling=sampling)
        deltas: list[Delta] = []
        async with world.origin.open(request, "c", asyncio.get_running_loop().time()) as call:
            await call.read(deltas.extend)
        assert "".join(delta.text for delta in deltas) == "".join(map(chr, expected([5], 3)))
        scored = [entry.token for delta in deltas for entry in delta.logprobs or []]
        assert scored == [token for delta in deltas for token in delta.tokens] == expected([5], 4)
        assert (deltas[-1].finish_reason, deltas[-1].num_tokens) == (FinishReason.STOP, 4)

    play(scenario)


def test_choices_of_several_prompts_are_numbered_through() -> None:
    async def scenario(world: World) -> None:
        request = Request(model="fake", prompts=[[1], [2]], num_choices=2, max_tokens=3)
        deltas: list[Delta] = []
        seen: dict[int, list[int]] = {}
        async with world.origin.open(request, "call", 0.0) as call:
            await call.read(deltas.extend)
        for delta in deltas:
            seen.setdefault(delta.choice, []).extend(delta.tokens)
        first, second = expected([1], 3), expected([2], 3)
        assert seen == {0: first, 1: first, 2: second, 3: second}

    play(scenario)


def test_three_engine_deaths_poison_a_request() -> None:
    async def scenario(world: World) -> None:
        running = asyncio.create_task(world.answer([1], 500))
        for _ in range(3):
            await asyncio.sleep(0.5)
            world.backends[0].kill()
        with pytest.raises(Poisoned):
            await running
        await asyncio.sleep(1.0)

    play(scenario)


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (Request(model="fake", prompts=[[]]), "prompt"),
        (Request(model="fake", prompts=[[1] * 1000]), "prompt"),
        (Request(model="fake", prompts=[[1]], max_tokens=1000), "max_tokens"),
        (Request(model="fake", prompts=[[1], [5000]]), "prompt"),
        (Request(model="fake", prompts=[[-1]]), "prompt"),
    ],
)
def test_what_no_replica_can_hold_is_refused_at_once(request_: Request, param: str) -> None:
    async def scenario(world: World) -> None:
        with pytest.raises(BadRequest) as refused:
            async with world.origin.open(request_, "call", 0.0):
                pass
        assert refused.value.param == param

    play(scenario)


def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    async def scenario(world: World) -> None:
        request = Request(model="fake", prompts=[[1]] * 4, max_tokens=2)
        with pytest.raises(TooManyRequests) as refused:
            async with world.origin.open(request, "call", 0.0):
                pass
        assert refused.value.retry_after_s is not None

    play(scenario, config=msgspec.structs.replace(ORIGIN, limits=Limits(3, 1000, 10**6)))


def test_without_a_replica_there_is_no_capacity() -> None:
    async def main() -> None:
        world = World(MemoryStore(clock=clock.of_store()), [])
        with pytest.raises(Unavailable):
            await world.answer([1])
        assert await world.origin.ready() == ["no replica answers"]

    clock.run(main())
