"""Drop files from the page cache and check that they are gone, so that cold reads are cold. Linux; needs no special rights."""

import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np


def drop_pages(paths: Iterable[Path]) -> None:
    """Drop the cached pages of some files. Mapped pages stay: close the maps first."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # dirty pages cannot be dropped
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def cached_share(paths: Iterable[Path]) -> float:
    """Return the share of the files' pages that is in the page cache, 0 to 1 (mincore)."""
    cached = pages = 0
    for path in paths:
        resident = _resident(path)
        cached, pages = cached + int(resident.sum()), pages + len(resident)
    return cached / max(pages, 1)


def _resident(path: Path) -> "np.ndarray[tuple[int], np.dtype[np.uint8]]":
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        pages = -(-len(mapped) // mmap.PAGESIZE)
        bits = np.zeros(pages, np.uint8)
        view = np.frombuffer(mapped, np.uint8)
        libc = ctypes.CDLL(None, use_errno=True)
        start, size = ctypes.c_void_p(view.ctypes.data), ctypes.c_size_t(len(mapped))
        failed = libc.mincore(start, size, ctypes.c_void_p(bits.ctypes.data))
        del view
        if failed:
            raise OSError(ctypes.get_errno(), "mincore")
    return bits & np.uint8(1)
