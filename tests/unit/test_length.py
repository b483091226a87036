"""Predicted answer lengths: what requests show, what is learned from it, and what holds whatever is learned."""

import math
import random
from collections import deque
from collections.abc import Callable
from copy import deepcopy

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.policy import features as shown
from gateway.policy import length
from gateway.policy.features import FORMAT, NUM_FIGURES, WIDTH, Features
from gateway.policy.history import LengthHistory, Sample, Seen, whole_lengths
from gateway.policy.length import Margin, Mode, Predictor
from gateway.policy.snapshot import MAX_TOKENS, OPEN, PER_OCTAVE, BadSnapshot, LengthClass, Snapshot, class_of
from gateway.request import Profile, ServiceClass
from gateway.training import fit, rows_of, train

DEFAULT = ServiceClass.DEFAULT


def features(prompt: list[int], max_tokens: int = 100, tenant: int = 0) -> Features:
    return shown.features(prompt, max_tokens, DEFAULT, tenant, (5.0, 5.0))


# Features


def test_what_is_looked_at_is_bounded() -> None:
    prompt = list(range(100_000))
    assert len(features(prompt).slots) <= 2 * 16 + 48 + 16
    middle = prompt[:100] + [7] * 99_000 + prompt[-100:]
    assert features(middle).slots == features(prompt[:100] + [8] * 99_000 + prompt[-100:]).slots


@given(st.lists(st.integers(0, 2**20), min_size=1, max_size=200), st.text(), st.integers(1, MAX_TOKENS))
def test_any_request_shows_sound_features_that_travel(prompt: list[int], tenant: str, max_tokens: int) -> None:
    shows = Predictor().features(prompt, max_tokens, DEFAULT, tenant)
    assert shows.is_sound
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(shows), type=Features) == shows


def test_the_same_tokens_elsewhere_or_in_another_order_show_something_else() -> None:
    tail = list(range(500, 600))
    assert features([1, 2, 3]).slots != features([3, 2, 1]).slots
    assert features([1, 2, 3, *tail]).slots != features([*tail, 1, 2, 3]).slots
    assert features([1, 2, 3], tenant=1) != features([1, 2, 3], tenant=2)


def test_features_are_the_same_in_every_process() -> None:
    assert features([5, 6, 7]).slots == [993, 1036, 1262, 1445, 1721]
    assert shown.tenant_of("tenant") == 34


# History


def test_without_history_all_that_is_allowed_is_reckoned_with() -> None:
    predictor = Predictor()
    shows = features([1])
    for _ in range(length.MIN_HISTORY):
        assert predictor.mode is Mode.COLD
        assert predictor.predict(shows, 77, ignore_eos=False) == Profile(77, 77)
        predictor.observe(shows, 77, 3, ended_by_limit=False)
    assert predictor.predict(shows, 77, ignore_eos=False) == Profile(3, 3)


def test_the_recent_past_predicts_and_max_tokens_bounds() -> None:
    predictor = Predictor()
    shows = features([1])
    for tokens in range(1, 101):
        predictor.remember(Sample(shows, Seen(tokens, False)))
    assert predictor.predict(shows, 1000, ignore_eos=False) == Profile(50, 90)
    assert predictor.predict(shows, 20, ignore_eos=False) == Profile(18, 20)
    assert predictor.predict(shows, 1000, ignore_eos=True) == Profile(1000, 1000)


def test_a_history_forgets() -> None:
    history = LengthHistory(size=40)
    for tokens in [500] * 100 + [7] * 40:
        history.observe(tokens)
    assert (len(history), history.quantile(1.0), history.expected(1000)) == (40, 7, 7)


def test_cut_answers_count_as_the_longer_ones() -> None:
    seen = [Seen(10, False), Seen(10, True), Seen(20, True), Seen(40, False), Seen(60, True)]
    whole = whole_lengths(seen)
    assert whole[0] == 10
    assert whole[2] in (40, math.inf)
    assert whole[1] in (whole[2], 40, math.inf)
    assert whole[3:] == [40, math.inf]


def test_a_limit_that_cuts_half_of_the_answers_hides_no_long_ones() -> None:
    rng = random.Random(1)
    history = LengthHistory()
    for _ in range(512):
        tokens, limit = int(rng.lognormvariate(4.0, 0.7)) + 1, rng.choice((30, 2000))
        history.observe(min(tokens, limit), tokens > limit)
    truth = math.exp(4.0 + 0.7 * 1.2816)
    assert history.quantile(0.9) == pytest.approx(truth, rel=0.12)


def test_when_every_answer_is_cut_nobody_knows() -> None:
    predictor = Predictor()
    shows = features([1])
    for _ in range(100):
        predictor.remember(Sample(shows, Seen(16, True)))
    assert predictor.predict(shows, 500, ignore_eos=False) == Profile(500, 500)


