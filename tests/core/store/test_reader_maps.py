"""What a reader shares with the page cache: views and prefetched rows; and that it holds nothing else."""

import gc
import json
import os
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lugpi_core.fingerprint import digest
from lugpi_core.store import reader as reader_module
from lugpi_core.store.layout import Dtype
from lugpi_core.store.manifest import ColumnSpec, merge_records, record_path
from lugpi_core.store.quantize import dequantize_array
from lugpi_core.store.reader import ColumnReader
from lugpi_core.store.writer import ColumnWriter
from tests.support.shards import shard_file

DTYPES: list[Dtype] = ["float16", "int8"]


def _spec(rows: int, shard_rows: int, name: str = "clip", row_shape: tuple[int, ...] = (2, 3), dtype: Dtype = "float16") -> ColumnSpec:
    return ColumnSpec(name=name, what="tokens", rows=rows, row_shape=row_shape, shard_rows=shard_rows, fingerprint={"seed": 0}, dtype=dtype)


def _stored(spec: ColumnSpec) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
    """Return the stored values of every row and, for int8, the scales."""
    random = np.random.default_rng(spec.rows)
    if spec.dtype == "float16":
        return random.normal(size=(spec.rows, *spec.row_shape)).astype(np.float16), None
    values = random.integers(-127, 128, size=(spec.rows, *spec.row_shape), dtype=np.int8)
    return values, random.random((spec.rows, *spec.row_shape[:-1]), np.float32)


def _filled(store: Path, spec: ColumnSpec) -> NDArray[np.float16]:
    """Fill a column and return its rows as a reader should return them."""
    (values, scales), column = _stored(spec), ColumnWriter(store, spec)
    flags = np.zeros(spec.rows, np.uint8)
    for shard in range(spec.shards):
        writer = column.claim(shard)
        assert writer is not None
        rows = slice(writer.layout.first_row, writer.layout.first_row + writer.layout.rows)
        writer.write(0, values[rows], flags[rows], None if scales is None else scales[rows])
        column.commit(shard, writer)
    return values if scales is None else dequantize_array(values, scales, np.empty(values.shape, np.float16))


def _rows(batches: list[list[int]]) -> list[int]:
    return [row for batch in batches for row in batch]


def _mapped_at(address: int) -> str:
    """Return the path of the file that is mapped at an address of this process."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, stop = (int(end, 16) for end in line.split()[0].split("-"))
        if start <= address < stop:
            return line.split(maxsplit=5)[5] if len(line.split()) > 5 else ""
    return ""


def _view(reader: ColumnReader, shard: int) -> NDArray[Any]:
    """Return a shard's rows in the page cache, without a copy."""
    return reader._mapped().view(reader.spec.what, shard)


def _maps_of(folder: Path) -> int:
    return Path("/proc/self/maps").read_text().count(str(folder))


LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@LINUX
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_file_stays_open_and_no_map_outlives_its_users(tmp_path: Path, dtype: Dtype) -> None:
    values = _filled(tmp_path, _spec(40, 2, dtype=dtype))
    before = len(os.listdir("/proc/self/fd"))
    reader, rows = ColumnReader(tmp_path, "clip"), [39, 0, 2, 4, 36, 8, 1, 3, 5, 7, 0, 9]
    np.testing.assert_array_equal(reader.gather(rows), values[rows])
    assert len(os.listdir("/proc/self/fd")) == before
    view, kept = _view(reader, 3), _view(reader, 3).copy()
    del reader
    gc.collect()
    np.testing.assert_array_equal(view, kept, err_msg="what was given out stays readable")
    del view
    gc.collect()
    assert _maps_of(tmp_path) == 0


