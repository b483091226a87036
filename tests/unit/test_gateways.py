"""Several gateways on one store: whoever drives, every request gets exactly its tokens."""

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.policy import seats
from gateway.ports import Peer
from gateway.relay import Letter
from gateway.store.memory import MemoryStore
from tests.unit.fakes import clock
from tests.unit.fakes.engine import STEP_S, FakeBackend, token_at
from tests.unit.fakes.site import Site, site
from tests.unit.fakes.world import World

LETTER = msgspec.msgpack.Decoder(Letter)


def cut(made: Site, is_cut: bool) -> None:
    """The store answers nobody, or everybody again."""
    for world in made.gateways.values():
        world.store.is_cut = is_cut  # type: ignore[attr-defined]


def play(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    clock.run(scenario())


def prompts(count: int, seed: int = 0) -> list[tuple[list[int], int]]:
    rng = random.Random(seed)
    return [
        ([rng.randrange(1, 1000) for _ in range(rng.randrange(1, 120))], rng.randrange(20, 90))
        for _ in range(count)
    ]


async def all_exact(world: World, requests: list[tuple[list[int], int]]) -> None:
    calls = [world.answer(prompt, most, f"{world.name}{at}") for at, (prompt, most) in enumerate(requests)]
    for (prompt, most), answer in zip(requests, await asyncio.gather(*calls), strict=True):
        assert answer == [token_at(prompt, index) for index in range(most)]


async def all_exact_everywhere(site: Site, count: int = 40) -> None:
    await asyncio.gather(*(all_exact(world, prompts(count)) for world in site.gateways.values()))


@pytest.mark.parametrize(("replicas", "gateways"), [(1, 2), (2, 2), (3, 2), (4, 3)])
def test_replicas_are_shared_out_evenly_and_all_requests_answered(replicas: int, gateways: int) -> None:
    async def scenario() -> None:
        async with site(replicas, *"abcd"[:gateways]) as made:
            led = made.led()
            counts = sorted(map(len, led.values()))
            assert sum(counts) == replicas
            assert counts[-1] - counts[0] <= 1
            await all_exact_everywhere(made)
            assert made.led() == led

    play(scenario)


def test_a_gateway_that_drives_nothing_knows_the_replicas_and_is_answered_soon() -> None:
    async def scenario() -> None:
        async with site(1, "a", "b") as made:
            (idle,) = [made.gateways[name] for name, led in made.led().items() if not led]
            assert await idle.origin.ready() == []
            assert idle.fleet.longest_row_tokens > 0
            begun_s = asyncio.get_running_loop().time()
            await all_exact(idle, [([5], 3)])
            # No poll in between: the driver is woken, and the tokens come as letters.
            assert asyncio.get_running_loop().time() - begun_s < 6 * STEP_S

    play(scenario)


def test_a_gateway_that_comes_gets_its_share_while_rows_run() -> None:
    async def scenario() -> None:
        async with site(2, "a") as made:
            running = asyncio.create_task(all_exact_everywhere(made))
            await asyncio.sleep(0.2)
            await made.join("b")
            await running
            await asyncio.sleep(2.0)
            assert sorted(len(led) for led in made.led().values()) == [1, 1]
            assert "put_backs_total{" not in made.gateways["a"].metrics.render().decode(), "nothing was recomputed"

    play(scenario)


def test_a_gateway_that_leaves_in_order_interrupts_nobody() -> None:
    async def scenario() -> None:
        async with site(2, "a", "b") as made:
            running = asyncio.create_task(all_exact(made.gateways["b"], prompts(60)))
            await asyncio.sleep(0.2)
            await made.leave("a")
            await running
            assert made.led() == {"b": ["r0", "r1"]}
            assert "put_backs_total{" not in made.gateways["b"].metrics.render().decode(), "nothing was recomputed"

    play(scenario)


@pytest.mark.parametrize("when_s", [0.0, 0.05, 0.3, 0.6])
def test_a_driver_that_dies_is_replaced_within_5_s_and_rows_go_on(when_s: float) -> None:
    async def scenario() -> None:
        async with site(2, "a", "b") as made:
            doomed = asyncio.create_task(all_exact(made.gateways["a"], prompts(20)))
            running = asyncio.create_task(all_exact(made.gateways["b"], prompts(40, 1)))
            await asyncio.sleep(when_s)
            await made.die("a")
            doomed.cancel()
            died_s = asyncio.get_running_loop().time()
            while len(made.led()["b"]) < 2:
                await asyncio.sleep(0.1)
            assert asyncio.get_running_loop().time() - died_s < 5.0
            await running
            assert 'reason="engine died"' not in made.gateways["b"].metrics.render().decode()

    play(scenario)


def test_what_an_engine_was_about_to_get_when_it_died_is_run_elsewhere() -> None:
    async def scenario() -> None:
        async with site(2, "a") as made:
            world: Any = made.gateways["a"]
            world.store.answer_delays_s = {"claim": 0.02, "start": 0.02}
            asking = asyncio.create_task(all_exact(world, prompts(40)))
            await asyncio.sleep(0.01)
            made.backends[0].revival_s = 60.0
            made.backends[0].kill()
            async with asyncio.timeout(20):
                await asking
            await asyncio.sleep(60)

    play(scenario)


def test_an_engine_that_takes_longer_to_answer_than_a_lease_lasts_gets_a_driver() -> None:
    async def scenario() -> None:
        async with site(1, "a", "b", "c") as made:
            made.backends[0].attach_s = 4.0
            (driver,) = [name for name, led in made.led().items() if led]
            await made.die(driver)
            died_s = asyncio.get_running_loop().time()
            while not any(made.led().values()):
                await asyncio.sleep(0.1)
                for world in made.gateways.values():
                    assert list(world.fleet.replicas) == ["r0"], "it runs, as far as anybody knows"
            assert asyncio.get_running_loop().time() - died_s < 10.0
            assert made.backends[0].sessions == 2
            made.backends[0].attach_s = 0.0

    play(scenario)


def test_an_answer_of_which_every_letter_was_lost_is_made_again() -> None:
    async def scenario() -> None:
        async with site(1, "a", "b") as made:
            driver, other = by_lead(made)
            lose(driver, {"drawn": [], "departed": [], "claimed": []})
            asking = asyncio.create_task(all_exact(other, prompts(5)))
            await asyncio.sleep(3)
            assert not asking.done()
            lose(driver, {})
            async with asyncio.timeout(20):
                await asking

    play(scenario)


def test_an_answer_whose_end_came_without_its_tokens_is_not_taken_for_whole() -> None:
    async def scenario() -> None:
        async with site(1, "a", "b") as made:
            driver, other = by_lead(made)
            lose(driver, {"drawn": []})
            asking = asyncio.create_task(all_exact(other, prompts(5)))
            await asyncio.sleep(3)
            lose(driver, {})
            await asking

    play(scenario)


def by_lead(made: Site) -> list[World]:
    """The gateways, those first that drive something."""
    led = made.led()
    return sorted(made.gateways.values(), key=lambda world: not led[world.name])


def lose(world: World, fields: dict[str, Any]) -> None:
    """From now on its letters come with these instead of their own."""
    line: Any = world.store

    async def post(letters: dict[str, bytes]) -> None:
        changed = {to: msgspec.structs.replace(LETTER.decode(raw), **fields) for to, raw in letters.items()}
        await line._store.post({to: msgspec.msgpack.encode(letter) for to, letter in changed.items()})

    line.post = post


@pytest.mark.parametrize("seed", range(6))
def test_gateways_and_engines_come_and_go_at_random(seed: int) -> None:
    async def scenario() -> None:
        rng = random.Random(seed)
        async with site(3, "stays", "g0", "g1") as made:
            running = asyncio.create_task(all_exact(made.gateways["stays"], prompts(150, seed)))
            for number in range(2, 8):
                await asyncio.sleep(rng.random())
                match rng.randrange(3):
                    case 0:
                        rng.choice(made.backends).kill()
                    case 1 if len(made.gateways) > 1:
                        await made.die(rng.choice([name for name in made.gateways if name != "stays"]))
                    case _:
                        await made.join(f"g{number}")
            await running

    play(scenario)


def test_a_store_that_forgot_everything_is_filled_again() -> None:
    async def scenario() -> None:
        async with site(2, "a", "b") as made:
            running = asyncio.create_task(all_exact_everywhere(made))
            await asyncio.sleep(0.2)
            MemoryStore.__init__(made.store, clock=clock.of_store())
            await running

    play(scenario)


def test_a_gateway_cut_off_from_the_store_for_10_s_goes_on_and_does_no_harm() -> None:
    async def scenario() -> None:
        async with site(2, "a", "b") as made:
            running = asyncio.create_task(all_exact_everywhere(made))
            await asyncio.sleep(0.2)
            made.gateways["a"].store.is_cut = True  # type: ignore[attr-defined]
            await asyncio.sleep(10)
            made.gateways["a"].store.is_cut = False  # type: ignore[attr-defined]
            await running

    play(scenario)


def test_a_driver_that_another_is_faster_than_tells_nothing_of_its_replica_any_more() -> None:
    async def scenario() -> None:
        async with site(1, "slow", "fast") as made:
            [backend], slow = made.backends, made.gateways["slow"]
            assert made.led() == {"slow": ["r0"], "fast": []}
            running = asyncio.create_task(all_exact_everywhere(made, count=10))
            await asyncio.sleep(0.1)
            slow.store.delays_s["elect"] = 5.0  # type: ignore[attr-defined]
            backend.kill()
            await backend.revive()
            await asyncio.sleep(6.0)
            assert made.led() == {"slow": [], "fast": ["r0"]}
            assert not slow.told()
            await running

    play(scenario)


@pytest.mark.parametrize("breaks", [FakeBackend.kill, FakeBackend.hang])
def test_one_gateway_alone_revives_an_engine(breaks: Callable[[FakeBackend], None]) -> None:
    async def scenario() -> None:
        async with site(2, *"abc") as made:
            running = asyncio.create_task(all_exact_everywhere(made))
            await asyncio.sleep(0.2)
            made.backends[0].revival_s = 20.0
            breaks(made.backends[0])
            await asyncio.sleep(15.0)
            for world in made.gateways.values():
                assert list(world.fleet.replicas) == ["r1"]
            await running
            await asyncio.sleep(20.0)
            assert made.backends[0].revivals == 1

    play(scenario)


def test_gateways_that_cannot_reach_an_engine_tell_the_others_their_cards_still() -> None:
    async def scenario() -> None:
        async with site(2, *"abc") as made:
            made.backends[0].revival_s = 10.0
            made.backends[0].kill()
            was_unable = set()
            for _ in range(50):
                await asyncio.sleep(0.25)
                peers = (await made.store.assemble("onlooker", Peer(False, b""), 0)).gateways
                was_unable |= {name for name, peer in peers.items() if not peer.drives}
                assert sorted(peers) == ["a", "b", "c"]
                assert all(peer.card for peer in peers.values())
            assert was_unable

    play(scenario)


def test_a_store_that_answers_nobody_for_long_forgets_nobody() -> None:
    """Whoever asks first afterwards must not take the others for dead."""

    async def scenario() -> None:
        async with site(2, *"abc") as made:
            running = asyncio.create_task(all_exact_everywhere(made, count=30))
            await asyncio.sleep(0.2)
            cut(made, True)
            await asyncio.sleep(30)
            cut(made, False)
            await running
            for world in made.gateways.values():
                assert 'reason="unknown to the store"' not in world.metrics.render().decode()

    play(scenario)


def test_after_a_store_that_stood_still_everybody_drives_what_he_drove() -> None:
    async def scenario() -> None:
        async with site(2, *"abc") as made:
            led = made.led()
            running = asyncio.create_task(all_exact_everywhere(made, count=30))
            await asyncio.sleep(0.2)
            cut(made, True)
            await asyncio.sleep(10)
            cut(made, False)
            await asyncio.sleep(5)
            assert made.led() == led
            await running
            assert made.led() == led

    play(scenario)


def test_a_driver_that_died_while_the_store_stood_still_is_replaced() -> None:
    async def scenario() -> None:
        async with site(2, *"ab") as made:
            cut(made, True)
            await asyncio.sleep(10)
            await made.die("a")
            cut(made, False)
            await asyncio.sleep(5)
            assert sorted(made.led()["b"]) == ["r0", "r1"]

    play(scenario)


def test_gateways_of_two_schemas_over_the_same_engines_lose_nothing() -> None:
    """Keys begin with the schema's version: each knows nothing of the other's queue; the engines are shared."""

    async def scenario() -> None:
        async with site(2, "old") as made:
            old = asyncio.create_task(all_exact(made.gateways["old"], prompts(40)))
            await asyncio.sleep(0.2)
            made.store = MemoryStore(clock=clock.of_store())
            new = await made.join("new")
            await asyncio.gather(old, all_exact(new, prompts(40, 1)))
            await made.die("old")
            await all_exact(new, prompts(10, 2))

    play(scenario)


COUNTS = st.dictionaries(st.text(max_size=2), st.integers(0, 9), max_size=5)


@given(mine=st.integers(0, 9), others=COUNTS)
def test_who_gives_a_seat_does_not_take_it_back(mine: int, others: dict[str, int]) -> None:
    if seats.gives(mine, others):
        assert not seats.takes(mine - 1, others)
        assert any(seats.takes(count, {"me": mine - 1}) for count in others.values())


@given(mine=st.integers(0, 9), others=COUNTS)
def test_a_free_seat_is_taken_by_somebody(mine: int, others: dict[str, int]) -> None:
    counts = {"": mine} | {f"-{name}": count for name, count in others.items()}
    takers = [seats.takes(count, {n: c for n, c in counts.items() if n != name}) for name, count in counts.items()]
    assert any(takers)
