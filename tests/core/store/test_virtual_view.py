"""tokens.h5: the whole store through one file, from any folder, with h5py alone."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from lugpi_core.corpora.corpus import Corpus, Example
from lugpi_core.errors import InputError
from lugpi_core.store.example_table import ExampleTable, write_example_table
from lugpi_core.store.layout import Dtype
from lugpi_core.store.manifest import ColumnSpec, load_manifest, record_path, write_record
from lugpi_core.store.reader import ColumnReader
from lugpi_core.store.virtual_view import VIEW, view_is_current, write_view
from lugpi_core.store.writer import ColumnWriter
from tests.support.clock import next_second
from tests.support.shards import shard_file

EXAMPLE = Example(id="ä", text="t", prompt="p", label=0, split="train")
CORPUS = Corpus(name="c", label_names=("a",), examples=(EXAMPLE, EXAMPLE), license="none")


def _fill(
    store: Path, name: str, row_shape: tuple[int, ...], *, dtype: Dtype = "float16", shards: int | None = None, seed: int = 0
) -> None:
    what = "latents" if name == "latents" else "tokens"
    spec = ColumnSpec(name=name, what=what, rows=10, row_shape=row_shape, shard_rows=4, fingerprint={"seed": seed}, dtype=dtype)
    column = ColumnWriter(store, spec)
    for shard in range(spec.shards if shards is None else shards):
        writer = column.claim(shard)
        if writer is None:
            continue
        count, random = writer.layout.rows, np.random.default_rng(shard + 1000 * seed)
        flags = np.full(count, shard % 2, np.uint8)
        if dtype == "int8":
            values = random.integers(-127, 128, size=(count, *row_shape), dtype=np.int8)
            writer.write(0, values, flags, random.random((count, *row_shape[:-1]), np.float32))
        else:
            writer.write(0, random.normal(size=(count, *row_shape)).astype(np.float16), flags)
        column.commit(shard, writer)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("made") / "tokens"
    _fill(store, "clip", (2, 3))
    _fill(store, "eight", (2, 3), dtype="int8")
    _fill(store, "latents", (4, 2, 2))
    _fill(store, "unfinished", (2, 3), shards=2)
    _fill(store, "begun", (2, 3), shards=0)
    table = ExampleTable(drawings=np.array([[3], [1]]), prompt_cut=np.array([True, False]), corpus_fingerprint=CORPUS.fingerprint())
    write_example_table(store, CORPUS, table)
    write_view(store)
    return store


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run" / "tokens"))


def _refuse_unlike(store: Path) -> None:
    with h5py.File(store / VIEW, "r") as view:
        for column, names in (("clip", ["tokens"]), ("eight", ["scale", "tokens"]), ("latents", ["latents"])):
            stored = ColumnReader(store, column).gather_stored(range(10))
            assert sorted(stored) == names
            for name, values in stored.items():
                assert view[column][name].dtype == values.dtype
                np.testing.assert_array_equal(view[column][name][:], values)
            assert view[column]["flags"][:].tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 0, 0]
            assert sorted(view[column]) == sorted(["flags", *names])


def test_the_view_shows_the_readers_rows_and_flags(store: Path) -> None:
    _refuse_unlike(store)
    with h5py.File(store / VIEW, "r") as view:
        rows = view["clip/tokens"]
        assert (rows.dtype, rows.shape, rows.is_virtual) == (np.float16, (10, 2, 3), True)


def test_int8_tokens_are_values_times_scale(store: Path) -> None:
    with h5py.File(store / VIEW, "r") as view:
        values, scales = view["eight/tokens"][:], view["eight/scale"][:]
    np.testing.assert_array_equal((values * scales[..., None]).astype(np.float16), ColumnReader(store, "eight").gather(range(10)))


def test_rows_of_several_shards_are_read_in_one_slice(store: Path) -> None:
    with h5py.File(store / VIEW, "r") as view:
        np.testing.assert_array_equal(view["clip/tokens"][3:9], ColumnReader(store, "clip").gather(range(3, 9)))


def test_the_view_is_read_from_another_working_directory(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    _refuse_unlike(store)
    monkeypatch.chdir(store.parent)
    _refuse_unlike(Path("tokens"))


def test_the_view_is_read_after_the_folder_was_moved(store: Path, tmp_path: Path) -> None:
    moved = tmp_path / "other" / "place"
    moved.parent.mkdir()
    store.rename(moved)
    shutil.rmtree(tmp_path / "run")
    _refuse_unlike(moved)


def test_incomplete_columns_are_left_out_of_the_view(store: Path) -> None:
    with h5py.File(store / VIEW, "r") as view:
        assert sorted(view) == ["clip", "eight", "examples", "latents"]
    _fill(store, "begun", (2, 3))
    write_view(store)
    with h5py.File(store / VIEW, "r") as view:
        assert sorted(view) == ["begun", "clip", "eight", "examples", "latents"]


def test_the_view_contains_the_example_table(store: Path) -> None:
    with h5py.File(store / VIEW, "r") as view:
        assert sorted(view["examples"]) == ["drawing", "id", "label", "label_name", "prompt_cut", "split"]
        assert view["examples/drawing"][:].tolist() == [3, 1]
        assert view["examples/id"][0].decode() == "ä"


def test_the_view_copies_no_row(store: Path) -> None:
    assert (store / VIEW).stat().st_size < 40_000
    shard_file(store / "clip", 0).unlink()
    with h5py.File(store / VIEW, "r") as view:
        assert np.isnan(view["clip/tokens"][:4]).all(), "its rows lived in the shard"


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """The store of another run, with columns of the same names and shapes but other rows."""
    store = tmp_path / "other" / "tokens"
    for name, row_shape in (("clip", (2, 3)), ("eight", (2, 3)), ("latents", (4, 2, 2))):
        _fill(store, name, row_shape, dtype="int8" if name == "eight" else "float16", seed=1)
    return store


def _tokens_of(view: h5py.File, column: str) -> NDArray[np.floating[Any]]:
    """Return the rows of a column as a reader of the format computes them."""
    if column == "eight":
        values: NDArray[np.floating[Any]] = view["eight/tokens"][:] * view["eight/scale"][:][..., None]
        return values
    return np.asarray(view[column]["latents" if column == "latents" else "tokens"])


@pytest.mark.parametrize("folder", ["elsewhere", "other", "own"])
def test_rows_of_a_missing_shard_read_as_nan_from_any_folder(
    store: Path, other: Path, tmp_path: Path, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    for column in ("clip", "eight", "latents"):
        shard_file(store / column, 1).unlink()
    monkeypatch.chdir({"elsewhere": tmp_path / "elsewhere", "other": other, "own": store}[folder])
    with h5py.File(store / VIEW, "r") as view:
        for column in ("clip", "eight", "latents"):
            rows = _tokens_of(view, column)
            assert np.isnan(rows[4:8]).all(), column
            assert np.isfinite(rows[[0, 3, 8, 9]]).all(), column
            assert view[column]["flags"][:].tolist() == [0, 0, 0, 0, 255, 255, 255, 255, 0, 0]


def test_a_linked_view_reads_no_other_runs_shards(store: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = tmp_path / "latest.h5"
    link.symlink_to(store / VIEW)
    monkeypatch.chdir(other)
    with h5py.File(link, "r") as view:
        np.testing.assert_array_equal(view["clip/tokens"][:], ColumnReader(store, "clip").gather(range(10)))


def test_a_prefix_for_views_finds_no_other_runs_shards(store: Path, other: Path) -> None:
    shard_file(store / "clip", 1).unlink()
    program = f"import h5py; print(h5py.File({str(store / VIEW)!r})['clip/tokens'][4:8].sum())"
    environment = {**os.environ, "HDF5_VDS_PREFIX": str(other)}
    printed = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "nan"


def test_shards_have_other_names_in_columns_of_other_rows() -> None:
    spec = ColumnSpec(name="clip", what="tokens", rows=10, row_shape=(2, 3), shard_rows=4, fingerprint={"seed": 0})
    others = [spec, replace(spec, fingerprint={"seed": 1}), replace(spec, rows=11), replace(spec, shard_rows=5)]
    assert len({one.shard_name(0) for one in others}) == len(others)
    assert replace(spec, name="vit", license="l").shard_name(0) == spec.shard_name(0)


def test_a_shard_under_another_name_makes_the_view_stale(store: Path) -> None:
    """As a shard of an earlier version does that is repaired."""
    _, records = load_manifest(store / "clip")
    shard_file(store / "clip", 1).rename(store / "clip" / "shard-00001.h5")
    record_path(store / "clip", 1).unlink()
    write_record(store / "clip", load_manifest(store / "clip")[0], 1, records[1] | {"file": "shard-00001.h5"})
    assert not view_is_current(store)
    write_view(store)
    _refuse_unlike(store)


def test_a_view_that_cannot_be_written_leaves_the_old_one(store: Path) -> None:
    content = (store / VIEW).read_bytes()
    (store / "clip" / "manifest.json").write_text("{}")
    with pytest.raises(InputError, match=r"clip/manifest\.json"):
        write_view(store)
    assert (store / VIEW).read_bytes() == content
    assert not list(store.glob(".*"))


def test_a_store_without_a_table_has_a_view_of_its_columns(store: Path) -> None:
    (store / "examples.h5").unlink()
    write_view(store)
    with h5py.File(store / VIEW, "r") as view:
        assert sorted(view) == ["clip", "eight", "latents"]


def test_the_same_store_gives_the_same_view_in_any_folder(store: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(store, tmp_path / "copy"))
    (copy / VIEW).unlink()
    write_view(copy)
    assert (copy / VIEW).read_bytes() == (store / VIEW).read_bytes()
    assert view_is_current(copy)


def test_the_same_store_gives_the_same_view_at_any_time(store: Path) -> None:
    before = (store / VIEW).read_bytes()
    next_second()
    write_view(store)
    assert (store / VIEW).read_bytes() == before


def _new_column(store: Path) -> None:
    _fill(store, "begun", (2, 3))


def _new_table(store: Path) -> None:
    table = ExampleTable(drawings=np.array([[3], [2]]), prompt_cut=np.array([True, False]), corpus_fingerprint=CORPUS.fingerprint())
    write_example_table(store, CORPUS, table)


def _flipped_bit(store: Path) -> None:
    content = bytearray((store / VIEW).read_bytes())
    content[-1] ^= 1
    (store / VIEW).write_bytes(content)


def _removed(store: Path) -> None:
    (store / VIEW).unlink()


@pytest.mark.parametrize("change", [_new_column, _new_table, _flipped_bit, _removed])
def test_a_view_is_current_until_the_store_or_the_view_changes(store: Path, change: Callable[[Path], None]) -> None:
    assert view_is_current(store)
    change(store)
    assert not view_is_current(store)
    write_view(store)
    assert view_is_current(store)
    _refuse_unlike(store)
