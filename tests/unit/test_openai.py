"""The wire format by itself: every field in, every byte out."""

import contextlib
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import BadRequest, TooManyRequests
from gateway.openai import answer, headers, parse
from gateway.ports import TokenText
from gateway.quota import Allowance, Level
from gateway.request import FinishReason, Request, ServiceClass, Targets, TokenLogprob
from tests.unit.fakes.calls import ScriptedCall, delta
from tests.unit.fakes.tokenizer import token_text
from triton_backend.contract import Sampling

VOCABULARY = 1000
HI = [{"role": "user", "content": "hi"}]


def chat(**fields: Any) -> Request:
    return parse.chat(json.dumps({"model": "m", "messages": HI} | fields).encode(), VOCABULARY)


def completion(**fields: Any) -> Request:
    return parse.completion(json.dumps({"model": "m", "prompt": "hi"} | fields).encode(), VOCABULARY)


def refusal(call: Any, **fields: Any) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        call(**fields)
    return caught.value


# Bodies


def test_a_bare_chat_gets_the_defaults() -> None:
    assert chat() == Request(model="m", messages=[{"role": "user", "content": "hi"}])


def test_a_bare_completion_names_no_number_of_tokens() -> None:
    assert completion() == Request(model="m", prompts=["hi"])


OPTIONAL = [
    *("max_tokens", "max_completion_tokens", "min_tokens", "temperature", "top_p", "top_k", "seed", "stop"),
    *("stop_token_ids", "n", "best_of", "stream", "stream_options", "ignore_eos", "service_tier", "user"),
    *("logprobs", "top_logprobs", "tools", "tool_choice", "response_format", "logit_bias", "suffix"),
    *("frequency_penalty", "presence_penalty", "functions", "echo"),
]


@pytest.mark.parametrize("field", OPTIONAL)
def test_null_means_the_default(field: str) -> None:
    assert chat(**{field: None}) == chat()
    assert completion(**{field: None}) == completion()


@pytest.mark.parametrize(
    "fields",
    [
        {"store": True},
        {"metadata": {"a": "b"}},
        {"prompt_cache_key": "k"},
        {"safety_identifier": "u"},
        {"parallel_tool_calls": True},
        {"prediction": {"type": "content", "content": "x"}},
        {"no_such_field": [[{}]]},
        {"tools": []},
        {"tool_choice": "none"},
        {"response_format": {"type": "text"}},
        {"frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "repetition_penalty": 1.0},
        {"best_of": 1, "suffix": "", "modalities": ["text"]},
    ],
    ids=str,
)
def test_what_changes_nothing_is_ignored(fields: dict[str, Any]) -> None:
    assert chat(**fields) == chat()


def test_every_field_arrives() -> None:
    request = chat(
        max_completion_tokens=7,
        min_tokens=2,
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        seed=-1,
        stop=["a", "b"],
        stop_token_ids=[5],
        n=3,
        logprobs=True,
        top_logprobs=4,
        stream=True,
        stream_options={"include_usage": True, "continuous_usage_stats": True},
        ignore_eos=True,
        service_tier="priority",
        user="u",
    )
    assert request == Request(
        model="m",
        messages=[{"role": "user", "content": "hi"}],
        num_choices=3,
        max_tokens=7,
        max_tokens_field="max_completion_tokens",
        min_tokens=2,
        stop=["a", "b"],
        stop_token_ids=[5],
        ignore_eos=True,
        sampling=Sampling(temperature=0.5, top_p=0.9, top_k=40, seed=2**62 - 1, logprobs=4),
        has_seed=True,
        stream=True,
        include_usage=True,
        continuous_usage=True,
        service_class=ServiceClass.PRIORITY,
        names_class=True,
        user="u",
    )


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
    ],
    ids=str,
)
def test_prompts_come_in_four_shapes(prompt: object, prompts: object) -> None:
    assert completion(prompt=prompt).prompts == prompts


