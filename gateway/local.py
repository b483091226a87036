"""The embedded servers and child gateways of `bucketserve up`.

    async with local.Stack(model="...", replicas=2, say=print) as stack:
        stack.redis_url         "redis://127.0.0.1:41234"
        stack.triton_address    "127.0.0.1:41235"
        stack.models            ["llm-0", "llm-1"], or ["llm"] for one replica
        await stack.start_gateway(["--port", "8000", ...])      a Child: name, pid, log, is_running
        await stack.wait(restarts=["triton"])                   raises ChildDied as soon as another child dies

Entering returns when every model can run; it raises ChildDied, StartFailed, FolderInUse or BackendLost.
Leaving, however, ends everything within a bounded time.  Triton is worth a restart: a model's process that is
killed takes it along in one case of ten (it held a lock in shared memory).

`stack.kill(name, signal)`, `stack.pid(name)`, `stack.stub_pid(model)`, `stack.is_running(name)` and `await
stack.restart(name)` are for tests that break things; names are `valkey`, `triton`, `gateway-0` and so on.
`supervise(main())` runs a coroutine so that SIGINT and SIGTERM leave the `async with` in order.
"""

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gateway import embedded
from gateway.embedded import HOST, StartFailed
from gateway.errors import BackendLost
from gateway.process import MARKER, Child, ChildDied, command_line, marked, tail
from gateway.run_folder import FolderInUse, RunFolder, clear_shared_memory
from gateway.triton import TritonBackend

START_TIMEOUT_S = 30.0
POLL_S = 0.02
GRACE_S = {"gateway": 20.0, "triton": 10.0, "valkey": 2.0}
"""Between SIGTERM and SIGKILL."""
MIN_LIFE_S = 10.0


