"""A scheduling policy is five choices; a preset is a named set of them.  All run in the same driver loop."""

from dataclasses import dataclass, replace

from gateway.policy.admission import AdmissionRule, ByTarget, Everybody
from gateway.policy.batch import BatchRule, ByPrompt, Fixed, InOrder, SloOdbs, ToTheEnd
from gateway.policy.boundaries import Optimal
from gateway.policy.bucket import BucketRule, Paper, Whole
from gateway.policy.length_rule import Allowed, LengthRule, Predicted
from gateway.policy.priority import Arrival, Fair, PriorityRule, longest_first, slo_odbs_key


@dataclass(frozen=True, slots=True)
class Policy:
    admission: AdmissionRule
    """Whether a request may come in."""
    length: LengthRule
    """What is reckoned with as the answer's length."""
    priority: PriorityRule
    """Who comes first."""
    bucket: BucketRule
    """Which lengths go together."""
    batch: BatchRule
    """How many start."""


FULL = Policy(ByTarget(), Predicted(), Fair(), Optimal(), ToTheEnd())
"""Ours."""
BUCKETSERVE = Policy(Everybody(), Allowed(), Arrival(), Paper(), ByPrompt())
"""BucketServe as published (arXiv 2507.17120), online."""
UELLM = Policy(Everybody(), Predicted(), Arrival(slo_odbs_key, window=200), Whole(), SloOdbs())
"""UELLM's SLO-ODBS as its code runs it (arXiv 2409.14961)."""
DISTSERVE = Policy(Everybody(), Allowed(), Arrival(), Whole(), InOrder(max_tokens=8192, max_running=128))
"""DistServe's prefill queue (arXiv 2401.09670); decode replicas of their own exist in the simulator only."""
CONTINUOUS = Policy(Everybody(), Allowed(), Arrival(), Whole(), InOrder(max_tokens=2048))
"""First come, first served, continuous batching, chunked prefill: vLLM's default."""
STATIC = Policy(Everybody(), Allowed(), Arrival(), Whole(), Fixed())
"""Fixed-size batches, run to the end."""

PRESETS = {
    "full": FULL,
    "bucketserve": BUCKETSERVE,
    "uellm": UELLM,
    "distserve": DISTSERVE,
    "continuous": CONTINUOUS,
    "static": STATIC,
}


def named(name: str, bulk_order: str) -> Policy:
    """A preset; `bulk_order` is sjf or ljf, and matters where the preset knows bulk."""
    policy = PRESETS[name]
    if bulk_order == "ljf" and isinstance(policy.priority, Fair):
        return replace(policy, priority=Fair(longest_first))
    return policy
