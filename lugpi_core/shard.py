"""One shard: an HDF5 file of fixed structure whose rows are written in place.

A shard holds three datasets of the same first dimension m, each contiguous, uncompressed and allocated when the file is created:

    <what>    the rows themselves, ``tokens`` [m, T, D] or ``latents`` [m, C, h, w], little-endian float16
    row_hash  uint64 [m]; the xxh3-64 of the row's bytes and its flag, seeded with the row's number; 0 = never written
    flags     uint8 [m]; 0 = good, otherwise why the row holds zeros (``FLAG_REASONS``)

HDF5 is used once, to lay the structure down. From then on only raw bytes at known offsets change, so that HDF5's own metadata is never in
flight and a killed writer cannot leave an unreadable file. A row counts when its hash holds.
"""

import fcntl
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from lugpi_core.errors import InputError
from lugpi_core.files import sync_folder, whole_file

FLAG_NOT_FINITE, FLAG_CONSTANT = 1, 2
FLAG_REASONS = {FLAG_NOT_FINITE: "not finite", FLAG_CONSTANT: "constant picture"}
ROW_DTYPE = np.dtype("<f2")
_CHUNK_BYTES = 1 << 22


@dataclass(frozen=True, kw_only=True)
class ShardLayout:
    """What decides the structure of a shard file: ``what`` it holds, its rows and the shape of one, and the number of its first row."""

    what: str
    rows: int
    row_shape: tuple[int, ...]
    first_row: int
    fingerprint_digest: str

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return int(np.prod(self.row_shape)) * ROW_DTYPE.itemsize


@dataclass(frozen=True, kw_only=True)
class ShardOffsets:
    """Where in the file each dataset's bytes start, and the file's size."""

    rows: int
    row_hash: int
    flags: int
    file_bytes: int


def create_shard(path: Path, layout: ShardLayout) -> ShardOffsets:
    """Create the shard file with its whole structure and all its space; two calls make the same bytes.

    Raises:
        InputError: the disk has no room for it.
    """
    import h5py

    # Renamed when its structure is whole: a creation that is killed leaves nothing that HDF5 cannot open.
    try:
        with whole_file(path) as fresh, h5py.File(fresh, "w", libver=("v110", "v110")) as file:
            file.attrs["fingerprint"] = np.bytes_(layout.fingerprint_digest)  # fixed length: no heap, which HDF5 keeps without a checksum
            file.attrs["first_row"] = np.int64(layout.first_row)
            for name, shape, dtype in _datasets(layout):
                _create_contiguous(file.id, name, shape, dtype)
    except OSError as error:
        raise _no_room(path, layout.rows * layout.row_bytes, error) from None
    offsets = read_offsets(path, layout)
    _allocate(path, offsets.file_bytes)
    return offsets


def read_offsets(path: Path, layout: ShardLayout) -> ShardOffsets:
    """Return where the datasets of a shard lie, checked against ``layout`` and the file's size before any byte is trusted.

    Raises:
        InputError: the file is not a shard of this layout.
    """
    import h5py

    try:
        with h5py.File(path, "r", locking=False) as file:
            found = {name: plain_offset(file, name, shape, dtype) for name, shape, dtype in _datasets(layout)}
    except (OSError, KeyError, RuntimeError, ValueError) as error:
        raise _damaged(path, str(error)) from None
    size = path.stat().st_size
    ends = [
        offset + int(np.prod(shape)) * dtype.itemsize for (_, shape, dtype), offset in zip(_datasets(layout), found.values(), strict=True)
    ]
    if max(ends) > size:
        raise _damaged(path, f"its datasets end at byte {max(ends)}, the file at {size}")
    return ShardOffsets(rows=found[layout.what], row_hash=found["row_hash"], flags=found["flags"], file_bytes=size)


