"""Available host memory, on simulated machines."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lugpi_core.runtime.host_memory import host_available_bytes

Machine = Callable[..., int]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """Return the available memory on a machine with these files: ``machine({"proc/meminfo": …, "groups/…": …})``."""

    def available(files: dict[str, str]) -> int:
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        return host_available_bytes(tmp_path / "proc", tmp_path / "groups")

    return available


MEMINFO = {"proc/meminfo": "MemTotal:       32000 kB\nMemFree: 1 kB\nMemAvailable:   20000 kB\nHugePages_Total:       0\n"}


def test_without_a_control_group_the_machines_memory_is_available(machine: Machine) -> None:
    assert machine(MEMINFO) == 20000 * 1024
    assert machine(MEMINFO | {"proc/self/cgroup": "0::/\n", "groups/memory.stat": "anon 1\n"}) == 20000 * 1024


@pytest.mark.parametrize("where", ["a/b/", "a/", ""])
def test_a_version_2_limit_counts_at_any_level_above_the_process(machine: Machine, where: str) -> None:
    group = {"memory.max": "9000000\n", "memory.current": "5000000\n", "memory.stat": "anon 3000000\ninactive_file 1500000\n"}
    files = {f"groups/{where}{name}": text for name, text in group.items()}
    assert machine(MEMINFO | {"proc/self/cgroup": "0::/a/b\n"} | files) == 9000000 - 5000000 + 1500000


def test_an_absent_version_2_limit_is_none_and_an_exhausted_one_zero(machine: Machine) -> None:
    files = MEMINFO | {"proc/self/cgroup": "0::/a\n", "groups/a/memory.max": "max\n"}
    assert machine(files) == 20000 * 1024
    files |= {"groups/a/memory.max": "5\n", "groups/a/memory.current": "9\n"}
    assert machine(files) == 0


def test_a_version_1_limit_counts_unless_it_exceeds_the_machine(machine: Machine) -> None:
    root = "groups/memory/a"
    files = MEMINFO | {"proc/self/cgroup": "9:name=systemd:/\n4:memory:/a/b\n0::/\n", f"{root}/memory.usage_in_bytes": "5000000\n"}
    stat = {f"{root}/memory.stat": "inactive_file 1\ntotal_inactive_file 1500000\n"}
    assert machine(files | stat | {f"{root}/memory.limit_in_bytes": "9000000\n"}) == 5500000
    assert machine(files | {f"{root}/memory.limit_in_bytes": "9223372036854771712\n"}) == 20000 * 1024


def test_without_proc_all_memory_of_the_machine_counts(tmp_path: Path) -> None:
    assert host_available_bytes(tmp_path / "none", tmp_path) > 10**8
