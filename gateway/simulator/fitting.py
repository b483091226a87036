"""`bucketserve fit`: its options, and what it prints."""

import argparse
import re
from collections.abc import Sequence
from os.path import expanduser
from pathlib import Path
from typing import get_args

import msgspec
from tqdm import tqdm  # type: ignore[import-untyped]

from gateway.bench.options import count, positive
from gateway.errors import Failed, in_one_line
from gateway.options import SettingsError
from gateway.settings import DEVICE, Dtype
from gateway.simulator.fit import Error, FitError, fit, warm
from triton_backend.record import EngineRecord, StepRecord, read


def add(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--model",
        metavar="FOLDER|ID",
        type=expanduser,
        help="Run this one here and measure it: local folder or Hugging Face id.",
    )
    source.add_argument(
        "--steps",
        metavar="FILE",
        type=Path,
        nargs="+",
        help="What served engines of one kind wrote (`up --step-records FOLDER`).",
    )
    parser.add_argument(
        "--out", metavar="FILE", type=Path, required=True, help="Where the cost model goes (JSON)."
    )
    parser.add_argument(
        "--device",
        metavar="DEVICE",
        type=_device,
        default="cpu",
        help="Where it runs: cpu, cuda or cuda:N (default: %(default)s).",
    )
    parser.add_argument(
        "--dtype", choices=get_args(Dtype), default="float32", help="Its precision (default: %(default)s)."
    )
    parser.add_argument("--threads", metavar="COUNT", type=count, help="CPU threads (default: the cores).")
    parser.add_argument(
        "--seconds",
        metavar="SECONDS",
        type=positive,
        default=60.0,
        help="Time to measure for (default: %(default)s).",
    )
    parser.add_argument(
        "--max-rows",
        metavar="REQUESTS",
        type=count,
        default=32,
        help="Most that run at once (default: %(default)s).",
    )
    parser.add_argument(
        "--max-prefill-tokens",
        metavar="TOKENS",
        type=count,
        default=2048,
        help="Prompt tokens in one step, at most (default: %(default)s).",
    )
    parser.add_argument(
        "--kv-bytes", metavar="BYTES", type=count, help="Most KV memory (default: what there is room for)."
    )
    parser.add_argument(
        "--seed", metavar="NUMBER", type=count, default=1, help="Same seed, same load (default: %(default)s)."
    )


def start(given: argparse.Namespace) -> int:
    """Raises SettingsError, Failed."""
    engine, steps = _recorded(given.steps) if given.steps else _observed(given)
    try:
        found = fit(engine, steps, given.out.stem)
    except FitError as error:
        raise SettingsError(str(error)) from None
    print(f"{len(steps)} steps")
    for kind, off in found.errors.items():
        print(f"steps of {kind + ':':8} {_text(off)}")
    try:
        given.out.write_bytes(msgspec.json.format(msgspec.json.encode(found.cost), indent=2))
    except OSError as error:
        raise SettingsError(f"--out {given.out}: {error.strerror}") from None
    print(f"written: {given.out}")
    return 0


def _device(text: str) -> str:
    if not re.fullmatch(DEVICE, text):
        raise argparse.ArgumentTypeError(f"{text!r} is not cpu, cuda or cuda:N")
    return text


def _recorded(files: Sequence[Path]) -> tuple[EngineRecord, list[StepRecord]]:
    """All steps, and the last file's engine."""
    all_steps: list[StepRecord] = []
    for file in files:
        try:
            engine, steps = read(file)
        except OSError as error:
            raise SettingsError(f"--steps {file}: {error.strerror}") from None
        except (msgspec.MsgspecError, ValueError) as error:
            raise SettingsError(f"--steps {file}: {error}") from None
        all_steps += warm(steps)
    return engine, all_steps


def _observed(given: argparse.Namespace) -> tuple[EngineRecord, list[StepRecord]]:
    # Here, not above: nothing else of the gateway needs torch.
    from gateway.simulator.observe import observe
    from triton_backend.attention import UnsupportedModel
    from triton_backend.engine import EngineConfig

    config = EngineConfig(
        model=given.model,
        name="fit",
        device=given.device,
        dtype=given.dtype,
        kv_budget_bytes=given.kv_bytes,
        max_prefill_tokens=given.max_prefill_tokens,
        threads=given.threads,
    )
    with tqdm(total=given.seconds, unit="s", desc="measuring", disable=None) as bar:
        try:
            engine, steps = observe(config, given.seconds, given.max_rows, given.seed, bar.update)
        except UnsupportedModel as error:
            raise Failed(f"--model: {in_one_line(error)}") from None
    return engine, warm(steps)


def _text(error: Error) -> str:
    return (
        f"median error {error.median:.1%}, P90 {error.p90:.1%} of a step not fitted to; "
        f"{error.total:.1%} of all their time"
    )