def test_contents_become_text() -> None:
    messages = [
        {"role": "developer", "content": "be kind"},
        {
            "role": "user",
            "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            "name": "eve",
        },
        {"role": "assistant", "content": None},
        {"role": "assistant"},
        {"role": "tool", "content": "4", "tool_call_id": "t"},
    ]
    assert chat(messages=messages).messages == [
        {"role": "developer", "content": "be kind"},
        {"role": "user", "content": "a\nb", "name": "eve"},
        {"role": "assistant", "content": ""},
        {"role": "assistant", "content": ""},
        {"role": "tool", "content": "4", "tool_call_id": "t"},
    ]


@pytest.mark.parametrize(
    ("tier", "service_class"),
    [
        ("auto", ServiceClass.DEFAULT),
        ("default", ServiceClass.DEFAULT),
        ("flex", ServiceClass.FLEX),
        ("scale", ServiceClass.PRIORITY),
        ("priority", ServiceClass.PRIORITY),
        ("fast", ServiceClass.PRIORITY),
    ],
)
def test_tiers_become_classes(tier: str, service_class: ServiceClass) -> None:
    assert chat(service_tier=tier).service_class is service_class


def test_sampling_at_the_edges() -> None:
    assert chat(temperature=0).sampling.temperature == 0
    assert chat(temperature=1e-9).sampling.temperature == 0
    assert chat(temperature=2).sampling.temperature == 2
    assert chat(top_k=-1).sampling.top_k == 0
    assert chat(seed=-(2**63)).sampling.seed >= 0
    assert chat(seed=0).has_seed
    assert chat(logprobs=True).sampling.logprobs == 0
    assert chat(logprobs=False).sampling.logprobs is None
    assert completion(logprobs=0).sampling.logprobs == 0
    assert chat(stop="x").stop == ["x"]
    assert completion(prompt=["a"] * 128).num_choices == 1


def test_a_refusal_names_the_field_and_says_what_would_be_right() -> None:
    error = refusal(chat, temperature=3)
    assert (error.status, error.param) == (400, "temperature")
    assert error.message == "Invalid value for 'temperature': expected `float` <= 2.0."
    error = refusal(chat, messages=[{"content": "x"}])
    assert (error.param, error.code) == ("messages[0].role", "missing_required_parameter")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(["model", "messages", "prompt", *OPTIONAL]), json_values))
def test_any_body_is_a_request_or_a_bad_request(fields: dict[str, Any]) -> None:
    for call in (chat, completion):
        with contextlib.suppress(BadRequest):
            assert call(**fields).is_chat == (call is chat)


@given(st.binary(max_size=30))
def test_any_bytes_are_a_bad_request(raw: bytes) -> None:
    with pytest.raises(BadRequest):
        parse.chat(raw, VOCABULARY)


# Answers

CREATED = 1_700_000_000
CHAT = b'"object":"chat.completion.chunk","created":1700000000,"model":"m","service_tier":"default"'
TEXT = b'"object":"text_completion","created":1700000000,"model":"m","service_tier":"default"'


def stream(request: Request) -> answer.Stream:
    return answer.Stream(ScriptedCall("c", [], request), token_text)


def whole(request: Request) -> answer.Whole:
    return answer.Whole(ScriptedCall("c", [], request), token_text)


def test_a_chat_stream_byte_for_byte() -> None:
    events = stream(chat(stream=True))
    assert events.take([delta("Hé", 1, chars=2)]) == (
        b'id: c:1.2\ndata: {"id":"chatcmpl-c",' + CHAT + b',"choices":[{"index":0,'
        b'"delta":{"role":"assistant","content":"H\xc3\xa9"},"logprobs":null,"finish_reason":null}]}\n\n'
    )
    assert events.take([delta('"\n', 2, chars=4)]) == (
        b'id: c:2.4\ndata: {"id":"chatcmpl-c",' + CHAT + b',"choices":[{"index":0,'
        b'"delta":{"content":"\\"\\n"},"logprobs":null,"finish_reason":null}]}\n\n'
    )
    assert not events.finished
    assert events.take([delta("", 3, chars=4, end=FinishReason.STOP)]) == (
        b'id: c:3.4\ndata: {"id":"chatcmpl-c",' + CHAT + b',"choices":[{"index":0,'
        b'"delta":{},"logprobs":null,"finish_reason":"stop"}]}\n\n'
        b"data: [DONE]\n\n"
    )
    assert events.finished


