"""Fill a column: claim shards, write them, make them final. Any number of processes may fill one column; killed ones are resumed."""

import os
import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lugpi_core.errors import InputError
from lugpi_core.files import open_file, read_at, sweep
from lugpi_core.fingerprint import earlier_form
from lugpi_core.runtime.meters import versions
from lugpi_core.store.column_map import ColumnMap, ShardPlace
from lugpi_core.store.layout import structure
from lugpi_core.store.lease import ShardBusy, locked, take_lease
from lugpi_core.store.manifest import (
    MANIFEST,
    ColumnSpec,
    Record,
    add_records,
    drop_record,
    final_names,
    load_manifest,
    open_manifest,
    plain_shard_name,
    refuse_other,
)
from lugpi_core.store.reader import refuse_damaged
from lugpi_core.store.shard import ShardWriter, check_record, check_rows, create_shard, is_foreign, is_intact, make_final, sha256_of

_DIGEST = re.compile(rb"[0-9a-f]{32}")


def missing_bytes(store: Path, spec: ColumnSpec) -> int:
    """Return how many bytes of disk a column still needs: whole files for the shards that do not exist in any form."""
    present = {path.name.replace(".", "-").split("-")[1] for path in (store / spec.name).glob("shard-*.h5*")}
    absent = [shard for shard in range(spec.shards) if f"{shard:05d}" not in present]
    full, last = (structure(spec.layout(shard)).file_bytes for shard in (0, spec.shards - 1))
    return len(absent) * full - (full - last if spec.shards - 1 in absent else 0)


class ColumnWriter:
    """Fills one column shard by shard; can be killed at any moment and resumed, alone or next to other processes.

    Opening it keeps committed shards that match their records, and the valid rows of all others. Unfinished files of killed processes are
    removed.

    Args:
        store: the ``tokens`` folder.
        spec: the column's description.
        check_content: compare every committed shard with its hash (about 7 GB/s), not only its size and structure.

    Attributes:
        records: the manifest's records of the final shards, by number, as last read.
        taken_back: the final shards that turned out to be damaged, each with what was wrong.

    Raises:
        InputError: the column exists with another fingerprint; the differing fields are named.
    """

    def __init__(self, store: Path, spec: ColumnSpec, *, check_content: bool = True) -> None:
        self.folder = store / spec.name
        if not (self.folder / MANIFEST).exists():
            spec = self._spec_of_files(spec)  # before a manifest of ours would lock their owner out
        self.spec, self.records = open_manifest(self.folder, spec)
        self._offsets: dict[int, dict[str, int]] = {}  # of shards taken back, which another version of HDF5 may have written
        sweep(self.folder)
        faults = {shard: self._fault(shard, record, check_content) for shard, record in self.records.items()}
        self.taken_back = {shard: fault for shard, fault in faults.items() if fault and self.reopen(shard, self.records[shard])}
        self.refresh()
        with locked(self.folder) as lock:
            self._sweep_leases(lock)

    def is_committed(self, shard: int) -> bool:
        """Whether the shard is final, as of the last ``refresh``."""
        return shard in self.records

    def refresh(self) -> None:
        """Read the manifest again, because other processes may have made shards final.

        Raises:
            InputError: the column now has other settings.
        """
        found, self.records = load_manifest(self.folder)
        refuse_other(self.folder, found, self.spec)

    def read_committed(self, shard: int) -> NDArray[np.float16]:
        """Return a copy of a final shard's rows, float16 [m, *row_shape], after comparing the file with its hash.

        Raises:
            InputError: the file is damaged.
        """
        record = self.records[shard]
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
            self.refresh()
            if self.is_committed(shard):
                return None
            lease = take_lease(self._lease(shard), lock)
        try:
            self._prepare(shard)
            return ShardWriter(self._partial(shard), self.spec.layout(shard), lease)
        except BaseException:
            lease.release()
            raise

    def commit(self, shard: int, writer: ShardWriter) -> None:
        """Make a full shard final: sync it, read it back, rename it, record it, close it.

        Raises:
            InputError: a row was never written, or does not read back as it was written.
        """
        record = writer.sync_and_check() | {"file": self.spec.shard_name(shard), "versions": dict(versions())}
        with locked(self.folder):
            self.refresh()
            writer.confirm()
            make_final(writer.path, self.folder / record["file"])
            add_records(self.folder, self.spec, {shard: record})
        self.records[shard] = record
        writer.close()

    def add_sha256(self) -> None:
        """Record the sha256 of the final shards that lack it. It is slower than a fast disk, and not needed before the end."""
        new = {}
        for shard, record in self.records.items():
            if "sha256" not in record:
                with suppress(FileNotFoundError):  # another process has taken it back
                    strong = sha256_of(self.folder / record["file"])
                    if check_record(self.folder, record, content=True) is None:  # never the hash of a damaged file
                        new[shard] = strong
        if not new:
            return
        with locked(self.folder):
            _, records = load_manifest(self.folder)
            same = [shard for shard in new if shard in records and records[shard]["xxh3_128"] == self.records[shard]["xxh3_128"]]
            add_records(self.folder, self.spec, {shard: records[shard] | {"sha256": new[shard]} for shard in same})
        self.refresh()

    def reopen(self, shard: int, judged: Record) -> bool:
        """Take a damaged final shard back: its rows are checked one by one when it is claimed. Return whether that was done.

        Args:
            shard: its number.
            judged: the record of the damaged shard; nothing is done if another process has replaced the shard in the meantime.
        """
        with locked(self.folder):
            _, records = load_manifest(self.folder)
            if shard not in records or records[shard]["xxh3_128"] != judged["xxh3_128"]:
                return False
            drop_record(self.folder, shard)
        self.records.pop(shard, None)
        self._offsets[shard] = judged["offsets"]
        return True

    def _prepare(self, shard: int) -> None:
        """Create a ``.partial`` of full structure with every valid row of any file of this shard."""
        layout, partial = self.spec.layout(shard), self._partial(shard)
        finals = [self.folder / name for name in final_names(self.spec, shard)]
        found = [path for path in (*finals, partial, partial.with_suffix(".suspect")) if path.is_file()]
        if found == [partial] and is_intact(partial, layout):
            return
        # A final file without a record was renamed but not recorded (killed in between), or its record was dropped. It is copied, not
        # resumed in place, because a reader may have it mapped.
        offsets = self._offsets.get(shard)
        for path in [path for path in found if not check_rows(path, layout, offsets).any() and is_foreign(path, layout)]:
            os.replace(path, path.with_name(f"{path.name}.unread"))  # not ours to delete
            found.remove(path)
        create_shard(partial, layout, found, offsets)
        for path in found:
            if path != partial:
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
        for shard in self.records:
            path = self._lease(shard)
            if path.exists():
                try:
                    take_lease(path, lock).drop()
                except ShardBusy:
                    continue

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

    def _lease(self, shard: int) -> Path:
        return self.folder / f".{plain_shard_name(shard)}.lease"

    def _partial(self, shard: int) -> Path:
        return self.folder / f"{plain_shard_name(shard)}.partial"
