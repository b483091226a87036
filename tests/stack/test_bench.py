"""`bucketserve bench` against the real thing: lengths are exact."""

import json
from pathlib import Path

import pytest

from gateway.__main__ import main
from tests.stack.serving import Serving

pytestmark = pytest.mark.timeout(120)


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
def test_a_short_load(serving: Serving, tmp_path: Path, endpoint: str) -> None:
    command = ["bench", "--url", serving.url, "--workload", "chat", "--rate", "4", "--requests", "12"]
    assert main([*command, "--endpoint", endpoint, "--out", str(tmp_path)], {}) == 0
    (run,) = json.loads((tmp_path / "report.json").read_text())["runs"]
    assert run["report"]["total"]["finished"] == run["client"]["sent"] == 12
    assert run["client"]["short_answers"] == 0
    if endpoint == "completions":
        rows = (tmp_path / "requests.csv").read_text().splitlines()[1:]
        lengths = [tuple(map(int, row.split(",")[3:6])) for row in rows]
        assert all(32 <= prompt <= 3000 and wanted == got for prompt, wanted, got in lengths)
