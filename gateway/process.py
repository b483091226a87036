"""Child processes that cannot outlive us.

A child leads a process group of its own (a terminal's SIGINT reaches only us, and we end it in order), dies
with us even if we are killed (PR_SET_PDEATHSIG), writes to a log file whose last lines explain its death, and
carries the run's marker in its environment, which its own children inherit: whatever is left of a
run is found in /proc.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

MARKER = "BUCKETSERVE_RUN"
TAIL_LINES = 20
_TETHER = Path(__file__).with_name("tether.py")


class ChildDied(Exception):
    """A child that should run does not; the message says how it ended and shows the end of its log."""

    def __init__(self, name: str, how: str, log: Path) -> None:
        super().__init__(f"{name} {how}; the end of {log}:\n{tail(log)}")
        self.name = name


class Child:
    def __init__(self, name: str, argv: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        self.name = name
        self.log = log
        self._argv = argv
        self._env = env
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} was never started"
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *tethered(self._argv),
                env=dict(self._env),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    async def died(self) -> ChildDied:
        """Returns when the child ends, with the exception that tells of it."""
        assert self._process is not None, f"{self.name} was never started"
        code = await self._process.wait()
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"exited with status {code}"
        return ChildDied(self.name, how, self.log)

    def kill(self, number: signal.Signals) -> None:
        """Signal the process, not its group."""
        os.kill(self.pid, number)

    async def stop(self, grace_s: float) -> None:
        """SIGTERM, then after `grace_s` SIGKILL to the whole group, in which a grandchild may still live."""
        if self._process is None:
            return
        if self._process.returncode is None:
            self._process.terminate()
            # Without this a stopped child would sit out the grace.
            self._process.send_signal(signal.SIGCONT)
        try:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), grace_s)
        finally:
            _kill_group(self._process.pid)
            await self._process.wait()


def tail(log: Path) -> str:
    """The last lines of a log, or what there is."""
    if not log.exists():
        return ""
    return "\n".join(log.read_text(errors="replace").splitlines()[-TAIL_LINES:])


def marked(run: Path) -> list[int]:
    """Processes that carry the run's marker, ours left out."""
    wanted = f"{MARKER}={run}".encode()
    return [pid for pid in _pids() if wanted in _words(pid, "environ") and pid != os.getpid()]


def kill_marked(run: Path) -> None:
    for pid in marked(run):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]


def command_line(pid: int) -> list[str]:
    return [os.fsdecode(word) for word in _words(pid, "cmdline")]


def _words(pid: int, file: str) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/{file}").read_bytes().split(b"\0")
    except OSError:  # it ended meanwhile, or is another user's
        return []


def _kill_group(leader: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def tethered(argv: Sequence[str]) -> list[str]:
    """The same program, which is killed when this process dies."""
    return [sys.executable, "-I", "-S", str(_TETHER), str(os.getpid()), *argv]
