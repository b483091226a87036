"""The embedded servers and child gateways of `bucketserve up`.

    async with local.Stack(model="...", replicas=2, say=print) as stack:
        stack.redis_url         "redis://127.0.0.1:41234"
        stack.triton_address    "127.0.0.1:41235,127.0.0.1:41236"
        stack.tritons           ["triton-0", "triton-1"], or ["triton"] for one replica
        await stack.start_gateway(["--port", "8000", ...])      a Child: name, pid, log, is_running
        await stack.wait(restarts=stack.tritons)                raises ChildDied as soon as another child dies

Entering returns when every model can run; it raises ChildDied, Failed or BackendLost.
Leaving, however, ends everything within a bounded time.  Each replica has a Triton of its own, since an engine's
process that dies takes its server along (`ends_server` in the model's config), which is then to be started again.

`stack.kill(name, signal)`, `stack.pid(name)`, `stack.stub_pid(name)`, `stack.is_running(name)` and `await
stack.restart(name)` are for tests that break things; names are `valkey`, `triton`, `gateway-0` and so on.
`supervise(main())` runs a coroutine so that SIGINT and SIGTERM leave the `async with` in order.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from gateway import embedded
from gateway.embedded import HOST, StartFailed
from gateway.errors import BackendLost, Failed, ModelRefused
from gateway.process import MARKER, Child, ChildDied, command_line, marked, tail
from gateway.run_folder import RunFolder, clear_shared_memory
from gateway.triton import TritonBackend
from triton_backend.control_groups import num_processors

START_TIMEOUT_S = 30.0
POLL_S = 0.02
GRACE_S = {"gateway": 20.0, "triton": 10.0, "valkey": 2.0}
"""Between SIGTERM and SIGKILL."""
MAX_DEATHS = 5
"""A child that is to be started again and has died so often within DEATHS_S is given up."""
DEATHS_S = 60.0


class _Server(NamedTuple):
    """One replica's Triton."""

    model: str
    address: str
    shm_prefix: str


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
        load_timeout_s: float | None = None,
        step_records: Path | None = None,
        template: Path = embedded.MODEL,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        """`redis_url` and `triton`: already running, so not started.  `run_dir`: kept; by default a fresh
        folder that is removed.  `device` "cuda" with several replicas shows each a GPU of its own.  Settings left
        None take the engine's defaults, but several replicas divide the cores among them.  `step_records`: folder
        for a file of each replica's.  `template`: what a replica's folder is copied from.  `say` hears the
        progress."""
        self.redis_url = redis_url or ""
        self.triton_address = triton or ""
        self.tritons = ["triton"] if replicas == 1 else [f"triton-{index}" for index in range(replicas)]
        self._servers: dict[str, _Server] = {}
        self._folder = RunFolder(run_dir)
        self._children: dict[str, Child] = {}
        self._parameters = {
            "model": model,
            "name": name or model,
            "device": device,
            "dtype": dtype,
            "kv_budget_bytes": kv_budget_bytes,
            "threads": threads or threads_each(replicas),
            "max_prefill_tokens": max_prefill_tokens,
            "context_tokens": context_tokens,
            "load_timeout_s": load_timeout_s,
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
                await self._start_tritons()
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
        """Raises ChildDied when a child dies.  One named in `restarts` is started again, unless it dies again and
        again."""
        await _first(*(self._keep(child, name in restarts) for name, child in self._children.items()))

    async def _keep(self, child: Child, restarts: bool) -> NoReturn:
        deaths_s: deque[float] = deque(maxlen=MAX_DEATHS)
        while True:
            death = await child.died()
            deaths_s.append(time.monotonic())
            if not restarts or (len(deaths_s) == MAX_DEATHS and deaths_s[-1] - deaths_s[0] < DEATHS_S):
                raise death
            self._say(f"{death}\nstarting it again")
            try:
                await self.restart(child.name)
            except (ChildDied, StartFailed, BackendLost) as error:
                self._say(str(error))
                await child.stop(0)

    def is_running(self, name: str) -> bool:
        return self._children[name].is_running

    def pid(self, name: str) -> int:
        return self._children[name].pid

    def stub_pid(self, triton: str) -> int:
        """The process of the engine, a child of that Triton."""
        script = str(self._repository(triton) / self._servers[triton].model / "1" / "model.py")
        return next(pid for pid in marked(self.run_dir) if script in command_line(pid))

    def kill(self, name: str, number: signal.Signals) -> None:
        self._children[name].kill(number)

    async def restart(self, name: str) -> None:
        """Start a child again, at its old address, whether or not it still runs."""
        child = self._children[name]
        await child.stop(0)
        if name in self._servers:
            clear_shared_memory(self._servers[name].shm_prefix)
        await child.start()
        if name == "valkey":
            await self._until(child, self._valkey_answers)
        elif name in self._servers:
            await self._load_model(child)

    async def _start_valkey(self) -> None:
        self._valkey_port = free_port()
        self.redis_url = f"redis://{HOST}:{self._valkey_port}"
        argv = embedded.valkey_argv(self._valkey_port, self.run_dir)
        await self._until(await self._start("valkey", argv, os.environ), self._valkey_answers)
        self._say(f"valkey answers at {self.redis_url}")

    async def _valkey_answers(self) -> bool:
        return await _pong(self._valkey_port)

    async def _start_tritons(self) -> None:
        embedded.render_backend(self.run_dir / "backends" / "python")
        # All at once, or two might be given one port.
        ports = free_ports(len(self.tritons))
        self.triton_address = ",".join(f"{HOST}:{port}" for port in ports)
        started = [await self._start_triton(index, port) for index, port in enumerate(ports)]
        await _all(map(self._load_model, started))

    async def _start_triton(self, index: int, port: int) -> Child:
        name = self.tritons[index]
        model, shm_prefix = name.replace("triton", "llm"), f"{self._folder.shm_prefix}{index}-"
        self._servers[name] = _Server(model, f"{HOST}:{port}", shm_prefix)
        records = self._records(model)
        parameters = self._parameters | {"step_records": records}
        embedded.render_model(self._template, model, parameters, self._repository(name))
        argv = embedded.triton_argv(port, self._repository(name), self.run_dir / "backends", shm_prefix)
        has_own_gpu = self._parameters["device"] == "cuda" and len(self.tritons) > 1
        env = embedded.triton_env(index if has_own_gpu else None)
        return await self._start(name, argv, env)

    def _records(self, model: str) -> Path | None:
        """The file for that engine's steps."""
        if self._step_records is None:
            return None
        file = self._step_records.absolute() / f"{model}.steps"
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        except OSError as error:
            raise StartFailed(f"cannot write {file}: {error.strerror}; --step-records names the folder") from None
        return file

    def _repository(self, triton: str) -> Path:
        return self.run_dir / "models" / triton

    async def _load_model(self, triton: Child) -> None:
        model, address, _ = self._servers[triton.name]
        backend = TritonBackend(address, model)
        try:
            await self._until(triton, backend.server_live)
            self._say(f"{triton.name} answers at {address}; loading {model}")
            started = time.monotonic()
            await self._unless_dead(triton, self._loaded(triton, backend))
            self._say(f"{backend.replica} is ready after {time.monotonic() - started:.1f} s")
        finally:
            await backend.aclose()

    async def _loaded(self, triton: Child, backend: TritonBackend) -> None:
        try:
            await backend.load()
        except ModelRefused:
            raise
        except BackendLost:
            # Of a process that ended, Triton says no more than that; its log has what the process said.
            raise StartFailed(
                f"{backend.replica} could not be loaded; the end of {triton.name}'s log:\n{tail(triton.log)}"
            ) from None

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
    except (ChildDied, Failed, BackendLost) as error:
        print(f"bucketserve: {error}", file=sys.stderr)
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
    [port] = free_ports(1)
    return port


def free_ports(count: int) -> list[int]:
    """All different."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind((HOST, 0))
        return [int(probe.getsockname()[1]) for probe in probes]


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


def threads_each(replicas: int) -> int | None:
    """None: the engine's own choice.  The threads of one wait for each other, and so for those of another on the
    same cores."""
    return None if replicas == 1 else max(1, num_processors() // replicas)


async def _all(works: Iterable[Coroutine[Any, Any, object]]) -> None:
    await asyncio.gather(*works)
