"""One shard under faults: a full disk, short writes, failed syncs, damaged files; valid rows are kept."""

import errno
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xxhash

from lugpi_core.errors import InputError
from lugpi_core.store import shard as shard_module
from lugpi_core.store.layout import ShardLayout, structure
from lugpi_core.store.shard import ShardWriter, create_shard, is_intact
from tests.support.small_shard import GOOD, INT8, LAYOUT, flip, float_rows, holding, new_writer, written


def _damaged_source(path: Path, seed: int, lost: list[int], layout: ShardLayout = LAYOUT) -> Path:
    writer = new_writer(path, layout)
    writer.write(0, float_rows(seed), np.full(5, seed, np.uint8))
    writer.close()
    for row in lost:
        flip(path, structure(layout).offsets["tokens"] + row * layout.bytes_of("tokens"))
    flip(path, 0)  # its structure is damaged, so its rows are searched
    return path


def test_a_new_shard_copies_only_valid_rows(tmp_path: Path) -> None:
    one, two = _damaged_source(tmp_path / "one", 1, [0, 1, 4]), _damaged_source(tmp_path / "two", 2, [0, 2, 3])
    foreign = _damaged_source(tmp_path / "foreign", 3, [], replace(LAYOUT, fingerprint_digest="e" * 32))
    create_shard(tmp_path / "s", LAYOUT, rows_from=[one, foreign, two])
    writer = ShardWriter(tmp_path / "s", LAYOUT)
    assert writer.valid.tolist() == [False, True, True, True, True]
    for row, seed in ((1, 2), (2, 1), (3, 1), (4, 2)):
        np.testing.assert_array_equal(writer.read(row, 1)[0], float_rows(seed)[row])
        assert writer.flags()[row] == seed
    assert (writer.read(0, 1).tobytes(), writer.flags()[0]) == (bytes(24), 0), "nothing is left of a row that does not hold"
    writer.close()
    assert is_intact(tmp_path / "s", LAYOUT)


def test_a_shard_rebuilt_from_a_damaged_one_replaces_it(tmp_path: Path) -> None:
    path = tmp_path / "s"
    written(path, layout=INT8).close()
    content = path.read_bytes()
    flip(path, 40)
    os.truncate(path, structure(INT8).file_bytes - 20)
    create_shard(path, INT8, rows_from=[path])
    assert path.read_bytes() == content
    assert [one.name for one in tmp_path.iterdir()] == ["s"]


def _little_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite, pread = os.pwrite, os.pread
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, offset: pwrite(descriptor, data[:7], offset))
    monkeypatch.setattr(os, "pread", lambda descriptor, count, offset: pread(descriptor, min(count, 5), offset))


@pytest.mark.parametrize("layout", [LAYOUT, INT8], ids=["float16", "int8"])
def test_short_writes_and_reads_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: ShardLayout) -> None:
    written(tmp_path / "a", layout=layout).close()
    with monkeypatch.context() as patch:
        _little_at_a_time(patch)
        writer = written(tmp_path / "b", layout=layout)
        record = writer.sync_and_check()
        writer.close()
        assert holding(tmp_path / "b", layout) == [True] * 5
        assert is_intact(tmp_path / "b", layout)
    assert record["xxh3_128"] == xxhash.xxh3_128_hexdigest((tmp_path / "b").read_bytes())
    assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes()


