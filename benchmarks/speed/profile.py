"""Where the time of an engine step goes, beside its floor: `python -m benchmarks.speed.profile`.

Chunks of prompts and decode steps of several sizes, in the engine on this machine's processor.  Linear layers and
attention are what our kernels take, and torch's operators by the profiler's shares of the rest of a step; planning
is a step of the engine over a model that costs nothing.  The floor is reading weights, keys and values once at the
speed at which memory is read just then, or for prompts the products at the speed of a large one.  `--transport`
adds what the way to the gateway costs, through a real Triton.

Where all blocks of the model are one call, their products are taken alone, and their attention block by block.
"""

import argparse
import asyncio
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, PreTrainedModel
from transformers.models.auto import AutoModelForCausalLM

from benchmarks import transport
from benchmarks.gpu.shapes import matrix_weights, read_bytes
from benchmarks.speed import model as speed_model
from triton_backend import native
from triton_backend.contract import Attach, Batch, Event, NewRow, Sampling
from triton_backend.engine import Engine, EngineConfig, load_runner
from triton_backend.memory import Layout
from triton_backend.native_blocks import NativeBlock, NativeStack
from triton_backend.plan import Prefill
from triton_backend.runner import Runner
from triton_backend.sampling import Draws, Pick, draw
from triton_backend.sequence import Sequence

PROMPT_TOKENS = 200
ROOM_TOKENS = 300
LINEAR = ("mkldnn::_linear_pointwise", "aten::mm", "aten::addmm")
ATTENTION = ("aten::_scaled_dot_product_flash_attention_for_cpu", "aten::bmm", "aten::baddbmm")
KERNELS = {
    "linear": "linear",
    "decode_attention": "attention",
    "prefill_attention": "attention",
    "rms_norm": "rest",
    "silu_gate": "rest",
    "rotate": "rest",
    "race": "rest",
}
"""Ours, which the profiler does not see."""
REPEATS = 20
COLUMNS = ("step", "linear", "attention", "rest of the model", "sampling", "planning", "floor", "step / floor")


class Machine(NamedTuple):
    bytes_per_s: float
    flops: float


def measured() -> Machine:
    """How fast this machine reads memory, and multiplies bfloat16 matrices."""
    large = torch.ones(2**28)
    left, right = (torch.randn(2048, 2048, dtype=torch.bfloat16) for _ in range(2))
    return Machine(large.nbytes / best_s(large.sum), 2 * 2048**3 / best_s(lambda: left @ right))


def best_s(run: Callable[[], object]) -> float:
    return min(_spent_ms(run) for _ in range(REPEATS)) / 1e3


class Weights(NamedTuple):
    """No step reads the table of embeddings but for its own tokens, and of a prompt only one row is for logits."""

    read_bytes: int
    """In a decode step."""
    multiplied: int
    """Numbers, with each token of a prompt."""


def weights_of(model: Path) -> Weights:
    """Of a folder's model in bfloat16, by its config alone."""
    with torch.device("meta"):
        config = AutoConfig.from_pretrained(model)
        shape = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)  # type: ignore[no-untyped-call]
    return Weights(read_bytes(shape), matrix_weights(shape))


