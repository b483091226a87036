"""The HTTP front on a real socket, over scripted calls."""

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
import structlog

from gateway.errors import ApiError, BadRequest, InternalError, Poisoned, TooManyRequests, Unavailable
from gateway.keyring import Keyring
from gateway.request import FinishReason
from gateway.store.memory_tenants import MemoryTenants
from tests import bad_inputs
from tests.bad_inputs import CHAT, TEXT, Bad
from tests.unit.fakes.calls import MODEL, ScriptedCalls, Step, delta
from tests.unit.fakes.front import visit

HI = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
PROMPT = {"model": MODEL, "prompt": "hi"}


class Got:
    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)


async def ask(url: str, body: Any = None, path: str = CHAT, **headers: str) -> Got:
    async with (
        aiohttp.ClientSession() as session,
        session.request("GET" if body is None else "POST", url + path, json=body, headers=headers) as response,
    ):
        return Got(response.status, response.headers, await response.read())


@pytest.mark.parametrize("bad", bad_inputs.table(), ids=lambda bad: bad.name)
def test_bad_inputs(bad: Bad) -> None:
    with structlog.testing.capture_logs():
        visit(
            lambda url: bad_inputs.check(url, bad, MODEL),
            max_body_bytes=4 * 2**20,
            body_timeout_s=0.05 if bad.slow else 10.0,
        )


def test_bytes_that_are_no_http_leave_no_traceback_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    garbage = Bad("garbage", method="\x16\x03\x01", path="/")

    async def scenario(url: str) -> None:
        assert (await bad_inputs.send(url, garbage, MODEL)).status == 400

    visit(scenario)
    assert not caplog.records


# Answers


