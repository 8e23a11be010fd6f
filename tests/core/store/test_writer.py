"""Filling a column: shards claimed, written, made final, taken back; alone and next to other processes."""

import errno
import hashlib
import os
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import xxhash

from lugpi_core.errors import InputError
from lugpi_core.fingerprint import digest
from lugpi_core.store.layout import structure
from lugpi_core.store.lease import ShardBusy, locked
from lugpi_core.store.manifest import RECORDS, ColumnSpec, drop_record, load_manifest, read_manifest, write_record
from lugpi_core.store.reader import ColumnReader
from lugpi_core.store.writer import ColumnWriter, missing_bytes
from tests.support.small_column import SPEC, as_earlier_versions, claimed, commit_shard, filled, names_in, state_of, token_rows, write_all


def test_shards_are_claimed_written_and_made_final_one_by_one(tmp_path: Path) -> None:
    column = ColumnWriter(tmp_path, SPEC)
    assert (column.records, column.taken_back) == ({}, {})
    writer = claimed(column, 1)
    assert (writer.layout, writer.valid.tolist()) == (SPEC.layout(1), [False] * 3)
    assert names_in(tmp_path) == [".shard-00001.h5.lease", "manifest.json", "shard-00001.h5.partial"]
    column.commit(1, write_all(writer))
    assert names_in(tmp_path) == ["manifest.json", SPEC.shard_name(1)]
    assert [column.is_committed(shard) for shard in range(2)] == [False, True]
    commit_shard(column, 0)
    assert column.records == load_manifest(tmp_path / "clip")[1]
    np.testing.assert_array_equal(ColumnReader(tmp_path, "clip").gather(range(7)), token_rows())


def test_a_final_shards_record_has_file_hashes_and_versions(tmp_path: Path) -> None:
    record = filled(tmp_path).records[1]
    assert (record["file"], record["first_row"], record["rows"]) == (SPEC.shard_name(1), 4, 3)
    assert record["xxh3_128"] == xxhash.xxh3_128_hexdigest((tmp_path / "clip" / SPEC.shard_name(1)).read_bytes())
    assert record["fingerprint"] == digest(SPEC.fingerprint)
    assert record["offsets"] == structure(SPEC.layout(1)).offsets
    assert record["versions"].keys() >= {"lugpi", "torch"}


@pytest.mark.parametrize("is_earlier", [False, True])
def test_the_sha256_of_every_final_shard_is_in_the_manifest_at_the_end(tmp_path: Path, is_earlier: bool) -> None:
    filled(tmp_path)
    if is_earlier:
        as_earlier_versions(tmp_path / "clip")
    column = ColumnWriter(tmp_path, SPEC)
    assert all("sha256" in record for record in column.records.values()) is not is_earlier
    assert column.finish()
    files = {shard: (tmp_path / "clip" / SPEC.shard_name(shard)).read_bytes() for shard in range(2)}
    records = read_manifest(tmp_path / "clip")[1]
    assert {shard: record["sha256"] for shard, record in records.items()} == {
        shard: hashlib.sha256(content).hexdigest() for shard, content in files.items()
    }
    state = state_of(tmp_path)
    column.finish()  # a second time does nothing
    assert state_of(tmp_path) == state
    assert ColumnWriter(tmp_path, SPEC).records == column.records == records


def test_a_sha256_is_not_recorded_of_a_shard_that_is_damaged_or_gone(tmp_path: Path) -> None:
    filled(tmp_path)
    as_earlier_versions(tmp_path / "clip")
    column = ColumnWriter(tmp_path, SPEC)
    (tmp_path / "clip" / SPEC.shard_name(0)).unlink()
    with (tmp_path / "clip" / SPEC.shard_name(1)).open("r+b") as file:
        file.write(b"x")
    with suppress(InputError):
        column.finish()
    assert not any("sha256" in record for record in load_manifest(tmp_path / "clip")[1].values())


def test_a_final_shard_is_not_claimed_again(tmp_path: Path) -> None:
    column, state = filled(tmp_path), state_of(tmp_path)
    assert column.claim(0) is None
    assert ColumnWriter(tmp_path, SPEC).claim(1) is None
    assert state_of(tmp_path) == state


