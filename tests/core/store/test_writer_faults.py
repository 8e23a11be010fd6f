"""Filling a column under faults: killed at any moment and resumed; files removed, cut, swapped or recorded but missing."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lugpi_core.errors import InputError
from lugpi_core.store import writer as store_writer
from lugpi_core.store.layout import structure
from lugpi_core.store.lease import LOCK
from lugpi_core.store.manifest import RECORDS, ColumnSpec, load_manifest
from lugpi_core.store.reader import ColumnReader
from lugpi_core.store.shard import ShardWriter
from lugpi_core.store.writer import ColumnWriter

SPEC = ColumnSpec(name="clip", what="tokens", rows=7, row_shape=(2, 3), shard_rows=4, fingerprint={"seed": 0})


def _rows() -> NDArray[np.float16]:
    return np.random.default_rng(0).normal(size=(7, 2, 3)).astype(np.float16)


def _dying(function: Callable[..., Any], calls: int, after: bool) -> Callable[..., Any]:
    """Return the function, but kill this process at its n-th call, before or after it."""
    calls_left = calls

    def call(*arguments: Any, **named: Any) -> Any:
        nonlocal calls_left
        calls_left -= 1
        if calls_left == 0 and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        value = function(*arguments, **named)
        if calls_left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return value

    return call


def _fill_rows(store: Path, point: str | None, calls: int, after: bool) -> None:
    column, values = ColumnWriter(store, SPEC), _rows()
    if point is not None:  # the column's own files exist; from here on shards are written
        owner = store_writer if point in ("create_shard", "write_record") else os
        setattr(owner, point, _dying(getattr(owner, point), calls, after))
    for shard in range(SPEC.shards):
        writer = column.claim(shard)
        if writer is None:
            continue
        for row in np.flatnonzero(~writer.valid):
            number = writer.layout.first_row + row
            writer.write(int(row), values[number : number + 1], np.array([number == 5], np.uint8))
        column.commit(shard, writer)
    column.finish()


def _fill(store: Path, point: str | None = None, calls: int = 0, after: bool = False) -> int:
    """Fill the column row by row; with ``point``, in a child that dies at the n-th call of that function. Return the exit code."""
    if point is None:
        _fill_rows(store, None, 0, False)
        return 0
    child = multiprocessing.get_context("fork").Process(target=_fill_rows, args=(store, point, calls, after))
    child.start()
    child.join()
    assert child.exitcode in (0, -signal.SIGKILL)
    return child.exitcode


def _contents(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (store / "clip").iterdir() if path.name not in (LOCK, RECORDS)}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    store = tmp_path_factory.mktemp("undisturbed")
    assert _fill(store) == 0
    return _contents(store)


@pytest.fixture
def store(tmp_path: Path, undisturbed: dict[str, bytes]) -> Path:
    """A complete column, without record files, as earlier versions left it."""
    (tmp_path / "clip").mkdir()
    for name, content in undisturbed.items():
        (tmp_path / "clip" / name).write_bytes(content)
    return tmp_path


def _claimed(column: ColumnWriter, shard: int) -> ShardWriter:
    writer = column.claim(shard)
    assert writer is not None
    return writer


def _flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 0x10
    path.write_bytes(content)


def test_an_undisturbed_run_leaves_only_shards_and_a_manifest(undisturbed: dict[str, bytes]) -> None:
    assert sorted(undisturbed) == ["manifest.json", SPEC.shard_name(0), SPEC.shard_name(1)]


@pytest.mark.parametrize(
    ("point", "calls", "after"),
    [
        ("ftruncate", 1, True),  # the lease is locked and empty
        ("create_shard", 1, False),  # the shard is leased but not begun
        ("posix_fallocate", 1, False),
        ("posix_fallocate", 1, True),  # it has its space but no content
        ("pwrite", 3, True),  # half of its structure is written
        ("replace", 1, False),  # it is complete but not renamed
        ("replace", 1, True),
        ("pwrite", 6, False),
        ("pwrite", 6, True),  # the first row is written, its flag and hash are not
        ("pwrite", 13, True),  # the third row and its flag are written, its hash is not
        ("pwrite", 14, True),
        ("fsync", 3, False),  # the shard is full
        ("fsync", 3, True),
        ("replace", 2, False),
        ("replace", 2, True),  # final but not recorded
        ("write_record", 1, False),
        ("pwrite", 18, True),  # the record is written but has no name
        ("link", 1, False),
        ("link", 1, True),
        ("write_record", 1, True),  # recorded, but the lease is not released
        ("pwrite", 28, True),  # in the second shard, at the flagged row
        ("write_record", 2, True),
    ],
)
def test_a_killed_writer_resumes_to_the_same_bytes(
    tmp_path: Path, undisturbed: dict[str, bytes], point: str, calls: int, after: bool
) -> None:
    assert _fill(tmp_path, point, calls, after) == -signal.SIGKILL
    assert _fill(tmp_path) == 0
    assert _contents(tmp_path) == undisturbed
    reader = ColumnReader(tmp_path, "clip")
    np.testing.assert_array_equal(reader.gather(range(7)), _rows())
    assert reader.flagged == {5: "not finite"}


def test_a_writer_killed_again_and_again_finishes(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    deaths = 0
    while _fill(tmp_path, "pwrite", 10):  # one row and part of the next in a new shard, or three rows of an old one
        deaths += 1
        assert deaths < 9
    assert deaths > 2
    assert _contents(tmp_path) == undisturbed


def test_valid_rows_are_kept_when_a_killed_shard_is_resumed(tmp_path: Path) -> None:
    _fill(tmp_path, "pwrite", 13, True)
    writer = _claimed(ColumnWriter(tmp_path, SPEC), 0)
    assert writer.valid.tolist() == [True, True, False, False]
    np.testing.assert_array_equal(writer.read(0, 2), _rows()[:2])
    writer.close()


def test_a_killed_processs_unfinished_files_are_removed(tmp_path: Path) -> None:
    _fill(tmp_path, "pwrite", 3, True)
    left = [path.name for path in (tmp_path / "clip").iterdir() if path.name.endswith(".partial")]
    assert len(left) == 1
    ColumnWriter(tmp_path, SPEC)
    assert not [path.name for path in (tmp_path / "clip").iterdir() if path.name.endswith(".partial")]


def test_a_killed_processs_lease_on_a_final_shard_is_removed(tmp_path: Path) -> None:
    _fill(tmp_path, "write_record", 1, True)
    lease = tmp_path / "clip" / ".shard-00000.h5.lease"
    assert lease.exists()
    column = ColumnWriter(tmp_path, SPEC)
    assert column.is_committed(0)
    assert not lease.exists()


def test_a_renamed_but_unrecorded_shard_is_recovered_without_writing(tmp_path: Path) -> None:
    _fill(tmp_path, "write_record", 1)
    assert (tmp_path / "clip" / SPEC.shard_name(0)).exists()
    column = ColumnWriter(tmp_path, SPEC)
    assert not column.is_committed(0)
    writer = _claimed(column, 0)
    assert writer.valid.all()
    column.commit(0, writer)
    assert list(load_manifest(tmp_path / "clip")[1]) == [0]


def test_a_record_without_its_file_is_dropped(store: Path, undisturbed: dict[str, bytes]) -> None:
    (store / "clip" / SPEC.shard_name(0)).unlink()
    column = ColumnWriter(store, SPEC)
    assert column.taken_back == {0: "missing"}
    assert [column.is_committed(shard) for shard in range(2)] == [False, True]
    assert list(load_manifest(store / "clip")[1]) == [1]
    assert _fill(store) == 0
    assert _contents(store) == undisturbed


def test_a_shard_of_another_size_is_regenerated_only_where_rows_are_bad(store: Path, undisturbed: dict[str, bytes]) -> None:
    path = store / "clip" / SPEC.shard_name(1)
    path.write_bytes(path.read_bytes() + b"more")
    column = ColumnWriter(store, SPEC)
    assert column.taken_back == {1: f"{path.stat().st_size} bytes, {path.stat().st_size - 4} expected"}
    writer = _claimed(column, 1)
    assert writer.valid.all()
    column.commit(1, writer)
    assert column.finish()
    assert _contents(store) == undisturbed


def test_a_reader_refuses_missing_or_resized_files_without_reading_them(store: Path) -> None:
    path = store / "clip" / SPEC.shard_name(1)
    content = path.read_bytes()
    os.truncate(path, len(content) - 1)
    with pytest.raises(InputError, match=rf"shard-00001-\w+\.h5: {len(content) - 1} bytes, {len(content)} expected"):
        ColumnReader(store, "clip", check_content=False)
    path.unlink()
    with pytest.raises(InputError, match=r"shard-00001-\w+\.h5: missing; expected the shard as it was committed"):
        ColumnReader(store, "clip", check_content=False)


def test_readers_and_writers_find_any_flipped_bit_of_a_final_shard(store: Path, undisturbed: dict[str, bytes]) -> None:
    path = store / "clip" / SPEC.shard_name(0)
    for offset in np.linspace(0, path.stat().st_size - 1, 40, dtype=int):
        _flip(path, offset)
        with pytest.raises(InputError, match="its content differs from its hash"):
            ColumnReader(store, "clip", check_content=True)
        assert ColumnWriter(store, SPEC).taken_back == {0: "its content differs from its hash"}
        for name, content in undisturbed.items():
            (store / "clip" / name).write_bytes(content)
    assert len(ColumnReader(store, "clip", check_content=True)) == 7
    assert ColumnWriter(store, SPEC).taken_back == {}


def _places() -> dict[str, int]:
    layout = SPEC.layout(0)
    plan = structure(layout)
    rows = {name: plan.offsets[name] + 2 * layout.bytes_of(name) for name in layout.datasets}
    return {**rows, **{f"frame {start}": start + len(data) // 2 for start, data in plan.frame}}


@pytest.mark.parametrize("place", list(_places()))
def test_after_any_damage_only_bad_rows_are_regenerated(store: Path, undisturbed: dict[str, bytes], place: str) -> None:
    _flip(store / "clip" / SPEC.shard_name(0), _places()[place])
    column = ColumnWriter(store, SPEC)
    assert column.taken_back == {0: "its content differs from its hash"}
    writer = _claimed(column, 0)
    assert writer.valid.tolist() == [True, True, place.startswith("frame"), True]
    writer.close()
    assert _fill(store) == 0
    assert _contents(store) == undisturbed


@pytest.mark.parametrize("place", [place for place in _places() if place.startswith("frame")])
def test_a_damaged_frame_is_found_without_reading_the_rows(store: Path, place: str) -> None:
    _flip(store / "clip" / SPEC.shard_name(0), _places()[place])
    assert ColumnWriter(store, SPEC, check_content=False).taken_back == {0: "its structure is not that of a shard"}


def test_valid_rows_are_kept_in_a_cut_shard(store: Path, undisturbed: dict[str, bytes]) -> None:
    path = store / "clip" / SPEC.shard_name(0)
    size = structure(SPEC.layout(0)).offsets["flags"] + 2
    os.truncate(path, size)
    column = ColumnWriter(store, SPEC)
    assert column.taken_back == {0: f"{size} bytes, {structure(SPEC.layout(0)).file_bytes} expected"}
    writer = _claimed(column, 0)
    assert writer.valid.tolist() == [True, True, False, False]
    writer.close()
    assert _fill(store) == 0
    assert _contents(store) == undisturbed


def test_valid_rows_are_kept_in_a_shard_with_a_damaged_frame(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    _fill(tmp_path, "pwrite", 14, True)
    _flip(tmp_path / "clip" / "shard-00000.h5.partial", 3)
    writer = _claimed(ColumnWriter(tmp_path, SPEC), 0)
    assert writer.valid.tolist() == [True, True, True, False]
    writer.close()
    assert _fill(tmp_path) == 0
    assert _contents(tmp_path) == undisturbed


def test_a_removed_manifest_is_rebuilt_from_the_valid_rows(store: Path, undisturbed: dict[str, bytes]) -> None:
    (store / "clip" / "manifest.json").unlink()
    _flip(store / "clip" / SPEC.shard_name(1), structure(SPEC.layout(1)).offsets["tokens"])
    column = ColumnWriter(store, SPEC)
    assert (column.records, column.taken_back) == ({}, {})
    for shard, holding in ((0, [True] * 4), (1, [False, True, True])):
        writer = _claimed(column, shard)
        assert writer.valid.tolist() == holding
        writer.close()
    assert _fill(store) == 0
    assert _contents(store) == undisturbed


def test_two_shards_that_changed_places_are_found(tmp_path: Path) -> None:
    spec = ColumnSpec(name="clip", what="tokens", rows=8, row_shape=(2, 3), shard_rows=4, fingerprint={"seed": 0})
    column = ColumnWriter(tmp_path, spec)
    for shard in range(2):
        writer = _claimed(column, shard)
        writer.write(0, np.full((4, 2, 3), shard, np.float16), np.zeros(4, np.uint8))
        column.commit(shard, writer)
    first, second = (tmp_path / "clip" / spec.shard_name(shard) for shard in range(2))
    first.rename(tmp_path / "away")
    second.rename(first)
    (tmp_path / "away").rename(second)
    with pytest.raises(InputError, match="its content differs from its hash"):
        ColumnReader(tmp_path, "clip")
    column = ColumnWriter(tmp_path, spec)
    assert list(column.taken_back) == [0, 1]
    writer = _claimed(column, 0)
    assert not writer.valid.any()
    writer.close()