class Bench:
    """The real runner, driven as the engine drives it."""

    def __init__(self, runner: Runner, weights: Weights) -> None:
        self._runner = runner
        self._weights = weights

    def row(self, kind: str, count: int) -> str:
        """A line of the table."""
        cells = " | ".join(f"{cell:.2f}" for cell in self.cells(kind, count))
        return f"| {kind}, {count} x {PROMPT_TOKENS} tokens | {cells} |"

    def cells(self, kind: str, count: int) -> tuple[float, ...]:
        """In the order of COLUMNS: so many prompts in one chunk, or a decode step of so many rows."""
        rows = [Sequence(_new(number, self._runner.vocabulary, 10**6)) for number in range(count)]
        rooms = dict.fromkeys(range(count), self._runner.layout.room_tokens(ROOM_TOKENS))
        assert self._runner.kv_budget_bytes, "the engine asks before each step"
        self._runner.arrange(rooms, [])
        step: Callable[[], object] = lambda: self._runner.prefill(rows, 0, PROMPT_TOKENS)  # noqa: E731
        if kind == "decode":
            drawn, draws = self._runner.prefill(rows, 0, PROMPT_TOKENS)
            for row, token in zip(drawn, draws.tokens, strict=True):
                row.prefill(PROMPT_TOKENS)
                row.draw(token, self._runner.context_tokens)
            self._runner.arrange(rooms, list(range(count)))
            step = lambda: self._runner.decode(rows)  # noqa: E731
        num_positions = count * (PROMPT_TOKENS if kind == "prefill" else 1)
        model_ms, linear, attention = _parts_ms(step, _stacks(self._runner.model), num_positions)
        sampling = 1e3 * self._sampling_s(count)
        planning = 1e3 * planning_s(count, self._runner.layout) if kind == "decode" else 0.0
        self._runner.arrange({}, [])
        floor = 1e3 * self._floor_s(kind, count)
        rest = model_ms - linear - attention - sampling
        total = model_ms + planning
        return total, linear, attention, rest, sampling, planning, floor, total / floor

    def _sampling_s(self, count: int) -> float:
        logits = torch.randn(count, self._runner.vocabulary).to(torch.bfloat16)
        picks = [Pick(row, Sampling(temperature=1.0, seed=row), 0, []) for row in range(count)]
        return best_s(lambda: draw(logits, picks))

    def _floor_s(self, kind: str, count: int) -> float:
        machine = measured()
        if kind == "prefill":
            return 2 * self._weights.multiplied * count * PROMPT_TOKENS / machine.flops
        kv_bytes = count * PROMPT_TOKENS * self._runner.layout.bytes_per_token
        return (self._weights.read_bytes + kv_bytes) / machine.bytes_per_s


def _new(number: int, vocabulary: int, max_tokens: int) -> NewRow:
    prompt = random.Random(number).choices(range(vocabulary), k=PROMPT_TOKENS)
    sampling = Sampling(temperature=1.0, seed=number)
    return NewRow(number, f"call/{number}", 1, "origin", prompt, 0, max_tokens, sampling=sampling)


class _Stack(NamedTuple):
    """All blocks of a model, which are one call, and where they are."""

    parent: nn.Module
    name: str
    layers: nn.Module
    stack: NativeStack


def _stacks(model: PreTrainedModel) -> list[_Stack]:
    return [
        _Stack(parent, name, layers, layer)
        for parent in model.modules()
        for name, layers in parent.named_children()
        for layer in layers.children()
        if isinstance(layers, nn.ModuleList) and isinstance(layer, NativeStack)
    ]


def _parts_ms(step: Callable[[], object], stacks: list[_Stack], num_positions: int) -> tuple[float, float, float]:
    """A step, and what linear layers and attention take of it.  By turns, as a shared machine's speed changes."""
    products = [call for stack in stacks for call in _products(stack.stack, num_positions)]
    rounds: list[dict[str, float]] = []
    for _ in range(REPEATS):
        whole_ms, alone_ms = _spent_ms(step), _spent_ms(lambda: [call() for call in products])
        with _opened(stacks):
            kernels_ms = _kernels_ms(step)
        rounds.append({"step": whole_ms, **kernels_ms, "linear": kernels_ms["linear"] + alone_ms})
    best_ms = {name: min(spent[name] for spent in rounds) for name in rounds[0]}
    model_ms = best_ms.pop("step")
    with _opened(stacks), profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(3):
            step()
    times = {event.key: event.self_cpu_time_total for event in profiled.key_averages()}
    torch_ms = (model_ms - sum(best_ms.values())) / sum(times.values())
    linear, attention = (torch_ms * sum(times.get(name, 0.0) for name in names) for names in (LINEAR, ATTENTION))
    return model_ms, linear + best_ms["linear"], attention + best_ms["attention"]


def _spent_ms(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - started)


@contextmanager
def _opened(stacks: list[_Stack]) -> Iterator[None]:
    """Blocks are called one by one, and their attention by itself."""
    for parent, name, _, stack in stacks:
        setattr(parent, name, stack.blocks)
    try:
        yield
    finally:
        for parent, name, layers, _ in stacks:
            setattr(parent, name, layers)


