"""Clients that keep a number of streams open and note what comes, and when.

Each asks one of a few questions, again and again.  Like a good client it comes back when it is told to, and goes
to another gateway if one does not answer.  If its gateway dies in the middle of a stream, it reads on elsewhere or
asks anew.
"""

import asyncio
import random
from itertools import pairwise
from typing import Any, NamedTuple

import aiohttp
import msgspec

from tests.stack import reference
from tests.stack.site import Gateway, Site, now_s
from triton_backend.contract import Sampling

QUESTIONS = 24
WITH_LOGPROBS = 0.75
"""Of the streams.  Of the others only the text is known.  Every question is asked in both ways."""
READ_ON = 0.5
"""Of the streams, if their gateway dies."""
HANG_S = 180.0
"""A stream that has not ended after so long hangs."""
MAX_DEATHS = 2
"""Engines may die so often under one request; at the third it is taken for the cause."""
PATIENT = {"x-slo-ttft-ms": "600000", "x-slo-tpot-ms": "600000"}
"""All streams are to run at once, however slow the machine."""
_RETRY_S = 0.1
_MAX_RETRY_S = 1.0


class Question(NamedTuple):
    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Sampling

    def body(self, has_logprobs: bool) -> dict[str, Any]:
        return {
            "model": "demo",
            "prompt": self.prompt,
            "max_tokens": self.max_tokens,
            "temperature": self.sampling.temperature,
            "seed": self.sampling.seed,
            "logprobs": 0 if has_logprobs else None,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }


def questions(seed: int, lengths: range) -> list[Question]:
    """Half of them greedy, half seeded samples."""
    rng = random.Random(seed)
    words = ["the fox", "a story", "long", "short", "about", "in one word", "and then", "it went home", "7"]
    ids = reference.tokenizer()(" ".join(rng.choice(words) for _ in range(200)))["input_ids"]
    made = []
    for number in range(QUESTIONS):
        start, length = rng.randrange(100), rng.randrange(4, 60)
        sampling = Sampling(temperature=number % 2 * 0.7, seed=rng.randrange(2**40))
        made.append(Question(tuple(ids[start : start + length]), rng.choice(lengths), sampling))
    return made


class Stream:
    """One stream as its client saw it."""

    def __init__(self, question: Question, has_logprobs: bool, gateway: Gateway, engine_deaths: int) -> None:
        self.question = question
        self.has_logprobs = has_logprobs
        self.gateway = gateway
        """Where it is read."""
        self.call_id = ""
        self.last_id = ""
        """Of its events, if it asked for ids."""
        self.times_read_on = 0
        self.is_unknown = False
        """No gateway could go on with it."""
        self.is_whole = self.is_refuted = False
        """It came to its end, or to an error."""
        self.texts: list[str] = []
        """Of the chunks."""
        self.token_texts: list[str] = []
        self.logprobs: list[float] = []
        self.usage: dict[str, Any] = {}
        self.finish_reason: str | None = None
        self.failure = ""
        self.heard_s: list[float] = []
        """When anything with text came."""
        self.begun_s = self.connected_s = now_s()
        self.end_s: float | None = None
        self.engine_deaths = engine_deaths
        """Of the site, when it began."""

    def __str__(self) -> str:
        told = f"{self.finish_reason} {self.usage.get('completion_tokens')} {self.failure}"
        return f"{self.call_id} at {self.gateway.name}: {len(self.heard_s)} chunks, {told}"

    @property
    def is_flowing(self) -> bool:
        return bool(self.heard_s) and self.end_s is None

    @property
    def is_cut(self) -> bool:
        """Its gateway was killed before it could end."""
        return self.finish_reason is None and self.gateway.killed_s > self.connected_s

    @property
    def can_go_on(self) -> bool:
        """It broke off, and its client may ask for the rest."""
        return bool(self.last_id) and not (self.is_whole or self.is_unknown or self.is_refuted)

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def came_to(self, gateway: Gateway) -> None:
        self.gateway, self.connected_s, self.failure = gateway, now_s(), ""
        self.times_read_on += 1

    def take(self, event: dict[str, Any], event_id: str) -> None:
        self.last_id = event_id or self.last_id
        if "error" in event:
            self.is_refuted = True
            self.failure = str(event["error"])
            return
        self.usage = event["usage"] or self.usage
        for choice in event["choices"]:
            self.texts.append(choice["text"])
            self.heard_s.append(now_s())
            if choice["logprobs"]:
                self.token_texts += choice["logprobs"]["tokens"]
                self.logprobs += choice["logprobs"]["token_logprobs"]
            self.finish_reason = choice["finish_reason"] or self.finish_reason

    def pause_s(self, since_s: float, until_s: float) -> float:
        """The longest wait for a chunk that lies in this time, at least in part."""
        heard_s = self.heard_s if self.end_s else [*self.heard_s, now_s()]
        return max((b - a for a, b in pairwise(heard_s) if a < until_s and b > since_s), default=0.0)


