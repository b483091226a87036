"""Runs `bucketserve up` and looks at it from outside."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Self

START_S = 90.0
STOP_S = 30.0


class Serving:
    def __init__(self, *args: str) -> None:
        self._args = args
        self._lines: list[str] = []
        self._has_news = threading.Condition()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "gateway", "up", "--port", str(self.port), "--dtype", "float32"]
        self._process = subprocess.Popen(
            [*command, *self._args],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        try:
            self.wait_for(r"ready after \S+ s: (\S+) on", START_S)
        except BaseException:
            self.stop(signal.SIGKILL)
            raise
        self.model = self.match(r"ready after \S+ s: (\S+) on")
        self.redis_url = self.match(r"valkey answers at (\S+)")
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(signal.SIGKILL)
        self._listener.join(STOP_S)

    @property
    def output(self) -> str:
        return "".join(self._lines)

    @property
    def pid(self) -> int:
        return self._process.pid

    def match(self, pattern: str) -> str:
        found = re.search(pattern, self.output)
        assert found, f"{pattern!r} is not in:\n{self.output}"
        return found[1]

    def wait_for(self, pattern: str, timeout_s: float) -> None:
        with self._has_news:
            seen = self._has_news.wait_for(
                lambda: re.search(pattern, self.output) or self._process.poll() is not None, timeout_s
            )
        assert seen and self._process.poll() is None, f"no {pattern!r}:\n{self.output}"

    def stop(self, number: signal.Signals) -> int:
        """The exit status."""
        if self._process.poll() is None:
            self._process.send_signal(number)
        return self._process.wait(STOP_S)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that carry these labels."""
        with urllib.request.urlopen(f"{self.url}/metrics") as response:
            text = response.read().decode()
        total = 0.0
        for line in text.splitlines():
            found = re.fullmatch(rf"{re.escape(name)}(?:\{{(.*)\}})? (\S+)", line)
            if found and all(f'{key}="{value}"' in (found[1] or "") for key, value in labels.items()):
                total += float(found[2])
        return total

    def descendants(self, name: str) -> list[int]:
        """Process ids below `up` whose command line contains `name`."""
        return [pid for pid in _below(self.pid) if name in _command_line(pid)]

    def _listen(self) -> None:
        assert self._process.stdout
        with self._process.stdout as lines:
            for line in lines:
                with self._has_news:
                    self._lines.append(line)
                    self._has_news.notify_all()
        self._process.wait()
        with self._has_news:
            self._has_news.notify_all()


def eventually(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Whether the condition comes true in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _below(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return []
    return [found for child in map(int, children) for found in (child, *_below(child))]


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except FileNotFoundError:
        return ""
