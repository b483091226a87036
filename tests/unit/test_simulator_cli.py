"""`bucketserve simulate`, from its options to what it leaves behind."""

import csv
import json
from pathlib import Path

import pytest

from gateway.__main__ import main

LOAD = ["--workload", "mixed-1024", "--requests", "60"]


def test_policies_and_rates_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--policies", "full,distserve", "--rates", "1,3", "--replicas", "2", "--out", str(tmp_path)]
    assert main(["simulate", *LOAD, *options], {}) == 0
    assert "distserve" in capsys.readouterr().out
    report = json.loads((tmp_path / "report.json").read_text())
    assert [(run["policy"], run["rate"]) for run in report["runs"]] == [
        *(("full", 1.0), ("full", 3.0)),
        *(("distserve", 1.0), ("distserve", 3.0)),
    ]
    assert all(run["gpus"] == 2 for run in report["runs"])
    with (tmp_path / "summary.csv").open() as file:
        assert [row["policy"] for row in csv.DictReader(file)] == ["full", "full", "distserve", "distserve"]
    with (tmp_path / "requests.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * 60
    assert all(bool(row["first_token_s"]) == (row["ending"] == "finished") for row in rows)
    for name in ("attainment", "slo_scale", "ttft", "tpot", "waiting_full", "waiting_distserve"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "</html>" in (tmp_path / "report.html").read_text()


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert main(["simulate", *LOAD, "--rate", "3", "--out", str(tmp_path / name)], {}) == 0
    for file in ("summary.csv", "requests.csv"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--policies", "fair"], "no policy 'fair'"),
        (["--policies", "distserve"], "--replicas 2 or more"),
        (["--policies", "distserve", "--replicas", "2", "--prefill-replicas", "2"], "--replicas 2 or more"),
        (["--cost", "none.json"], "No such file"),
        (["--out", "/dev/null/out"], "--out"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    options: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", *LOAD, "--rate", "1", *options], {}) == 2
    error = capsys.readouterr().err
    assert complaint in error and error.count("\n") == 1


def test_a_load_without_a_rate_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", *LOAD], {}) == 2
    assert "need a rate" in capsys.readouterr().err