@LINUX
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_view_copies_nothing_and_cannot_be_written(tmp_path: Path, dtype: Dtype) -> None:
    _filled(tmp_path, _spec(10, 4, dtype=dtype))
    reader = ColumnReader(tmp_path, "clip")
    for shard, rows in enumerate((slice(0, 4), slice(4, 8), slice(8, 10))):
        view = _view(reader, shard)
        np.testing.assert_array_equal(view, _stored(_spec(10, 4, dtype=dtype))[0][rows])
        assert np.shares_memory(view, _view(reader, shard))
        assert _mapped_at(view.ctypes.data) == str(shard_file(tmp_path / "clip", shard))
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 1
    with pytest.raises(ValueError, match=r"writeable|WRITEABLE"):
        view.flags.writeable = True


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 30),
    st.integers(1, 9),
    st.tuples(st.integers(1, 40), st.integers(1, 70)),
    st.sampled_from(DTYPES),
    st.sets(st.integers(0, 29)),
    st.randoms(use_true_random=False),
)
def test_rows_of_any_size_and_offset_are_read(
    rows: int, shard_rows: int, row_shape: tuple[int, int], dtype: Dtype, moved: set[int], chance: random.Random
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        spec = _spec(rows, shard_rows, row_shape=row_shape, dtype=dtype)
        values = _filled(Path(folder), spec)
        for shard in moved & set(range(spec.shards)):
            _move(Path(folder) / "clip", shard)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(reader_module, "refuse_structure", lambda places: None)  # its child process would take too long
            reader = ColumnReader(Path(folder), "clip")
        order = [chance.randrange(rows) for _ in range(40)]
        np.testing.assert_array_equal(reader.gather(order), values[order])
        np.testing.assert_array_equal(reader.gather(range(rows)), values)
        reader.will_need(range(rows))
        for shard in range(spec.shards):
            view = _view(reader, shard)
            np.testing.assert_array_equal(view, _stored(spec)[0][shard * shard_rows : (shard + 1) * shard_rows])


def _move(folder: Path, shard: int) -> None:
    """Shift a shard's bytes by 512, as in a file of another version of HDF5."""
    path = shard_file(folder, shard)
    merge_records(folder)
    record_path(folder, shard).unlink()
    value = json.loads((folder / "manifest.json").read_text())
    content = bytes(512) + path.read_bytes()
    path.write_bytes(content)
    del value["xxh3_128"]
    record = value["shards"][str(shard)]
    record |= {"bytes": len(content), "xxh3_128": xxhash.xxh3_128_hexdigest(content)}
    record["offsets"] = {name: offset + 512 for name, offset in record["offsets"].items()}
    (folder / "manifest.json").write_text(json.dumps({**value, "xxh3_128": digest(value)}))


def test_the_bytes_of_a_row_are_those_on_disk(tmp_path: Path) -> None:
    for name, dtype, row_bytes in (("clip", DTYPES[0], 2 * 3 * 2), ("eight", DTYPES[1], 2 * 3 + 2 * 4)):
        _filled(tmp_path, _spec(3, 2, name=name, dtype=dtype))
        assert ColumnReader(tmp_path, name).row_bytes == row_bytes


@pytest.mark.parametrize("row_shape", [(2, 3), (1, 2048), (3, 1000)])
def test_any_row_can_be_prefetched(tmp_path: Path, row_shape: tuple[int, int]) -> None:
    values = _filled(tmp_path, _spec(9, 4, row_shape=row_shape))
    reader = ColumnReader(tmp_path, "clip")
    for row in range(9):
        reader.will_need([row])
    reader.will_need(np.arange(9))
    reader.will_need([])
    np.testing.assert_array_equal(reader.gather(range(9)), values)


@pytest.mark.parametrize("rows_ahead", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("sizes", [(), (3,), (1, 1, 1, 1, 1), (2, 3, 0, 4, 1), (7, 3)])
def test_batches_come_once_in_order_after_their_prefetch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_ahead: int, sizes: tuple[int, ...]
) -> None:
    values = _filled(tmp_path, _spec(10, 4))
    reader, order = ColumnReader(tmp_path, "clip"), np.random.default_rng(0).permutation(10)
    batches = [part.tolist() for part in np.split(order[: sum(sizes)], np.cumsum(sizes)[:-1])] if sizes else []
    monkeypatch.setattr(reader_module, "PREFETCH_BYTES", rows_ahead * reader.row_bytes)
    asked: list[int] = []
    monkeypatch.setattr(reader, "will_need", asked.extend)
    for n, batch in enumerate(reader.ahead(iter(batches))):
        assert batch == batches[n]
        told = _rows(batches[: n + 1])
        assert asked[: len(told)] == told
        # The following batches too, up to the prefetch depth, but not the whole epoch.
        following = _rows(batches[n + 1 :])
        assert len(asked) - len(told) >= min(rows_ahead, len(following)) - max(sizes)
        assert len(asked) - len(told) <= rows_ahead + max(sizes)
    assert _rows(batches) == asked
    found = list(reader.batches(batches))
    assert len(found) == len(batches)
    for batch, rows in zip(batches, found, strict=True):
        np.testing.assert_array_equal(rows, values[np.array(batch, np.int64)])


@pytest.mark.parametrize("row", [-1, 9, 11, 12, 10**12])
def test_a_batch_with_a_missing_row_is_an_index_error(tmp_path: Path, row: int) -> None:
    _filled(tmp_path, _spec(9, 4, row_shape=(1, 3000)))
    with pytest.raises(IndexError):
        list(ColumnReader(tmp_path, "clip").batches([[0], [row]]))


def test_a_given_array_that_is_not_contiguous_is_filled_or_refused(tmp_path: Path) -> None:
    values = _filled(tmp_path, _spec(10, 4))
    out = np.zeros((6, 2, 3), np.float16)[::2]
    try:
        ColumnReader(tmp_path, "clip").gather([9, 0, 4], out)
    except ValueError:
        return
    np.testing.assert_array_equal(out, values[[9, 0, 4]])
