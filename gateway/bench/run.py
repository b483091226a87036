"""Rate after rate: offer the load, and turn what was recorded into a report."""

import asyncio
import signal
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from gateway.bench import client
from gateway.bench.client import Client
from gateway.bench.load import Load
from gateway.bench.options import Options
from gateway.bench.progress import Bar
from gateway.bench.prompts import IdPrompts, Prompts, TextPrompts, WordPrompts
from gateway.load import report
from gateway.load.record import Ending, Records
from gateway.load.report import Report, Spread
from gateway.load.workload import Arrival, Workload
from gateway.options import SettingsError
from gateway.request import ServiceClass

TRUSTED_LATE_S = 0.02
"""Figures of a client that is later than this in one case of a hundred are not its server's."""
_PROBE = Arrival(0.0, 8, 2, ServiceClass.DEFAULT, None, None)
_PROBE_NUMBER = 2**31
"""Not that of a measured request, so that the probe warms no prefix cache."""


class OwnSide(msgspec.Struct, frozen=True, kw_only=True):
    """What the client has to say about itself and about what was refused."""

    sent: int
    unanswered: int
    """Given up when the run was interrupted; not in the report."""
    late_p99_s: float
    """How late requests were sent."""
    lag_p99_s: float
    """How late the event loop ran its timers."""
    reasons: dict[str, int]
    """Why requests did not finish, commonest first."""
    retry_after_s: Spread | None
    short_answers: int
    """Finished with fewer tokens than asked for: the server does not honour `ignore_eos`."""

    @property
    def is_late(self) -> bool:
        return max(self.late_p99_s, self.lag_p99_s) > TRUSTED_LATE_S


class Run(NamedTuple):
    rate: float
    """Requests/s asked for; the report has what was really offered."""
    report: Report
    own: OwnSide
    records: Records


class Result(NamedTuple):
    model: str
    runs: list[Run]
    interrupted: bool


async def measure(options: Options, workloads: Mapping[float, Workload], key: str | None) -> Result:
    """`workloads` are by rate, for the record.  SIGINT ends it early, with what came by then.  Raises
    SettingsError if the server cannot be asked at all."""
    prompts = _prompts(options)
    runs: list[Run] = []
    async with client.session(options, key) as session:
        model = options.model or await client.first_model(session, options.url)
        asking = Client(session, options, model, prompts)
        await _probe(asking, options.url)
        for rate, workload in workloads.items():
            run, interrupted = await _run(asking, rate, workload)
            runs.append(run)
            if interrupted:
                return Result(model, runs, True)
    return Result(model, runs, False)


def _prompts(options: Options) -> Prompts:
    if options.endpoint == "completions":
        return IdPrompts(options.vocabulary, options.seed)
    return TextPrompts(options.tokenizer, options.seed) if options.tokenizer else WordPrompts(options.seed)


async def _probe(asking: Client, url: str) -> None:
    """One short request, so that a wrong key or model is told at once and not a thousand times."""
    answer = await asking.ask(_PROBE_NUMBER, _PROBE, lambda count: None)
    if answer.ending is not Ending.FINISHED:
        raise SettingsError(f"{url} refuses a first short request: {answer.reason}")


async def _run(asking: Client, rate: float, workload: Workload) -> tuple[Run, bool]:
    """The run, and whether it was interrupted."""
    with Bar(len(workload), rate) as bar:
        load = Load(workload, asking.ask, bar)
        interrupted = await _interruptible(load)
    records = load.recorder.records()
    return Run(rate, report.make(records), _own_side(load, records), records), interrupted


async def _interruptible(load: Load) -> bool:
    """Whether SIGINT ended it."""
    loop = asyncio.get_running_loop()
    task = asyncio.create_task(load.run())
    loop.add_signal_handler(signal.SIGINT, task.cancel)
    try:
        await asyncio.wait([task])
    finally:
        loop.remove_signal_handler(signal.SIGINT)
    if not task.cancelled():
        task.result()
    return task.cancelled()


def _own_side(load: Load, records: Records) -> OwnSide:
    finished = records.ended(Ending.FINISHED)
    return OwnSide(
        sent=len(load.late_s),
        unanswered=len(load.late_s) - len(records),
        late_p99_s=_p99(load.late_s),
        lag_p99_s=_p99(load.lag_s),
        reasons=dict(load.reasons.most_common()),
        retry_after_s=report.spread(np.array(load.retry_after_s)),
        short_answers=int((finished & (records.output_tokens < records.wanted_tokens)).sum()),
    )


def _p99(values: Sequence[float]) -> float:
    return float(np.quantile(values, 0.99)) if values else 0.0
