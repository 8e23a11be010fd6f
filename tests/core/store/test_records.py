"""Record files: written last, one for each shard; what lies beside them, is torn, or is another's counts for nothing."""

import fcntl
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lugpi_core.errors import InputError
from lugpi_core.files import host_name
from lugpi_core.store import shard as shard_module
from lugpi_core.store.manifest import RECORDS, load_manifest, merge_records, plain_shard_name, read_manifest, record_path, write_record
from lugpi_core.store.reader import ColumnReader
from lugpi_core.store.verify import check_store, take_back
from lugpi_core.store.writer import ColumnWriter
from tests.support.read_only import make_read_only
from tests.support.small_column import SPEC, as_earlier_versions, claimed, commit_shard, filled, names_in, token_rows, write_all


def _read(store: Path) -> np.ndarray:
    return ColumnReader(store, "clip").gather(range(7))


def test_a_commit_writes_a_record_file_and_leaves_the_manifest(tmp_path: Path) -> None:
    column = ColumnWriter(tmp_path, SPEC)
    manifest = (tmp_path / "clip" / "manifest.json").read_bytes()
    commit_shard(column, 1)
    commit_shard(column, 0)
    assert (tmp_path / "clip" / "manifest.json").read_bytes() == manifest
    value = json.loads(record_path(tmp_path / "clip", 1).read_text())
    assert (value["shard"], value["record"], value["by"]["pid"]) == (1, column.records[1], os.getpid())
    assert list(load_manifest(tmp_path / "clip")[1]) == [0, 1]
    np.testing.assert_array_equal(_read(tmp_path), token_rows())


def test_whoever_ends_last_merges_the_records(tmp_path: Path) -> None:
    first, second = ColumnWriter(tmp_path, SPEC), ColumnWriter(tmp_path, SPEC)
    commit_shard(first, 0)
    assert not first.finish()
    assert read_manifest(tmp_path / "clip")[1] == {}
    commit_shard(second, 1)
    assert second.finish()
    merged = (tmp_path / "clip" / "manifest.json").read_bytes()
    assert list(read_manifest(tmp_path / "clip")[1]) == [0, 1]
    assert first.finish()
    shutil.rmtree(tmp_path / "clip" / RECORDS)
    assert (tmp_path / "clip" / "manifest.json").read_bytes() == merged
    np.testing.assert_array_equal(_read(tmp_path), token_rows())


def test_what_a_killed_process_left_beside_the_records_is_removed(tmp_path: Path) -> None:
    commit_shard(ColumnWriter(tmp_path, SPEC), 0)
    left = record_path(tmp_path / "clip", 1).with_name(f".shard-00001.json.{host_name()}-{1 << 22}-00000000.partial")
    left.touch()
    ColumnWriter(tmp_path, SPEC)
    assert os.listdir(tmp_path / "clip" / RECORDS) == ["shard-00000.json"]


def test_a_half_finished_column_of_an_earlier_version_is_continued(tmp_path: Path) -> None:
    commit_shard(ColumnWriter(tmp_path, SPEC), 0)
    as_earlier_versions(tmp_path / "clip")
    column = ColumnWriter(tmp_path, SPEC)
    assert (list(column.records), column.taken_back) == ([0], {})
    commit_shard(column, 1)
    assert column.finish()
    assert all("sha256" in record for record in read_manifest(tmp_path / "clip")[1].values())
    np.testing.assert_array_equal(_read(tmp_path), token_rows())


def _torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def _changed(path: Path) -> None:
    path.write_text(path.read_text().replace('"rows": 4', '"rows": 3'))


def _another_shards(path: Path) -> None:
    path.write_bytes(path.with_name("shard-00001.json").read_bytes())


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    path.rmdir()


@pytest.mark.parametrize("damage", [_torn, _changed, _another_shards, _folder, Path.unlink])
def test_a_shard_without_a_valid_record_does_not_exist_and_loses_no_row(tmp_path: Path, damage: Callable[[Path], Any]) -> None:
    filled(tmp_path)
    damage(record_path(tmp_path / "clip", 0))
    assert list(load_manifest(tmp_path / "clip")[1]) == [1]
    with pytest.raises(InputError, match="with 3 of 7 rows"):
        ColumnReader(tmp_path, "clip")
    (finding,) = [finding for finding in check_store(tmp_path, deep=True) if finding.column]
    assert (finding.kind, finding.rows, finding.shard) == ("missing", (), 0)
    column = ColumnWriter(tmp_path, SPEC)
    writer = claimed(column, 0)
    assert writer.valid.all()
    column.commit(0, writer)
    np.testing.assert_array_equal(_read(tmp_path), token_rows())