def test_a_chat() -> None:
    async def scenario(url: str) -> None:
        got = await ask(url, HI)
        assert got.status == 200
        assert got.headers["Content-Type"] == "application/json"
        assert got.json["id"].startswith("chatcmpl-")
        assert got.json["choices"][0]["message"]["content"] == "Hello world"
        assert got.json["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}

    visit(scenario)


def test_a_stream_byte_for_byte() -> None:
    async def scenario(url: str) -> None:
        got = await ask(url, HI | {"stream": True}, Accept="text/event-stream")
        assert got.status == 200
        assert got.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert got.headers["Cache-Control"] == "no-cache"
        assert got.headers["X-Accel-Buffering"] == "no"
        assert "Content-Encoding" not in got.headers
        call_id = got.body[4 : got.body.index(b":", 4)].decode()
        created = json.loads(got.body.split(b"\n")[1].removeprefix(b"data: "))["created"]
        head = (
            f'"id":"chatcmpl-{call_id}","object":"chat.completion.chunk","created":{created},'
            f'"model":"{MODEL}","service_tier":"default"'
        )
        assert got.body.decode() == (
            f"id: {call_id}:1.5\n"
            f'data: {{{head},"choices":[{{"index":0,"delta":{{"role":"assistant","content":"Hello"}},'
            '"logprobs":null,"finish_reason":null}]}\n\n'
            f"id: {call_id}:2.11\n"
            f'data: {{{head},"choices":[{{"index":0,"delta":{{"content":" world"}},'
            '"logprobs":null,"finish_reason":"stop"}]}\n\n'
            "data: [DONE]\n\n"
        )

    visit(scenario)


def test_request_ids_are_taken_if_safe_and_always_returned() -> None:
    async def scenario(url: str) -> None:
        for given, taken in (("abc-1.2:x_Y", True), ("a b", False), ("x" * 129, False), ("x" * 128, True)):
            got = await ask(url, HI, **{"x-request-id": given})
            assert (got.headers["x-request-id"] == given) is taken
        got = await ask(url, HI)
        assert got.json["id"] == "chatcmpl-" + got.headers["x-request-id"]
        got = await ask(url, {}, **{"x-request-id": "mine"})
        assert (got.status, got.headers["x-request-id"]) == (400, "mine")
        got = await ask(url, HI | {"stream": True}, **{"x-request-id": "mine"})
        assert got.headers["x-request-id"] == "mine"

    visit(scenario)


def test_two_calls_never_share_an_id() -> None:
    async def scenario(url: str) -> None:
        first, second = [await ask(url, HI, **{"x-request-id": "same"}) for _ in range(2)]
        assert first.json["id"] != second.json["id"]

    visit(scenario)


def test_models() -> None:
    calls = ScriptedCalls()
    calls.models = ["org/a", "b"]

    async def scenario(url: str) -> None:
        listed = (await ask(url, path="/v1/models")).json
        assert listed["object"] == "list"
        assert [model["id"] for model in listed["data"]] == ["org/a", "b"]
        one = (await ask(url, path="/v1/models/org/a")).json
        assert one == listed["data"][0]
        assert (one["object"], one["max_model_len"]) == ("model", 4096)

    visit(scenario, calls)


def test_health_asks_nobody_and_readiness_says_why_not() -> None:
    calls = ScriptedCalls()

    async def scenario(url: str) -> None:
        assert (await ask(url, path="/ready")).json == {"ready": True, "reasons": []}
        calls.reasons = ["no replica"]
        got = await ask(url, path="/ready")
        assert (got.status, got.json) == (503, {"ready": False, "reasons": ["no replica"]})
        assert (await ask(url, path="/health")).status == 200

    visit(scenario, calls)


def test_metrics_count_responses_by_route() -> None:
    async def scenario(url: str) -> None:
        await ask(url, HI)
        await ask(url, path="/v1/models/nope")
        await ask(url, path="/nope")
        page = (await ask(url, path="/metrics")).body.decode()
        for route, status in ((CHAT, 200), ("/v1/models/{name}", 404), ("other", 404)):
            assert f'bucketserve_http_responses_total{{route="{route}",status="{status}"}} 1.0' in page

    visit(scenario)


def test_keys() -> None:
    async def scenario(url: str) -> None:
        for header in ("Bearer two", "bearer  one"):
            assert (await ask(url, HI, Authorization=header)).status == 200
        for header in ("Bearer three", "Basic one", "one", "Bearer", "Bearer \u00e9"):
            got = await ask(url, HI, Authorization=header)
            assert (got.status, got.json["error"]["code"]) == (401, "invalid_api_key")
            assert got.headers["WWW-Authenticate"] == "Bearer"
        assert (await ask(url, path="/v1/models")).status == 401
        assert (await ask(url, path="/health")).status == 200

    visit(scenario, keyring=Keyring(["one", "two"]))


def test_a_key_that_cannot_be_looked_up_yet_may_be_a_good_one() -> None:
    async def scenario(url: str) -> None:
        for header, status in (("Bearer one", 200), ("Bearer in-redis", 503), ("Bearer", 401), ("Basic one", 401)):
            got = await ask(url, path="/v1/models", Authorization=header)
            assert got.status == status
            assert ("Retry-After" in got.headers) == (status == 503)

    visit(scenario, keyring=Keyring(["one"], tenants=MemoryTenants()))


# Errors


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "status", "headers"),
    [
        (BadRequest("too long", param="messages", code="context_length_exceeded"), 400, {}),
        (TooManyRequests("later", retry_after_s=1.2), 429, {"Retry-After": "2", "retry-after-ms": "1200"}),
        (Unavailable("down", retry_after_s=0.05), 503, {"Retry-After": "1", "retry-after-ms": "50"}),
        (InternalError("lost", should_retry=False), 500, {"x-should-retry": "false"}),
        (InternalError("lost", should_retry=True), 500, {"x-should-retry": "true"}),
    ],
    ids=["bad", "busy", "down", "final", "lost"],
)
def test_a_refusal_is_a_status_even_for_a_stream(
    error: ApiError, status: int, headers: dict[str, str], stream: bool
) -> None:
    calls = ScriptedCalls([error])

    async def scenario(url: str) -> None:
        for refusals in ([error], []):  # when the call opens; instead of its first delta
            calls.refusals = list(refusals)
            got = await ask(url, HI | {"stream": stream})
            assert got.status == status
            assert {name: got.headers[name] for name in headers} == headers
            assert got.json == {
                "error": {
                    "message": error.message,
                    "type": error.type,
                    "param": error.param,
                    "code": error.code,
                }
            }

    visit(scenario, calls)


