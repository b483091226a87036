"""Whatever ends a run, nothing of it is left: no process, no shared memory, no file."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from gateway import local
from gateway.process import ChildDied, marked
from gateway.run_folder import SHARED_MEMORY, shm_prefix
from gateway.triton import TritonBackend, replicas
from tests.stack import standin

pytestmark = pytest.mark.timeout(120)

ROOT = Path(__file__).parents[2]
GONE_S = 20.0


class Run:
    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.stack.supervised"]
        self.process = subprocess.Popen(
            command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert self.process.stdout is not None
        told = json.loads(self.process.stdout.readline())
        self.folder = Path(told["run"])
        self.pids: dict[str, int] = told["pids"]

    def left(self) -> list[str]:
        regions = Path("/dev/shm").glob(f"{shm_prefix(self.folder)}*")
        return [*map(str, marked(self.folder)), *map(str, regions), *map(str, self.folder.glob("*"))]

    def end(self) -> tuple[int, str]:
        """Exit status and stderr, once nothing is left."""
        _, errors = self.process.communicate(timeout=GONE_S)
        deadline = time.monotonic() + GONE_S
        while self.left():
            assert time.monotonic() < deadline, self.left()
            time.sleep(0.02)
        return self.process.returncode, errors


@pytest.fixture
def run() -> Iterator[Run]:
    started = Run()
    assert len(marked(started.folder)) == 7, (
        "Valkey; twice Triton, its engine's process and what ends it with that"
    )
    yield started
    started.process.kill()
    started.process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_told_to_stop(run: Run, number: signal.Signals) -> None:
    run.process.send_signal(number)
    assert run.end() == (0, "")


@pytest.mark.parametrize("name", ["valkey", "triton-0"])
def test_a_child_is_killed(run: Run, name: str) -> None:
    os.kill(run.pids[name], signal.SIGKILL)
    status, errors = run.end()
    assert status == 1
    assert errors.startswith(f"bucketserve: {name} was ended by SIGKILL; the end of {run.folder / name}.log:\n")


def test_the_supervisor_is_killed(run: Run) -> None:
    run.process.kill()
    assert run.end()[0] == -signal.SIGKILL


def test_a_stopped_engine_does_not_outlive_the_supervisor(run: Run) -> None:
    os.kill(run.pids["engine of triton-1"], signal.SIGSTOP)
    run.process.kill()
    assert run.end()[0] == -signal.SIGKILL


def test_a_stopped_triton_does_not_hold_the_end_up(run: Run) -> None:
    with suppress(ProcessLookupError):
        os.kill(run.pids["triton-1"], signal.SIGSTOP)
    run.process.send_signal(signal.SIGTERM)
    assert run.end() == (0, "")


@pytest.mark.asyncio
async def test_what_dies_again_and_again_is_given_up() -> None:
    said: list[str] = []
    async with local.Stack(model="none", redis_url="none", triton="none:1", say=said.append) as stack:
        await stack.start_gateway(["--port", "none"])
        with pytest.raises(ChildDied, match="gateway-0 exited with status 2"):
            await stack.wait(restarts=["gateway-0"])
    assert len(said) == local.MAX_DEATHS - 1


@pytest.mark.asyncio
async def test_engines_whose_processes_die_are_back_each_by_itself() -> None:
    """Also if both die at once, and without anything that was left of them."""
    with tempfile.TemporaryDirectory() as folder:
        template = standin.template(Path(folder) / "llm")
        async with local.Stack(model="standin", redis_url="none", replicas=2, template=template) as stack:
            keeping = asyncio.create_task(stack.wait(restarts=stack.tritons))
            before = [stack.stub_pid(triton) for triton in stack.tritons]
            for pid in before:
                os.kill(pid, signal.SIGKILL)
            for address in stack.triton_address.split(","):
                await back(address)
            assert not keeping.done()
            assert not {stack.stub_pid(triton) for triton in stack.tritons} & set(before)
            assert len(list(SHARED_MEMORY.glob(f"{shm_prefix(stack.run_dir)}*"))) == 2
            keeping.cancel()


async def back(address: str) -> None:
    """Returns when its engine answers."""
    async with asyncio.timeout(GONE_S):
        while not (models := await replicas(address)):
            await asyncio.sleep(0.05)
        backend = TritonBackend(address, models[0])
        # The server that ends may still answer.
        while not await backend.ready():
            await asyncio.sleep(0.05)
        await backend.aclose()
