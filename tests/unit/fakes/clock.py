"""The simulator's clock, on which no test waits, and a store's."""

import asyncio
from collections.abc import Callable

from gateway.simulator.clock import VirtualLoop as VirtualLoop
from gateway.simulator.clock import run as run

AHEAD_S = 1.7e9


def of_store() -> Callable[[], float]:
    """Redis counts from 1970, an event loop from its machine's start: taking one for the other is found out."""
    loop = asyncio.get_running_loop()
    return lambda: AHEAD_S + loop.time()