def test_a_record_without_its_shard_is_dropped(tmp_path: Path) -> None:
    filled(tmp_path)
    (tmp_path / "clip" / SPEC.shard_name(0)).unlink()
    with pytest.raises(InputError, match=r"shard-00000-\w+\.h5: missing"):
        ColumnReader(tmp_path, "clip")
    column = ColumnWriter(tmp_path, SPEC)
    assert column.taken_back == {0: "missing"}
    assert not record_path(tmp_path / "clip", 0).exists()
    commit_shard(column, 0)
    np.testing.assert_array_equal(_read(tmp_path), token_rows())


def test_a_record_never_makes_other_rows_readable(tmp_path: Path) -> None:
    filled(tmp_path)
    path = tmp_path / "clip" / SPEC.shard_name(0)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match="its content differs from its hash"):
        ColumnReader(tmp_path, "clip")
    merge_records(tmp_path / "clip")
    with pytest.raises(InputError, match="its content differs from its hash"):
        ColumnReader(tmp_path, "clip")


def test_foreign_files_among_the_records_are_ignored(tmp_path: Path) -> None:
    filled(tmp_path)
    records = tmp_path / "clip" / RECORDS
    for name in ("shard-00000.json.bak", "shard-0.json", "notes.txt", "shard-00009.json", ".shard-00001.json.1234abcd-1-1234abcd.partial"):
        (records / name).write_text("{}")
    assert list(load_manifest(tmp_path / "clip")[1]) == [0, 1]
    assert ColumnWriter(tmp_path, SPEC).finish()
    np.testing.assert_array_equal(_read(tmp_path), token_rows())


def test_a_repaired_shard_is_dropped_from_manifest_and_records(tmp_path: Path) -> None:
    column = filled(tmp_path)
    column.finish()
    path = tmp_path / "clip" / SPEC.shard_name(0)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert take_back(tmp_path, check_store(tmp_path, deep=True)) == []
    assert list(load_manifest(tmp_path / "clip")[1]) == [1]
    commit_shard(ColumnWriter(tmp_path, SPEC), 0)
    np.testing.assert_array_equal(_read(tmp_path), token_rows())


def test_the_newer_record_of_a_file_wins_when_they_are_merged(tmp_path: Path) -> None:
    column = filled(tmp_path)
    column.finish()
    newer = {**column.records[0], "xxh3_128": "0" * 32}
    write_record(tmp_path / "clip", SPEC, 0, newer)
    merge_records(tmp_path / "clip")
    assert read_manifest(tmp_path / "clip")[1][0] == newer


