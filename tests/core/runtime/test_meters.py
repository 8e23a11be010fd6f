"""Stage times, peak memory, versions and commit."""

import importlib.util
import re
import resource
import shutil
import subprocess
import sys
import time
import types
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import lugpi_core
from lugpi_core.runtime import meters
from lugpi_core.runtime.meters import StageTimes, peak_memory_bytes, provenance, versions
from tests.support.checkout import ROOT


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that the test sets."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def test_stage_times_add_up(clock: list[float]) -> None:
    times = StageTimes()
    for name, seconds in (("draw", 2.0), ("encode", 0.5), ("draw", 1.25)):
        with times.stage(name):
            clock[0] += seconds
        clock[0] += 10  # between stages nothing is counted
    assert times.seconds == {"draw": 3.25, "encode": 0.5}
    assert times.record() == {"draw_s": 3.25, "encode_s": 0.5}


def test_a_failing_stage_still_counts_its_time(clock: list[float]) -> None:
    times = StageTimes()

    def fail() -> None:
        with times.stage("draw"):
            clock[0] += 0.0123456
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        fail()
    assert times.record() == {"draw_s": 0.012}


def test_on_cuda_a_stage_waits_for_the_device_at_both_ends(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    def kernels_end() -> None:
        clock[0] += 5

    monkeypatch.setattr(torch.cuda, "synchronize", kernels_end)
    times = StageTimes("cuda")
    with times.stage("draw"):
        clock[0] += 1
    assert times.seconds == {"draw": 6.0}, "its own kernels are paid for, those before it are not"
    assert clock[0] == 111


def test_on_the_cpu_no_device_is_synchronized(monkeypatch: pytest.MonkeyPatch) -> None:
    def never() -> None:
        raise AssertionError("never called")

    monkeypatch.setattr(torch.cuda, "synchronize", never)
    with StageTimes().stage("draw"):
        pass


HOLD = """
from lugpi_core.runtime.meters import peak_memory_bytes
before = peak_memory_bytes()
held = b"x" * (256 << 20)
del held
print(before["host_bytes"], peak_memory_bytes()["host_bytes"], sorted(before))
"""


def test_peak_memory_is_in_bytes_and_includes_freed_memory() -> None:
    done = subprocess.run([sys.executable, "-c", HOLD], check=True, capture_output=True, text=True, cwd=ROOT)
    before, after, names = done.stdout.split(maxsplit=2)
    assert 1 << 20 < int(before) < 100 << 20, "what the starting process held is not counted"
    assert 256 << 20 < int(after) < int(before) + (272 << 20)
    assert names.strip() == "['host_bytes']"


def test_peak_device_memory_is_reported_only_if_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 123)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    assert "device_bytes" not in peak_memory_bytes()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert peak_memory_bytes()["device_bytes"] == 123
    monkeypatch.delitem(sys.modules, "torch")
    assert "device_bytes" not in peak_memory_bytes()


@pytest.mark.parametrize(("platform", "unit"), [("linux", 1024), ("darwin", 1), ("freebsd", 1024)])
def test_without_proc_getrusage_gives_the_peak_in_its_own_unit(platform: str, unit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(Path, "read_text", lambda path: "Name: python\nVmRSS: 5 kB\n")
    monkeypatch.setattr(resource, "getrusage", lambda who: types.SimpleNamespace(ru_maxrss=7))
    assert peak_memory_bytes()["host_bytes"] == 7 * unit


def test_versions_name_python_and_the_packages_that_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    found = versions()
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["torch"] == torch.__version__
    assert found["numpy"] == np.__version__
    monkeypatch.setattr(meters, "_RECORDED", ("torch", "a-package-that-is-not-there"))
    assert sorted(versions.__wrapped__()) == ["python", "torch"]  # without the cache


def _copied(folder: Path) -> ModuleType:
    """Return the module meters as loaded from ``folder``."""
    (folder / "lugpi_core" / "runtime").mkdir(parents=True)
    path = folder / "lugpi_core" / "runtime" / "meters.py"
    shutil.copy(str(meters.__file__), path)
    spec = importlib.util.spec_from_file_location("copied_meters", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", "-C", folder, *identity, *arguments], check=True, capture_output=True, text=True).stdout.strip()


def test_outside_a_checkout_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert _copied(tmp_path).commit() is None


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_has_a_plus_when_tracked_files_differ_from_it(tmp_path: Path) -> None:
    copied = _copied(tmp_path)
    _git(tmp_path, "init", "--quiet")
    _git(tmp_path, "add", ".")
    _git(tmp_path, "commit", "--quiet", "--message", "first")
    head = _git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "untracked").write_text("")
    assert copied.commit() == head
    with (tmp_path / "lugpi_core" / "runtime" / "meters.py").open("a") as file:
        file.write("\n")
    assert copied.commit() == f"{head}+"


def test_without_git_there_is_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert meters.commit() is None


def test_the_provenance_of_a_record(monkeypatch: pytest.MonkeyPatch) -> None:
    meters._commit_at_start.cache_clear()
    monkeypatch.setattr(meters, "_git", lambda root, *arguments: "abc" if arguments[0] == "rev-parse" else "")
    record = provenance()
    assert sorted(record) == ["commit", "made_at", "platform", "versions"]
    assert (record["commit"], record["versions"]) == ("abc", versions())
    monkeypatch.undo()
    assert provenance()["commit"] == "abc", "asked once: what runs is what was imported"
    meters._commit_at_start.cache_clear()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", record["made_at"])


def test_the_package_has_a_version() -> None:
    assert re.fullmatch(r"\d+\.\d+.*", lugpi_core.__version__)
