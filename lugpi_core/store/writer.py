"""Fill a column: claim shards, write them, make them final. Any number of processes may fill one column; killed ones are resumed."""

import os
import re
import secrets
import time
from collections.abc import Container
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lugpi_core.errors import InputError
from lugpi_core.files import host_name, is_orphan, make_folder, name_new, open_file, read_at, sweep
from lugpi_core.fingerprint import earlier_form
from lugpi_core.runtime.meters import versions
from lugpi_core.store.column_map import ColumnMap, ShardPlace
from lugpi_core.store.layout import structure
from lugpi_core.store.lease import ShardBusy, has_locks, locked, take_lease
from lugpi_core.store.manifest import (
    MANIFEST,
    RECORDS,
    ColumnSpec,
    Record,
    RecordFiles,
    drop_record,
    final_names,
    lease_path,
    merge_records,
    open_manifest,
    plain_shard_name,
    read_manifest,
    read_record,
    read_record_files,
    refuse_other,
    with_files,
    write_record,
)
from lugpi_core.store.mirror import Mirror
from lugpi_core.store.reader import refuse_damaged
from lugpi_core.store.shard import (
    ShardWriter,
    check_record,
    check_rows,
    create_shard,
    is_foreign,
    is_intact,
    make_final,
    read_record_of,
    sha256_of,
)

_DIGEST = re.compile(rb"[0-9a-f]{32}")


def missing_bytes(store: Path, spec: ColumnSpec) -> int:
    """Return how many bytes of disk a column still needs: whole files for the shards that do not exist in any form."""
    folder = store / spec.name
    names = os.listdir(folder) if folder.is_dir() else []
    present = {name.replace(".", "-").split("-")[1] for name in names if name.startswith("shard-")}
    absent = [shard for shard in range(spec.shards) if f"{shard:05d}" not in present]
    full, last = (structure(spec.layout(shard)).file_bytes for shard in (0, spec.shards - 1))
    return len(absent) * full - (full - last if spec.shards - 1 in absent else 0)


