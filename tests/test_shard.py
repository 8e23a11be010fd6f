"""One shard: fixed structure, rows in place, a row counts only when its hash holds, hostile files refused."""

import errno
import os
import stat
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import xxhash
from numpy.typing import NDArray

from lugpi_core import shard as shard_module
from lugpi_core.errors import InputError
from lugpi_core.shard import ShardLayout, ShardWriter, check_record, create_shard, hash_shard, read_offsets

LAYOUT = ShardLayout(what="tokens", rows=5, row_shape=(3, 4), first_row=10, fingerprint_digest="f" * 32)
DATASETS = {"tokens": ((5, 3, 4), "<f2"), "row_hash": ((5,), "<u8"), "flags": ((5,), "u1")}
GOOD = np.zeros(5, np.uint8)


def _rows(count: int = 5, seed: int = 0) -> NDArray[np.float16]:
    return np.random.default_rng(seed).normal(size=(count, *LAYOUT.row_shape)).astype(np.float16)


def _written(path: Path, flags: NDArray[np.uint8] = GOOD) -> ShardWriter:
    writer = ShardWriter(path, LAYOUT)
    writer.write(0, _rows(), flags)
    return writer


def _flip(path: Path, offset: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1 << bit
    path.write_bytes(content)


def _valid_on_reopening(path: Path) -> list[bool]:
    writer = ShardWriter(path, LAYOUT)
    writer.close()
    return [bool(valid) for valid in writer.valid]


def test_two_creations_at_different_times_make_equal_bytes(tmp_path: Path) -> None:
    first = create_shard(tmp_path / "a", LAYOUT)
    time.sleep(1.1)  # HDF5 counts times in seconds
    assert create_shard(tmp_path / "b", LAYOUT) == first
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_two_shards_of_the_same_rows_in_another_order_of_writing_are_equal_bytes(tmp_path: Path) -> None:
    for name, order in (("a", (0, 1, 2, 3, 4)), ("b", (3, 0, 4, 2, 1))):
        writer = ShardWriter(tmp_path / name, LAYOUT)
        for row in order:
            writer.write(row, _rows()[row : row + 1], GOOD[:1])
        writer.close()
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_datasets_are_contiguous_unfiltered_and_at_the_recorded_offsets(tmp_path: Path) -> None:
    path = tmp_path / "s.partial"
    writer = _written(path, np.array([0, 0, 2, 0, 1], np.uint8))
    record = writer.commit(tmp_path / "s.h5")
    with h5py.File(tmp_path / "s.h5", "r") as file:
        assert sorted(file) == ["flags", "row_hash", "tokens"]
        for name, (shape, dtype) in DATASETS.items():
            dataset = file[name]
            assert (dataset.shape, dataset.dtype) == (shape, np.dtype(dtype))
            assert (dataset.chunks, dataset.compression, dataset.fletcher32, dataset.external) == (None, None, False, None)
            mapped = np.memmap(tmp_path / "s.h5", dtype, "r", offset=dataset.id.get_offset(), shape=shape)
            np.testing.assert_array_equal(mapped, dataset[:])
        assert file["tokens"].id.get_offset() == record["rows_offset"]
        np.testing.assert_array_equal(file["tokens"][:], _rows())
        assert file["flags"][:].tolist() == [0, 0, 2, 0, 1]
        assert file.attrs["fingerprint"] == b"f" * 32
        assert file.attrs["first_row"] == 10


def test_the_stored_hash_is_the_xxh3_of_row_and_flag_seeded_with_the_rows_number(tmp_path: Path) -> None:
    _written(tmp_path / "s", np.array([0, 0, 1, 0, 0], np.uint8)).close()
    with h5py.File(tmp_path / "s", "r") as file:
        found = file["row_hash"][:].tolist()
    assert found == [xxhash.xxh3_64_intdigest(_rows()[row].tobytes() + bytes([int(row == 2)]), seed=10 + row) for row in range(5)]


def test_all_space_is_there_from_the_start(tmp_path: Path) -> None:
    layout = ShardLayout(what="tokens", rows=64, row_shape=(50, 96), first_row=0, fingerprint_digest="0" * 32)
    offsets = create_shard(tmp_path / "s", layout)
    status = (tmp_path / "s").stat()
    assert status.st_size == offsets.file_bytes >= 64 * layout.row_bytes
    assert status.st_blocks * 512 >= status.st_size, "the file is not sparse"


def test_a_new_shard_has_no_valid_row_and_rows_of_zeros_do_not_count_unless_written(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "s", LAYOUT)
    assert not writer.valid.any()
    writer.write(1, np.zeros((2, 3, 4), np.float16), GOOD[:2])
    assert writer.valid.tolist() == [False, True, True, False, False]
    writer.close()
    assert _valid_on_reopening(tmp_path / "s") == [False, True, True, False, False]


def test_rows_read_back_from_the_open_shard(tmp_path: Path) -> None:
    writer = _written(tmp_path / "s", np.array([0, 1, 0, 0, 2], np.uint8))
    np.testing.assert_array_equal(writer.read(1, 3), _rows()[1:4])
    assert writer.flags().tolist() == [0, 1, 0, 0, 2]
    writer.close()
    writer.close()  # a second time does nothing


@pytest.mark.parametrize("name", list(DATASETS))
@pytest.mark.parametrize("row", [0, 2, 4])
def test_a_flipped_bit_makes_exactly_its_row_invalid(tmp_path: Path, name: str, row: int) -> None:
    path = tmp_path / "s"
    _written(path).close()
    shape, dtype = DATASETS[name]
    row_bytes = int(np.prod(shape[1:])) * np.dtype(dtype).itemsize
    with h5py.File(path, "r") as file:
        start = file[name].id.get_offset() + row * row_bytes
    for offset, bit in ((start, 0), (start + row_bytes - 1, 6)):
        _flip(path, offset, bit)
        assert _valid_on_reopening(path) == [n != row for n in range(5)]
        _flip(path, offset, bit)
    assert _valid_on_reopening(path) == [True] * 5


def test_swapped_rows_are_detected_though_their_hashes_were_swapped_with_them(tmp_path: Path) -> None:
    path = tmp_path / "s"
    _written(path).close()
    with h5py.File(path, "r+") as file:
        for name in DATASETS:
            file[name][1], file[name][3] = file[name][3], file[name][1]
    assert _valid_on_reopening(path) == [True, False, True, False, True]


def test_a_hash_of_zero_means_never_written_so_a_row_that_hashes_to_zero_gets_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class ZeroHash:
        def __init__(self, *_: object, **__: object) -> None: ...
        def update(self, data: bytes) -> None: ...
        def intdigest(self) -> int:
            return 0

    monkeypatch.setattr(shard_module.xxhash, "xxh3_64", ZeroHash)
    writer = ShardWriter(tmp_path / "s", LAYOUT)
    writer.write(0, _rows()[:1], GOOD[:1])
    writer.close()
    assert _valid_on_reopening(tmp_path / "s") == [True, False, False, False, False]


def test_short_writes_still_write_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, offset: pwrite(descriptor, data[:7], offset))
    _written(tmp_path / "s").close()
    monkeypatch.undo()
    assert _valid_on_reopening(tmp_path / "s") == [True] * 5
    with h5py.File(tmp_path / "s", "r") as file:
        np.testing.assert_array_equal(file["tokens"][:], _rows())


