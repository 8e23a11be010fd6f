"""TokenStore: by example, without the corpus, in NumPy's terms, and as a dataset of torch."""

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.utils.data import BatchSampler, DataLoader, Dataset, SequentialSampler, Subset

from lugpi_core.corpora.corpus import UNLABELLED, Corpus
from lugpi_core.errors import InputError
from lugpi_core.store.example_table import EXAMPLES, ExampleTable, write_example_table
from lugpi_core.store.layout import Dtype
from lugpi_core.store.manifest import ColumnSpec
from lugpi_core.store.quantize import dequantize_array
from lugpi_core.store.sealed_file import read_sealed, write_sealed
from lugpi_core.store.token_store import TokenStore
from lugpi_core.store.writer import ColumnWriter
from tests.support.shards import shard_file

N, SPLITS = 12, ["train"] * 8 + ["validation", "validation", "test", "test"]
CORPUS = Corpus.from_texts([f"tëxt {n}" for n in range(N)], ["bad", "good"] * 6, splits=SPLITS, name="some texts")


def _fill(store: Path, name: str, rows: int, *, dtype: Dtype = "float16", flagged: tuple[int, ...] = (), most: int = 99) -> NDArray[Any]:
    """Fill the first shards of a column of tokens [3, 4], or of latents, and return what a reader of float16 sees."""
    what, row_shape = ("latents", (2, 4, 4)) if name == "latents" else ("tokens", (3, 4))
    spec = ColumnSpec(name=name, what=what, rows=rows, row_shape=row_shape, shard_rows=5, fingerprint={"name": name}, dtype=dtype)
    random = np.random.default_rng(rows)
    values, scales = random.normal(size=(rows, *row_shape)).astype(np.float16), None
    exact = values
    if dtype == "int8":
        values, scales = random.integers(-127, 128, (rows, *row_shape), np.int8), random.random((rows, row_shape[0]), np.float32)
        exact = dequantize_array(values, scales, np.empty(values.shape, np.float16))
    flags = np.isin(np.arange(rows), flagged).astype(np.uint8)
    values[flags > 0] = 0
    column = ColumnWriter(store, spec)
    for shard in range(min(spec.shards, most)):
        writer = column.claim(shard)
        assert writer is not None
        part = slice(writer.layout.first_row, writer.layout.first_row + writer.layout.rows)
        writer.write(0, values[part], flags[part], None if scales is None else scales[part])
        column.commit(shard, writer)
    return exact


def _examples(store: Path, drawings: NDArray[np.int64], corpus: Corpus = CORPUS) -> None:
    cut = np.arange(len(drawings)) == 3
    write_example_table(store, corpus, ExampleTable(drawings=drawings, prompt_cut=cut, corpus_fingerprint=corpus.fingerprint()))


# Two examples share an image, and the order of the images is not that of the examples.
FIRST = np.array([4, 0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 4])


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, NDArray[Any]]]:
    """A store with one image per text: two columns of tokens, latents, and an incomplete column."""
    store = tmp_path_factory.mktemp("one") / "tokens"
    _examples(store, FIRST[:, None])
    values = {"clip": _fill(store, "clip", 11, flagged=(5,)), "eight": _fill(store, "eight", 11, dtype="int8")}
    values["latents"] = _fill(store, "latents", 11)
    _fill(store, "begun", 11, most=1)
    return store, {name: rows[FIRST] for name, rows in values.items()}


@pytest.fixture(scope="module")
def store(filled: tuple[Path, dict[str, NDArray[Any]]]) -> TokenStore:
    return TokenStore(filled[0])


def test_a_store_opens_without_its_corpus(store: TokenStore) -> None:
    assert store.columns == ("clip", "eight")
    assert len(store) == N
    assert store.labels.dtype == np.int64
    assert store.labels.tolist() == [example.label for example in CORPUS.examples]
    assert store.label_names == ("bad", "good")
    assert store.splits.tolist() == SPLITS
    assert store.ids.tolist() == [example.id for example in CORPUS.examples]
    assert store.drawings.tolist() == FIRST[:, None].tolist()
    assert store.prompt_cut.tolist() == [n == 3 for n in range(N)]
    assert (store.corpus_name, store.corpus_fingerprint) == ("some texts", CORPUS.fingerprint())
    assert store.rows("test") == [10, 11]
    assert store.rows("val") == [8, 9]
    with pytest.raises(InputError, match=r"got split 'tset'; expected one of train, .*; did you mean 'test'"):
        store.rows("tset")
    assert repr(store).endswith("tokens', 12 examples, columns clip, eight)")


