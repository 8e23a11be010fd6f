"""What a column of labels says: a class of each text, several classes of each, or a number."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import TypeVar

from lugpi_core.corpora.corpus import UNLABELLED
from lugpi_core.corpora.options import Task
from lugpi_core.corpora.texts import has_half_a_pair, listed
from lugpi_core.corpora.user_files import Table
from lugpi_core.errors import InputError, number_of

_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_NAMED_CLASSES = 5

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Every row's labels.

    Attributes:
        classes: class k is ``classes[k]``; of a regression corpus, the name of its number.
        labels: the class of each row; UNLABELLED for the other tasks.
        targets: the classes of each row, ascending, or its number; None for single-label.
    """

    classes: tuple[str, ...]
    labels: list[int]
    targets: list[tuple[int, ...] | float | None]


def read_labels(tables: Sequence[Table], column: str, *, task: Task, separator: str | None) -> Labels:
    """Return the labels of all rows of the tables, one table after the other.

    Raises:
        InputError: a label is missing, or is none of the task's; names the rows.
    """
    match task:
        case "single-label":
            names = [name for table in tables for name in _read(table, column, label_name)]
            classes = _classes(tables[0], names)
            number = {name: place for place, name in enumerate(classes)}
            return Labels(classes=classes, labels=[number[name] for name in names], targets=[None] * len(names))
        case "multi-label":
            sets = [names for table in tables for names in _read(table, column, partial(_label_names, separator))]
            classes = _classes(tables[0], [name for names in sets for name in names])
            number = {name: place for place, name in enumerate(classes)}
            targets = [tuple(sorted({number[name] for name in names})) for names in sets]
            return Labels(classes=classes, labels=[UNLABELLED] * len(sets), targets=list(targets))
        case "regression":
            numbers = [value for table in tables for value in _read(table, column, _number)]
            return Labels(classes=(column,), labels=[UNLABELLED] * len(numbers), targets=list(numbers))


def _read(table: Table, column: str, read: Callable[[object, tuple[str, ...] | None], Value | None]) -> list[Value]:
    cells = table.columns[column]
    values = [read(cell, table.classes) for cell in cells]
    bad = [row for row, value in enumerate(values) if value is None]
    if bad:
        count = number_of(len(bad), "missing or unusable label{s}")
        known = table.classes
        raise InputError(
            got=f"{count} in {column} of {table.where}, the first {cells[bad[0]]!r:.80}: {listed(bad)}",
            expected="text, whole numbers or booleans"
            if known is None
            else f"one of the classes {', '.join(known[:_NAMED_CLASSES])}{' …' * (len(known) > _NAMED_CLASSES)}, or its number from 0",
            do="label or remove these rows",
        )
    return [value for value in values if value is not None]


def _classes(table: Table, names: Sequence[str]) -> tuple[str, ...]:
    if table.classes is not None:
        return table.classes
    classes = set(names)
    whole_numbers = all(name.removeprefix("-").isdecimal() for name in classes)
    return tuple(sorted(classes, key=lambda name: (int(name) if whole_numbers else 0, name)))


def label_name(value: object, classes: tuple[str, ...] | None = None) -> str | None:
    """Return the class name of a label as a file has it, or None if it is missing or no class."""
    match value:
        case float() if value.is_integer():  # a column of whole numbers that was stored with gaps
            return label_name(int(value), classes)
        case int() if classes is not None:
            return classes[value] if 0 <= value < len(classes) else None  # the hub writes -1 for "not labelled"
        case int():  # and booleans
            return str(value)
        case str() if value.strip().lower() not in ("", "nan") and not has_half_a_pair(value):
            name = value.strip()
            return name if classes is None or name in classes else None
    return None


def _label_names(separator: str | None, cell: object, classes: tuple[str, ...] | None) -> tuple[str, ...] | None:
    if isinstance(cell, str) and separator is not None:
        cell = [part for part in cell.split(separator) if part.strip()]
    if not isinstance(cell, list | tuple):
        return None
    names = [label_name(part, classes) for part in cell]
    return None if None in names else tuple(name for name in names if name is not None)


def _number(cell: object, _: tuple[str, ...] | None) -> float | None:
    match cell:
        case bool():
            return None
        case str():
            return float(cell) if _NUMBER.fullmatch(cell.strip()) else None
        case int() | float() | Decimal():
            return float(cell) if Decimal(cell).is_finite() else None
    return None
