"""Makes single file operations fail.

Only operations below one folder, and on descriptors opened there, are affected. The store calls the system through attributes of ``os``,
``io``, ``fcntl`` and ``mmap``, which are replaced while a ``with`` block runs.
"""

import errno
import fcntl
import io
import mmap
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Functions whose first argument is a path or a descriptor. os.close is left out: after an error its effect is unspecified.
_OF_OS = (
    *("open", "pwrite", "pread", "write", "read", "fsync", "fdatasync", "posix_fallocate", "ftruncate", "utime", "fstat", "stat", "lstat"),
    *("replace", "rename", "unlink", "mkdir", "rmdir", "scandir", "listdir", "access"),
)
_PLACES: tuple[tuple[Any, str], ...] = (*((os, name) for name in _OF_OS), (io, "open"), (fcntl, "flock"), (mmap, "mmap"))
WRITES, READS = ("pwrite", "write"), ("pread", "read")
Operation = Callable[..., Any]
# Called in place of each operation with its name, the operation itself and its arguments.
Hook = Callable[[str, Operation, tuple[Any, ...], dict[str, Any]], Any]


@contextmanager
def operations_through(folder: Path, hook: Hook) -> Iterator[None]:
    """Route every file operation on ``folder`` through ``hook`` while the block runs."""
    inside = os.fspath(folder)

    def concerns(target: Any) -> bool:
        if isinstance(target, int):
            target = _path_of(target)
        return isinstance(target, (str, os.PathLike)) and os.fspath(target).startswith(inside)

    def replacement(name: str, operation: Operation) -> Operation:
        def call(*arguments: Any, **named: Any) -> Any:
            is_inside = bool(arguments) and concerns(arguments[0])
            return hook(name, operation, arguments, named) if is_inside else operation(*arguments, **named)

        return call

    originals = [(owner, name, getattr(owner, name)) for owner, name in _PLACES]
    try:
        for owner, name, operation in originals:
            setattr(owner, name, replacement(name, operation))
        yield
    finally:
        for owner, name, operation in originals:
            setattr(owner, name, operation)


def _path_of(descriptor: int) -> str | None:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        return None


class Counter:
    """A hook that lets every operation pass and records their names in order."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._lock = threading.Lock()

    def __call__(self, name: str, operation: Operation, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        self.count(name)
        return operation(*arguments, **named)

    def count(self, name: str) -> int:
        """Count one operation and return its number."""
        with self._lock:
            self.names.append(name)
            return len(self.names) - 1


class Fault(Counter):
    """A hook that makes the k-th operation fail.

    Kinds: ``EIO`` and ``ENOSPC``; ``short``, half of a read or write; ``kill``, SIGKILL before the operation or after half of a write;
    ``full``, ENOSPC for everything that takes space, from the k-th operation on.
    """

    def __init__(self, k: int, kind: str) -> None:
        super().__init__()
        self._k, self._kind = k, kind

    def __call__(self, name: str, operation: Operation, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        number = self.count(name)
        if self._kind == "full" and number >= self._k and _takes_space(name, arguments):
            raise _error("ENOSPC", name)
        if number == self._k and self._kind != "full":
            return self._fail(name, operation, arguments, named)
        return operation(*arguments, **named)

    def _fail(self, name: str, operation: Operation, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if self._kind in ("short", "kill"):
            part = _part(name, operation, arguments)
            if self._kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            return operation(*arguments, **named) if part is None else part
        if name == "access":  # returns False instead of raising
            return False
        raise _error(self._kind, name)


def _part(name: str, operation: Operation, arguments: tuple[Any, ...]) -> Any:
    """Do half of a read or write and return its result; return None for any other operation."""
    if name in WRITES:
        descriptor, data, *offset = arguments
        return operation(descriptor, memoryview(data)[: (len(data) + 1) // 2], *offset)
    if name in READS:
        descriptor, count, *offset = arguments
        return operation(descriptor, (count + 1) // 2, *offset)
    return None


def _takes_space(name: str, arguments: tuple[Any, ...]) -> bool:
    if name == "open":
        flags = arguments[1] if len(arguments) > 1 else None
        return isinstance(flags, int) and bool(flags & os.O_CREAT) and not os.path.lexists(arguments[0])
    return name in (*WRITES, "posix_fallocate", "mkdir", "fsync")


def _error(kind: str, name: str) -> OSError:
    number = {"EIO": errno.EIO, "ENOSPC": errno.ENOSPC}[kind]
    return OSError(number, f"{os.strerror(number)} (in {name}, for a test)")
