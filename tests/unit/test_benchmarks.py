"""What the benchmarks are made of: they count what they say."""

import asyncio

from benchmarks import scheduling_cost


def test_what_deciding_costs_is_told_by_step() -> None:
    async def run() -> None:
        spent_us, scene = await scheduling_cost.measure(40, 20)
        assert list(spent_us) == list(scheduling_cost.STEPS)
        assert min(spent_us.values()) > 0
        assert scene.depth == 40

    asyncio.run(run())
