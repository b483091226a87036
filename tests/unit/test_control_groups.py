"""How many threads an engine may have: what a container leaves of the processors."""

import os
from pathlib import Path

import pytest

from triton_backend.control_groups import num_processors

BOUND_TO = len(os.sched_getaffinity(0))
TINY = "50000 100000"
"""Half of a processor."""


def processors(folder: Path, groups: str, files: dict[str, str]) -> int:
    for path, text in {"proc/self/cgroup": groups, **files}.items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")
    return num_processors(folder / "proc", folder / "mount")


def version_1(path: str, quota_us: int) -> dict[str, str]:
    folder = f"mount/cpu{path}"
    return {f"{folder}/cpu.cfs_quota_us": str(quota_us), f"{folder}/cpu.cfs_period_us": "100000"}


def test_without_a_limit_all_that_it_is_bound_to(tmp_path: Path) -> None:
    assert num_processors(tmp_path / "proc", tmp_path / "mount") == BOUND_TO
    assert processors(tmp_path, "0::/a", {"mount/a/cpu.max": "max 100000"}) == BOUND_TO
    assert processors(tmp_path, "3:cpu:/b", version_1("/b", quota_us=-1)) == BOUND_TO


@pytest.mark.parametrize(
    ("groups", "files"),
    [
        ("0::/a/b", {"mount/a/b/cpu.max": TINY}),
        ("0::/a/b", {"mount/a/b/cpu.max": "max 100000", "mount/a/cpu.max": TINY}),
        ("0::/", {"mount/cpu.max": TINY}),
        ("0::/\n4:cpu,cpuacct:/box", version_1("/box", quota_us=100_000)),
        ("4:cpu:/box", version_1("", quota_us=190_000)),
    ],
    ids=["its own", "one around it", "seen from inside", "version 1", "not a whole one"],
)
def test_a_container_s_limit_counts(tmp_path: Path, groups: str, files: dict[str, str]) -> None:
    assert processors(tmp_path, groups, files) == 1


def test_a_large_limit_does_not(tmp_path: Path) -> None:
    assert processors(tmp_path, "0::/", {"mount/cpu.max": "100000000 100000"}) == BOUND_TO
