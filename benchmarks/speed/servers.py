"""The servers that are measured, as processes: ours with all its parts, and vLLM's CPU build."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

START_S = 300.0
NAME = "m"
"""What both call the model."""


@contextmanager
def ours(port: int, *flags: str) -> Iterator[str]:
    """Serve with `bucketserve up`: gateway, Valkey, Triton and engine.  Gives the URL."""
    command = [sys.executable, "-m", "gateway", "up", "--port", str(port), *flags]
    with _served(command, os.environ.copy(), port, "/ready"):
        yield f"http://127.0.0.1:{port}"


class Vllm:
    """vLLM's server, stopped in its tracks while another is measured: it takes minutes to start."""

    def __init__(self, server: subprocess.Popen[bytes], url: str) -> None:
        self.url = url
        self._server = server

    def freeze(self) -> None:
        os.killpg(self._server.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.killpg(self._server.pid, signal.SIGCONT)


@contextmanager
def vllm(environment: Path, model: Path, port: int) -> Iterator[Vllm]:
    """Serve with the vLLM in a virtual environment, on all cores."""
    cores = f"0-{(os.cpu_count() or 1) - 1}"
    variables = {
        "VLLM_TARGET_DEVICE": "cpu",
        "VLLM_CPU_KVCACHE_SPACE": "4",
        "VLLM_CPU_OMP_THREADS_BIND": cores,
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        # Huge pages for what torch allocates, as `up` asks for.
        "THP_MEM_ALLOC_ENABLE": "1",
    }
    command = [
        str(environment / "bin" / "vllm"),
        "serve",
        str(model),
        "--dtype",
        "bfloat16",
        "--max-model-len",
        "4096",
    ]
    command += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", NAME]
    with _served(command, os.environ | variables, port, "/health") as server:
        yield Vllm(server, f"http://127.0.0.1:{port}")


@contextmanager
def _served(
    command: list[str], environment: dict[str, str], port: int, ready: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A process group that answers on the port, ended in the end."""
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        _await(server, f"http://127.0.0.1:{port}{ready}")
        yield server
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGCONT)
            server.send_signal(signal.SIGINT)
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def _await(server: subprocess.Popen[bytes], url: str) -> None:
    ends_s = time.monotonic() + START_S
    while server.poll() is None and time.monotonic() < ends_s:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    raise SystemExit(f"{server.args!r} does not answer at {url}")


def bench(url: str, out: Path, *flags: str) -> dict[str, Any]:
    """Load a server with `bucketserve bench` at one rate.  The report, which is kept in the folder `out`."""
    command = [sys.executable, "-m", "gateway", "bench", "--url", url, "--out", str(out), *flags]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return report(out)


def report(folder: Path) -> dict[str, Any]:
    """What a run of one rate left there."""
    (run,) = json.loads((folder / "report.json").read_text())["runs"]
    found: dict[str, Any] = run["report"]
    return found


def vllm_bench(
    environment: Path, url: str, model: Path, concurrency: int, requests: int, seed: int
) -> dict[str, float]:
    """Load a server with vLLM's own generator: about 200 tokens in, 64 out, fresh prompts.  Its figures."""
    file = model / "bench.json"
    command = [str(environment / "bin" / "vllm"), "bench", "serve", "--backend", "openai", "--base-url", url]
    command += [
        "--model",
        NAME,
        "--tokenizer",
        str(model),
        "--dataset-name",
        "random",
        "--random-input-len",
        "200",
    ]
    command += ["--random-output-len", "64", "--random-range-ratio", "0.6", "--ignore-eos", "--seed", str(seed)]
    command += ["--num-prompts", str(requests), "--max-concurrency", str(concurrency)]
    command += ["--num-warmups", str(max(4, concurrency)), "--save-result", "--result-filename", str(file)]
    variables = os.environ | {"VLLM_TARGET_DEVICE": "cpu", "HF_HUB_OFFLINE": "1"}
    subprocess.run(command, env=variables, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    figures: dict[str, float] = json.loads(file.read_text())
    return figures