class Refusal(NamedTuple):
    at_s: float
    status: int
    retry_after_s: float | None


class Crowd:
    def __init__(self, site: Site, size: int, seed: int, lengths: range = range(100, 200)) -> None:
        """`lengths` are those of the answers, in tokens."""
        self._site = site
        self._size = size
        self._rng = random.Random(seed)
        self._questions = questions(seed, lengths)
        self._clients: list[asyncio.Task[None]] = []
        self._is_closing = False
        self.streams: list[Stream] = []
        self.refusals: list[Refusal] = []

    async def __aenter__(self) -> "Crowd":
        timeout = aiohttp.ClientTimeout(total=HANG_S, sock_connect=2.0)
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        self._session = aiohttp.ClientSession(headers=PATIENT, connector=connector, timeout=timeout)
        self._clients = [asyncio.create_task(self._ask_for_ever()) for _ in range(self._size)]
        return self

    async def __aexit__(self, *_: object) -> None:
        """Every stream that is open is heard to its end."""
        self._is_closing = True
        await asyncio.gather(*self._clients)
        await self._session.close()

    @property
    def flowing(self) -> list[Stream]:
        return [stream for stream in self.streams if stream.is_flowing]

    async def grown(self) -> None:
        """Returns when nearly every client has a stream that flows."""
        while len(self.flowing) < 0.94 * self._size:
            await asyncio.sleep(_RETRY_S)

    async def sturdy(self) -> None:
        """Returns when an engine may die without a request being taken for the cause."""
        while any(self._site.engine_deaths - stream.engine_deaths >= MAX_DEATHS for stream in self._open):
            await asyncio.sleep(_RETRY_S)

    @property
    def _open(self) -> list[Stream]:
        return [stream for stream in self.streams if stream.end_s is None]

    async def _ask_for_ever(self) -> None:
        while not self._is_closing:
            gateways = [gateway for gateway in self._site.gateways if gateway.is_open]
            await self._ask(self._rng.choice(self._questions), self._rng.choice(gateways))

    async def _ask(self, question: Question, gateway: Gateway) -> None:
        has_logprobs, reads_on = self._rng.random() < WITH_LOGPROBS, self._rng.random() < READ_ON
        stream = Stream(question, has_logprobs, gateway, self._site.engine_deaths)
        accept = "text/event-stream" if reads_on else "*/*"
        try:
            async with self._session.post(
                f"{gateway.url}/v1/completions", json=question.body(has_logprobs), headers={"Accept": accept}
            ) as response:
                if response.status != 200:
                    await self._refused(response)
                    return
                self.streams.append(stream)
                stream.call_id = response.headers["x-request-id"]
                await _hear(stream, response)
        except (aiohttp.ClientError, TimeoutError) as error:
            stream.failure = repr(error)
            await asyncio.sleep(_RETRY_S)
        while stream.can_go_on and now_s() - stream.begun_s < HANG_S:
            await self._read_on(stream)
        stream.end_s = now_s()

    async def _read_on(self, stream: Stream) -> None:
        """At any gateway, as far as that goes."""
        gateway = self._rng.choice([gateway for gateway in self._site.gateways if gateway.is_open])
        try:
            async with self._session.get(
                f"{gateway.url}/v1/streams/{stream.call_id}", headers={"Last-Event-ID": stream.last_id}
            ) as response:
                if response.status == 404:
                    stream.is_unknown = True
                elif response.status != 200:
                    await self._refused(response)
                else:
                    stream.came_to(gateway)
                    await _hear(stream, response)
        except (aiohttp.ClientError, TimeoutError) as error:
            stream.failure = repr(error)
            await asyncio.sleep(_RETRY_S)

    async def _refused(self, response: aiohttp.ClientResponse) -> None:
        given = response.headers.get("Retry-After")
        self.refusals.append(Refusal(now_s(), response.status, float(given) if given else None))
        await asyncio.sleep(min(float(given or 0), _MAX_RETRY_S))


async def _hear(stream: Stream, response: aiohttp.ClientResponse) -> None:
    event_id = ""
    async for line in response.content:
        if line.startswith(b"id: "):
            event_id = line[4:].decode().strip()
        elif line.startswith(b"data: {"):
            stream.take(msgspec.json.decode(line[6:]), event_id)
        elif line.startswith(b"data: [DONE]"):
            stream.is_whole = True
