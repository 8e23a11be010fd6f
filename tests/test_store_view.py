"""tokens.h5: the whole cache through one file, from anywhere, with h5py alone."""

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from lugpi_core.example_table import ExampleTable, write_example_table
from lugpi_core.examples import Corpus, Example
from lugpi_core.manifest import ColumnSpec
from lugpi_core.store_view import VIEW, write_view
from lugpi_core.token_store import ColumnReader, ColumnWriter

EXAMPLE = Example(id="ä", text="t", prompt="p", label=0, split="train")
CORPUS = Corpus(name="c", label_names=("a",), examples=(EXAMPLE, EXAMPLE), license="none")


def _fill(store: Path, name: str, what: str, row_shape: tuple[int, ...], shards: int | None = None) -> None:
    spec = ColumnSpec(name=name, what=what, rows=10, row_shape=row_shape, shard_rows=4, fingerprint={})
    column = ColumnWriter(store, spec)
    for shard in range(spec.shards if shards is None else shards):
        writer = column.open_shard(shard)
        count = writer.layout.rows
        values = np.random.default_rng(shard).normal(size=(count, *row_shape)).astype(np.float16)
        writer.write(0, values, np.full(count, shard % 2, np.uint8))
        column.commit(shard, writer)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    store = tmp_path / "run" / "tokens"
    _fill(store, "clip", "tokens", (2, 3))
    _fill(store, "latents", "latents", (4, 2, 2))
    _fill(store, "unfinished", "tokens", (2, 3), shards=2)
    _fill(store, "begun", "tokens", (2, 3), shards=0)
    table = ExampleTable(drawing=np.array([3, 1]), prompt_cut=np.array([True, False]), corpus_fingerprint=CORPUS.fingerprint())
    write_example_table(store, CORPUS, table)
    write_view(store)
    return store


def _refuse_unlike(store: Path) -> None:
    with h5py.File(store / VIEW, "r") as view:
        for column, what in (("clip", "tokens"), ("latents", "latents")):
            np.testing.assert_array_equal(view[column][what][:], ColumnReader(store, column).gather(range(10)))
            assert view[column]["flags"][:].tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 0, 0]
            assert sorted(view[column]) == sorted(["flags", what])


def test_the_view_shows_the_readers_rows_and_flags(store: Path) -> None:
    _refuse_unlike(store)
    with h5py.File(store / VIEW, "r") as view:
        rows = view["clip/tokens"]
        assert (rows.dtype, rows.shape, rows.is_virtual) == (np.float16, (10, 2, 3), True)


def test_the_view_is_read_from_another_working_directory(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    _refuse_unlike(store)
    monkeypatch.chdir(store.parent)
    _refuse_unlike(Path("tokens"))


def test_the_view_is_read_after_the_folder_was_moved_and_nothing_is_left_behind(store: Path, tmp_path: Path) -> None:
    moved = tmp_path / "other" / "place"
    moved.parent.mkdir()
    store.rename(moved)
    shutil.rmtree(tmp_path / "run")
    _refuse_unlike(moved)


def test_columns_that_are_not_complete_are_left_out_until_they_are(store: Path) -> None:
    with h5py.File(store / VIEW, "r") as view:
        assert sorted(view) == ["clip", "examples", "latents"]
    _fill(store, "begun", "tokens", (2, 3))
    write_view(store)
    with h5py.File(store / VIEW, "r") as view:
        assert sorted(view) == ["begun", "clip", "examples", "latents"]


def test_the_view_holds_the_example_table(store: Path) -> None:
    with h5py.File(store / VIEW, "r") as view:
        assert sorted(view["examples"]) == ["drawing", "id", "label", "label_name", "prompt_cut", "split"]
        assert view["examples/drawing"][:].tolist() == [3, 1]
        assert view["examples/id"][0].decode() == "ä"


def test_the_view_copies_no_row(store: Path) -> None:
    assert (store / VIEW).stat().st_size < 40_000
    (store / "clip" / "shard-00000.h5").unlink()
    with h5py.File(store / VIEW, "r") as view:
        assert not view["clip/tokens"][:4].any(), "its rows lived in the shard"


def test_a_view_that_cannot_be_made_leaves_the_old_one(store: Path) -> None:
    content = (store / VIEW).read_bytes()
    (store / "examples.h5").unlink()
    with pytest.raises(FileNotFoundError):
        write_view(store)
    assert (store / VIEW).read_bytes() == content
    assert not list(store.glob(".*"))
