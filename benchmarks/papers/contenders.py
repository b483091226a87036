"""Who answers, and the settings of each that are tried.

Every preset gets its best setting, found on seeds that are not used for the tables: its batch cap, its token
budget, its split of the GPUs.  BucketServe also gets its authors' separate prefill and decode GPUs, and their
offline orders.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from gateway.policy.admission import Everybody
from gateway.policy.batch import ByPrompt, Fixed, InOrder, SloOdbs
from gateway.policy.bucket import Paper, Whole
from gateway.policy.length_rule import Allowed
from gateway.policy.preset import BUCKETSERVE, CONTINUOUS, DISTSERVE, FULL, STATIC, UELLM, Policy
from gateway.policy.priority import Arrival, longest_first, shortest_first
from gateway.simulator.lengths import LengthsName

_WINDOW = 512
_AHEAD_TOKENS = 16_384
"""An engine that schedules by itself sees what waits; so much is in its hands before it runs."""


@dataclass(frozen=True, slots=True)
class Setting:
    name: str
    rules: Policy
    engine: str
    """The preset whose engine runs them."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of the simulator's Config."""
    for_load: bool = True
    """False: only meant for requests that are all there from the start."""


@dataclass(frozen=True, slots=True)
class Contender:
    name: str
    settings: tuple[Setting, ...]
    lengths: LengthsName = LengthsName.NOISY
    """Predictions; those who do not look at any do as well with all."""
    like: str | None = None
    """Takes this one's best settings instead of a sweep of its own."""


def _full(batch: int, budget: int) -> Setting:
    options = {"max_batch_rows": batch, "max_prefill_tokens": budget}
    return Setting(f"batch {batch}, budget {budget}", FULL, "full", options)


def _bucketserve(batch: int, budget: int) -> Setting:
    options = {"max_batch_rows": batch, "max_prefill_tokens": budget}
    return Setting(f"batch {batch}, budget {budget}", BUCKETSERVE, "bucketserve", options)


def _offline(name: str, order: Arrival) -> Setting:
    rules = replace(BUCKETSERVE, priority=order)
    return Setting(f"batch 64, {name}", rules, "bucketserve", {"max_batch_rows": 64}, for_load=False)


def _separate(rules: Policy, prefill: int, decode: int, budget: int, ahead: int, batch: int) -> Setting:
    """Prompts and answers on GPUs of their own."""
    options = {
        "replicas": prefill + decode,
        "prefill_replicas": prefill,
        "max_prefill_tokens": budget,
        "max_sent_tokens": ahead,
        "max_batch_rows": batch,
    }
    return Setting(f"{prefill}:{decode}, budget {budget}", rules, "distserve", options)


def _continuous(budget: int, running: int) -> Setting:
    rules = replace(CONTINUOUS, batch=InOrder(max_tokens=_AHEAD_TOKENS, max_running=running))
    options = {"max_prefill_tokens": budget, "max_sent_tokens": _AHEAD_TOKENS}
    return Setting(f"budget {budget}, running {running}", rules, "continuous", options)


_SPLITS = (((1, 1), 512), ((1, 1), 2048), ((1, 1), 8192), ((2, 1), 2048), ((1, 2), 2048))
_DISTSERVE = replace(DISTSERVE, batch=InOrder(max_tokens=8192, max_running=256))
_UELLM = tuple(
    Setting(f"cap {cap}", replace(UELLM, batch=SloOdbs(cap=cap)), "uellm", {"max_batch_rows": cap})
    for cap in (10, 18, 32, 64)
)
_STATIC = tuple(
    Setting(f"size {size}", replace(STATIC, batch=Fixed(size)), "static", {"max_batch_rows": size})
    for size in (4, 8, 16, 32, 64)
)
_FULL = (_full(64, 1024), _full(64, 2048), _full(64, 8192), _full(16, 2048))

CONTENDERS = (
    Contender("full", _FULL),
    Contender("full, lengths by history", _FULL, LengthsName.HISTORY, like="full"),
    Contender(
        "bucketserve",
        (
            *(_bucketserve(batch, 2048) for batch in (32, 64, 256)),
            _bucketserve(64, 8192),
            _offline("shortest first", Arrival(shortest_first, _WINDOW)),
            _offline("longest first", Arrival(longest_first, _WINDOW)),
            # What is sent ahead is in no bucket any more.
            _separate(BUCKETSERVE, 1, 1, 2048, 2048, 64),
        ),
    ),
    Contender("uellm", _UELLM),
    Contender("uellm, lengths known", _UELLM, LengthsName.ORACLE, like="uellm"),
    Contender(
        "distserve",
        (*(_separate(_DISTSERVE, *split, budget, _AHEAD_TOKENS, 128) for split, budget in _SPLITS),),
    ),
    Contender(
        "continuous", tuple(_continuous(budget, rows) for budget in (512, 2048, 8192) for rows in (64, 256))
    ),
    Contender("static", _STATIC),
)


def ablations(best: Setting) -> tuple[Contender, ...]:
    """`full` at its best setting, and with one choice taken from the papers instead."""
    others: dict[str, dict[str, Any]] = {
        "full": {},
        "buckets as published": {"bucket": Paper()},
        "no buckets": {"bucket": Whole()},
        "memory by prompt": {"batch": ByPrompt()},
        "memory by prompt, in order": {"batch": InOrder()},
        "lengths as allowed": {"length": Allowed()},
        "first come, first served": {"priority": Arrival()},
        "everybody admitted": {"admission": Everybody()},
        "both of these": {"priority": Arrival(), "admission": Everybody()},
    }
    return tuple(
        Contender(name, (replace(best, rules=replace(best.rules, **changed)),)) for name, changed in others.items()
    )
