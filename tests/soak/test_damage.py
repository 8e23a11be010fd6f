"""Flipped bits and truncated files: each is detected before a row is read, and only what it hit is computed again."""

import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lugpi_core.errors import InputError
from lugpi_core.store.layout import structure
from lugpi_core.store.manifest import MANIFEST, RECORDS, load_manifest, record_path
from lugpi_core.store.reader import ColumnReader
from lugpi_core.store.sealed_file import read_sealed, sealed_bytes
from lugpi_core.store.verify import check_store
from tests.soak.worker import Log, Small, check_complete, check_rows, fill_store, undisturbed

SMALL = Small(rows=14, shard_rows=4, block=2)
TABLE = "table.h5"
ABOUT = {"corpus": "topics", "corpus_fingerprint": "0123456789abcdef"}


def _table_bytes() -> bytes:
    def build(file: Any) -> None:
        file["drawing"] = np.arange(40, dtype="<i8")
        file["split"] = np.arange(40, dtype="u1") % 3

    return sealed_bytes(ABOUT, build)


@dataclass
class Damaged:
    """A store, and a small sealed file next to it, that are damaged and repaired again and again."""

    folder: Path
    store: Path
    chance: random.Random

    def __post_init__(self) -> None:
        fill_store(self.store, SMALL, Log(self.folder / "log"))
        (self.folder / TABLE).write_bytes(_table_bytes())
        self.files = [*(self.store / name for name in undisturbed(SMALL)), self.folder / TABLE]

    def any_byte(self) -> tuple[Path, int]:
        """Choose any byte."""
        sizes = [path.stat().st_size for path in self.files]
        path = self.chance.choices(self.files, sizes)[0]
        return path, self.chance.randrange(path.stat().st_size)

    def metadata_byte(self) -> tuple[Path, int]:
        """Choose a byte of the metadata."""
        path = self.chance.choice(self.files)
        if path.name == TABLE:
            return path, self.chance.randrange(len(path.read_bytes().rstrip(b"\0").split(b"\n")[0]))
        if path.suffix == ".json":
            return path, self.chance.randrange(path.stat().st_size)
        spec = {spec.name: spec for spec in SMALL.specs}[path.parent.name]
        offset, data = self.chance.choice(structure(spec.layout(int(path.name[6:11]))).frame)
        return path, offset + self.chance.randrange(len(data))

    def row_byte(self) -> tuple[Path, int]:
        """Choose a byte of a dataset; in such small files most bytes are structure."""
        spec, shard = self.chance.choice(SMALL.specs), self.chance.randrange(SMALL.specs[0].shards)
        layout = spec.layout(shard)
        name = self.chance.choice(list(layout.datasets))
        offset = structure(layout).offsets[name] + self.chance.randrange(layout.bytes_of(name, layout.rows))
        return self.store / spec.name / spec.shard_name(shard), offset

    def state(self) -> dict[Path, tuple[int, int]]:
        """Return inode and modification time of each file: what changes when it is written or replaced."""
        return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in self.files}

    def is_detected(self, path: Path, before: Any) -> bool:
        """Whether reading refuses the damaged file; also True if its content means the same as before."""
        try:
            if path.name == TABLE:
                about, arrays = read_sealed(path)
                return (about, {name: array.tolist() for name, array in arrays.items()}) == before
            if path.suffix == ".json" and load_manifest(_column_of(path)) != before:
                return False
            ColumnReader(self.store, _column_of(path).name, check_content=True)
            return path.suffix == ".json"
        except InputError:
            return True

    def meaning(self, path: Path) -> Any:
        """Return the content of a metadata file."""
        if path.name == TABLE:
            about, arrays = read_sealed(path)
            return about, {name: array.tolist() for name, array in arrays.items()}
        return load_manifest(_column_of(path))

    def repair(self, path: Path) -> int:
        """Repair as a user would, check that no other file was touched, and return how many blocks were computed again.

        The manifest has a copy of each record, so a damaged record file is needed by nobody: it is repaired without a manifest.
        """
        before, log = self.state(), Log(self.folder / "repaired")
        if path.name == TABLE:
            path.write_bytes(_table_bytes())
            return 0
        column = _column_of(path)
        if path.suffix == ".json":
            (column / MANIFEST).unlink()
        fill_store(self.store, SMALL, log)
        check_complete(self.store, SMALL)
        touched = {file for file, state in self.state().items() if state != before.get(file)} | {path}
        allowed = {column / MANIFEST}
        if path.name != MANIFEST:
            spec, shard = {spec.name: spec for spec in SMALL.specs}[column.name], int(path.name[6:11])
            allowed |= {column / spec.shard_name(shard), record_path(column, shard)}
        assert touched <= allowed, touched
        blocks = len(log.lines())
        log.path.unlink(missing_ok=True)
        return blocks


