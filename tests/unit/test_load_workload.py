"""Workloads: traces, arrivals, named distributions, classes."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.load import named, trace
from gateway.load.arrivals import Arrivals, LoadError, Process
from gateway.load.named import WORKLOADS, Kind
from gateway.load.trace import Trace
from gateway.load.workload import TrafficClass, Workload, generate
from gateway.request import ServiceClass

MANY = 200_000


def recorded(*arrivals_s: float) -> Trace:
    count = len(arrivals_s)
    return Trace(np.array(arrivals_s), np.arange(1, count + 1), np.arange(11, count + 11))


def poisson(rate: float) -> Arrivals:
    return Arrivals(Process.POISSON, rate)


def columns(workload: Workload) -> list[list[float]]:
    return [
        column.tolist()
        for column in (
            workload.class_index,
            workload.arrival_s,
            workload.prompt_tokens,
            workload.output_tokens,
        )
    ]


# Traces


def written(folder: Path, text: str) -> Path:
    path = folder / "trace.csv"
    path.write_text(text)
    return path


def test_a_trace_is_sorted_and_starts_at_0(tmp_path: Path) -> None:
    path = written(tmp_path, "output_tokens,extra,arrival_s,prompt_tokens\n5,x,12.5,50\n\n4,,10,0\n")
    read = trace.read(path)
    assert read.arrival_s is not None
    assert read.arrival_s.tolist() == [0.0, 2.5]
    assert read.output_tokens.tolist() == [4, 5]
    # An empty prompt cannot be sent.
    assert read.prompt_tokens.tolist() == [1, 50]


def test_a_packed_trace_without_times_has_lengths_only(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv.gz"
    path.write_bytes(gzip.compress(b"arrival_s,prompt_tokens,output_tokens\n,7,8\n,9,10\n"))
    read = trace.read(path)
    assert read.arrival_s is None
    assert read.times(2) is None
    made = generate(read, 3, poisson(1.0), seed=1)
    assert made.prompt_tokens.tolist() == [7, 9, 7]
    with pytest.raises(LoadError, match="no arrival times of its own"):
        generate(read, 3, Arrivals(Process.TRACE, 1.0), seed=1)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "line 1: no column arrival_s"),
        ("arrival_s,prompt_tokens\n", "line 1: no column output_tokens"),
        ("arrival_s,prompt_tokens,output_tokens\n", "no rows"),
        ("arrival_s,prompt_tokens,output_tokens\n0,1\n", "line 2: 2 columns instead of 3"),
        (
            "arrival_s,prompt_tokens,output_tokens\n0,1,2\nx,1,2\n",
            "line 3, arrival_s: 'x' is no number of seconds",
        ),
        ("arrival_s,prompt_tokens,output_tokens\nnan,1,2\n", "line 2, arrival_s: 'nan'"),
        ("arrival_s,prompt_tokens,output_tokens\n0,-1,2\n", "line 2, prompt_tokens: '-1' is no whole number"),
        ("arrival_s,prompt_tokens,output_tokens\n0,1,2.5\n", "line 2, output_tokens: '2.5'"),
        ("arrival_s,prompt_tokens,output_tokens\n0,1,9999999999\n", "line 2, output_tokens: '9999999999'"),
        ("arrival_s,prompt_tokens,output_tokens\n0,1,2\n,1,2\n", "line 3, arrival_s: empty in some rows only"),
        ("arrival_s,prompt_tokens,output_tokens\n,1,2\n0,1,2\n", "line 3, arrival_s: empty in some rows only"),
    ],
)
def test_a_bad_row_is_told_with_line_and_column(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(LoadError) as caught:
        trace.read(written(tmp_path, text))
    assert complaint in str(caught.value)


def test_a_missing_or_broken_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="No such file"):
        trace.read(tmp_path / "nowhere.csv")
    broken = tmp_path / "broken.csv.gz"
    broken.write_bytes(gzip.compress(b"arrival_s,prompt_tokens,output_tokens\n0,1,2\n")[:-12])
    with pytest.raises(LoadError, match="ended before"):
        trace.read(broken)


def test_a_trace_is_repeated_at_its_own_rate() -> None:
    made = generate(recorded(0.0, 1.0, 4.0), 7, Arrivals(Process.TRACE), seed=1)
    # Span 4 s, mean gap 2 s.
    assert made.arrival_s.tolist() == [0.0, 1.0, 4.0, 6.0, 7.0, 10.0, 12.0]
    assert made.prompt_tokens.tolist() == [1, 2, 3, 1, 2, 3, 1]
    assert made.rate == 0.5


def test_a_trace_is_stretched_to_a_rate() -> None:
    made = generate(recorded(0.0, 1.0, 4.0), 3, Arrivals(Process.TRACE, 4.0), seed=1)
    assert made.arrival_s.tolist() == [0.0, 0.125, 0.5]
    assert made.rate == 4.0


def test_a_single_instant_has_no_rate() -> None:
    with pytest.raises(LoadError, match="all at once"):
        generate(recorded(0.0, 0.0), 2, Arrivals(Process.TRACE, 4.0), seed=1)


# Arrivals


@pytest.mark.parametrize(("process", "cv"), [(Process.POISSON, 1.0), (Process.GAMMA, 0.5), (Process.GAMMA, 3.0)])
def test_gaps_have_the_rate_and_the_variation_asked_for(process: Process, cv: float) -> None:
    times_s = Arrivals(process, 20.0, cv).times(MANY, None, np.random.default_rng(5))
    gaps_s = np.diff(times_s)
    assert np.mean(gaps_s) == pytest.approx(1 / 20.0, rel=0.03)
    assert np.std(gaps_s) / np.mean(gaps_s) == pytest.approx(cv, rel=0.03)


def test_random_arrivals_need_a_rate() -> None:
    with pytest.raises(LoadError, match="gamma arrivals need a rate"):
        generate(WORKLOADS["alpaca"], 3, Arrivals(Process.GAMMA), seed=1)


# Named workloads


@given(seed=st.integers(0, 2**32), name=st.sampled_from(sorted(WORKLOADS)))
def test_the_same_seed_gives_the_same_requests(seed: int, name: str) -> None:
    first, second = (generate(WORKLOADS[name], 50, poisson(3.0), seed) for _ in range(2))
    assert columns(first) == columns(second)
    assert (first.prompt_tokens >= 1).all() and (first.output_tokens >= 1).all()


def test_another_rate_leaves_lengths_and_classes_as_they_are() -> None:
    slow, fast = (generate(WORKLOADS["mixed"], 500, poisson(rate), seed=3) for rate in (1.0, 10.0))
    assert columns(slow)[2:] == columns(fast)[2:]
    assert columns(slow)[0] == columns(fast)[0]
    np.testing.assert_allclose(slow.arrival_s, 10.0 * fast.arrival_s)


def test_another_seed_gives_others() -> None:
    first, second = (generate(WORKLOADS["alpaca"], 50, poisson(3.0), seed) for seed in (1, 2))
    assert first.prompt_tokens.tolist() != second.prompt_tokens.tolist()
    assert first.arrival_s.tolist() != second.arrival_s.tolist()


@pytest.mark.parametrize(
    ("kind", "prompt_mean", "output_mean"),
    [
        (named.ALPACA, 83.7, 60.1),
        (named.LONG, 55_749, 200),
        # The trace's own means, which no quantile was chosen for.
        (named.AZURE_CODE, 2047.8, 27.9),
        (named.AZURE_CONV, 1154.7, 211.1),
    ],
    ids=["alpaca", "long", "azure-code", "azure-conv"],
)
def test_lengths_have_the_published_quantiles_and_means(
    kind: Kind, prompt_mean: float, output_mean: float
) -> None:
    for quantiles, mean in ((kind.prompt, prompt_mean), (kind.output, output_mean)):
        drawn = quantiles.draw(MANY, np.random.default_rng(7))
        for part, tokens in quantiles.points:
            if 0.05 < part < 0.995:
                assert np.quantile(drawn, part) == pytest.approx(tokens, rel=0.05, abs=1)
        assert drawn.min() >= quantiles.points[0][1]
        assert drawn.max() <= quantiles.points[-1][1]
        assert drawn.mean() == pytest.approx(mean, rel=0.08)


@pytest.mark.parametrize(("name", "limit"), [("mixed-1024", 1024), ("mixed-4096", 4096)])
def test_mixed_is_half_short_and_half_cut_documents(name: str, limit: int) -> None:
    made = generate(WORKLOADS[name], 20_000, poisson(1.0), seed=2)
    documents = made.prompt_tokens[made.class_index == 1]
    assert len(documents) / len(made) == pytest.approx(0.5, abs=0.02)
    assert made.prompt_tokens.max() == limit
    assert np.median(documents) == limit
    assert np.median(made.prompt_tokens[made.class_index == 0]) == pytest.approx(69, abs=2)


def test_chat_is_for_small_models() -> None:
    made = generate(WORKLOADS["chat"], 20_000, poisson(1.0), seed=2)
    is_long = made.class_index == 1
    assert is_long.mean() == pytest.approx(0.2, abs=0.02)
    assert (made.prompt_tokens[~is_long].min(), made.prompt_tokens[~is_long].max()) == (32, 256)
    assert (made.prompt_tokens[is_long].min(), made.prompt_tokens[is_long].max()) == (2000, 3000)
    assert (made.output_tokens.min(), made.output_tokens.max()) == (32, 96)
    assert [(traffic.ttft_slo_s, traffic.tpot_slo_s) for traffic in made.classes] == [(1.0, 0.15), (10.0, 0.3)]


# Classes


def test_a_mix_replaces_the_classes_by_share() -> None:
    mix = (
        TrafficClass("urgent", 1.0, ServiceClass.PRIORITY, 0.5, 0.1),
        TrafficClass("bulk", 3.0, ServiceClass.FLEX),
    )
    plain = generate(WORKLOADS["mixed"], 10_000, poisson(1.0), seed=2)
    made = generate(WORKLOADS["mixed"], 10_000, poisson(1.0), seed=2, mix=mix)
    assert made.prompt_tokens.tolist() == plain.prompt_tokens.tolist()
    assert (made.class_index == 0).mean() == pytest.approx(0.25, abs=0.02)
    urgent = next(arrival for arrival in made if arrival.service_class is ServiceClass.PRIORITY)
    assert urgent[3:] == (ServiceClass.PRIORITY, 0.5, 0.1)
    bulk = next(arrival for arrival in made if arrival.service_class is ServiceClass.FLEX)
    assert bulk[3:] == (ServiceClass.FLEX, None, None)


def test_targets_are_scaled_and_none_stays_none() -> None:
    assert TrafficClass("a", ttft_slo_s=2.0).scaled(0.5) == TrafficClass("a", ttft_slo_s=1.0)