def test_values_that_are_not_contiguous_or_not_float16_are_written_as_float16(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "s", LAYOUT)
    writer.write(0, np.asfortranarray(_rows()).astype(np.float32)[::-1], GOOD)
    np.testing.assert_array_equal(writer.read(0, 5), _rows()[::-1])
    writer.close()
    assert _valid_on_reopening(tmp_path / "s") == [True] * 5


def test_rows_of_another_shape_are_our_own_bug(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "s", LAYOUT)
    with pytest.raises(AssertionError):
        writer.write(0, np.zeros((5, 12), np.float16), GOOD)
    writer.close()


def test_a_full_disk_is_an_input_error_before_any_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    for _ in range(2):  # the second time finds what the first left, if it left anything
        with pytest.raises(InputError, match=r"no room for .* No space left on device.* make room"):
            ShardWriter(tmp_path / "s", LAYOUT)
    monkeypatch.undo()
    _written(tmp_path / "s").close()
    assert _valid_on_reopening(tmp_path / "s") == [True] * 5


def test_a_disk_too_full_for_hdf5_itself_is_the_same_one_line_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "Unable to synchronously create file (file write failed: time = …")

    monkeypatch.setattr(shard_module, "_create_contiguous", full)
    with pytest.raises(InputError, match=r"no room for .*/s \(0 MB: No space left on device\); "):
        ShardWriter(tmp_path / "s", LAYOUT)
    assert list(tmp_path.iterdir()) == []