def test_a_completion_stream_byte_for_byte() -> None:
    events = stream(completion(stream=True, echo=True))
    assert events.take([delta("A", 1, chars=1)]) == (
        b'id: c:1.1\ndata: {"id":"cmpl-c",' + TEXT + b',"choices":[{"index":0,'
        b'"text":"hiA","logprobs":null,"finish_reason":null}]}\n\n'
    )
    assert events.take([delta("B", 2, chars=2, end=FinishReason.LENGTH)]) == (
        b'id: c:2.2\ndata: {"id":"cmpl-c",' + TEXT + b',"choices":[{"index":0,'
        b'"text":"B","logprobs":null,"finish_reason":"length"}]}\n\n'
        b"data: [DONE]\n\n"
    )


def test_usage_comes_last_in_a_chunk_of_its_own() -> None:
    events = stream(chat(stream=True, stream_options={"include_usage": True}))
    assert events.take([delta("A", 1)]).endswith(b'"finish_reason":null}],"usage":null}\n\n')
    assert events.take([delta("", 2, end=FinishReason.STOP)]).endswith(
        b'"finish_reason":"stop"}],"usage":null}\n\n'
        b'id: c:2.0\ndata: {"id":"chatcmpl-c",' + CHAT + b',"choices":[],'
        b'"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}\n\n'
        b"data: [DONE]\n\n"
    )


def test_continuous_usage_is_on_every_chunk() -> None:
    events = stream(chat(stream=True, stream_options={"continuous_usage_stats": True}))
    assert events.take([delta("A", 1)]).endswith(
        b'"finish_reason":null}],"usage":{"prompt_tokens":3,"completion_tokens":1,"total_tokens":4}}\n\n'
    )


def test_tokens_without_text_yet_make_no_event() -> None:
    events = stream(chat(stream=True))
    assert events.take([delta("", 1)]) == b""
    assert events.take([delta("é", 2)]).startswith(b"id: c:2.1\n")


def test_a_choice_that_says_nothing_still_gets_its_role() -> None:
    events = stream(chat(stream=True))
    assert b'"delta":{"role":"assistant","content":""}' in events.take([delta("", 1, end=FinishReason.STOP)])


def test_choices_share_a_stream_and_its_ids() -> None:
    events = stream(completion(stream=True, prompt=["x", "y"], n=2))
    first = events.take([delta("a", 1, choice=3), delta("bc", 1, choice=0)])
    assert [line for line in first.split(b"\n") if line.startswith(b"id")] == [
        b"id: c:0.0/0.0/0.0/1.1",
        b"id: c:1.2/0.0/0.0/1.1",
    ]
    for choice in range(4):
        assert not events.finished
        last = events.take([delta("", 2, choice=choice, end=FinishReason.STOP)])
    assert events.finished
    assert last.endswith(b"data: [DONE]\n\n")
    assert events.num_tokens == 8


def test_a_whole_chat() -> None:
    answered = whole(chat(n=2, service_tier="flex"))
    answered.take([delta("Hel", 1), delta("A", 1, choice=1, end=FinishReason.LENGTH)])
    answered.take([delta("lo", 2, end=FinishReason.STOP)])
    assert answered.finished
    assert json.loads(answered.body()) == {
        "id": "chatcmpl-c",
        "object": "chat.completion",
        "created": CREATED,
        "model": "m",
        "service_tier": "flex",
        "choices": [
            {
                "index": index,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "logprobs": None,
                "finish_reason": reason,
            }
            for index, (text, reason) in enumerate([("Hello", "stop"), ("A", "length")])
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6},
    }


