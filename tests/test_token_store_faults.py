"""The token store under faults: killed at any moment and continued, files gone, cut, swapped or recorded without being there."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lugpi_core.errors import InputError
from lugpi_core.manifest import ColumnSpec, load_manifest
from lugpi_core.token_store import ColumnReader, ColumnWriter

ROOT = Path(__file__).resolve().parents[1]
SPEC = ColumnSpec(name="clip", what="tokens", rows=7, row_shape=(2, 3), shard_rows=4, fingerprint={"seed": 0})

# Fills the column row by row; dies at the n-th call of the named function, before (0) or after (1) the call is made.
FILL = """
import os, signal, sys
from pathlib import Path
import numpy as np
from lugpi_core import files, manifest, shard, token_store
from lugpi_core.manifest import ColumnSpec

def dying(function, calls):
    left = [calls]
    def call(*arguments, **named):
        left[0] -= 1
        if left[0] == 0 and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        value = function(*arguments, **named)
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return value
    return call

store, point, calls, after = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
owner, name = {"pwrite": (os, "pwrite"), "fsync": (os, "fsync"), "fallocate": (os, "posix_fallocate"), "replace": (Path, "replace"),
               "create": (shard, "_create_contiguous"), "record": (token_store, "add_record"), "none": (None, "")}[point]
if owner:
    setattr(owner, name, dying(getattr(owner, name), calls))
spec = ColumnSpec(name="clip", what="tokens", rows=7, row_shape=(2, 3), shard_rows=4, fingerprint={"seed": 0})
values = np.random.default_rng(0).normal(size=(7, 2, 3)).astype(np.float16)
column = token_store.ColumnWriter(store, spec)
for number in range(spec.shards):
    if column.is_committed(number):
        continue
    writer = column.open_shard(number)
    for row in np.flatnonzero(~writer.valid):
        r = writer.layout.first_row + row
        writer.write(int(row), values[r : r + 1], np.array([r == 5], np.uint8))
    column.commit(number, writer)
