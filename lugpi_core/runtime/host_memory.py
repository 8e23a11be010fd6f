"""How much host memory is available, also inside a container."""

import os
from collections.abc import Iterator
from pathlib import Path


def host_available_bytes(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Return how many more bytes this process can allocate without swapping.

    The kernel's estimate, and the limits of the control groups (containers) above it. Without ``/proc``: all memory of the machine.
    """
    if not (proc / "meminfo").is_file():  # not Linux
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    kilobytes = _numbers(proc / "meminfo")["MemAvailable:"]
    return max(0, min([kilobytes * 1024, *_left_in_groups(proc / "self" / "cgroup", groups)]))


def _left_in_groups(membership: Path, groups: Path) -> Iterator[int]:
    """Yield what each control group above this process has left, for version 1 (``4:memory:/path``) and 2 (``0::/path``)."""
    names = {
        "": ("", "memory.max", "memory.current", "inactive_file"),
        "memory": ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    }
    for line in membership.read_text().splitlines() if membership.is_file() else ():
        _, controllers, inside = line.split(":", 2)
        if controllers not in names:
            continue
        root, limit_file, usage_file, cache_line = names[controllers]
        innermost = groups / root / inside.strip("/")
        for group in (innermost, *innermost.parents):
            if (group / limit_file).is_file() and (limit := (group / limit_file).read_text().strip()) != "max":
                # The page cache counts as used, but its inactive half is freed on demand.
                cache_bytes = _numbers(group / "memory.stat").get(cache_line, 0)
                yield int(limit) - int((group / usage_file).read_text()) + cache_bytes
            if group == groups / root:
                break


def _numbers(path: Path) -> dict[str, int]:
    lines = [line.split() for line in path.read_text().splitlines()] if path.is_file() else []
    return {line[0]: int(line[1]) for line in lines}
