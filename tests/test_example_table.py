"""examples.h5: the table of one corpus, refused for any other, read by anybody."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from lugpi_core.errors import InputError
from lugpi_core.example_table import EXAMPLES, ExampleTable, read_example_table, write_example_table
from lugpi_core.examples import Corpus, Example

IDS = ("train/1", "Übung-2", "例え-3")
CORPUS = Corpus(
    name="kürzel",
    label_names=("böse", "gut"),
    examples=(
        Example(id=IDS[0], text="one", prompt="draw one", label=1, split="train"),
        Example(id=IDS[1], text="two", prompt="draw two", label=0, split="test"),
        Example(id=IDS[2], text="three", prompt="draw one", label=1, split="validation"),
    ),
    license="none",
)
TABLE = ExampleTable(drawing=np.array([0, 1, 0]), prompt_cut=np.array([False, True, False]), corpus_fingerprint=CORPUS.fingerprint())


@pytest.fixture
def store(tmp_path: Path) -> Path:
    write_example_table(tmp_path / "tokens", CORPUS, TABLE)
    return tmp_path / "tokens"


def test_a_table_survives_the_round_trip(store: Path) -> None:
    table = read_example_table(store, CORPUS)
    np.testing.assert_array_equal(table.drawing, TABLE.drawing)
    np.testing.assert_array_equal(table.prompt_cut, TABLE.prompt_cut)
    assert (table.drawing.dtype, table.prompt_cut.dtype) == (np.int64, np.bool_)
    assert table.corpus_fingerprint == CORPUS.fingerprint()
    assert [path.name for path in store.iterdir()] == [EXAMPLES]


def test_anybody_reads_the_table_with_h5py_and_ids_keep_their_letters(store: Path) -> None:
    with h5py.File(store / EXAMPLES) as file:
        assert [name.decode() for name in file["id"][:]] == list(IDS)
        assert [name.decode() for name in file["label_name"][:]] == ["böse", "gut"]
        assert file["label"][:].tolist() == [1, 0, 1]
        assert file["split"][:].tolist() == [0, 2, 1]
        assert file["drawing"][:].tolist() == [0, 1, 0]
        assert file["prompt_cut"][:].tolist() == [0, 1, 0]
        assert file.attrs["corpus"].decode() == "kürzel"


def test_the_table_replaces_the_one_before(store: Path) -> None:
    write_example_table(store, CORPUS, dataclasses.replace(TABLE, drawing=np.array([2, 1, 0])))
    assert read_example_table(store, CORPUS).drawing.tolist() == [2, 1, 0]


def _with_first(**changes: Any) -> Corpus:
    first, *rest = CORPUS.examples
    return dataclasses.replace(CORPUS, examples=(dataclasses.replace(first, **changes), *rest))


@pytest.mark.parametrize(
    "other",
    [
        _with_first(split="test"),
        _with_first(label=0),
        _with_first(text="other"),
        _with_first(prompt="other"),
        _with_first(id="other"),
        dataclasses.replace(CORPUS, label_names=("a", "b")),
        dataclasses.replace(CORPUS, examples=CORPUS.examples[:2]),
        dataclasses.replace(CORPUS, examples=CORPUS.examples[::-1]),
    ],
    ids=["split", "label", "text", "prompt", "id", "label names", "fewer", "order"],
)
def test_the_table_of_another_corpus_split_or_label_is_refused(store: Path, other: Corpus) -> None:
    with pytest.raises(InputError, match=r"got a token store of 'kürzel' with other examples, labels or splits; .*run featurize again"):
        read_example_table(store, other)


def test_a_store_without_a_table_says_what_makes_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no token store in .*; run python -m featurize first"):
        read_example_table(tmp_path, CORPUS)


def _replace(name: str, make: Callable[[h5py.File], None]) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            del file[name]
            make(file)

    return change


def _external(file: h5py.File) -> None:
    secret = Path(file.filename).with_name("secret")
    secret.write_bytes(b"s" * 24)
    file.create_dataset("drawing", (3,), "<i8", external=[(str(secret), 0, 24)])


def _attribute(name: str, value: object) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            file.attrs[name] = value

    return change


def _without_attribute(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file.attrs["corpus_fingerprint"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b"not HDF5"),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        _replace("drawing", lambda file: None),
        _replace("drawing", lambda file: file.create_group("drawing")),
        _replace("drawing", _external),
        _replace("drawing", lambda file: file.create_dataset("drawing", (1 << 40,), "<i8", chunks=(1024,))),
        _replace("drawing", lambda file: file.create_dataset("drawing", data=np.zeros(2, "<i8"))),
        _replace("prompt_cut", lambda file: file.create_dataset("prompt_cut", data=np.zeros(3, "<f4"))),
        _replace("prompt_cut", lambda file: file.__setitem__("prompt_cut", h5py.SoftLink("/drawing"))),
        _attribute("corpus", "a text of variable length"),
        _attribute("corpus", np.bytes_(b"\xff\xfe")),
        _without_attribute,
    ],
)
def test_a_damaged_or_hostile_table_is_refused(store: Path, damage: Callable[[Path], None]) -> None:
    damage(store / EXAMPLES)
    with pytest.raises(InputError, match=r"examples\.h5 \(.*\); expected the table as lugpi wrote it; run featurize again"):
        read_example_table(store, CORPUS)
