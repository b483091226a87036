"""The API as users meet it: OpenAI's own client, curl, and everything that is wrong with a request."""

import asyncio
import json
import os
import signal
import subprocess
from typing import Any

import openai
import pytest

from tests import bad_inputs
from tests.stack.serving import Serving, eventually

pytestmark = pytest.mark.timeout(120)

FOX = [{"role": "user", "content": "Tell me a short story about a fox."}]


@pytest.fixture(scope="module")
def api(serving: Serving) -> Any:
    return openai.OpenAI(base_url=f"{serving.url}/v1", api_key="none", max_retries=0)


def test_the_line_that_up_prints_streams_an_answer(serving: Serving) -> None:
    serving.wait_for(r"(?m)^  curl .*\n", 5.0)
    # What is drawn is another story each time, and not always of a fox.
    command = serving.match(r"(?m)^  (curl .*)$").replace('"stream": true', '"stream": true, "temperature": 0')
    printed = subprocess.run(["bash", "-c", f"{command} -s"], capture_output=True, text=True, check=True).stdout
    events = [line.removeprefix("data: ") for line in printed.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert "fox" in text
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert len(chunks) > 20


def test_chat_streamed_and_whole_are_the_same(api: Any, serving: Serving) -> None:
    whole = api.chat.completions.create(model=serving.model, messages=FOX, temperature=0)
    chunks = list(
        api.chat.completions.create(
            model=serving.model,
            messages=FOX,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    assert whole.usage is not None
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens


def test_the_length_of_the_answer_follows_the_request(api: Any, serving: Serving) -> None:
    def tokens(question: str) -> int:
        answer = api.chat.completions.create(
            model=serving.model, messages=[{"role": "user", "content": question}], temperature=0
        )
        assert answer.usage and answer.choices[0].finish_reason == "stop"
        return int(answer.usage.completion_tokens)

    short, long = tokens("Tell me a short story about a fox."), tokens("Tell me a long story about a fox.")
    assert tokens("What is the capital of France? Answer in one word.") < short < long


def test_every_parameter_of_chat(api: Any, serving: Serving) -> None:
    answer = api.chat.completions.create(
        model=serving.model,
        messages=[
            {"role": "system", "content": "You are helpful."},
            {"role": "user", "content": [{"type": "text", "text": "Tell me a story about a dog."}]},
        ],
        max_completion_tokens=30,
        temperature=0.8,
        top_p=0.9,
        seed=7,
        n=3,
        stop=["zzz", "."],
        logprobs=True,
        top_logprobs=4,
        service_tier="flex",
        user="somebody",
        extra_body={"top_k": 20, "min_tokens": 2, "unknown_field": {"is": "ignored"}},
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert answer.service_tier == "flex"
    for choice in answer.choices:
        assert "." not in (choice.message.content or "")
        assert choice.logprobs and choice.logprobs.content
        for token in choice.logprobs.content:
            assert len(token.top_logprobs) == 4
            assert max(top.logprob for top in token.top_logprobs) >= token.logprob - 1e-4
    assert len({choice.message.content for choice in answer.choices}) > 1


def test_every_parameter_of_completions(api: Any, serving: Serving) -> None:
    answer = api.completions.create(
        model=serving.model,
        prompt=["one two", "three"],
        max_tokens=5,
        temperature=0,
        n=2,
        echo=True,
        stop=None,
        extra_body={"ignore_eos": True},
    )
    assert [choice.text.startswith(("one two", "three")) for choice in answer.choices] == [True] * 4
    assert answer.choices[0].text == answer.choices[1].text
    assert answer.usage and answer.usage.completion_tokens == 20
    ids = api.completions.create(model=serving.model, prompt=[[5, 6, 7], [8]], max_tokens=3, logprobs=2)
    assert len(ids.choices) == 2


def test_context_length_names_the_field(api: Any, serving: Serving) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        api.completions.create(model=serving.model, prompt="hi", max_tokens=10**6)
    assert refused.value.param == "max_tokens"
    with pytest.raises(openai.BadRequestError) as refused:
        api.completions.create(model=serving.model, prompt=[5] * 100_000)
    assert refused.value.param == "prompt"


@pytest.mark.parametrize("bad", bad_inputs.table(), ids=lambda bad: bad.name)
def test_bad_inputs(serving: Serving, bad: bad_inputs.Bad) -> None:
    asyncio.run(bad_inputs.check(serving.url, bad, serving.model))


@pytest.mark.parametrize("victim", ["triton_python_backend_stub", "bin/tritonserver"])
def test_an_engine_that_dies_costs_its_streams_a_pause(api: Any, serving: Serving, victim: str) -> None:
    """Greedy in fp32: the text is the same as without."""
    assert eventually(lambda: len(serving.descendants(victim)) == 1, 30)
    ask = {"model": serving.model, "prompt": [5, 6, 7], "max_tokens": 600, "temperature": 0}
    extra = {"ignore_eos": True}
    unbroken = api.completions.create(**ask, extra_body=extra).choices[0].text
    text = ""
    for chunk in api.completions.create(**ask, extra_body=extra, stream=True):
        if len(text) < 50 <= len(text) + len(chunk.choices[0].text):
            [process] = serving.descendants(victim)
            os.kill(process, signal.SIGKILL)
        text += chunk.choices[0].text
    assert text == unbroken
