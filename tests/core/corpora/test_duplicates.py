"""Texts in several rows: counted and told at load, and left out by --dedupe."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from lugpi_core.corpora.corpus import Corpus, Example, Split
from lugpi_core.corpora.duplicates import Duplicates, find_duplicates, rows_without_duplicates
from lugpi_core.corpora.load import load_corpus
from lugpi_core.corpora.options import CorpusSettings

TRIPLED = [f"text  {n}" if n % 2 else f"text {n // 2 * 2} " for n in range(120)] * 3


def _examples(*rows: tuple[str, int, Split]) -> list[Example]:
    return [Example(id=str(n), text=text, prompt="p", label=label, split=split) for n, (text, label, split) in enumerate(rows)]


def test_texts_are_equal_after_folding_white_space() -> None:
    found = find_duplicates(
        _examples(("a b", 0, "train"), (" a\u00a0 b\n", 0, "test"), ("a b", 1, "validation"), ("ab", 0, "test"), ("A b", 0, "test"))
    )
    assert found == Duplicates(rows=5, repeats=2, leaked={"validation": (1, 1), "test": (1, 3)}, disagreeing=1)


def test_pairs_are_equal_if_both_texts_are() -> None:
    def pair(first: str, second: str | None) -> Example:
        return Example(id="", text=first, prompt="p", label=0, split="train", pair=second)

    assert find_duplicates([pair("a", "b"), pair("a", "c"), pair("a", None), pair("b", "a"), pair("a ", " b")]).repeats == 1


@pytest.mark.parametrize(
    ("rows", "kept"),
    [
        ([("a", 0, "train"), ("a ", 0, "train"), ("b", 1, "train")], [0, 2]),
        ([("a", 0, "train"), ("a", 1, "train"), ("b", 1, "train")], [2]),
        ([("a", 0, "train"), ("a", 0, "test"), ("a", 0, "validation")], [1]),
        ([("a", 0, "train"), ("a", 0, "validation")], [1]),
        ([("a", 0, "train"), ("a", 1, "test")], [1]),
        ([("a", 0, "test"), ("a", 1, "test"), ("a", 1, "train")], []),
    ],
    ids=["the first", "none that disagree", "test", "validation", "the label of test", "none that disagree in test"],
)
def test_one_row_of_each_text_is_kept(rows: Any, kept: list[int]) -> None:
    assert rows_without_duplicates(_examples(*rows)) == kept


def _write(folder: Path, **more: list[Any]) -> Path:
    columns = {"text": TRIPLED, "label": ["a", "b"] * 180, **more}
    pd.DataFrame(columns).to_csv(folder / "t.csv", index=False)
    return folder / "t.csv"


def test_a_file_with_every_text_three_times_is_told_of(tmp_path: Path) -> None:
    message = (
        r"t\.csv: 240 of 360 texts \(66\.7%\) repeat an earlier one, 25 of 28 validation texts are also in train, "
        r"63 of 72 test texts are also in train \(equal after folding white space\); --dedupe keeps one of each, "
        r"--group-column keeps related rows in one split$"
    )
    with pytest.warns(UserWarning, match=message):
        load_corpus(_write(tmp_path))


def test_deduping_keeps_the_ids_of_what_remains(tmp_path: Path) -> None:
    texts = ["same", "same", "both", "both", *(f"t{n}" for n in range(30))]
    labels = ["a", "a", "a", "b", *["a", "b"] * 15]
    pd.DataFrame({"text": texts, "label": labels}).to_csv(tmp_path / "t.csv", index=False)
    with pytest.warns(UserWarning, match=r"t\.csv: --dedupe leaves out 3 rows of 34, among them all rows of 1 text whose labels disagree"):
        corpus = load_corpus(tmp_path / "t.csv", CorpusSettings(dedupe=True))
    assert [example.id for example in corpus.examples] == ["row/0", *(f"row/{n}" for n in range(4, 34))]


def test_texts_with_several_labels_are_counted_among_the_repeats() -> None:
    texts = ["both", "both", *(f"t{n}" for n in range(30))]
    with pytest.warns(
        UserWarning, match=r"1 of 32 texts \(3\.1%\) repeat an earlier one.*, 1 text with several labels .*; leave them out, or"
    ):
        Corpus.from_texts(texts, ["a", "b"] * 16)


def test_groups_keep_the_rows_of_a_text_in_one_split(tmp_path: Path) -> None:
    path = _write(tmp_path, author=[" ".join(text.split()) for text in TRIPLED])
    with pytest.warns(
        UserWarning, match=r"t\.csv: 240 of 360 texts \(66\.7%\) repeat an earlier one \(equal"
    ):  # and none is shared by two splits
        corpus = load_corpus(path, CorpusSettings(group_column="author"))
    assert find_duplicates(corpus.examples).leaked == {"validation": (0, 27), "test": (0, 72)}


def test_the_shipped_corpus_has_no_duplicates_to_tell_of() -> None:
    assert find_duplicates(load_corpus("demo").examples).repeats == 0
