"""The papers' tables: what is pure, and one trial from end to end."""

from contextlib import closing
from dataclasses import replace
from math import inf
from pathlib import Path

import numpy as np
import pytest

from benchmarks.papers import journal, search, study, tables, targets, trials, workloads
from benchmarks.papers.contenders import CONTENDERS, Contender, ablations
from benchmarks.papers.figures import Figure, figure, ratio
from benchmarks.papers.journal import Journal
from benchmarks.papers.study import Best, Cell, Pool
from benchmarks.papers.trials import Job, Point, Trial
from gateway.load.workload import Generator, Lengths, TrafficClass
from gateway.policy.preset import FULL
from gateway.simulator.job import Padding


def a_trial(
    setting: str,
    seed: int = 1,
    once: float = 1.0,
    load: float = 1.0,
    contender: str = "full",
    padding: Padding = Padding.PADDED,
) -> Trial:
    return Trial(
        workload="mixed-1024",
        padding=padding,
        contender=contender,
        setting=setting,
        seed=seed,
        requests_per_s=once,
        tokens_per_s=100 * once,
        padding_waste=0.25,
        unfinished=0,
        load={"0.9": load / 2, "0.8": load},
        points=[Point(load, 0.9, 0.1, 0.0, 0.0), Point(2 * load, 0.5, 0.1, 0.25, 0.15)],
    )


@pytest.mark.parametrize("knee", [0.02, 1.0, 10.0])
def test_a_search_finds_the_load_wherever_it_starts(knee: float) -> None:
    found = search.curve(lambda load: load, lambda load: 1.0 - 0.1 * load / knee, 1.0, (0.9, 0.8), 4)
    for target, load in ((0.9, knee), (0.8, 2 * knee)):
        low, high = search.crossing([(at, 1.0 - 0.1 * at / knee) for at in found], target) or (0.0, inf)
        assert low <= load <= high * 1.0001
        assert high / low < 1.1


def test_a_search_ends_where_nothing_is_ever_good_or_bad_enough() -> None:
    assert min(search.curve(lambda load: load, lambda load: 0.1, 1.0, (0.9, 0.8), 4)) == search.LOWEST_PART
    assert max(search.curve(lambda load: load, lambda load: 1.0, 1.0, (0.9, 0.8), 4)) == search.HIGHEST_PART


def test_a_crossing_is_the_first_one() -> None:
    points = [(1.0, 1.0), (2.0, 0.7), (3.0, 0.9), (4.0, 0.1)]
    assert search.crossing(points, 0.8) == (1.0, 2.0)
    assert search.crossing(points, 0.05) is None
    assert search.crossing([(1.0, 0.7)], 0.8) is None


