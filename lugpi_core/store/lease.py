"""The right to write one shard: one owner at a time, free as soon as the owner dies or releases it.

A lease is a small file next to the shard. Its owner keeps it locked (flock), writes its name into it and touches it every few seconds. On
one machine the lock decides: the kernel releases it when its owner dies. If the file system does not share locks between machines, the
touches decide: an owner on another machine that has not touched its lease for ``STALE_S`` seconds, by the file system's own clock or as
seen by who waits, has lost it. Where ``has_locks`` finds no locks there are no leases: shards are shared out beforehand, and a shard that
is written twice does no harm, because each process writes a file of its own and the first to be complete stays.
"""

import errno
import fcntl
import json
import math
import os
import platform
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lugpi_core.errors import InputError
from lugpi_core.files import host_name, open_file, read_at, touch_s, write_at

STALE_S = 60.0
BEAT_S = 5.0
LOCK = ".lock"
_NO_LOCKS = frozenset((errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS))


class ShardBusy(InputError):
    """Another command is writing the shard."""

    def __init__(self, path: Path, owner: str) -> None:
        shard = path.with_name(path.name.removeprefix(".").removesuffix(".lease"))
        super().__init__(
            got=f"{shard}, which {owner} is writing", expected="one writer per shard", do="wait for it, or run the same command again later"
        )
        self.owner = owner


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Hold the folder's lock during the block, so that one process at a time takes leases and changes manifests.

    On a file system without locks the block runs all the same: what is done in it costs work that way, but loses no row.
    """
    with open_file(folder / LOCK, os.O_CREAT | os.O_RDWR) as descriptor:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        yield descriptor


def has_locks(folder: Path) -> bool:
    """Whether a lock on a file in the folder keeps out another descriptor of the same file."""
    with open_file(folder / LOCK, os.O_CREAT | os.O_RDWR) as mine, open_file(folder / LOCK, os.O_RDWR) as other:
        try:
            for descriptor in (mine, other):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # by the first descriptor, or by another process
            return True
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
    return False


class Lease:
    """The lease on one shard; created by ``take_lease``."""

    def __init__(self, path: Path, descriptor: int, identity: bytes) -> None:
        self._path = path
        self._descriptor = descriptor
        self._identity = identity
        self._beaten_s = time.monotonic()
        self._ended = threading.Event()
        self._heart = threading.Thread(target=self._beat, name=f"lease {path.name}", daemon=True)
        self._heart.start()

    def still_ours(self) -> None:
        """Raise unless the lease is ours. Cheap while the heartbeat runs; if this process was suspended, the file is checked.

        Raises:
            ShardBusy: another process has taken the shard, which can happen if this one was suspended for long.
        """
        if time.monotonic() - self._beaten_s > STALE_S / 2 or not self._in_place():
            with locked(self._path.parent):
                self.confirm()

    def confirm(self) -> None:
        """Raise unless the lease is ours according to the file, and touch it; the caller holds the folder's lock.

        Raises:
            ShardBusy: another process has taken the shard.
        """
        if not self._in_place() or not self._is_mine():
            raise ShardBusy(self._path, "another command, after this one was suspended,")
        self._touch()

    def release(self) -> None:
        """Release the lease."""
        self._stop()
        try:
            with locked(self._path.parent):
                self._remove()
        finally:
            self._close()

    def drop(self) -> None:
        """Release the lease; the caller holds the folder's lock."""
        self._stop()
        try:
            self._remove()
        finally:
            self._close()

    def _stop(self) -> None:
        self._ended.set()
        self._heart.join()

    def _remove(self) -> None:
        if self._descriptor >= 0 and self._in_place() and self._is_mine():
            self._path.unlink(missing_ok=True)

    def _close(self) -> None:
        # Closing the descriptor releases the lock, so a file that could not be removed blocks no other process.
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _in_place(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._descriptor), self._path.stat())
        except FileNotFoundError:
            return False

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_S):
            with suppress(OSError):  # a failed beat is a missed beat, which ``still_ours`` notices
                if not self._is_mine():  # taken while we were suspended: stop beating, so that ``still_ours`` checks the file
                    self._beaten_s = -math.inf
                    return
                self._touch()

    def _is_mine(self) -> bool:
        return read_at(self._descriptor, 4096, 0) == self._identity

    def _touch(self) -> None:
        os.utime(self._descriptor)
        self._beaten_s = time.monotonic()


def take_lease(path: Path, lock: int, seen: dict[Path, tuple[int, float]] | None = None) -> Lease:
    """Take the lease on a shard.

    Args:
        path: the lease's file.
        lock: the folder's lock, as ``locked`` yields it.
        seen: the last touch of leases of other machines, and since when it is known here; kept between requests.

    Raises:
        ShardBusy: a running process has it.
    """
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
    try:
        owner = _owner(descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ShardBusy(path, _owner_text(owner)) from None
        if (
            owner is not None
            and owner.get("machine") != host_name()
            and not _is_silent(path, descriptor, lock, {} if seen is None else seen)
        ):
            raise ShardBusy(path, _owner_text(owner))
        identity = json.dumps({"machine": host_name(), "host": platform.node(), "pid": os.getpid(), "nonce": secrets.token_hex(8)}).encode()
        os.ftruncate(descriptor, 0)
        write_at(descriptor, identity, 0)
        os.utime(descriptor)
        return Lease(path, descriptor, identity)
    except BaseException:
        os.close(descriptor)
        raise


def _owner(descriptor: int) -> dict[str, Any] | None:
    """Return who wrote the lease; None if it is new or unfinished."""
    try:
        owner = json.loads(read_at(descriptor, 4096, 0))
    except (ValueError, RecursionError):
        return None
    return owner if isinstance(owner, dict) else None


def _owner_text(owner: dict[str, Any] | None) -> str:
    return f"process {owner.get('pid')} on {owner.get('host')}" if owner else "another command"


def _is_silent(path: Path, descriptor: int, lock: int, seen: dict[Path, tuple[int, float]]) -> bool:
    """Whether an owner has touched its lease neither for long by the file system's clock, nor while we looked on. That clock may have been
    set back, and then a lease that nobody touches any more would look fresh until the clock is there again."""
    touch_ns = os.fstat(descriptor).st_mtime_ns
    if path not in seen or seen[path][0] != touch_ns:
        seen[path] = touch_ns, time.monotonic()
    return _age_s(descriptor, lock) >= STALE_S or time.monotonic() - seen[path][1] >= STALE_S


def _age_s(descriptor: int, lock: int) -> float:
    return touch_s(lock) - os.fstat(descriptor).st_mtime
