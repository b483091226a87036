"""Streams of a gateway that is killed, or told to stop, go on at another and are what they would have been."""

import asyncio
import signal
from typing import Any

import aiohttp
import msgspec
import pytest

from gateway import local
from gateway.settings import DEMO_MODEL
from tests.stack import client

pytestmark = pytest.mark.timeout(300)

STREAMS = 8
TOKENS = 150
READY_S = 60.0


class Reader:
    """Reads one stream, an event at a time, over several connections."""

    def __init__(self, number: int) -> None:
        self.text = ""
        self.token_texts: list[str] = []
        self.logprobs: list[float] = []
        self.usage: dict[str, Any] | None = None
        self.is_done = False
        self.has_begun = asyncio.Event()
        self._last_id = ""
        self._body = {
            "model": "demo",
            "prompt": f"Tell me story number {number} about a fox and",
            "max_tokens": TOKENS,
            "temperature": 0,
            "ignore_eos": True,
            "logprobs": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }

    async def read(self, url: str) -> None:
        """As far as this connection goes."""
        headers = {"Last-Event-ID": self._last_id} if self._last_id else {"Accept": "text/event-stream"}
        async with client.session(url) as session:
            try:
                async with session.post("/v1/completions", json=self._body, headers=headers) as response:
                    assert response.status == 200, await response.text()
                    await self._read(response)
            except aiohttp.ClientError:
                assert not self.is_done

    async def _read(self, response: aiohttp.ClientResponse) -> None:
        while (event := await response.content.readuntil(b"\n\n")).endswith(b"\n\n"):
            for line in event.splitlines():
                if line.startswith(b"id: "):
                    self._last_id = line[4:].decode()
                elif line == b"data: [DONE]":
                    self.is_done = True
                    return
                elif line.startswith(b"data: "):
                    self._take(msgspec.json.decode(line[6:]))

    def _take(self, chunk: Any) -> None:
        self.usage = chunk["usage"] or self.usage
        for choice in chunk["choices"]:
            self.text += choice["text"]
            if choice["logprobs"]:
                self.token_texts += choice["logprobs"]["tokens"]
                self.logprobs += choice["logprobs"]["token_logprobs"]
        if len(self.token_texts) >= 10:
            self.has_begun.set()


async def ready(url: str) -> None:
    async with client.session(url) as session, asyncio.timeout(READY_S):
        while True:
            try:
                async with session.get("/ready") as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.1)


async def scenario() -> None:
    async with local.Stack(model=DEMO_MODEL, name="demo", dtype="float32") as stack:
        urls = []
        for _ in range(3):
            port = local.free_port()
            urls.append(f"http://127.0.0.1:{port}")
            await stack.start_gateway(
                [
                    *("--redis", stack.redis_url, "--triton", stack.triton_address, "--port", str(port)),
                    *("--model-name", "demo", "--http-grace-s", "0.2"),
                ]
            )
        for url in urls:
            await ready(url)
        unbroken = [Reader(number) for number in range(STREAMS)]
        await asyncio.gather(*(reader.read(urls[2]) for reader in unbroken))
        for gateway, number in enumerate((signal.SIGKILL, signal.SIGTERM)):
            readers = [Reader(number) for number in range(STREAMS)]
            reading = [asyncio.create_task(reader.read(urls[gateway])) for reader in readers]
            await asyncio.gather(*(reader.has_begun.wait() for reader in readers))
            stack.kill(f"gateway-{gateway}", number)
            await asyncio.gather(*reading)
            assert not any(reader.is_done for reader in readers), "all were cut"
            await asyncio.gather(*(reader.read(urls[2]) for reader in readers))
            for reader, reference in zip(readers, unbroken, strict=True):
                assert reader.is_done
                assert reader.usage == reference.usage
                assert reader.token_texts == reference.token_texts
                assert reader.text == reference.text
                assert reader.logprobs == pytest.approx(reference.logprobs, abs=1e-3)
                assert len(reader.token_texts) == TOKENS


def test_streams_of_gateways_that_end_go_on_at_another() -> None:
    client.run(scenario())
