"""The containers (control groups, cgroups(7)) that this process is in, and what of the processors they leave it.

Version 1 has a mount for each controller, version 2 one for all.
"""

import os
from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc")
MOUNT = Path("/sys/fs/cgroup")


def folders(controller: str, mount: Path, proc: Path = PROC) -> Iterator[Path]:
    """Those of this process below a mount, and those around them; `controller`: of version 1, or empty.  Read
    anew each time: a process can be moved."""
    listed = proc / "self/cgroup"
    for line in listed.read_text().splitlines() if listed.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            group = mount / path.lstrip("/")
            yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(mount))


def num_processors(proc: Path = PROC, mount: Path = MOUNT) -> int:
    """How many threads may run all the time: on the processors that this process is bound to, and within what its
    containers may have of all together."""
    whole = (int(share) for share in _quotas(proc, mount))
    return max(1, min([len(os.sched_getaffinity(0)), *whole]))


def _quotas(proc: Path, mount: Path) -> Iterator[float]:
    """Processors' time in a time."""
    for folder in folders("", mount, proc):
        if (file := folder / "cpu.max").exists():
            yield from _share(*file.read_text().split())
    for folder in folders("cpu", mount / "cpu", proc):
        if (file := folder / "cpu.cfs_quota_us").exists():
            yield from _share(file.read_text(), (folder / "cpu.cfs_period_us").read_text())


def _share(quota_us: str, period_us: str) -> Iterator[float]:
    """Nothing without a limit: `max` in version 2, -1 in version 1."""
    if quota_us.strip().isdigit():
        yield int(quota_us) / int(period_us)
