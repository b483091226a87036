"""The presets live on this machine, beside what the simulator says of them: `python -m benchmarks.live_presets`.

Fits a cost model to the engine (and prints its error), serves the demo model under each preset, loads it with
`bucketserve bench`, and simulates the same requests.  About seven minutes; on an idle machine, or the fit is of a
faster one.
"""

import argparse
import json
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from gateway.settings import DEMO_MODEL

PRESETS = ("full", "uellm", "continuous", "bucketserve", "static")
ENGINES = {"uellm": "whole", "static": "whole"}
"""How the engine runs live what the preset asks for; the others take turns between prompts and running rows."""
CLI = (sys.executable, "-m", "gateway")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rates", default="8,16,24", help="requests/s, with commas")
    parser.add_argument("--duration-s", type=int, default=20, help="at each rate")
    parser.add_argument("--port", type=int, default=8480)
    options = parser.parse_args()
    load = ["--workload", "chat", "--rates", options.rates, "--duration-s", str(options.duration_s)]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        cost = folder / "cost.json"
        fit = _run("fit", "--model", DEMO_MODEL, "--threads", "1", "--seconds", "30", "--out", str(cost))
        print("\n".join(line for line in fit.splitlines() if "error" in line))
        for preset in PRESETS:
            live = _live(preset, options.port, load, folder / preset)
            engine = ENGINES.get(preset, "alternate")
            simulated = folder / f"{preset}-simulated"
            how = ("--policies", preset, "--engine", engine, "--padding", "packed", "--cost", str(cost))
            _run("simulate", *how, *load, "--out", str(simulated))
            for rate, real, model in zip(options.rates.split(","), live, _attainments(simulated), strict=True):
                print(f"{preset:12} at {rate:>3}/s: live {real:6.1%}, simulated {model:6.1%}", flush=True)


def _live(preset: str, port: int, load: list[str], out: Path) -> list[float]:
    """Attainment at each rate."""
    up = subprocess.Popen(
        [*CLI, "up", "--port", str(port), "--threads", "1", "--policy", preset],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert up.stdout
        said = next((line for line in up.stdout if re.search("ready after .* on http", line)), None)
        if said is None:
            raise SystemExit(f"`up --policy {preset}` did not come up")
        _run("bench", "--url", f"http://127.0.0.1:{port}", *load, "--out", str(out))
    finally:
        up.send_signal(signal.SIGINT)
        up.communicate()
    return _attainments(out)


def _run(*arguments: str) -> str:
    """A command of ours; what it printed."""
    done = subprocess.run([*CLI, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return done.stdout + done.stderr


def _attainments(folder: Path) -> list[float]:
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return [run["report"]["total"]["attainment"] for run in report["runs"]]


if __name__ == "__main__":
    main()
