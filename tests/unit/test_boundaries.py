"""The optimal bucket table against brute force, and what the published rule gets wrong."""

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.policy.boundaries import Costs, Optimal, drift
from gateway.policy.bucket import Bounds, Paper, Reason, Traffic, bin_of, bucket_of, first_tokens
from gateway.policy.fading import Fading
from gateway.policy.replan import HALF_LIFE_S, MIN_NEW, Replanner

HISTOGRAMS = st.dictionaries(st.integers(0, 60), st.integers(1, 50), min_size=1, max_size=7)


def traffic(
    recent: dict[int, int] | dict[int, float],
    waiting: int = 100,
    max_batch: int = 32,
    batch_cost_tokens: float = 50.0,
    bounds: Bounds = (0,),
) -> Traffic:
    return Traffic(bounds, {0: waiting}, recent, max_batch, 4096, batch_cost_tokens)


def histogram(lengths: list[int]) -> dict[int, int]:
    bins: dict[int, int] = {}
    for tokens in lengths:
        bins[bin_of(tokens)] = bins.get(bin_of(tokens), 0) + 1
    return bins


def slow_cost(bounds: Bounds, given: Traffic) -> float:
    """What the docstring of Costs says, bucket by bucket."""
    waiting, total = sum(given.queued.values()), sum(given.recent.values())
    cost = 0.0
    for at in range(len(bounds)):
        bins = [bin for bin in given.recent if bucket_of(bounds, bin) == at]
        if not bins:
            continue
        longest = first_tokens(max(bins) + 1) - 1
        tickets = {bin: given.recent[bin] * waiting / total for bin in bins}
        count = sum(tickets.values())
        padding = sum(n * (longest - (first_tokens(bin + 1) - 1)) for bin, n in tickets.items())
        together = min(count, given.max_batch)
        cost += padding * (1 - 1 / max(1.0, together))
        cost += given.batch_cost_tokens * max(min(1.0, count), count / given.max_batch)
    return cost


def tables(bins: list[int], max_buckets: int) -> list[Bounds]:
    """Every table that cuts before some of the bins."""
    return [
        (0, *cuts)
        for count in range(min(max_buckets, len(bins)))
        for cuts in itertools.combinations(bins[1:], count)
    ]


@given(HISTOGRAMS, st.integers(1, 300), st.integers(1, 64), st.floats(0, 5000), st.integers(1, 8))
@settings(max_examples=150)
def test_no_table_is_cheaper(
    recent: dict[int, int], waiting: int, max_batch: int, batch_cost_tokens: float, max_buckets: int
) -> None:
    given = traffic(recent, waiting, max_batch, batch_cost_tokens)
    best = Costs(given).best(max_buckets, min_width_tokens=1)
    assert len(best) <= max_buckets
    cheapest = min(slow_cost(table, given) for table in tables(sorted(recent), max_buckets))
    assert slow_cost(best, given) == pytest.approx(cheapest, abs=1e-6)
    assert Costs(given).of(best) == pytest.approx(slow_cost(best, given), abs=1e-6)


@given(HISTOGRAMS, st.integers(1, 300))
def test_buckets_are_neither_too_many_nor_too_narrow(recent: dict[int, int], waiting: int) -> None:
    bounds = Optimal(max_buckets=4, min_gain=0.0).bounds(traffic(recent, waiting, batch_cost_tokens=0.0))
    edges = [first_tokens(bin) for bin in bounds]
    assert len(bounds) <= 4
    longest = {bucket_of(bounds, bin): first_tokens(bin + 1) for bin in sorted(recent)}
    assert all(longest.get(at, 10**9) - low >= 16 for at, low in enumerate(edges[:-1]))


def test_few_waiting_are_not_worth_batches_of_their_own() -> None:
    mixed = histogram([70] * 50 + [3000] * 50)
    assert Optimal().bounds(traffic(mixed, waiting=1)) == (0,)
    assert len(Optimal().bounds(traffic(mixed, waiting=100))) == 2


def test_without_traffic_there_is_one_bucket() -> None:
    assert Optimal().bounds(traffic({})) == (0,)


# The published rule's flaws


def padding(bounds: Bounds, lengths: list[int]) -> float:
    """Share of padding if each bucket's tickets are padded to its longest."""
    buckets: dict[int, list[int]] = {}
    for tokens in lengths:
        buckets.setdefault(bucket_of(bounds, bin_of(tokens)), []).append(tokens)
    padded = sum(max(group) * len(group) for group in buckets.values())
    return 1 - sum(lengths) / padded


def mix(long_share: float, seed: int = 1) -> list[int]:
    rng = random.Random(seed)
    return [
        rng.randrange(2100, 4096) if rng.random() < long_share else round(rng.lognormvariate(4.23, 0.6))
        for _ in range(400)
    ]


def published(lengths: list[int], calls: int, max_batch: int = 32) -> Bounds:
    bounds: Bounds = (0,)
    for _ in range(calls):
        bounds = Paper().bounds(Traffic(bounds, histogram(lengths), {}, max_batch, 4096, 0.0))
    return bounds