def test_an_error_after_the_first_byte_is_an_event_and_the_end() -> None:
    calls = ScriptedCalls([[delta("Hello")], Poisoned("three deaths")])

    async def scenario(url: str) -> None:
        got = await ask(url, HI | {"stream": True})
        assert got.status == 200
        assert got.body.endswith(
            b'"finish_reason":null}]}\n\n'
            b'data: {"error":{"message":"three deaths","type":"server_error",'
            b'"param":null,"code":"poisoned"}}\n\n'
        )

    visit(scenario, calls)


def test_a_bug_is_logged_once_and_told_without_details() -> None:
    calls = ScriptedCalls([ZeroDivisionError("secret")])

    async def scenario(url: str) -> None:
        with structlog.testing.capture_logs() as logs:
            got = await ask(url, HI, **{"x-request-id": "mine"})
        assert got.status == 500
        assert b"mine" in got.body
        assert b"secret" not in got.body
        unexpected, ended = logs
        assert (unexpected["event"], unexpected["request_id"]) == ("unexpected error", "mine")
        assert isinstance(unexpected["exc_info"], ZeroDivisionError)
        assert (ended["event"], ended["outcome"], ended["status"]) == ("request", "failed", 500)

    visit(scenario, calls)


def test_one_log_line_tells_a_request_and_no_content() -> None:
    async def scenario(url: str) -> None:
        with structlog.testing.capture_logs() as logs:
            await ask(url, HI | {"stream": True, "user": "mallory"}, Authorization="Bearer hush")
        (line,) = logs
        assert {"ttft_ms", "duration_ms", "request_id", "call_id"} <= set(line)
        assert line["outcome"] == "finished"
        assert (line["path"], line["status"]) == (CHAT, 200)
        assert (line["prompt_tokens"], line["completion_tokens"]) == (3, 2)
        assert not re.search("hush|Hello|mallory", str(line))

    visit(scenario, keyring=Keyring(["hush"]))


@pytest.mark.parametrize(
    ("script", "outcome"),
    [
        (None, "finished"),
        ([[delta("x")], InternalError("lost")], "failed"),
        ([Poisoned("again")], "poisoned"),
    ],
)
def test_every_request_has_one_outcome(script: list[Step] | None, outcome: str) -> None:
    async def scenario(url: str) -> None:
        with structlog.testing.capture_logs() as logs:
            await ask(url, HI | {"stream": True})
            await ask(url, {})
        assert [line["outcome"] for line in logs] == [outcome, "rejected"]

    visit(scenario, ScriptedCalls(script))


# Time, and clients that leave


