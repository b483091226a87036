"""KV memory follows what is free: the machine's own figures, made up as files, and the rule on top of them."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from triton_backend.device import Figures, Host, device_of
from triton_backend.headroom import REFRESH_S, Headroom

MIB = 2**20
PAGE = os.sysconf("SC_PAGE_SIZE")


class Machine:
    """Files as the kernel shows them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.write("proc/self/clear_refs", "")
        self.memory(available_mib=1000)
        self.resident(mib=100)
        self.groups("0::/")
        self.host = Host(folder / "proc", folder / "cgroup")

    def write(self, path: str, text: str) -> None:
        file = self._folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def memory(self, available_mib: int) -> None:
        self.write("proc/meminfo", f"MemTotal:  4096000 kB\nMemAvailable:  {available_mib * 1024} kB\n")

    def resident(self, mib: int, peak_mib: int = 0) -> None:
        self.write("proc/self/statm", f"99999999 {mib * MIB // PAGE} 1 1 0 1 0")
        self.write("proc/self/status", f"Name:\tx\nVmHWM:\t{peak_mib * 1024} kB\n")

    def groups(self, *lines: str) -> None:
        self.write("proc/self/cgroup", "\n".join(lines))

    def version_2(self, path: str, limit: str, usage_mib: int = 0, inactive_mib: int = 0) -> None:
        self.write(f"cgroup{path}/memory.max", limit)
        self.write(f"cgroup{path}/memory.current", str(usage_mib * MIB))
        self.write(f"cgroup{path}/memory.stat", f"anon 5\ninactive_file {inactive_mib * MIB}\n")

    def version_1(self, path: str, limit: str, usage_mib: int = 0, inactive_mib: int = 0) -> None:
        self.write(f"cgroup/memory{path}/memory.limit_in_bytes", limit)
        self.write(f"cgroup/memory{path}/memory.usage_in_bytes", str(usage_mib * MIB))
        stat = f"inactive_file 7\ntotal_inactive_file {inactive_mib * MIB}\n"
        self.write(f"cgroup/memory{path}/memory.stat", stat)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


# What this machine has.


def test_half_of_a_machine_is_left_to_others(machine: Machine) -> None:
    machine.host.settle()
    assert machine.host.figures() == Figures(1000 * MIB, 4000 * MIB)
    assert machine.host.usable_bytes(0, 0) == 500 * MIB
    machine.memory(available_mib=700)
    machine.resident(mib=400)
    assert machine.host.usable_bytes(300 * MIB, 0) == 500 * MIB
    machine.memory(available_mib=500)  # Somebody else has taken 200.
    assert machine.host.usable_bytes(300 * MIB, 0) == 400 * MIB


def test_all_of_a_container_is_ours(machine: Machine) -> None:
    machine.groups("0::/pod/box")
    machine.version_2("/pod/box", str(300 * MIB), usage_mib=120, inactive_mib=20)
    machine.version_2("/pod", "max")
    machine.host.settle()
    assert machine.host.figures() == Figures(200 * MIB, 300 * MIB)
    assert machine.host.usable_bytes(0, 0) == 200 * MIB


def test_the_tightest_container_counts(machine: Machine) -> None:
    machine.groups("0::/pod/box")
    machine.version_2("/pod/box", str(300 * MIB), usage_mib=100)
    machine.version_2("/pod", str(400 * MIB), usage_mib=350)
    assert machine.host.figures().free_bytes == 50 * MIB


def test_version_1_is_read_too_and_its_largest_number_is_no_limit(machine: Machine) -> None:
    machine.groups("5:cpu,cpuacct:/x", "4:memory:/box", "0::/")
    machine.version_1("", "9223372036854771712")
    machine.version_1("/box", str(300 * MIB), usage_mib=140, inactive_mib=40)
    assert machine.host.figures() == Figures(200 * MIB, 300 * MIB)


def test_a_container_sees_its_own_group_as_the_root(machine: Machine) -> None:
    """Its path is that of the host, and its mount begins further down."""
    machine.groups("4:memory:/docker/5f0c")
    machine.version_1("", str(300 * MIB), usage_mib=140)
    assert machine.host.figures().free_bytes == 160 * MIB


