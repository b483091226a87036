"""Nobody waits for somebody else's large body, or for a client that does not read."""

import asyncio
import io
import json

import pytest

from tests.stack import client
from tests.stack.serving import Serving

pytestmark = pytest.mark.timeout(120)

BIG_BYTES = 5_000_000
STREAMS = 8
ANSWER = {"max_tokens": 100, "ignore_eos": True, "temperature": 0}


def test_streams_go_on_beside_large_bodies_and_a_client_that_does_not_read() -> None:
    with Serving("--http-max-body-bytes", "8MiB") as up:
        alone = client.run(_streams(up))
        beside, refusals = client.run(_beside(up))
        assert beside == alone
        assert refusals == [(400, "context_length_exceeded")] * 3
        assert up.metric("bucketserve_event_loop_lag_seconds_count") > 0


async def _beside(up: Serving) -> tuple[list[str], list[tuple[int, str]]]:
    async with client.session(up.url) as session:
        body = {"model": up.model, "prompt": [5, 6, 7], "stream": True, **ANSWER, "max_tokens": 400}
        async with session.post("/v1/completions", json=body) as deaf:
            assert deaf.status == 200
            streams = asyncio.create_task(_streams(up))
            refusals = await asyncio.gather(*(_large(up, unit) for unit in ("é", "中", "ü")))
            return await streams, refusals


async def _streams(up: Serving) -> list[str]:
    async with client.session(up.url) as session:
        prompts = [[5 + number, 6, 7] for number in range(STREAMS)]
        answers = await asyncio.gather(*(client.stream(session, up.model, prompt, **ANSWER) for prompt in prompts))
    return [answer.text for answer in answers]


async def _large(up: Serving, unit: str) -> tuple[int, str]:
    body = json.dumps({"model": up.model, "prompt": unit * (BIG_BYTES // 6)}).encode()
    async with (
        client.session(up.url) as session,
        session.post(
            "/v1/completions", data=io.BytesIO(body), headers={"Content-Type": "application/json"}
        ) as response,
    ):
        return response.status, (await response.json())["error"]["code"]
