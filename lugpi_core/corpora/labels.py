"""What a column of labels says: a class of each text, several classes of each, or a number."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import partial
from typing import TypeVar

import numpy as np

from lugpi_core.corpora.advice import Advice, advice_for
from lugpi_core.corpora.columns import TextColumn
from lugpi_core.corpora.corpus import UNLABELLED
from lugpi_core.corpora.label_forms import answers, cell_value, has_rows_of_bits, is_hidden_vector, looks_like_list, vector_width
from lugpi_core.corpora.label_spelling import MISSING_WORDS, SEPARATORS, equal_numbers, is_plain_number
from lugpi_core.corpora.options import Task
from lugpi_core.corpora.tables import Table
from lugpi_core.corpora.texts import has_half_a_pair, listed
from lugpi_core.errors import InputError, number_of

Classes = tuple[str, ...]
Value = TypeVar("Value")
_Reader = Callable[[object, Classes | None], str | None]

HIDDEN = -1  # what the hub writes for "not labelled"
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+", re.ASCII)
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?", re.ASCII)
_LARGEST = 3.4028234663852886e38  # of float32
_ROUNDING = 1e-6  # of the range of the numbers; float32 has 24 bits, which is 6e-8 of a range that begins at 0
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


def label_cells(table: Table, column: str, task: Task) -> Sequence[object]:
    """Return the label of each row as the table has it; several columns of 0 and 1 as objects."""
    columns = label_columns(column, table.names, task)
    if len(columns) == 1:
        return table.columns[columns[0]]
    return [dict(zip(columns, cells, strict=True)) for cells in zip(*(table.columns[name] for name in columns), strict=True)]


def read_labels(tables: Sequence[Table], column: str, *, task: Task, separator: str | None, model_classes: Classes | None = None) -> Labels:
    """Return the labels of all rows of the tables, one table after the other.

    Labels that are equal numbers are one label. Classes are those that a table knows, or else all labels, sorted, by number if all of
    them are whole numbers. Multi-label cells are lists, text with a separator, objects or several columns of 0 and 1, or lists of 0 and 1
    that are all of one length. The keys of objects are the classes, also those that are nowhere 1. A list with one label is that label.

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
    keys: set[str] = set()
    if task == "single-label":
        tables = _without_lists(tables, column)
        names = [name for table in tables for name in _read(table, column, task, known, read_name)]
        alone = {name: (name,) for name in names}  # a tuple of each class, not of each row
        sets = [alone[name] for name in names]
    else:
        if len(columns := label_columns(column, tables[0].names, task)) > 1:
            known = columns if known is None else known
        cells = [cell for table in tables for cell in label_cells(table, column, task)]
        separator = "" if has_rows_of_bits(cells, separator) else separator
        values = [cell_value(cell, separator) for cell in cells]
        width = vector_width(values, known, " and ".join(table.where for table in tables))
        known = tuple(map(str, range(width))) if width and known is None else known
        keys = {name for value in values if isinstance(value, Mapping) for key in value if (name := label_name(key)) is not None}
        read = partial(_label_names, separator, width > 0, read_name)
        sets = [names for table in tables for names in _read(table, column, task, known, read)]
    if known is None:
        merged = equal_numbers({name for names in sets for name in names} | keys)
        sets = [tuple(merged.get(name, name) for name in names) for names in sets] if merged else sets
        classes = _sorted_classes({name for names in sets for name in names} | {merged.get(name, name) for name in keys})
    else:
        classes = tuple(dict.fromkeys([name for table in tables for name in table.classes or ()] + list(known)))
    number = {name: place for place, name in enumerate(classes)}
    if task == "single-label":
        return Labels(classes=classes, labels=[number[names[0]] for names in sets], targets=[None] * len(sets), are_known=are_known)
    targets = [tuple(sorted({number[name] for name in names})) for names in sets]
    return Labels(classes=classes, labels=[UNLABELLED] * len(sets), targets=list(targets), are_known=are_known)