async def lines(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    async for line in response.content:
        if line != b"\n":
            yield line


def test_a_silent_stream_gets_comments_and_then_its_answer() -> None:
    async def scenario(url: str) -> None:
        async with (
            aiohttp.ClientSession() as session,
            session.post(url + CHAT, json=HI | {"stream": True}) as response,
        ):
            assert response.status == 200
            arriving = lines(response)
            assert [await anext(arriving) for _ in range(3)] == [b": keep-alive\n"] * 3
            go.set()
            rest = [line async for line in arriving if line != b": keep-alive\n"]
            assert b'"content":"Hello"' in rest[0]
            assert rest[-1] == b"data: [DONE]\n"

    go = asyncio.Event()
    visit(scenario, ScriptedCalls([go, [delta("Hello", end=FinishReason.STOP)]]), keepalive_s=0.01)


@pytest.mark.parametrize(
    ("accept", "comment"), [("text/event-stream", b": keep-alive\n"), ("*/*", b": keep-alive\n\n")]
)
def test_a_comment_between_events_is_no_event_of_its_own(accept: str, comment: bytes) -> None:
    """Readers of ids would take an empty line for one, others a comment for the head of what follows."""

    async def scenario(url: str) -> None:
        async with (
            aiohttp.ClientSession() as session,
            session.post(url + CHAT, json=HI | {"stream": True}, headers={"Accept": accept}) as response,
        ):
            got = await response.content.readuntil(2 * comment)
            assert got.endswith(b"null}]}\n\n" + 2 * comment)
            go.set()
            assert (await response.content.read()).endswith(b"data: [DONE]\n\n")

    go = asyncio.Event()
    steps: list[Step] = [[delta("Hel")], go, [delta("lo", 2, end=FinishReason.STOP)]]
    visit(scenario, ScriptedCalls(steps), keepalive_s=0.01)


def test_an_error_after_a_comment_is_an_event() -> None:
    async def scenario(url: str) -> None:
        async with (
            aiohttp.ClientSession() as session,
            session.post(url + CHAT, json=HI | {"stream": True}) as response,
        ):
            arriving = lines(response)
            assert await anext(arriving) == b": keep-alive\n"
            go.set()
            rest = [line async for line in arriving if line != b": keep-alive\n"]
            assert json.loads(rest[0].removeprefix(b"data: "))["error"]["code"] == "rate_limit_exceeded"

    go = asyncio.Event()
    visit(scenario, ScriptedCalls([go, TooManyRequests("later")]), keepalive_s=0.01)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("begun", [False, True])
def test_a_client_that_leaves_frees_its_call(stream: bool, begun: bool) -> None:
    never = asyncio.Event()
    calls = ScriptedCalls([[delta("Hello")], never] if begun else [never])

    async def scenario(url: str) -> None:
        address = urlsplit(url)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        body = json.dumps(HI | {"stream": stream}).encode()
        with structlog.testing.capture_logs() as logs:
            writer.write(bad_inputs.post(CHAT, body))
            if begun and stream:
                await reader.readuntil(b"Hello")
            else:
                await calls.opened.wait()
            writer.close()
            await calls.closed.wait()
            await asyncio.sleep(0)
        assert not calls.live
        assert [(line["outcome"], line["status"]) for line in logs] == [("cancelled", 499)]
        page = (await ask(url, path="/metrics")).body
        assert b"bucketserve_disconnects_total 1.0" in page
        assert b"bucketserve_streams 0.0" in page

    visit(scenario, calls)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_does_not_read_is_dropped(stream: bool) -> None:
    calls = ScriptedCalls([[delta("x" * 100_000, number)] for number in range(1, 500)])

    async def scenario(url: str) -> None:
        address = urlsplit(url)
        lazy = socket.socket()
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        lazy.connect((address.hostname, address.port))
        body = json.dumps(HI | {"stream": stream}).encode()
        with lazy, structlog.testing.capture_logs() as logs:
            lazy.sendall(bad_inputs.post(CHAT, body))
            await calls.closed.wait()
            await asyncio.sleep(0)
        assert [line["outcome"] for line in logs] == ["cancelled"]

    visit(scenario, calls, slow_client_s=0.05)


def test_all_deltas_of_a_wake_up_arrive_in_one_piece() -> None:
    choices = 5
    calls = ScriptedCalls()

    async def scenario(url: str) -> None:
        async with (
            aiohttp.ClientSession() as session,
            session.post(url + TEXT, json=PROMPT | {"stream": True, "n": choices}) as response,
        ):
            chunks = [chunk async for chunk, _ in response.content.iter_chunks()]
        assert [chunk.count(b"data: {") for chunk in chunks if chunk] == [choices, choices]
        assert chunks[-1].endswith(b"data: [DONE]\n\n")

    visit(scenario, calls)


def test_a_head_that_does_not_come_whole_is_not_waited_for() -> None:
    async def scenario(url: str) -> None:
        host, port = url.removeprefix("http://").split(":")
        for beginning in (b"", b"POST /v1/chat", b"GET /health HTTP/1.1\r\nHost: x\r\nX-Slow: "):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(beginning)
            assert await reader.read() == b"", beginning
            writer.close()

    visit(scenario, idle_timeout_s=0.05)
