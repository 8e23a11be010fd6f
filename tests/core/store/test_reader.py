"""The reader: rows read back as they were written, by any number of readers, in constant memory."""

import multiprocessing
import pickle
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lugpi_core.errors import InputError
from lugpi_core.store.layout import Dtype
from lugpi_core.store.manifest import ColumnSpec, load_manifest, open_manifest
from lugpi_core.store.quantize import dequantize_array
from lugpi_core.store.reader import ColumnReader, columns_of, token_columns_of
from lugpi_core.store.writer import ColumnWriter
from tests.support.checkout import ROOT
from tests.support.shards import shard_file


def _spec(rows: int, shard_rows: int, name: str = "clip", row_shape: tuple[int, ...] = (2, 3), dtype: Dtype = "float16") -> ColumnSpec:
    what = "latents" if name == "latents" else "tokens"
    return ColumnSpec(name=name, what=what, rows=rows, row_shape=row_shape, shard_rows=shard_rows, fingerprint={"seed": 0}, dtype=dtype)


def _stored(spec: ColumnSpec) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
    """Return the stored values of every row and, for int8, the scales."""
    random = np.random.default_rng(spec.rows)
    if spec.dtype == "float16":
        return random.normal(size=(spec.rows, *spec.row_shape)).astype(np.float16), None
    values = random.integers(-127, 128, size=(spec.rows, *spec.row_shape), dtype=np.int8)
    return values, random.random((spec.rows, *spec.row_shape[:-1]), np.float32)


def _filled(store: Path, spec: ColumnSpec, flagged: tuple[int, ...] = ()) -> NDArray[np.float16]:
    """Fill a column and return its rows as a reader should return them."""
    (values, scales), column = _stored(spec), ColumnWriter(store, spec)
    flags = np.isin(np.arange(spec.rows), flagged).astype(np.uint8)
    for shard in range(spec.shards):
        writer = column.claim(shard)
        assert writer is not None
        rows = slice(writer.layout.first_row, writer.layout.first_row + writer.layout.rows)
        writer.write(0, values[rows], flags[rows], None if scales is None else scales[rows])
        column.commit(shard, writer)
    return values if scales is None else dequantize_array(values, scales, np.empty(values.shape, np.float16))


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 24), st.integers(1, 9), st.sampled_from(["float16", "int8"]), st.data())
def test_any_rows_in_any_order_are_those_of_a_plain_array(rows: int, shard_rows: int, dtype: Dtype, data: st.DataObject) -> None:
    spec = _spec(rows, shard_rows, dtype=dtype)
    with tempfile.TemporaryDirectory() as folder:
        values = _filled(Path(folder), spec)
        reader = ColumnReader(Path(folder), "clip")
        chosen = data.draw(st.lists(st.integers(0, rows - 1), max_size=40))
        for asked in (chosen, np.array(chosen, np.int64)):
            found = reader.gather(asked)
            assert found.dtype == np.float16
            np.testing.assert_array_equal(found, values[np.array(chosen, np.int64)])
        assert len(reader) == rows


@settings(max_examples=10, deadline=None)
@given(st.permutations(range(10)), st.integers(1, 10), st.sets(st.integers(0, 9)))
def test_rows_may_be_written_in_any_order_over_any_number_of_openings(order: list[int], shard_rows: int, reopen_at: set[int]) -> None:
    spec = _spec(10, shard_rows)
    values, _ = _stored(spec)
    with tempfile.TemporaryDirectory() as folder:
        column = ColumnWriter(Path(folder), spec)
        for n, row in enumerate(order):
            if n in reopen_at:
                column = ColumnWriter(Path(folder), spec)
            shard, local = divmod(row, shard_rows)
            writer = column.claim(shard)
            assert writer is not None
            assert not writer.valid[local]
            writer.write(local, values[row : row + 1], np.zeros(1, np.uint8))
            if writer.valid.all():
                column.commit(shard, writer)
            writer.close()
        np.testing.assert_array_equal(ColumnReader(Path(folder), "clip").gather(range(10)), values)