@pytest.mark.parametrize(
    ("grown_mib", "ours_mib"),
    [(0, 0), (250, 250), (330, 330), (500, 340), (-5, 0)],
    ids=["not written to yet", "in part", "and kept workspace", "and grown by something else", "less than before"],
)
def test_ours_is_what_was_taken_since_the_start(machine: Machine, grown_mib: int, ours_mib: int) -> None:
    """300 MiB are held, of a step's workspace of 40 some is kept."""
    machine.host.settle()
    machine.resident(mib=100 + grown_mib)
    assert machine.host.usable_bytes(300 * MIB, 40 * MIB) == (1000 + ours_mib) * MIB // 2


def test_a_steps_peak_is_what_the_process_grew_by(machine: Machine) -> None:
    assert machine.host.peak_bytes(lambda: machine.resident(mib=110, peak_mib=170)) == 70 * MIB


def test_the_real_peak_is_that_of_this_process() -> None:
    """64 MiB are gone again when it is read."""
    peak_bytes = Host().peak_bytes(lambda: torch.ones(64 * MIB // 4).sum())
    assert 50 * MIB < peak_bytes < 100 * MIB


def test_what_is_freed_goes_back_to_the_system() -> None:
    """Blocks in the middle of the heap, too small to be mapped by themselves: 63 of 125 MiB are kept."""
    before = resident_mib()
    blocks = [torch.ones(64 * 1024 // 4) for _ in range(2000)]
    held = blocks[::2]
    del blocks
    Host().give_back()
    assert len(held) == 1000
    assert resident_mib() - before < 90


def resident_mib() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE // MIB


def test_a_device_is_found_by_torchs_name() -> None:
    assert isinstance(device_of("cpu"), Host)


# The rule.


class Device:
    """Has `usable` bytes, whoever holds them."""

    def __init__(self, usable: int) -> None:
        self.usable = usable
        self.gave_back = 0

    def figures(self) -> Figures:
        return Figures(self.usable, self.usable)

    def usable_bytes(self, held_bytes: int, workspace_bytes: int) -> int:
        return self.usable

    def peak_bytes(self, step: Callable[[], object]) -> int:
        return 0

    def settle(self) -> None:
        pass

    def give_back(self) -> None:
        self.gave_back += 1


class Rig:
    def __init__(self, usable: int, workspace: int = 0, layers: int = 100, most: int | None = None) -> None:
        self.device = Device(usable)
        self.now_s = 0.0
        self.headroom = Headroom(
            self.device, workspace_bytes=workspace, num_layers=layers, most_bytes=most, clock=lambda: self.now_s
        )

    def look(self, usable: int | None = None) -> int:
        if usable is not None:
            self.device.usable = usable
            self.now_s += 1.0
        return self.headroom.look(0)


def test_keys_values_and_workspace_have_their_share() -> None:
    assert Rig(1000, workspace=100).look() == 830


def test_a_layers_copy_fits_beside() -> None:
    assert Rig(1000, layers=4).look() == 800


def test_what_was_configured_is_the_most() -> None:
    rig = Rig(1000, most=300)
    assert [rig.look(), rig.look(200), rig.look(2000)] == [300, 186, 300]


def test_it_never_asks_for_less_than_nothing() -> None:
    assert Rig(1000, workspace=5000).look() == 0


def test_it_shrinks_at_once_and_grows_when_that_is_worth_it() -> None:
    rig = Rig(1000)
    assert [rig.look(at) for at in (1000, 990, 1005, 1020)] == [930, 920, 920, 948]


def test_who_takes_more_and_more_is_expected_to_go_on() -> None:
    rig = Rig(1000)
    assert [rig.look(at) for at in (1000, 990, 970, 940)] == [930, 920, 892, 855], "0, 0, 10 and 20 more"
    assert Rig(1000).look(500) == 465
    assert [rig.look(at) for at in (940, 400, 940)] == [874, 372, 874], "once is no trend"


def test_it_looks_a_few_times_a_second() -> None:
    rig = Rig(1000)
    assert rig.look() == 930
    rig.device.usable = 100
    assert rig.look() == 930
    rig.now_s += REFRESH_S
    assert rig.look() == 93


def test_memory_goes_back_once_after_it_shrank() -> None:
    rig = Rig(1000)
    for usable in (1000, 1100, 500, 400):
        rig.look(usable)
        if usable != 500:
            rig.headroom.give_back()
    rig.headroom.give_back()
    assert rig.device.gave_back == 1