def _products(stack: NativeStack, num_positions: int) -> Iterator[Callable[[], object]]:
    """Those of a step of so many rows, one after the other."""
    for block in stack.blocks:
        assert isinstance(block, NativeBlock)
        layers, sizes = block.kernels.layers, block.kernels.sizes
        calls: list[Callable[[Tensor], object]] = [layers.joint, layers.attended, layers.gated.gated, layers.down]
        for call, (inputs, _) in zip(calls, sizes, strict=True):
            yield partial(call, torch.randn(num_positions, inputs, dtype=torch.bfloat16))


def _kernels_ms(step: Callable[[], object]) -> dict[str, float]:
    """What our kernels take in a step, by what they are part of."""
    spent = dict.fromkeys(KERNELS.values(), 0.0)
    library = native.library()
    if library is None:
        return spent

    def timed(part: str, kernel: Callable[..., object]) -> Callable[..., object]:
        def run(*arguments: object) -> object:
            started = time.perf_counter()
            out = kernel(*arguments)
            spent[part] += 1e3 * (time.perf_counter() - started)
            return out

        return run

    kernels = {name: getattr(library, name) for name in KERNELS if hasattr(library, name)}
    for name, kernel in kernels.items():
        setattr(library, name, timed(KERNELS[name], kernel))
    step()
    for name, kernel in kernels.items():
        setattr(library, name, kernel)
    return spent


class Instant:
    """A model that takes no time, and the session that nobody reads."""

    kv_budget_bytes = 2**40
    context_tokens = 4096
    vocabulary = 8192
    dtype = "bfloat16"
    device = "cpu"
    allocated_bytes = 0
    out_of_memory_total = 0

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    def arrange(self, rooms: Mapping[int, int], running: list[int]) -> None:
        pass

    def run(self, prefill: Prefill | None, decode: list[Sequence]) -> tuple[list[Sequence], Draws]:
        rows = [*(prefill.finishing if prefill else []), *decode]
        count = len(rows)
        return rows, Draws([1] * count, [0.0] * count, [[] for _ in range(count)])

    def send(self, event: Event) -> None:
        pass

    def is_closed(self) -> bool:
        return False

    def finish(self) -> None:
        pass


def planning_s(count: int, layout: Layout) -> float:
    """Of the engine around a decode step of so many rows."""
    instant = Instant(layout)
    engine = Engine(EngineConfig(model="", name="instant"), load=lambda _: instant)
    engine.attach(Attach(1, "profile"), instant)
    engine.step()
    engine.submit(Batch(1, 1, [_new(number, instant.vocabulary, 500) for number in range(count)]))
    for _ in range(count):
        engine.step()
    spent_s = best_s(engine.step)
    engine.stop(0.0)
    return spent_s


def prepared(model: Path | None, threads: int | None) -> Bench:
    """Over a model's folder, by default the speed benchmarks' own."""
    with tempfile.TemporaryDirectory() as folder:
        if model is None:
            model = Path(folder)
            speed_model.make(model)
        config = EngineConfig(
            model=str(model), name="profile", dtype="bfloat16", threads=threads, kv_budget_bytes=2**31
        )
        runner = load_runner(config)
        assert isinstance(runner, Runner)  # The one for CPUs.
        return Bench(runner, weights_of(model))


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--model", type=Path, help="folder; by default the speed benchmarks' own model is made")
    parser.add_argument("--threads", type=int, help="of the engine; by default all")
    parser.add_argument("--transport", action="store_true", help="measure the way to the gateway as well")
    options = parser.parse_args()
    bench, machine = prepared(options.model, options.threads), measured()
    print(
        f"Memory is read at {machine.bytes_per_s / 1e9:.1f} GB/s; products at {machine.flops / 1e9:.0f} GFLOP/s."
    )
    print(f"Milliseconds, the best of {REPEATS}.\n")
    print(f"| step | {' | '.join(COLUMNS)} |", "|" + "---|" * (len(COLUMNS) + 1), sep="\n")
    for kind, counts in (("prefill", (1, 2)), ("decode", (1, 8, 32))):
        for count in counts:
            print(bench.row(kind, count), flush=True)
    if options.transport:
        asyncio.run(transport.main(20_000, print))


if __name__ == "__main__":
    main()
