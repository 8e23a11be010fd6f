"""One shard on disk: created whole, rows written in place, checked, made final. The structure of the file is in ``layout.py``.

A shard is created as ``.partial`` with its full structure and all its space. After that only raw bytes at known offsets change: the row,
its flag, then its hash, which makes it valid. The hash is the xxh3-64 of the row's bytes and its flag, seeded with the column's
fingerprint and the row's number, so that a row of another column, position or run has another hash. HDF5's own metadata is never
rewritten, so a killed writer cannot leave an unreadable file.
"""

import errno
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from lugpi_core.errors import InputError
from lugpi_core.files import open_file, read_at, sync_folder, whole_file, write_at
from lugpi_core.store.layout import FLAGS, ROW_HASH, SCALE, ShardLayout, structure
from lugpi_core.store.lease import Lease

FLAG_NOT_FINITE, FLAG_CONSTANT, FLAG_NO_PICTURE, FLAG_UNREADABLE, FLAG_NOT_RESIZED = 1, 2, 3, 4, 5
FLAG_REASONS = {
    FLAG_NOT_FINITE: "not finite",
    FLAG_CONSTANT: "constant picture",
    FLAG_NO_PICTURE: "no picture",
    FLAG_UNREADABLE: "unreadable picture",
    FLAG_NOT_RESIZED: "picture that the encoder cannot resize",
}
_CHUNK_BYTES = 1 << 22
UNREADABLE = "unreadable"  # instead of a hash, if the disk could not read all of a file
WRITE_BACK_BYTES = 16 << 20


def create_shard(path: Path, layout: ShardLayout, rows_from: Sequence[Path] = (), offsets: Mapping[str, int] | None = None) -> None:
    """Create a shard file with its whole structure and all its space, and copy every valid row of the files ``rows_from`` into it.

    Args:
        path: the new file; an existing one is replaced.
        layout: its layout.
        rows_from: files of the same shard.
        offsets: where their datasets start, if another version of HDF5 wrote them.

    Raises:
        InputError: the disk has no room for it.
    """
    plan = structure(layout)
    with whole_file(path) as partial, open_file(partial, os.O_RDWR) as descriptor:
        _allocate(descriptor, path, plan.file_bytes)
        for offset, data in plan.frame:
            write_at(descriptor, data, offset)
        for source in rows_from:
            valid_rows = np.flatnonzero(check_rows(source, layout, offsets)).tolist()
            with suppress(FileNotFoundError), open_file(source, os.O_RDONLY) as old:  # where there are no leases, others may remove it
                for row in valid_rows:
                    _write_row(descriptor, layout, row, _read_row(old, layout, row, offsets or plan.offsets))


def is_intact(path: Path, layout: ShardLayout) -> bool:
    """Whether a file has the size and, outside its rows, exactly the bytes of a shard of this layout. HDF5 does not read the file."""
    plan = structure(layout)
    with open_file(path, os.O_RDONLY) as descriptor:
        if os.fstat(descriptor).st_size != plan.file_bytes:
            return False
        return all(read_at(descriptor, len(data), offset) == data for offset, data in plan.frame)


def is_foreign(path: Path, layout: ShardLayout) -> bool:
    """Whether a file was written by another version of HDF5: its first bytes differ from this layout's by more than a few bits."""
    _, head = structure(layout).frame[0]
    with open_file(path, os.O_RDONLY) as descriptor:
        found = read_at(descriptor, len(head), 0)
    return len(found) == len(head) and sum(byte != expected for byte, expected in zip(found, head, strict=True)) > 4