@pytest.mark.parametrize("column", ["clip", "eight", "latents"])
@pytest.mark.parametrize(
    "index",
    [7, -1, slice(2, 9, 3), slice(None), [0, 7, 7, 3], [], np.array([[0, 1], [11, 2]]), np.array(SPLITS) == "validation"],
    ids=repr,
)
def test_a_column_is_indexed_as_an_array(filled: tuple[Path, dict[str, NDArray[Any]]], store: TokenStore, column: str, index: Any) -> None:
    rows = filled[1][column]
    found = store[column][index]
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, rows[index])
    tensor = store[column].torch(index)
    assert tensor.dtype == torch.float16
    np.testing.assert_array_equal(tensor.numpy(), rows[index])
    assert (store[column].shape, len(store[column])) == (rows.shape, N)


def test_a_column_says_its_name_and_its_failed_images(store: TokenStore) -> None:
    assert np.flatnonzero(store["clip"].failed).tolist() == [5]
    assert not store["clip"][5].any()
    assert not store["eight"].failed.any()
    assert store["clip"].name == "clip"
    assert repr(store["clip"]) == "TokenColumn('clip', 12 × 3 × 4)"
    assert store["clip"] is store["clip"]


@pytest.mark.parametrize("index", [N, -N - 1, [0, N], (0, 1), np.array([True]), 1.5])
def test_an_invalid_index_is_an_index_error(store: TokenStore, index: Any) -> None:
    with pytest.raises(IndexError):
        store["clip"][index]


def test_batches_are_read_in_order(filled: tuple[Path, dict[str, NDArray[Any]]], store: TokenStore) -> None:
    batches = BatchSampler(SequentialSampler(store), 5, drop_last=False)
    found = list(store["eight"].batches(batches))
    assert [len(batch) for batch in found] == [5, 5, 2]
    np.testing.assert_array_equal(np.concatenate(found), filled[1]["eight"])


def test_an_example_is_a_dict(filled: tuple[Path, dict[str, NDArray[Any]]], store: TokenStore) -> None:
    example = store[9]
    assert example.keys() == {"clip", "eight", "label", "split", "id"}
    assert (example["label"], example["split"], example["id"]) == (1, "validation", "row/9")
    np.testing.assert_array_equal(example["eight"].numpy(), filled[1]["eight"][9])
    assert store[-1]["id"] == "row/11"
    assert len(list(store)) == N
    with pytest.raises(IndexError):
        store[N]


@pytest.mark.parametrize(("workers", "start"), [(0, None), (2, "fork"), (1, "spawn")])
def test_a_data_loader_takes_the_store(
    filled: tuple[Path, dict[str, NDArray[Any]]], store: TokenStore, workers: int, start: str | None
) -> None:
    assert isinstance(store, Dataset)
    store["clip"][0]  # mapped before the fork
    batches = list(DataLoader(store, batch_size=5, num_workers=workers, multiprocessing_context=start))
    assert [batch["label"].shape for batch in batches] == [(5,), (5,), (2,)]
    assert batches[0]["clip"].dtype == torch.float16
    np.testing.assert_array_equal(torch.cat([batch["clip"] for batch in batches]).numpy(), filled[1]["clip"])
    assert [name for batch in batches for name in batch["split"]] == SPLITS


def test_a_subset_of_a_split_shuffles(store: TokenStore) -> None:
    loader: DataLoader[Any] = DataLoader(Subset(store, store.rows("train")), batch_size=3, shuffle=True)
    assert sorted(name for batch in loader for name in batch["id"]) == sorted(f"row/{n}" for n in range(8))


def test_a_pickled_store_reads_the_same(store: TokenStore) -> None:
    again = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(again["clip"][:], store["clip"][:])


def test_only_chosen_columns_are_opened(filled: tuple[Path, dict[str, NDArray[Any]]]) -> None:
    store = TokenStore(filled[0], columns=["eight"])
    assert store.columns == ("eight",)
    assert store[0].keys() == {"eight", "label", "split", "id"}
    assert store["clip"].shape == (N, 3, 4)


