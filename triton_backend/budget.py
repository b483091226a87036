"""How much memory keys and values may take, measured once the weights are loaded."""

from collections.abc import Callable
from pathlib import Path

import torch

CPU_SHARE = 0.5
"""Of what the machine or the container has available; the rest is for activations and everybody else."""
CUDA_SHARE = 0.95
"""Of what the device has free; the rest is for fragmentation and CUDA's own growth."""

_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
"""Limit and usage, version 2 and version 1."""


def cpu_bytes() -> int:
    return int(CPU_SHARE * min([_available_bytes(), *_cgroup_left_bytes()]))


def cuda_bytes(device: torch.device, run_largest_step: Callable[[], None], num_layers: int) -> int:
    """What is left beside the peak of the largest step, and the one layer that is twice there in a resize."""
    torch.cuda.reset_peak_memory_stats(device)
    held = torch.cuda.memory_allocated(device)
    run_largest_step()
    workspace = torch.cuda.max_memory_allocated(device) - held
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    return max(0, int(CUDA_SHARE * free) - workspace) * num_layers // (num_layers + 1)


def _available_bytes() -> int:
    """MemAvailable of proc(5), given in KiB."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/meminfo has no MemAvailable: give the KV budget in bytes")


def _cgroup_left_bytes() -> list[int]:
    left = []
    for limit_path, usage_path in _CGROUPS:
        if Path(limit_path).exists():
            limit = Path(limit_path).read_text().strip()
            if limit != "max":
                left.append(int(limit) - int(Path(usage_path).read_text()))
    return left