def _full(descriptor: int, offset: int, size: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_an_input_error_before_any_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", _full)
        for _ in range(2):  # the second attempt would meet leftovers of the first
            with pytest.raises(InputError, match=r"no room for .*/s \(0 MB: No space left on device\); .* make room"):
                create_shard(tmp_path / "s", LAYOUT)
            assert list(tmp_path.iterdir()) == []
    written(tmp_path / "s").close()
    assert holding(tmp_path / "s") == [True] * 5


def test_a_resumed_shard_allocates_its_space_before_any_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_shard(tmp_path / "s", LAYOUT)
    asked: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", lambda descriptor, offset, size: asked.append(size))
        ShardWriter(tmp_path / "s", LAYOUT).close()
        patch.setattr(os, "posix_fallocate", _full)
        with pytest.raises(InputError, match="no room for"):
            ShardWriter(tmp_path / "s", LAYOUT)
    assert asked == [(tmp_path / "s").stat().st_size]
    assert is_intact(tmp_path / "s", LAYOUT)


def _failing_fsync(descriptor: int) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_shard_that_cannot_be_synced_is_set_aside_and_rewritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = written(tmp_path / "s.partial")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", _failing_fsync)
        with pytest.raises(OSError, match="Input/output error"):
            writer.sync_and_check()
    writer.close()
    assert [path.name for path in tmp_path.iterdir()] == ["s.suspect"]
    create_shard(tmp_path / "s.partial", LAYOUT, rows_from=[tmp_path / "s.suspect"])
    assert not (tmp_path / "s.partial").samefile(tmp_path / "s.suspect")
    assert (tmp_path / "s.partial").read_bytes() == (tmp_path / "s.suspect").read_bytes()


def test_a_failed_sync_counts_even_if_reading_back_fails_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A failing disk fails both; the next sync of the same file may then succeed although its pages were not written.
    writer = written(tmp_path / "s.partial")

    def failing_pread(descriptor: int, count: int, offset: int) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", _failing_fsync)
        patch.setattr(os, "pread", failing_pread)
        with pytest.raises(OSError, match="Input/output error"):
            writer.sync_and_check()
    writer.close()
    assert [path.name for path in tmp_path.iterdir()] == ["s.suspect"]


def test_an_early_failed_sync_counts_without_a_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # If the run stops then, another run continues the shard, and its own sync reports no error.
    writer = new_writer(tmp_path / "s.partial")
    with monkeypatch.context() as patch:
        patch.setattr(shard_module, "WRITE_BACK_BYTES", 1)
        patch.setattr(os, "fdatasync", _failing_fsync)
        writer.write(0, float_rows(), GOOD)
        writer.close()
    assert [path.name for path in tmp_path.iterdir()] == ["s.suspect"]


def test_an_early_failed_sync_counts_even_if_the_last_succeeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = new_writer(tmp_path / "s.partial")
    with monkeypatch.context() as patch:
        patch.setattr(shard_module, "WRITE_BACK_BYTES", 1)
        patch.setattr(os, "fdatasync", _failing_fsync)
        writer.write(0, float_rows(), GOOD)
        with pytest.raises(OSError, match="Input/output error"):
            writer.sync_and_check()
    writer.close()
    assert [path.name for path in tmp_path.iterdir()] == ["s.suspect"]


def test_rows_are_synced_while_more_arrive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fdatasync, synced = os.fdatasync, list[int]()
    writer = new_writer(tmp_path / "s")

    def noted(descriptor: int) -> None:
        synced.append(descriptor)
        fdatasync(descriptor)

    monkeypatch.setattr(shard_module, "WRITE_BACK_BYTES", 2 * LAYOUT.bytes_of("tokens"))
    monkeypatch.setattr(os, "fdatasync", noted)
    for row in range(5):
        writer.write(row, float_rows()[row : row + 1], GOOD[:1])
    writer.sync_and_check()
    writer.close()
    assert len(synced) == 2


def test_a_shard_whose_creation_cannot_be_synced_does_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", _failing_fsync)
    with pytest.raises(OSError, match="Input/output error"):
        create_shard(tmp_path / "s", LAYOUT)
    assert list(tmp_path.iterdir()) == []


def _rot(writer: ShardWriter, place: str) -> None:
    flip(writer.path, {"row": structure(LAYOUT).offsets["tokens"] + 30, "frame": 3, "hash": structure(LAYOUT).offsets["row_hash"]}[place])


@pytest.mark.parametrize(("place", "what"), [("row", "1 of 5 rows do"), ("hash", "1 of 5 rows do"), ("frame", "its structure does")])
def test_a_shard_that_does_not_read_back_as_it_was_written_is_refused(tmp_path: Path, place: str, what: str) -> None:
    writer = written(tmp_path / "s")
    _rot(writer, place)
    with pytest.raises(InputError, match=rf"{what} not read back as (it was|they were) written; .*featurize command again"):
        writer.sync_and_check()
    writer.close()


def test_a_shard_with_a_row_never_written_is_refused(tmp_path: Path) -> None:
    writer = new_writer(tmp_path / "s")
    writer.write(0, float_rows()[:4], GOOD[:4])
    with pytest.raises(InputError, match="1 of 5 rows do not read back"):
        writer.sync_and_check()
    writer.close()


def test_a_shard_that_reads_back_only_on_the_second_try_is_not_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = written(tmp_path / "s")
    failed: list[int] = []

    def once(descriptor: int, count: int, offset: int) -> bytes:
        if count == 5 * LAYOUT.bytes_of("tokens") and not failed:
            failed.append(offset)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return pread(descriptor, count, offset)

    pread = os.pread
    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", once)
        with pytest.raises(InputError, match="the disk cannot read it back"):
            writer.sync_and_check()
    assert failed
    assert writer.sync_and_check()["rows"] == 5
    writer.close()