@pytest.fixture
def damaged(tmp_path: Path) -> Damaged:
    return Damaged(tmp_path, tmp_path / "tokens", random.Random(0))


def _column_of(path: Path) -> Path:
    return path.parent.parent if path.parent.name == RECORDS else path.parent


def _flip(path: Path, offset: int, bit: int) -> None:
    descriptor = os.open(path, os.O_RDWR)
    os.pwrite(descriptor, bytes([os.pread(descriptor, 1, offset)[0] ^ (1 << bit)]), offset)
    os.close(descriptor)


def test_every_flipped_bit_is_detected_and_only_its_block_redone(
    damaged: Damaged, campaign: Callable[[int, int], int], report: Callable[[str], None]
) -> None:
    flips, redone, missed = campaign(80, 2000), 0, []
    for n in range(flips):
        path, offset = (damaged.any_byte, damaged.metadata_byte, damaged.row_byte, damaged.metadata_byte)[n % 4]()
        before = damaged.meaning(path)
        _flip(path, offset, damaged.chance.randrange(8))
        if not damaged.is_detected(path, before):
            missed.append((path.name, offset))
        blocks = damaged.repair(path)
        assert blocks <= 1, (path, offset)  # a bit hits at most one row, which is computed again with its block
        redone += blocks
    assert missed == []
    report(f"flipped bits: {flips}, detected {flips - len(missed)}, blocks redone {redone}, other files touched 0")


def test_every_truncated_file_is_detected_and_redone(
    damaged: Damaged, campaign: Callable[[int, int], int], report: Callable[[str], None]
) -> None:
    cuts, redone = campaign(20, 200), 0
    for _ in range(cuts):
        path = damaged.chance.choice(damaged.files)
        before = damaged.meaning(path)
        os.truncate(path, damaged.chance.randrange(path.stat().st_size))
        assert damaged.is_detected(path, before), path
        redone += damaged.repair(path)
    report(f"truncated files: {cuts}, detected {cuts}, blocks redone {redone}")


def test_verify_names_the_rows_that_a_flipped_bit_hit(damaged: Damaged, campaign: Callable[[int, int], int]) -> None:
    for _ in range(campaign(10, 100)):
        spec = damaged.chance.choice(SMALL.specs)
        row = damaged.chance.randrange(SMALL.rows)
        shard, local = divmod(row, SMALL.shard_rows)
        layout = spec.layout(shard)
        path = damaged.store / spec.name / spec.shard_name(shard)
        offset = structure(layout).offsets[spec.what] + layout.bytes_of(spec.what, local)
        _flip(path, offset + damaged.chance.randrange(layout.bytes_of(spec.what)), damaged.chance.randrange(8))
        found = [(finding.place, finding.rows) for finding in check_store(damaged.store, deep=True) if finding.kind == "damaged"]
        assert found == [(f"{spec.name}/{path.name}", (row,))]
        damaged.repair(path)
    assert check_rows(damaged.store, SMALL) == 2 * SMALL.rows
