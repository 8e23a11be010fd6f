"""Stage times, peak memory and versions, for the JSON records."""

import importlib.metadata
import platform
import resource
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

_RECORDED = ("lugpi", "torch", "transformers", "diffusers", "open_clip_torch", "timm", "h5py", "numpy", "bitsandbytes", "xformers")


class StageTimes:
    """Seconds by stage. Stages of one thread must not nest; several threads may each time stages of different names."""

    def __init__(self, device: str = "cpu") -> None:
        self._seconds: dict[str, float] = defaultdict(float)
        self._device = device
        self._running: list[tuple[str, Any, Any]] = []  # CUDA events around launched kernels

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by stage; kernels count once they have ended."""
        running, self._running = self._running, []
        for name, start, end in running:
            if end.query():
                self._seconds[name] += start.elapsed_time(end) / 1000
            else:
                self._running.append((name, start, end))
        return dict(self._seconds)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the wall time of the block to ``name``; on CUDA synchronize at both ends, so that a stage includes its own kernels."""
        self._wait()
        with self.host(name):
            try:
                yield
            finally:
                self._wait()

    @contextmanager
    def host(self, name: str) -> Iterator[None]:
        """Add the wall time of the block to ``name`` without synchronizing the device."""
        start_s = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] += time.perf_counter() - start_s

    @contextmanager
    def kernels(self, name: str) -> Iterator[None]:
        """Add the device time from the block's first kernel to its last, without synchronizing; on the CPU, wall time."""
        if self._device != "cuda":
            with self.host(name):
                yield
            return
        import torch

        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        try:
            yield
        finally:
            end.record()
            self._running.append((name, start, end))

    def record(self) -> dict[str, float]:
        """Return ``{"<stage>_s": seconds}``, rounded to milliseconds; waits for running kernels."""
        if self._running:
            self._wait()
        return {f"{name}_s": round(seconds, 3) for name, seconds in self.seconds.items()}

    def _wait(self) -> None:
        if self._device == "cuda":
            import torch

            torch.cuda.synchronize()


def peak_memory_bytes() -> dict[str, int]:
    """Return the peak resident set of this process and, if CUDA is in use, the peak of torch's allocator."""
    peak = {"host_bytes": _peak_resident_bytes()}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        peak["device_bytes"] = torch.cuda.max_memory_allocated()
    return peak


@cache
def versions() -> Mapping[str, str]:
    """Return the versions of Python and of the installed packages that affect results."""
    installed = {"python": platform.python_version()}
    for name in _RECORDED:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return MappingProxyType(installed)


def commit() -> str | None:
    """Return the checkout's commit, followed by ``+`` if tracked files differ from it; None outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    head = _git(root, "rev-parse", "HEAD")
    if head is None:
        return None
    return head + ("+" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")


@cache
def _commit_at_start() -> str | None:
    """Return ``commit()`` of the first call: what runs is what was imported, and two processes of git for each of many models take long."""
    return commit()


def provenance() -> dict[str, Any]:
    """Return versions, commit, platform and time: the part of a record that every command has."""
    return {
        "versions": dict(versions()),
        "commit": _commit_at_start(),
        "platform": platform.platform(),
        "made_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _peak_resident_bytes() -> int:
    if sys.platform == "linux":
        # Not getrusage, where a process starts with the peak of its parent.
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    kilobyte = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes on macOS, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilobyte


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
