"""The structure of a shard file, as a pure function of its content's description.

A shard contains datasets with the same first dimension m, each contiguous, uncompressed and fully allocated:

    <what>    the rows themselves, ``tokens`` [m, T, D] or ``latents`` [m, C, h, w], little-endian float16, int8 or float32
    scale     float32 [m, T], only with int8: a token is its int8 values times its scale
    row_hash  uint64 [m]; see ``shard.py``; 0 = never written
    flags     uint8 [m]; 0 = good, otherwise why the row is zeros

HDF5 builds the structure in memory, where only its metadata takes space; the file itself is written, and later checked, as bytes. So HDF5
never opens a shard for writing, and does not have to read files of unknown origin.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod
from typing import Any, Literal

import numpy as np

Dtype = Literal["float16", "int8", "float32"]
ROW_DTYPES: Mapping[str, "np.dtype[Any]"] = {"float16": np.dtype("<f2"), "int8": np.dtype("i1"), "float32": np.dtype("<f4")}
LATENTS = "latents"  # the column of latents; every other column is tokens
OWN_IMAGES = "own images"  # stands for the generator where a user's own pictures were encoded
PROMPT_TEXT = "prompt-text"  # the column of the generator's own text vectors: tokens, but of no image
CANDIDATES = "candidates"  # the column of what the candidates of each image scored (featurize --best-of): tokens, but of no image
BASIS = "pca.h5"  # in a column of components (featurize reduce): mean and axes
# What ends the name of a column whose images another decoder than the generator's own, whole one decoded.
DECODER_SUFFIXES: Mapping[str, str] = {"half": "-half", "tiny": "-tiny"}
SCALE, ROW_HASH, FLAGS = "scale", "row_hash", "flags"
# A cache line. Because of the header, rows do not start at the start of a page: malloc places large buffers 16 bytes after one, and copying
# between addresses that differ by a few bytes modulo 4 KiB takes twice as long.
ALIGNMENT_BYTES = 64


@dataclass(frozen=True, kw_only=True)
class ShardLayout:
    """What determines a shard file's structure: its content ``what``, how many rows of which shape and dtype, the first row's number."""

    what: str
    rows: int
    row_shape: tuple[int, ...]
    first_row: int
    fingerprint_digest: str
    dtype: Dtype = "float16"

    @cached_property
    def datasets(self) -> dict[str, tuple[tuple[int, ...], "np.dtype[Any]"]]:
        """Shape and dtype of each dataset, in the order of the file."""
        scale = {SCALE: ((self.rows, *self.row_shape[:-1]), np.dtype("<f4"))} if self.dtype == "int8" else {}
        return {
            self.what: ((self.rows, *self.row_shape), ROW_DTYPES[self.dtype]),
            **scale,
            ROW_HASH: ((self.rows,), np.dtype("<u8")),
            FLAGS: ((self.rows,), np.dtype("u1")),
        }

    @cached_property
    def stored(self) -> tuple[str, ...]:
        """The datasets that make up a row: its values and, with int8, its scales."""
        return (self.what, SCALE) if self.dtype == "int8" else (self.what,)

    def bytes_of(self, dataset: str, rows: int = 1) -> int:
        """Return the bytes that ``rows`` rows of a dataset take."""
        shape, dtype = self.datasets[dataset]
        return rows * prod(shape[1:]) * dtype.itemsize


@dataclass(frozen=True, kw_only=True)
class Structure:
    """A shard file without its rows.

    Attributes:
        offsets: where each dataset's bytes start.
        frame: every byte that belongs to no dataset, as (offset, bytes), in order.
        file_bytes: size of the file.
    """

    offsets: Mapping[str, int]
    frame: tuple[tuple[int, bytes], ...]
    file_bytes: int


@lru_cache(maxsize=4096)
def structure(layout: ShardLayout) -> Structure:
    """Return the structure of a shard; equal layouts give equal bytes."""
    import h5py

    memory = _SparseFile()
    # No time stamps and no heaps, so that equal content gives equal bytes; attributes have a fixed length.
    with h5py.File(memory, "w", libver=("v110", "v110"), alignment_threshold=1, alignment_interval=ALIGNMENT_BYTES) as file:
        file.attrs["fingerprint"] = np.bytes_(layout.fingerprint_digest)
        file.attrs["first_row"] = np.int64(layout.first_row)
        offsets = {name: _create_contiguous(file.id, name, shape, dtype) for name, (shape, dtype) in layout.datasets.items()}
    ends = {name: offset + layout.bytes_of(name, layout.rows) for name, offset in offsets.items()}
    gaps = _gaps([(offsets[name], ends[name]) for name in offsets], memory.size)
    frame = tuple((start, memory.content(start, stop)) for start, stop in gaps)
    return Structure(offsets=offsets, frame=frame, file_bytes=memory.size)


def _create_contiguous(file_id: Any, name: str, shape: tuple[int, ...], dtype: "np.dtype[Any]") -> int:
    import h5py

    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_layout(h5py.h5d.CONTIGUOUS)
    plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    plan.set_obj_track_times(False)
    dataset = h5py.h5d.create(file_id, name.encode(), h5py.h5t.py_create(dtype), h5py.h5s.create_simple(shape), plan)
    return int(dataset.get_offset())


def _gaps(ranges: list[tuple[int, int]], size: int) -> list[tuple[int, int]]:
    """Return the parts of 0 … size that half-open ranges do not cover."""
    gaps, at = [], 0
    for start, stop in [*sorted(ranges), (size, size)]:
        if start > at:
            gaps.append((at, start))
        at = max(at, stop)
    return gaps


class _SparseFile(io.RawIOBase):
    """A file in memory that stores only what is written to it; the rest reads as zeros."""

    def __init__(self) -> None:
        self.size = 0
        self._position = 0
        self._written: list[tuple[int, bytes]] = []

    def content(self, start: int, stop: int) -> bytes:
        data = bytearray(stop - start)
        for offset, part in self._written:
            low, high = max(offset, start), min(offset + len(part), stop)
            if low < high:
                data[low - start : high - start] = part[low - offset : high - offset]
        return bytes(data)

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def truncate(self, size: int | None = None) -> int:
        self.size = self._position if size is None else size
        return self.size

    def write(self, data: Any) -> int:
        part = bytes(data)
        self._written.append((self._position, part))
        self._position += len(part)
        self.size = max(self.size, self._position)
        return len(part)

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        view[:] = self.content(self._position, self._position + len(view))
        self._position += len(view)
        return len(view)