def _without_lists(tables: Sequence[Table], column: str) -> Sequence[Table]:
    """Return the tables with the only label of each list in its place, if every label of them is such a list."""
    if any(isinstance(table.columns[column], TextColumn) for table in tables):
        return tables
    cells = [cell for table in tables for cell in table.columns[column] if not is_unlabelled(cell, None, "single-label")]
    if not cells or not all(isinstance(cell, list | tuple) and len(cell) == 1 and not isinstance(cell[0], list | dict) for cell in cells):
        return tables
    return [
        replace(table, columns={**table.columns, column: [cell[0] if isinstance(cell, list | tuple) and cell else cell for cell in labels]})
        for table in tables
        for labels in [table.columns[column]]
    ]


def check_precision(numbers: Sequence[float], where: str) -> None:
    """Raise InputError if float32, in which a model learns, makes different numbers equal that are close only as part of large ones."""
    learnt = np.array(numbers, np.float32)
    error = max((abs(float(rounded) - number) for rounded, number in zip(learnt, numbers, strict=True)), default=0.0)
    if numbers and len(set(learnt.tolist())) < len(set(numbers)) and error > _ROUNDING * (max(numbers) - min(numbers)):
        raise InputError(
            got=f"{len(set(numbers)):,} different numbers in {where}, {len(set(learnt.tolist())):,} in float32, in which models learn",
            expected="numbers whose differences are not lost",
            do="subtract a constant such as their mean from all of them, or rescale them",
        )


def _sorted_classes(names: set[str]) -> Classes:
    whole_numbers = all(name.removeprefix("-").isdecimal() for name in names)
    return tuple(sorted(names, key=lambda name: (int(name) if whole_numbers else 0, name)))


def _read(
    table: Table, column: str, task: Task, known: Classes | None, read: Callable[[object, Classes | None], Value | None]
) -> list[Value]:
    cells, classes = label_cells(table, column, task), table.classes or known
    of_text: dict[str, Value | None] = {}  # equal texts have one label, which is one object
    values = [_read_once(of_text, cell, read, classes) if isinstance(cell, str) else read(cell, classes) for cell in cells]
    bad = [row for row, value in enumerate(values) if value is None]
    if bad:
        shown = ", ".join((classes or ())[:_NAMED_CLASSES]) + " …" * (len(classes or ()) > _NAMED_CLASSES)
        expected = f"one of the classes {shown}, or its number from 0" if classes and task == "single-label" else _FORMS[task]
        if classes and task == "multi-label":
            expected = f"some of the classes {shown}"
        if any(isinstance(cells[row], dict) for row in bad) and task == "multi-label":
            expected = "0 or 1, or true or false, for each class"
        raise InputError(
            got=f"{number_of(len(bad), 'missing or unusable label{s}')} in {column} of {table.where}, the first {cells[bad[0]]!r:.80}: "
            f"{listed(table.numbers_of(bad))}",
            expected=expected,
            do=_advice(table, column, [cells[row] for row in bad], cells, task, classes),
        )
    return [value for value in values if value is not None]


def _read_once(
    of_text: dict[str, Value | None], cell: str, read: Callable[[object, Classes | None], Value | None], classes: Classes | None
) -> Value | None:
    if cell not in of_text:
        of_text[cell] = read(cell, classes)
    return of_text[cell]


def _advice(table: Table, column: str, bad: Sequence[object], cells: Sequence[object], task: Task, classes: Classes | None) -> str:
    """Return what helps with unusable labels."""
    if all(is_unlabelled(cell, classes, task) for cell in bad) and not table.in_memory:
        if table.source != "test":
            return "label these rows, or leave them out (--drop-unlabelled)"
        whole = "--test-split validation scores the validation split in its place, --test-split none a cut from train"
        return whole if len(bad) == len(cells) else f"leave these rows out (--drop-unlabelled) or all of the split: {whole}"
    advice = advice_for(in_memory=table.in_memory)
    texts = [cell.strip() for cell in bad if isinstance(cell, str)]
    if task == "regression":
        return _advice_on_numbers(texts)
    if len(label_columns(column, table.names, task)) > 1:
        return "write 0 or 1 in each of these columns"
    do = _advice_on_objects(bad, task, "pass the label itself" if table.in_memory else f"--label-column {column}.")
    if do is None and task == "multi-label" and texts:
        found = _separator_in(cells, texts, classes)
        do = None if found is None else f"say what stands between labels (--label-separator '{found}')"
        do = "pass a list for each text" if table.in_memory else do
        do = 'write lists as JSON does: ["joy", "anger"]' if any(map(looks_like_list, texts)) else do
    if do is None and task == "single-label":
        do = _advice_on_kinds(bad, advice)
    return do or "label or remove these rows"


