"""Keys inside objects, and class names inside features."""

from typing import Any

import pytest
from datasets import ClassLabel, Features, LargeList, List, Value

from lugpi_core.corpora.tables import Table, class_names, columns_of, parquet_features

ROWS: list[dict[str, Any]] = [
    {"a": {"b": {"c": 1}, "d": 2}, "x.y": {"z": 3}, "n": None},
    {"a": {"b": None}, "x.y": {"z": 4}, "n": {"m": 5}},
    {"a": None},
]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("a.b.c", [1, None, None]),
        ("a.d", [2, None, None]),
        ("x.y.z", [3, 4, None]),
        ("n.m", [None, 5, None]),
        ("a.b", [{"c": 1}, None, None]),
    ],
)
def test_a_key_inside_objects_is_a_column(name: str, values: list[object]) -> None:
    names, columns = columns_of(ROWS, [name, "gone", "a.gone", "n.m.k"])
    assert columns == {name: values}
    assert name in names


def test_a_column_of_that_very_name_goes_before() -> None:
    assert columns_of([{"a": {"b": 1}, "a.b": 2}, {"a": {"b": 3}}], ["a.b"])[1] == {"a.b": [2, None]}


def test_keys_inside_objects_are_among_the_names() -> None:
    assert columns_of(ROWS, [])[0] == ("a", "x.y", "n", "a.b.c", "a.d", "x.y.z", "n.m")


def test_rows_that_are_kept_keep_their_numbers() -> None:
    table = Table(where="t", source="train", names=("a",), columns={"a": [*"abcde"]}).kept([1, 3, 4]).kept([0, 2])
    assert (table.columns, table.numbers_of([0, 1])) == ({"a": ["b", "e"]}, [1, 4])


NAMES = ("neg", "pos")


@pytest.mark.parametrize(
    "feature",
    [
        ClassLabel(names=[*NAMES]),
        List(ClassLabel(names=[*NAMES])),
        List(ClassLabel(names=[*NAMES]), length=2),
        LargeList(ClassLabel(names=[*NAMES])),
    ],
)
def test_class_names_are_found_in_columns_and_in_lists(feature: Any) -> None:
    features = Features({"label": feature, "inner": {"label": feature}, "text": Value("string")}).to_dict()
    assert class_names(features, "label") == class_names(features, "inner.label") == NAMES
    assert class_names(features, "text") is class_names(features, "gone") is None


def test_class_names_are_found_as_earlier_versions_wrote_them() -> None:
    label = {"names": [*NAMES], "_type": "ClassLabel"}
    assert class_names({"label": {"feature": label, "_type": "Sequence"}}, "label") == NAMES
    assert class_names({"label": [label]}, "label") == NAMES


@pytest.mark.parametrize("metadata", [None, {}, {b"pandas": b"{}"}, {b"huggingface": b"no json"}, {b"huggingface": b'{"info": 3}'}])
def test_a_schema_of_another_program_has_no_features(metadata: Any) -> None:
    assert parquet_features(metadata) == {}
