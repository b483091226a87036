"""The benchmark's parts without a server: what it reads, what it sends, and when."""

import asyncio
import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gateway.bench import wire
from gateway.bench.client import Answer, Client, OnTokens
from gateway.bench.load import Load
from gateway.bench.prompts import IdPrompts, TextPrompts, WordPrompts
from gateway.load.arrivals import Arrivals, Process
from gateway.load.named import WORKLOADS
from gateway.load.record import Ending
from gateway.load.workload import Arrival, generate
from gateway.request import ServiceClass
from tests.unit.fakes import clock
from tests.unit.tokenizers_made import byte_level


def event(payload: Any) -> bytes:
    return b"data: " + json.dumps(payload).encode() + b"\n\n"


# The wire


def tokens(*events: Any) -> list[int]:
    reader = wire.Stream()
    return [reader.take(line) for each in events for line in event(each).splitlines()]


def test_role_only_chunks_and_comments_are_no_tokens() -> None:
    reader = wire.Stream()
    assert reader.take(b": keep-alive\n") == 0
    assert reader.take(b"id: a:1.1\n") == 0
    assert [
        count
        for count in tokens(
            {"choices": [{"delta": {"role": "assistant", "content": ""}}]},
            {"choices": [{"delta": {"content": "a"}}]},
            {"choices": [{"delta": {"reasoning_content": "hm"}}]},
            {"choices": [{"delta": {}, "finish_reason": "length"}]},
        )
        if count
    ] == [1, 1]


def test_a_servers_own_count_is_believed() -> None:
    chunks = [({"text": "ab"}, 2), ({"text": ""}, 3), ({"text": "c"}, 3), ({"text": "d"}, 6)]
    assert [
        count
        for count in tokens(
            *({"choices": [choice], "usage": {"completion_tokens": total}} for choice, total in chunks),
            {"choices": [], "usage": {"completion_tokens": 6}},
        )
        if count
    ] == [2, 1, 3]


def test_a_final_count_is_no_token() -> None:
    reader = wire.Stream()
    assert reader.take(b'data: {"choices":[{"text":"a"}],"usage":null}') == 1
    assert reader.take(b'data: {"choices":[],"usage":{"prompt_tokens":4,"completion_tokens":9}}') == 0
    assert reader.usage == wire.Usage(4, 9)
    assert not reader.done
    assert reader.take(b"data: [DONE]\n") == 0
    assert reader.done


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"error": {"message": "no"}}', "no"),
        (b'{"error": "no"}', "no"),
        (b'{"object": "error", "message": "no"}', "no"),
        (b"<h1>\n  Bad   Gateway</h1>\xff", "<h1> Bad Gateway</h1>\N{REPLACEMENT CHARACTER}"),
        (b"x" * 999, "x" * 200),
    ],
)
def test_what_a_refusal_says(body: bytes, said: str) -> None:
    assert wire.refusal(body) == said


# Prompts


def test_prompts_differ_and_repeat_with_the_seed() -> None:
    ids = IdPrompts(1000, seed=1)
    assert ids.prompt(1, 9) == IdPrompts(1000, seed=1).prompt(1, 9)
    assert ids.prompt(1, 9) != ids.prompt(2, 9)
    assert ids.prompt(1, 9) != IdPrompts(1000, seed=2).prompt(1, 9)
    assert len(WordPrompts(1).prompt(3, 17).split()) == 17


def test_a_tokenizer_gives_chat_prompts_their_length(tmp_path: Path) -> None:
    tokenizer = byte_level()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    prompts = TextPrompts(tmp_path, seed=1)
    for wanted in (1, 7, 50, 400):
        assert len(tokenizer.encode(prompts.prompt(wanted, wanted), add_special_tokens=False).ids) == wanted


# The open loop, on virtual time


class Silent:
    def sent(self) -> None: ...

    def ended(self, how: Ending) -> None: ...


def test_arrivals_wait_for_no_answer() -> None:
    workload = generate(WORKLOADS["alpaca"], 20, Arrivals(Process.POISSON, 2.0), seed=1)
    sent_s: list[float] = []

    async def ask(request: int, arrival: Arrival, on_tokens: OnTokens) -> Answer:
        sent_s.append(asyncio.get_running_loop().time())
        await asyncio.sleep(100.0)
        on_tokens(1)
        await asyncio.sleep(1.0)
        on_tokens(arrival.output_tokens - 1)
        return Answer(Ending.FINISHED)

    load = Load(workload, ask, Silent())
    clock.run(load.run())
    assert sent_s == pytest.approx(workload.arrival_s.tolist())
    records = load.recorder.records()
    assert records.ttft_s.tolist() == pytest.approx([100.0] * 20)
    assert records.e2e_s.tolist() == pytest.approx([101.0] * 20)
    assert records.output_tokens.tolist() == workload.output_tokens.tolist()


def test_a_client_that_falls_behind_knows_it() -> None:
    workload = generate(WORKLOADS["alpaca"], 50, Arrivals(Process.POISSON, 10.0), seed=1)

    async def ask(request: int, arrival: Arrival, on_tokens: OnTokens) -> Answer:
        return Answer(Ending.FINISHED)

    class Slow(Silent):
        """Keeps the event loop busy for a second at a time."""

        def sent(self) -> None:
            loop = asyncio.get_running_loop()
            assert isinstance(loop, clock.VirtualLoop)
            loop._now_s += 1.0

    load = Load(workload, ask, Slow())
    clock.run(load.run())
    assert max(load.late_s) > 40.0
    assert max(load.lag_s) > 0.9


# The client


class Unreachable:
    """A session whose server takes no connection in time."""

    def post(self, url: str, **given: object) -> Any:
        raise aiohttp.ConnectionTimeoutError(f"Connection timeout to host {url}")


def test_a_server_that_takes_no_connection_has_not_run_out_of_time_for_an_answer() -> None:
    session: Any = Unreachable()
    options: Any = Namespace(url="http://server", endpoint="completions")
    arrival = Arrival(0.0, 8, 2, ServiceClass.DEFAULT, None, None)
    asking = Client(session, options, "m", IdPrompts(1000, 1)).ask(0, arrival, lambda count: None)
    answer = asyncio.run(asking)
    assert (answer.ending, answer.reason) == (Ending.FAILED, "no connection within 10 s")
