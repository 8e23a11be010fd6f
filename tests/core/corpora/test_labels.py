"""Labels of the three tasks, in every form in which files have them."""

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lugpi_core.corpora.advice import FLAGS
from lugpi_core.corpora.label_spelling import combined_labels, equal_numbers, warn_of_doubtful_labels
from lugpi_core.corpora.labels import Labels, label_name, read_labels
from lugpi_core.corpora.options import Task
from lugpi_core.corpora.tables import Table
from lugpi_core.errors import InputError


def _table(cells: list[Any], classes: tuple[str, ...] | None = None, **more: Any) -> Table:
    return Table(where="t.csv", source=more.pop("source", "train"), names=("label",), columns={"label": cells}, classes=classes, **more)


def _labels(cells: list[Any], task: Task = "single-label", separator: str | None = None, classes: tuple[str, ...] | None = None) -> Labels:
    return read_labels([_table(cells, classes)], "label", task=task, separator=separator)


def _names(labels: Labels) -> list[Any]:
    return [tuple(labels.classes[number] for number in target) for target in labels.targets if isinstance(target, tuple)]


def test_equal_numbers_are_one_label() -> None:
    labels = _labels(["1", 1, 1.0, "1.0", " 1 ", Decimal("1.00"), "2.50", "2.5", "-0", 0])
    assert (labels.classes, labels.labels) == (("0", "1", "2.5"), [1] * 6 + [2, 2, 0, 0])


def test_equal_numbers_of_two_files_are_one_label() -> None:
    # pandas writes whole numbers with gaps as 1.0.
    labels = read_labels([_table(["1.0", "2.0"]), _table(["1", "2"], source="test")], "label", task="single-label", separator=None)
    assert (labels.classes, labels.labels) == (("1", "2"), [0, 1, 0, 1])


def test_spellings_without_another_are_kept() -> None:
    assert _labels(["1.0", "2.0"]).classes == ("1.0", "2.0")
    assert _labels(["007", "7", "1e1"]).classes == ("007", "1e1", "7")


@given(st.lists(st.integers(-20, 20), min_size=1, max_size=9), st.data())
def test_however_a_number_is_written_it_is_its_class(numbers: list[int], data: st.DataObject) -> None:
    forms = [data.draw(st.sampled_from([n, float(n), str(n), f"{n}.0", f" {n}.00"])) for n in numbers]
    labels = _labels([*forms, *numbers, *map(str, numbers)])
    assert [int(labels.classes[label]) for label in labels.labels[: len(numbers)]] == numbers
    assert labels.classes == tuple(map(str, sorted(set(numbers))))


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("no", "no"),
        (1, "yes"),
        (1.0, "yes"),
        ("1", "yes"),
        (" 0.0 ", "no"),
        (True, "yes"),
        (2, None),
        ("2", None),
        (-1, None),
        ("x", None),
        ("0.5", None),
    ],
)
def test_known_classes_are_named_or_numbered(value: object, name: str | None) -> None:
    assert label_name(value, ("no", "yes")) == name


@pytest.mark.parametrize(("value", "name"), [("1", "1"), ("2.0", "2"), ("0", None), (0, "1"), (1, "2")])
def test_text_names_a_known_number_and_a_number_its_place(value: object, name: str | None) -> None:
    assert label_name(value, ("1", "2")) == name


@pytest.mark.parametrize(("cell", "do"), [("a;c", "--label-separator ';'"), ("a|x", "label or remove"), ("a;x", "label or remove")])
def test_a_class_that_a_model_lacks_is_no_matter_of_the_separator(cell: str, do: str) -> None:
    with pytest.raises(InputError, match=f"expected some of the classes a, b, c; .*{do}"):
        read_labels([_table(["a|b", cell])], "label", task="multi-label", separator="|", model_classes=("a", "b", "c"))


def test_a_number_names_the_class_of_a_model_before_its_place() -> None:
    labels = read_labels([_table([[1, 3], ["2.0"], []])], "label", task="multi-label", separator=None, model_classes=("1", "2", "3"))
    assert labels.targets == [(0, 2), (1,), ()]


def test_a_file_without_class_names_has_those_of_the_other() -> None:
    labels = read_labels([_table(["1", "0"]), _table([1, 0], ("no", "yes"), source="test")], "label", task="single-label", separator=None)
    assert (labels.classes, labels.labels) == (("no", "yes"), [1, 0, 1, 0])


def test_splits_that_number_their_classes_differently_agree_by_name() -> None:
    labels = read_labels(
        [_table([0, 1], ("a", "b")), _table([0, 1], ("b", "c"), source="test")], "label", task="single-label", separator=None
    )
    assert (labels.classes, labels.labels) == (("a", "b", "c"), [0, 1, 1, 2])