def test_a_closed_shard_is_resumed(tmp_path: Path) -> None:
    column = ColumnWriter(tmp_path, SPEC)
    writer = claimed(column, 0)
    writer.write(1, token_rows()[1:3], np.zeros(2, np.uint8))
    writer.close()
    assert names_in(tmp_path) == ["manifest.json", "shard-00000.h5.partial"]
    writer = claimed(ColumnWriter(tmp_path, SPEC), 0)
    assert writer.valid.tolist() == [False, True, True, False]
    writer.close()


def test_a_shard_that_is_not_full_is_not_made_final(tmp_path: Path) -> None:
    column = ColumnWriter(tmp_path, SPEC)
    writer = claimed(column, 0)
    with pytest.raises(InputError, match="4 of 4 rows do not read back"):
        column.commit(0, writer)
    writer.close()
    assert load_manifest(tmp_path / "clip")[1] == {}
    assert names_in(tmp_path) == ["manifest.json", "shard-00000.h5.partial"]


def test_a_column_in_eight_bits_keeps_values_and_scales(tmp_path: Path) -> None:
    spec = replace(SPEC, dtype="int8", rows=4)
    column = ColumnWriter(tmp_path, spec)
    values, scales = np.arange(24, dtype=np.int8).reshape(4, 2, 3), np.full((4, 2), 0.5, np.float32)
    writer = claimed(column, 0)
    writer.write(0, values, np.zeros(4, np.uint8), scales)
    column.commit(0, writer)
    np.testing.assert_array_equal(column.read_committed(0), values)
    np.testing.assert_array_equal(ColumnReader(tmp_path, "clip").gather(range(4)), values * np.float16(0.5))


def test_committed_rows_are_copied_after_their_hash_is_checked(tmp_path: Path) -> None:
    column = filled(tmp_path)
    rows = column.read_committed(0)
    np.testing.assert_array_equal(rows, token_rows()[:4])
    rows[:] = 0
    np.testing.assert_array_equal(column.read_committed(0), token_rows()[:4])
    with (tmp_path / "clip" / SPEC.shard_name(0)).open("r+b") as file:
        file.write(b"x")
    with pytest.raises(InputError, match=r"shard-00000-\w+\.h5: its content differs from its hash"):
        column.read_committed(0)


def test_a_second_worker_on_a_shard_is_refused_and_does_no_harm(tmp_path: Path) -> None:
    mine, other = ColumnWriter(tmp_path, SPEC), ColumnWriter(tmp_path, SPEC)
    writer = write_all(claimed(mine, 0))
    state = state_of(tmp_path)
    with pytest.raises(ShardBusy, match=rf"shard-00000\.h5.*, which process {os.getpid()} on .* is writing; expected one writer per shard"):
        other.claim(0)
    assert state_of(tmp_path) == state
    mine.commit(0, writer)
    assert not other.is_committed(0), "it has not looked since"
    assert other.claim(0) is None
    assert other.is_committed(0)
    np.testing.assert_array_equal(other.read_committed(0), token_rows()[:4])


def test_opening_a_column_does_not_disturb_a_running_writer(tmp_path: Path) -> None:
    column = ColumnWriter(tmp_path, SPEC)
    commit_shard(column, 1)
    writer = claimed(column, 0)
    state = state_of(tmp_path)
    ColumnWriter(tmp_path, SPEC)
    assert state_of(tmp_path) == state
    column.commit(0, write_all(writer))
    np.testing.assert_array_equal(ColumnReader(tmp_path, "clip").gather(range(7)), token_rows())


def test_two_workers_on_two_shards_of_a_column_both_stay(tmp_path: Path) -> None:
    columns = [ColumnWriter(tmp_path, SPEC), ColumnWriter(tmp_path, SPEC)]
    writers = [write_all(claimed(column, shard)) for shard, column in enumerate(columns)]
    for shard, (column, writer) in enumerate(zip(columns, writers, strict=True)):
        column.commit(shard, writer)
    np.testing.assert_array_equal(ColumnReader(tmp_path, "clip").gather(range(7)), token_rows())
    columns[0].refresh()
    assert columns[0].is_committed(1)


def test_a_writer_that_lost_its_lease_writes_and_commits_nothing_more(tmp_path: Path) -> None:
    column = ColumnWriter(tmp_path, SPEC)
    writer = write_all(claimed(column, 0))
    (tmp_path / "clip" / ".shard-00000.h5.lease").unlink()
    content = (tmp_path / "clip" / "shard-00000.h5.partial").read_bytes()
    with pytest.raises(ShardBusy):
        writer.write(0, token_rows()[4:5], np.zeros(1, np.uint8))
    with pytest.raises(ShardBusy):
        column.commit(0, writer)
    writer.close()
    assert (tmp_path / "clip" / "shard-00000.h5.partial").read_bytes() == content
    assert load_manifest(tmp_path / "clip")[1] == {}