class ColumnWriter:
    """Fills one column shard by shard; can be killed at any moment and resumed, alone or next to other processes.

    Opening it keeps final shards that match their records, and the valid rows of all others. Unfinished files of killed processes are
    removed.

    Args:
        store: the ``tokens`` folder.
        spec: the column's description.
        check_content: compare every final shard with its hash (about 7 GB/s), not only its size and structure.
        shards: those that are checked; None = all.
        mirror: where final shards go, too; then only those that are there count as final.

    Attributes:
        records: the records of the final shards, by number, as last read.
        taken_back: the final shards that turned out to be damaged, each with what was wrong.
        has_leases: whether the file system has locks, so that each shard has one writer at a time. If not, several processes may write
            one shard, each a file of its own, and the first to be complete stays.
        leases_reach_all: whether those keep every other writer out; not with a mirror, for which other machines may write too.

    Raises:
        InputError: the column exists with another fingerprint; the differing fields are named. Or its folders cannot be written to.
    """

    def __init__(
        self,
        store: Path,
        spec: ColumnSpec,
        *,
        check_content: bool = True,
        shards: Container[int] | None = None,
        mirror: Mirror | None = None,
    ) -> None:
        self.folder = store / spec.name
        if not (self.folder / MANIFEST).exists():
            spec = self._spec_of_files(spec)  # before a manifest of ours would lock their owner out
        self.spec = open_manifest(self.folder, spec)
        if (self.folder / RECORDS).exists():
            make_folder(self.folder / RECORDS)  # raises before anything is computed that could not be recorded
        self.has_leases = has_locks(self.folder)
        self.leases_reach_all = self.has_leases and mirror is None
        self._own_name = "" if self.has_leases else f".{host_name()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._mirror = mirror
        self._manifest_stamp: tuple[int, ...] = ()
        self._merged: dict[int, Record] = {}
        self._files: RecordFiles = {}
        self.records: dict[int, Record] = {}
        self._begun_s: dict[int, float] = {}
        self._seen: dict[Path, tuple[int, float]] = {}  # leases of other machines
        self._offsets: dict[int, dict[str, int]] = {}  # of shards taken back, which another version of HDF5 may have written
        self._adopt_orphans()
        sweep(self.folder)
        sweep(self.folder / RECORDS)
        local = self._local_records()
        mirrored = self._mirrored()
        ours = {shard: record for shard, record in local.items() if (shards is None or shard in shards) and shard not in mirrored}
        faults = {shard: self._fault(shard, record, check_content) for shard, record in ours.items()}
        self.taken_back = {shard: fault for shard, fault in faults.items() if fault and self.reopen(shard, local[shard])}
        if mirror is not None:
            for shard in [shard for shard, fault in faults.items() if fault is None]:  # a run was killed before they were there
                mirror.publish(spec.name, shard, local[shard])
        self.refresh()
        with locked(self.folder) as lock:
            self._sweep_leases(lock)

    def is_committed(self, shard: int) -> bool:
        """Whether the shard is final, as of the last ``refresh``."""
        return shard in self.records

    def refresh(self) -> None:
        """Read the records that have changed, because other processes may have made shards final.

        Raises:
            InputError: the column now has other settings.
        """
        local = self._local_records()
        self.records = local if self._mirror is None else self._mirrored()

    def read_committed(self, shard: int) -> NDArray[np.float16]:
        """Return a copy of a final shard's rows, float16 [m, *row_shape], after comparing the file with its hash.

        Raises:
            InputError: the file is damaged.
        """
        record = self.records[shard]
        if self._mirror is not None and not (self.folder / record["file"]).exists():
            self._mirror.fetch(self.spec.name, shard, record)
        refuse_damaged(self.folder, record, content=True)
        place = ShardPlace(self.folder / record["file"], self.spec.layout(shard), record["offsets"], record["bytes"])
        return np.array(ColumnMap([place]).view(self.spec.what, 0))

    def claim(self, shard: int) -> ShardWriter | None:
        """Return the shard for writing, new or resumed, under a lease that its ``close`` releases; None if it is final.

        Raises:
            ShardBusy: a running process is writing it.
            InputError: the disk has no room for it.
        """
        with locked(self.folder) as lock:
            self._look_at(shard)
            if self.is_committed(shard):
                return None
            lease = take_lease(lease_path(self.folder, shard), lock, self._seen) if self.has_leases else None
        try:
            self._begun_s[shard] = time.monotonic()
            self._prepare(shard)
            abandoned = self.folder / f"{plain_shard_name(shard)}.partial"
            return ShardWriter(self._partial(shard), self.spec.layout(shard), lease, left_as=None if self.has_leases else abandoned)
        except BaseException:
            if lease is not None:
                lease.release()
            raise

    def commit(self, shard: int, writer: ShardWriter) -> None:
        """Make a full shard final: sync it, read it back, rename it, write its record, close it.

        Raises:
            InputError: a row was never written, or does not read back as it was written.
        """
        file = self.spec.shard_name(shard)
        record = {**writer.sync_and_check(), "file": file, "versions": dict(versions())}
        seconds = round(time.monotonic() - self._begun_s.pop(shard), 3) if shard in self._begun_s else None
        with locked(self.folder):
            writer.confirm()
            if self.has_leases:
                make_final(writer.path, self.folder / file)
            else:
                record |= self._final_among_others(shard, writer.path)
            write_record(self.folder, self.spec, shard, record, seconds=seconds)
        if self._mirror is not None:
            self._mirror.publish(self.spec.name, shard, record)
        self.records[shard] = record
        writer.close()

    def finish(self) -> bool:
        """Write all records into the manifest if no shard is missing; return whether that is so.

        Records of earlier versions may lack their sha256, which is computed here.
        """
        self.refresh()
        if len(self.records) < self.spec.shards:
            return False
        if self._mirror is None:
            for shard, record in self.records.items():
                if "sha256" not in record:
                    with suppress(FileNotFoundError):  # another process has taken it back
                        strong = sha256_of(self.folder / record["file"])
                        if check_record(self.folder, record, content=True) is None:  # never the hash of a damaged file
                            write_record(self.folder, self.spec, shard, record | {"sha256": strong})
        merge_records(self.folder, self._mirrored())
        self.refresh()
        return len(self.records) == self.spec.shards

    def is_intact(self, shard: int) -> bool:
        """Whether a shard is final and its file has the content that its record states; a damaged one is taken back."""
        self._look_at(shard)
        record = self.records.get(shard)
        if record is None:
            return False
        if self._mirror is not None:
            return True
        if self._fault(shard, record, check_content=True) is None:
            return True
        self.reopen(shard, record)
        return False

    def reopen(self, shard: int, judged: Record) -> bool:
        """Take a damaged final shard back: its rows are checked one by one when it is claimed. Return whether that was done.

        Args:
            shard: its number.
            judged: the record of the damaged shard; nothing is done if another process has replaced the shard in the meantime.
        """
        with locked(self.folder):
            standing = self._local_records().get(shard)
            if standing is None or standing["xxh3_128"] != judged["xxh3_128"]:
                return False
            drop_record(self.folder, shard)
        if self._mirror is not None and shard in self._mirror.records(self.spec.name):
            self._mirror.withdraw(self.spec.name, shard, standing)
        self.records.pop(shard, None)
        self._offsets[shard] = judged["offsets"]
        return True

    def _local_records(self) -> dict[int, Record]:
        self._read_manifest()
        self._files = read_record_files(self.folder, self.spec, self._files, skip=self._merged)
        return with_files(self._merged, self._files)

    def _mirrored(self) -> dict[int, Record]:
        return {} if self._mirror is None else dict(self._mirror.records(self.spec.name))

    def _read_manifest(self) -> None:
        state = (self.folder / MANIFEST).stat()
        stamp = (state.st_ino, state.st_mtime_ns, state.st_size)
        if stamp != self._manifest_stamp:
            found, self._merged = read_manifest(self.folder)
            refuse_other(self.folder, found, self.spec)
            self._manifest_stamp = stamp

    def _look_at(self, shard: int) -> None:
        """Read what has changed of one shard's record."""
        self._read_manifest()
        if self._mirror is not None:
            record = read_record(self.folder, self.spec, shard)
            if record is not None and not (self.folder / record["file"]).exists():  # another process of this machine has sent it
                self.records[shard] = record
            return
        record = read_record(self.folder, self.spec, shard) or self._merged.get(shard)
        if record is None:
            self.records.pop(shard, None)
        else:
            self.records[shard] = record

    def _final_among_others(self, shard: int, path: Path) -> Record:
        """Give a checked shard its final name unless another process was first; return hashes and flags of what lies there."""
        final, layout = self.folder / self.spec.shard_name(shard), self.spec.layout(shard)
        if not name_new(path, final):
            try:
                with open_file(final, os.O_RDONLY) as descriptor:
                    standing = read_record_of(descriptor, final, layout)
            except InputError:  # not a whole shard
                make_final(path, final)
                return {}
            path.unlink()
            return standing
        return {}

    def _prepare(self, shard: int) -> None:
        """Create a ``.partial`` of full structure with every valid row of any file of this shard."""
        layout, partial = self.spec.layout(shard), self._partial(shard)
        left = self.folder / f"{plain_shard_name(shard)}.partial"
        finals = [self.folder / name for name in final_names(self.spec, shard)]
        found = [path for path in (*finals, left, left.with_suffix(".suspect")) if path.is_file()]
        if found == [partial] and is_intact(partial, layout):
            return
        # A final file without a record was renamed but not recorded (killed in between), or its record was dropped. It is copied, not
        # resumed in place, because a reader may have it mapped.
        offsets = self._offsets.get(shard)
        for path in list(found):
            with suppress(FileNotFoundError):  # where there are no leases, others may remove it
                if not check_rows(path, layout, offsets).any() and is_foreign(path, layout):
                    os.replace(path, path.with_name(f"{path.name}.unread"))  # not ours to delete
                    found.remove(path)
        create_shard(partial, layout, found, offsets)
        for path in found:
            if path != partial and (self.has_leases or path != finals[0]):  # without leases it may be about to get its record
                path.unlink(missing_ok=True)

    def _fault(self, shard: int, record: Record, check_content: bool) -> str | None:
        if fault := check_record(self.folder, record, content=check_content):
            return fault
        layout = self.spec.layout(shard)
        foreign = record["offsets"] != structure(layout).offsets  # written by another version of HDF5
        with suppress(FileNotFoundError):  # another process has taken it back
            return None if foreign or is_intact(self.folder / record["file"], layout) else "its structure is not that of a shard"
        return "missing"

    def _sweep_leases(self, lock: int) -> None:
        for path in sorted(self.folder.glob(".shard-*.lease")):
            if self.is_committed(int(path.name.split("-")[1].split(".")[0])):
                try:
                    take_lease(path, lock).drop()
                except ShardBusy:
                    continue

    def _adopt_orphans(self) -> None:
        """Keep the rows of processes that were killed where there are no leases: their files get the name of an unfinished shard."""
        for path in sorted(self.folder.glob("shard-*.h5.*-*.partial")):
            if is_orphan(path):
                with suppress(FileNotFoundError):
                    os.replace(path, path.with_name(f"{path.name.split('.h5.')[0]}.h5.partial"))

    def _spec_of_files(self, spec: ColumnSpec) -> ColumnSpec:
        """Return the spec with the fingerprint that the shards of a column without a manifest state: its own, or its earlier form.

        Raises:
            InputError: they state another. Their rows would be invalid, and days of work overwritten.
        """
        ours = spec.digest.encode()
        offset = structure(spec.layout(0)).frame[0][1].find(ours)
        earlier = replace(spec, fingerprint=earlier_form(spec.fingerprint))
        for path in sorted(self.folder.glob("shard-*")):
            if not path.is_file():
                continue
            with open_file(path, os.O_RDONLY) as descriptor:
                found = read_at(descriptor, len(ours), offset)
            if found == earlier.digest.encode():
                return earlier
            if found != ours and _DIGEST.fullmatch(found):
                raise InputError(
                    got=f"{path}, which was made with other settings, and no manifest that names them",
                    expected=f"a column of the fingerprint {ours.decode()}",
                    do=f"move {self.folder} away, or give another --run-dir",
                )
        return spec

    def _partial(self, shard: int) -> Path:
        return self.folder / f"{plain_shard_name(shard)}{self._own_name}.partial"