def test_intervals_are_students() -> None:
    mean, low, high = figure([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert high - mean == pytest.approx(mean - low) == pytest.approx(4.3027 / 3**0.5, rel=1e-4)
    assert figure([5.0]) == Figure(5.0, -inf, inf)


def test_ratios_are_of_the_same_seeds() -> None:
    assert ratio([2.0, 20.0, 8.0], [1.0, 10.0, 4.0]) == pytest.approx(Figure(2.0, 2.0, 2.0))
    assert ratio([2.0, 3.0], [1.0, 0.0]) is None


def test_the_best_setting_may_be_another_one_for_load_than_for_throughput() -> None:
    cell = Cell("mixed-1024", Padding.PADDED)
    names = {c.name: [setting.name for setting in c.settings] for c in CONTENDERS if c.like is None}
    swept = [
        a_trial(name, once=10.0 - at, load=1.0 + at, contender=contender)
        for contender, settings in names.items()
        for at, name in enumerate(settings)
    ]
    best = study.choose([cell], swept)
    assert best[cell, "static"].load.name == names["static"][-1]
    assert best[cell, "static"].throughput.name == names["static"][0]
    assert best[cell, "uellm, lengths known"] == Best(best[cell, "uellm"].load, best[cell, "uellm"].throughput)


def test_a_target_is_met_from_its_figure_on() -> None:
    assert targets.is_met(Figure(1.93, 1.0, 3.0), 1.93)
    assert not targets.is_met(Figure(1.92, 1.9, 3.0), 1.93)
    assert not targets.is_met(None, 1.93)


@pytest.mark.parametrize(
    ("padded", "packed", "words"),
    [
        (Figure(2.0, 1.5, 2.5), Figure(1.0, 0.9, 1.1), "the gain vanishes"),
        (Figure(2.0, 1.5, 2.5), Figure(1.5, 1.2, 1.8), "50% of the gain is left"),
        (Figure(1.0, 0.9, 1.1), Figure(1.5, 1.2, 1.8), "no gain to lose"),
        (None, Figure(1.5, 1.2, 1.8), "not comparable"),
    ],
)
def test_what_is_left_without_padding(padded: Figure | None, packed: Figure, words: str) -> None:
    assert targets.without_padding(padded, packed) == words


def test_the_tables_have_every_contender_on_every_engine() -> None:
    names = [contender.name for contender in CONTENDERS]
    results = study.Results(
        best={f"mixed-1024/{padding}/{name}": ("x", "x") for padding in Padding for name in names},
        trials=[
            a_trial("x", seed, once=2.0 if name == "full" else 1.0, contender=name, padding=padding)
            for padding in Padding
            for name in names
            for seed in (1, 2)
        ],
        ablation=[a_trial("x", seed, contender=name) for name in ("full", "no buckets") for seed in (1, 2)],
    )
    text = tables.markdown(results, study.QUICK)
    heads = [line.removeprefix("### ") for line in text.splitlines() if line.startswith("### ")]
    assert heads[:4] == ["Targets", "mixed-1024, padded", "mixed-1024, prompts", "mixed-1024, packed"]
    rows = [line.split(" | ") for line in text.splitlines()]
    assert sum(row[0].removeprefix("| ") in names for row in rows) == len(Padding) * len(names) + 1
    found = next(row for row in rows if row[1:2] == ["throughput, full over uellm"])
    assert found[3:5] == ["2.00 [2.00, 2.00]", "**missed**"]


def test_a_missed_target_says_what_was_missed() -> None:
    words = targets.why("0.8", "full", [a_trial("a"), a_trial("a", seed=2)])
    assert words == "full at 2.00/s: 10% refused, 25% first token late, 15% slow tokens"
    assert targets.why("0.4", "full", [a_trial("a")]) == "full keeps 40% at all loads tried"
    assert targets.why(targets.THROUGHPUT, "full", [a_trial("a")]) == "full pads 25% of its prefill"


def test_an_ablation_changes_one_choice() -> None:
    best = CONTENDERS[0].settings[0]
    changed = {contender.name: contender.settings[0].rules for contender in ablations(best)}
    assert changed["full"] == FULL
    assert changed["no buckets"] == replace(FULL, bucket=changed["no buckets"].bucket)
    assert changed["no buckets"] != FULL


class Two:
    """A source: a short request and a long one in turn."""

    classes = (TrafficClass("all", ttft_slo_s=1.0, tpot_slo_s=0.5),)

    def lengths(self, num_requests: int, rng: Generator) -> Lengths:
        long = np.arange(num_requests) % 2
        return Lengths(16 + 500 * long, 4 + 10 * long, np.zeros(num_requests, dtype=np.int64))

    def times(self, num_requests: int) -> None:
        return None


@pytest.mark.parametrize("contender", [c for c in CONTENDERS if c.like is None], ids=lambda c: c.name)
def test_a_trial_ends_every_answer_at_its_length(contender: Contender) -> None:
    setting = contender.settings[0]
    job = Job("two", Two(), Padding.PADDED, contender.name, setting, contender.lengths, 1, 20, 1)
    trial = trials.run(job)
    assert trial.unfinished == 0
    assert 0.0 < trial.load["0.9"] <= trial.load["0.8"]
    assert trials.run(job) == trial


def test_an_answer_cut_short_is_found() -> None:
    job = Job("two", Two(), Padding.PACKED, "static", CONTENDERS[-1].settings[0], CONTENDERS[-1].lengths, 1, 4, 1)
    records = trials.simulated(job, workloads.all_at_once(Two(), 4, 1)).records
    trials.check(records)
    with pytest.raises(trials.Truncated):
        trials.check(replace(records, output_tokens=records.output_tokens - 1))


def test_a_run_that_was_cut_off_goes_on_where_it_was(tmp_path: Path) -> None:
    full = CONTENDERS[0]
    jobs = [Job("two", Two(), Padding.PADDED, "", full.settings[0], full.lengths, seed, 20, 1) for seed in (1, 2)]
    trials = [a_trial("a", seed) for seed in (1, 2)]
    with closing(Journal(tmp_path, "0")) as log:
        for job, trial in zip(jobs, trials, strict=True):
            log.add(job.key, trial)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes() + b'{"key": "two/pad')
    with closing(Journal(tmp_path, "0")) as log, Pool(1, log) as pool:
        # These are not what the simulator would say.
        assert pool.run("measure", jobs) == trials
        log.add("third", trials[0])
    with closing(Journal(tmp_path, "0")) as log:
        assert log.finished == {jobs[0].key: trials[0], jobs[1].key: trials[1], "third": trials[0]}
    with closing(Journal(tmp_path, "1")) as log:
        assert not log.finished


def test_every_job_of_the_study_has_a_name_of_its_own() -> None:
    cells = [Cell("two", padding) for padding in Padding]
    jobs = [*study.sweep({"two": Two()}, cells, study.QUICK), *study.sweep({"two": Two()}, cells, study.FULL)]
    assert len({job.key for job in jobs}) == len(jobs)


def test_code_and_data_name_the_version(tmp_path: Path) -> None:
    file = tmp_path / "azure-conv.csv"
    file.write_bytes(b"1")
    first = journal.version([file])
    assert journal.version([file]) == first != journal.version()
    file.write_bytes(b"2")
    assert journal.version([file]) != first


def test_tables_show_the_ratio_and_the_verdict() -> None:
    assert tables.table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
    assert tables.as_csv([a_trial("size, 4")]).splitlines()[1].startswith('mixed-1024,padded,full,"size, 4",1,1.0')