def test_a_continued_shard_finds_its_space_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_shard(tmp_path / "s", LAYOUT)
    asked: list[int] = []
    monkeypatch.setattr(os, "posix_fallocate", lambda descriptor, offset, size: asked.append(size))
    ShardWriter(tmp_path / "s", LAYOUT).close()
    assert asked == [(tmp_path / "s").stat().st_size]


def test_the_commit_record_says_what_a_reader_needs(tmp_path: Path) -> None:
    writer = _written(tmp_path / "s.partial", np.array([0, 1, 0, 0, 2], np.uint8))
    record = writer.commit(tmp_path / "shard-00002.h5")
    final = tmp_path / "shard-00002.h5"
    assert not (tmp_path / "s.partial").exists()
    assert record == {
        "file": "shard-00002.h5",
        "first_row": 10,
        "rows": 5,
        "bytes": final.stat().st_size,
        "rows_offset": read_offsets(final, LAYOUT).rows,
        "flagged": {"1": "not finite", "4": "constant picture"},
        **hash_shard(final),
    }


def test_the_hashes_of_a_shard_are_those_that_other_programs_print(tmp_path: Path) -> None:
    (tmp_path / "s").write_bytes(b"abc" * (1 << 21))  # 6 MiB, more than one chunk
    import hashlib

    content = (tmp_path / "s").read_bytes()
    assert hash_shard(tmp_path / "s") == {"xxh3_128": xxhash.xxh3_128_hexdigest(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_commit_syncs_the_file_then_renames_it_then_syncs_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = _written(tmp_path / "s.partial")
    fsync, order = os.fsync, list[tuple[str, list[str]]]()

    def noted(descriptor: int) -> None:
        kind = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        order.append((kind, [path.name for path in tmp_path.iterdir()]))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    writer.commit(tmp_path / "s.h5")
    assert order == [("file", ["s.partial"]), ("folder", ["s.h5"])]


def test_commit_refuses_a_row_that_does_not_read_back(tmp_path: Path) -> None:
    writer = _written(tmp_path / "s")
    _flip_in_place(tmp_path / "s", read_offsets(tmp_path / "s", LAYOUT).rows + 30)
    with pytest.raises(InputError, match="rows do not read back as they were written"):
        writer.commit(tmp_path / "s.h5")
    writer.close()
    assert not (tmp_path / "s.h5").exists()


def test_commit_refuses_a_shard_with_a_row_never_written(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "s", LAYOUT)
    writer.write(0, _rows()[:4], GOOD[:4])
    with pytest.raises(InputError, match="rows do not read back"):
        writer.commit(tmp_path / "s.h5")
    writer.close()


def _flip_in_place(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def test_check_record_tells_missing_size_and_content_apart(tmp_path: Path) -> None:
    record = _written(tmp_path / "s").commit(tmp_path / "s.h5")
    assert check_record(tmp_path, record, content=True) is None
    _flip(tmp_path / "s.h5", record["bytes"] - 1)
    assert check_record(tmp_path, record, content=False) is None
    assert check_record(tmp_path, record, content=True) == "its content differs from its hash"
    os.truncate(tmp_path / "s.h5", 100)
    assert check_record(tmp_path, record, content=False) == f"100 bytes, {record['bytes']} expected"
    (tmp_path / "s.h5").unlink()
    assert check_record(tmp_path, record, content=False) == "missing"


def test_a_second_writer_of_the_same_shard_is_refused_until_the_first_has_closed(tmp_path: Path) -> None:
    first = _written(tmp_path / "s")
    with pytest.raises(InputError, match="another command is writing it"):
        ShardWriter(tmp_path / "s", LAYOUT)
    first.close()
    assert _valid_on_reopening(tmp_path / "s") == [True] * 5


def test_a_shard_that_another_process_made_meanwhile_is_not_committed_in_its_place(tmp_path: Path) -> None:
    writer = _written(tmp_path / "s")
    create_shard(tmp_path / "other", LAYOUT)
    (tmp_path / "other").replace(tmp_path / "s")
    with pytest.raises(InputError, match="another command has replaced it"):
        writer.commit(tmp_path / "s.h5")
    writer.close()
    assert not (tmp_path / "s.h5").exists()
