"""A control group with a memory limit, below the one that this process is in.  Version 1 or 2; its files must be
writable.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from triton_backend.control_groups import MOUNT, folders

_NAMES = (
    ("memory", MOUNT / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ("", MOUNT, "memory.max", "memory.current"),
)


class ControlGroup(NamedTuple):
    folder: Path
    limit: str
    usage: str

    def add(self, pid: int) -> None:
        """What the process has already stays counted where it was."""
        (self.folder / "cgroup.procs").write_text(str(pid))

    @property
    def usage_bytes(self) -> int:
        return int((self.folder / self.usage).read_text())


@contextmanager
def limited(limit_bytes: int) -> Iterator[ControlGroup]:
    """Its processes must have ended when this does."""
    group = _create()
    try:
        (group.folder / group.limit).write_text(str(limit_bytes))
        yield group
    finally:
        group.folder.rmdir()


def _create() -> ControlGroup:
    for controller, mount, limit, usage in _NAMES:
        own = next(folders(controller, mount), None)
        if own and (own / usage).exists():
            folder = own / "bucketserve-benchmark"
            folder.mkdir()
            return ControlGroup(folder, limit, usage)
    raise SystemExit("no control group of memory that this process may divide")
