"""Reading on at `/v1/streams/{id}` or with the same POST, on the wire."""

import asyncio
import gc
import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import BadRequest, Interrupted, NotFound
from gateway.event_stream import EventStream
from gateway.keyring import Keyring
from gateway.middleware import Exchange
from gateway.openai import answer, position
from gateway.openai.position import Position
from gateway.request import Delta, FinishReason, Request, TokenLogprob
from tests.bad_inputs import CHAT, TEXT, post
from tests.unit.fakes.calls import MODEL, ScriptedCall, ScriptedCalls, Step, delta
from tests.unit.fakes.front import visit
from tests.unit.fakes.tokenizer import token_text

TELL = {"model": MODEL, "prompt": "hi", "stream": True, "stream_options": {"include_usage": True}}
PIECES = ["Hé", "llo", "", " 🦊", "🇫🇷 wörld", "字"]


def script(choices: int = 1) -> list[Step]:
    """A wake-up a piece, for every choice."""
    steps: list[Step] = []
    for number, piece in enumerate(PIECES, 1):
        end = FinishReason.STOP if number == len(PIECES) else None
        chars = sum(map(len, PIECES[:number]))
        steps.append([delta(piece, number, choice=i, chars=chars, end=end) for i in range(choices)])
    return steps


async def events(url: str, path: str, body: Any = None, **headers: str) -> list[bytes]:
    headers = {"Accept": "text/event-stream", **headers}
    async with (
        aiohttp.ClientSession() as session,
        session.request("GET" if body is None else "POST", url + path, json=body, headers=headers) as response,
    ):
        assert response.status == 200, await response.text()
        assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        return [event for event in (await response.read()).split(b"\n\n") if event]


def texts(seen: Sequence[bytes]) -> dict[int, str]:
    found: dict[int, str] = {}
    for event in seen:
        data = event.partition(b"data: ")[2]
        for choice in [] if data == b"[DONE]" else json.loads(data)["choices"]:
            said = choice["text"] if "text" in choice else choice["delta"].get("content", "")
            found[choice["index"]] = found.get(choice["index"], "") + said
    return found


def id_of(event: bytes) -> str:
    return event.split(b"\n")[0].removeprefix(b"id: ").decode()


def test_ids_are_for_those_who_read_events() -> None:
    async def scenario(url: str) -> None:
        plain = await events(url, TEXT, TELL, Accept="*/*")
        assert all(event.startswith(b"data: ") for event in plain)
        for headers in ({}, {"Accept": "*/*", "x-keep-running": "true"}):
            with_ids = await events(url, TEXT, TELL, **headers)
            assert all(event.startswith(b"id: ") for event in with_ids[:-1])
            assert texts(with_ids) == texts(plain)

    visit(scenario, ScriptedCalls(script()))


def test_a_stream_that_ended_is_gone_without_the_collector() -> None:
    def exchanges() -> dict[int, object]:
        return {id(left): left for left in gc.get_objects() if type(left) in (Exchange, EventStream)}

    async def scenario(url: str) -> None:
        others = exchanges()
        gc.disable()
        try:
            await events(url, TEXT, TELL)
            await asyncio.sleep(0.01)
            assert exchanges().keys() <= others.keys()
        finally:
            gc.enable()

    visit(scenario, ScriptedCalls(script()))


@pytest.mark.parametrize("choices", [1, 3])
def test_what_was_read_before_and_after_every_cut_is_the_whole(choices: int) -> None:
    calls = ScriptedCalls(script(choices))

    async def scenario(url: str) -> None:
        body = TELL | {"n": choices}
        whole = await events(url, TEXT, body)
        assert texts(whole) == dict.fromkeys(range(choices), "".join(PIECES))
        call_id = calls.opened_ids[0]
        for cut in range(len(whole) - 1):
            given = {"Last-Event-ID": id_of(whole[cut])}
            rest = await events(url, f"/v1/streams/{call_id}", **given)
            assert texts(whole[: cut + 1] + rest) == texts(whole)
            assert rest[-2:] == whole[-2:], "usage and the end"
            assert rest[0].split(b"\n")[0] in [event.split(b"\n")[0] for event in whole[cut:]]
            again = await events(url, TEXT, {"nonsense": 1}, **given)
            assert again == rest

    visit(scenario, calls)


@pytest.mark.parametrize("name", ["{}", "cmpl-{}", "chatcmpl-{}"])
def test_a_stream_is_read_from_its_beginning(name: str) -> None:
    calls = ScriptedCalls()

    async def scenario(url: str) -> None:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "stream": True}
        whole = await events(url, CHAT, body)
        assert await events(url, "/v1/streams/" + name.format(calls.opened_ids[0])) == whole

    visit(scenario, calls)


def test_a_stream_is_asked_for_in_the_name_of_the_key() -> None:
    calls, keyring = ScriptedCalls(), Keyring(["one", "two"])

    async def scenario(url: str) -> None:
        await events(url, TEXT, TELL, Authorization="Bearer one")
        address = f"/v1/streams/{calls.opened_ids[0]}"
        for key in ("one", "two"):
            await events(url, address, Authorization=f"Bearer {key}")
        async with aiohttp.ClientSession() as session, session.get(url + address) as response:
            assert response.status == 401
        one, two = (keyring.tenant(key) for key in (b"one", b"two"))
        assert one and two
        assert calls.resumed_by == [one.name, two.name]
        assert calls.requests[0].tenant == one
        assert one.name != two.name

    visit(scenario, calls, keyring=keyring)


ID = "0123456789abcdef" * 2


