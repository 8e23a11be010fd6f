"""One shard: fixed structure, rows in place, a row is valid only if its hash matches, damage is found and valid rows are kept."""

import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xxhash

from lugpi_core.files import open_file
from lugpi_core.store import shard as shard_module
from lugpi_core.store.layout import ShardLayout, structure
from lugpi_core.store.shard import (
    ShardWriter,
    check_record,
    create_shard,
    flagged_rows,
    is_intact,
    make_final,
    read_back,
    read_dataset,
    sha256_of,
)
from tests.support.small_shard import GOOD, INT8, LAYOUT, flip, float_rows, holding, int8_rows, new_writer, written


def _all_but(*rows: int) -> list[bool]:
    return [row not in rows for row in range(5)]


def test_the_order_of_writing_does_not_change_the_bytes(tmp_path: Path) -> None:
    for name, order in (("a", (0, 1, 2, 3, 4)), ("b", (3, 0, 4, 2, 1))):
        writer = new_writer(tmp_path / name)
        for row in order:
            writer.write(row, float_rows()[row : row + 1], GOOD[:1])
        writer.close()
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_written_shard_is_read_by_h5py_and_by_the_offsets_of_its_record(tmp_path: Path) -> None:
    path = tmp_path / "s.h5"
    writer = written(path, np.array([0, 0, 2, 0, 1], np.uint8))
    record = writer.sync_and_check()
    writer.close()
    with h5py.File(path, "r") as file:
        for name, (shape, dtype) in LAYOUT.datasets.items():
            mapped = np.memmap(path, dtype, "r", offset=record["offsets"][name], shape=shape)
            np.testing.assert_array_equal(mapped, file[name][:])
            np.testing.assert_array_equal(read_dataset(path, LAYOUT, name), file[name][:])
        np.testing.assert_array_equal(file["tokens"][:], float_rows())
        assert file["flags"][:].tolist() == [0, 0, 2, 0, 1]


def _expected_hash(row: int, data: bytes, digest: str = "f" * 32) -> int:
    return xxhash.xxh3_64_intdigest(data, seed=xxhash.xxh3_64_intdigest(digest.encode(), seed=10 + row))


def test_the_stored_hash_is_the_documented_one(tmp_path: Path) -> None:
    written(tmp_path / "s", np.array([0, 0, 1, 0, 0], np.uint8)).close()
    found = read_dataset(tmp_path / "s", LAYOUT, "row_hash").tolist()
    assert found == [_expected_hash(row, float_rows()[row].tobytes() + bytes([int(row == 2)])) for row in range(5)]


def test_with_int8_the_hash_covers_the_scales(tmp_path: Path) -> None:
    written(tmp_path / "s", layout=INT8).close()
    values, scales = int8_rows()
    found = read_dataset(tmp_path / "s", INT8, "row_hash").tolist()
    assert found == [_expected_hash(row, values[row].tobytes() + scales[row].tobytes() + b"\0") for row in range(5)]
    np.testing.assert_array_equal(read_dataset(tmp_path / "s", INT8, "tokens"), values)
    np.testing.assert_array_equal(read_dataset(tmp_path / "s", INT8, "scale"), scales)
    assert holding(tmp_path / "s", INT8) == [True] * 5


def test_all_space_is_allocated_at_the_start(tmp_path: Path) -> None:
    layout = ShardLayout(what="tokens", rows=64, row_shape=(50, 96), first_row=0, fingerprint_digest="0" * 32)
    create_shard(tmp_path / "s", layout)
    status = (tmp_path / "s").stat()
    assert status.st_size == structure(layout).file_bytes >= 64 * 50 * 96 * 2
    assert status.st_blocks * 512 >= status.st_size, "the file is not sparse"


def test_a_new_shard_has_no_valid_row_not_even_of_zeros(tmp_path: Path) -> None:
    writer = new_writer(tmp_path / "s")
    assert not writer.valid.any()
    writer.write(1, np.zeros((2, 3, 4), np.float16), GOOD[:2])
    assert writer.valid.tolist() == [False, True, True, False, False]
    writer.close()
    assert holding(tmp_path / "s") == [False, True, True, False, False]


def test_rows_read_back_from_the_open_shard(tmp_path: Path) -> None:
    writer = written(tmp_path / "s", np.array([0, 1, 0, 0, 2], np.uint8))
    np.testing.assert_array_equal(writer.read(1, 3), float_rows()[1:4])
    assert writer.flags().tolist() == [0, 1, 0, 0, 2]
    writer.close()
    writer.close()  # a second time does nothing


def test_opening_a_missing_shard_does_not_create_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        ShardWriter(tmp_path / "s", LAYOUT)
    assert list(tmp_path.iterdir()) == []


