"""Labels in forms that could be read as something else: encoded ones, lists in text, words for no label, numbers too large."""

import json
from pathlib import Path
from typing import Any

import pytest

from lugpi_core.corpora.corpus import Corpus
from lugpi_core.corpora.load import load_corpus
from lugpi_core.corpora.options import CorpusSettings
from lugpi_core.errors import InputError

N = 40
TEXTS = [f"text {n}" for n in range(N)]


def _load(folder: Path, cells: list[Any], name: str = "t.jsonl", **flags: Any) -> Corpus:
    """Return a corpus whose labels are these cells, again and again."""
    rows = [{"text": text, "label": cells[n % len(cells)]} for n, text in enumerate(TEXTS)]
    (folder / name).write_text("\n".join(map(json.dumps, rows)))
    return load_corpus(folder / name, CorpusSettings(**flags))


def _several(folder: Path, cells: list[Any], separator: str | None = None) -> tuple[tuple[str, ...], list[Any]]:
    corpus = _load(folder, cells, task="multi-label", label_separator=separator)
    return corpus.label_names, [example.target for example in corpus.examples[: len(cells)]]


@pytest.mark.parametrize(
    ("cells", "separator"),
    [
        (["[0, 1, 0]", "[1, 0, 1]", "[0, 0, 0]"], None),
        (["(0, 1, 0)", "[True, False, True]", "[0.0, 0.0, 0.0]"], None),
        (["010", "101", "000"], None),
        (["0|1|0", "1|0|1", "0|0|0"], "|"),
        (["0 1 0", "1 0 1", "0 0 0"], " "),
        (["010", "101", "000"], "|"),
        ([["0", "1", "0"], ["1", "0", "1"], ["0", "0", "0"]], None),
    ],
)
def test_encoded_labels_in_text_are_those_of_json(tmp_path: Path, cells: list[Any], separator: str | None) -> None:
    assert _several(tmp_path, cells, separator) == (("0", "1", "2"), [(1,), (0, 2), ()])


@pytest.mark.parametrize(
    "cells", [[[0, 1, 0], [1, 0, 0, 0]], ["[0, 1, 0]", "[1, 0, 0, 0]"], ["010", "1000"], [[0, 0, 1], [0, 0, 0, 1], []]]
)
def test_encoded_labels_of_several_lengths_are_refused(tmp_path: Path, cells: list[Any]) -> None:
    with pytest.raises(InputError, match=r"got lists of (0, )?3, 4 zeros and ones in .*; expected one length"):
        _several(tmp_path, cells)


