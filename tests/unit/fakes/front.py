"""The HTTP front on a free port of this machine, over scripted calls."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry

from gateway.keyring import Keyring
from gateway.metrics import Metrics
from gateway.server import IDLE_TIMEOUT_S, make_app, make_runner
from tests.unit.fakes.calls import MODEL, ScriptedCalls
from tests.unit.fakes.tokenizer import CharTokenizer

Visit = Callable[[str], Awaitable[None]]
"""Gets the front's URL."""


@contextlib.asynccontextmanager
async def serving(
    calls: ScriptedCalls,
    keyring: Keyring | None = None,
    idle_timeout_s: float = IDLE_TIMEOUT_S,
    **options: Any,
) -> AsyncIterator[str]:
    """Without a keyring nobody is asked for a key."""
    metrics = Metrics(CollectorRegistry(), MODEL)
    app = make_app(calls, CharTokenizer(), metrics, keyring=keyring or Keyring(), **options)
    runner = make_runner(app, idle_timeout_s)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0]
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()
    assert not calls.live


def visit(scenario: Visit, calls: ScriptedCalls | None = None, **options: Any) -> None:
    async def main() -> None:
        async with serving(calls or ScriptedCalls(), **options) as url:
            await scenario(url)

    asyncio.run(main())
