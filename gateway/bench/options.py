"""The options of `bucketserve bench`."""

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from gateway.load.arrivals import Process
from gateway.load.named import WORKLOADS
from gateway.load.workload import TrafficClass
from gateway.options import SettingsError
from gateway.request import ServiceClass

KEY_ENVS = ("BUCKETSERVE_API_KEY", "OPENAI_API_KEY")
DURATION_S = 60.0


class LoadOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for, when, and with which promises."""

    workload: str | None
    trace: Path | None
    rates: tuple[float, ...]
    """Empty: the trace's own."""
    requests: int | None
    duration_s: float | None
    arrivals: Process | None
    cv: float
    mix: tuple[TrafficClass, ...]
    slo_ttft_ms: float | None
    slo_tpot_ms: float | None
    slo_scale: float
    seed: int


class Options(LoadOptions, frozen=True, kw_only=True):
    url: str
    model: str | None
    endpoint: Literal["completions", "chat"]
    vocabulary: int
    tokenizer: Path | None
    timeout_s: float
    out: Path | None


def add(parser: argparse.ArgumentParser) -> None:
    server = parser.add_argument_group("server")
    server.add_argument(
        "--url",
        metavar="URL",
        default="http://127.0.0.1:8000",
        help="Server, with or without /v1 (default: %(default)s).",
    )
    server.add_argument("--model", metavar="NAME", help="Model to ask for; by default the server's first.")
    server.add_argument(
        "--endpoint",
        choices=("completions", "chat"),
        default="completions",
        help="completions sends token ids, so that prompts have the wanted length; chat sends text "
        "(default: %(default)s).",
    )
    server.add_argument(
        "--vocabulary",
        metavar="COUNT",
        type=count,
        default=1000,
        help="Token ids are drawn at random between 100 and this; nearly every model has more "
        "(default: %(default)s).",
    )
    server.add_argument(
        "--tokenizer",
        metavar="FILE",
        type=Path,
        help="tokenizer.json that gives chat prompts their length; by default one word counts as one token.",
    )
    server.add_argument(
        "--timeout-s",
        metavar="SECONDS",
        type=positive,
        default=600.0,
        help="An answer that takes longer has expired (default: %(default)s).",
    )
    add_load(parser)
    add_output(parser, "report.json, requests.csv")


def add_output(parser: argparse.ArgumentParser, files: str) -> None:
    """`files` are named beside those that every report has."""
    parser.add_argument_group("output").add_argument(
        "--out",
        metavar="FOLDER",
        type=Path,
        help=f"Where {files}, the pictures and report.html go; by default nowhere.",
    )


def add_load(parser: argparse.ArgumentParser) -> None:
    """Those of LoadOptions."""
    _add_requests(parser.add_argument_group("load"))
    _add_targets(parser.add_argument_group("classes and targets"))


def _add_requests(load: argparse._ArgumentGroup) -> None:
    what = load.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--workload", choices=list(WORKLOADS), metavar="NAME", help=f"One of {', '.join(WORKLOADS)}."
    )
    what.add_argument(
        "--trace",
        metavar="FILE",
        type=Path,
        help="CSV or csv.gz with arrival_s, prompt_tokens, output_tokens; repeated as often as needed.",
    )
    rates = load.add_mutually_exclusive_group()
    rates.add_argument("--rate", metavar="PER-SECOND", type=positive, help="Mean requests per second.")
    rates.add_argument(
        "--rates", metavar="LIST", type=_rates, help="Several such, with commas: measured one after the other."
    )
    size = load.add_mutually_exclusive_group()
    size.add_argument("--requests", metavar="COUNT", type=count, help="Requests at each rate.")
    size.add_argument(
        "--duration-s",
        metavar="SECONDS",
        type=positive,
        help="Or as many as the rate brings in this time "
        f"(default: {DURATION_S:g}, or a whole trace at its own rate).",
    )
    load.add_argument(
        "--arrivals",
        choices=[process.value for process in Process],
        help="trace: as recorded, stretched to the rate; poisson; gamma: in bursts "
        "(default: trace if there is one with times, else poisson).",
    )
    load.add_argument(
        "--cv",
        metavar="RATIO",
        type=positive,
        default=2.0,
        help="With gamma: the gaps' standard deviation over their mean; above 1 is burstier than poisson "
        "(default: %(default)s).",
    )
    load.add_argument(
        "--seed", metavar="NUMBER", type=count, default=1, help="Same seed, same requests (default: %(default)s)."
    )


def _add_targets(targets: argparse._ArgumentGroup) -> None:
    targets.add_argument(
        "--mix",
        metavar="CLASSES",
        type=_mix,
        default=(),
        help="TIER:SHARE[:TTFT-MS:TPOT-MS] with commas, such as priority:1:500:100,flex:3, drawn whatever the "
        "length; by default the workload's own classes.",
    )
    targets.add_argument(
        "--slo-ttft-ms", metavar="MS", type=positive, help="Target for the time to the first token, for all."
    )
    targets.add_argument(
        "--slo-tpot-ms", metavar="MS", type=positive, help="Target for the time per further token, for all."
    )
    targets.add_argument(
        "--slo-scale",
        metavar="FACTOR",
        type=positive,
        default=1.0,
        help="All targets times this (default: %(default)s).",
    )


def positive(text: str) -> float:
    value = _number(text)
    if not 0.0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None


def count(text: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,9}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no positive whole number")
    return int(text)


def _rates(text: str) -> tuple[float, ...]:
    return tuple(sorted({positive(part) for part in text.split(",")}))


def _mix(text: str) -> tuple[TrafficClass, ...]:
    classes = tuple(map(_traffic_class, text.split(",")))
    if len({traffic.name for traffic in classes}) < len(classes):
        raise argparse.ArgumentTypeError("a class stands twice")
    return classes


def _traffic_class(text: str) -> TrafficClass:
    tier, *numbers = text.split(":")
    if tier not in list(ServiceClass) or len(numbers) not in (1, 3):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not TIER:SHARE or TIER:SHARE:TTFT-MS:TPOT-MS with TIER {', '.join(ServiceClass)}"
        )
    share, *targets_ms = map(positive, numbers)
    return TrafficClass(tier, share, ServiceClass(tier), *(target_ms / 1000.0 for target_ms in targets_ms))


def check(given: argparse.Namespace) -> Options:
    """Raises SettingsError."""
    if given.endpoint == "completions" and given.tokenizer:
        raise SettingsError("--tokenizer is for --endpoint chat: completions get token ids")
    if given.vocabulary <= 100:
        raise SettingsError("--vocabulary: at least 101, as the first ids are often special")
    if not given.url.startswith(("http://", "https://")):
        raise SettingsError(f"--url {given.url}: expected http:// or https://")
    fields = load_fields(given) | {"url": given.url.rstrip("/").removesuffix("/v1")}
    return Options(**{name: fields[name] for name in Options.__struct_fields__})


def load_fields(given: argparse.Namespace) -> dict[str, Any]:
    """All that was given, with what LoadOptions needs of it in its form."""
    return vars(given) | {
        "rates": given.rates or ((given.rate,) if given.rate else ()),
        "arrivals": Process(given.arrivals) if given.arrivals else None,
    }


def api_key(environ: Mapping[str, str]) -> str | None:
    """From the environment only: flags show in the process list."""
    return next((environ[name] for name in KEY_ENVS if environ.get(name)), None)
