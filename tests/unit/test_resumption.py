"""A stream that broke goes on over another connection: its client gets exactly its text, wherever it reads on."""

import asyncio
import contextlib
import gc
import itertools
import random
import re
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import pytest

from gateway import recorder
from gateway.call import OpenCall
from gateway.errors import ApiError, BadRequest, Interrupted, NotFound, OverQuota, Unavailable
from gateway.quota import Quota
from gateway.recorder import Mode
from gateway.request import Request, Targets
from gateway.store.memory import MemoryStore
from tests.tenants_contract import used
from tests.unit.fakes import clock
from tests.unit.fakes.engine import STEP_S, score_at, token_at
from tests.unit.fakes.reader import Reader
from tests.unit.fakes.site import Site, site
from tests.unit.fakes.world import ORIGIN, World
from triton_backend.contract import Sampling

PROMPT = [5, 6, 7]
TOKENS = 40


def play(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    clock.run(scenario())


def request(**fields: Any) -> Request:
    return Request(model="fake", prompts=[PROMPT], max_tokens=TOKENS, ignore_eos=True, **fields)


def text(prompt: list[int] = PROMPT, tokens: int = TOKENS) -> str:
    return "".join(chr(token_at(prompt, index)) for index in range(tokens))


def complete(reader: Reader) -> bool:
    return (
        reader.texts == {0: text()}
        and reader.reasons == {0: "length"}
        and reader.is_done
        and reader.usage == {"prompt_tokens": 3, "completion_tokens": TOKENS, "total_tokens": 3 + TOKENS}
    )


async def vanish(made: Site, name: str, *reading: "asyncio.Task[None]") -> None:
    """The gateway dies, and with it its connections."""
    await made.die(name)
    for task in reading:
        task.cancel()
    await asyncio.gather(*reading, return_exceptions=True)


@pytest.mark.parametrize("events", [0, 1, 2, 17, 39, 40, 41, 42])
def test_a_client_that_left_reads_on_at_the_same_gateway(events: int) -> None:
    async def scenario() -> None:
        async with site(1, "a") as made:
            reader = Reader(request())
            await reader.ask(made.gateways["a"], events)
            await asyncio.sleep(1.0)
            assert await made.gateways["a"].is_idle() or events > TOKENS, "a client that leaves frees its row"
            await reader.resume(made.gateways["a"])
            assert complete(reader)

    play(scenario)


def test_a_call_that_ended_is_gone_without_the_collector() -> None:
    async def scenario() -> None:
        async with site(1, "a") as made:
            gc.collect()
            gc.disable()
            try:
                reader = Reader(request())
                await reader.ask(made.gateways["a"])
                await asyncio.sleep(1.0)
                assert complete(reader)
                assert not [left for left in gc.get_objects() if type(left) is OpenCall]
            finally:
                gc.enable()

    play(scenario)


@pytest.mark.parametrize("seed", range(8))
def test_a_gateway_dies_and_its_clients_read_on_at_another(seed: int) -> None:
    async def scenario() -> None:
        rng = random.Random(seed)
        async with site(2, "a", "b", "c") as made:
            readers = [Reader(request(), number) for number in range(12)]
            reading = [asyncio.create_task(reader.ask(made.gateways["a"])) for reader in readers]
            await asyncio.sleep(rng.random() * 60 * STEP_S)
            await vanish(made, "a", *reading)
            others = list(made.gateways.values())
            await asyncio.gather(*(reader.resume(rng.choice(others)) for reader in readers if not reader.is_done))
            assert all(map(complete, readers))

    play(scenario)


@pytest.mark.parametrize(("is_driver", "letters_take_s"), [(True, 0.0), (False, 0.0), (False, 0.5)])
def test_what_was_running_for_a_dead_gateway_does_not_run_on(is_driver: bool, letters_take_s: float) -> None:
    async def scenario() -> None:
        async with site(1, "a", "b", "c") as made:
            (driver,) = [name for name, led in made.led().items() if led]
            origin, other = sorted(set("abc") - {driver})
            reader = Reader(request())
            reading = asyncio.create_task(reader.ask(made.gateways[origin]))
            await asyncio.sleep(10 * STEP_S)
            await vanish(made, origin, reading)
            adopter = driver if is_driver else other
            line: Any = made.gateways[adopter].store
            line.delays_s["post"] = letters_take_s
            resuming = asyncio.create_task(reader.resume(made.gateways[adopter]))
            await asyncio.sleep(20 * STEP_S)
            (leading,) = made.gateways[driver].drivers
            assert leading.num_rows == 1
            await resuming
            assert complete(reader)

    play(scenario)


def test_whether_an_adopted_answer_kept_its_targets_is_not_told() -> None:
    """Its first token came to another gateway: in time, as far as this one knows."""

    async def scenario() -> None:
        async with site(1, "a", "b") as made:
            reader = Reader(request())
            await reader.ask(made.gateways["a"], 5)
            await asyncio.sleep(2.0)
            await reader.resume(made.gateways["b"])
            assert complete(reader)
            assert _count(made.gateways["b"], "targets_total") == 0
            await Reader(request(), 2).ask(made.gateways["b"])
            assert _count(made.gateways["b"], "targets_total") == 1

    play(scenario)


def test_every_position_is_read_on_from_exactly() -> None:
    async def scenario() -> None:
        async with site(1, "a", "b") as made:
            for events in range(TOKENS + 3):
                reader = Reader(request(), events)
                await reader.ask(made.gateways["a"], events)
                await reader.resume(made.gateways["b"])
                assert complete(reader), events

    play(scenario)


def test_a_client_that_loses_every_connection_gets_everything_once() -> None:
    async def scenario() -> None:
        async with site(2, "a", "b", "c") as made:
            reader = Reader(request())
            await reader.ask(made.gateways["a"], 3)
            for turn in range(40):
                await reader.resume(made.gateways["abc"[turn % 3]], 1 + turn % 4)
            assert complete(reader)

    play(scenario)


def test_several_choices_of_several_prompts() -> None:
    async def scenario() -> None:
        prompts: list[str | list[int]] = [[1], [2, 3]]
        asked = msgspec.structs.replace(request(sampling=Sampling(0.0)), prompts=prompts, num_choices=2)
        async with site(2, "a", "b") as made:
            for number, events in enumerate((0, 5, 30, 100, 158, 161)):
                reader = Reader(asked, number)
                await reader.ask(made.gateways["a"], events)
                await reader.resume(made.gateways["b"])
                first, second = text([1]), text([2, 3])
                assert reader.texts == {0: first, 1: first, 2: second, 3: second}
                assert reader.usage is not None
                assert reader.usage["completion_tokens"] == 4 * TOKENS

    play(scenario)


@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.parametrize("events", [0, 1, 20])
def test_a_space_between_prompt_and_answer_is_kept(name: str, events: int) -> None:
    """The fake's decoder drops one at a text's start."""

    async def scenario() -> None:
        prompt = [400, 600]
        assert text(prompt)[0] == " "
        asked = msgspec.structs.replace(request(keeps_running=True), prompts=[prompt])
        async with site(1, "a", "b") as made:
            reader = Reader(asked)
            await reader.ask(made.gateways["a"], events)
            for most_events in (1, TOKENS + 2):
                await reader.resume(made.gateways[name], most_events)
            assert reader.texts == {0: text(prompt)}

    play(scenario)


@pytest.mark.parametrize("events", [0, 4, 8, 11, 12])
def test_stop_strings_hold_over_the_break(events: int) -> None:
    async def scenario() -> None:
        stop = text()[9:12]
        async with site(1, "a", "b") as made:
            reader = Reader(request(stop=[stop, text()[4:6] + "no"]))
            await reader.ask(made.gateways["a"], events)
            await reader.resume(made.gateways["b"])
            assert reader.texts == {0: text()[:9]}
            assert reader.reasons == {0: "stop"}
            assert reader.usage is not None
            assert reader.usage["completion_tokens"] == 12

    play(scenario)


@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.parametrize("events", [0, 5, 9, 10])
def test_the_token_that_ends_an_answer_is_not_shown_after_the_break(name: str, events: int) -> None:
    async def scenario() -> None:
        async with site(1, "a", "b") as made:
            reader = Reader(request(stop_token_ids=[token_at(PROMPT, 9)], keeps_running=True))
            await reader.ask(made.gateways["a"], events)
            await asyncio.sleep(1.0)
            await reader.resume(made.gateways[name])
            assert (reader.texts, reader.reasons) == ({0: text(tokens=9)}, {0: "stop"})
            assert reader.usage is not None
            assert reader.usage["completion_tokens"] == 10

    play(scenario)


@pytest.mark.parametrize("events", [0, 1, 20, 39])
def test_log_probabilities_are_kept(events: int) -> None:
    async def scenario() -> None:
        async with site(1, "a", "b") as made:
            reader = Reader(request(sampling=Sampling(0.0, logprobs=1)))
            await reader.ask(made.gateways["a"], events)
            await reader.resume(made.gateways["b"])
            assert complete(reader)
            assert reader.scores == {0: [score_at(index) for index in range(TOKENS)]}
            assert reader.offsets == {0: list(range(TOKENS))}

    play(scenario)


def test_a_deadline_holds_over_the_break() -> None:
    async def scenario() -> None:
        async with site(1, "a", "b") as made:
            asked = request(targets=Targets(deadline_s=3.0))
            reader = Reader(asked)
            await reader.ask(made.gateways["a"], 5)
            await asyncio.sleep(5.0)
            await reader.resume(made.gateways["b"])
            assert reader.details == {0: {"type": "deadline"}}
            assert 5 <= len(reader.texts[0]) < TOKENS
            assert text().startswith(reader.texts[0])

    play(scenario)


@pytest.mark.parametrize("name", ["a", "b"])
def test_a_new_connection_interrupts_the_one_before(name: str) -> None:
    async def scenario() -> None:
        async with site(1, "a", "b") as made:
            first = Reader(request())
            reading = asyncio.create_task(first.ask(made.gateways["a"]))
            await asyncio.sleep(10 * STEP_S)
            second = Reader(request())
            await second.resume(made.gateways[name])
            with pytest.raises(Interrupted):
                await reading
            assert complete(second)
            assert text().startswith(first.texts[0])
            how = "taken over" if name == "a" else "adopted"
            assert f'resumed_calls_total{{how="{how}"}} 1.0' in made.gateways[name].metrics.render().decode()
            recomputed = "put_backs_total{" in made.gateways["a"].metrics.render().decode()
            assert not recomputed

    play(scenario)


@pytest.mark.parametrize("names", ["aa", "ab", "bb", "bc"])
@pytest.mark.parametrize("gap_s", [0.0, 0.001, 0.03])
def test_of_clients_that_race_for_a_stream_one_gets_it_and_nobody_gets_anything_twice(
    names: str, gap_s: float
) -> None:
    async def scenario() -> None:
        async with site(2, "a", "b", "c") as made:
            await Reader(request()).ask(made.gateways["a"], 7)
            racers = [Reader(request()) for _ in range(6)]
            tasks = []
            for at, racer in enumerate(racers):
                tasks.append(asyncio.create_task(racer.resume(made.gateways[names[at % 2]])))
                await asyncio.sleep(gap_s)
            endings = await asyncio.gather(*tasks, return_exceptions=True)
            assert sum(map(complete, racers)) == 1
            for racer, ending in zip(racers, endings, strict=True):
                assert complete(racer) == (ending is None)
                assert isinstance(ending, Interrupted | None)
                assert text().startswith(racer.texts.get(0, ""))

    play(scenario)


def test_another_key_an_unknown_stream_and_an_expired_one_are_the_same_404() -> None:
    async def scenario() -> None:
        async with site(1, "a", "b") as made:
            owner = Reader(request(), key="alice")
            reading = asyncio.create_task(owner.ask(made.gateways["a"], 20))
            await asyncio.sleep(10 * STEP_S)
            told = set()
            for other in (Reader(request(), key="mallory"), Reader(request()), Reader(request(), 99, key="alice")):
                for world in made.gateways.values():
                    with pytest.raises(NotFound) as refused:
                        await other.resume(world)
                    told.add((refused.value.message, refused.value.code))
            await reading
            assert len(owner.texts[0]) == 20, "nobody disturbed it"
            await asyncio.sleep(61.0)
            with pytest.raises(NotFound) as refused:
                await owner.resume(made.gateways["a"])
            told.add((refused.value.message, refused.value.code))
            assert len(told) == 1

    play(scenario)


def test_a_stream_that_is_adopted_counts_as_it_did() -> None:
    """Its reservation goes with it: no second request, no second stream, and all tokens in the end."""

    async def scenario() -> None:
        async with site(1, "a", "b") as made:
            reader = Reader(request(), key="acme", quota=Quota(10, 1000, 1))
            reading = asyncio.create_task(reader.ask(made.gateways["a"]))
            await asyncio.sleep(10 * STEP_S)
            await vanish(made, "a", reading)
            resuming = asyncio.create_task(reader.resume(made.gateways["b"]))
            await asyncio.sleep(10 * STEP_S)
            with pytest.raises(OverQuota, match="1 requests at a time"):
                await Reader(request(), 2, "acme", reader.tenant.quota).ask(made.gateways["b"])
            await resuming
            assert complete(reader)
            await made.gateways["b"].origin.idle()
            assert await used(made.tenants) == (1, 3 + TOKENS)

    play(scenario)


@pytest.mark.parametrize("name", ["a", "b"])
def test_a_stream_that_had_ended_is_gone_on_with_within_the_quota_only(name: str) -> None:
    """A client that leaves has paid for what it got; who comes back for the rest asks for a request more."""

    async def scenario() -> None:
        quota = Quota(10, 1000, 1)
        async with site(1, "a", "b") as made:
            reader, other = Reader(request(), 1, "acme", quota), Reader(request(), 2, "acme", quota)
            await reader.ask(made.gateways["a"], 5)
            await asyncio.sleep(1.0)
            _, paid = await used(made.tenants)
            asking = asyncio.create_task(other.ask(made.gateways["a"]))
            await asyncio.sleep(10 * STEP_S)
            with pytest.raises(OverQuota, match="1 requests at a time"):
                await reader.resume(made.gateways[name])
            await asking
            await made.gateways["a"].origin.idle()
            await reader.resume(made.gateways[name])
            assert complete(reader) and complete(other)
            await made.gateways[name].origin.idle()
            assert await used(made.tenants) == (3, paid + 2 * (3 + TOKENS))

    play(scenario)


@pytest.mark.parametrize("adopt_s", [0.0, 0.05])
@pytest.mark.parametrize("gap_s", [0.0, 0.02])
def test_connections_that_race_for_a_stream_leave_one_reservation(gap_s: float, adopt_s: float) -> None:
    """One comes while the quota is asked for the other, or while the other adopts."""

    async def scenario() -> None:
        async with site(1, "a", "b") as made:
            quota = Quota(10, 1000, 1)
            reader = Reader(request(), 1, "acme", quota)
            reading = asyncio.create_task(reader.ask(made.gateways["a"]))
            await asyncio.sleep(10 * STEP_S)
            await vanish(made, "a", reading)
            world = made.gateways["b"]
            store: Any = world.store
            tenants: Any = world.tenants
            tenants.delays_s["reserve"] = 0.05
            store.delays_s.update(adopt=adopt_s, cancel=adopt_s)
            racers = [Reader(request(), 1, "acme", quota) for _ in range(3)]
            racing = []
            for racer in racers:
                racing.append(asyncio.create_task(racer.resume(world)))
                await asyncio.sleep(gap_s)
            endings = await asyncio.gather(*racing, return_exceptions=True)
            assert sum(map(complete, racers)) == 1
            for ending in endings:
                assert isinstance(ending, Interrupted | None)
            await world.origin.idle()
            assert await used(made.tenants) == (1, 3 + TOKENS)
            other = Reader(request(), 2, "acme", quota)
            await other.ask(world)
            assert complete(other), "the stream is free again"
            assert _count(world, "queued_tickets") == 0

    play(scenario)


def test_a_connection_that_stood_still_ends_nothing_of_what_goes_on_here_again() -> None:
    """Another gateway had adopted the stream meanwhile, and this one adopted it back."""

    async def scenario() -> None:
        async with site(1, "a", "b") as made:
            a, b = made.gateways["a"], made.gateways["b"]
            quota = Quota(10, 1000, 1)
            reader = Reader(msgspec.structs.replace(request(), max_tokens=300), 1, "acme", quota)
            is_over = asyncio.Event()

            async def stand_still() -> None:
                opening = a.origin.open(reader._request, reader.call_id, asyncio.get_running_loop().time())
                with contextlib.suppress(Interrupted):
                    async with opening as call:
                        await call.read(lambda deltas: is_over.wait)

            standing = asyncio.create_task(stand_still())
            await asyncio.sleep(10 * STEP_S)
            await reader.resume(b, 10)
            await asyncio.sleep(0.1)
            resuming = asyncio.create_task(reader.resume(a))
            await asyncio.sleep(10 * STEP_S)
            is_over.set()
            await standing
            await asyncio.sleep(10 * STEP_S)
            with pytest.raises(OverQuota, match="1 requests at a time"):
                await Reader(request(), 2, "acme", quota).ask(a)
            await resuming
            assert reader.texts == {0: text(tokens=300)}

    play(scenario)


def test_what_is_complete_is_read_on_without_a_quota() -> None:
    async def scenario() -> None:
        async with site(1, "a", "b") as made:
            reader = Reader(request(), key="acme", quota=Quota(requests_per_minute=1))
            await reader.ask(made.gateways["a"], 5)
            again = Reader(request(keeps_running=True), 2, "other", quota=Quota(requests_per_minute=1))
            await again.ask(made.gateways["a"], 5)
            await asyncio.sleep(60 * STEP_S)
            await again.resume(made.gateways["b"])
            assert complete(again)
            with pytest.raises(OverQuota):
                await reader.resume(made.gateways["b"])

    play(scenario)


def test_a_record_lives_while_its_stream_does_and_its_time_afterwards() -> None:
    async def scenario() -> None:
        async with site(1, "a", "b", config=_config(ttl_s=2.0)) as made:
            asked = msgspec.structs.replace(request(), max_tokens=500)
            reader = Reader(asked)
            await reader.ask(made.gateways["a"], 400)
            await asyncio.sleep(1.5)
            await reader.resume(made.gateways["b"], 10)
            assert reader.texts[0] == text(tokens=410)
            await asyncio.sleep(2.5)
            with pytest.raises(NotFound):
                await reader.resume(made.gateways["b"])

    play(scenario)


def test_a_request_that_is_to_keep_running_does() -> None:
    async def scenario() -> None:
        async with site(1, "a", "b") as made:
            one, two = Reader(request(keeps_running=True), 1), Reader(request(keeps_running=True), 2)
            await one.ask(made.gateways["a"], 3)
            await two.ask(made.gateways["a"], 3)
            await asyncio.sleep(10 * STEP_S)
            await two.resume(made.gateways["a"])
            assert complete(two)
            assert await made.gateways["a"].is_idle()
            before = made.backends[0].arranged_bytes[:]
            await one.resume(made.gateways["b"])
            assert complete(one)
            assert made.backends[0].arranged_bytes == before, "it had been drawn to its end"

    play(scenario)


def test_a_store_that_forgot_everything_learns_it_again() -> None:
    async def scenario() -> None:
        async with site(1, "a", "b") as made:
            asked = msgspec.structs.replace(request(), max_tokens=400)
            reader = Reader(asked)
            reading = asyncio.create_task(reader.ask(made.gateways["a"]))
            await asyncio.sleep(0.5)
            MemoryStore.__init__(made.store, clock=clock.of_store())
            await asyncio.sleep(2.5)
            await vanish(made, "a", reading)
            await reader.resume(made.gateways["b"])
            assert reader.texts == {0: text(tokens=400)}

    play(scenario)


def test_a_log_that_lost_its_end_is_drawn_again() -> None:
    async def scenario() -> None:
        async with site(1, "a", "b") as made:
            reader = Reader(request())
            await reader.ask(made.gateways["a"], 30)
            await asyncio.sleep(0.1)
            del made.store._records._kept[reader.call_id].log[100:]
            await reader.resume(made.gateways["b"])
            assert complete(reader)

    play(scenario)


@pytest.mark.parametrize("mode", [Mode.STRICT, Mode.FAST])
def test_without_the_store_streams_go_on_and_only_resuming_waits(mode: Mode) -> None:
    async def scenario() -> None:
        async with site(1, "a", "b", config=_config(mode=mode)) as made:
            (driver,) = [name for name, led in made.led().items() if led]
            line: Any = made.gateways[driver].store
            reader = Reader(request())
            reading = asyncio.create_task(reader.ask(made.gateways[driver]))
            await asyncio.sleep(10 * STEP_S)
            line.is_cut = True
            begun_s = asyncio.get_running_loop().time()
            with pytest.raises(Unavailable):
                await Reader(request(), 9).resume(made.gateways[driver])
            await reading
            assert complete(reader)
            assert asyncio.get_running_loop().time() - begun_s < TOKENS * STEP_S
            line.is_cut = False
            await asyncio.sleep(1.0)
            again = Reader(request())
            await again.resume(made.gateways["a" if driver == "b" else "b"])
            assert complete(again), "what the store had missed it was told afterwards"

    play(scenario)


def test_an_origin_that_was_cut_off_and_superseded_does_no_harm() -> None:
    async def scenario() -> None:
        async with site(2, "a", "b") as made:
            readers = [Reader(request(), number) for number in range(8)]
            reading = [asyncio.create_task(reader.ask(made.gateways["a"])) for reader in readers]
            await asyncio.sleep(10 * STEP_S)
            line: Any = made.gateways["a"].store
            line.is_cut = True
            again = [Reader(request(), number) for number in range(8)]
            resuming = [asyncio.create_task(reader.resume(made.gateways["b"])) for reader in again]
            await asyncio.sleep(5 * STEP_S)
            for task in reading[:4]:
                task.cancel()
            await asyncio.sleep(3 * STEP_S)
            line.is_cut = False
            await asyncio.gather(*resuming)
            assert all(map(complete, again))
            await asyncio.gather(*reading, return_exceptions=True)
            assert all(text().startswith(reader.texts.get(0, "")) for reader in readers)

    play(scenario)


def test_a_stream_cut_at_the_end_of_the_grace_period_goes_on_elsewhere() -> None:
    async def scenario() -> None:
        async with site(1, "a", "b") as made:
            reader = Reader(request())
            reading = asyncio.create_task(reader.ask(made.gateways["a"]))
            await asyncio.sleep(10 * STEP_S)
            made.gateways["a"].origin.is_draining = True
            with pytest.raises(Unavailable):
                await Reader(request()).resume(made.gateways["a"])
            made.gateways["a"].origin.cut()
            await made.gateways["a"].origin.idle()
            with pytest.raises(Interrupted):
                await reading
            await reader.resume(made.gateways["b"])
            assert complete(reader)

    play(scenario)


def test_what_is_off_too_long_or_in_one_piece_is_not_recorded() -> None:
    async def scenario() -> None:
        for config in (_config(mode=Mode.OFF), _config(max_bytes=20), _config(max_bytes=400)):
            async with site(1, "a", "b", config=config) as made:
                reader = Reader(request())
                whole = Reader(request())
                await reader.ask(made.gateways["a"])
                assert complete(reader)
                for world in made.gateways.values():
                    with pytest.raises(NotFound):
                        await whole.resume(world)
        async with site(1, "a") as made:
            await made.gateways["a"].answer(PROMPT, call_id=f"{1:032x}")
            with pytest.raises(NotFound):
                await Reader(request()).resume(made.gateways["a"])

    play(scenario)


def test_a_request_that_kills_engines_does_not_come_in_again_by_resuming() -> None:
    async def scenario() -> None:
        async with site(1, "a", "b") as made:
            asked = msgspec.structs.replace(request(), max_tokens=500)
            reader, name = Reader(asked), "a"
            connecting = reader.ask(made.gateways["a"])
            for name in "bab":
                reading = asyncio.create_task(connecting)
                await asyncio.sleep(0.5)
                made.backends[0].kill()
                await asyncio.sleep(1.0)
                reading.cancel()
                endings = await asyncio.gather(reading, return_exceptions=True)
                connecting = reader.resume(made.gateways[name])
            assert isinstance(endings[0], ApiError)
            assert endings[0].code == "poisoned"
            with pytest.raises(NotFound):
                await connecting

    play(scenario)


@pytest.mark.parametrize("damage", [b"", b"\x00", b"{}", b"\x81\xa7request\x80"])
def test_a_spoiled_record_is_unknown(damage: bytes) -> None:
    async def scenario() -> None:
        async with site(1, "a") as made:
            reader = Reader(request())
            await reader.ask(made.gateways["a"], 10)
            await asyncio.sleep(0.1)
            made.store._records._kept[reader.call_id].content = damage
            with pytest.raises(NotFound):
                await reader.resume(made.gateways["a"])

    play(scenario)


@pytest.mark.parametrize("seed", range(4))
def test_a_spoiled_log_is_read_as_far_as_it_can_be(seed: int) -> None:
    async def scenario() -> None:
        rng = random.Random(seed)
        async with site(1, "a") as made:
            reader = Reader(request())
            await reader.ask(made.gateways["a"], 10)
            await asyncio.sleep(0.1)
            log = made.store._records._kept[reader.call_id].log
            log[30:] = b"\xff" + rng.randbytes(rng.randrange(100))
            with contextlib.suppress(NotFound):
                await Reader(request()).resume(made.gateways["a"])
                again = Reader(request())
                await again.resume(made.gateways["a"])
                assert complete(again)

    play(scenario)


def test_positions_must_be_of_as_many_choices() -> None:
    async def scenario() -> None:
        async with site(1, "a") as made:
            reader = Reader(request())
            await reader.ask(made.gateways["a"], 10)
            reader.last_id = f"{reader.call_id}:1.1/1.1"
            with pytest.raises(BadRequest):
                await reader.resume(made.gateways["a"])

    play(scenario)


def _count(world: World, metric: str) -> float:
    """Over all labels."""
    counts = re.findall(rf"^bucketserve_{metric}{{.*}} (.*)$", world.metrics.render().decode(), re.M)
    return sum(map(float, counts))


def _config(**fields: Any) -> Any:
    return msgspec.structs.replace(ORIGIN, resume=recorder.Config(**fields))


def test_a_token_waits_for_its_log_20_ms_at_most() -> None:
    """The store answers after `delay_s`; what comes when."""

    async def gaps(world: World, delay_s: float) -> list[float]:
        store: Any = world.store
        store.delays_s["log"] = delay_s
        times = []
        now_s = asyncio.get_running_loop().time
        asked = msgspec.structs.replace(request(), stream=True)
        async with world.origin.open(asked, f"{int(delay_s * 1e6):032x}", now_s()) as call:
            await call.read(lambda deltas: times.append(now_s()))
        return [b - a for a, b in itertools.pairwise(times)]

    async def scenario() -> None:
        async with site(1, "a") as made:
            quick = await gaps(made.gateways["a"], 0.005)
            assert max(quick) < 3 * STEP_S
            slow = await gaps(made.gateways["a"], 0.2)
            assert max(slow) < 0.02 + 3 * STEP_S
            assert sorted(slow)[len(slow) // 2] < 1.5 * STEP_S, "after the first, nothing waits"

    play(scenario)
