"""Files that are either whole or absent: written under a temporary name in the same folder, synced, renamed.

An unfinished file has a hidden name that says who is writing it: ``.<name>.<host>-<pid>-<random>.partial``. ``sweep`` removes those that
their owner can no longer finish. This module and the store call only functions of ``os``, so that a test can make any of them fail.

Source: POSIX needs the order write, sync, rename, sync the folder for a crash-safe replacement (rename(2), fsync(2)).
"""

import errno
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from lugpi_core.errors import InputError

_NO_LINKS = frozenset((errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK))
_PARTIAL = re.compile(r"\.?.+\.(?P<host>[0-9a-f]{8})-(?P<pid>[0-9]+)-[0-9a-f]{8}\.partial")
FOREIGN_ORPHAN_S = 24 * 3600.0  # unfinished files of another machine count as abandoned after a day


@contextmanager
def open_file(path: Path, flags: int, mode: int = 0o666) -> Iterator[int]:
    """Yield a file descriptor of ``path``, closed at the end of the block. An OSError raised in the block names the path.

    Raises:
        FileNotFoundError: there is no file, or it is a pipe or a device, on which reading would block.
    """
    descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK, mode)
    try:
        kind = os.fstat(descriptor).st_mode
        if not (stat.S_ISREG(kind) or (flags & os.O_DIRECTORY and stat.S_ISDIR(kind))):
            raise FileNotFoundError(errno.ENOENT, "no plain file", str(path))
        yield descriptor
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise
    finally:
        os.close(descriptor)


def write_at(descriptor: int, data: Any, offset: int) -> None:
    """Write all of a contiguous buffer at ``offset``, in as many system calls as it takes."""
    view = memoryview(data).cast("B") if len(data) else memoryview(b"")
    while view:
        written = os.pwrite(descriptor, view, offset)
        if not written:
            raise OSError(errno.EIO, "nothing was written")
        view, offset = view[written:], offset + written


def read_at(descriptor: int, count: int, offset: int) -> bytes:
    """Return ``count`` bytes from ``offset`` on, or fewer if the file ends before."""
    parts = []
    count = min(count, max(0, os.fstat(descriptor).st_size - offset))  # count may come from an untrusted file
    while count and (part := os.pread(descriptor, count, offset)):
        parts.append(part)
        count, offset = count - len(part), offset + len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def sync_folder(folder: Path) -> None:
    """Make the folder's own entries (a new name, a rename) durable."""
    with open_file(folder, os.O_RDONLY | os.O_DIRECTORY) as descriptor:
        os.fsync(descriptor)


def sync_file(path: Path) -> None:
    """Make the content of one file durable."""
    with open_file(path, os.O_RDONLY) as descriptor:
        os.fsync(descriptor)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; at the end of the block it is synced and replaces ``path``. On an error it is removed."""
    make_folder(path.parent)
    partial = _partial_name(path)
    with open_file(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY):
        pass
    try:
        yield partial
        sync_file(partial)
        os.replace(partial, path)
        sync_folder(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def create_whole(path: Path, data: bytes) -> bool:
    """Write ``data`` under a name that no file has, whole or not at all; return False, and write nothing, if there is a file already. Of
    several processes that do so at the same moment, one writes."""
    partial = _partial_name(path)
    with open_file(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY) as descriptor:
        try:
            write_at(descriptor, data, 0)
            os.fsync(descriptor)
            is_new = name_new(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    if not is_new:
        partial.unlink(missing_ok=True)
    return is_new


def name_new(source: Path, target: Path) -> bool:
    """Rename a file durably to a name that no file has; return False, and leave it, if there is a file already.

    A file system without hard links has no such operation: there, of two processes at the same moment, the later one replaces the file.
    """
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno == errno.EEXIST:
            if source.stat().st_nlink < 2:  # 2: the link was made, but NFS lost the answer and sent the request again
                return False
        elif error.errno not in _NO_LINKS:
            raise
        elif os.path.lexists(target):
            return False
        else:
            os.replace(source, target)
    source.unlink(missing_ok=True)
    sync_folder(target.parent)
    return True


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty temporary folder to fill; at the end of the block it replaces ``folder``, whose old content is removed."""
    make_folder(folder.parent)
    partial = _partial_name(folder)
    partial.mkdir()
    try:
        yield partial
        for path in sorted(partial.rglob("*")):
            if path.is_file():
                sync_file(path)
        if folder.exists():
            shutil.rmtree(folder)
        partial.replace(folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data``, whole or not at all."""
    with whole_file(path) as partial, open_file(partial, os.O_WRONLY) as descriptor:
        write_at(descriptor, data, 0)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, whole or not at all."""
    write_bytes(path, text.encode())


def sweep(folder: Path) -> list[Path]:
    """Remove the unfinished files and folders that killed processes left in a folder; return their paths.

    Those of this machine are removed once their process is gone, those of another machine after a day.
    """
    swept = []
    for path in sorted(folder.glob(".*.partial")):
        if is_orphan(path):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
            swept.append(path)
    return swept


@cache
def host_name() -> str:
    """Return eight hex digits that identify this machine, its boot and this process's container: where a process number is valid."""
    parts = [platform.node()]
    for source in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        if os.path.lexists(source):
            parts.append(os.readlink(source) if os.path.islink(source) else Path(source).read_text())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:8]


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, whole or not at all; NaN and infinities are refused, because JSON has none."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Return the value of a JSON file.

    Raises:
        InputError: the file is missing or is not JSON.
    """
    try:
        with open_file(path, os.O_RDONLY) as descriptor:
            return json.loads(read_at(descriptor, os.fstat(descriptor).st_size, 0))
    except FileNotFoundError:
        raise InputError(got=f"no file {path}", expected="a JSON file that lugpi wrote", do="run the command that writes it") from None
    except (ValueError, RecursionError) as error:
        raise InputError(
            got=f"{path}, which is not JSON ({error})", expected="the file as lugpi wrote it", do="remove it and run the command again"
        ) from None


def make_folder(folder: Path) -> Path:
    """Create ``folder`` with its parents and return it.

    Raises:
        InputError: it cannot be created or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(got=f"{folder} ({error.strerror})", expected="a folder that can be written", do="choose another folder") from None
    if not is_writable(folder):
        raise InputError(got=f"{folder} (no permission)", expected="a folder that can be written", do="choose another folder")
    return folder


def is_writable(folder: Path) -> bool:
    """Whether files can be made in a folder: there is permission, and the file system is not read-only."""
    return os.access(folder, os.W_OK | os.X_OK)


def touch_s(descriptor: int) -> float:
    """Touch an open file and return its new time, in seconds: of the file system's clock, which may differ from this machine's."""
    os.utime(descriptor)
    return os.fstat(descriptor).st_mtime


def _clock_s(folder: Path) -> float:
    probe = _partial_name(folder / "clock")
    try:
        with open_file(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY) as descriptor:
            return touch_s(descriptor)
    finally:
        probe.unlink(missing_ok=True)


def _partial_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.{host_name()}-{os.getpid()}-{secrets.token_hex(4)}.partial")


def is_orphan(path: Path) -> bool:
    """Whether the process that an unfinished file's name tells of can no longer finish it."""
    match = _PARTIAL.fullmatch(path.name)
    if match is None or match["host"] != host_name():
        try:
            return _clock_s(path.parent) - path.stat().st_mtime > FOREIGN_ORPHAN_S
        except FileNotFoundError:  # its owner finished it, or another process swept it
            return False
    return not is_running(int(match["pid"]))


def is_running(pid: int) -> bool:
    """Whether this machine has a process of that number."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True