def test_encoded_labels_of_a_test_file_have_the_length_of_the_others(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text('{"text": "a", "label": [0, 0]}')
    with pytest.raises(InputError, match=r"lists of 2, 3 zeros and ones in .*t\.jsonl and .*test\.jsonl"):
        _load(tmp_path, [[0, 1, 0], [1, 0, 0]], task="multi-label", test_file=tmp_path / "test.jsonl")


def test_encoded_labels_are_as_many_as_the_names() -> None:
    with pytest.raises(InputError, match="lists of 4 zeros and ones in texts; expected 3, one for each class"):
        Corpus.from_texts(TEXTS, [[0, 1, 0, 1], [1, 0, 0, 0]] * 20, task="multi-label", label_names=["a", "b", "c"])


@pytest.mark.parametrize(
    ("cells", "separator"),
    [
        (["['joy' 'my fear']", "['joy']", "[]"], None),
        (['["joy" "my fear"]', "['joy']", "[]"], None),
        (['{"choices": ["joy", "my fear"]}', '{"choices": ["joy"]}', "[]"], None),
        ([{"choices": ["joy", "my fear"]}, {"choices": ["joy"]}, []], None),
        (["{'joy': 1, 'my fear': 1}", "{'joy': 1}", "{'joy': 0}"], ","),
    ],
)
def test_lists_and_objects_in_text_are_read(tmp_path: Path, cells: list[Any], separator: str | None) -> None:
    assert _several(tmp_path, cells, separator) == (("joy", "my fear"), [(0, 1), (0,), ()])


@pytest.mark.parametrize(
    "cell", ["{joy,anger}", "[joy, anger]", "(joy, anger)", "frozenset({'joy', 'anger'})", "['joy' 'anger', 'x']", '["joy" "anger", "x"]']
)
@pytest.mark.parametrize("separator", [None, ","])
def test_other_text_in_brackets_is_refused(tmp_path: Path, cell: str, separator: str | None) -> None:
    with pytest.raises(InputError, match=r'write lists as JSON does: \["joy", "anger"\]'):
        _several(tmp_path, [cell, "[]"], separator)


def test_brackets_may_belong_to_a_label(tmp_path: Path) -> None:
    assert _several(tmp_path, ["(n)|v (x)", "v (x)", "(n)"], "|") == (("(n)", "v (x)"), [(0, 1), (1,), (0,)])
    with pytest.warns(UserWarning, match=r"1 label such as '\[n\]' read as classes of their own; .*write them as JSON does"):
        _several(tmp_path, ["[n]|v", "v", "[n]"], "|")


def test_the_keys_of_objects_are_the_classes(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="has no train example of C"):
        names, targets = _several(tmp_path, [{"B": 1.0, "A": 0.0, "C": 0.0}, {"B": 0.0, "A": 1.0, "C": 0.0}])
    assert (names, targets) == (("A", "B", "C"), [(1,), (0,)])


@pytest.mark.parametrize("first", [20_240_000_000, 1_700_000_000, 1e30, 1_000.00001])
def test_numbers_that_float32_cannot_tell_apart_are_refused(tmp_path: Path, first: float) -> None:
    step = first / 1e9
    with pytest.raises(InputError, match=r"got 40 different numbers in .*t\.jsonl, \d+ in float32, .*subtract a constant"):
        _load(tmp_path, [first + step * n for n in range(N)], task="regression")


@pytest.mark.parametrize(
    "cells", [[n / 7 for n in range(N)], [2e10 * n for n in range(N)], [0.1, 0.1 + 1e-12, 5.0], [2000 + n for n in range(9)]]
)
def test_other_numbers_may_be_rounded(tmp_path: Path, cells: list[Any]) -> None:
    assert _load(tmp_path, cells, task="regression").examples[1].target == cells[1]


# No label


@pytest.mark.parametrize(
    "cells", [["0", "1", "2", "-1"], [0, 1, -1, 0], [0.0, 1.0, -1.0, 1.0], ["a", "NA", "b", "None"], ["a", "<NA>", "b", "null"]]
)
def test_what_may_mean_no_label_is_told_and_can_be_left_out(tmp_path: Path, cells: list[Any]) -> None:
    with pytest.warns(UserWarning, match=r"is read as a class; if it means no label: leave its rows out \(--drop-unlabelled\)"):
        corpus = _load(tmp_path, cells)
    assert len(corpus.examples) == N
    with pytest.warns(UserWarning, match=r"--drop-unlabelled leaves out \d+ rows of 40 with the label .*(-1|NA|null)"):
        corpus = _load(tmp_path, cells, drop_unlabelled=True)
    assert not {"-1", "NA", "None", "<NA>", "null"} & set(corpus.label_names)


@pytest.mark.parametrize("cells", [[-1, 1], [-2, -1, 0, 1], [-1, 5, 7]])
def test_other_negative_numbers_are_classes(tmp_path: Path, cells: list[Any]) -> None:
    with pytest.warns(UserWarning, match="--drop-unlabelled leaves out"):
        corpus = _load(tmp_path, [*cells, ""], drop_unlabelled=True)
    assert corpus.label_names == tuple(map(str, cells))


def test_a_hidden_test_file_of_minus_1_names_the_flags(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text("\n".join(json.dumps({"text": f"x {n}", "label": -1}) for n in range(9)))
    with pytest.warns(UserWarning, match="'-1'"), pytest.raises(InputError, match=r"'-1' on 9 test .*--drop-unlabelled.*--test-split"):
        _load(tmp_path, [0, 1], test_file=tmp_path / "test.jsonl")
    assert _load(tmp_path, [0, 1], test_file=tmp_path / "test.jsonl", test_split="none").label_names == ("0", "1")


def test_columns_of_minus_1_are_hidden_labels(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text,a,b\n" + "".join(f"t {n},{n % 2},{n % 3 // 2}\n" for n in range(N)))
    (tmp_path / "x.csv").write_text("text,a,b\n" + "".join(f"x {n},{-(n % 2)},{-(n % 2) or 1}\n" for n in range(10)))
    flags: dict[str, Any] = {"task": "multi-label", "label_column": "a,b", "test_file": tmp_path / "x.csv"}
    with pytest.raises(InputError, match=r"5 missing .*--drop-unlabelled\).*--test-split"):
        load_corpus(tmp_path / "t.csv", CorpusSettings(**flags))
    with pytest.warns(UserWarning, match="--drop-unlabelled leaves out 5 rows of 50"):
        assert load_corpus(tmp_path / "t.csv", CorpusSettings(**flags, drop_unlabelled=True)).counts()["test"] == 5


# One label each


def test_the_only_label_of_each_list_is_the_label(tmp_path: Path) -> None:
    assert _load(tmp_path, [["pos"], ["neg"]]).label_names == ("neg", "pos")
    with pytest.raises(InputError, match=r"the first \[\]: .*--drop-unlabelled"):
        _load(tmp_path, [["pos"], ["neg"], []])
    with pytest.raises(InputError, match="--task multi-label"):
        _load(tmp_path, [["pos"], ["neg", "pos"]])


@pytest.mark.parametrize(
    ("cells", "task", "message"),
    [
        ([{"name": "a"}, {"name": "b"}], "single-label", "such as --label-column label.name$"),
        ([{"choices": ["a"]}], "single-label", "such as --label-column label.choices$"),
        ([[{"value": {"choices": ["a"]}}]], "single-label", "write each text's labels as plain text"),
        ([[{"name": "a"}]], "multi-label", "write each text's labels as plain text"),
        ([{"a": 1, "b": 2}], "multi-label", "expected 0 or 1, or true or false, for each class; write 0 or 1"),
        (["1,234"], "regression", "write decimal points, or leave the commas out if they separate thousands"),
        (["1,5"], "regression", "write decimal points, not commas"),
        (["1,234.5"], "regression", "separators of thousands, %, units or the minus sign"),
        (["12%", "$5", "\u22123"], "regression", "separators of thousands, %, units or the minus sign"),
    ],
)
def test_the_advice_can_help(tmp_path: Path, cells: list[Any], task: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        _load(tmp_path, cells, task=task)


@pytest.mark.parametrize("cell", ["", "x", "yes", "2"])
def test_a_column_of_answers_says_what_it_takes(tmp_path: Path, cell: str) -> None:
    (tmp_path / "t.csv").write_text(f"text,a,b\nt,1,{cell}\n")
    with pytest.raises(InputError, match="expected 0 or 1, or true or false, for each class; write 0 or 1 in each of these columns"):
        load_corpus(tmp_path / "t.csv", CorpusSettings(task="multi-label", label_column="a,b"))


@pytest.mark.parametrize(
    ("labels", "more"),
    [
        (["a|b", "a", "b", "a"] * 10, {}),
        ([[1, 2], [1]] * 20, {}),
        ([0.5] * N, {}),
        (["a b"] * N, {"task": "multi-label"}),
        (["None", "a"] * 20, {}),
        ([f"c{n}" for n in range(N)], {}),
        (["a", "b"] * 20, {"groups": [1] * N}),
        (["a"] * 39 + ["b"], {"splits": ["train"] * 39 + ["test"]}),
        ([{"name": "a"}] * N, {}),
    ],
)
def test_python_is_told_no_flags(labels: list[Any], more: dict[str, Any], recwarn: pytest.WarningsRecorder) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.filters", [("always", None, Warning, None, 0)])
        try:
            Corpus.from_texts(TEXTS, labels, **more)
        except InputError as error:
            said = str(error)
        else:
            said = ""
    said += " ".join(str(warning.message) for warning in recwarn)
    assert said
    assert "--" not in said
