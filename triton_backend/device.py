"""The memory of a device: what this process may still take of it, what a step takes, and giving back.

A computer's memory is everybody's: half of what the machine has is left to others, but all of a container's is
its own.  A GPU is ours as far as others have not taken it.
"""

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Protocol

import torch

from triton_backend.control_groups import MOUNT, PROC, folders

MACHINE_SHARE = 0.5


class Figures(NamedTuple):
    free_bytes: int
    total_bytes: int


class Device(Protocol):
    def figures(self) -> Figures:
        """Of the moment; what the allocator keeps without use counts as free where it says so."""

    def usable_bytes(self, held_bytes: int, workspace_bytes: int) -> int:
        """What is free and what is ours: the `held_bytes` taken already, and what the allocator has kept of a
        step's workspace."""

    def peak_bytes(self, step: Callable[[], object]) -> int:
        """What a step takes at most beside what was held before."""

    def settle(self) -> None:
        """All that is held now is neither free nor ours."""

    def give_back(self) -> None:
        """Return to the system what the allocator keeps."""


def device_of(name: str) -> Device:
    """By torch's name; whatever is no CUDA device computes in the machine's memory."""
    return Cuda(torch.device(name)) if name.startswith("cuda") else Host()


def make_current(name: str) -> None:
    """For the thread that calls this: kernels are started on its current device, wherever their tensors are."""
    device = torch.device(name)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)


class Cuda:
    def __init__(self, device: torch.device) -> None:
        self._device = device

    def figures(self) -> Figures:
        free_bytes, total_bytes = torch.cuda.mem_get_info(self._device)
        kept_bytes = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        return Figures(free_bytes + kept_bytes, total_bytes)

    def usable_bytes(self, held_bytes: int, workspace_bytes: int) -> int:
        return self.figures().free_bytes + held_bytes

    def peak_bytes(self, step: Callable[[], object]) -> int:
        torch.cuda.reset_peak_memory_stats(self._device)
        held_bytes = torch.cuda.memory_allocated(self._device)
        step()
        return torch.cuda.max_memory_allocated(self._device) - held_bytes

    def settle(self) -> None:
        self.give_back()

    def give_back(self) -> None:
        torch.cuda.empty_cache()


class _Hierarchy(NamedTuple):
    """Where control groups tell of memory (control_groups.py)."""

    controller: str
    mount: str
    limit: str
    usage: str
    reclaimable: str
    """In memory.stat: the file cache that the kernel drops first."""


_HIERARCHIES = (
    _Hierarchy("", "", "memory.max", "memory.current", "inactive_file"),
    _Hierarchy("memory", "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Version 2 and version 1."""


class Host:
    """The memory of this machine, and of the containers (control groups) that this process is in."""

    def __init__(self, proc: Path = PROC, cgroups: Path = MOUNT) -> None:
        self._proc = proc
        self._cgroups = cgroups
        self._base_bytes = 0

    def figures(self) -> Figures:
        """Of whatever has the least left."""
        return min((self._machine(), *self._containers()))

    def usable_bytes(self, held_bytes: int, workspace_bytes: int) -> int:
        # Pages that nobody has written to are not there yet, whatever was allocated; and what the process has
        # grown by beyond that is lost.
        ours_bytes = min(max(0, self._resident_bytes() - self._base_bytes), held_bytes + workspace_bytes)
        machine_bytes = int(MACHINE_SHARE * (self._machine().free_bytes + ours_bytes))
        return min([machine_bytes, *(left.free_bytes + ours_bytes for left in self._containers())])

    def peak_bytes(self, step: Callable[[], object]) -> int:
        self.give_back()
        with suppress(OSError):  # Without it, the peak since the start.
            (self._proc / "self/clear_refs").write_text("5")
        held_bytes = self._resident_bytes()
        step()
        return max(0, _kib(self._proc / "self/status", "VmHWM") - held_bytes)

    def settle(self) -> None:
        self.give_back()
        self._base_bytes = self._resident_bytes()

    def give_back(self) -> None:
        """glibc keeps what is not at the end of an arena until it is told."""
        with suppress(AttributeError):  # Another C library.
            ctypes.CDLL(None).malloc_trim(0)

    def _machine(self) -> Figures:
        meminfo = self._proc / "meminfo"
        return Figures(_kib(meminfo, "MemAvailable"), _kib(meminfo, "MemTotal"))

    def _containers(self) -> Iterator[Figures]:
        """Those with a limit."""
        for one in _HIERARCHIES:
            for folder in folders(one.controller, self._cgroups / one.mount, self._proc):
                if (folder / one.limit).exists() and (left := _left(folder, one)):
                    yield left

    def _resident_bytes(self) -> int:
        """From statm (proc(5): second field, in pages)."""
        return int((self._proc / "self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _left(folder: Path, names: _Hierarchy) -> Figures | None:
    """None without a limit; version 1 says so by one that is larger than any memory."""
    limit = (folder / names.limit).read_text().strip()
    if limit == "max" or int(limit) >= 2**62:
        return None
    usage_bytes = int((folder / names.usage).read_text())
    stat = dict(line.split(" ", 1) for line in (folder / "memory.stat").read_text().splitlines())
    return Figures(max(0, int(limit) - usage_bytes + int(stat[names.reclaimable])), int(limit))


def _kib(path: Path, name: str) -> int:
    """A line `name: N kB` of proc(5), in bytes."""
    for line in path.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{path} has no {name}")
