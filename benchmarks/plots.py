"""Draws benchmarks/plots from what was measured, in benchmarks/curves: `python -m benchmarks.plots`.

`memory.csv` is what `python -m benchmarks.memory follow --out FILE` writes; `rates.csv` and `decode.csv` are
columns of tables in benchmarks/README.md.  The picture of the presets is one of `bucketserve simulate`.
"""

import csv
from collections.abc import Iterable
from pathlib import Path

from benchmarks.memory import GROUP_MIB, MIB
from gateway.load.plots import Canvas, plain

CURVES = Path(__file__).parent / "curves"
PLOTS = Path(__file__).parent / "plots"

Row = dict[str, str]


def main() -> None:
    pictures = {"memory": memory, "goodput-vllm": goodput, "decode-h200": decode}
    for name, draw in pictures.items():
        file = PLOTS / f"{name}.png"
        file.write_bytes(draw())
        print(file)


def memory() -> bytes:
    """The engine's memory while another process takes and frees half of it."""
    rows = _rows("memory")
    begun_s = float(rows[0]["at_s"])
    times_s = [float(row["at_s"]) - begun_s for row in rows]
    usable = [GROUP_MIB - _mib(row, "hog_bytes") for row in rows]
    canvas = Canvas("Another process takes half of the memory, and frees it", "seconds", "MiB")
    canvas.axes.plot(times_s, usable, color="0.3", label="free and the engine's own")
    canvas.axes.plot(times_s, [0.95 * mib for mib in usable], color="0.3", linestyle=":", label="95 % of it")
    for name, label in (("taken_bytes", "taken by the engine"), ("kv_used_bytes", "keys and values in use")):
        canvas.axes.plot(times_s, [_mib(row, name) for row in rows], label=label)
    canvas.axes.set_ylim(bottom=0)
    return canvas.png()


def goodput() -> bytes:
    """Requests within their targets; all of them would lie on the diagonal."""
    canvas = Canvas("Goodput", "offered rate (requests/s)", "requests/s within both targets")
    rows = _rows("rates")
    for server, points in _lines(rows, "server", "rate", "goodput").items():
        canvas.axes.plot(*zip(*points, strict=True), marker="o", label=server)
    most = max(float(row["rate"]) for row in rows)
    canvas.axes.plot([0, most], [0, most], color="0.5", linestyle=":", label="everything")
    canvas.axes.set(xlim=(0, None), ylim=(0, None))
    return canvas.png()


def decode() -> bytes:
    """Decode steps on one H200 by rows, beside their floors."""
    canvas = Canvas("Decode step on one H200, rows of 1,500 tokens", "rows", "milliseconds")
    rows = _rows("decode")
    for number, (model, points) in enumerate(_lines(rows, "model", "rows", "step_ms").items()):
        floor = _lines(rows, "model", "rows", "floor_ms")[model]
        canvas.axes.plot(*zip(*points, strict=True), marker="o", color=f"C{number}", label=model)
        canvas.axes.plot(*zip(*floor, strict=True), linestyle=":", color=f"C{number}", label=f"{model}, floor")
    canvas.axes.set(xscale="log", yscale="log")
    for axis in (canvas.axes.xaxis, canvas.axes.yaxis):
        axis.set_major_formatter(plain)
    return canvas.png()


def _rows(name: str) -> list[Row]:
    with (CURVES / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def _lines(rows: Iterable[Row], label: str, x: str, y: str) -> dict[str, list[tuple[float, float]]]:
    """Points by label."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        lines.setdefault(row[label], []).append((float(row[x]), float(row[y])))
    return lines


def _mib(row: Row, name: str) -> float:
    return float(row[name]) / MIB


if __name__ == "__main__":
    main()
