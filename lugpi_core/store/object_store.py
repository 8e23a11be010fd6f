"""A token store in an object store: shards and records as in a local folder, and a local folder in which they are built and read.

Of a shard, the file is sent first, read back and compared; the record is sent last, under a name that is free. So a record in the store
tells of a file that is whole, and of two writers one record stands. What has no record does not exist, and is replaced by who computes it.
"""

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from lugpi_core.errors import InputError
from lugpi_core.files import make_folder, write_bytes
from lugpi_core.remote.address import address_of
from lugpi_core.remote.folder import RemoteFolder, Taken, measured
from lugpi_core.remote.results import pull_files, push_files
from lugpi_core.remote.run import open_run, remote_of
from lugpi_core.store.lease import locked
from lugpi_core.store.manifest import MANIFEST, RECORDS, Record, read_manifest, read_record, record_in, record_path
from lugpi_core.store.run_manifest import RUN, read_run, run_differences

# How long the record of another writer is waited for, whose file is there and differs from ours, and how often it is looked for.
GRACE_S, LOOK_S = 30.0, 5.0
_RECORD_NAME = re.compile(r"/shard-([0-9]{5,7})\.json\Z")


def mirror_of(store: Path) -> "ObjectStore | None":
    """Return the object store that a local store's files belong to, or None."""
    remote = remote_of(store.parent)
    return None if remote is None else ObjectStore(store, remote)


@contextmanager
def run_in_store(place: Path | None, scratch: Path | None, *, writes: bool = True) -> Iterator[None]:
    """For an address, have what is in the run there in its local folder during the block: all but shards and models, which are brought
    when they are read. Does nothing for a local folder.

    Args:
        place: ``--run-dir``.
        scratch: ``--scratch``.
        writes: send the run's single files afterwards, such as tables.

    Raises:
        InputError: as ``open_run``.
    """
    if place is None or address_of(place) is None:
        yield
        return
    run = open_run(place, scratch)
    with FileLock(run / ".remote.lock"):  # several processes may begin together
        if remote := remote_of(run):
            for name in remote.folders():
                if name.startswith("tokens"):
                    ObjectStore(run / name, remote).pull()
        pull_files(run)
    yield
    if writes:
        push_files(run)


def bring_shards(store: Path, column: str, records: Mapping[int, Record]) -> None:
    """Download the shards of a column that are not here, if the store's files belong to an object store; the first of several processes
    does so."""
    folder = store / column
    absent = [shard for shard, record in records.items() if not (folder / record["file"]).exists()]
    mirror = mirror_of(store) if absent else None
    if mirror is not None:
        with locked(folder):
            for shard in absent:
                if not (folder / records[shard]["file"]).exists():
                    mirror.fetch(column, shard, records[shard])