MULTI: list[Any] = [("b", "a"), (), ("c",), ("a",)]


@pytest.mark.parametrize(
    ("cells", "separator"),
    [
        ([["b", "a"], [], ["c"], ["a", "a"]], None),
        (["b|a", "", " c ", "a|a"], "|"),
        (["b, a", " ", "c,", "a"], ","),
        (['["b", "a"]', "[]", '["c"]', '["a"]'], None),
        (["['b', 'a']", "[]", "['c']", "['a']"], None),
        ([{"a": 1, "b": True, "c": 0}, {"a": 0, "b": 0, "c": 0}, {"a": 0, "b": 0, "c": 1.0}, {"a": "1", "b": "0", "c": "False"}], None),
        ([{"b", "a"}, set(), {"c"}, {"a"}], None),
        (["('b', 'a')", "()", "('c',)", "{'a'}"], None),
    ],
    ids=["lists", "bars", "commas", "JSON in text", "Python in text", "objects", "sets", "tuples in text"],
)
def test_several_labels_are_read_in_every_form(cells: list[Any], separator: str | None) -> None:
    labels = _labels(cells, "multi-label", separator)
    assert labels.classes == ("a", "b", "c")
    assert _names(labels) == [tuple(sorted(names)) for names in MULTI]
    assert set(labels.labels) == {-1}


def test_lists_of_0_and_1_are_encoded_labels() -> None:
    cells = [[1, 0, 1], [0, 0, 0], [0.0, 1.0, 0.0]]
    assert _labels(cells, "multi-label").targets == [(0, 2), (), (1,)]
    assert _labels(cells, "multi-label").classes == ("0", "1", "2")
    assert _labels(cells, "multi-label", classes=("x", "y", "z")).classes == ("x", "y", "z")
    assert _labels([[0, 1], [2]], "multi-label").targets == [(0, 1), (2,)]  # of other lengths: class numbers
    assert _labels([[0, 1], [1, 0]], "multi-label", classes=("x", "y", "z")).targets == [(0, 1), (0, 1)]


def test_lists_of_numbers_are_known_classes() -> None:
    assert _names(_labels([[1, 2], [0]], "multi-label", classes=("joy", "fear", "love"))) == [("fear", "love"), ("joy",)]


def test_columns_of_0_and_1_are_labels() -> None:
    columns: dict[str, list[object]] = {"toxic": ["1", "0", "1"], "insult": ["0", "0", "1"], "text": ["a", "b", "c"]}
    table = Table(where="t", source="train", names=tuple(columns), columns=columns)
    labels = read_labels([table], "toxic, insult", task="multi-label", separator=None)
    assert (labels.classes, labels.targets) == (("toxic", "insult"), [(0,), (), (0, 1)])