def _separator_in(cells: Sequence[object], texts: Sequence[str], classes: Classes | None) -> str | None:
    """Return what may stand between labels: of known classes, only what is between them in each of the unusable texts."""
    for separator in SEPARATORS:
        parts = [part.strip() for text in texts for part in text.split(separator)]
        if any(separator in str(cell) for cell in cells) and (not classes or all(known_class(part, classes) for part in parts)):
            return separator
    return None if classes else "|"


def _advice_on_kinds(bad: Sequence[object], advice: Advice) -> str | None:
    """Return which task lists or numbers belong to; None if there are none."""
    if any(isinstance(cell, list | dict) for cell in bad):
        return f"several labels of a text are a task of their own ({advice.multi_label})"
    if any(isinstance(cell, float | Decimal) and math.isfinite(cell) for cell in bad):
        return f"numbers are a task of their own ({advice.regression}); if these are classes, write them as text"
    return None


def _advice_on_objects(bad: Sequence[object], task: Task, flag: str) -> str | None:
    """Return what helps with objects that are no answers for each class, and with lists of objects; None if there are none."""
    if any(isinstance(part, dict | list) for cell in bad if isinstance(cell, list) for part in cell):
        return "write each text's labels as plain text or numbers"
    inner = next((cell for cell in bad if isinstance(cell, dict) and answers(cell) is None), None)
    if inner is None:
        return None
    if names := [str(key) for key, part in inner.items() if isinstance(part, str | list)]:
        return f"name the key that has the label, such as {flag}{names[0]}" if flag.endswith(".") else flag
    return "write 0 or 1 for each class" if task == "multi-label" else "write each text's label as plain text or a number"


def _advice_on_numbers(texts: Sequence[str]) -> str:
    if texts and all(map(_DECIMAL_COMMA.fullmatch, texts)):
        if all(map(_THOUSANDS.fullmatch, texts)):
            return "write decimal points, or leave the commas out if they separate thousands"
        return "write decimal points, not commas"
    if any(letter.isdigit() for text in texts for letter in text):
        return "write plain numbers such as -1234.5, without separators of thousands, %, units or the minus sign U+2212"
    return "label or remove these rows"


def is_unlabelled(cell: object, classes: Classes | None, task: Task, *, hides_minus_1: bool = False) -> bool:
    """Whether a cell says that its row has no label: it is missing, a word for that, or the -1 of a data set with class names.

    ``hides_minus_1`` says that -1 means so without class names too.
    """
    hides, is_several = task == "single-label" and (classes is not None or hides_minus_1), task == "multi-label"
    match cell:
        case int() | float() | Decimal():
            is_none = (isinstance(cell, float | Decimal) and math.isnan(cell)) or (cell == HIDDEN and hides)
        case str():
            name = cell.strip()
            is_none = name.lower() in (("nan",) if is_several else ("", "nan")) or name in MISSING_WORDS
            is_none |= hides and is_plain_number(name) and Decimal(name) == HIDDEN
            is_none |= is_several and name.startswith("[") and is_hidden_vector(cell_value(name, None))
            is_none &= name not in (classes or ())
        case dict():
            is_none = all(is_unlabelled(value, None, "single-label", hides_minus_1=True) for value in cell.values())
        case list() | tuple():
            is_none = is_hidden_vector(cell) if is_several else not cell
        case _:
            is_none = cell is None
    return is_none


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


def _label_names(
    separator: str | None, is_encoded: bool, read_name: _Reader, cell: object, classes: Classes | None
) -> tuple[str, ...] | None:
    value = cell_value(cell, separator)
    if is_encoded and classes is not None and isinstance(value, list | tuple) and len(value) == len(classes):
        value = dict(zip(classes, value, strict=True))
    if isinstance(value, Mapping):
        said = answers(value)
        value = None if said is None else [name for name, is_so in said.items() if is_so]
    if not isinstance(value, list | tuple | set | frozenset):
        return None
    names = [read_name(part, classes) for part in value]
    return None if None in names else tuple(name for name in names if name is not None)


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