@pytest.mark.parametrize(("column", "message"), [("vit", "no column 'vit'.*one of begun, clip, eight"), ("begun", "with 5 of 11 rows")])
def test_a_missing_or_incomplete_column_is_named(store: TokenStore, column: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        store[column]
    with pytest.raises(InputError, match=message):
        TokenStore(store.path, columns=[column])


def test_of_several_images_one_or_all_are_read(tmp_path: Path) -> None:
    drawings = np.arange(24).reshape(N, 2)[::-1].copy()
    _examples(tmp_path, drawings)
    rows = _fill(tmp_path, "clip", 24, flagged=(1,))
    np.testing.assert_array_equal(TokenStore(tmp_path)["clip"][[3, 1]], rows[drawings[[3, 1], 0]])
    np.testing.assert_array_equal(TokenStore(tmp_path, image=1)["clip"][:], rows[drawings[:, 1]])
    every = TokenStore(tmp_path, image=None)
    assert (every.images_per_text, every["clip"].shape) == (2, (N, 2, 3, 4))
    np.testing.assert_array_equal(every["clip"][[3, 1]], rows[drawings[[3, 1]]])
    np.testing.assert_array_equal(every[4]["clip"].numpy(), rows[drawings[4]])
    np.testing.assert_array_equal(np.concatenate(list(every["clip"].batches([[0], [1, 2]]))), rows[drawings[:3]])
    assert np.argwhere(every["clip"].failed).tolist() == [[11, 1]]
    with pytest.raises(InputError, match=r"image=2 of .* with 2 images per text; expected 0 to 1"):
        TokenStore(tmp_path, image=2)


def test_unlabelled_texts_have_no_classes(tmp_path: Path) -> None:
    corpus = Corpus.from_texts(["a", "b"])
    _examples(tmp_path, np.array([[0], [1]]), corpus)
    _fill(tmp_path, "clip", 2)
    store = TokenStore(tmp_path)
    assert (store.labels.tolist(), store.label_names) == ([UNLABELLED] * 2, ())


def test_no_store_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"no token store in {tmp_path}"):
        TokenStore(tmp_path)


def test_a_damaged_shard_is_found_on_opening(tmp_path: Path) -> None:
    _examples(tmp_path, FIRST[:, None])
    _fill(tmp_path, "clip", 11)
    path = shard_file(tmp_path / "clip", 1)
    content = bytearray(path.read_bytes())
    content[600] ^= 1  # among the tokens
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"shard-00001-\w+\.h5"):
        TokenStore(tmp_path)
    TokenStore(tmp_path, check_content=False)


def test_a_column_with_too_few_rows_is_refused(tmp_path: Path) -> None:
    _examples(tmp_path, FIRST[:, None])
    _fill(tmp_path, "clip", 10)
    with pytest.raises(InputError, match="with 10 rows; expected 11 or more"):
        TokenStore(tmp_path)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("label", np.zeros(N - 1, "<i8")),
        ("label", None),
        ("split", np.full(N, 3, "u1")),
        ("split", np.zeros((N, 1), "u1")),
        ("id", np.zeros(N, "<i8")),
        ("drawing", None),
        ("label_name", np.zeros(2, "<i8")),
    ],
)
def test_a_table_of_another_form_is_refused(tmp_path: Path, name: str, values: NDArray[Any] | None) -> None:
    _examples(tmp_path, FIRST[:, None])
    about, arrays = read_sealed(tmp_path / EXAMPLES)
    changed = {**arrays, name: values}

    def build(file: Any) -> None:
        for key, column in changed.items():
            if column is not None:
                file[key] = column

    write_sealed(tmp_path / EXAMPLES, about, build)
    with pytest.raises(InputError, match=r"examples\.h5 with"):
        TokenStore(tmp_path)


def test_a_store_of_another_corpus_is_recognised(store: TokenStore) -> None:
    other = dataclasses.replace(CORPUS, label_names=("x", "y"))
    assert store.corpus_fingerprint != other.fingerprint()


@pytest.mark.parametrize("key", [slice(2, 5), [1, 2], np.array([1, 2]), (1, 2), 1.0, None], ids=repr)
def test_a_store_takes_one_number_or_a_name(store: TokenStore, key: Any) -> None:
    with pytest.raises(TypeError, match=rf"a column's name, not a {type(key).__name__}; store\[column\]\[…\] takes several"):
        store[key]
    assert store[np.int64(3)]["id"] == "row/3"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, "with no rows; expected at least one complete column"),
        ({"latents": 1}, "with 5 of 11 rows of latents; expected at least one complete column"),
        ({"clip": 2, "latents": 99}, "with 10 of 11 rows of clip, 11 of 11 rows of latents; expected at least one complete column"),
    ],
    ids=str,
)
def test_an_unfinished_store_is_refused(tmp_path: Path, columns: dict[str, int], message: str) -> None:
    _examples(tmp_path, FIRST[:, None])
    for name, shards in columns.items():
        _fill(tmp_path, name, 11, most=shards)
    with pytest.raises(InputError, match=f"got the unfinished store .* {message} of tokens; run the same featurize command again"):
        TokenStore(tmp_path)
    assert len(TokenStore(tmp_path, columns=())) == N


