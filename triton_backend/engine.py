"""The engine as other threads see it: an inbox, and one thread that owns all state and turns the crank.

inbox -> plan -> run -> advance -> sink; core.py is the crank.  Other threads only put things into the inbox,
and read the epoch that holds the engine, so that a control of another one is refused at once.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from triton_backend.contract import Ack, Attach, Batch, Cancel, Detach, Evict, is_acknowledged
from triton_backend.core import HEARTBEAT_S, Core, Executor
from triton_backend.device import make_current
from triton_backend.loader import load_model
from triton_backend.paged_runner import PagedRunner
from triton_backend.record import EngineRecord, Recorder
from triton_backend.runner import Runner
from triton_backend.session import Sink, SinkClosed

__all__ = ["Engine", "EngineConfig", "Sink", "SinkClosed"]

log = logging.getLogger(__name__)


CPU_CHUNK_TOKENS = 512
"""A processor's matrix units are busy with 256; more at once only makes the first prompt wait for the last."""
GPU_CHUNK_TOKENS = 2048


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineConfig:
    model: str
    """Local folder or Hugging Face id."""
    name: str
    """What the driver calls the model."""
    device: str = "cpu"
    dtype: str = "float32"
    kv_budget_bytes: int | None = None
    """The most that keys and values may take; None: whatever there is room for (headroom.py)."""
    max_prefill_tokens: int | None = None
    """Padded prompt tokens in one step, at most; None: as many as the device needs to be as fast as it can."""
    context_tokens: int | None = None
    """None: what the model's config says."""
    threads: int | None = None
    """Intra-op threads; None: torch's own choice."""
    step_records: str | None = None
    """File for the size and time of every step; None: they are not recorded."""

    @property
    def chunk_tokens(self) -> int:
        """`max_prefill_tokens` or its default."""
        return self.max_prefill_tokens or (CPU_CHUNK_TOKENS if self.device == "cpu" else GPU_CHUNK_TOKENS)


def load_runner(config: EngineConfig) -> Runner | PagedRunner:
    """Raises loader.UnsupportedModel.

    In a thread that ends then.  OpenMP keeps a team for each thread that has run something in parallel, as loading
    does and the engine's thread will; with more threads than cores, all of them sleep after each loop, and a step
    has a hundred (a sixth of a decode step of one row).
    """
    with ThreadPoolExecutor(1, "load") as passing:
        return passing.submit(_load, config).result()


def _load(config: EngineConfig) -> Runner | PagedRunner:
    make_current(config.device)
    kind = PagedRunner if config.device.startswith("cuda") else Runner
    return kind(
        load_model(config.model, config.device, config.dtype, config.threads),
        max_prefill_tokens=config.chunk_tokens,
        context_tokens=config.context_tokens,
        kv_budget_bytes=config.kv_budget_bytes,
    )


def _recorder(config: EngineConfig, runner: Executor) -> Recorder | None:
    if config.step_records is None:
        return None
    return Recorder(
        Path(config.step_records), EngineRecord(runner.layout, runner.kv_budget_bytes, config.chunk_tokens)
    )


_Control = Batch | Cancel | Evict | Detach
_Item = tuple[Attach, Sink] | _Control | None
"""What the inbox holds; None only wakes the thread."""


class Engine:
    def __init__(
        self,
        config: EngineConfig,
        load: Callable[[EngineConfig], Executor] = load_runner,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Loads the model and measures what a step takes.  Raises loader.UnsupportedModel."""
        runner = load(config)
        self._device = runner.device
        self._core = Core(runner, config.name, config.chunk_tokens, clock, _recorder(config, runner))
        self._inbox: queue.SimpleQueue[_Item] = queue.SimpleQueue()
        self._door = threading.Lock()
        """Held to put into the inbox, and to close it for good."""
        self._is_closed = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def is_alive(self) -> bool:
        return self._thread.is_alive() and not self._is_closed

    def attach(self, attach: Attach, sink: Sink) -> None:
        """Ask for the session; the sink is the engine's from here on, and is finished exactly once."""
        with self._door:
            if not self._is_closed:
                self._inbox.put((attach, sink))
                return
        sink.finish()

    def submit(self, control: _Control) -> Ack | None:
        """Put a control of the attached session into the inbox, or refuse it; the answer, if it has one."""
        with self._door:
            epoch = self._core.epoch
            if self._is_closed:
                return Ack(control.seq, epoch, "the engine is down")
            if control.epoch != epoch:
                return Ack(control.seq, epoch, f"epoch {epoch} holds the engine")
            self._inbox.put(control)
            return Ack(control.seq, epoch) if is_acknowledged(control, self._core.version) else None

    def stop(self, timeout_s: float) -> None:
        """End the session after the step in progress, drop all rows, and join the thread."""
        self._stopping.set()
        self._inbox.put(None)
        if self._thread.ident is None:
            self._close()
        else:
            self._thread.join(timeout_s)

    def step(self) -> bool:
        """One turn of the crank, for the thread and for tests.  False: there was nothing to run.

        Raises what the model raises again and again.
        """
        while not self._inbox.empty():
            self._take(self._inbox.get())
        return self._core.step()

    def _take(self, item: _Item) -> None:
        match item:
            case None:
                pass
            case (attach, sink):
                self._core.attach(attach, sink)
            case control:
                self._core.obey(control)

    def _work(self) -> None:
        try:
            make_current(self._device)
            while not self._stopping.is_set():
                if not self.step():
                    self._await_item()
        except Exception:
            log.exception("the engine is broken and stops")
        finally:
            self._close()

    def _await_item(self) -> None:
        with suppress(queue.Empty):
            self._take(self._inbox.get(timeout=HEARTBEAT_S))

    def _close(self) -> None:
        with self._door:
            self._is_closed = True
        while not self._inbox.empty():
            match self._inbox.get():
                case (_, sink):
                    sink.finish()
        self._core.close()