@pytest.mark.parametrize(
    ("path", "event_id", "status"),
    [
        (ID, None, 404),
        ("x", None, 404),
        (ID.upper(), None, 404),
        (ID + "0", None, 404),
        ("cmpl-cmpl-" + ID, None, 404),
        (ID, f"{ID}:1.1", 404),
        (ID, f"{'f' * 32}:1.1", 400),
        (ID, "", 400),
        (ID, f"{ID}", 400),
        (ID, f"{ID}:", 400),
        (ID, f"{ID}:1", 400),
        (ID, f"{ID}:1.1/", 400),
        (ID, f"{ID}:-1.1", 400),
        (ID, f"{ID}:1.1e9", 400),
        (ID, f"{ID}:{'9' * 10}.1", 400),
        (ID, f"{ID}:" + "/".join(["1.1"] * 129), 400),
        (ID, f"{ID}:\u0661.1", 400),
    ],
)
def test_ids_are_hostile(path: str, event_id: str | None, status: int) -> None:
    async def scenario(url: str) -> None:
        headers = {} if event_id is None else {"Last-Event-ID": event_id}
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{url}/v1/streams/{path}", headers=headers) as response,
        ):
            assert response.status == status
            assert set((await response.json())["error"]) == {"message", "type", "param", "code"}

    visit(scenario)


def test_positions_of_another_number_of_choices_are_refused() -> None:
    calls = ScriptedCalls()

    async def scenario(url: str) -> None:
        await events(url, TEXT, TELL)
        event_id = f"{calls.opened_ids[0]}:1.1/1.1"
        async with (
            aiohttp.ClientSession() as session,
            session.post(url + TEXT, json=TELL, headers={"Last-Event-ID": event_id}) as response,
        ):
            assert response.status == 400

    visit(scenario, calls)


def test_nobody_takes_a_stream_by_asking_for_its_head() -> None:
    async def scenario(url: str) -> None:
        async with (
            aiohttp.ClientSession() as session,
            session.head(f"{url}/v1/streams/{ID}") as response,
        ):
            assert response.status == 405

    visit(scenario)


def test_an_interrupted_stream_breaks_off_and_does_not_look_complete() -> None:
    calls = ScriptedCalls([[delta("Hello")], Interrupted("elsewhere", retry_after_s=1.0)])

    async def scenario(url: str) -> None:
        address = urlsplit(url)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        body = json.dumps(TELL).encode()
        writer.write(post(TEXT, body))
        got = await reader.read()
        assert b"Hello" in got
        assert b"DONE" not in got
        assert b"error" not in got
        assert not got.endswith(b"0\r\n\r\n")
        writer.close()

    visit(scenario, calls)


def test_a_stream_interrupted_before_its_first_byte_is_a_503() -> None:
    calls = ScriptedCalls([Interrupted("elsewhere", retry_after_s=1.0)])

    async def scenario(url: str) -> None:
        async with aiohttp.ClientSession() as session, session.post(url + TEXT, json=TELL) as response:
            assert (response.status, response.headers["Retry-After"]) == (503, "1")

    visit(scenario, calls)


@pytest.mark.parametrize(("given", "keeps"), [({}, False), ({"x-keep-running": "True"}, True)])
def test_a_request_says_whether_it_is_to_keep_running(given: dict[str, str], keeps: bool) -> None:
    calls = ScriptedCalls()

    async def scenario(url: str) -> None:
        await events(url, TEXT, TELL, **given)
        assert calls.requests[0].keeps_running is keeps
        async with (
            aiohttp.ClientSession() as session,
            session.post(url + TEXT, json=TELL, headers={"x-keep-running": "1"}) as response,
        ):
            assert response.status == 400
            assert (await response.json())["error"]["param"] == "x-keep-running"

    visit(scenario, calls)


# The cut itself


def deltas_of(text: str, sizes: Sequence[int]) -> list[Delta]:
    """A token a character, several in a delta."""
    found, at = [], 0
    for size in [*sizes, len(text)]:
        piece = text[at : at + size]
        at += len(piece)
        scores = [TokenLogprob(ord(char), -0.5, []) for char in piece]
        end = FinishReason.STOP if at == len(text) else None
        if piece or end:
            found.append(Delta(0, piece, [ord(char) for char in piece], scores, end, at, at))
        if end:
            break
    return found


@given(st.text("aé🦊", max_size=9), st.lists(st.integers(1, 4), max_size=5), st.integers(0, 12))
def test_what_comes_after_any_position(text: str, sizes: Sequence[int], at: int) -> None:
    request = Request(model="m", prompts=["x"])
    stream = answer.Stream(ScriptedCall(ID, [], request), token_text, [Position(at, at)])
    seen = [event for event in stream.take(deltas_of(text, sizes)).split(b"\n\n") if event]
    chunks = [json.loads(event.partition(b"data: ")[2]) for event in seen[:-1]]
    scored = [choice["logprobs"] for chunk in chunks for choice in chunk["choices"] if choice["logprobs"]]
    assert "".join(choice["text"] for chunk in chunks for choice in chunk["choices"]) == text[at:]
    assert [char for part in scored for char in part["tokens"]] == list(text[at:])
    assert [offset for part in scored for offset in part["text_offset"]] == list(range(at, len(text)))
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert stream.num_tokens == len(text)


@given(st.text(max_size=60), st.none() | st.text(max_size=60))
def test_any_ids_are_read_or_refused(path: str, event_id: str | None) -> None:
    with pytest.raises((NotFound, BadRequest)):
        position.of_stream(path, event_id)