def _without_locks(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(fcntl, "flock", lambda descriptor, kind: None)


def test_without_locks_two_writers_of_one_shard_do_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _without_locks(monkeypatch)
    columns = [ColumnWriter(tmp_path, SPEC) for _ in range(2)]
    assert not any(column.has_leases for column in columns)
    writers = [claimed(column, 0) for column in columns]
    assert writers[0].path != writers[1].path
    for writer in writers:
        write_all(writer)
    columns[0].commit(0, writers[0])
    number = (tmp_path / "clip" / SPEC.shard_name(0)).stat().st_ino
    columns[1].commit(0, writers[1])
    assert (tmp_path / "clip" / SPEC.shard_name(0)).stat().st_ino == number, "the first stays"
    assert columns[0].records == columns[1].records
    for column in columns:
        if claim := column.claim(1):
            column.commit(1, write_all(claim))
    np.testing.assert_array_equal(_read(tmp_path), token_rows())
    assert names_in(tmp_path) == ["manifest.json", SPEC.shard_name(0), SPEC.shard_name(1)]


def test_without_locks_the_record_is_of_the_file_that_was_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of two GPUs that compute other last bits."""
    _without_locks(monkeypatch)
    columns = [ColumnWriter(tmp_path, SPEC) for _ in range(2)]
    writers = [claimed(column, 0) for column in columns]
    for number, writer in enumerate(writers):
        writer.write(0, np.full((4, 2, 3), number, np.float16), np.zeros(4, np.uint8))
    for column, writer in zip(columns, writers, strict=True):
        column.commit(0, writer)
    assert columns[0].records == columns[1].records
    np.testing.assert_array_equal(columns[1].read_committed(0), np.zeros((4, 2, 3)))


def _killed_after_two_rows(store: Path) -> None:
    writer = claimed(ColumnWriter(store, SPEC), 0)
    writer.write(0, token_rows()[:2], np.zeros(2, np.uint8))
    os._exit(9)


@pytest.mark.parametrize("is_killed", [True, False])
def test_without_locks_written_rows_are_kept_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_killed: bool) -> None:
    _without_locks(monkeypatch)
    if is_killed:
        child = multiprocessing.get_context("fork").Process(target=_killed_after_two_rows, args=(tmp_path,))
        child.start()
        child.join()
    else:
        writer = claimed(ColumnWriter(tmp_path, SPEC), 0)
        writer.write(0, token_rows()[:2], np.zeros(2, np.uint8))
        writer.close()
    column = ColumnWriter(tmp_path, SPEC)
    writer = claimed(column, 0)
    assert writer.valid.tolist() == [True, True, False, False]
    column.commit(0, write_all(writer))
    assert names_in(tmp_path) == ["manifest.json", SPEC.shard_name(0)]


def test_records_that_could_not_be_written_are_refused_before_anything_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit_shard(ColumnWriter(tmp_path, SPEC), 0)
    make_read_only(monkeypatch, tmp_path / "clip" / RECORDS)
    with pytest.raises(InputError, match=r"clip/records \(no permission\); expected a folder that can be written"):
        ColumnWriter(tmp_path, SPEC)


def test_what_others_left_unfinished_of_final_shards_goes_with_the_merge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are no leases: files of a process that ended, of killed ones of this machine and of another, of one that works."""
    _without_locks(monkeypatch)
    column, ended, working = (ColumnWriter(tmp_path, SPEC) for _ in range(3))
    writers = [claimed(each, 0) for each in (ended, working)]
    commit_shard(column, 0)
    writers[0].close()
    lost = {machine: f"shard-00001.h5.{machine}-{1 << 22}-00000000.partial" for machine in (host_name(), "01234567")}
    for name in (*lost.values(), "shard-00001.h5.suspect"):
        (tmp_path / "clip" / name).touch()
    merge_records(tmp_path / "clip")
    assert not (tmp_path / "clip/shard-00000.h5.partial").exists()
    assert (tmp_path / "clip" / "shard-00001.h5.suspect").exists(), "that shard is not final"
    commit_shard(column, 1)
    assert column.finish()
    final = [SPEC.shard_name(0), SPEC.shard_name(1)]
    assert names_in(tmp_path) == sorted(["manifest.json", *final, lost["01234567"], writers[1].path.name])
    working.commit(0, write_all(writers[1]))
    assert names_in(tmp_path) == sorted(["manifest.json", *final, lost["01234567"]])


def test_an_unfinished_file_under_a_lease_stays(tmp_path: Path) -> None:
    """As of a run in an object store, to which another machine has sent the shard."""
    column = ColumnWriter(tmp_path, SPEC)
    writer = claimed(column, 0)
    records = ColumnWriter(tmp_path / "other", SPEC)
    commit_shard(records, 0)
    merge_records(tmp_path / "clip", records.records)
    assert writer.path.exists()
    writer.close()
    merge_records(tmp_path / "clip")
    assert not writer.path.exists()


def test_without_hard_links_a_record_is_renamed_into_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(source: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    assert filled(tmp_path).finish()
    np.testing.assert_array_equal(_read(tmp_path), token_rows())


class _Remote:
    """A mirror that keeps records in memory and can fail."""

    def __init__(self) -> None:
        self.kept: dict[int, dict[str, Any]] = {}
        self.fails = False
        self.fetched: list[int] = []

    def records(self, column: str) -> dict[int, dict[str, Any]]:
        return self.kept

    def publish(self, column: str, shard: int, record: Any) -> None:
        if self.fails:
            raise OSError(5, "the bucket is away")
        self.kept[shard] = dict(record)

    def fetch(self, column: str, shard: int, record: Any) -> None:
        self.fetched.append(shard)


def test_with_a_mirror_a_shard_is_final_when_it_is_there(tmp_path: Path) -> None:
    remote = _Remote()
    column = ColumnWriter(tmp_path, SPEC, mirror=remote)
    commit_shard(column, 0)
    assert list(remote.kept) == [0]
    remote.fails = True
    writer = write_all(claimed(column, 1))
    with pytest.raises(OSError, match="bucket is away"):
        column.commit(1, writer)
    writer.close()
    remote.fails = False
    column = ColumnWriter(tmp_path, SPEC, mirror=remote)
    assert sorted(remote.kept) == [0, 1], "what was final locally is published at the next start"
    assert column.claim(1) is None
    shutil.rmtree(tmp_path / "clip")
    assert ColumnWriter(tmp_path, SPEC, mirror=remote).is_committed(0), "no local file is needed"


def test_without_locks_an_unfinished_file_may_go_while_it_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _without_locks(monkeypatch)
    column = ColumnWriter(tmp_path, SPEC)
    left = tmp_path / "clip" / f"{plain_shard_name(0)}.partial"
    left.write_bytes(b"torn")
    look = shard_module.check_rows

    def looked_at_and_gone(path: Path, *arguments: Any) -> Any:
        found = look(path, *arguments)
        left.unlink(missing_ok=True)
        return found

    monkeypatch.setattr("lugpi_core.store.writer.check_rows", looked_at_and_gone)
    column.commit(0, write_all(claimed(column, 0)))
    assert list(column.records) == [0]