DTYPES: list[Dtype] = ["float16", "int8"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_are_gathered_into_the_given_array(tmp_path: Path, dtype: Dtype) -> None:
    values = _filled(tmp_path, _spec(10, 4, dtype=dtype))
    out = np.full((3, 2, 3), 7, np.float16)
    reader = ColumnReader(tmp_path, "clip")
    assert reader.gather(np.array([9, 0, 4]), out) is out
    np.testing.assert_array_equal(out, values[[9, 0, 4]])
    assert reader.gather([]).shape == (0, 2, 3)


def test_gathered_rows_belong_to_the_caller(tmp_path: Path) -> None:
    values = _filled(tmp_path, _spec(4, 4))
    reader = ColumnReader(tmp_path, "clip")
    reader.gather([1])[:] = 0
    np.testing.assert_array_equal(reader.gather([1]), values[[1]])


@pytest.mark.parametrize("row", [-1, -4, 7, 8, 10**12])
def test_a_missing_row_is_an_index_error_and_never_another_row(tmp_path: Path, row: int) -> None:
    _filled(tmp_path, _spec(7, 4))
    with pytest.raises(IndexError):
        ColumnReader(tmp_path, "clip").gather([0, row])


def test_flagged_rows_are_known_by_their_number_in_the_column(tmp_path: Path) -> None:
    _filled(tmp_path, _spec(10, 4), flagged=(1, 5, 9))
    assert ColumnReader(tmp_path, "clip").flagged == {1: "not finite", 5: "not finite", 9: "not finite"}


def test_a_committed_shard_is_read_as_a_copy(tmp_path: Path) -> None:
    values = _filled(tmp_path, _spec(10, 4))
    column = ColumnWriter(tmp_path, _spec(10, 4))
    assert [column.is_committed(shard) for shard in range(4)] == [True, True, True, False]
    rows = column.read_committed(2)
    np.testing.assert_array_equal(rows, values[8:])
    rows[:] = 0  # a copy: the file is not written
    np.testing.assert_array_equal(column.read_committed(2), values[8:])


@pytest.mark.parametrize("part", ["tokens", "row_hash", "flags", "frame"])
def test_a_damaged_committed_shard_is_not_read(tmp_path: Path, part: str) -> None:
    _filled(tmp_path, _spec(10, 4))
    column, path = ColumnWriter(tmp_path, _spec(10, 4)), shard_file(tmp_path / "clip", 1)
    content = bytearray(path.read_bytes())
    content[column.records[1]["offsets"].get(part, len(content) - 1)] ^= 1
    path.write_bytes(content)
    advice = r"expected the shard as it was committed; run the same featurize command again: it regenerates the damaged rows"
    with pytest.raises(InputError, match=rf"shard-00001-\w+\.h5: its content differs from its hash; {advice}"):
        ColumnReader(tmp_path, "clip")
    with pytest.raises(InputError, match=rf"shard-00001-\w+\.h5: its content differs from its hash; {advice}"):
        column.read_committed(1)


def test_without_content_checks_size_and_structure_are_checked(tmp_path: Path) -> None:
    _filled(tmp_path, _spec(10, 4, row_shape=(40, 50)))
    path = shard_file(tmp_path / "clip", 1)
    whole = path.read_bytes()
    offset = load_manifest(tmp_path / "clip")[1][1]["offsets"]["tokens"]

    def changed(place: int) -> bytes:
        return whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]

    path.write_bytes(changed(offset + 5))
    assert len(ColumnReader(tmp_path, "clip", check_content=False)) == 10
    for content, fault in ((whole + b"x", r"\d+ bytes, \d+ expected"), (whole[:-1], r"\d+ bytes, \d+ expected"), (changed(0), "signature")):
        path.write_bytes(content)
        with pytest.raises(InputError, match=rf"shard-00001-\w+\.h5: .*{fault}.*featurize command again"):
            ColumnReader(tmp_path, "clip", check_content=False)
    path.unlink()
    with pytest.raises(InputError, match=r"shard-00001-\w+\.h5: missing"):
        ColumnReader(tmp_path, "clip", check_content=False)


