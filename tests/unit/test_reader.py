"""Large bodies are parsed elsewhere and mean the same; whatever becomes of that process."""

import asyncio
import json
import os
import signal
from contextlib import aclosing

import pytest

from gateway.errors import BadRequest, Unavailable
from gateway.openai import parse
from gateway.reader import LARGE_BYTES, Kind, Reader

VOCABULARY = 256
LONG = "é\n" * LARGE_BYTES


def completion(**fields: object) -> bytes:
    return json.dumps({"model": "m"} | fields).encode()


def chat(text: str) -> bytes:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": text}], "stop": ["x"]}).encode()


@pytest.mark.asyncio
async def test_a_large_body_means_what_a_small_one_does() -> None:
    async with aclosing(Reader(VOCABULARY)) as reader:
        for kind, body, parsed in (
            (Kind.CHAT, chat("hi"), parse.chat),
            (Kind.CHAT, chat(LONG), parse.chat),
            (Kind.COMPLETION, completion(prompt="hi"), parse.completion),
            (Kind.COMPLETION, completion(prompt=[LONG, "hi"], logprobs=2, seed=7), parse.completion),
            (Kind.COMPLETION, completion(prompt=[[1, 2], [3] * LARGE_BYTES]), parse.completion),
        ):
            assert await reader.read(kind, body, None) == parsed(body, VOCABULARY)


@pytest.mark.asyncio
async def test_a_large_body_is_refused_as_a_small_one_is() -> None:
    async with aclosing(Reader(VOCABULARY)) as reader:
        for body in (
            completion(prompt=LONG, temperature=3),
            completion(prompt=LONG, tools=[{}]),
            completion(prompt=LONG + "\ud800")[:-1],
            completion(prompt=[VOCABULARY] * LARGE_BYTES),
            b"[" * 2 * LARGE_BYTES,
        ):
            with pytest.raises(BadRequest) as here:
                parse.completion(body, VOCABULARY)
            with pytest.raises(BadRequest) as there:
                await reader.read(Kind.COMPLETION, body, None)
            assert vars(there.value) == vars(here.value)


@pytest.mark.asyncio
async def test_more_than_fits_is_not_brought_back() -> None:
    flood = json.dumps({"model": "m", "messages": [{"role": "user", "content": ""}] * LARGE_BYTES}).encode()
    async with aclosing(Reader(VOCABULARY)) as reader:
        for kind, body, asked in (
            (Kind.COMPLETION, completion(prompt=[1] * LARGE_BYTES), f"{LARGE_BYTES} tokens"),
            (Kind.CHAT, flood, f"{LARGE_BYTES} messages"),
        ):
            with pytest.raises(BadRequest, match=f"has {asked}; .* may have 4096 tokens") as refused:
                await reader.read(kind, body, 4096)
            assert refused.value.code == "context_length_exceeded"


@pytest.mark.asyncio
async def test_many_at_once_get_their_own() -> None:
    async with aclosing(Reader(VOCABULARY)) as reader:
        bodies = [completion(prompt=f"{number}{LONG}") for number in range(6)]
        requests = await asyncio.gather(*(reader.read(Kind.COMPLETION, body, None) for body in bodies))
        assert [request.prompts for request in requests] == [[f"{number}{LONG}"] for number in range(6)]


@pytest.mark.asyncio
async def test_nobody_gets_the_answer_of_one_who_went_away() -> None:
    async with aclosing(Reader(VOCABULARY)) as reader:
        await reader.read(Kind.CHAT, chat(LONG), None)
        gone = asyncio.create_task(reader.read(Kind.CHAT, chat("gone" + LONG), None))
        await asyncio.sleep(0)
        gone.cancel()
        assert (await reader.read(Kind.CHAT, chat(LONG), None)).messages == [{"role": "user", "content": LONG}]
        assert gone.cancelled()


@pytest.mark.asyncio
async def test_when_the_process_dies_one_is_told_to_try_again_and_the_next_gets_another() -> None:
    async with aclosing(Reader(VOCABULARY)) as reader:
        asked = asyncio.create_task(reader.read(Kind.CHAT, chat(LONG), None))
        while reader.pid is None:
            await asyncio.sleep(0)
        os.kill(reader.pid, signal.SIGKILL)
        with pytest.raises(Unavailable):
            await asked
        assert (await reader.read(Kind.CHAT, chat(LONG), None)).is_chat
