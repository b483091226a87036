"""What deciding costs with a deep queue: `python -m benchmarks.scheduling_cost [--queued N] [--requests N]`.

The gateway's own admission, ticketing, choice and bucket table over the store in memory; with Redis the store's
part is Redis's (benchmarks/README.md).  The queue is kept as deep as it was: requests come in one by one and leave
in batches, and a replica runs 64 rows all the while.
"""

import argparse
import asyncio
import random
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import inf

import numpy as np
import structlog

from gateway import chooser
from gateway.call import Live, OpenCall
from gateway.choice import Choice
from gateway.chooser import Chooser
from gateway.fleet import Fleet
from gateway.gatekeeper import Gatekeeper
from gateway.load.named import WORKLOADS
from gateway.policy.preset import FULL
from gateway.ports import Entry, Limits
from gateway.request import Profile, Request, ServiceClass, Targets, Ticket, Work
from gateway.roster import Roster
from gateway.simulator.cost import COSTS
from gateway.simulator.quiet import Quiet
from gateway.store.memory import MemoryStore
from gateway.ticketing import Aim, Ticketing
from tests.unit.fakes.tokenizer import CharTokenizer
from triton_backend.contract import Attached, ModelInfo, Sampling, Telemetry
from triton_backend.memory import Paged

REPLICAS = 8
"""What RATE takes on A100s.  Fewer of them spread the same queue's deadlines wider, for admission to add up."""
BATCH = 16
RUNNING = 64
RATE = 32
"""Requests/s at which the share of the run time is told."""
TARGET_US = 200.0
COST = COSTS["distserve-opt13b-tp1"]
SHARES = {ServiceClass.PRIORITY: 0.6, ServiceClass.DEFAULT: 0.3, ServiceClass.FLEX: 0.1}
_LOOSE_S = 1e5
"""So that nobody is refused."""
AIMS = dict.fromkeys(ServiceClass, Aim(_LOOSE_S, 10.0))
STEPS = ("ticket", "admission", "queueing", "choice", "buckets", "claim")


class Stopwatch:
    """Seconds by step, of this thread's processor time: nothing here waits, and what others on the machine take is
    not what deciding costs."""

    def __init__(self) -> None:
        self.spent_s = dict.fromkeys(STEPS, 0.0)

    @contextmanager
    def on(self, step: str) -> Iterator[None]:
        begun_s = time.thread_time()
        yield
        self.spent_s[step] += time.thread_time() - begun_s


class Traffic:
    """Requests of every class, half of them short and half long, with deadlines as far apart as if they had come
    one after the other at RATE."""

    def __init__(self, rng: random.Random, queued: int, num_requests: int) -> None:
        lengths = WORKLOADS["mixed-4096"].lengths(num_requests, np.random.default_rng(1))
        self._prompts, self._answers = lengths.prompt_tokens.tolist(), lengths.output_tokens.tolist()
        self._rng = rng
        self._spread_s = queued / RATE

    def request(self, number: int) -> tuple[Request, int, int]:
        """With its prompt's and its answer's tokens."""
        targets = Targets(_LOOSE_S + self._rng.uniform(0.0, self._spread_s), None)
        service_class = self._rng.choice(list(ServiceClass))
        request = Request(model="none", service_class=service_class, targets=targets)
        return request, self._prompts[number], self._answers[number]


