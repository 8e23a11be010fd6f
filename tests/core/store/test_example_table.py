"""examples.h5: the table of one corpus, refused for any other, readable with h5py."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from lugpi_core.corpora.corpus import Corpus, Example
from lugpi_core.errors import InputError
from lugpi_core.store.example_table import EXAMPLES, ExampleTable, read_example_table, subset_in_words, write_example_table
from lugpi_core.store.sealed_file import write_sealed
from tests.support.small_column import SPEC, filled

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
TABLE = ExampleTable(drawings=np.array([[0], [1], [0]]), prompt_cut=np.array([False, True, False]), corpus_fingerprint=CORPUS.fingerprint())


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


def test_h5py_reads_the_table_and_ids_keep_their_letters(store: Path) -> None:
    with h5py.File(store / EXAMPLES) as file:
        assert [name.decode() for name in file["id"][:]] == list(IDS)
        assert [name.decode() for name in file["label_name"][:]] == ["böse", "gut"]
        assert file["label"][:].tolist() == [1, 0, 1]
        assert file["split"][:].tolist() == [0, 2, 1]
        assert file["drawing"][:].tolist() == [0, 1, 0]
        assert file["prompt_cut"][:].tolist() == [0, 1, 0]
        assert file.attrs["corpus"].decode() == "kürzel"


def test_the_table_replaces_the_one_before(store: Path) -> None:
    write_example_table(store, CORPUS, dataclasses.replace(TABLE, drawings=np.array([[2], [1], [0]])))
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
    with pytest.raises(
        InputError, match=r"got a token store of 'kürzel' with other examples, prompts, labels or splits; .*run featurize again"
    ):
        read_example_table(store, other)


def test_the_flags_that_a_store_was_made_with_are_named(store: Path) -> None:
    """What differs may be a corpus flag that one of two commands lacked."""
    flags = {"data_dir": "data", "text_column": "text", "prompt_column": "title", "stratify": False, "images_from": "photo", "steps": 2}
    filled(store, dataclasses.replace(SPEC, made_by=flags))
    with pytest.raises(InputError, match=r"give here those that featurize had \(--prompt-column title --no-stratify\), or, if"):
        read_example_table(store, _with_first(prompt="other"))


def test_flags_that_a_shell_would_take_apart_are_quoted(store: Path) -> None:
    filled(store, dataclasses.replace(SPEC, made_by={"data_dir": "data", "label_separator": ";", "text_column": "the text"}))
    with pytest.raises(InputError, match=r"\(--text-column 'the text' --label-separator ';'\)"):
        read_example_table(store, _with_first(prompt="other"))


def test_a_store_without_a_table_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no token store in .*; run python -m featurize first"):
        read_example_table(tmp_path, CORPUS)


def test_names_without_a_utf8_form_are_escaped(tmp_path: Path) -> None:
    # As in CSV files read with errors="surrogateescape", and in broken JSON.
    corpus = dataclasses.replace(
        CORPUS, label_names=("b\ud800", "gut"), examples=(dataclasses.replace(CORPUS.examples[0], id="row\udcff"), *CORPUS.examples[1:])
    )
    table = dataclasses.replace(TABLE, corpus_fingerprint=corpus.fingerprint())
    write_example_table(tmp_path, corpus, table)
    with h5py.File(tmp_path / EXAMPLES) as file:
        assert [name.decode() for name in file["id"][:]] == ["row\\udcff", *IDS[1:]]
        assert [name.decode() for name in file["label_name"][:]] == ["b\\ud800", "gut"]
    assert read_example_table(tmp_path, corpus).drawing.tolist() == [0, 1, 0]


def test_equal_tables_are_equal_bytes(store: Path) -> None:
    content = (store / EXAMPLES).read_bytes()
    write_example_table(store, CORPUS, TABLE)
    assert (store / EXAMPLES).read_bytes() == content


def test_the_table_is_read_without_hdf5(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(h5py, "File", None)
    assert read_example_table(store, CORPUS).drawing.tolist() == [0, 1, 0]


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


def _bit(place: int) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[place] ^= 4
        path.write_bytes(content)

    return change


DAMAGE: dict[str, Callable[[Path], object]] = {
    "not HDF5": lambda path: path.write_bytes(b"not HDF5"),
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "a bit of the seal": _bit(20),
    "a bit of the content": _bit(-100),
    "a column removed": _replace("drawing", lambda file: None),
    "external storage": _replace("drawing", _external),
    "one TiB declared": _replace("drawing", lambda file: file.create_dataset("drawing", (1 << 40,), "<i8", chunks=(1024,))),
    "a column too short": _replace("drawing", lambda file: file.create_dataset("drawing", data=np.zeros(2, "<i8"))),
    "a soft link": _replace("prompt_cut", lambda file: file.__setitem__("prompt_cut", h5py.SoftLink("/drawing"))),
    "an attribute changed": _attribute("corpus", "a text of variable length"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_or_hostile_table_is_refused(store: Path, damage: Callable[[Path], object]) -> None:
    damage(store / EXAMPLES)
    with pytest.raises(InputError, match=r"examples\.h5 \(.*\); expected the file as lugpi wrote it; run the same featurize command again"):
        read_example_table(store, CORPUS)


def _forge(store: Path, columns: dict[str, Any]) -> None:
    """Write a correctly sealed table with content that no table of ours has."""

    def build(file: Any) -> None:
        for name, values in columns.items():
            file[name] = values

    write_sealed(store / EXAMPLES, {"corpus": "c", "corpus_fingerprint": CORPUS.fingerprint()}, build)


DRAWING, CUT = np.array([0, 1, 0], "<i8"), np.zeros(3, "u1")


def test_several_images_per_example_are_all_in_the_table(tmp_path: Path) -> None:
    table = dataclasses.replace(TABLE, drawings=np.array([[0, 1], [2, 3], [0, 1]]))
    write_example_table(tmp_path, CORPUS, table)
    with h5py.File(tmp_path / EXAMPLES) as file:
        assert file["drawings"][:].tolist() == [[0, 1], [2, 3], [0, 1]]
        assert file["drawing"][:].tolist() == [0, 2, 0]
    found = read_example_table(tmp_path, CORPUS)
    assert (found.drawings.tolist(), found.drawing.tolist()) == ([[0, 1], [2, 3], [0, 1]], [0, 2, 0])


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"drawing": DRAWING, "drawings": DRAWING, "prompt_cut": CUT}, "without a plain drawings"),
        ({"drawing": DRAWING, "drawings": DRAWING[:2, None], "prompt_cut": CUT}, "without a plain drawings"),
        ({"drawing": DRAWING, "drawings": DRAWING[:, None][:, :0], "prompt_cut": CUT}, "with drawing 0"),
        ({"drawing": np.int64(3), "prompt_cut": CUT}, "without a plain drawing"),
        ({"drawing": DRAWING}, "without a plain prompt_cut for each example"),
        ({"prompt_cut": CUT}, "without a plain drawing for each example"),
        ({"drawing": DRAWING[:2], "prompt_cut": CUT}, "without a plain drawing"),
        ({"drawing": DRAWING[:, None], "prompt_cut": CUT}, "without a plain drawing"),
        ({"drawing": np.array([b"0", b"1", b"0"]), "prompt_cut": CUT}, "without a plain drawing"),
        ({"drawing": DRAWING - 1, "prompt_cut": CUT}, "with drawing -1; expected rows counted from 0"),
        ({"drawing": np.array([0, 1, 1 << 63], "<u8"), "prompt_cut": CUT}, "with drawing -9223372036854775808"),
    ],
    ids=[
        "drawings of one dimension",
        "too few drawings",
        "no drawings",
        "a scalar",
        "no prompt_cut",
        "no drawing",
        "too short",
        "two dimensions",
        "letters",
        "negative",
        "beyond int64",
    ],
)
def test_a_sealed_table_of_another_form_is_refused(store: Path, columns: dict[str, Any], told: str) -> None:
    _forge(store, columns)
    with pytest.raises(InputError, match=rf"examples\.h5 {told}.*; run featurize again"):
        read_example_table(store, CORPUS)


def test_examples_without_an_image_survive_the_round_trip_in_a_subset_alone(store: Path) -> None:
    some = dataclasses.replace(TABLE, drawings=np.array([[0, 1], [-1, -1], [0, 1]]), subset={"texts": 1, "of": 1, "by": "herding"})
    write_example_table(store, CORPUS, some)
    table = read_example_table(store, CORPUS)
    assert (table.drawings.tolist(), table.has_image.tolist()) == ([[0, 1], [-1, -1], [0, 1]], [True, False, True])
    assert table.subset == some.subset
    assert subset_in_words(some.subset or {}, 1) == (
        "no image was drawn for 1 text (--subset): 1 of 1 train texts of different prompts are chosen (herding)"
    )
    write_example_table(store, CORPUS, dataclasses.replace(some, subset=None))
    with pytest.raises(InputError, match=r"with drawing -1; expected rows counted from 0"):
        read_example_table(store, CORPUS)
    write_example_table(store, CORPUS, dataclasses.replace(some, drawings=np.array([[0, 1], [2, -1], [0, 1]])))
    with pytest.raises(InputError, match=r"some images of a text were drawn and some not; expected all of a text, or none"):
        read_example_table(store, CORPUS)