def test_a_forgotten_row_counts_as_never_written(tmp_path: Path) -> None:
    writer = written(tmp_path / "s")
    writer.forget([1, 4])
    assert writer.valid.tolist() == _all_but(1, 4)
    assert holding(tmp_path / "s") == _all_but(1, 4)
    writer.write(1, float_rows(seed=7)[1:2], GOOD[:1])
    writer.close()
    assert holding(tmp_path / "s") == _all_but(4)


@pytest.mark.parametrize(
    ("layout", "name"), [*((LAYOUT, name) for name in LAYOUT.datasets), (INT8, "tokens"), (INT8, "scale")], ids=lambda value: str(value)[:8]
)
@pytest.mark.parametrize("row", [0, 2, 4])
def test_a_flipped_bit_makes_exactly_its_row_invalid(tmp_path: Path, layout: ShardLayout, name: str, row: int) -> None:
    path = tmp_path / "s"
    written(path, layout=layout).close()
    row_bytes = layout.bytes_of(name)
    start = structure(layout).offsets[name] + row * row_bytes
    for offset, bit in ((start, 0), (start + row_bytes - 1, 6)):
        flip(path, offset, bit)
        assert holding(path, layout) == _all_but(row)
        assert is_intact(path, layout), "the frame is whole"
        flip(path, offset, bit)
    assert holding(path, layout) == [True] * 5


def test_rows_swapped_with_their_hashes_are_detected(tmp_path: Path) -> None:
    path = tmp_path / "s"
    written(path).close()
    with h5py.File(path, "r+") as file:
        for name in LAYOUT.datasets:
            file[name][1], file[name][3] = file[name][3], file[name][1]
    assert holding(path) == _all_but(1, 3)


@pytest.mark.parametrize("change", [{"fingerprint_digest": "e" * 32}, {"first_row": 11}, {"first_row": 0}], ids=str)
def test_a_row_of_another_fingerprint_or_position_is_invalid(tmp_path: Path, change: dict[str, Any]) -> None:
    written(tmp_path / "s").close()
    assert holding(tmp_path / "s", replace(LAYOUT, **change)) == [False] * 5
    assert not is_intact(tmp_path / "s", replace(LAYOUT, **change))


def test_a_row_that_hashes_to_zero_gets_another_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class ZeroHash:
        def __init__(self, *_: object, **__: object) -> None: ...
        def update(self, data: bytes) -> None: ...
        def intdigest(self) -> int:
            return 0

    monkeypatch.setattr(shard_module.xxhash, "xxh3_64", ZeroHash)
    writer = new_writer(tmp_path / "s")
    writer.write(0, float_rows()[:1], GOOD[:1])
    writer.close()
    assert holding(tmp_path / "s") == [True, False, False, False, False]


@pytest.mark.parametrize("layout", [LAYOUT, INT8], ids=["float16", "int8"])
def test_in_a_cut_file_only_the_rows_before_its_end_are_valid(tmp_path: Path, layout: ShardLayout) -> None:
    path, plan = tmp_path / "s", structure(layout)
    written(path, layout=layout).close()
    ends = {name: [plan.offsets[name] + layout.bytes_of(name, row + 1) for row in range(5)] for name in layout.datasets}
    for size in range(plan.file_bytes - 1, -1, -1):
        os.truncate(path, size)
        assert holding(path, layout) == [all(ends[name][row] <= size for name in ends) for row in range(5)]
        assert not is_intact(path, layout)


@pytest.mark.parametrize("layout", [LAYOUT, INT8], ids=["float16", "int8"])
def test_a_changed_byte_in_the_frame_is_found_and_no_row_is_blamed(tmp_path: Path, layout: ShardLayout) -> None:
    path = tmp_path / "s"
    written(path, layout=layout).close()
    assert is_intact(path, layout)
    for start, data in structure(layout).frame:
        for offset in range(start, start + len(data)):
            flip(path, offset, offset % 8)
            assert not is_intact(path, layout), offset
            flip(path, offset, offset % 8)
    assert is_intact(path, layout)
    assert holding(path, layout) == [True] * 5


def test_a_longer_file_is_not_intact(tmp_path: Path) -> None:
    written(tmp_path / "s").close()
    os.truncate(tmp_path / "s", structure(LAYOUT).file_bytes + 1)
    assert not is_intact(tmp_path / "s", LAYOUT)


def test_any_array_of_values_is_written_as_float16(tmp_path: Path) -> None:
    writer = new_writer(tmp_path / "s")
    writer.write(0, np.asfortranarray(float_rows()).astype(np.float32)[::-1], GOOD)
    np.testing.assert_array_equal(writer.read(0, 5), float_rows()[::-1])
    writer.close()
    assert holding(tmp_path / "s") == [True] * 5