class Stack:
    def __init__(
        self,
        *,
        model: str,
        name: str | None = None,
        replicas: int = 1,
        run_dir: Path | None = None,
        redis_url: str | None = None,
        triton: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        kv_budget_bytes: int | None = None,
        threads: int | None = None,
        max_prefill_tokens: int | None = None,
        context_tokens: int | None = None,
        step_records: Path | None = None,
        template: Path = embedded.MODEL,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        """`redis_url` and `triton`: already running, so not started.  `run_dir`: kept; by default a fresh
        folder that is removed.  `device` "cuda" with several replicas gives each its own GPU.  Settings left
        None take the engine's defaults.  `step_records`: folder for a file of each replica's.  `template`: what
        a replica's folder is copied from.  `say` hears the progress."""
        self.redis_url = redis_url or ""
        self.triton_address = triton or ""
        self.models = ["llm"] if replicas == 1 else [f"llm-{index}" for index in range(replicas)]
        self._folder = RunFolder(run_dir)
        self._children: dict[str, Child] = {}
        self._device = device
        self._parameters = {
            "model": model,
            "name": name or model,
            "dtype": dtype,
            "kv_budget_bytes": kv_budget_bytes,
            "threads": threads,
            "max_prefill_tokens": max_prefill_tokens,
            "context_tokens": context_tokens,
        }
        self._step_records = step_records
        self._template = template
        self._say = say

    @property
    def run_dir(self) -> Path:
        return self._folder.path

    async def __aenter__(self) -> "Stack":
        self._folder.open()
        try:
            if not self.redis_url:
                await self._start_valkey()
            if not self.triton_address:
                await self._start_triton()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop()

    async def start_gateway(self, args: Sequence[str], env: Mapping[str, str] | None = None) -> Child:
        """Run `python -m gateway gateway ARGS`; returns at once."""
        name = f"gateway-{sum(child.startswith('gateway-') for child in self._children)}"
        return await self._start(name, [sys.executable, "-m", "gateway", "gateway", *args], env or os.environ)

    async def wait(self, restarts: Collection[str] = ()) -> None:
        """Raises ChildDied when a child dies.  One named in `restarts` is started again, unless it had run
        for less than MIN_LIFE_S."""
        while True:
            started = time.monotonic()
            death: ChildDied = await _first(*(child.died() for child in self._children.values()))
            if death.name not in restarts or time.monotonic() - started < MIN_LIFE_S:
                raise death
            self._say(f"{death}\nstarting it again")
            await self.restart(death.name)

    def is_running(self, name: str) -> bool:
        return self._children[name].is_running

    def pid(self, name: str) -> int:
        return self._children[name].pid

    def stub_pid(self, model: str) -> int:
        """The process of the model's engine, a child of Triton."""
        script = str(self.run_dir / "models" / model / "1" / "model.py")
        return next(pid for pid in marked(self.run_dir) if script in command_line(pid))

    def kill(self, name: str, number: signal.Signals) -> None:
        self._children[name].kill(number)

    async def restart(self, name: str) -> None:
        """Start a child again, at its old address, whether or not it still runs."""
        child = self._children[name]
        await child.stop(0)
        if name == "triton":
            clear_shared_memory(self.run_dir)
        await child.start()
        if name == "valkey":
            await self._until(child, self._valkey_answers)
        elif name == "triton":
            await self._load_models(child)

    async def _start_valkey(self) -> None:
        self._valkey_port = free_port()
        self.redis_url = f"redis://{HOST}:{self._valkey_port}"
        argv = embedded.valkey_argv(self._valkey_port, self.run_dir)
        await self._until(await self._start("valkey", argv, os.environ), self._valkey_answers)
        self._say(f"valkey answers at {self.redis_url}")

    async def _valkey_answers(self) -> bool:
        return await _pong(self._valkey_port)

    async def _start_triton(self) -> None:
        embedded.render_backend(self.run_dir / "backends" / "python")
        if self._step_records:
            self._step_records.mkdir(parents=True, exist_ok=True)
        for index, name in enumerate(self.models):
            device = f"cuda:{index}" if self._device == "cuda" and len(self.models) > 1 else self._device
            records = self._step_records and self._step_records.absolute() / f"{name}.steps"
            parameters = self._parameters | {"device": device, "step_records": records}
            embedded.render_model(self._template, name, parameters, self.run_dir / "models")
        port = free_port()
        self.triton_address = f"{HOST}:{port}"
        argv = embedded.triton_argv(port, self.run_dir, self._folder.shm_prefix)
        await self._load_models(await self._start("triton", argv, embedded.triton_env()))

    async def _load_models(self, triton: Child) -> None:
        backends = [TritonBackend(self.triton_address, model) for model in self.models]
        try:
            await self._until(triton, backends[0].server_live)
            self._say(f"triton answers at {self.triton_address}; loading {', '.join(self.models)}")
            await self._unless_dead(triton, _all(self._load(backend) for backend in backends))
        finally:
            await _all(backend.aclose() for backend in backends)

    async def _load(self, backend: TritonBackend) -> None:
        started = time.monotonic()
        await backend.load()
        self._say(f"{backend.replica} is ready after {time.monotonic() - started:.1f} s")

    async def _start(self, name: str, argv: Sequence[str], env: Mapping[str, str]) -> Child:
        child = self._children[name] = Child(
            name, argv, {**env, MARKER: str(self.run_dir)}, self.run_dir / f"{name}.log"
        )
        await child.start()
        return child

    async def _until(self, child: Child, is_ready: Callable[[], Awaitable[bool]]) -> None:
        async def poll() -> None:
            while not await is_ready():
                await asyncio.sleep(POLL_S)

        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await self._unless_dead(child, poll())
        except TimeoutError:
            raise StartFailed(f"{child.name} does not answer; the end of its log:\n{tail(child.log)}") from None

    async def _unless_dead(self, child: Child, work: Coroutine[Any, Any, object]) -> None:
        death = await _first(child.died(), work)
        if isinstance(death, ChildDied):
            raise death

    async def _stop(self) -> None:
        """Gateways first: they detach from the engines and tell their clients."""
        for kind, grace_s in GRACE_S.items():
            await _all(child.stop(grace_s) for name, child in self._children.items() if name.startswith(kind))
        self._folder.close()


def supervise(main: Coroutine[Any, Any, None]) -> int:
    """Run until done or told to stop by SIGINT or SIGTERM: 0, or 1 if something failed, told on stderr."""
    try:
        asyncio.run(_until_signalled(main))
    except (ChildDied, StartFailed, FolderInUse, BackendLost) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


async def _until_signalled(main: Coroutine[Any, Any, None]) -> None:
    task = asyncio.create_task(main)
    told: list[signal.Signals] = []

    def stop(number: signal.Signals) -> None:
        # A second signal must not break off the cleaning up: that is bounded in time.
        if not told:
            task.cancel()
        told.append(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
    try:
        await task
    except asyncio.CancelledError:
        if not told:
            raise


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


async def _pong(port: int) -> bool:
    try:
        reader, writer = await asyncio.open_connection(HOST, port)
    except OSError:
        return False
    writer.write(b"PING\r\n")
    answer = await reader.read(16)
    writer.close()
    return answer.startswith(b"+PONG")


async def _first(*works: Coroutine[Any, Any, Any]) -> Any:
    """What the first of them to end returns or raises; the others are cancelled."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return done.pop().result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _all(works: Iterable[Coroutine[Any, Any, object]]) -> None:
    await asyncio.gather(*works)