def test_a_reader_survives_pickling_without_its_maps(tmp_path: Path) -> None:
    values = _filled(tmp_path, _spec(1000, 300, row_shape=(20, 16)))
    data = pickle.dumps(ColumnReader(tmp_path, "clip"))
    assert len(data) < 3000, "no rows travel"
    np.testing.assert_array_equal(pickle.loads(data).gather([999, 0]), values[[999, 0]])


def _save_gathered(reader: ColumnReader, rows: list[int], path: Path) -> None:
    np.save(path, reader.gather(rows))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_read_the_same_rows(tmp_path: Path, method: str) -> None:
    values = _filled(tmp_path, _spec(10, 4))
    reader, rows = ColumnReader(tmp_path, "clip"), [9, 3, 3, 0]
    process = multiprocessing.get_context(method).Process(target=_save_gathered, args=(reader, rows, tmp_path / "rows.npy"))
    process.start()
    process.join()
    assert process.exitcode == 0
    np.testing.assert_array_equal(np.load(tmp_path / "rows.npy"), values[rows])
    np.testing.assert_array_equal(reader.gather(rows), values[rows])


def test_threads_read_the_same_rows(tmp_path: Path) -> None:
    values = _filled(tmp_path, _spec(200, 30))
    reader = ColumnReader(tmp_path, "clip")
    orders = [np.random.default_rng(n).permutation(200) for n in range(16)]
    with ThreadPoolExecutor(8) as pool:
        for order, found in zip(orders, pool.map(reader.gather, orders), strict=True):
            np.testing.assert_array_equal(found, values[order])


MEASURE = """
import sys, tracemalloc
from pathlib import Path
import numpy as np
from lugpi_core.store.reader import ColumnReader

def private_kilobytes():
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))

np.empty(1), ColumnReader(Path(sys.argv[1]), "warm", check_content=False).gather([0])
before = private_kilobytes()
tracemalloc.start()
reader = ColumnReader(Path(sys.argv[1]), "clip", check_content=False)
out = np.empty((14, *reader.spec.row_shape), np.float16)
for first in range(0, len(reader) - 13, 14):
    reader.gather(np.random.default_rng(first).permutation(len(reader))[:14], out)
print(tracemalloc.get_traced_memory()[1], (private_kilobytes() - before) * 1024)
"""


