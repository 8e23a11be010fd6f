"""What a column of labels says: a class of each text, several classes of each, or a number."""

import ast
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import TypeVar

from lugpi_core.corpora.corpus import UNLABELLED
from lugpi_core.corpora.label_spelling import SEPARATORS, equal_numbers, is_plain_number
from lugpi_core.corpora.options import Task
from lugpi_core.corpora.tables import Table
from lugpi_core.corpora.texts import has_half_a_pair, listed
from lugpi_core.errors import InputError, number_of

Classes = tuple[str, ...]
Value = TypeVar("Value")
_Reader = Callable[[object, Classes | None], str | None]

HIDDEN = -1  # what the hub writes for "not labelled"
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_YES_AND_NO = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}
_LARGEST = 3.4028234663852886e38  # of float32
_NAMED_CLASSES = 5
_FORMS = {
    "single-label": "text, whole numbers or booleans",
    "multi-label": "a list of labels for each text",
    "regression": "a number for each text, such as 3.5",
}


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Every row's labels.

    Attributes:
        classes: class k is ``classes[k]``; of a regression corpus, the name of its number.
        labels: the class of each row; UNLABELLED for the other tasks.
        targets: the classes of each row, ascending, or its number; None for single-label.
        are_known: whether the classes are given, by a data set or a caller, instead of gathered from the rows.
    """

    classes: Classes
    labels: list[int]
    targets: list[tuple[int, ...] | float | None]
    are_known: bool


def label_columns(column: str, names: Sequence[str], task: Task) -> tuple[str, ...]:
    """Return the columns that ``--label-column`` means: that one, or of a multi-label table the several between its commas."""
    if task != "multi-label" or column in names or "," not in column:
        return (column,)
    return tuple(dict.fromkeys(name.strip() for name in column.split(",") if name.strip()))


def label_cells(table: Table, column: str, task: Task) -> list[object]:
    """Return the label of each row as the table has it; several columns of 0 and 1 as objects."""
    columns = label_columns(column, table.names, task)
    if len(columns) == 1:
        return table.columns[columns[0]]
    return [dict(zip(columns, cells, strict=True)) for cells in zip(*(table.columns[name] for name in columns), strict=True)]


def read_labels(tables: Sequence[Table], column: str, *, task: Task, separator: str | None, model_classes: Classes | None = None) -> Labels:
    """Return the labels of all rows of the tables, one table after the other.

    Labels that are equal numbers are one label. Classes are those that a table knows, or else all labels, sorted, by number if all of
    them are whole numbers. Multi-label cells are lists, text with a separator, objects or several columns of 0 and 1, or lists of 0 and 1
    that are all of one length.

    Args:
        model_classes: those of a model, which the labels name as ``class_of_model`` says unless a table knows its own.

    Raises:
        InputError: a label is missing, or is none of the task's; names the rows.
    """
    # The classes of one file are those of the others: a CSV file with numbers may accompany a Parquet file that names them.
    known = next((table.classes for table in tables if table.classes is not None), None)
    read_name: _Reader = label_name
    if known is None and model_classes is not None:
        known, read_name = model_classes, class_of_model
    are_known = known is not None
    if task == "regression":
        numbers = [value for table in tables for value in _read(table, column, task, None, _number)]
        return Labels(classes=(column,), labels=[UNLABELLED] * len(numbers), targets=list(numbers), are_known=True)
    sets: list[tuple[str, ...]]
    if task == "single-label":
        sets = [(name,) for table in tables for name in _read(table, column, task, known, read_name)]
    else:
        if len(columns := label_columns(column, tables[0].names, task)) > 1:
            known = columns if known is None else known
        width = _common_width([cell for table in tables for cell in label_cells(table, column, task)])
        if width and known is None:
            known = tuple(map(str, range(width)))
        width = width if known is not None and len(known) == width else 0
        read = partial(_label_names, separator, width, read_name)
        sets = [names for table in tables for names in _read(table, column, task, known, read)]
    if known is None:
        merged = equal_numbers({name for names in sets for name in names})
        sets = [tuple(merged.get(name, name) for name in names) for names in sets]
        classes = _sorted_classes({name for names in sets for name in names})
    else:
        classes = tuple(dict.fromkeys([name for table in tables for name in table.classes or ()] + list(known)))
    number = {name: place for place, name in enumerate(classes)}
    if task == "single-label":
        return Labels(classes=classes, labels=[number[names[0]] for names in sets], targets=[None] * len(sets), are_known=are_known)
    targets = [tuple(sorted({number[name] for name in names})) for names in sets]
    return Labels(classes=classes, labels=[UNLABELLED] * len(sets), targets=list(targets), are_known=are_known)


def _sorted_classes(names: set[str]) -> Classes:
    whole_numbers = all(name.removeprefix("-").isdecimal() for name in names)
    return tuple(sorted(names, key=lambda name: (int(name) if whole_numbers else 0, name)))


def _read(
    table: Table, column: str, task: Task, known: Classes | None, read: Callable[[object, Classes | None], Value | None]
) -> list[Value]:
    cells, classes = label_cells(table, column, task), table.classes or known
    values = [read(cell, classes) for cell in cells]
    bad = [row for row, value in enumerate(values) if value is None]
    if bad:
        shown = ", ".join((classes or ())[:_NAMED_CLASSES]) + " …" * (len(classes or ()) > _NAMED_CLASSES)
        expected = f"one of the classes {shown}, or its number from 0" if classes and task == "single-label" else _FORMS[task]
        raise InputError(
            got=f"{number_of(len(bad), 'missing or unusable label{s}')} in {column} of {table.where}, the first {cells[bad[0]]!r:.80}: "
            f"{listed(table.numbers_of(bad))}",
            expected=expected,
            do=_advice(table, [cells[row] for row in bad], cells, task),
        )
    return [value for value in values if value is not None]


def _advice(table: Table, bad: Sequence[object], cells: Sequence[object], task: Task) -> str:
    """Return what helps with unusable labels."""
    if all(is_unlabelled(cell, table.classes, task) for cell in bad) and not table.in_memory:
        if table.source != "test":
            return "label these rows, or leave them out (--drop-unlabelled)"
        whole = "--test-split validation scores the validation split in its place, --test-split none a cut from train"
        return whole if len(bad) == len(cells) else f"leave these rows out (--drop-unlabelled) or all of the split: {whole}"
    do = "label or remove these rows"
    texts = [cell for cell in bad if isinstance(cell, str)]
    match task:
        case "single-label" if any(isinstance(cell, list | dict) for cell in bad):
            do = "several labels of a text are a task of their own (--task multi-label)"
        case "single-label" if any(isinstance(cell, float | Decimal) and math.isfinite(cell) for cell in bad):
            do = "numbers are a task of their own (--task regression); if these are classes, write them as text"
        case "multi-label" if texts and not table.in_memory:
            found = next((separator for separator in SEPARATORS if any(separator in str(cell) for cell in cells)), "|")
            is_list = texts[0].strip().startswith("[")
            do = "write lists as JSON does" if is_list else f"say what stands between labels (--label-separator '{found}')"
        case "regression" if any(_NUMBER.fullmatch(text.strip().replace(",", ".")) for text in texts):
            do = "write decimal points, not commas"
    return do


def is_unlabelled(cell: object, classes: Classes | None, task: Task) -> bool:
    """Whether a cell says that its row has no label: it is missing, or the -1 of a data set with class names."""
    match cell:
        case None:
            return True
        case bool():
            return False
        case int() | float():
            return (isinstance(cell, float) and math.isnan(cell)) or (cell == HIDDEN and classes is not None and task == "single-label")
        case str():
            return cell.strip().lower() in (("nan",) if task == "multi-label" else ("", "nan"))
        case dict():
            return all(is_unlabelled(value, ("",), "single-label") for value in cell.values())
    return False


def label_name(value: object, classes: Classes | None = None) -> str | None:
    """Return the class name of a label as a file has it, or None if it is missing or no class.

    With known classes, which are those of the file's own numbers, a number is a place among them, and text is one of their names, an equal
    number, or a place.
    """
    match value:
        case bool() if classes is None:
            return str(value)
        case float() | Decimal() if math.isfinite(value) and value == int(value):  # a column of whole numbers that was stored with gaps
            return label_name(int(value), classes)
        case int() if classes is not None:
            return classes[value] if 0 <= value < len(classes) else None
        case int():
            return str(value)
        case str() if value.strip().lower() not in ("", "nan") and not has_half_a_pair(value):
            name = value.strip()
            return name if classes is None else known_class(name, classes)
    return None


def class_of_model(value: object, classes: Classes | None) -> str | None:
    """Return which of a model's classes a label of another file names, or None: as text does, also where it is stored as a number."""
    name = label_name(value)
    return name if name is None or classes is None else known_class(name, classes)