class Scene:
    def __init__(self, queued: int, max_requests: int) -> None:
        self.watch = Stopwatch()
        self.store = MemoryStore(clock=time.monotonic)
        self._fleet = Fleet(0.9)
        for number in range(REPLICAS):
            replica = self._fleet.joined(f"r{number}", _attached())
            for rows in (8, 16, 32, 64):
                replica.heard(_telemetry(rows), 0.0)
        self._replica = replica
        self._roster = Roster()
        choice = chooser.Config(FULL, 4 * RUNNING, BATCH, 2**40, SHARES)
        self._chooser = Chooser(self.store, self._roster, choice, Quiet())
        self._limits = Limits(2**40, 2**60, 2**60, inf)
        self._gatekeeper = Gatekeeper(FULL.admission, self.store, self._fleet, self._limits, SHARES)
        self._ticketing = Ticketing("gateway", self._fleet, FULL, AIMS)
        self._traffic = Traffic(random.Random(1), queued, max_requests)
        self._num_requests = 0
        self.depth = 0
        self.num_buckets = 1
        self.num_slots = 0
        self._epoch = 0

    async def begin(self) -> None:
        self._epoch = await self.store.elect("r", "gateway", inf) or 0

    async def arrive(self) -> None:
        number = self._num_requests
        self._num_requests += 1
        request, prompt_tokens, answer_tokens = self._traffic.request(number)
        id = str(number)
        call = OpenCall(id, request, 0.0, [prompt_tokens], [])
        with self.watch.on("ticket"):
            profile = Profile(answer_tokens, 2 * answer_tokens)
            ticket = self._ticketing.ticket(id, request, prompt_tokens, 2 * answer_tokens, profile)
        call.live[id] = _live(call, ticket)
        with self.watch.on("admission"):
            limits = await self._gatekeeper.limits(call, request)
        with self.watch.on("queueing"):
            await self.store.put([Entry(ticket, b"")], limits)
        self.depth += 1

    async def leave(self) -> int:
        """One batch goes into the engine, and as many rows as were started leave it."""
        with self.watch.on("choice"):
            queue = await self.store.queue()
            chosen, _ = await self._chooser.choose(queue, self._replica)
            served = self._chooser.charge(queue, chosen)
        with self.watch.on("claim"):
            entries = await self.store.claim("r", self._epoch, [(t.id, t.attempt) for t in chosen], served)
        with self.watch.on("buckets"):
            await self._chooser.rebucket(queue, self._replica)
        self.num_buckets = len(queue.bounds)
        for ticket in chosen:
            self._roster.add(ticket)
        gone = self._roster.tickets[: max(0, len(self._roster) - RUNNING)]
        self._roster.lose([found.number for name, _ in gone if (found := self._roster.find(name))])
        await self.store.finish(gone)
        self.depth -= len(entries)
        return len(entries)


def _live(call: OpenCall, ticket: Ticket) -> Live:
    work = Work([], 0, [], Sampling())
    return Live(call, Choice(0, work, [], CharTokenizer()), ticket, work, None)


def _attached() -> Attached:
    model = ModelInfo("none", 2**20, 2**20, "none", "none")
    return Attached(1, 1, model, Paged(16, COST.kv_token_bytes), [], _telemetry(RUNNING))


def _telemetry(rows: int) -> Telemetry:
    """Of an engine with memory and time to spare: a choice that refuses is not the dearest."""
    capacity_bytes = 16 * COST.kv_tokens * COST.kv_token_bytes
    return Telemetry(
        pool_capacity_bytes=capacity_bytes,
        pool_used_bytes=0,
        pool_growable_bytes=0,
        device_free_bytes=0,
        device_total_bytes=capacity_bytes,
        process_bytes=0,
        running=rows,
        waiting=0,
        step_s=COST.decode_s(rows, 500 * rows),
        prefill_tokens_per_s=8000.0,
        decode_tokens_per_s=1000.0,
        out_of_memory_total=0,
        decode_rows=rows,
    )


async def measure(queued: int, requests: int) -> tuple[Mapping[str, float], Scene]:
    """Microseconds per request by step, with so many waiting all the while."""
    scene = Scene(queued, 2 * queued + 2 * requests)
    await scene.begin()
    while scene.depth < queued:
        await scene.arrive()
    scene.watch = Stopwatch()
    left = requests
    while left > 0:
        started = await scene.leave()
        assert started, "nothing fits"
        for _ in range(started):
            await scene.arrive()
        left -= started
    done = requests - left
    scene.num_slots = len((await scene.store.backlog(ServiceClass.DEFAULT, "")).slots)
    return {step: spent_s / done * 1e6 for step, spent_s in scene.watch.spent_s.items()}, scene


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queued", type=int, default=10_000)
    parser.add_argument("--requests", type=int, default=4_000)
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    spent_us, scene = asyncio.run(measure(options.queued, options.requests))
    for step, us in spent_us.items():
        print(f"{step:10} {us:7.1f} us a request")
    total_us = sum(spent_us.values())
    verdict = "met" if total_us < TARGET_US else "missed"
    where = f"{options.queued} queued in {scene.num_buckets} buckets and {scene.num_slots} deadline slots"
    print(f"{'all':10} {total_us:7.1f} us a request, {where}")
    print(f"target: under {TARGET_US:.0f} us: {verdict}")
    share = total_us * RATE / 1e6
    print(
        f"at {RATE} requests/s: {share:.2%} of one core; target: under 1 %: {'met' if share < 0.01 else 'missed'}"
    )


if __name__ == "__main__":
    main()
