"""A disk of 16 MB in memory."""

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.soak import processes

DISK_BYTES = 16 << 20
NO_MOUNTS = 77
_NEW_MOUNTS, _NEW_USER, _PRIVATE = 0x00020000, 0x10000000, 0x44000  # CLONE_NEWNS, CLONE_NEWUSER, MS_REC | MS_PRIVATE


def _mount_small_disk(folder: Path) -> None:
    """Mount a tmpfs that only this process and its children see, and that disappears with them."""
    libc = ctypes.CDLL(None, use_errno=True)
    identity = (os.geteuid(), os.getegid())
    if libc.unshare(_NEW_MOUNTS if identity[0] == 0 else _NEW_MOUNTS | _NEW_USER):
        raise OSError(ctypes.get_errno(), "unshare")
    if identity[0]:
        for name, line in (("setgroups", "deny"), ("uid_map", f"0 {identity[0]} 1"), ("gid_map", f"0 {identity[1]} 1")):
            Path("/proc/self", name).write_text(line)
    if libc.mount(b"none", b"/", None, _PRIVATE, None) or libc.mount(b"tmpfs", bytes(folder), b"tmpfs", 0, f"size={DISK_BYTES}".encode()):
        raise OSError(ctypes.get_errno(), "mount")


def on_a_small_disk(folder: Path, work: Callable[[Path], None]) -> None:
    """Run ``work`` with a folder on a disk of 16 MB; skip the test if this process may not mount one."""

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


def leave_free(disk: Path, free_bytes: int) -> Path:
    """Write a ballast file that leaves ``free_bytes`` free; return its path."""
    ballast = disk / "ballast"
    ballast.unlink(missing_ok=True)
    room = os.statvfs(disk)
    descriptor = os.open(ballast, os.O_CREAT | os.O_WRONLY)
    os.posix_fallocate(descriptor, 0, max(room.f_bavail * room.f_bsize - free_bytes, 1))
    os.close(descriptor)
    return ballast
