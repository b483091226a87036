"""Whatever breaks under open streams, every token arrives once, and nothing is left afterwards.

`make test` breaks each thing once, then several at a time in two rounds; `make chaos ROUNDS=20 SEED=7` in more.
"""

import asyncio
import os
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.stack import client
from tests.stack.crowd import Crowd, Stream
from tests.stack.faults import ALL, FAULTS, Fault
from tests.stack.site import GATEWAYS, Site, now_s
from tests.stack.verdict import Judge, Verdict

SEED = int(os.environ.get("CHAOS_SEED", "1"))
ROUNDS = int(os.environ.get("CHAOS_ROUNDS", "1"))
STREAMS = 215
TIGHT_BYTES = 150 * 2**20
"""A replica's share of the streams needs about as much."""
OPEN = 200
SETTLE_S = 60.0
"""Longer than an inbox is kept that nobody writes to."""
SPARE_FILES = GATEWAYS * 16
"""Connections that the gateways' pools may keep."""
WIDTH = 40
HEAD = f"{'fault':{WIDTH}} streams  read on   cut  lost  duplicated  wrong  refused  own pause  foreign"
CALM_S = 2.0
"""How long a fault's consequences are looked at after it is over."""

pytestmark = pytest.mark.timeout(900)


class Strike:
    """One fault, or several at a time, and whom it met."""

    def __init__(self, faults: Sequence[Fault], met: Sequence[Stream], foreign: set[str]) -> None:
        self.faults = faults
        self.met = met
        self.foreign = foreign
        self.begun_s = now_s()
        self.end_s = 0.0

    @property
    def name(self) -> str:
        return " + ".join(fault.name for fault in self.faults)

    def pause_s(self, is_foreign: bool) -> float:
        streams = [stream for stream in self.met if (stream.call_id in self.foreign) == is_foreign]
        return max((stream.pause_s(self.begun_s, self.end_s) for stream in streams), default=0.0)


async def strike(site: Site, crowd: Crowd, faults: Sequence[Fault], rng: random.Random) -> Strike:
    if any(fault.kills_engines for fault in faults):
        await crowd.sturdy()
    while True:
        await crowd.grown()
        await asyncio.sleep(rng.random())
        # Streams that began together end together.
        if len(crowd.flowing) >= OPEN:
            break
    made = Strike(faults, crowd.flowing, await site.foreign())
    async with asyncio.TaskGroup() as group:
        for fault in faults:
            group.create_task(fault.strike(site, rng))
            if fault is not faults[-1]:
                await asyncio.sleep(rng.uniform(0, 5))
    await site.ready()
    await asyncio.sleep(CALM_S)
    made.end_s = now_s()
    print(f"{made.name}: {made.end_s - made.begun_s:.1f} s", flush=True)
    return made


@dataclass
class Report:
    strikes: list[Strike]
    crowd: Crowd
    left: dict[str, float]

    def judged(self) -> dict[Stream, Verdict]:
        judge = Judge()
        try:
            verdicts = judge.judge(self.crowd.streams)
        finally:
            judge.close()
        print(f"{len(verdicts)} streams, {judge.num_tokens} tokens, {judge.num_ties} ties")
        unknown = sum(stream.is_unknown for stream in verdicts)
        print(f"{sum(stream.times_read_on > 0 for stream in verdicts)} read on elsewhere, {unknown} could not")
        assert judge.num_ties <= judge.num_tokens / 10_000
        return verdicts

    def table(self, verdicts: dict[Stream, Verdict]) -> str:
        """A line a fault; pauses in seconds, where a stream's own gateway drives its replica and where another
        does."""
        lines = [HEAD]
        for strike in self.strikes:
            counts = Counter(verdicts[stream] for stream in strike.met)
            refused = sum(strike.begun_s <= refusal.at_s <= strike.end_s for refusal in self.crowd.refusals)
            read_on = sum(stream.times_read_on > 0 for stream in strike.met)
            lines.append(
                f"{strike.name:{WIDTH}}{len(strike.met):8}{read_on:9}"
                f"{counts[Verdict.CUT]:6}{counts[Verdict.LOST]:6}"
                f"{counts[Verdict.DUPLICATED]:12}{counts[Verdict.WRONG]:7}{refused:9}"
                f"{strike.pause_s(is_foreign=False):11.2f}{strike.pause_s(is_foreign=True):11.2f}"
            )
        return "\n".join(lines)


async def break_all(
    folder: Path, plan: Sequence[Sequence[Fault]], seed: int, kv_budget_bytes: int | None = None
) -> Report:
    rng = random.Random(seed)
    async with Site(folder, kv_budget_bytes) as site:
        idle = await site.figures()
        async with Crowd(site, STREAMS, seed) as crowd:
            strikes = [await strike(site, crowd, faults, rng) for faults in plan]
        return Report(strikes, crowd, await settled(site, idle))


async def settled(site: Site, idle: Mapping[str, float]) -> dict[str, float]:
    """What has not come back to its idle figure in time."""
    deadline_s = now_s() + SETTLE_S
    while (grown := _grown(await site.figures(), idle)) and now_s() < deadline_s:
        await asyncio.sleep(1.0)
    if grown:
        print(site.thread_names())
    return grown


def _grown(figures: Mapping[str, float], idle: Mapping[str, float]) -> dict[str, float]:
    spare = {name: SPARE_FILES for name in figures if name.startswith("files")}
    return {name: figure for name, figure in figures.items() if figure > idle[name] + spare.get(name, 0)}


def check(report: Report) -> None:
    verdicts = report.judged()
    print(report.table(verdicts))
    bad = [stream for stream, verdict in verdicts.items() if verdict not in (Verdict.EXACT, Verdict.CUT)]
    assert not bad, [
        (verdicts[s], s.call_id, s.failure, s.finish_reason, s.usage, len(s.token_texts)) for s in bad
    ]
    assert {refusal.status for refusal in report.crowd.refusals} <= {429, 503}
    assert all(refusal.retry_after_s for refusal in report.crowd.refusals)
    assert all(len(strike.met) >= OPEN for strike in report.strikes)
    assert not report.left


def test_each_fault_once(tmp_path: Path) -> None:
    plan = [[fault] for fault in random.Random(SEED).sample(FAULTS, len(FAULTS))]
    check(client.run(break_all(tmp_path, plan, SEED)))


def test_several_faults_at_a_time_while_memory_is_short(tmp_path: Path) -> None:
    rng = random.Random(SEED)
    plan = [rng.sample(ALL, rng.randint(2, 3)) for _ in range(ROUNDS)]
    check(client.run(break_all(tmp_path, plan, SEED, kv_budget_bytes=TIGHT_BYTES)))