def test_a_whole_completion_echoes_its_prompts() -> None:
    answered = whole(completion(prompt=["x", "y"], n=2, echo=True))
    answered.take([delta(str(i), 1, choice=i, end=FinishReason.STOP) for i in range(4)])
    choices = json.loads(answered.body())["choices"]
    assert [choice["text"] for choice in choices] == ["x0", "x1", "y2", "y3"]


A = TokenLogprob(65, -0.5, [(66, -0.25), (65, -0.5)])
B = TokenLogprob(233, float("-inf"), [])


def test_log_probabilities_of_a_chat() -> None:
    expected = {
        "content": [
            {
                "token": "A",
                "logprob": -0.5,
                "bytes": [65],
                "top_logprobs": [
                    {"token": "B", "logprob": -0.25, "bytes": [66]},
                    {"token": "A", "logprob": -0.5, "bytes": [65]},
                ],
            },
            {"token": "é", "logprob": -9999.0, "bytes": [195, 169], "top_logprobs": []},
        ],
        "refusal": None,
    }
    request = chat(logprobs=True, top_logprobs=2, stream=True)
    last = delta("Aé", 2, logprobs=[A, B], end=FinishReason.STOP)
    answered = whole(request)
    answered.take([last])
    assert json.loads(answered.body())["choices"][0]["logprobs"] == expected
    event = stream(request).take([last]).split(b"data: ")[1]
    assert json.loads(event)["choices"][0]["logprobs"] == expected


def test_log_probabilities_of_a_completion_count_on_over_chunks() -> None:
    events = stream(completion(logprobs=2, stream=True))
    chunks = [
        json.loads(events.take([delta(text, number, logprobs=[entry])]).split(b"data: ")[1])
        for number, (text, entry) in enumerate([("A", A), ("", B)], start=1)
    ]
    assert [chunk["choices"][0]["logprobs"] for chunk in chunks] == [
        {
            "tokens": ["A"],
            "token_logprobs": [-0.5],
            "top_logprobs": [{"B": -0.25, "A": -0.5}],
            "text_offset": [0],
        },
        {"tokens": ["é"], "token_logprobs": [-9999.0], "top_logprobs": [{"é": -9999.0}], "text_offset": [1]},
    ]


PARTS = [
    TokenText("\ufffd", b"\xf0\x9f"),
    TokenText(" \ufffd", b" \xf0\x9f"),
    TokenText("\ufffd", b"\x99\x82"),
    TokenText("\ufffd", b"\xef\xbf\xbd"),
    TokenText("\ufffd", None),
]
"""Of characters; the last but one is a whole one, and of the last nobody knows."""
PARTED = TokenLogprob(0, -0.5, [(token, -1.0 - token) for token in range(1, len(PARTS) - 1)])


def test_a_part_of_a_character_is_told_by_its_bytes() -> None:
    entries = [PARTED, TokenLogprob(4, -0.25, [])]
    last = delta("", 2, logprobs=entries, end=FinishReason.STOP)
    of_chat = answer.Whole(ScriptedCall("c", [], chat(logprobs=True)), PARTS.__getitem__)
    of_text = answer.Whole(ScriptedCall("c", [], completion(logprobs=4)), PARTS.__getitem__)
    for one in (of_chat, of_text):
        one.take([last])
    parted, unknown = json.loads(of_chat.body())["choices"][0]["logprobs"]["content"]
    told = [bytes(token["bytes"]) for token in (parted, *parted["top_logprobs"])]
    assert told == [part.utf8 for part in PARTS[:-1]]
    assert (unknown["token"], unknown["bytes"]) == ("\ufffd", None)
    logprobs = json.loads(of_text.body())["choices"][0]["logprobs"]
    assert logprobs["tokens"] == [r"bytes:\xf0\x9f", "\ufffd"]
    assert logprobs["top_logprobs"][0] == {
        r"bytes: \xf0\x9f": -2.0,
        r"bytes:\x99\x82": -3.0,
        "\ufffd": -4.0,
        r"bytes:\xf0\x9f": -0.5,
    }