def test_a_shard_that_another_machine_took_over_is_not_made_final(tmp_path: Path) -> None:
    column = ColumnWriter(tmp_path, SPEC)
    writer = write_all(claimed(column, 0))
    (tmp_path / "clip" / ".shard-00000.h5.lease").write_text('{"machine": "feedbeef", "host": "node7", "pid": 4711}')
    with pytest.raises(ShardBusy):
        column.commit(0, writer)
    writer.close()
    assert SPEC.shard_name(0) not in names_in(tmp_path)
    assert load_manifest(tmp_path / "clip")[1] == {}


def test_a_lease_lost_during_the_sync_is_noticed_before_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    column = ColumnWriter(tmp_path, SPEC)
    writer = write_all(claimed(column, 0))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: (tmp_path / "clip" / ".shard-00000.h5.lease").unlink())
        with pytest.raises(ShardBusy):
            column.commit(0, writer)
    writer.close()
    assert names_in(tmp_path) == ["manifest.json", "shard-00000.h5.partial"]


def test_a_reopened_shard_becomes_final_again_with_the_same_bytes(tmp_path: Path) -> None:
    column, state = filled(tmp_path), state_of(tmp_path)
    other = ColumnWriter(tmp_path, SPEC)
    judged = column.records[0]
    assert not column.reopen(0, {**judged, "xxh3_128": "of another making"}), "made anew meanwhile"
    assert column.is_committed(0)
    assert column.reopen(0, judged)
    assert not column.reopen(0, judged)  # a second time does nothing
    assert not column.is_committed(0)
    other.refresh()
    assert not other.is_committed(0)
    with pytest.raises(InputError, match="with 3 of 7 rows"):
        ColumnReader(tmp_path, "clip")
    writer = claimed(column, 0)
    assert writer.valid.all()
    column.commit(0, writer)
    assert state_of(tmp_path) == state


def test_missing_bytes_are_exactly_the_size_of_the_missing_files(tmp_path: Path) -> None:
    column = ColumnWriter(tmp_path, SPEC)
    wanted = [structure(SPEC.layout(shard)).file_bytes for shard in range(2)]
    assert missing_bytes(tmp_path, SPEC) == sum(wanted)
    writer = claimed(column, 0)
    assert missing_bytes(tmp_path, SPEC) == wanted[1], "a shard that is begun has all its space"
    column.commit(0, write_all(writer))
    assert missing_bytes(tmp_path, SPEC) == wanted[1]
    commit_shard(column, 1)
    assert missing_bytes(tmp_path, SPEC) == 0
    assert sum(path.stat().st_size for path in (tmp_path / "clip").glob("shard-*")) == sum(wanted)
    column.reopen(0, column.records[0])
    assert missing_bytes(tmp_path, SPEC) == 0, "its file is still there"
    (tmp_path / "clip" / SPEC.shard_name(1)).unlink()
    assert missing_bytes(tmp_path, SPEC) == wanted[1]