@pytest.mark.parametrize(
    ("cells", "separator", "message"),
    [
        (["a|b", "a"], None, r"2 missing or unusable labels .* 0, 1; expected a list of labels for each text; .*--label-separator '\|'"),
        (["[0 2]", "[1]"], None, "the first '.0 2.': .*; write lists as JSON does"),
        ([["a"], None], None, "1 missing .* the first None: .* 1; .*--drop-unlabelled"),
        ([["a"], 3], None, "the first 3"),
        ([["a"], ["b", None]], None, r"the first \['b', None\]"),
        ([{"a": 1}, {"a": 2}], None, r"the first \{'a': 2\}"),
    ],
)
def test_what_is_no_set_of_labels_is_refused_with_its_row(cells: list[Any], separator: str | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        _labels(cells, "multi-label", separator)


def test_a_number_is_read_from_every_form() -> None:
    assert _labels([1, 0.5, "2.5", " -3 ", "1e2", ".5", Decimal("0.25")], "regression").targets == [1, 0.5, 2.5, -3, 100, 0.5, 0.25]
    assert _labels([1], "regression").classes == ("label",)


@pytest.mark.parametrize(
    "cell", [None, float("nan"), float("inf"), -float("inf"), "nan", "inf", "1e999", "", "x", "1_0", True, [1], 10**400, "3,5"]
)
def test_what_is_no_number_is_refused_with_its_row(cell: object) -> None:
    with pytest.raises(
        InputError, match=r"1 missing or unusable label in label .* rows, counted from 0, 1; expected a number for each text"
    ):
        _labels([1.0, cell, 2.0], "regression")


@pytest.mark.parametrize(
    ("cells", "task", "advice"),
    [
        (["3,5"], "regression", "write decimal points"),
        ([0.5], "single-label", "--task regression"),
        ([["a"], ["a", "b"]], "single-label", "--task multi-label"),
        ([""], "single-label", "--drop-unlabelled"),
    ],
)
def test_the_advice_names_what_helps(cells: list[Any], task: Task, advice: str) -> None:
    with pytest.raises(InputError, match=advice):
        _labels(cells, task)


def test_hidden_test_labels_name_the_flag() -> None:
    with pytest.raises(InputError, match=r"2 missing .* the first -1: .*; --test-split validation scores .* --test-split none"):
        read_labels([_table([-1, -1], ("a", "b"), source="test")], "label", task="single-label", separator=None)
    with pytest.raises(InputError, match=r"leave these rows out \(--drop-unlabelled\) or all of the split: --test-split"):
        read_labels([_table([-1, 1], ("a", "b"), source="test")], "label", task="single-label", separator=None)


# What is read, but told


def test_numbers_in_several_spellings() -> None:
    assert equal_numbers(["1", "1.0", "01", "2", "x", "-1", "-1.00"]) == {"1": "1", "1.0": "1", "-1": "-1", "-1.00": "-1"}


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["a", "b", "a|b"], ("|", ["a|b"])),
        (["a;b", "b;c", "c;a"], (";", ["a;b", "b;c", "c;a"])),
        (["a", "b", "a, b"], (",", ["a, b"])),
        (["sci/tech", "sports"], None),
        (["Health, Beauty", "Health, Fitness"], None),
        (["C++", "C", "C#"], None),
        (["R&B", "rock"], None),
        (["joy", "fear", "joy fear"], (" ", ["joy fear"])),
        (["very good", "good", "very bad", "bad"], None),
    ],
)
def test_combinations_of_other_labels_are_found(names: list[str], found: tuple[str, list[str]] | None) -> None:
    assert combined_labels(names) == found


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a", "b", "a|b"], r"t: 1 label such as 'a\|b' read as classes of their own; .*--task multi-label --label-separator '\|'"),
        (["['a']", "['a', 'b']"], "2 labels such as .* if they are lists of labels: --task multi-label"),
        (["0,5", "1,5"], "2 numbers such as '0,5', '1,5' read as classes"),
        (["1", "1.5", "2"], "1 number such as '1.5' read as classes; .*--task regression"),
        ([f"{n}.5" for n in range(5)], "5 numbers such as '0.5', '1.5', '2.5' read as classes"),
        (["Spam", "spam", "ham"], "labels 'Spam', 'spam' are different classes"),
        (["7", "007"], "labels '7', '007' are different"),
        (["café", "cafe\u0301"], "are different classes"),
        (["a", "a\u200b"], "are different classes"),
        (["\u2764", "\u2764\ufe0f"], "are different classes"),
        (["1", "1e0"], "labels '1', '1e0' are different"),
        (["1", "True"], "labels '1', 'True' are different"),
        (["not_ok", "not ok"], "are different classes"),
        (["{a,b}", "{a}"], "if they are lists of labels: --task multi-label"),
        (["-1", "0", "1"], r"label '-1' is read as a class; .*--drop-unlabelled\), or all of a hidden test split"),
        (["NONE", "a"], "label 'NONE' is read as a class; if it means no label: remove its rows"),
        (["-", "entailment"], "label '-' is read as a class; if it means no label"),
        ([f"c{n}" for n in range(80)], "80 classes in 100 rows; is it the column of the labels"),
        ([str(n) for n in range(80)], "80 classes in 100 rows; .*--task regression"),
    ],
)
def test_doubtful_labels_are_told(names: list[str], message: str) -> None:
    with pytest.warns(UserWarning, match=message):
        warn_of_doubtful_labels(names, rows=100, where="t", task="single-label", separator=None, advice=FLAGS)


@pytest.mark.parametrize(
    "names",
    [
        ["0", "1", "2"],
        ["+", "-"],
        ["True", "False"],
        ["comp.graphics", "alt.atheism"],
        ["-1", "1"],
        ["-1", "0"],
        ["-1", "0", "2"],
        ["low-key", "low"],
    ],
)
def test_plain_labels_are_not_doubted(names: list[str]) -> None:
    warn_of_doubtful_labels(names, rows=100, where="t", task="single-label", separator=None, advice=FLAGS)


def test_another_separator_than_the_given_one_is_told() -> None:
    warn_of_doubtful_labels(["a", "b"], rows=9, where="t", task="multi-label", separator="|", advice=FLAGS)
    with pytest.warns(UserWarning, match="--label-separator ';'"):
        warn_of_doubtful_labels(["a;b", "b;c", "a", "c"], rows=9, where="t", task="multi-label", separator="|", advice=FLAGS)


def test_json_of_labels_keeps_its_kinds() -> None:
    assert _labels(json.loads("[true, false, true]")).classes == ("False", "True")