@pytest.mark.parametrize("long_share", [0.6, 1.0])
def test_traffic_whose_majority_is_long_is_cut_too(long_share: float) -> None:
    lengths = mix(long_share)
    ours = Optimal().bounds(traffic(histogram(lengths), waiting=400))
    assert published(lengths, calls=20) == (0,)
    assert len(ours) > 2
    assert padding(ours, lengths) < 0.5 * padding((0,), lengths)


def test_one_call_is_enough() -> None:
    lengths = mix(0.0)
    ours = Optimal().bounds(traffic(histogram(lengths), waiting=400))
    assert padding(published(lengths, calls=1), lengths) > 0.5
    assert padding(ours, lengths) < 0.2


def test_the_table_does_not_thrash_around_a_threshold() -> None:
    """The published rule tears the whole set down whenever the queue is a little short of a batch."""
    lengths = mix(0.3)
    given = histogram(lengths)
    crowded, sparse = Traffic((0,), {9: 33}, given, 32, 4096, 50.0), Traffic((0,), {9: 31}, given, 32, 4096, 50.0)
    ours = Optimal().bounds(crowded)
    assert len(ours) > 1
    again = Traffic(ours, sparse.queued, given, 32, 4096, 50.0)
    assert Optimal().bounds(again) == ours
    assert Paper().bounds(again) == (0,)


def test_a_little_better_is_not_worth_a_change() -> None:
    given = histogram(mix(0.3))
    best = Optimal().bounds(traffic(given))
    nearly = (0, *(bin + 1 if at == 0 else bin for at, bin in enumerate(best[1:])))
    costs = Costs(traffic(given))
    assert costs.of(best) < costs.of(nearly)
    gain = 1 - costs.of(best) / costs.of(nearly)
    assert Optimal(min_gain=gain * 1.01).bounds(traffic(given, bounds=nearly)) == nearly
    assert Optimal(min_gain=gain * 0.99).bounds(traffic(given, bounds=nearly)) == best


def test_the_longest_prompt_has_a_bucket() -> None:
    """Half-open published ranges leave none for a prompt truncated exactly to the limit."""
    for bounds in (published(mix(0.1), 9), Optimal().bounds(traffic(histogram([4096] * 9 + [64] * 99)))):
        assert 0 <= bucket_of(bounds, bin_of(4096)) < len(bounds)


def test_a_change_says_why() -> None:
    assert Paper().reason((0,), (0, 5)) is Reason.CROWDED
    assert Paper().reason((0, 5), (0,)) is Reason.SPARSE
    assert Optimal().reason((0, 5), (0, 9)) is Reason.TRAFFIC


def test_no_bucket_is_empty() -> None:
    recent = histogram(mix(0.5))
    bounds = Optimal().bounds(traffic(recent, waiting=400))
    assert {bucket_of(bounds, bin) for bin in recent} == set(range(len(bounds)))


# Drift


def test_drift_is_the_share_that_lies_elsewhere() -> None:
    assert drift({1: 5, 2: 5}, {1: 50, 2: 50}) == 0
    assert drift({1: 5, 2: 5}, {1: 5, 3: 5}) == 0.5
    assert drift({1: 1}, {2: 1}) == 1
    assert drift({}, {1: 1}) == drift({1: 1}, {}) == 1
    assert drift({}, {}) == 0


def test_recent_traffic_fades_by_half_lives() -> None:
    recent = Fading(HALF_LIFE_S)
    for second in range(10_000):
        recent.add(1, 1.0, second)
    for _ in range(10):
        recent.add(2, 1.0, 10_000 + 30)
    weights = recent.read(10_000 + 30)
    last = weights[2] / 10
    # A second's ticket of 30 to 10,030 s ago: a geometric series of half-lives.
    assert weights[1] / last == pytest.approx(0.5 / (1 - 2 ** (-1 / 30)), rel=0.05)


class Counting:
    """A rule that says how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    def bounds(self, traffic: Traffic) -> Bounds:
        self.asked += 1
        return traffic.bounds

    def reason(self, before: Bounds, after: Bounds) -> Reason:
        return Reason.TRAFFIC


def test_the_table_is_thought_over_when_the_traffic_changes() -> None:
    rule = Counting()
    replanner = Replanner(rule)

    def look(now_s: float, bin: int, count: int = MIN_NEW) -> int:
        for _ in range(count):
            replanner.note(bin, now_s)
        replanner.bounds((0,), {5: 10}, 8, 4096, 0.0, now_s)
        return rule.asked

    assert look(0.0, 40, count=MIN_NEW - 1) == 0
    assert look(0.1, 40) == 1
    # The same traffic, a look too soon, and too few tickets.
    assert look(5.0, 40) == 1
    assert look(5.5, 60) == 1
    assert look(9.0, 60, count=0) == 2
    assert look(12.0, 90, count=MIN_NEW - 1) == 2
    assert look(12.0, 90, count=1) == 3
