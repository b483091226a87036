"""One request over HTTP, from the first byte sent to its ending."""

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, NamedTuple

import aiohttp
import msgspec

from gateway.bench.options import Options
from gateway.bench.prompts import Prompts
from gateway.bench.wire import Broken, Stream, Usage, refusal
from gateway.load.record import Ending
from gateway.load.workload import Arrival
from gateway.options import SettingsError
from gateway.request import ServiceClass

IDLE_S = 2.0
"""Connections idle for longer are not used again: common servers close them after 5 s, and a request that meets
the closing would count as failed."""
CONNECT_S = 10.0
_LINE_BYTES = 2**20

OnTokens = Callable[[int], None]


class Answer(NamedTuple):
    ending: Ending
    reason: str = ""
    """Why it did not finish; of few different values."""
    retry_after_s: float | None = None
    """When a refused client may come back, if the server says."""
    usage: Usage | None = None


class Client:
    def __init__(self, session: aiohttp.ClientSession, options: Options, model: str, prompts: Prompts) -> None:
        self._session = session
        self._url = options.url + ("/v1/chat/completions" if options.endpoint == "chat" else "/v1/completions")
        self._is_chat = options.endpoint == "chat"
        self._model = model
        self._prompts = prompts

    async def ask(self, request: int, arrival: Arrival, on_tokens: OnTokens) -> Answer:
        """`on_tokens` is told how many tokens came whenever some do."""
        stream = Stream()
        try:
            async with self._session.post(
                self._url, data=self._body(request, arrival), headers=_headers(arrival)
            ) as response:
                if response.status != 200:
                    return _refused(response.status, response.headers, await response.read())
                async for line in response.content:
                    if count := stream.take(line):
                        on_tokens(count)
        except aiohttp.ConnectionTimeoutError:
            return Answer(Ending.FAILED, f"no connection within {CONNECT_S:g} s")
        except TimeoutError:
            return Answer(Ending.EXPIRED, "no complete answer within --timeout-s")
        except Broken as error:
            return Answer(Ending.FAILED, str(error))
        except (aiohttp.ClientError, ValueError) as error:
            return Answer(Ending.FAILED, f"{type(error).__name__}: {error}"[:200])
        if not stream.done:
            return Answer(Ending.FAILED, "the stream ended before its end")
        return Answer(Ending.FINISHED, usage=stream.usage)

    def _body(self, request: int, arrival: Arrival) -> bytes:
        prompt = self._prompts.prompt(request, arrival.prompt_tokens)
        body: dict[str, Any] = {
            "model": self._model,
            "max_tokens": arrival.output_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }
        body |= {"messages": [{"role": "user", "content": prompt}]} if self._is_chat else {"prompt": prompt}
        if arrival.service_class is not ServiceClass.DEFAULT:
            body["service_tier"] = arrival.service_class
        return msgspec.json.encode(body)


def _headers(arrival: Arrival) -> dict[str, str]:
    targets = {"x-slo-ttft-ms": arrival.ttft_slo_s, "x-slo-tpot-ms": arrival.tpot_slo_s}
    return {name: f"{1000.0 * value_s:g}" for name, value_s in targets.items() if value_s is not None}


def _refused(status: int, headers: Mapping[str, str], body: bytes) -> Answer:
    reason = f"HTTP {status}: {refusal(body)}"
    if status in (429, 503):
        return Answer(Ending.REJECTED, reason, _retry_after_s(headers))
    return Answer(Ending.FAILED, reason)


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    for name, unit_s in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        # It may also be a date, which none of the servers that we know sends.
        with contextlib.suppress(KeyError, ValueError):
            return float(headers[name]) * unit_s
    return None


@contextlib.asynccontextmanager
async def session(options: Options, key: str | None) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_S),
        timeout=aiohttp.ClientTimeout(total=options.timeout_s, sock_connect=CONNECT_S),
        headers={"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {}),
        read_bufsize=_LINE_BYTES,
    ) as client:
        yield client


async def first_model(client: aiohttp.ClientSession, url: str) -> str:
    """Raises SettingsError if the server does not answer, or has none."""
    try:
        async with client.get(f"{url}/v1/models") as response:
            body = await response.read()
            if response.status != 200:
                raise SettingsError(f"{url}/v1/models: HTTP {response.status}: {refusal(body)}")
            return str(msgspec.json.decode(body)["data"][0]["id"])
    except (aiohttp.ClientError, TimeoutError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SettingsError(f"{url} does not answer: {reason}") from None
    except (msgspec.MsgspecError, LookupError, TypeError):
        raise SettingsError(f"{url}/v1/models lists no model; name one with --model") from None