def test_errors_always_have_their_four_keys() -> None:
    error = TooManyRequests("slow down", retry_after_s=1)
    assert answer.error_event(error) == (
        b'data: {"error":{"message":"slow down","type":"rate_limit_error","param":null,'
        b'"code":"rate_limit_exceeded"}}\n\n'
    )


@given(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=8))
def test_a_stream_says_what_a_whole_answer_says(pieces: list[str]) -> None:
    request = chat(stream=True)
    events, answered = stream(request), whole(request)
    raw = b""
    for number, piece in enumerate(pieces, start=1):
        end = FinishReason.STOP if number == len(pieces) else None
        raw += events.take([delta(piece, number, end=end)])
        answered.take([delta(piece, number, end=end)])
    datas = [event.split(b"data: ")[1] for event in raw.removesuffix(b"\n\n").split(b"\n\n")]
    assert datas.pop() == b"[DONE]"
    streamed = "".join(json.loads(data)["choices"][0]["delta"]["content"] for data in datas)
    assert streamed == json.loads(answered.body())["choices"][0]["message"]["content"] == "".join(pieces)


# Headers


def test_headers_set_targets_in_milliseconds() -> None:
    given = {"x-slo-ttft-ms": "250", "x-slo-tpot-ms": "12.5", "x-deadline-ms": "60000"}
    assert headers.applied(chat(), given).targets == Targets(0.25, 0.0125, 60.0)
    assert headers.applied(chat(), {"x-llm-d-slo-ttft-ms": "100"}).targets == Targets(0.1)
    both = {"x-llm-d-slo-tpot-ms": "9", "x-slo-tpot-ms": "5"}
    assert headers.applied(chat(), both).targets == Targets(tpot_s=0.005)
    assert headers.applied(chat(), {"x-other": "1"}) == chat()


@pytest.mark.parametrize(
    ("count", "known"), [("0", 0), ("1", 1), ("12", 12), ("", None), ("-1", None), ("one", None), ("9" * 99, None)]
)
def test_a_client_that_comes_back_is_known_by_its_count(count: str, known: int | None) -> None:
    assert headers.applied(chat(), {"x-stainless-retry-count": count}).num_retries == known
    assert headers.applied(chat(), {}).num_retries is None


def test_an_end_that_openai_has_no_word_for_is_told_beside_the_standard_one() -> None:
    last = msgspec.structs.replace(delta("!", end=FinishReason.LENGTH), detail="deadline")
    stream = answer.Stream(ScriptedCall("c", [], chat(stream=True)), token_text).take([last])
    event = json.loads(stream.split(b"\n")[1].removeprefix(b"data: "))
    whole = answer.Whole(ScriptedCall("c", [], chat()), token_text)
    whole.take([last])
    for choice in (event["choices"][0], json.loads(whole.body())["choices"][0]):
        assert choice["finish_reason"] == "length"
        assert choice["finish_details"] == {"type": "deadline"}


def test_what_is_left_of_a_quota_is_told_in_openais_words() -> None:
    told = headers.rate_limits(Allowance(Level(60, 59, 1.0), Level(150_000, 149_984, 0.0064)))
    assert told == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "150000",
        "x-ratelimit-remaining-tokens": "149984",
        "x-ratelimit-reset-tokens": "7ms",
    }
    assert headers.rate_limits(Allowance()) == {}


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0, "0s"),
        (0.0001, "1ms"),
        (1.0, "1s"),
        (59.951, "59.951s"),
        (60.0, "1m0s"),
        (360.0, "6m0s"),
        (61.5, "1m1.5s"),
    ],
)
def test_a_reset_is_written_as_openai_does(seconds: float, words: str) -> None:
    assert headers.duration(seconds) == words