def test_a_shard_without_disk_space_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    column = ColumnWriter(tmp_path, SPEC)

    def full(descriptor: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(InputError, match=r"no room for .*shard-00000\.h5\.partial"):
            column.claim(0)
    assert names_in(tmp_path) == ["manifest.json"]
    ColumnWriter(tmp_path, SPEC).commit(0, write_all(claimed(column, 0)))


def test_an_unsynced_shard_is_written_again_to_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    column = ColumnWriter(tmp_path, SPEC)
    writer = write_all(claimed(column, 0))

    def failing(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        with pytest.raises(OSError, match="Input/output error"):
            column.commit(0, writer)
    writer.close()
    suspect = tmp_path / "clip" / "shard-00000.h5.suspect"
    number, content = suspect.stat().st_ino, suspect.read_bytes()
    assert names_in(tmp_path) == ["manifest.json", suspect.name]
    with suspect.open("rb"):  # held, so that its number is not given out again
        writer = claimed(column, 0)
        assert writer.valid.all()
        column.commit(0, writer)
        final = tmp_path / "clip" / SPEC.shard_name(0)
        assert (final.stat().st_ino != number, final.read_bytes()) == (True, content)
    assert names_in(tmp_path) == ["manifest.json", SPEC.shard_name(0)]


def test_rows_are_collected_from_every_file_of_a_shard(tmp_path: Path) -> None:
    column = filled(tmp_path)
    folder, state = tmp_path / "clip", state_of(tmp_path)
    whole = (folder / SPEC.shard_name(0)).read_bytes()
    start, row_bytes = structure(SPEC.layout(0)).offsets["tokens"], 12
    for name, lost in (("shard-00000.h5.suspect", 0), ("shard-00000.h5.partial", 1), (SPEC.shard_name(0), 2)):
        content = bytearray(whole)
        content[start + row_bytes * lost] ^= 1
        (folder / name).write_bytes(content)
    column = ColumnWriter(tmp_path, SPEC)
    assert column.taken_back == {0: "its content differs from its hash"}
    writer = claimed(column, 0)
    assert writer.valid.all()
    column.commit(0, writer)
    assert state_of(tmp_path) == state


def test_a_shard_written_by_another_version_of_hdf5_is_kept_as_it_is(tmp_path: Path) -> None:
    filled(tmp_path)
    path, layout = tmp_path / "clip" / SPEC.shard_name(0), SPEC.layout(0)
    with h5py.File(path, "r") as file:
        content = {name: file[name][:] for name in layout.datasets}
    path.unlink()
    with h5py.File(path, "w", libver="earliest") as file:
        for name, values in content.items():
            file[name] = values
        offsets = {name: file[name].id.get_offset() for name in content}
    assert offsets != structure(layout).offsets
    record = {
        **load_manifest(tmp_path / "clip")[1][0],
        "bytes": path.stat().st_size,
        "offsets": offsets,
        "xxh3_128": xxhash.xxh3_128_hexdigest(path.read_bytes()),
    }
    with locked(tmp_path / "clip"):
        drop_record(tmp_path / "clip", 0)
        write_record(tmp_path / "clip", SPEC, 0, record)
    column = ColumnWriter(tmp_path, SPEC)
    assert column.taken_back == {}
    np.testing.assert_array_equal(column.read_committed(0), token_rows()[:4])


FILES, CONTENT = "a" * 32, "b" * 32
EARLIER = replace(SPEC, fingerprint={"encoder": {"weights": FILES}})
NOW = replace(SPEC, fingerprint={"encoder": {"weights": f"{FILES}+{CONTENT}"}})
SAVED_AGAIN = replace(SPEC, fingerprint={"encoder": {"weights": f"{'c' * 32}+{CONTENT}"}})


@pytest.mark.parametrize(("first", "then"), [(EARLIER, NOW), (NOW, SAVED_AGAIN)], ids=["earlier", "saved again"])
def test_a_column_of_another_form_of_the_same_hash_is_continued(tmp_path: Path, first: ColumnSpec, then: ColumnSpec) -> None:
    commit_shard(ColumnWriter(tmp_path, first), 0)
    column = ColumnWriter(tmp_path, then)
    assert column.is_committed(0)
    commit_shard(column, 1)
    assert np.array_equal(ColumnReader(tmp_path, "clip").gather(list(range(7))), token_rows())
    assert load_manifest(tmp_path / "clip")[0].fingerprint == first.fingerprint


def test_an_earlier_column_whose_manifest_is_lost_keeps_its_rows(tmp_path: Path) -> None:
    filled(tmp_path, EARLIER)
    shutil.rmtree(tmp_path / "clip" / RECORDS)
    (tmp_path / "clip" / "manifest.json").unlink()
    column = ColumnWriter(tmp_path, NOW)
    writers = [claimed(column, shard) for shard in range(2)]
    assert [bool(writer.valid.all()) for writer in writers] == [True, True]
    for shard, writer in enumerate(writers):
        column.commit(shard, writer)
    assert np.array_equal(ColumnReader(tmp_path, "clip").gather(list(range(7))), token_rows())


def test_other_weights_are_still_refused(tmp_path: Path) -> None:
    commit_shard(ColumnWriter(tmp_path, NOW), 0)
    with pytest.raises(InputError, match=r"encoder\.weights: found"):
        ColumnWriter(tmp_path, replace(SPEC, fingerprint={"encoder": {"weights": f"{FILES}+{'d' * 32}"}}))
