"""The options of `bucketserve simulate`: the load's are those of `bench`."""

import argparse
from pathlib import Path

from gateway.bench.options import LoadOptions, add_load, add_output, count, load_fields
from gateway.options import SettingsError
from gateway.policy.preset import PRESETS
from gateway.simulator import cost
from gateway.simulator.cost import COSTS, Cost, CostError
from gateway.simulator.job import Padding, Style
from gateway.simulator.lengths import LengthsName
from gateway.simulator.run import DISAGGREGATED, Config


class Options(LoadOptions, frozen=True, kw_only=True):
    policies: tuple[str, ...]
    replicas: int
    prefill_replicas: int | None
    cost: Cost
    padding: Padding
    engine: Style | None
    lengths: LengthsName
    max_tokens: int | None
    max_rows: int
    max_batch_rows: int
    max_prefill_tokens: int | None
    retries: int
    out: Path | None

    def config(self, policy: str) -> Config:
        return Config(
            policy=policy,
            cost=self.cost,
            replicas=self.replicas,
            prefill_replicas=self.prefill_replicas,
            style=self.engine,
            padding=self.padding,
            lengths=self.lengths,
            max_tokens=self.max_tokens,
            max_rows=self.max_rows,
            max_batch_rows=self.max_batch_rows,
            max_prefill_tokens=self.max_prefill_tokens,
            max_returns=self.retries,
            seed=self.seed,
        )


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--policies",
        metavar="LIST",
        type=lambda text: tuple(text.split(",")),
        default=("full",),
        help=f"With commas, of {', '.join(PRESETS)} (default: full).",
    )
    _add_engine(parser.add_argument_group("replicas"))
    add_load(parser)
    _add_bounds(parser.add_argument_group("bounds and clients"))
    add_output(parser, "report.json, summary.csv, requests.csv")


def _add_engine(engine: argparse._ArgumentGroup) -> None:
    engine.add_argument(
        "--replicas", metavar="COUNT", type=count, default=1, help="Engines (default: %(default)s)."
    )
    engine.add_argument(
        "--prefill-replicas",
        metavar="COUNT",
        type=count,
        help=f"Of which run prompts only, with {DISAGGREGATED} (default: half).",
    )
    engine.add_argument(
        "--cost",
        metavar="NAME|FILE",
        default="distserve-opt13b-tp1",
        help=f"How long steps take: a JSON file, or one of {', '.join(COSTS)} (default: %(default)s).",
    )
    engine.add_argument(
        "--padding",
        choices=[padding.value for padding in Padding],
        default=Padding.PADDED.value,
        help="padded: every row of a step costs as much as the longest; prompts: only while prompts are run; "
        "packed: none does (default: %(default)s).",
    )
    engine.add_argument(
        "--engine",
        choices=[style.value for style in Style],
        help="ours: a step holds all running rows' next tokens, and prompts as far as those can wait; mixed: "
        "the same with prompts up to a token budget; whole: a batch runs to its end (default: each policy's own).",
    )


def _add_bounds(bounds: argparse._ArgumentGroup) -> None:
    bounds.add_argument(
        "--lengths",
        choices=[name.value for name in LengthsName],
        default=LengthsName.HISTORY.value,
        help="What predicts the answers' lengths: the recent answers, the truth, what clients allow, or the truth "
        "with noise (default: %(default)s).",
    )
    bounds.add_argument(
        "--max-tokens",
        metavar="TOKENS",
        type=count,
        help="What clients allow an answer (default: the longest one there is).",
    )
    defaults = Config(policy="")
    for flag, default, text in (
        ("--max-rows", defaults.max_rows, "Requests on a replica at once"),
        ("--max-batch-rows", defaults.max_batch_rows, "Requests started at once"),
    ):
        bounds.add_argument(
            flag, metavar="REQUESTS", type=count, default=default, help=f"{text} (default: %(default)s)."
        )
    bounds.add_argument(
        "--max-prefill-tokens",
        metavar="TOKENS",
        type=count,
        help="Of prompts in one step (default: as the engine of --cost, else "
        f"{defaults.step_tokens}; with distserve 8192).",
    )
    bounds.add_argument(
        "--retries",
        metavar="COUNT",
        type=int,
        default=0,
        help="How often a refused client comes back when it was told (default: %(default)s).",
    )


def check(given: argparse.Namespace) -> Options:
    """Raises SettingsError."""
    for policy in given.policies:
        if policy not in PRESETS:
            raise SettingsError(f"--policies: no policy '{policy}'; there are {', '.join(PRESETS)}")
    if DISAGGREGATED in given.policies and given.engine is None:
        prefill = given.prefill_replicas or given.replicas // 2
        if not 0 < prefill < given.replicas:
            raise SettingsError(f"{DISAGGREGATED} needs replicas for each phase: --replicas 2 or more")
    try:
        fields = load_fields(given) | {
            "cost": cost.load(given.cost),
            "padding": Padding(given.padding),
            "engine": Style(given.engine) if given.engine else None,
            "lengths": LengthsName(given.lengths),
        }
    except CostError as error:
        raise SettingsError(str(error)) from None
    return Options(**{name: fields[name] for name in Options.__struct_fields__})
