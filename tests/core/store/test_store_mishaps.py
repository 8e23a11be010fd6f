"""Mishaps that valid rows must survive: another version of HDF5, unreadable sectors, files that change under a reader."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from lugpi_core.errors import InputError
from lugpi_core.store import layout as layout_module
from lugpi_core.store.layout import structure
from lugpi_core.store.manifest import RECORDS, load_manifest
from lugpi_core.store.reader import ColumnReader
from lugpi_core.store.verify import check_store, take_back
from lugpi_core.store.writer import ColumnWriter
from tests.support.small_column import SPEC, claimed, filled, names_in, token_rows

SHARD = SPEC.shard_name(0)


@contextmanager
def another_hdf5(alignment: int) -> Iterator[None]:
    """Within the block, shards are written with other offsets, as another version of HDF5 may do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout_module, "ALIGNMENT_BYTES", alignment)
        structure.cache_clear()
        yield
    structure.cache_clear()


@pytest.fixture(params=[1, 2048], ids=["unaligned", "aligned otherwise"])
def foreign(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A store written by another version of HDF5."""
    with another_hdf5(request.param):
        filled(tmp_path)
    return tmp_path


def flip_row(store: Path, row: int) -> None:
    record = load_manifest(store / "clip")[1][0]
    path = store / "clip" / SHARD
    content = bytearray(path.read_bytes())
    content[record["offsets"]["tokens"] + row * 12] ^= 4
    path.write_bytes(content)


def test_a_store_written_by_another_version_of_hdf5_is_read(foreign: Path) -> None:
    assert load_manifest(foreign / "clip")[1][0]["offsets"] != dict(structure(SPEC.layout(0)).offsets)
    np.testing.assert_array_equal(ColumnReader(foreign, "clip").gather([6, 0, 3, 4]), token_rows()[[6, 0, 3, 4]])
    assert [finding for finding in check_store(foreign, deep=True) if finding.column] == []
    assert ColumnWriter(foreign, SPEC).taken_back == {}


def test_valid_rows_of_a_damaged_foreign_shard_are_kept(foreign: Path) -> None:
    flip_row(foreign, 2)
    assert [finding.rows for finding in check_store(foreign, deep=True) if finding.column] == [(2,)]
    column = ColumnWriter(foreign, SPEC)
    assert column.taken_back == {0: "its content differs from its hash"}
    writer = claimed(column, 0)
    assert writer.valid.tolist() == [True, True, False, True]
    writer.write(2, token_rows()[2:3], np.zeros(1, np.uint8))
    column.commit(0, writer)
    np.testing.assert_array_equal(ColumnReader(foreign, "clip").gather(range(7)), token_rows())


def test_an_unrecorded_foreign_file_is_set_aside_not_deleted(tmp_path: Path) -> None:
    with another_hdf5(2048):
        filled(tmp_path)
    content = (tmp_path / "clip" / SHARD).read_bytes()
    (tmp_path / "clip" / "manifest.json").unlink()
    shutil.rmtree(tmp_path / "clip" / RECORDS)
    writer = claimed(ColumnWriter(tmp_path, SPEC), 0)
    assert not writer.valid.any()
    writer.close()
    assert f"{SHARD}.unread" in names_in(tmp_path)
    assert (tmp_path / "clip" / f"{SHARD}.unread").read_bytes() == content


def test_a_reader_refuses_a_shard_that_was_cut_after_the_check(tmp_path: Path) -> None:
    filled(tmp_path)
    reader = ColumnReader(tmp_path, "clip")
    os.truncate(tmp_path / "clip" / SPEC.shard_name(1), 600)
    with pytest.raises(InputError, match=r"shard-00001-\w+\.h5: 600 bytes, \d+ expected"):
        reader.gather([5])


@contextmanager
def bad_sector(path: Path, offset: int) -> Iterator[None]:
    """Within the block, the disk cannot read ``path`` around a byte."""
    number, pread = path.stat().st_ino, os.pread

    def reading(descriptor: int, count: int, start: int) -> bytes:
        if os.fstat(descriptor).st_ino == number and start <= offset < start + count:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return pread(descriptor, count, start)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pread", reading)
        yield


def test_an_unreadable_sector_costs_only_its_own_row(tmp_path: Path) -> None:
    filled(tmp_path)
    path = tmp_path / "clip" / SHARD
    with bad_sector(path, structure(SPEC.layout(0)).offsets["tokens"] + 12 + 5):
        with pytest.raises(InputError, match=r"shard-00000-\w+\.h5: Input/output error"):
            ColumnReader(tmp_path, "clip")
        (finding,) = [finding for finding in check_store(tmp_path, deep=True) if finding.column]
        assert (finding.place, finding.rows) == (f"clip/{SPEC.shard_name(0)}", (1,))
        column = ColumnWriter(tmp_path, SPEC)
        assert column.taken_back == {0: "Input/output error"}
        writer = claimed(column, 0)
        assert writer.valid.tolist() == [True, False, True, True]
        writer.write(1, token_rows()[1:2], np.zeros(1, np.uint8))
        column.commit(0, writer)
    np.testing.assert_array_equal(ColumnReader(tmp_path, "clip").gather(range(7)), token_rows())


def test_a_repair_leaves_a_shard_to_the_process_that_is_writing_it(tmp_path: Path) -> None:
    column = filled(tmp_path)
    flip_row(tmp_path, 0)
    findings = check_store(tmp_path, deep=True)
    column.reopen(0, column.records[0])
    writer = claimed(column, 0)
    (busy,) = take_back(tmp_path, findings)
    assert f"process {os.getpid()}" in busy.owner
    assert writer.valid.tolist() == [False, True, True, True]
    writer.close()
    assert take_back(tmp_path, findings) == []


def test_a_store_of_a_later_version_is_left_alone(tmp_path: Path) -> None:
    filled(tmp_path)
    manifest = tmp_path / "clip" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(InputError, match="version 2; expected version 1; use the lugpi that made this store"):
        ColumnWriter(tmp_path, SPEC)
