"""Requests that deserve an error, as plain data, and what each must get.

`check` runs one against any server, a fake's front or the real stack, by raw bytes over a socket: no client
library would send most of these.  Nothing here may ever be answered with a 500.
"""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
JSON = "application/json"


@dataclass(frozen=True)
class Bad:
    name: str
    body: bytes = b""
    path: str = CHAT
    method: str = "POST"
    status: int = 400
    param: str | None = None
    headers: tuple[tuple[str, str], ...] = (("Content-Type", JSON),)
    framed: bool = True
    """A right Content-Length is added."""
    is_http: bool = True
    """False: aiohttp answers before us, in plain text."""
    slow: bool = False
    """Answered when the server's patience with the body ends."""


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


def chat(model: str = "MODEL", **fields: Any) -> bytes:
    return json.dumps({"model": model, "messages": [{"role": "user", "content": "hi"}]} | fields).encode()


def text(**fields: Any) -> bytes:
    return json.dumps({"model": "MODEL", "prompt": "hi"} | fields).encode()


def message(**fields: Any) -> bytes:
    return chat(messages=[{"role": "user", "content": "hi"} | fields])


def part(**fields: Any) -> bytes:
    return message(content=[fields])


def raw_chat(fields: bytes) -> bytes:
    return chat()[:-1] + b"," + fields + b"}"


DEEP = b"[" * 100_000 + b"]" * 100_000
JSON_TYPE = (("Content-Type", JSON),)


def post(path: str, body: bytes) -> bytes:
    """A good request, for a connection of one's own."""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {JSON}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def table() -> list[Bad]:
    cases = [*_no_json(), *_fields(), *_unsupported(), *_addresses(), *_framing()]
    assert len({case.name for case in cases}) == len(cases)
    return cases


def _no_json() -> Iterator[Bad]:
    bodies = {
        "empty body": b"",
        "half an object": b'{"model": "MODEL"',
        "a bare bracket": b"{",
        "an array": b"[]",
        "null": b"null",
        "a number": b"7",
        "two objects": chat() + chat(),
        "single quotes": b"{'model': 'MODEL'}",
        "a trailing comma": b'{"model": "MODEL",}',
        "NaN": raw_chat(b'"temperature": NaN'),
        "Infinity": raw_chat(b'"top_p": -Infinity'),
        "100,000 brackets": DEEP,
        "100,000 brackets in an unknown field": raw_chat(b'"x": ' + DEEP),
        "bad UTF-8": chat(model="MODEL").replace(b"hi", b"\xff\xfe"),
        "half a surrogate pair": chat().replace(b'"hi"', b'"\\ud800"'),
        "a control character": chat().replace(b"hi", b"\x01"),
        "UTF-16": chat().decode().encode("utf-16"),
        "a form": b"model=MODEL&prompt=hi",
    }
    for name, body in bodies.items():
        yield Bad(name, body)
    yield Bad("100,000 brackets in a refused field", raw_chat(b'"tools": ' + DEEP))
    yield Bad("a number beyond floats", raw_chat(b'"temperature": 1e999'), param="temperature")