def read_back(
    descriptor: int, layout: ShardLayout, offsets: Mapping[str, int] | None = None, *, sha256: Any = None
) -> tuple[NDArray[np.bool_], str]:
    """Read an open shard file once; return bool [m], which rows are valid, and the xxh3-128 of the whole file.

    A file that ends early has no valid row beyond its end. A row that the disk cannot read is invalid, and the hash is ``UNREADABLE``.
    Without ``offsets`` the datasets are where this version of HDF5 puts them. A hasher ``sha256`` is fed the whole file, too.
    """
    offsets, row_bytes = offsets or structure(layout).offsets, layout.bytes_of(layout.what)
    start, stop = offsets[layout.what], offsets[layout.what] + layout.bytes_of(layout.what, layout.rows)
    unreadable = False
    small = [name for name in layout.datasets if name != layout.what]
    small_bytes = {name: read_at(descriptor, layout.bytes_of(name, layout.rows), offsets[name]) for name in small}
    hashes = np.frombuffer(small_bytes.pop(ROW_HASH).ljust(layout.rows * 8, b"\0"), "<u8").tolist()
    whole = xxhash.xxh3_128()

    def add(chunk: Any) -> None:
        whole.update(chunk)
        if sha256 is not None:
            sha256.update(chunk)

    for chunk in _chunks(descriptor, 0, start):
        add(chunk)
    valid = np.zeros(layout.rows, dtype=bool)
    at_once = max(1, _CHUNK_BYTES // row_bytes)
    for first in range(0, layout.rows, at_once):
        count = min(at_once, layout.rows - first)
        try:
            data = memoryview(read_at(descriptor, count * row_bytes, start + first * row_bytes))
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            data, unreadable = memoryview(_readable(descriptor, count, row_bytes, start + first * row_bytes)), True
        add(data)
        for n, expected in enumerate(hashes[first : first + at_once]):
            if expected:
                row = {layout.what: data[n * row_bytes : (n + 1) * row_bytes], **_row_of(layout, small_bytes, first + n)}
                valid[first + n] = _hash_row(layout, first + n, row) == expected
    for chunk in _chunks(descriptor, stop):
        add(chunk)
    return valid, UNREADABLE if unreadable else whole.hexdigest()


def _readable(descriptor: int, count: int, row_bytes: int, offset: int) -> bytes:
    """Return rows, read one by one; zeros for those that the disk cannot read."""
    rows = []
    for n in range(count):
        try:
            rows.append(read_at(descriptor, row_bytes, offset + n * row_bytes).ljust(row_bytes, b"\0"))
        except OSError:
            rows.append(bytes(row_bytes))
    return b"".join(rows)


def check_rows(path: Path, layout: ShardLayout, offsets: Mapping[str, int] | None = None) -> NDArray[np.bool_]:
    """Return bool [m]: which rows of a shard file are valid; none if there is no file."""
    try:
        with open_file(path, os.O_RDONLY) as descriptor:
            if any(read_at(descriptor, layout.rows * 8, (offsets or structure(layout).offsets)[ROW_HASH])):
                return read_back(descriptor, layout, offsets)[0]
    except FileNotFoundError:
        pass
    return np.zeros(layout.rows, dtype=bool)


class ShardWriter:
    """Writes rows of one ``.partial`` shard in place; the file exists and has its full structure. Holds a descriptor and m booleans; not
    thread-safe.

    Args:
        path: the ``.partial`` file.
        layout: its layout.
        lease: the right to write it, checked before every write and released by ``close``; None if no other process writes this file.
        left_as: the name that ``close`` gives the file if it is not final by then; None = the same.

    Attributes:
        valid: bool [m], the rows that are written and match their hash.
    """

    def __init__(self, path: Path, layout: ShardLayout, lease: Lease | None = None, *, left_as: Path | None = None) -> None:
        self.layout = layout
        self.path = path
        self._lease, self._left_as = lease, left_as
        self._plan = structure(layout)
        # The disk writes while more rows arrive. Each sync reports only its own failures, so all of their results are kept.
        self._disk = ThreadPoolExecutor(1)
        self._synced: list[Future[None]] = []
        self._unsynced_bytes = 0
        self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            _allocate(self._descriptor, path, self._plan.file_bytes)
            self.valid = check_rows(path, layout)
        except BaseException:
            os.close(self._descriptor)
            raise

    def still_ours(self) -> None:
        """Raise ShardBusy if the lease on the shard is lost."""
        if self._lease is not None:
            self._lease.still_ours()

    def confirm(self) -> None:
        """Raise ShardBusy if the lease on the shard is lost; the caller holds the folder's lock."""
        if self._lease is not None:
            self._lease.confirm()

    def write(self, first: int, values: NDArray[Any], flags: NDArray[np.uint8], scales: NDArray[np.float32] | None = None) -> None:
        """Write consecutive rows from local row ``first`` on: values and scales, then the flags, then the hashes that make them valid.

        Args:
            first: local number of the first row.
            values: float16 or int8 [b, *row_shape].
            flags: uint8 [b].
            scales: float32 [b, T], for an int8 shard only.
        """
        layout, count = self.layout, len(values)
        assert values.shape == (count, *layout.row_shape), (values.shape, layout)
        assert (scales is not None) == (SCALE in layout.datasets), layout
        self.still_ours()
        parts = {layout.what: values, **({SCALE: scales} if scales is not None else {}), FLAGS: flags}
        data = {name: np.ascontiguousarray(part, layout.datasets[name][1]) for name, part in parts.items()}
        hashes = [
            _hash_row(layout, first + n, {name: part[n : n + 1].view("u1").data for name, part in data.items()}) for n in range(count)
        ]
        for name, part in {**data, ROW_HASH: np.array(hashes, "<u8")}.items():
            write_at(self._descriptor, part.view("u1").data, self._plan.offsets[name] + layout.bytes_of(name, first))
        self.valid[first : first + count] = True
        self._unsynced_bytes += values.nbytes
        if self._unsynced_bytes >= WRITE_BACK_BYTES:
            self._write_back(os.fdatasync)

    def read(self, first: int, count: int) -> NDArray[Any]:
        """Return rows as stored in the file, [count, *row_shape] of the layout's dtype."""
        return self._read(self.layout.what, first, count)

    def flags(self) -> NDArray[np.uint8]:
        """Return the flags of all rows, uint8 [m]."""
        return self._read(FLAGS, 0, self.layout.rows)

    def forget(self, rows: Sequence[int]) -> None:
        """Mark rows as never written."""
        for row in rows:
            write_at(self._descriptor, bytes(8), self._plan.offsets[ROW_HASH] + 8 * row)
            self.valid[row] = False

    def sync_and_check(self) -> dict[str, Any]:
        """Sync the file to the disk, read it back, and return its manifest record.

        Raises:
            InputError: a row was never written, or does not read back as it was written.
            OSError: the file cannot be synced. It is then renamed to ``.suspect``: after a failed sync the system may consider pages
                written that are not, so the rows have to be written again, to another file.
        """
        self.still_ours()
        self._write_back(os.fsync)
        try:
            return read_record_of(self._descriptor, self.path, self.layout)
        finally:
            self._set_aside_unless_synced()

    def close(self) -> None:
        """Close the file and release the lease; rows already written stay. A second call does nothing."""
        self._disk.shutdown()
        try:
            with suppress(OSError):  # reported by the commit, if there was one
                self._set_aside_unless_synced()
        finally:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1
                if self._left_as is not None:
                    with suppress(FileNotFoundError):  # it is final
                        os.replace(self.path, self._left_as)
            lease, self._lease = self._lease, None
            if lease is not None:
                lease.release()

    def _set_aside_unless_synced(self) -> None:
        synced, self._synced = self._synced, []
        failed = [error for future in synced if (error := future.exception())]
        if failed:
            os.replace(self.path, self.path.with_suffix(".suspect"))
            raise failed[0]

    def _write_back(self, sync: Callable[[int], None]) -> None:
        self._synced.append(self._disk.submit(sync, self._descriptor))
        self._unsynced_bytes = 0

    def _read(self, name: str, first: int, count: int) -> NDArray[Any]:
        shape, dtype = self.layout.datasets[name]
        data = read_at(self._descriptor, self.layout.bytes_of(name, count), self._plan.offsets[name] + self.layout.bytes_of(name, first))
        return np.frombuffer(data, dtype).reshape(count, *shape[1:])


def read_record_of(descriptor: int, path: Path, layout: ShardLayout) -> dict[str, Any]:
    """Return the record of a full shard file in lugpi's own structure, after reading it once.

    Raises:
        InputError: a row was never written, or something does not read back as it was written.
    """
    strong = hashlib.sha256()
    valid, file_hash = read_back(descriptor, layout, sha256=strong)
    if file_hash == UNREADABLE:
        raise damaged(path, "the disk cannot read it back")
    if not is_intact(path, layout):
        raise damaged(path, "its structure does not read back as it was written")
    if not valid.all():
        raise damaged(path, f"{np.count_nonzero(~valid)} of {len(valid)} rows do not read back as they were written")
    plan = structure(layout)
    return {
        "first_row": layout.first_row,
        "rows": layout.rows,
        "bytes": plan.file_bytes,
        "offsets": dict(plan.offsets),
        "fingerprint": layout.fingerprint_digest,
        "flagged": flagged_rows(read_dataset(path, layout, FLAGS)),
        "xxh3_128": file_hash,
        "sha256": strong.hexdigest(),
    }


def make_final(partial: Path, final: Path) -> None:
    """Give a checked shard its final name, durably."""
    os.replace(partial, final)
    sync_folder(final.parent)


def flagged_rows(flags: NDArray[np.uint8]) -> dict[str, str]:
    """Return the local numbers of the rows that failed, each with its reason."""
    return {str(row): FLAG_REASONS.get(int(flags[row]), f"flag {flags[row]}") for row in np.flatnonzero(flags)}


def flag_of(reason: str) -> int:
    """Return the flag that ``flagged_rows`` gave this reason for."""
    return next((flag for flag, why in FLAG_REASONS.items() if why == reason), FLAG_NOT_FINITE)


def read_dataset(path: Path, layout: ShardLayout, name: str, offset: int | None = None) -> NDArray[Any]:
    """Return one dataset of a shard, which starts at ``offset`` or, by default, where this version of HDF5 puts it."""
    shape, dtype = layout.datasets[name]
    offset = structure(layout).offsets[name] if offset is None else offset
    with open_file(path, os.O_RDONLY) as descriptor:
        return np.frombuffer(read_at(descriptor, layout.bytes_of(name, layout.rows), offset), dtype).reshape(shape)


def sha256_of(path: Path) -> str:
    """Return the sha256 of a whole file, for publishing."""
    with open_file(path, os.O_RDONLY) as descriptor:
        return _hash_file(hashlib.sha256(), descriptor)


def check_record(folder: Path, record: Mapping[str, Any], *, content: bool) -> str | None:
    """Return what is wrong with a committed shard file (missing, size, content), or None; ``content`` reads the whole file."""
    try:
        with open_file(folder / record["file"], os.O_RDONLY) as descriptor:
            size = os.fstat(descriptor).st_size
            if size != record["bytes"]:
                return f"{size} bytes, {record['bytes']} expected"
            if content and _hash_file(xxhash.xxh3_128(), descriptor) != record["xxh3_128"]:
                return "its content differs from its hash"
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        if error.errno not in (errno.EIO, errno.ESTALE):
            raise
        return os.strerror(error.errno)
    return None


def damaged(path: Path, why: str) -> InputError:
    """Return the error for a damaged shard."""
    return InputError(
        got=f"{path}: {why}",
        expected="a shard as lugpi wrote it",
        do="run the same featurize command again: it regenerates the damaged rows, and only those",
    )


def _hash_file(hasher: Any, descriptor: int) -> str:
    for chunk in _chunks(descriptor):
        hasher.update(chunk)
    return str(hasher.hexdigest())


def _chunks(descriptor: int, offset: int = 0, stop: int = 1 << 62) -> Iterator[bytes]:
    while chunk := os.pread(descriptor, min(_CHUNK_BYTES, stop - offset), offset):
        yield chunk
        offset += len(chunk)


def _hash_row(layout: ShardLayout, row: int, parts: Mapping[str, Any]) -> int:
    seed = xxhash.xxh3_64_intdigest(layout.fingerprint_digest.encode(), seed=layout.first_row + row)
    hasher = xxhash.xxh3_64(seed=seed)
    for part in parts.values():
        hasher.update(part)
    return hasher.intdigest() or 1  # 0 means "never written"


def _row_of(layout: ShardLayout, datasets: Mapping[str, bytes], row: int) -> dict[str, bytes]:
    """Return one row of the small datasets."""
    sizes = {name: layout.bytes_of(name) for name in datasets}
    return {name: data[row * sizes[name] : (row + 1) * sizes[name]] for name, data in datasets.items()}


def _read_row(descriptor: int, layout: ShardLayout, row: int, offsets: Mapping[str, int]) -> dict[str, bytes]:
    """Return the bytes of one row in every dataset that its hash covers."""
    sizes = {name: layout.bytes_of(name) for name in layout.datasets if name != ROW_HASH}
    return {name: read_at(descriptor, size, offsets[name] + row * size) for name, size in sizes.items()}


def _write_row(descriptor: int, layout: ShardLayout, row: int, parts: Mapping[str, bytes]) -> None:
    offsets = structure(layout).offsets
    for name, data in {**parts, ROW_HASH: _hash_row(layout, row, parts).to_bytes(8, "little")}.items():
        write_at(descriptor, data, offsets[name] + row * len(data))


def _allocate(descriptor: int, path: Path, size: int) -> None:
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise InputError(
            got=f"no room for {path} ({size / 1e6:.0f} MB: {os.strerror(error.errno or 0)})",
            expected="space for a whole shard before the first image is generated",
            do="make room or choose another --run-dir, then run the same command again",
        ) from None