class ObjectStore:
    """The copy of a store in an object store; a ``Mirror`` for ``ColumnWriter``.

    Args:
        store: the local ``tokens`` folder.
        remote: the folder of the run.
    """

    def __init__(self, store: Path, remote: RemoteFolder) -> None:
        self._store, self._remote = store, remote
        self._records: dict[str, dict[int, Record]] = {}
        self._sent: dict[str, str] = {}  # sha256 of what is there, by name, of small files that may change

    def pull(self) -> None:
        """Bring the table of examples, the manifests and the records of all columns, in place of those that are here."""
        make_folder(self._store)
        for name in self._remote.files(self._store.name):
            self._bring(name)
        for column in self._remote.folders(self._store.name):
            if self._bring(f"{column}/{MANIFEST}"):
                self._records[column] = read_manifest(self._store / column)[1]
                self.records(column)

    def begin(self) -> bool:
        """Send the files that say what the store is, before anything is computed; return whether all of them are as they are here.

        If not, those of another machine, which was first, are here now, and have to be compared with what is wanted.

        Raises:
            InputError: the store cannot be written to.
        """
        first = [path for path in (self._store / RUN, *sorted(self._store.glob(f"*/{MANIFEST}"))) if path.is_file()]
        others = [path for path in first if not self._claim(path)]
        if not others:
            self._send_tables()
        return not others

    def finish(self) -> None:
        """Send the merged manifests and the tables that have changed."""
        for path in sorted(self._store.glob(f"*/{MANIFEST}")):
            self._send(path)
        self._send_tables()

    def records(self, column: str) -> Mapping[int, Record]:
        """Return the records of the column's shards that are final in the object store, by number; new ones are copied here."""
        folder = self._store / column
        if not (folder / MANIFEST).is_file():
            return {}
        known = self._records.setdefault(column, {})
        below = f"{self._store.name}/{column}/{RECORDS}"
        listed = {f"{below}/{name}": size for name, size in self._remote.files(below).items()}
        shards = {name: int(match[1]) for name in listed if (match := _RECORD_NAME.search(name))}
        spec, _ = read_manifest(folder)
        for name, data in self._remote.read_many({name: listed[name] for name, shard in shards.items() if shard not in known}).items():
            shard = shards[name]
            self._forget_other(folder, shard, read_record(folder, spec, shard), record_in(data, shard))
            write_bytes(record_path(folder, shard), data)
            if record := read_record(folder, spec, shard):
                known[shard] = record
        return known

    def publish(self, column: str, shard: int, record: Mapping[str, Any]) -> None:
        """Send a shard and then its record, and remove the local file.

        Raises:
            InputError: the store failed; or it has a record of other content for this shard.
        """
        folder, name = self._store / column, f"{self._store.name}/{column}/{record['file']}"
        path = folder / record["file"]
        ours = measured(path)[1]
        if ours != record["sha256"]:
            raise InputError(
                got=f"{path}, whose content differs from its record",
                expected="the shard as it was written",
                do="run the same command again: it computes the damaged rows, and only those",
            )
        self._refuse_other_record(column, shard, ours)
        try:
            self._remote.put_new(path, name)
        except Taken:
            self._await_record(column, shard, ours)
            self._remote.put(path, name)
        self._send_record(column, shard, ours)
        self._records.setdefault(column, {})[shard] = dict(record)
        path.unlink(missing_ok=True)

    def fetch(self, column: str, shard: int, record: Mapping[str, Any]) -> None:
        """Download a shard to its local place, and compare it with its record."""
        name = f"{self._store.name}/{column}/{record['file']}"
        self._remote.get(name, self._store / column / record["file"], sha256=record.get("sha256"), size=record["bytes"])

    def withdraw(self, column: str, shard: int, record: Mapping[str, Any]) -> None:
        """Take a shard back: its rows are brought here if they are whole; then its record goes, then its file. The manifest that is here
        lacks it already."""
        if not (self._store / column / record["file"]).exists():
            with suppress(InputError):
                self.fetch(column, shard, record)
        self._send(self._store / column / MANIFEST)
        self._remote.remove(self._record_name(column, shard))
        self._remote.remove(f"{self._store.name}/{column}/{record['file']}")
        self._records.get(column, {}).pop(shard, None)

    def faults(self, column: str, records: Mapping[int, Record], *, deep: bool) -> dict[int, str]:
        """Return what is wrong with each damaged shard that is there; ``deep`` reads every byte."""
        below = f"{self._store.name}/{column}"
        sizes = self._remote.files(below)
        faults: dict[int, str] = {}
        for shard, record in records.items():
            size = sizes.get(record["file"])
            if size is None:
                faults[shard] = "missing"
            elif size != record["bytes"]:
                faults[shard] = f"{size} bytes, {record['bytes']} expected"
            elif deep and self._remote.sha256(f"{below}/{record['file']}") != record.get("sha256"):
                faults[shard] = "its content differs from its sha256"
        return faults

    def _record_name(self, column: str, shard: int) -> str:
        return f"{self._store.name}/{column}/{RECORDS}/{record_path(self._store, shard).name}"

    def _refuse_other_record(self, column: str, shard: int, ours: str) -> bool:
        """Return whether the store has a record of our content. Raises InputError if it has one of another."""
        data = self._remote.read(self._record_name(column, shard))
        record = None if data is None else record_in(data, shard)
        if record is None:
            return False
        if record.get("sha256") != ours:
            raise InputError(
                got=f"shard {shard} of {column}, here with the sha256 {ours}, in {self._remote.address} with {record.get('sha256')}",
                expected="one content of a shard; machines of another kind compute other last bits",
                do="run the same command again: it keeps the shard that is there",
            )
        return True

    def _await_record(self, column: str, shard: int, ours: str) -> None:
        """Give the writer of another file time for its record, and return if there is none: that file was left behind."""
        until = time.monotonic() + GRACE_S
        while not self._refuse_other_record(column, shard, ours) and time.monotonic() < until:
            time.sleep(LOOK_S)

    def _send_record(self, column: str, shard: int, ours: str) -> None:
        path, name = record_path(self._store / column, shard), self._record_name(column, shard)
        try:
            self._remote.put_new(path, name)
        except Taken:
            if not self._refuse_other_record(column, shard, ours):  # no valid record
                self._remote.put(path, name)

    def _forget_other(self, folder: Path, shard: int, ours: Record | None, theirs: Record | None) -> None:
        """Remove a local shard file of other content than the record in the store tells of."""
        if ours is not None and theirs is not None and ours["xxh3_128"] != theirs.get("xxh3_128"):
            (folder / ours["file"]).unlink(missing_ok=True)

    def _send_tables(self) -> None:
        for path in sorted(self._store.iterdir()):
            if path.is_file() and not path.name.startswith("."):
                self._send(path)

    def _claim(self, path: Path) -> bool:
        """Send a file that no other machine has sent; if one has, and it is another, bring it and return False."""
        name = path.relative_to(self._store).as_posix()
        if name in self._sent and path.name == MANIFEST:
            return True  # it was brought, and may have been merged since
        try:
            self._remote.put_new(path, f"{self._store.name}/{name}")
        except Taken:
            wanted = read_run(self._store) if name == RUN else None
            self._bring(name)
            found = read_run(self._store) if name == RUN else None
            return wanted is not None and found is not None and not run_differences(found, wanted)
        self._sent[name] = measured(path)[1]
        return True

    def _send(self, path: Path) -> None:
        name, sha256 = path.relative_to(self._store).as_posix(), measured(path)[1]
        if self._sent.get(name) != sha256:
            self._remote.put(path, f"{self._store.name}/{name}")
            self._sent[name] = sha256

    def _bring(self, name: str) -> bool:
        """Copy a small file here; return whether there is one."""
        data = self._remote.read(f"{self._store.name}/{name}")
        if data is None:
            return False
        path = self._store / name
        make_folder(path.parent)
        write_bytes(path, data)
        if path.name == MANIFEST:
            make_folder(path.parent / RECORDS)  # tells that the column has begun, though no shard of it is here
        self._sent[name] = measured(path)[1]
        return True
