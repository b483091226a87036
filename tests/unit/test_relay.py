"""What gateways write for each other: of several versions side by side, and hostile until parsed."""

import asyncio
import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from gateway import card, standing
from gateway.card import Cards, Word
from gateway.metrics import Metrics
from gateway.policy.batch import Unstarted
from gateway.policy.pace import Pace
from gateway.relay import MAX_TOKENS, Letter, Relay, RemoteOrigin
from gateway.request import Departed, Drawn, Profile, ServiceClass, Ticket, TokenLogprob, Work
from gateway.standing import Standing
from gateway.store.memory import MemoryStore
from tests.unit.fakes import clock
from tests.unit.fakes.line import Line
from triton_backend.contract import End

NAMES = {
    Letter: "sender drawn departed claimed cancelled wakes",
    Drawn: "ticket attempt index token logprob",
    Departed: "ticket attempt end detail",
    TokenLogprob: "token logprob alternatives",
    Standing: "model layout telemetry pace work_rate rows has_room tpot_s unstarted",
    Word: "demand promised end_in_s",
    Work: "prompt min_tokens stop_ids sampling",
    Profile: "expected_tokens upper_tokens",
    Ticket: "id attempt origin tenant service_class prompt_tokens index max_tokens profile bin ttft_s tpot_s "
    "slack_s cost_s seconds prefill_s size_bytes deaths evictions score",
}


@pytest.mark.parametrize("type_", NAMES, ids=lambda type_: type_.__name__)
def test_fields_are_only_ever_added_and_with_defaults(type_: type[msgspec.Struct]) -> None:
    known = NAMES[type_].split()
    fields = msgspec.structs.fields(type_)
    assert [field.encode_name for field in fields if field.encode_name in known] == known
    assert not [field.name for field in fields if field.required and field.encode_name not in known]


def test_what_a_later_version_adds_is_skipped() -> None:
    raw = msgspec.msgpack.encode({"sender": "g", "wakes": True, "news": [1, {"x": None}]})
    assert msgspec.msgpack.decode(raw, type=Letter) == Letter("g", wakes=True)


def test_a_pace_and_what_is_unstarted_keep_their_form() -> None:
    assert msgspec.to_builtins(Pace(1.0, 2.0, 3.0)) == {
        "fixed_s": 1.0,
        "per_row_s": 2.0,
        "prefill_tokens_per_s": 3.0,
    }
    assert msgspec.to_builtins(Unstarted(1.0, 2)) == (1.0, 2)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_standing_or_none_and_a_card_or_left_out(raw: bytes) -> None:
    standing.decode(raw)
    cards = Cards()
    cards.read([raw], 0.0)
    cards.demand(ServiceClass.DEFAULT, 0.0)


def test_deep_nesting_is_no_card_and_no_standing() -> None:
    deep = b"\x91" * 100_000
    assert standing.decode(deep) is None
    cards = Cards()
    cards.read([deep, card.encode({})], 0.0)
    assert cards.demand(ServiceClass.DEFAULT, 0.0) == []


def relay(name: str, store: MemoryStore | Line) -> Relay:
    return Relay(name, store, Metrics(CollectorRegistry(), "fake"))


def test_letters_written_while_one_is_on_its_way_go_together_and_in_order() -> None:
    async def scenario() -> None:
        store = MemoryStore(clock=clock.of_store())
        line = Line(store)
        line.is_cut = True
        sender, reader = relay("a", line), relay("b", store)
        read: list[Letter] = []
        origin = RemoteOrigin(sender, "b")
        async with running(sender, lambda letter: None), running(reader, read.append):
            for index in range(5):
                origin.receive([Drawn("call/0", 0, index, index, None)], [])
                await asyncio.sleep(1)
            assert not read
            line.is_cut = False
            await asyncio.sleep(1)
            origin.claimed([("call/1", 0)])
            origin.receive([], [Departed("call/0", 0, End.STOP)])
            await store.post({"b": b"\xc1 nonsense"})
            sender.to("b").wakes = True
            await asyncio.sleep(1)
        assert [drawn.index for drawn in read[0].drawn] == [*range(5)]
        assert read[1:] == [Letter("a", [], [Departed("call/0", 0, End.STOP)], [("call/1", 0)], [], True)]

    clock.run(scenario())


@pytest.mark.parametrize("tokens", [0, 1, 256, 257, 512, 1000])
def test_a_long_letter_is_handed_over_in_parts(tokens: int) -> None:
    drawn = [Drawn("call/0", 0, index, 7, None) for index in range(tokens)]
    letter = Letter("g", drawn, [Departed("call/0", 0, End.STOP)], [("call/0", 0)], [("call/1", 0)], True)
    parts = list(letter.parts())
    assert all(len(part.drawn) <= 256 for part in parts)
    assert [one for part in parts for one in part.drawn] == drawn
    assert [part.claimed for part in parts] == [[("call/0", 0)], *([[]] * (len(parts) - 1))]
    rest = [(part.departed, part.cancelled, part.wakes) for part in parts]
    assert rest == [([], [], False)] * (len(parts) - 1) + [(letter.departed, letter.cancelled, True)]


def test_what_a_lost_store_keeps_from_going_is_bounded() -> None:
    async def scenario() -> None:
        store = MemoryStore(clock=clock.of_store())
        line = Line(store)
        line.is_cut = True
        sender, read = relay("a", line), list[Letter]()
        tokens = [Drawn("call/0", 0, index, 7, None) for index in range(MAX_TOKENS // 4)]
        async with running(sender, lambda letter: None), running(relay("b", store), read.append):
            for _ in range(20):
                RemoteOrigin(sender, "b").receive(tokens, [Departed("call/0", 0, None)])
                await asyncio.sleep(1)
            line.is_cut = False
            await asyncio.sleep(1)
        (letter,) = read
        assert len(letter.departed) == 20
        assert len(letter.drawn) <= MAX_TOKENS

    clock.run(scenario())


@contextlib.asynccontextmanager
async def running(relay: Relay, deliver):  # type: ignore[no-untyped-def]
    task = asyncio.create_task(relay.run(deliver))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
