"""A client that asks for token ids by way of the OpenAI API: each token's own text, which the tests' tokenizer
maps back."""

import asyncio
from typing import Any, NamedTuple

import aiohttp
import msgspec

PATIENT = {"x-slo-ttft-ms": "600000"}
"""Crowds of these tests are to be served, however slow the machine."""


class Answer(NamedTuple):
    text: str
    token_texts: list[str]
    logprobs: list[float]
    finish_reason: str
    usage: dict[str, Any]


async def complete(session: aiohttp.ClientSession, model: str, prompt: object, **fields: object) -> Answer:
    """A completion, not streamed."""
    body = {"model": model, "prompt": prompt, "logprobs": 0, **fields}
    async with session.post("/v1/completions", json=body) as response:
        whole = await response.json()
        assert response.status == 200, whole
    return _answer(whole["choices"][0], whole["usage"])


async def stream(session: aiohttp.ClientSession, model: str, prompt: object, **fields: object) -> Answer:
    """The same, streamed."""
    body = {
        "model": model,
        "prompt": prompt,
        "logprobs": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        **fields,
    }
    parts: list[Answer] = []
    usage: dict[str, Any] = {}
    async with session.post("/v1/completions", json=body) as response:
        assert response.status == 200, await response.text()
        async for line in response.content:
            if line.startswith(b"data: {"):
                event = msgspec.json.decode(line[6:])
                usage = event["usage"] or usage
                parts += [_answer(choice, {}) for choice in event["choices"]]
    return Answer(
        "".join(part.text for part in parts),
        [text for part in parts for text in part.token_texts],
        [logprob for part in parts for logprob in part.logprobs],
        parts[-1].finish_reason,
        usage,
    )


def _answer(choice: dict[str, Any], usage: dict[str, Any]) -> Answer:
    logprobs = choice["logprobs"] or {"tokens": [], "token_logprobs": []}
    return Answer(choice["text"], logprobs["tokens"], logprobs["token_logprobs"], choice["finish_reason"], usage)


def session(url: str) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        url,
        headers=PATIENT,
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=300),
    )


def run(coroutine: Any) -> Any:
    return asyncio.run(coroutine)