class ShardWriter:
    """Writes rows of one open ``.partial`` shard in place. Holds a file descriptor and m hashes; not thread-safe.

    Raises:
        InputError: the file is not a shard of this layout, another command is writing it, or the disk has no room for it.
    """

    def __init__(self, path: Path, layout: ShardLayout) -> None:
        self.layout = layout
        self._path = path
        if path.exists():
            self._offsets = read_offsets(path, layout)
            _allocate(path, self._offsets.file_bytes)
        else:
            self._offsets = create_shard(path, layout)
        self._descriptor = os.open(path, os.O_RDWR)
        self._refuse_second_writer()
        self.valid = self._check_rows()

    def write(self, first: int, values: NDArray[np.float16], flags: NDArray[np.uint8]) -> None:
        """Write consecutive rows from local row ``first`` on: the values, then the flags, then the hashes that make them count.

        Args:
            first: local number of the first row.
            values: float16 [b, *row_shape].
            flags: uint8 [b].
        """
        count = len(values)
        assert values.shape == (count, *self.layout.row_shape), (values.shape, self.layout)
        data = np.ascontiguousarray(values, dtype=ROW_DTYPE)
        hashes = np.array([self._hash(first + n, data[n], int(flags[n])) for n in range(count)], dtype="<u8")
        _write_at(self._descriptor, data, self._offsets.rows + first * self.layout.row_bytes)
        _write_at(self._descriptor, flags.astype("u1"), self._offsets.flags + first)
        _write_at(self._descriptor, hashes, self._offsets.row_hash + first * 8)
        self.valid[first : first + count] = True

    def read(self, first: int, count: int) -> NDArray[np.float16]:
        """Return rows as they stand in the file, float16 [count, *row_shape]."""
        data = os.pread(self._descriptor, count * self.layout.row_bytes, self._offsets.rows + first * self.layout.row_bytes)
        return np.frombuffer(data, ROW_DTYPE).reshape(count, *self.layout.row_shape)

    def flags(self) -> NDArray[np.uint8]:
        """Return the flags of all rows, uint8 [m]."""
        return np.frombuffer(os.pread(self._descriptor, self.layout.rows, self._offsets.flags), "u1")

    def commit(self, final: Path) -> dict[str, Any]:
        """Sync the file, read it back, check every row, rename it to ``final`` and return its manifest record.

        Raises:
            InputError: a row that was written does not read back as it was, or the file is not the one that was opened.
        """
        os.fsync(self._descriptor)
        if not self._path.exists() or not os.path.samestat(os.fstat(self._descriptor), self._path.stat()):
            raise _busy(self._path, "another command has replaced it")
        if not self._check_rows().all():
            raise _damaged(self._path, "rows do not read back as they were written")
        record = {
            "file": final.name,
            "first_row": self.layout.first_row,
            "rows": self.layout.rows,
            "bytes": self._offsets.file_bytes,
            "rows_offset": self._offsets.rows,
            "flagged": {str(row): FLAG_REASONS[int(flag)] for row, flag in enumerate(self.flags()) if flag},
            **hash_shard(self._path),
        }
        self.close()
        self._path.replace(final)
        sync_folder(final.parent)
        return record

    def close(self) -> None:
        """Close the file; rows already written stay."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _refuse_second_writer(self) -> None:
        # The kernel drops the lock with its owner, so a killed writer leaves none behind.
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise _busy(self._path, "another command is writing it") from None

    def _check_rows(self) -> NDArray[np.bool_]:
        hashes = np.frombuffer(os.pread(self._descriptor, self.layout.rows * 8, self._offsets.row_hash), "<u8")
        flags = self.flags()
        valid = np.zeros(self.layout.rows, dtype=bool)
        for row in np.flatnonzero(hashes):
            valid[row] = self._hash(int(row), self.read(int(row), 1), int(flags[row])) == hashes[row]
        return valid

    def _hash(self, row: int, data: NDArray[np.float16], flag: int) -> int:
        hasher = xxhash.xxh3_64(data.tobytes(), seed=self.layout.first_row + row)
        hasher.update(bytes([flag]))
        return hasher.intdigest() or 1  # 0 means "never written"


def hash_shard(path: Path) -> dict[str, str]:
    """Return the xxh3-128 (fast, for every read) and the sha256 (for publishing) of a whole shard file."""
    fast, strong = xxhash.xxh3_128(), hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            fast.update(chunk)
            strong.update(chunk)
    return {"xxh3_128": fast.hexdigest(), "sha256": strong.hexdigest()}


def check_record(folder: Path, record: Mapping[str, Any], *, content: bool) -> str | None:
    """Return what is wrong with a committed shard file (missing, size, content), or None; ``content`` reads the whole file."""
    from lugpi_core.fingerprint import hash_file

    path = folder / record["file"]
    if not path.is_file():
        return "missing"
    if path.stat().st_size != record["bytes"]:
        return f"{path.stat().st_size} bytes, {record['bytes']} expected"
    if content and hash_file(path) != record["xxh3_128"]:
        return "its content differs from its hash"
    return None


def _datasets(layout: ShardLayout) -> tuple[tuple[str, tuple[int, ...], np.dtype[Any]], ...]:
    return (
        (layout.what, (layout.rows, *layout.row_shape), ROW_DTYPE),
        ("row_hash", (layout.rows,), np.dtype("<u8")),
        ("flags", (layout.rows,), np.dtype("u1")),
    )


def _create_contiguous(file_id: Any, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    import h5py

    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_layout(h5py.h5d.CONTIGUOUS)
    plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    plan.set_obj_track_times(False)  # so that equal content is equal bytes
    h5py.h5d.create(file_id, name.encode(), h5py.h5t.py_create(dtype), h5py.h5s.create_simple(shape), plan)


def plain_offset(file: Any, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """Return where a dataset's bytes start in an open HDF5 file; nothing is read or allocated.

    Raises:
        ValueError: it is a link, kept outside the file, chunked, filtered, or not of this shape and dtype.
    """
    import h5py

    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise ValueError(f"{name} is a link out of the file")
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset):
        raise ValueError(f"{name} is not a dataset")
    plan = dataset.id.get_create_plist()
    if plan.get_layout() != h5py.h5d.CONTIGUOUS or plan.get_nfilters() or plan.get_external_count():
        raise ValueError(f"{name} is not a plain contiguous dataset")
    if dataset.shape != shape or dataset.dtype != dtype:
        raise ValueError(f"{name} is {dataset.dtype} {dataset.shape}, not {dtype} {shape}")
    offset = dataset.id.get_offset()
    if offset is None:
        raise ValueError(f"{name} has no space")
    return int(offset)


def _allocate(path: Path, size: int) -> None:
    descriptor = os.open(path, os.O_RDWR)
    try:
        if size:
            os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        raise _no_room(path, size, error) from None
    finally:
        os.close(descriptor)


def _write_at(descriptor: int, values: NDArray[Any], offset: int) -> None:
    view = np.ascontiguousarray(values).reshape(-1).view("u1").data
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def _damaged(path: Path, why: str) -> InputError:
    return InputError(
        got=f"{path}: {why}",
        expected="a shard as lugpi wrote it",
        do="remove this file and run the same featurize command again; only its rows are made again",
    )


def _no_room(path: Path, size: int, error: OSError) -> InputError:
    return InputError(
        got=f"no room for {path} ({size / 1e6:.0f} MB: {os.strerror(error.errno or 0)})",  # HDF5's own text is a page long
        expected="space for a whole shard before the first image is drawn",
        do="make room or choose another --run-dir, then run the same command again",
    )


def _busy(path: Path, why: str) -> InputError:
    return InputError(got=f"{path}: {why}", expected="one writer a shard", do="wait for the other to end, then run the same command again")