# Classes and snapshots


@given(st.integers(1, MAX_TOKENS))
def test_classes_are_geometric(tokens: int) -> None:
    number = class_of(tokens)
    assert class_of(2 * tokens) == min(number + PER_OCTAVE, OPEN)
    assert 2 ** (number / PER_OCTAVE) <= tokens * (1 + 1e-12)
    assert number == OPEN or tokens < 2 ** ((number + 1) / PER_OCTAVE)


def samples(count: int, seed: int = 0, scale: float = 1.0) -> list[Sample]:
    """Answers as long as the prompt's last token says, give or take."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        prompt = [rng.randrange(1000, 2000) for _ in range(rng.randrange(1, 60))] + [rng.randrange(6)]
        tokens = int(scale * 2 ** (2 + prompt[-1]) * rng.lognormvariate(0, 0.3)) + 1
        made.append(Sample(features(prompt), Seen(tokens, False)))
    return made


@pytest.fixture(scope="module")
def snapshot() -> Snapshot:
    trained = train(samples(600))
    assert trained is not None
    return trained


@pytest.mark.parametrize("num_classes", [2, 20])
def test_a_snapshot_says_what_scikit_learn_says(num_classes: int) -> None:
    learned = samples(300)
    if num_classes == 2:
        learned = [Sample(each.features, Seen(8 if each.seen.tokens < 20 else 64, False)) for each in learned]
    trained = train(learned)
    assert trained is not None
    ordered = sorted(learned, key=lambda sample: sample.seen)
    rows = rows_of([sample.features for sample in ordered])
    classifier = fit(rows, np.array([class_of(sample.seen.tokens) for sample in ordered]))
    theirs = classifier.predict_proba(rows)
    assert [one.number for one in trained.classes] == list(classifier.classes_)
    ours = [trained.probabilities(sample.features) for sample in ordered]
    assert np.abs(theirs - ours).max() < 1e-5
    assert len(trained.classes) >= num_classes


def test_answers_of_one_class_teach_nothing() -> None:
    assert train([Sample(features([number]), Seen(9, False)) for number in range(50)]) is None


def test_a_snapshot_comes_back_as_it_went(snapshot: Snapshot) -> None:
    again = Snapshot.decode(snapshot.encode())
    for sample in samples(20, seed=1):
        probabilities = snapshot.probabilities(sample.features)
        assert (again.probabilities(sample.features) == probabilities).all()
        for level in (0.0, 0.3, 0.9, 1.0):
            assert again.quantile(probabilities, level) == snapshot.quantile(probabilities, level)
        assert again.expected(probabilities, 50) == snapshot.expected(probabilities, 50) <= 50


def plain(*classes: LengthClass) -> Snapshot:
    return Snapshot(classes, np.zeros((WIDTH + 1, len(classes)), np.float32))


def test_quantiles_lie_between_the_lengths_seen() -> None:
    two = plain(LengthClass(class_of(8), 8, 8.5, 9), LengthClass(class_of(64), 64, 70.0, 72))
    half = np.array([0.5, 0.5])
    assert [two.quantile(half, level) for level in (0.0, 0.25, 0.5, 0.75, 1.0)] == [8, 8.5, 9, 68, 72]
    assert two.expected(half, 1000) == pytest.approx((8.5 + 70) / 2)
    assert two.expected(half, 10) == pytest.approx((8.5 + 10) / 2)
    unknown = plain(LengthClass(class_of(8), 8, 8.5, 9), LengthClass(OPEN, MAX_TOKENS, MAX_TOKENS, MAX_TOKENS))
    assert unknown.quantile(np.array([0.8, 0.2]), 0.9) == math.inf


def wire(classes: object = None, weights: object = None, number: int = FORMAT) -> bytes:
    classes = [[class_of(8), 8, 8.0, 8]] if classes is None else classes
    weights = bytes(4 * (WIDTH + 1)) if weights is None else weights
    return msgspec.msgpack.encode([number, classes, weights])


def floats(value: float) -> bytes:
    return np.array([value] + [0.0] * WIDTH, "<f4").tobytes()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x91" * 5000,
        msgspec.msgpack.encode({"weights": [1.0]}),
        wire(number=FORMAT + 1),
        wire(weights=b""),
        wire(weights=bytes(4 * WIDTH)),
        wire(weights=bytes(4 * (WIDTH + 1) + 1)),
        wire(weights=bytes(10**7)),
        wire(weights=floats(math.nan)),
        wire(weights=floats(math.inf)),
        wire(weights=floats(1e30)),
        wire(weights="text"),
        wire(classes=[]),
        wire(classes=[[class_of(8), 8, 8.0, 8]] * 2, weights=bytes(8 * (WIDTH + 1))),
        wire(classes=[[class_of(8), 8, 8.0, 8]] * 1000),
        wire(classes=[[class_of(8), 8, math.nan, 8]]),
        wire(classes=[[class_of(8), 9, 8.0, 8]]),
        wire(classes=[[class_of(8), 8, 8.0, 800]]),
        wire(classes=[[OPEN + 1, MAX_TOKENS, MAX_TOKENS, MAX_TOKENS]]),
        wire(classes=[[0, 0, 0.0, 0]]),
        wire(classes=[[-1, 8, 8.0, 8]]),
    ],
)
def test_hostile_bytes_are_no_snapshot(data: bytes) -> None:
    assert Snapshot.decode(wire())
    with pytest.raises(BadSnapshot):
        Snapshot.decode(data)


@given(st.binary(max_size=200))
def test_random_bytes_are_no_snapshot(data: bytes) -> None:
    with pytest.raises(BadSnapshot):
        Snapshot.decode(data)


def test_no_part_of_a_snapshot_is_one(snapshot: Snapshot) -> None:
    data = snapshot.encode()
    for size in (1, 2, 100, len(data) // 2, len(data) - 1):
        with pytest.raises(BadSnapshot):
            Snapshot.decode(data[:size])
    rng = random.Random(0)
    for _ in range(200):
        damaged = bytearray(data)
        damaged[rng.randrange(min(400, len(data)))] ^= 1 << rng.randrange(8)
        try:
            probabilities = Snapshot.decode(bytes(damaged)).probabilities(features([1, 2, 3]))
        except BadSnapshot:
            continue
        assert probabilities.sum() == pytest.approx(1.0)


# Calibration


@pytest.mark.parametrize("factor", [0.3, 1.0, 4.0])
def test_a_margin_makes_any_quantile_cover_nine_in_ten(factor: float) -> None:
    rng = random.Random(0)
    margin, covered = Margin(), 0
    for number in range(3000):
        tokens = int(rng.lognormvariate(4, 1)) + 1
        is_covered = tokens <= margin.upper(factor * 200, 10**6)
        margin.learn(is_covered)
        covered += is_covered * (number >= 1000)
    assert 1780 <= covered <= 1820


def test_a_margin_reaches_between_one_token_and_the_limit() -> None:
    margin = Margin()
    assert (margin.upper(0.1, 50), margin.upper(math.inf, 50), margin.upper(49.2, 50)) == (1, 50, 50)
    for _ in range(10**4):
        margin.learn(True)
    assert margin.upper(80, 500) == 10
    for _ in range(10**4):
        margin.learn(False)
    assert margin.upper(1, 500) == 256


Length = Callable[[int, random.Random], float]


class Stream:
    """Requests whose answers depend on their last token, met as the gateway meets them: predicted, learned from
    once `lag` more have come, and every 256th answer a new model."""

    def __init__(self, seed: int, lag: int = 0) -> None:
        self.rng = random.Random(seed)
        self.lag = lag
        self.running: deque[tuple[Features, int, int, bool]] = deque()
        self.predictor = Predictor()
        self.window: deque[Sample] = deque(maxlen=1024)
        self.num = 0
        self.trains = True

    def run(self, count: int, mean: Length, limits: tuple[int, ...] = (4000,)) -> list[tuple[int, int, int]]:
        """(upper, expected, true) lengths."""
        seen = []
        for _ in range(count):
            kind = self.rng.randrange(8)
            prompt = [self.rng.randrange(100, 300) for _ in range(self.rng.randrange(3, 40))] + [kind]
            limit = self.rng.choice(limits)
            whole = int(mean(kind, self.rng) * self.rng.lognormvariate(0, 0.4)) + 1
            tokens = min(whole, limit)
            shows = self.predictor.features(prompt, limit, DEFAULT, "")
            profile = self.predictor.predict(shows, limit, ignore_eos=False)
            assert 1 <= profile.expected_tokens <= profile.upper_tokens <= limit
            seen.append((profile.upper_tokens, profile.expected_tokens, tokens))
            self.running.append((shows, limit, tokens, whole > limit))
            if len(self.running) > self.lag:
                self.learn(*self.running.popleft())
        return seen

    def learn(self, shows: Features, limit: int, tokens: int, is_cut: bool) -> None:
        self.predictor.observe(shows, limit, tokens, is_cut)
        self.window.append(Sample(shows, Seen(tokens, is_cut)))
        self.num += 1
        if self.trains and self.num % 256 == 0 and (trained := train(self.window)):
            self.predictor.adopt(trained)


def by_text(kind: int, rng: random.Random) -> float:
    return 10.0 * 2 ** (kind / 2)


def four_times(kind: int, rng: random.Random) -> float:
    return 4 * by_text(kind, rng)


def other_way_round(kind: int, rng: random.Random) -> float:
    return by_text(7 - kind, rng)


def coverage(seen: list[tuple[int, int, int]]) -> float:
    return sum(tokens <= upper for upper, _, tokens in seen) / len(seen)


def losses(seen: list[tuple[int, int, int]]) -> float:
    return sum(length.pinball_loss(upper, tokens) for upper, _, tokens in seen) / len(seen)


SETTLED = 600
"""Answers after a shift until the coverage counts."""


@pytest.mark.timeout(60)
def test_nine_in_ten_are_covered_before_and_after_a_shift() -> None:
    stream = Stream(1)
    stream.run(SETTLED, by_text)
    assert 0.88 <= coverage(stream.run(1500, by_text)) <= 0.92
    assert stream.predictor.mode is Mode.LEARNED
    for after in (four_times, other_way_round):
        shifted = deepcopy(stream)
        shifted.run(SETTLED, after)
        assert 0.88 <= coverage(shifted.run(1500, after)) <= 0.92
        assert shifted.predictor.mode is Mode.LEARNED


@pytest.mark.timeout(60)
def test_nine_in_ten_are_covered_though_hundreds_are_running() -> None:
    stream = Stream(5, lag=300)
    stream.run(SETTLED + 300, by_text)
    assert 0.88 <= coverage(stream.run(1500, by_text)) <= 0.92
    stream.run(SETTLED + 300, four_times)
    assert 0.88 <= coverage(stream.run(1500, four_times)) <= 0.92


@pytest.mark.timeout(60)
def test_nine_in_ten_are_covered_where_limits_cut_many() -> None:
    stream = Stream(2)
    stream.run(SETTLED, by_text, limits=(32, 64, 4000))
    assert 0.88 <= coverage(stream.run(1500, by_text, limits=(32, 64, 4000))) <= 0.92


@pytest.mark.timeout(60)
def test_answers_sure_to_be_cut_do_not_pay_for_the_others() -> None:
    stream = Stream(6)
    limits = (1,) * 9 + (4000,)
    stream.run(4 * SETTLED, by_text, limits)
    others = [seen for seen in stream.run(3000, by_text, limits) if seen[0] > 1 or seen[2] > 1]
    assert len(others) in range(200, 400)
    assert 0.86 <= coverage(others) <= 0.94


@pytest.mark.timeout(60)
def test_the_text_is_made_use_of_and_expected_lengths_are_about_right() -> None:
    stream = Stream(3)
    stream.run(1000, by_text)
    learned = stream.run(1000, by_text)
    assert sum(expected for _, expected, _ in learned) == pytest.approx(sum(t for _, _, t in learned), rel=0.1)
    recent = Predictor()
    quantile = []
    for _, _, tokens in learned:
        profile = recent.predict(features([1]), 4000, ignore_eos=False)
        quantile.append((profile.upper_tokens, profile.expected_tokens, tokens))
        recent.observe(features([1]), 4000, tokens, ended_by_limit=False)
    assert losses(learned[100:]) < 0.8 * losses(quantile[100:])


def misleading() -> Snapshot:
    """Sure of 8 tokens or of a thousand, by the prompt's first hashed token."""
    classes = [LengthClass(class_of(n), n, n, n) for n in (8, 1024)]
    weights = np.zeros((WIDTH + 1, 2), np.float32)
    weights[: WIDTH - NUM_FIGURES : 2, 0] = weights[1 : WIDTH - NUM_FIGURES : 2, 1] = 20
    return Snapshot(classes, weights)


def test_a_bad_model_is_not_used() -> None:
    stream = Stream(4)
    stream.run(100, by_text)
    stream.predictor.adopt(misleading())
    stream.trains = False
    seen = stream.run(1500, by_text)
    assert stream.predictor.mode is Mode.GLOBAL
    assert 0.88 <= coverage(seen) <= 0.92


def test_memory_is_bounded() -> None:
    predictor = Predictor()
    for number in range(3000):
        shows = predictor.features([number], 100, DEFAULT, f"tenant {number}")
        predictor.observe(shows, 100, 1 + number % 100, ended_by_limit=False)
    history = predictor._history
    assert len(history) == len(history._sorted) == len(history._arrived) == 512
    assert len(predictor._tenant_octaves) == shown.NUM_TENANTS


# What follows from a length


@given(st.integers(1, 500), st.integers(0, 2000), st.integers(1, 2000))
def test_something_is_left_until_nothing_may_come(upper: int, drawn: int, max_left: int) -> None:
    assert 1 <= length.left_tokens(Profile(upper, upper), drawn, max_left) <= max_left