def _fields() -> Iterator[Bad]:
    for name, body, param in (
        ("no model", chat().replace(b"model", b"mode"), "model"),
        ("model null", chat(model=None), "model"),  # type: ignore[arg-type]
        ("model a number", chat(model=1), "model"),  # type: ignore[arg-type]
        ("model empty", chat(model=""), "model"),
        ("no messages", b'{"model": "MODEL"}', "messages"),
        ("messages null", chat(messages=None), "messages"),
        ("messages empty", chat(messages=[]), "messages"),
        ("messages a string", chat(messages="hi"), "messages"),
        ("a message a string", chat(messages=["hi"]), "messages[0]"),
        ("role unknown", message(role="king"), "messages[0].role"),
        ("role missing", chat(messages=[{"content": "hi"}]), "messages[0].role"),
        ("content null from a user", message(content=None), "messages[0].content"),
        ("content missing", chat(messages=[{"role": "user"}]), "messages[0].content"),
        ("content a number", message(content=5), "messages[0].content"),
        ("a part a string", message(content=["hi"]), "messages[0].content[0]"),
        ("a part without type", part(text="hi"), "messages[0].content[0].type"),
        ("a part without text", part(type="text"), "messages[0].content[0].text"),
        ("name a number", message(name=1), "messages[0].name"),
        ("max_tokens zero", chat(max_tokens=0), "max_tokens"),
        ("max_tokens negative", chat(max_tokens=-1), "max_tokens"),
        ("max_tokens a string", chat(max_tokens="5"), "max_tokens"),
        ("max_tokens a fraction", chat(max_tokens=1.5), "max_tokens"),
        ("max_tokens true", chat(max_tokens=True), "max_tokens"),
        ("max_tokens beyond integers", chat(max_tokens=10**30), "max_tokens"),
        ("two different limits", chat(max_tokens=1, max_completion_tokens=2), "max_completion_tokens"),
        ("min_tokens negative", chat(min_tokens=-1), "min_tokens"),
        ("min_tokens above the limit", chat(min_tokens=9, max_tokens=5), "min_tokens"),
        ("temperature negative", chat(temperature=-0.1), "temperature"),
        ("temperature too high", chat(temperature=2.1), "temperature"),
        ("temperature a string", chat(temperature="hot"), "temperature"),
        ("top_p zero", chat(top_p=0), "top_p"),
        ("top_p above one", chat(top_p=1.01), "top_p"),
        ("top_k below -1", chat(top_k=-2), "top_k"),
        ("seed beyond 64 bits", chat(seed=2**63), "seed"),
        ("seed a fraction", chat(seed=0.5), "seed"),
        ("stop empty", chat(stop=""), "stop"),
        ("a stop empty", chat(stop=["a", ""]), "stop[1]"),
        ("a stop a number", chat(stop=[1]), "stop[0]"),
        ("17 stops", chat(stop=["a"] * 17), "stop"),
        ("a stop of a megabyte", chat(stop="a" * 2**20)[:900_000] + b'"}', "stop"),
        ("stop token negative", chat(stop_token_ids=[-1]), "stop_token_ids[0]"),
        ("stop token beyond the vocabulary", chat(stop_token_ids=[2**31 - 1]), "stop_token_ids"),
        ("n zero", chat(n=0), "n"),
        ("n 129", chat(n=129), "n"),
        ("n a list", chat(n=[1]), "n"),
        ("best_of above n", chat(best_of=2), "best_of"),
        ("logprobs a number in a chat", chat(logprobs=5), "logprobs"),
        ("top_logprobs alone", chat(top_logprobs=5), "top_logprobs"),
        ("top_logprobs 21", chat(logprobs=True, top_logprobs=21), "top_logprobs"),
        ("stream a string", chat(stream="true"), "stream"),
        ("stream_options without stream", chat(stream_options={"include_usage": True}), "stream_options"),
        ("stream_options a list", chat(stream=True, stream_options=[]), "stream_options"),
        (
            "include_usage a number",
            chat(stream=True, stream_options={"include_usage": 1}),
            "stream_options.include_usage",
        ),
        ("ignore_eos a number", chat(ignore_eos=1), "ignore_eos"),
        ("service_tier unknown", chat(service_tier="gold"), "service_tier"),
        ("user an object", chat(user={}), "user"),
        ("user too long", chat(user="u" * 513), "user"),
    ):
        yield Bad(name, body, param=param)
    for name, body, param in (
        ("no prompt", b'{"model": "MODEL"}', "prompt"),
        ("prompt null", text(prompt=None), "prompt"),
        ("prompt a number", text(prompt=5), "prompt"),
        ("no prompts", text(prompt=[]), "prompt"),
        ("prompts mixed", text(prompt=["a", 1]), "prompt"),
        ("prompts nested twice", text(prompt=[[[1]]]), "prompt[0][0]"),
        ("a prompt without tokens", text(prompt=[[1], []]), "prompt[1]"),
        ("prompt token negative", text(prompt=[-1]), "prompt[0]"),
        ("prompt token a fraction", text(prompt=[1.5]), "prompt[0]"),
        ("prompt token beyond the vocabulary", text(prompt=[1, 2**31 - 1]), "prompt"),
        ("129 prompts", text(prompt=["a"] * 129), "prompt"),
        ("prompts times n above 128", text(prompt=["a"] * 13, n=10), "n"),
        ("logprobs true in a completion", text(logprobs=True), "logprobs"),
        ("logprobs 21", text(logprobs=21), "logprobs"),
        ("echo with logprobs", text(echo=True, logprobs=1), "logprobs"),
        ("a chat's messages as prompt", text(prompt=[{"role": "user"}]), "prompt[0]"),
    ):
        yield Bad(name, body, TEXT, param=param)


def _unsupported() -> Iterator[Bad]:
    fields: dict[str, Any] = {
        "tools": [{"type": "function"}],
        "tool_choice": "auto",
        "functions": [{}],
        "response_format": {"type": "json_object"},
        "logit_bias": {"5": 1},
        "frequency_penalty": 0.5,
        "presence_penalty": -1,
        "repetition_penalty": 1.1,
        "min_p": 0.1,
        "suffix": "end",
        "audio": {"voice": "x"},
        "modalities": ["text", "audio"],
        "guided_json": {"type": "object"},
        "add_generation_prompt": False,
        "add_special_tokens": True,
        "regex": "a+",
        "ebnf": "root ::= x",
        "grammar": "root ::= x",
        "json_schema": {"type": "object"},
        "stop_regex": "x+",
        "prompt_logprobs": 1,
    }
    for field, value in fields.items():
        yield Bad(f"unsupported {field}", chat(**{field: value}), param=field)
    bare = b'{"model": "MODEL", "prompt": "hi", "add_special_tokens": false}'
    yield Bad("no special tokens before a prompt", bare, path=TEXT, param="add_special_tokens")
    yield Bad("echo in a chat", chat(echo=True), param="echo")
    yield Bad("an image", part(type="image_url", image_url={}), param="messages[0].content[0].type")
    yield Bad("audio", part(type="input_audio"), param="messages[0].content[0].type")
    yield Bad("tool calls", message(role="assistant", tool_calls=[{}]), param="messages[0].tool_calls")


