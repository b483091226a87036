"""All linear layers of a step, by our kernel and by oneDNN: `python -m benchmarks.speed.linear`.

The shapes are those of the speed benchmarks' model, joined as the engine joins them; every layer has weights of
its own, so that no cache holds them.  A shared machine's speed changes within seconds: each round runs oneDNN,
ours and a plain reading of as much memory, one after the other.
"""

import argparse
import time
from collections.abc import Callable

import torch

from triton_backend.native_linear import NativeLinear, usable_library
from triton_backend.packed import OneDnnLinear

LAYERS = 12
SHAPES = ((1024, 2048), (1024, 1024), (1024, 5632), (2816, 1024))
"""Inputs and outputs of queries, keys and values; attention's output; gate and up; down."""
LOGITS = (1024, 8192)
FEW_ROWS = (1, 2, 4, 8, 16, 32)
PROMPT_ROWS = (64, 128, 224, 512, 1024)
"""Of a prompt, logits are wanted of the last row only."""

Linear = Callable[[torch.Tensor], torch.Tensor]


class Layers:
    """One model's, in two layouts."""

    def __init__(self) -> None:
        library = usable_library()
        if library is None:
            raise SystemExit("there is no kernel for this machine")
        self.num_bytes = 0
        self.kinds: dict[str, list[tuple[int, Linear]]] = {"oneDNN": [], "ours": []}
        for inputs, outputs in [*SHAPES * LAYERS, LOGITS]:
            weight = (torch.randn(outputs, inputs) / inputs**0.5).bfloat16()
            self.num_bytes += weight.nbytes
            self.kinds["oneDNN"].append((inputs, OneDnnLinear(weight, None)))
            self.kinds["ours"].append((inputs, NativeLinear(library, weight, None)))

    def step(self, kind: str, num_rows: int) -> Callable[[], None]:
        rows = {inputs: torch.randn(num_rows, inputs).bfloat16() for inputs, _ in SHAPES}
        *layers, (_, logits) = self.kinds[kind]
        last = rows[LOGITS[0]] if num_rows in FEW_ROWS else rows[LOGITS[0]][:1]

        def step() -> None:
            for inputs, linear in layers:
                linear(rows[inputs])
            logits(last)

        return step


def row(layers: Layers, num_rows: int, seconds: float) -> str:
    """A line of the table."""
    memory = torch.ones(layers.num_bytes // 4)
    steps: dict[str, Callable[[], object]] = {kind: layers.step(kind, num_rows) for kind in layers.kinds}
    steps["reading"] = memory.sum
    times_ms: dict[str, list[float]] = {name: [] for name in steps}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            times_ms[name].append(1e3 * (time.perf_counter() - started))
    tenths, medians = (
        {name: sorted(times)[int(share * len(times))] for name, times in times_ms.items()} for share in (0.1, 0.5)
    )
    cells = [f"{tenths[name]:.1f} / {medians[name]:.1f}" for name in steps]
    return f"| {num_rows} | {' | '.join(cells)} | {medians['oneDNN'] / medians['ours']:.2f} |"


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="for each line")
    parser.add_argument("--rows", type=int, nargs="+", default=[*FEW_ROWS, *PROMPT_ROWS])
    options = parser.parse_args()
    layers = Layers()
    print("Milliseconds: a tenth of the rounds took less / half of them did.\n")
    print("| rows | oneDNN | ours | reading | oneDNN / ours |", "|" + "---|" * 5, sep="\n")
    for num_rows in options.rows:
        print(row(layers, num_rows, options.seconds), flush=True)


if __name__ == "__main__":
    main()
