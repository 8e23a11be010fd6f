"""An object store in memory of which every k-th request fails, times out, is cut short, or is done without an answer."""

import errno
from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar, Literal

from fsspec.exceptions import FSTimeoutError
from fsspec.implementations.memory import MemoryFileSystem

Verb = Literal["PUT", "GET", "LIST"]
Fault = Literal["fails", "times out", "is cut", "is not answered"]
FAULTS: tuple[Fault, ...] = ("fails", "times out", "is cut", "is not answered")


class FaultyStore(MemoryFileSystem):
    """The file system ``memory://`` with faults, which are set on the class: fsspec makes the instances."""

    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    every: ClassVar[dict[Verb, int]] = {}
    fault: ClassVar[Fault] = "fails"
    requests: ClassVar[Counter[str]] = Counter()
    broken: ClassVar[Counter[str]] = Counter()
    error: ClassVar[Callable[[], Exception]] = lambda: OSError(errno.EIO, "the store is ill")

    @classmethod
    def reset(cls) -> None:
        """Forget objects, faults and counts."""
        cls.store.clear()
        cls.pseudo_dirs[:] = [""]
        cls.every, cls.fault = {}, "fails"
        cls.requests.clear()
        cls.broken.clear()

    def put_file(self, lpath: str, rpath: str, mode: str = "overwrite", **kwargs: Any) -> None:
        """Upload; a cut one leaves half of the object and says nothing."""
        with open(lpath, "rb") as file:
            data = file.read()
        fault = self._next("PUT")
        if fault == "is cut":
            self.pipe_file(rpath, data[: len(data) // 2], mode=mode)
            return
        self.pipe_file(rpath, data, mode=mode)
        if fault == "is not answered":
            raise FSTimeoutError

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        """Read; a cut answer is half of it."""
        fault = self._next("GET")
        data: bytes = super().cat_file(path, start=start, end=end, **kwargs)
        return self._cut(data, fault)

    def get_file(self, rpath: str, lpath: str, **kwargs: Any) -> None:
        """Download; a cut file is half of it."""
        fault = self._next("GET")
        data = super().cat_file(rpath)
        with open(lpath, "wb") as file:
            file.write(self._cut(data, fault))

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> Any:
        """List; a cut list has half of the names."""
        fault = self._next("LIST")
        return self._cut(super().ls(path, detail=detail, **kwargs), fault)

    def _next(self, verb: Verb) -> Fault | None:
        """Count a request; return the fault of one that begins, raise that of one that does not."""
        kind = type(self)
        kind.requests[verb] += 1
        every = kind.every.get(verb)
        if not every or kind.requests[verb] % every:
            return None
        kind.broken[verb] += 1
        if kind.fault == "fails":
            raise kind.error()
        if kind.fault == "times out":
            raise FSTimeoutError
        return kind.fault

    def _cut(self, answer: Any, fault: Fault | None) -> Any:
        if fault == "is not answered":
            raise FSTimeoutError
        return answer[: len(answer) // 2] if fault == "is cut" else answer
