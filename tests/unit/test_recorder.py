"""Logs of calls: what they say can be read again, and few writes bring them to the store."""

import asyncio
from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from gateway import token_log
from gateway.metrics import Metrics
from gateway.ports import LogWrite, Record, Written
from gateway.recorder import Config, Mode, Recorder, Recording
from gateway.request import FinishReason, TokenLogprob
from gateway.store.memory import MemoryStore
from gateway.token_log import CLOSED, Closed, Died, Ended, Entry, Token
from tests.unit.fakes import clock
from tests.unit.fakes.line import Line

choices = st.integers(0, 127)
tokens = st.integers(0, 2**31 - 1)
scores = st.floats(allow_nan=False)
alternatives = st.lists(st.tuples(tokens, scores), max_size=20)


@st.composite
def entries(draw: Any) -> tuple[bytes, Entry]:
    choice, token = draw(choices), draw(tokens)
    match draw(st.integers(0, 4)):
        case 0:
            return token_log.drawn(choice, token, None), Token(choice, token, None)
        case 1:
            logprob = TokenLogprob(token, draw(scores), draw(alternatives))
            return token_log.drawn(choice, token, logprob), Token(choice, token, logprob)
        case 2:
            ends = [(FinishReason.STOP, ""), (FinishReason.LENGTH, ""), (FinishReason.LENGTH, "deadline")]
            reason, detail = draw(st.sampled_from(ends))
            return token_log.ended(choice, reason, detail), Ended(choice, reason, detail)
        case 3:
            return token_log.died(choice, 2), Died(choice, 2)
    return CLOSED, Closed()


@given(st.lists(entries(), max_size=20), st.integers(0, 400))
def test_a_log_says_what_was_written_as_far_as_it_goes(written: list[tuple[bytes, Entry]], size: int) -> None:
    log = b"".join(raw for raw, _ in written)
    found = list(token_log.read(log))
    assert [entry for _, entry in found] == [entry for _, entry in written]
    assert not found or found[-1][0] == len(log)
    assert list(token_log.read(log[:size])) == [(end, entry) for end, entry in found if end <= size]


@given(st.binary(max_size=200))
def test_any_bytes_are_read_to_where_they_make_sense(log: bytes) -> None:
    assert all(end <= len(log) for end, _ in token_log.read(log))


class Slow(MemoryStore):
    """Writes records and logs in 10 ms; how many at once."""

    def __init__(self) -> None:
        super().__init__(clock.of_store())
        self.sizes: list[int] = []

    async def keep(self, records: Sequence[Record], ttl_s: float) -> list[Written]:
        self.sizes.append(len(records))
        await asyncio.sleep(0.01)
        return await super().keep(records, ttl_s)

    async def log(self, writes: Sequence[LogWrite], ttl_s: float) -> list[Written]:
        self.sizes.append(len(writes))
        await asyncio.sleep(0.01)
        return await super().log(writes, ttl_s)


def recorder(store: Any, **config: Any) -> Recorder:
    return Recorder(store, Config(**config), Metrics(CollectorRegistry(), "m"), lambda recording: None)


def recording(recorder: Recorder, call_id: str) -> Recording:
    made = Recording(recorder, call_id, "", 0.0)
    recorder.begin(made)
    recorder.keep(made, b"content")
    return made


def test_while_a_write_is_under_way_the_next_one_grows() -> None:
    async def scenario() -> None:
        store = Slow()
        made = recorder(store)
        running = asyncio.create_task(made.run())
        recordings = [recording(made, str(number)) for number in range(50)]
        for one in recordings:
            one.append(token_log.drawn(0, 0, None))
        await asyncio.sleep(0.001)
        for one in recordings:
            for token in range(9):
                one.append(token_log.drawn(0, token, None))
                await asyncio.sleep(0)
        await asyncio.sleep(0.1)
        assert made.is_empty
        assert store.sizes == [50, 50]
        assert all(one.written == len(one.log) > 0 for one in recordings)
        running.cancel()

    clock.run(scenario())


def test_a_record_goes_with_its_first_token_or_when_all_are_prolonged_and_not_at_all_if_it_ends_before() -> None:
    async def scenario() -> None:
        store = Slow()
        made = recorder(store)
        running = asyncio.create_task(made.run())
        drawing, waiting, ended = (recording(made, name) for name in ("drawing", "waiting", "ended"))
        made.end(ended)
        await asyncio.sleep(0.1)
        assert store.sizes == []
        drawing.append(token_log.drawn(0, 0, None))
        await asyncio.sleep(0.1)
        assert (drawing.is_kept, waiting.is_kept, drawing.written) == (True, False, len(drawing.log))
        made.refresh()
        await asyncio.sleep(0.1)
        assert (waiting.is_kept, ended.is_kept) == (True, False)
        running.cancel()

    clock.run(scenario())


def test_what_the_store_never_heard_of_is_given_up_when_it_would_have_expired() -> None:
    async def scenario() -> None:
        line = Line(MemoryStore(clock.of_store()))
        made = recorder(line, mode=Mode.FAST, ttl_s=10.0)
        running = asyncio.create_task(made.run())
        line.is_cut = True
        ended, live = recording(made, "ended"), recording(made, "live")
        for one in (ended, live):
            one.append(token_log.drawn(0, 0, None))
        made.end(ended)
        await asyncio.sleep(11.0)
        line.is_cut = False
        await asyncio.sleep(1.0)
        assert (ended.is_kept, live.is_kept) == (False, True)
        assert made.is_empty
        running.cancel()

    clock.run(scenario())
