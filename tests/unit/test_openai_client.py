"""The official client against the HTTP front: what it sends is taken, and it understands every answer."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from gateway import errors
from gateway.keyring import Keyring
from gateway.request import FinishReason, Request, TokenLogprob
from tests.unit.fakes.calls import MODEL, ScriptedCalls, delta
from tests.unit.fakes.front import serving
from triton_backend.contract import Sampling

MESSAGES: Any = [{"role": "user", "content": "hi"}]
Scenario = Callable[[AsyncOpenAI], Awaitable[None]]


def talk(scenario: Scenario, calls: ScriptedCalls | None = None, retries: int = 0, **options: Any) -> None:
    async def main() -> None:
        async with serving(calls or ScriptedCalls(), **options) as url, client(url, retries) as official:
            await scenario(official)

    asyncio.run(main())


@contextlib.asynccontextmanager
async def client(url: str, retries: int) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=url + "/v1", api_key="key", max_retries=retries) as official:
        yield official


def test_chat_with_every_parameter() -> None:
    calls = ScriptedCalls()

    async def scenario(official: AsyncOpenAI) -> None:
        said = await official.chat.completions.create(
            model=MODEL,
            messages=MESSAGES,
            max_completion_tokens=9,
            temperature=0.3,
            top_p=0.8,
            seed=5,
            stop=["x"],
            n=2,
            service_tier="flex",
            user="u",
            store=False,
            frequency_penalty=0,
            presence_penalty=0,
            logit_bias={},
            response_format={"type": "text"},
            extra_body={"top_k": 3, "ignore_eos": True, "min_tokens": 1},
        )
        assert [choice.message.content for choice in said.choices] == ["Hello world"] * 2
        assert {choice.finish_reason for choice in said.choices} == {"stop"}
        assert said.usage is not None
        assert said.usage.total_tokens == 7
        assert said.service_tier == "flex"

    talk(scenario, calls)
    (request,) = calls.requests
    assert request.sampling == Sampling(temperature=0.3, top_p=0.8, top_k=3, seed=5)
    assert (request.max_tokens, request.min_tokens, request.ignore_eos) == (9, 1, True)


def test_chat_stream() -> None:
    async def scenario(official: AsyncOpenAI) -> None:
        stream = await official.chat.completions.create(
            model=MODEL, messages=MESSAGES, n=2, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        texts = ["", ""]
        for chunk in chunks[:-1]:
            assert chunk.usage is None
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
        assert texts == ["Hello world"] * 2
        assert chunks[0].choices[0].delta.role == "assistant"
        assert chunks[-1].choices == []
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == 4

    talk(scenario)


def test_the_clients_own_accumulation_of_a_stream() -> None:
    async def scenario(official: AsyncOpenAI) -> None:
        async with official.chat.completions.stream(model=MODEL, messages=MESSAGES) as stream:
            final = await stream.get_final_completion()
        assert final.choices[0].message.content == "Hello world"
        assert final.choices[0].finish_reason == "stop"

    talk(scenario)


def test_completions_and_their_stream() -> None:
    async def scenario(official: AsyncOpenAI) -> None:
        said = await official.completions.create(model=MODEL, prompt=["a", "b"], echo=True, max_tokens=5)
        assert [choice.text for choice in said.choices] == ["aHello world", "bHello world"]
        stream = await official.completions.create(model=MODEL, prompt=[1, 2], stream=True)
        assert "".join([chunk.choices[0].text async for chunk in stream]) == "Hello world"

    talk(scenario)


def test_log_probabilities() -> None:
    entry = TokenLogprob(65, -0.5, [(65, -0.5), (66, -1.0)])
    calls = ScriptedCalls([[delta("A", logprobs=[entry], end=FinishReason.LENGTH)]])

    async def scenario(official: AsyncOpenAI) -> None:
        said = await official.chat.completions.create(
            model=MODEL, messages=MESSAGES, logprobs=True, top_logprobs=2
        )
        logprobs = said.choices[0].logprobs
        assert logprobs is not None
        assert logprobs.content is not None
        assert logprobs.content[0].token == "A"
        assert [top.token for top in logprobs.content[0].top_logprobs] == ["A", "B"]
        text = await official.completions.create(model=MODEL, prompt="x", logprobs=2)
        assert text.choices[0].logprobs is not None
        assert text.choices[0].logprobs.top_logprobs == [{"A": -0.5, "B": -1.0}]

    talk(scenario, calls)


def test_models() -> None:
    async def scenario(official: AsyncOpenAI) -> None:
        assert [model.id async for model in official.models.list()] == [MODEL]
        assert (await official.models.retrieve(MODEL)).id == MODEL
        with pytest.raises(openai.NotFoundError):
            await official.models.retrieve("nope")

    talk(scenario)


@pytest.mark.parametrize(
    ("error", "caught"),
    [
        (errors.BadRequest("no", param="stop", code="c"), openai.BadRequestError),
        (errors.TooManyRequests("later", retry_after_s=1), openai.RateLimitError),
        (errors.Unavailable("down"), openai.InternalServerError),
        (errors.Poisoned("again", should_retry=False), openai.InternalServerError),
    ],
    ids=["bad", "busy", "down", "poisoned"],
)
def test_errors_are_the_clients_own_classes(error: errors.ApiError, caught: type[openai.APIStatusError]) -> None:
    calls = ScriptedCalls()
    calls.refusals = [error]

    async def scenario(official: AsyncOpenAI) -> None:
        with pytest.raises(caught) as info:
            await official.chat.completions.create(model=MODEL, messages=MESSAGES)
        assert (info.value.status_code, info.value.code) == (error.status, error.code)
        assert info.value.param == error.param
        assert error.message in info.value.message
        assert info.value.request_id

    talk(scenario, calls)


def test_a_missing_key_is_an_authentication_error() -> None:
    async def scenario(official: AsyncOpenAI) -> None:
        with pytest.raises(openai.AuthenticationError):
            await official.chat.completions.create(model=MODEL, messages=MESSAGES)

    talk(scenario, keyring=Keyring(["another"]))


def test_an_error_within_a_stream_is_raised() -> None:
    async def scenario(official: AsyncOpenAI) -> None:
        stream = await official.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
        assert (await anext(stream)).choices[0].delta.content == "Hello"
        with pytest.raises(openai.APIError, match="gone"):
            await anext(stream)

    talk(scenario, ScriptedCalls([[delta("Hello")], errors.InternalError("gone")]))


def test_the_client_tries_again_when_told_to_and_not_otherwise() -> None:
    calls = ScriptedCalls()
    calls.refusals = [errors.TooManyRequests("later", retry_after_s=0.001)]

    async def scenario(official: AsyncOpenAI) -> None:
        await official.chat.completions.create(model=MODEL, messages=MESSAGES)
        assert len(calls.requests) == 2
        calls.refusals = [errors.InternalError("deadline", should_retry=False)]
        with pytest.raises(openai.InternalServerError):
            await official.chat.completions.create(model=MODEL, messages=MESSAGES)
        assert len(calls.requests) == 3

    talk(scenario, calls, retries=2)


def test_leaving_a_stream_frees_the_call() -> None:
    calls = ScriptedCalls([[delta("Hello")], asyncio.Event()])

    async def scenario(official: AsyncOpenAI) -> None:
        stream = await official.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
        await anext(stream)
        await stream.close()
        await calls.closed.wait()

    talk(scenario, calls)


def test_a_request_that_the_client_sends_by_itself_is_understood() -> None:
    """Its defaults add nothing that changes ours."""
    calls = ScriptedCalls()

    async def scenario(official: AsyncOpenAI) -> None:
        await official.chat.completions.create(model=MODEL, messages=MESSAGES)

    talk(scenario, calls)
    # All but how often it was refused before, which its headers tell.
    assert calls.requests == [Request(model=MODEL, messages=MESSAGES, num_retries=0)]
