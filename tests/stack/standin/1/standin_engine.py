"""A tiny engine with the real one's surface: tokens count up from FIRST, no torch.  For what is the transport's.

`threads` is the pause between steps in microseconds.  A prompt that starts with HANG stops the engine's
thread for good, with DIE ends it.  One of the name SLEEPER never gets to its start.
"""

import threading
import time
from dataclasses import dataclass

from triton_backend import contract
from triton_backend.memory import Paged
from triton_backend.session import Sink, SinkClosed

IDLE_S = 0.1
HANG, DIE = 666, 667
SLEEPER = "sleeper"
FIRST, KINDS = 500, 500
"""In the demo model's vocabulary these are words: each token is a piece of text."""


@dataclass(frozen=True)
class EngineConfig:
    model: str
    name: str = ""
    device: str = "cpu"
    dtype: str = "float32"
    kv_budget_bytes: int | None = None
    max_prefill_tokens: int = 2048
    context_tokens: int | None = None
    threads: int = 0


@dataclass
class _Live:
    new: contract.NewRow
    count: int = 0


class Engine:
    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._change = threading.Condition()
        self._rows: dict[int, _Live] = {}
        self._sink: Sink | None = None
        self._epoch = self._seq = 0
        self._version = contract.CONTRACT_VERSION
        self._stopping = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        while config.name == SLEEPER:
            time.sleep(1)

    def start(self) -> None:
        self._thread.start()

    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def stop(self, timeout_s: float) -> None:
        with self._change:
            self._stopping = True
            self._change.notify()
        self._thread.join(timeout_s)
        self._drop_sink()

    def attach(self, attach: contract.Attach, sink: Sink) -> None:
        with self._change:
            if attach.epoch <= self._epoch:
                sink.send(contract.Superseded(self._epoch))
                sink.finish()
                return
            self._epoch, self._version, self._seq = attach.epoch, attach.version, 0
            self._drop_sink(contract.Superseded(attach.epoch))
            sink.send(self._attached())
            self._sink = sink
            self._change.notify()

    def submit(
        self, control: contract.Batch | contract.Cancel | contract.Evict | contract.Detach
    ) -> contract.Ack | None:
        with self._change:
            if control.epoch != self._epoch:
                return contract.Ack(control.seq, self._epoch, "another epoch holds the engine")
            if control.epoch:
                assert control.seq >= self._seq, f"seq {control.seq} after {self._seq}"
                self._seq = control.seq
            self._apply(control)
            self._change.notify()
            if contract.is_acknowledged(control, self._version):
                return contract.Ack(control.seq, self._epoch)
            return None

    def _apply(self, control: contract.Control) -> None:
        if isinstance(control, contract.Batch):
            self._rows.update((row.row, _Live(row)) for row in control.rows)
        elif isinstance(control, contract.Detach):
            self._drop_sink()
        elif isinstance(control, contract.Cancel | contract.Evict):
            gone = [row for row in control.rows if self._rows.pop(row, None)]
            reason = contract.End.CANCELLED if isinstance(control, contract.Cancel) else contract.End.EVICTED
            self._send(
                contract.Step(self._seq, self._telemetry(), ended=[contract.Ended(row, reason) for row in gone])
            )

    def _run(self) -> None:
        while not self._stopping:
            with self._change:
                if not self._rows:
                    self._change.wait(IDLE_S)
                first = [live.new.prompt[0] for live in self._rows.values()]
                step = self._step()
                self._send(step)
            while HANG in first:
                time.sleep(1)
            if DIE in first:
                return
            time.sleep(self._config.threads / 1e6)

    def _step(self) -> contract.Step:
        rows, indexes, tokens, ended = [], [], [], []
        for row, live in self._rows.items():
            rows.append(row)
            indexes.append(live.new.index + live.count)
            tokens.append(_token(live.count))
            live.count += 1
            if live.count == live.new.max_tokens:
                ended.append(contract.Ended(row, contract.End.LENGTH))
        for end in ended:
            del self._rows[end.row]
        return contract.Step(self._seq, self._telemetry(), rows, indexes, tokens, ended=ended)

    def _send(self, event: contract.Event) -> None:
        if self._sink is None:
            return
        try:
            self._sink.send(event)
        except SinkClosed:
            self._sink = None

    def _drop_sink(self, last: contract.Event | None = None) -> None:
        if last is not None:
            self._send(last)
        if self._sink is not None:
            self._sink.finish()
            self._sink = None

    def _attached(self) -> contract.Attached:
        rows = [self._live_row(live) for live in self._rows.values()]
        info = contract.ModelInfo(self._config.name, 4096, 1000, "float32", "cpu")
        return contract.Attached(self._epoch, self._version, info, Paged(16, 1024), rows, self._telemetry())

    def _live_row(self, live: _Live) -> contract.LiveRow:
        new, tokens = live.new, list(map(_token, range(live.count)))
        return contract.LiveRow(
            row=new.row,
            ticket=new.ticket,
            attempt=new.attempt,
            origin=new.origin,
            prompt_tokens=len(new.prompt),
            index=new.index,
            max_tokens=new.max_tokens - live.count,
            tokens=tokens,
            logprobs=[],
            alternatives=[],
            ended=None,
        )

    def _telemetry(self) -> contract.Telemetry:
        return contract.Telemetry(0, 0, 1 << 30, 0, 0, 0, len(self._rows), 0, 0.0, 0.0, 0.0, 0)


def _token(count: int) -> int:
    return FIRST + count % KINDS