@pytest.mark.parametrize(
    ("layout", "values", "scales"),
    [
        (LAYOUT, np.zeros((5, 12), np.float16), None),
        (LAYOUT, np.zeros((5, 3, 4), np.float16), np.zeros((5, 3), np.float32)),
        (INT8, np.zeros((5, 3, 4), np.int8), None),
    ],
    ids=["another shape", "scales beside float16", "int8 without scales"],
)
def test_rows_of_another_shape_are_our_own_bug(tmp_path: Path, layout: ShardLayout, values: Any, scales: Any) -> None:
    writer = new_writer(tmp_path / "s", layout)
    with pytest.raises(AssertionError):
        writer.write(0, values, GOOD, scales)
    writer.close()
    assert holding(tmp_path / "s", layout) == [False] * 5


def test_a_checked_shards_record_has_what_a_reader_needs(tmp_path: Path) -> None:
    writer = written(tmp_path / "s", np.array([0, 1, 0, 0, 2], np.uint8))
    assert writer.sync_and_check() == {
        "first_row": 10,
        "rows": 5,
        "bytes": (tmp_path / "s").stat().st_size,
        "offsets": dict(structure(LAYOUT).offsets),
        "flagged": {"1": "not finite", "4": "constant picture"},
        "fingerprint": "f" * 32,
        "sha256": hashlib.sha256((tmp_path / "s").read_bytes()).hexdigest(),
        "xxh3_128": xxhash.xxh3_128_hexdigest((tmp_path / "s").read_bytes()),
    }
    writer.close()


def test_an_unknown_flag_is_shown_as_its_number() -> None:
    assert flagged_rows(np.array([0, 9], np.uint8)) == {"1": "flag 9"}


def test_a_shards_sha256_is_the_usual_one(tmp_path: Path) -> None:
    content = b"abc" * (1 << 21)  # 6 MiB, more than one chunk
    (tmp_path / "s").write_bytes(content)
    assert sha256_of(tmp_path / "s") == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_a_shard_larger_than_a_chunk_is_read_and_hashed_at_once(tmp_path: Path, dtype: Any) -> None:
    layout = replace(LAYOUT, rows=300, row_shape=(50, 384), dtype=dtype)
    random, few = np.random.default_rng(2), 3
    writer = new_writer(tmp_path / "s", layout)
    for first in range(0, layout.rows, few):
        values = random.integers(-100, 100, size=(few, *layout.row_shape)).astype(layout.datasets["tokens"][1])
        writer.write(first, values, np.zeros(few, np.uint8), np.ones((few, 50), np.float32) if dtype == "int8" else None)
    writer.close()
    flip(tmp_path / "s", structure(layout).offsets["tokens"] + 299 * layout.bytes_of("tokens"))
    with open_file(tmp_path / "s", os.O_RDONLY) as descriptor:
        holding, whole = read_back(descriptor, layout)
    assert holding.tolist() == [True] * 299 + [False]
    assert whole == xxhash.xxh3_128_hexdigest((tmp_path / "s").read_bytes())


def test_without_a_file_no_row_is_valid(tmp_path: Path) -> None:
    assert holding(tmp_path / "none") == [False] * 5


def test_a_shard_is_synced_before_it_is_renamed_and_its_folder_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = written(tmp_path / "s.partial")
    fsync, order = os.fsync, list[tuple[str, list[str]]]()

    def noted(descriptor: int) -> None:
        kind = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        order.append((kind, [path.name for path in tmp_path.iterdir()]))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    writer.sync_and_check()
    make_final(tmp_path / "s.partial", tmp_path / "s.h5")
    writer.close()
    assert order == [("file", ["s.partial"]), ("folder", ["s.h5"])]


def _recorded(folder: Path) -> Mapping[str, Any]:
    writer = written(folder / "s.h5")
    record = writer.sync_and_check() | {"file": "s.h5"}
    writer.close()
    return record


def test_check_record_tells_missing_size_and_content_apart(tmp_path: Path) -> None:
    record = _recorded(tmp_path)
    assert check_record(tmp_path, record, content=True) is None
    flip(tmp_path / "s.h5", record["bytes"] - 1)
    assert check_record(tmp_path, record, content=False) is None
    assert check_record(tmp_path, record, content=True) == "its content differs from its hash"
    os.truncate(tmp_path / "s.h5", 100)
    assert check_record(tmp_path, record, content=False) == f"100 bytes, {record['bytes']} expected"
    (tmp_path / "s.h5").unlink()
    assert check_record(tmp_path, record, content=False) == "missing"