def _addresses() -> Iterator[Bad]:
    yield Bad("unknown model", chat(model="no-such-model"), status=404, param="model")
    yield Bad("unknown model by name", path="/v1/models/no-such-model", method="GET", status=404, param="model")
    yield Bad("unknown address", chat(), path="/v1/embeddings", status=404)
    yield Bad("root", path="/", method="GET", status=404)
    yield Bad("dots", path="/v1/../../etc/passwd", method="GET", status=404)
    yield Bad("GET for POST", path=CHAT, method="GET", status=405)
    yield Bad("PUT", chat(), method="PUT", status=405)
    yield Bad("DELETE a model", path="/v1/models/MODEL", method="DELETE", status=405)
    yield Bad("plain text", chat(), status=415, headers=(("Content-Type", "text/plain"),))
    yield Bad("a form's type", chat(), status=415, headers=(("Content-Type", "multipart/form-data; boundary=x"),))
    yield Bad("latin-1", chat(), status=415, headers=(("Content-Type", JSON + "; charset=latin-1"),))
    yield Bad("gzip", b"\x1f\x8b" + b"\0" * 99, status=415, headers=(*JSON_TYPE, ("Content-Encoding", "gzip")))
    yield Bad("no type", chat(), status=415, headers=())
    yield Bad("a coding that is no text", chat(), status=415, headers=(*JSON_TYPE, ("Content-Encoding", "\udcff")))
    yield Bad("brotli", b"\0" * 99, status=415, headers=(*JSON_TYPE, ("Content-Encoding", "br")))


def _framing() -> Iterator[Bad]:
    def with_headers(*headers: tuple[str, str]) -> dict[str, Any]:
        return {"headers": (*JSON_TYPE, *headers), "framed": False}

    for name in ("x-slo-ttft-ms", "x-slo-tpot-ms", "x-deadline-ms", "x-llm-d-slo-ttft-ms"):
        for value in ("soon", "0", "-5", "nan", "inf", "1e300", ""):
            yield Bad(f"{name} {value!r}", chat(), param=name, headers=(*JSON_TYPE, (name, value)))
    chunked = with_headers(("Transfer-Encoding", "chunked"))
    huge = b"%x\r\n" % 2**20 + b" " * 2**20 + b"\r\n"
    yield Bad("a terabyte announced", **with_headers(("Content-Length", str(2**40))), status=413)
    yield Bad("too large in chunks", huge * 6 + b"0\r\n\r\n", **chunked, status=413)
    yield Bad("no chunk size", b"zz\r\nhi\r\n0\r\n\r\n", **chunked, is_http=False)
    yield Bad("Content-Length too short", chat(), **with_headers(("Content-Length", "10")), is_http=False)
    yield Bad("Content-Length negative", chat(), **with_headers(("Content-Length", "-5")), is_http=False)
    yield Bad("Content-Length a word", chat(), **with_headers(("Content-Length", "many")), is_http=False)
    yield Bad(
        "two Content-Lengths",
        chat(),
        **with_headers(("Content-Length", "10"), ("Content-Length", "11")),
        is_http=False,
    )
    yield Bad("no HTTP", path="x" * 20, method="\x16\x03\x01", is_http=False)
    yield Bad("a header of 100 kB", chat(), headers=(("X-Long", "x" * 100_000),), is_http=False)
    yield Bad("half a body", chat()[:-9], **with_headers(("Content-Length", "500")), status=408, slow=True)
    yield Bad("no body at all", **with_headers(("Content-Length", "50")), status=408, slow=True)
    yield Bad("half a chunk", b"50\r\n{", **chunked, status=408, slow=True)


async def send(base_url: str, bad: Bad, model: str) -> Answer:
    """On a connection of its own."""
    address = urlsplit(base_url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        body = bad.body.replace(b"MODEL", model.encode())
        headers = [("Host", address.netloc), *bad.headers]
        if bad.framed:
            headers.append(("Content-Length", str(len(body))))
        path = bad.path.replace("MODEL", model)
        head = f"{bad.method} {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers)
        writer.write(head.encode(errors="surrogateescape") + b"\r\n" + body)
        return await _read(reader)
    finally:
        writer.close()


async def _read(reader: asyncio.StreamReader) -> Answer:
    status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[:-2]
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Answer(int(status.split()[1]), headers, body)


async def check(base_url: str, bad: Bad, model: str) -> None:
    """The documented status and error object; and the next request, on a new connection, works."""
    answer = await send(base_url, bad, model)
    assert answer.status == bad.status, answer
    if bad.is_http:
        assert answer.headers["content-type"].startswith(JSON)
        assert answer.headers["x-request-id"]
        error = json.loads(answer.body)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]
        assert error["param"] == bad.param, error
    if bad.status == 405:
        assert answer.headers["allow"]
    good = await send(base_url, Bad("good", chat(max_tokens=1)), model)
    assert good.status == 200, good