"""


def _fill(store: Path, point: str = "none", calls: int = 0, after: bool = False) -> int:
    arguments = [sys.executable, "-c", FILL, str(store), point, str(calls), str(int(after))]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


def _contents(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (store / "clip").iterdir() if not path.name.startswith(".")}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    store = tmp_path_factory.mktemp("undisturbed")
    assert _fill(store) == 0
    return _contents(store)


def _rows() -> NDArray[np.float16]:
    return np.random.default_rng(0).normal(size=(7, 2, 3)).astype(np.float16)


def test_an_undisturbed_run_leaves_shards_and_a_manifest_and_nothing_else(undisturbed: dict[str, bytes]) -> None:
    assert sorted(undisturbed) == ["manifest.json", "shard-00000.h5", "shard-00001.h5"]


@pytest.mark.parametrize(
    ("point", "calls", "after"),
    [
        ("create", 2, False),  # half of the structure is there
        ("fallocate", 1, False),
        ("pwrite", 1, False),
        ("pwrite", 1, True),  # the row is there, its flag and hash are not
        ("pwrite", 8, True),  # the third row and its flag are there, its hash is not
        ("pwrite", 9, True),
        ("pwrite", 17, True),  # in the second shard, at the flagged row
        ("replace", 2, True),  # the first shard's file has its name
        ("replace", 3, False),  # the first shard is full, not yet final
        ("replace", 3, True),  # final, not recorded
        ("replace", 4, False),  # the new manifest is written, not yet renamed
        ("record", 2, False),
        ("record", 2, True),
        ("fsync", 9, False),
    ],
)
def test_a_killed_writer_continues_to_the_same_bytes(
    tmp_path: Path, undisturbed: dict[str, bytes], point: str, calls: int, after: bool
) -> None:
    assert _fill(tmp_path, point, calls, after) == -signal.SIGKILL
    assert _fill(tmp_path) == 0
    assert _contents(tmp_path) == undisturbed
    np.testing.assert_array_equal(ColumnReader(tmp_path, "clip").gather(range(7)), _rows())
    assert ColumnReader(tmp_path, "clip").flagged == {5: "not finite"}


def test_a_writer_killed_again_and_again_gets_there(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    deaths = 0
    while _fill(tmp_path, "pwrite", 10):  # three rows and a bit at a time
        deaths += 1
        assert deaths < 9
    assert deaths == 2
    assert _contents(tmp_path) == undisturbed


def test_rows_that_hold_are_kept_when_a_killed_shard_is_continued(tmp_path: Path) -> None:
    _fill(tmp_path, "pwrite", 8, True)
    writer = ColumnWriter(tmp_path, SPEC).open_shard(0)
    assert writer.valid.tolist() == [True, True, False, False]
    np.testing.assert_array_equal(writer.read(0, 2), _rows()[:2])
    writer.close()


def test_a_shard_renamed_but_not_recorded_is_recovered_without_writing_a_row(tmp_path: Path) -> None:
    _fill(tmp_path, "record", 1)
    assert (tmp_path / "clip" / "shard-00000.h5").exists()
    column = ColumnWriter(tmp_path, SPEC)
    assert not column.is_committed(0)
    writer = column.open_shard(0)
    assert writer.valid.all()
    column.commit(0, writer)
    assert list(load_manifest(tmp_path / "clip")[1]) == [0]


def test_a_record_without_its_file_is_dropped(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    _fill(tmp_path)
    (tmp_path / "clip" / "shard-00000.h5").unlink()
    column = ColumnWriter(tmp_path, SPEC)
    assert [column.is_committed(shard) for shard in range(2)] == [False, True]
    assert list(load_manifest(tmp_path / "clip")[1]) == [1]
    assert _fill(tmp_path) == 0
    assert _contents(tmp_path) == undisturbed


def test_a_shard_of_another_size_is_made_again_only_where_its_rows_do_not_hold(tmp_path: Path) -> None:
    _fill(tmp_path)
    path = tmp_path / "clip" / "shard-00001.h5"
    path.write_bytes(path.read_bytes() + b"more")
    column = ColumnWriter(tmp_path, SPEC)
    assert not column.is_committed(1)
    writer = column.open_shard(1)
    assert writer.valid.all()
    column.commit(1, writer)
    np.testing.assert_array_equal(ColumnReader(tmp_path, "clip").gather(range(7)), _rows())


def test_a_reader_refuses_what_is_missing_or_of_another_size_without_reading_content(tmp_path: Path) -> None:
    _fill(tmp_path)
    path = tmp_path / "clip" / "shard-00001.h5"
    content = path.read_bytes()
    os.truncate(path, len(content) - 1)
    with pytest.raises(InputError, match=rf"shard-00001\.h5: {len(content) - 1} bytes, {len(content)} expected"):
        ColumnReader(tmp_path, "clip", check_content=False)
    path.unlink()
    with pytest.raises(InputError, match=r"shard-00001\.h5: missing; expected the shard as it was committed"):
        ColumnReader(tmp_path, "clip", check_content=False)


def test_a_reader_finds_a_flipped_bit_anywhere_in_the_file(tmp_path: Path) -> None:
    _fill(tmp_path)
    path = tmp_path / "clip" / "shard-00000.h5"
    content = path.read_bytes()
    for offset in np.linspace(0, len(content) - 1, 40, dtype=int):
        path.write_bytes(content[:offset] + bytes([content[offset] ^ 0x10]) + content[offset + 1 :])
        with pytest.raises(InputError, match="its content differs from its hash"):
            ColumnReader(tmp_path, "clip", check_content=True)
    path.write_bytes(content)
    assert len(ColumnReader(tmp_path, "clip", check_content=True)) == 7


def test_two_shards_that_changed_places_are_found(tmp_path: Path) -> None:
    spec = ColumnSpec(name="clip", what="tokens", rows=8, row_shape=(2, 3), shard_rows=4, fingerprint={"seed": 0})
    column = ColumnWriter(tmp_path, spec)
    for shard in range(2):
        writer = column.open_shard(shard)
        writer.write(0, np.full((4, 2, 3), shard, np.float16), np.zeros(4, np.uint8))
        column.commit(shard, writer)
    first, second = (tmp_path / "clip" / f"shard-0000{shard}.h5" for shard in range(2))
    first.rename(tmp_path / "away")
    second.rename(first)
    (tmp_path / "away").rename(second)
    with pytest.raises(InputError, match="its content differs from its hash"):
        ColumnReader(tmp_path, "clip")
    assert not ColumnWriter(tmp_path, spec).open_shard(0).valid.any()


def test_a_second_worker_on_a_shard_is_told_so_and_does_no_harm(tmp_path: Path) -> None:
    mine, other = ColumnWriter(tmp_path, SPEC), ColumnWriter(tmp_path, SPEC)
    writer = mine.open_shard(0)
    writer.write(0, _rows()[:4], np.zeros(4, np.uint8))
    with pytest.raises(InputError, match=r"shard-00000\.h5\.partial: another command is writing it; expected one writer a shard"):
        other.open_shard(0)
    mine.commit(0, writer)
    late = other.open_shard(0)  # does not know yet that the shard is final: finds every row, and makes it final again
    assert late.valid.all()
    other.commit(0, late)
    assert list(load_manifest(tmp_path / "clip")[1]) == [0]
    np.testing.assert_array_equal(mine.read_committed(0), _rows()[:4])


def test_two_workers_on_two_shards_of_a_column_both_stay(tmp_path: Path) -> None:
    columns = [ColumnWriter(tmp_path, SPEC), ColumnWriter(tmp_path, SPEC)]
    writers = [column.open_shard(shard) for shard, column in enumerate(columns)]
    for writer in writers:
        rows = slice(writer.layout.first_row, writer.layout.first_row + writer.layout.rows)
        writer.write(0, _rows()[rows], np.zeros(writer.layout.rows, np.uint8))
    for shard, (column, writer) in enumerate(zip(columns, writers, strict=True)):
        column.commit(shard, writer)
    np.testing.assert_array_equal(ColumnReader(tmp_path, "clip").gather(range(7)), _rows())
