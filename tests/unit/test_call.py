"""How a call's reader gets what is new, on virtual time."""

import asyncio
from types import SimpleNamespace
from typing import cast

import pytest

from gateway.call import Live, OpenCall
from gateway.errors import Interrupted
from gateway.ports import Later
from gateway.request import Delta, Request
from tests.unit.fakes import clock
from tests.unit.fakes.calls import delta


class Reader:
    """Reads a call of one choice in a task; busy after each delta if it is told to be, until `rested` is set."""

    def __init__(self, is_slow: bool = False, failure: Exception | None = None) -> None:
        self.taken: list[str] = []
        """Texts, of deltas that came together joined by a plus; "" for nothing."""
        self.rested = asyncio.Event()
        self.call = OpenCall("call", Request(model="m", prompts=[[1]]), 0.0, [1], [])
        self.live = cast(Live, SimpleNamespace(ticket=SimpleNamespace(id="call/0")))
        self.call.live["call/0"] = self.live
        self._is_slow = is_slow
        self._failure = failure
        self.reading = asyncio.create_task(self.call.read(self._take))

    def _take(self, deltas: list[Delta]) -> Later | None:
        if self._failure is not None:
            raise self._failure
        self.taken.append("+".join(one.text for one in deltas))
        return self.rested.wait if self._is_slow and deltas else None

    def push(self, *texts: str) -> None:
        self.call.replay([(0, delta(text)) for text in texts])


def test_what_is_new_is_taken_before_anything_else_happens() -> None:
    async def read() -> None:
        reader = Reader()
        reader.push("before", "anyone reads")
        await asyncio.sleep(1)
        assert reader.taken == ["before+anyone reads"]
        reader.push("now")
        assert reader.taken[1:] == ["now"]
        reader.call.nudge()
        assert reader.taken[2:] == [""]
        reader.call.ended(reader.live)
        await reader.reading

    clock.run(read())


def test_a_reader_that_has_to_wait_gets_the_rest_afterwards() -> None:
    async def read() -> None:
        reader = Reader(is_slow=True)
        await asyncio.sleep(1)
        reader.push("first")
        await asyncio.sleep(1)
        reader.push("second")
        reader.push("third")
        reader.call.nudge()
        reader.call.ended(reader.live)
        await asyncio.sleep(1)
        assert reader.taken == ["first"]
        assert not reader.reading.done()
        reader.rested.set()
        await reader.reading
        assert reader.taken == ["first", "second+third"]

    clock.run(read())


def test_others_have_their_turn_while_much_is_read_at_once() -> None:
    async def read() -> None:
        reader = Reader()
        reader.push(*map(str, range(150)))
        reader.call.ended(reader.live)
        seen = set()
        while not reader.reading.done():
            await asyncio.sleep(0)
            seen.add(len(reader.taken))
        assert seen >= {1, 2, 3}
        assert max(taken.count("+") for taken in reader.taken) < 64
        assert "+".join(reader.taken).split("+") == list(map(str, range(150)))

    clock.run(read())


def test_what_a_reader_raises_is_its_own() -> None:
    async def read() -> None:
        reader = Reader(failure=ZeroDivisionError())
        await asyncio.sleep(1)
        reader.push("whoever brings this has others to serve")
        with pytest.raises(ZeroDivisionError):
            await reader.reading

    clock.run(read())


@pytest.mark.parametrize("is_slow", [False, True])
def test_a_failure_comes_after_what_was_there_before(is_slow: bool) -> None:
    async def read() -> None:
        reader = Reader(is_slow)
        await asyncio.sleep(1)
        reader.push("first")
        reader.push("second")
        reader.call.fail(Interrupted("elsewhere", retry_after_s=1.0))
        reader.rested.set()
        with pytest.raises(Interrupted):
            await reader.reading
        assert reader.taken == ["first", "second"]

    clock.run(read())


def test_whoever_stops_reading_gets_no_more() -> None:
    async def read() -> None:
        reader = Reader()
        await asyncio.sleep(1)
        reader.reading.cancel()
        await asyncio.wait([reader.reading])
        reader.push("nobody is here")
        reader.call.nudge()
        reader.call.ended(reader.live)
        assert reader.taken == []

    clock.run(read())