def _reader_memory_bytes(store: Path) -> tuple[int, int]:
    done = subprocess.run([sys.executable, "-c", MEASURE, store], capture_output=True, text=True, check=True, cwd=ROOT)
    allocated, private = map(int, done.stdout.split())
    return allocated, private


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_memory_of_a_reader_does_not_grow_with_the_store(tmp_path: Path) -> None:
    small, large = (_spec(rows, rows // 2, row_shape=(50, 96)) for rows in (140, 2800))
    for store, spec in ((tmp_path / "small", small), (tmp_path / "large", large)):
        _filled(store, spec)
        _filled(store, _spec(1, 1, name="warm"))
    more_bytes = (large.rows - small.rows) * 50 * 96 * 2  # 25 MB
    (small_allocated, small_private), (large_allocated, large_private) = map(_reader_memory_bytes, (tmp_path / "small", tmp_path / "large"))
    assert large_allocated - small_allocated < more_bytes / 100
    assert large_private - small_private < more_bytes / 10


def test_a_writer_needs_memory_for_a_batch_and_the_hashes(tmp_path: Path) -> None:
    import tracemalloc

    spec = _spec(2000, 2000, row_shape=(50, 96))
    batch, flags = np.ones((14, 50, 96), np.float16), np.zeros(14, np.uint8)
    writer = ColumnWriter(tmp_path, spec).claim(0)
    assert writer is not None
    tracemalloc.start()
    for first in range(0, 1988, 14):
        writer.write(first, batch, flags)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    writer.close()
    assert peak_bytes < 2 * batch.nbytes < 2000 * 50 * 96 * 2 / 50


def test_columns_of_names_the_columns_sorted_and_nothing_else(tmp_path: Path) -> None:
    assert columns_of(tmp_path / "none") == []
    for name in ("vit", "clip", "latents"):
        open_manifest(tmp_path / name, _spec(1, 1, name=name))
    assert columns_of(tmp_path) == [], "a column without a shard is none"
    for name in ("vit", "clip", "latents"):
        (tmp_path / name / "shard-00000.h5.partial").touch()
    (tmp_path / "notes").mkdir()
    (tmp_path / "tokens.h5").write_bytes(b"")
    assert columns_of(tmp_path) == ["clip", "latents", "vit"]
    assert token_columns_of(tmp_path) == ["clip", "vit"]


def test_an_unknown_column_gets_the_names_of_token_columns(tmp_path: Path) -> None:
    for name in ("vit", "clip", "latents"):
        open_manifest(tmp_path / name, _spec(1, 1, name=name))
        (tmp_path / name / "shard-00000.h5.partial").touch()
    with pytest.raises(InputError, match=r"no column 'clipp' in .*; expected one of clip, vit; .*--encoders clipp"):
        ColumnReader(tmp_path, "clipp")


def test_a_missing_store_says_how_to_create_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no token store in .*; run python -m featurize first"):
        ColumnReader(tmp_path / "none", "clip")


def test_a_store_of_latents_alone_says_how_to_get_tokens(tmp_path: Path) -> None:
    open_manifest(tmp_path / "latents", _spec(1, 1, name="latents"))
    (tmp_path / "latents" / "shard-00000.h5.partial").touch()
    with pytest.raises(InputError, match=r"which contains only latents; expected tokens; run python -m featurize with an encoder"):
        ColumnReader(tmp_path, "clip")


def test_an_incomplete_column_is_refused_with_its_count(tmp_path: Path) -> None:
    column = ColumnWriter(tmp_path, _spec(10, 4))
    writer = column.claim(1)
    assert writer is not None
    writer.write(0, np.ones((4, 2, 3), np.float16), np.zeros(4, np.uint8))
    column.commit(1, writer)
    with pytest.raises(InputError, match=r"clip with 4 of 10 rows; expected all of them; run the same featurize command again"):
        ColumnReader(tmp_path, "clip")


def test_a_column_of_another_fingerprint_is_not_resumed_or_changed(tmp_path: Path) -> None:
    values = _filled(tmp_path, _spec(10, 4))
    other = ColumnSpec(name="clip", what="tokens", rows=10, row_shape=(2, 3), shard_rows=4, fingerprint={"seed": 1})
    with pytest.raises(InputError, match="seed: found 0, wanted 1"):
        ColumnWriter(tmp_path, other)
    np.testing.assert_array_equal(ColumnReader(tmp_path, "clip").gather(range(10)), values)


def test_a_shard_is_opened_with_h5py_alone(tmp_path: Path) -> None:
    values = _filled(tmp_path, _spec(10, 4), flagged=(6,))
    with h5py.File(shard_file(tmp_path / "clip", 1)) as file:
        np.testing.assert_array_equal(file["tokens"][:], values[4:8])
        assert file["flags"][:].tolist() == [0, 0, 1, 0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_shard_is_opened_by_the_datasets_library_without_lugpi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: Dtype) -> None:
    spec = _spec(10, 4, dtype=dtype)
    _filled(tmp_path / "tokens", spec)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    import datasets

    shards = [str(shard_file(tmp_path / "tokens" / "clip", shard)) for shard in range(3)]
    loaded = datasets.load_dataset("hdf5", data_files=shards, split="train", cache_dir=str(tmp_path / "hf")).with_format("numpy")
    values, scales = _stored(spec)
    assert len(loaded) == 10
    assert sorted(loaded.column_names) == sorted(["flags", "row_hash", "tokens", *([] if scales is None else ["scale"])])
    np.testing.assert_array_equal(np.asarray(loaded["tokens"][:]).reshape(10, 2, 3).astype(values.dtype), values)
    assert loaded[9]["tokens"].shape == (2, 3)
    if scales is not None:
        np.testing.assert_array_equal(np.asarray(loaded["scale"][:]).reshape(10, 2), scales)


def test_a_shards_record_names_the_versions_that_wrote_it(tmp_path: Path) -> None:
    import torch

    _filled(tmp_path, _spec(3, 3))
    assert load_manifest(tmp_path / "clip")[1][0]["versions"]["torch"] == torch.__version__