def known_class(name: str, classes: Classes) -> str | None:
    """Return which of some classes a text names: itself, the same number (``1.0`` for ``1``), the same truth (``true`` for ``True``), or
    the place of a class without a number."""
    if name in classes:
        return name
    if name.lower() in ("true", "false"):
        return next((known for known in classes if known.lower() == name.lower()), None)
    if not is_plain_number(name):
        return None
    numbers = {Decimal(known): known for known in classes if is_plain_number(known)}
    value = Decimal(name)
    if numbers or value != int(value):
        return numbers.get(value)
    return classes[int(value)] if 0 <= value < len(classes) else None


def _common_width(cells: Sequence[object]) -> int:
    """Return how many classes there are if every cell is a list of as many 0s and 1s, as of encoded labels; otherwise 0."""
    widths = {len(cell) if isinstance(cell, list | tuple) else 0 for cell in cells}
    if len(widths) != 1 or max(widths) < 2:
        return 0
    return max(widths) if all(value in (0, 1) for cell in cells if isinstance(cell, list | tuple) for value in cell) else 0


def _label_names(separator: str | None, width: int, read_name: _Reader, cell: object, classes: Classes | None) -> tuple[str, ...] | None:
    if isinstance(cell, str):
        parts = _list_in(cell)
        if parts is None and separator is not None and cell.strip().lower() != "nan":
            parts = [part for part in cell.split(separator) if part.strip()]
        cell = parts
    if width and classes is not None and isinstance(cell, list | tuple):
        cell = dict(zip(classes, cell, strict=True))
    if isinstance(cell, Mapping):
        answers = [_YES_AND_NO.get(str(value).strip().lower()) for value in cell.values()]
        cell = None if None in answers else [name for name, is_so in zip(cell, answers, strict=True) if is_so]
    if not isinstance(cell, list | tuple | set | frozenset):
        return None
    names = [read_name(part, classes) for part in cell]
    return None if None in names else tuple(name for name in names if name is not None)


def _list_in(cell: str) -> list[object] | None:
    """Return the list that a cell of text contains, in JSON's or Python's form, as CSV files of lists have it."""
    text = cell.strip()
    if text[:1] + text[-1:] not in ("[]", "()", "{}"):
        return None
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return list(value) if isinstance(value, list | tuple | set) else None
    return None


def _number(cell: object, _: Classes | None) -> float | None:
    value = math.nan
    match cell:
        case bool():
            pass
        case str() if _NUMBER.fullmatch(cell.strip()):
            value = float(cell)
        case int() | float() | Decimal():
            value = float(str(cell))  # infinite for an int beyond all floats
    return value if abs(value) <= _LARGEST else None