def test_a_store_of_latents_alone_opens_without_columns(tmp_path: Path) -> None:
    _examples(tmp_path, FIRST[:, None])
    values = _fill(tmp_path, "latents", 11)
    store = TokenStore(tmp_path)
    assert store.columns == ()
    np.testing.assert_array_equal(store["latents"][[0, 11]], values[FIRST[[0, 11]]])


def test_one_column_may_be_given_by_its_name(filled: tuple[Path, dict[str, NDArray[Any]]]) -> None:
    assert TokenStore(filled[0], columns="clip").columns == ("clip",)


@pytest.mark.parametrize(("task", "labels"), [("multi-label", [["bad"], [], ["good", "bad"]] * 4), ("regression", [0.5, -1, 3] * 4)])
def test_the_targets_of_other_tasks_are_stored(tmp_path: Path, task: Any, labels: list[Any]) -> None:
    corpus = Corpus.from_texts([f"text {n}" for n in range(N)], labels, splits=SPLITS, task=task)
    _fill(tmp_path, "clip", 11)
    _examples(tmp_path, FIRST[:, None], corpus)
    store = TokenStore(tmp_path)
    assert set(store.labels.tolist()) == {UNLABELLED}
    assert (store.targets.dtype, store.targets.tolist()) == (np.float32, corpus.targets().tolist())
    assert [example["target"].tolist() for example in (store[0], store[11])] == [corpus.targets()[row].tolist() for row in (0, 11)]
    assert read_sealed(tmp_path / EXAMPLES)[1]["target"].dtype == {"multi-label": np.uint8, "regression": np.float32}[task]


def test_an_unlabelled_text_of_a_multi_label_corpus_stays_unlabelled(tmp_path: Path) -> None:
    corpus = Corpus.from_texts([f"text {n}" for n in range(N)], [["bad"], [], ["good", "bad"]] * 4, splits=SPLITS, task="multi-label")
    corpus = dataclasses.replace(corpus, examples=(dataclasses.replace(corpus.examples[0], target=None), *corpus.examples[1:]))
    _fill(tmp_path, "clip", 11)
    _examples(tmp_path, FIRST[:, None], corpus)
    np.testing.assert_array_equal(TokenStore(tmp_path).targets, corpus.targets())
    assert np.isnan(TokenStore(tmp_path).targets[0]).all()


def test_a_single_label_store_has_no_target(filled: tuple[Path, dict[str, NDArray[Any]]], store: TokenStore) -> None:
    assert "target" not in read_sealed(filled[0] / EXAMPLES)[1]
    assert "target" not in store[0]
    assert store.targets.tolist() == store.labels.tolist()


def test_the_tokens_of_an_example_without_an_image_are_zeros_and_the_store_says_which_these_are(tmp_path: Path) -> None:
    rows = np.array([[4, 0], [-1, -1], [1, 2], *([[5, 6]] * (N - 3))])
    cut, fingerprint = np.zeros(N, bool), CORPUS.fingerprint()
    write_example_table(tmp_path, CORPUS, ExampleTable(drawings=rows, prompt_cut=cut, corpus_fingerprint=fingerprint, subset={"texts": 1}))
    exact = {"clip": _fill(tmp_path, "clip", 11), "eight": _fill(tmp_path, "eight", 11, dtype="int8")}
    for image in (0, None):
        store = TokenStore(tmp_path, image=image)
        assert store.has_image.tolist() == [True, False, *([True] * (N - 2))]
        for name, values in exact.items():
            column = store[name]
            wanted = values[rows if image is None else rows[:, 0]]
            wanted[1] = 0
            np.testing.assert_array_equal(column[:], wanted)
            np.testing.assert_array_equal(column[1], wanted[1])
            np.testing.assert_array_equal(np.concatenate(list(column.batches([[2, 1], [1, 0]]))), wanted[[2, 1, 1, 0]])
            assert not column.failed.any()
        assert not store[1]["clip"].any()
        assert store[0]["clip"].any()
