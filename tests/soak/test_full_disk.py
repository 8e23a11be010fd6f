"""A disk that is really full, of 16 MB: found out before the first drawing, nothing final is harmed, and with room the run goes on."""

import ctypes
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lugpi_core.store.layout import structure
from tests.soak import processes
from tests.soak.worker import MOST_IN_FLIGHT, Log, Small, check_complete, check_recorded, fill_store, undisturbed

SMALL = Small(rows=10_000, shard_rows=3_000, block=1_000, dtype="float16")
DISK_BYTES = 16 << 20
NO_MOUNTS = 77
_NEW_MOUNTS, _NEW_USER, _PRIVATE = 0x00020000, 0x10000000, 0x44000  # CLONE_NEWNS, CLONE_NEWUSER, MS_REC | MS_PRIVATE


def _mount_small_disk(folder: Path) -> None:
    """Mount a tmpfs that only this process and its children see, and that goes with them."""
    libc = ctypes.CDLL(None, use_errno=True)
    identity = (os.geteuid(), os.getegid())
    if libc.unshare(_NEW_MOUNTS if identity[0] == 0 else _NEW_MOUNTS | _NEW_USER):
        raise OSError(ctypes.get_errno(), "unshare")
    if identity[0]:
        for name, line in (("setgroups", "deny"), ("uid_map", f"0 {identity[0]} 1"), ("gid_map", f"0 {identity[1]} 1")):
            Path("/proc/self", name).write_text(line)
    if libc.mount(b"none", b"/", None, _PRIVATE, None) or libc.mount(b"tmpfs", bytes(folder), b"tmpfs", 0, f"size={DISK_BYTES}".encode()):
        raise OSError(ctypes.get_errno(), "mount")


def _on_a_small_disk(folder: Path, work: Callable[[Path], None]) -> None:
    """Run ``work`` with a folder on a disk of 16 MB; skip where this process may not mount."""

    def mounted() -> None:
        try:
            _mount_small_disk(folder)
        except OSError:
            os._exit(NO_MOUNTS)
        work(folder)

    end = processes.wait(processes.start(mounted), timeout_s=240)
    if end == NO_MOUNTS:
        pytest.skip("neither root nor a user namespace may mount a tmpfs here")
    assert end == processes.DONE


def _leave_free(disk: Path, free_bytes: int) -> Path:
    """Take space until ``free_bytes`` are free; return the ballast to remove."""
    ballast = disk / "ballast"
    ballast.unlink(missing_ok=True)
    room = os.statvfs(disk)
    descriptor = os.open(ballast, os.O_CREAT | os.O_WRONLY)
    os.posix_fallocate(descriptor, 0, max(room.f_bavail * room.f_bsize - free_bytes, 1))
    os.close(descriptor)
    return ballast


def _fill(store: Path, log: Log) -> int:
    return processes.run(lambda: fill_store(store, SMALL, log))


def test_a_full_disk_is_found_before_the_first_drawing_and_room_lets_the_same_run_complete(tmp_path: Path) -> None:
    shard_bytes = [structure(spec.layout(0)).file_bytes for spec in SMALL.specs]
    assert sum(shard_bytes) * 3 < DISK_BYTES
    undisturbed(SMALL)

    def work(disk: Path) -> None:
        store, log = disk / "tokens", Log(tmp_path.parent / f"{tmp_path.name}.log")
        ballast = _leave_free(disk, sum(shard_bytes) // 2)
        assert _fill(store, log) == processes.REFUSED
        assert log.lines() == []
        ballast = _leave_free(disk, sum(shard_bytes) + shard_bytes[0] // 2)  # for the first shards of both columns, not for the second
        assert _fill(store, log) == processes.REFUSED
        assert {row for _, row, _, _ in log.lines()} == {0, 1000, 2000}
        assert check_recorded(store, SMALL) == 2
        ballast.unlink()
        assert _fill(store, log) == processes.DONE
        check_complete(store, SMALL)
        assert log.redone() == 0

    _on_a_small_disk(tmp_path, work)


def test_a_disk_that_fills_up_at_any_level_harms_nothing_final(
    tmp_path: Path, campaign: Callable[[int, int], int], report: Callable[[str], None]
) -> None:
    levels, figures = campaign(4, 120), tmp_path.parent / f"{tmp_path.name}.json"
    undisturbed(SMALL)
    wanted = sum(len(data) for data in undisturbed(SMALL).values())

    def work(disk: Path) -> None:
        ends = dict.fromkeys((processes.DONE, processes.REFUSED, processes.FAILED), 0)
        for level in range(levels):
            log = Log(figures.with_suffix(f".{level}"))
            store = disk / f"store-{level}"
            ballast = _leave_free(disk, 4096 + level * (wanted + 40_000) // levels // 4096 * 4096)
            ends[_fill(store, log)] += 1
            recorded = check_recorded(store, SMALL)
            ballast.unlink()
            assert _fill(store, log) == processes.DONE
            check_complete(store, SMALL)
            assert check_recorded(store, SMALL) >= recorded
            assert log.redone() <= MOST_IN_FLIGHT  # what waits behind a write that fails is not written
            _remove(store)
        figures.write_text(json.dumps(ends))

    _on_a_small_disk(tmp_path, work)
    ends = json.loads(figures.read_text())
    report(f"full disk: {levels} levels of room; refused {ends['2']}, OSError {ends['3']}, enough {ends['0']}; nothing final harmed")


def _remove(store: Path) -> None:
    for path in sorted(store.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    store.rmdir()
