"""Labels that are one although they are written differently, and those that may not be what they seem."""

import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from decimal import Decimal

from lugpi_core.corpora.advice import Advice
from lugpi_core.corpora.label_forms import is_in_brackets
from lugpi_core.corpora.options import Task
from lugpi_core.errors import number_of

# What may stand between labels in one cell, the likeliest first.
SEPARATORS = ("|", ";", ",", "/", "+", "&", " ")
# Without leading zeros: 007 is a code.
_PLAIN_NUMBER = re.compile(r"[+-]?(?:0|[1-9]\d*)(?:\.\d+)?", re.ASCII)
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d{1,3})?", re.ASCII)
_TRUTH = {"true": "1", "false": "0"}
# How programs write that there is no value. In other letters (NONE, n/a) they are more likely to be classes.
MISSING_WORDS = frozenset({"None", "NA", "N/A", "#N/A", "<NA>", "null", "NULL"})
_IN_SMALL_LETTERS = {word.casefold() for word in MISSING_WORDS}
_NAMED = 3
# More classes than this, of less than two texts each, are hardly classes.
MANY_CLASSES = 50


def is_plain_number(name: str) -> bool:
    """Whether a label is a number, such as ``1``, ``-1`` or ``2.50``."""
    return _PLAIN_NUMBER.fullmatch(name) is not None


def equal_numbers(names: Iterable[str]) -> dict[str, str]:
    """Return, for each label that is the same number as a label that is written differently, how all of them are written from now on."""
    spellings: dict[Decimal, list[str]] = {}
    for name in names:
        if is_plain_number(name):
            spellings.setdefault(Decimal(name), []).append(name)
    several = {value: same for value, same in spellings.items() if len(same) > 1}
    return {name: str(int(value)) if value == int(value) else f"{value.normalize():f}" for value, same in several.items() for name in same}


def combined_labels(names: Sequence[str], separators: Sequence[str] = SEPARATORS) -> tuple[str, list[str]] | None:
    """Return a separator, and the labels that consist of other labels with it between them; None if there are none.

    Each part has to occur on its own or in another combination, so that ``TV/radio`` alone is a label; parts with a space between them
    on their own.
    """
    for separator in separators:
        parts = {name: {part.strip() for part in name.split(separator)} for name in names}
        counts = Counter(part for of_name in parts.values() for part in of_name)
        recurring = set(names) if separator == " " else {part for part, count in counts.items() if count > 1}
        found = [name for name, of_name in parts.items() if separator in name and "" not in of_name and of_name <= recurring]
        if found:
            return separator, found
    return None


def warn_of_doubtful_labels(names: Sequence[str], *, rows: int, where: str, task: Task, separator: str | None, advice: Advice) -> None:
    """Warn of labels that look like several labels in one, like numbers to predict, like none, or like one label in two spellings."""
    for doubt in _doubts(names, rows, task, separator, advice):
        warnings.warn(f"{where}: {doubt}", stacklevel=5)


def _doubts(names: Sequence[str], rows: int, task: Task, separator: str | None, advice: Advice) -> list[str]:
    doubts: list[str] = []
    combined = combined_labels(names, [other for other in SEPARATORS if other != separator])
    if combined:
        do = advice.separated.format(combined[0])
        doubts.append(f"{_some(combined[1], 'label{s}')} read as classes of their own; if they are several labels: {do}")
    if lists := [name for name in names if is_in_brackets(name) and (name[0] != "(" or "," in name)]:
        do = advice.multi_label if task == "single-label" else 'write them as JSON does: ["joy", "anger"]'
        doubts.append(f"{_some(lists, 'label{s}')} read as classes of their own; if they are lists of labels: {do}")
    if task == "single-label":
        points = [name.replace(",", ".") for name in names]  # decimal commas
        if all(map(is_plain_number, points)) and (fractions := [name for name in names if not name.lstrip("+-").isdecimal()]):
            doubts.append(f"{_some(fractions, 'number{s}')} read as classes; if they are to be predicted as numbers: {advice.regression}")
        elif len(names) > MANY_CLASSES and 2 * len(names) > rows:
            do = f"for numbers to be predicted: {advice.regression}" if are_numbers(names) else "is it the column of the labels?"
            doubts.append(f"{len(names):,} classes in {rows:,} rows; {do}")
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(_folded(name), []).append(name)
    doubts += [f"labels {', '.join(map(repr, same))} are different classes" for same in alike.values() if len(same) > 1]
    signs = [name for name in names if not any(map(str.isalnum, name))]  # SNLI writes "-" for "no label"; "+" and "-" are two classes
    doubts += [f"label {name!r} is read as a class; if it means no label, remove its rows" for name in signs if len(signs) == 1]
    for name in names:
        if name.casefold() in _IN_SMALL_LETTERS or (_is_minus_1(name) and counts_from_0(names)):
            do = "remove its rows" if task == "single-label" else "take it out of the cells"
            if task == "single-label" and may_mean_none(name):
                do = advice.hidden if _is_minus_1(name) else advice.unlabelled
            doubts.append(f"label {name!r} is read as a class; if it means no label: {do}")
    return doubts


def may_mean_none(name: str) -> bool:
    """Whether a label is a word or a number that often stands for no label."""
    return _is_minus_1(name) or name in MISSING_WORDS


def _is_minus_1(name: str) -> bool:
    return is_plain_number(name) and Decimal(name) == -1


def counts_from_0(names: Iterable[str]) -> bool:
    """Whether labels are 0, 1 … and -1, which data sets then write for no label."""
    numbers = {Decimal(name) if is_plain_number(name) else None for name in names}
    return len(numbers) > 2 and numbers == set(map(Decimal, range(-1, len(numbers) - 1)))


def are_numbers(names: Iterable[str]) -> bool:
    """Whether all labels are numbers."""
    return all(map(is_plain_number, names))


def _folded(name: str) -> str:
    """Return what the spellings of a label have in common: small letters, none invisible, a space for ``_`` and ``-``, a number's value."""
    text = "".join(
        letter
        for letter in unicodedata.normalize("NFKC", name).casefold()
        if unicodedata.category(letter) != "Cf" and not "\ufe00" <= letter <= "\ufe0f"
    ).strip()
    if _NUMBER.fullmatch(text):
        return str(Decimal(text).normalize() + 0)
    text = _TRUTH.get(text, text)
    return " ".join(re.sub(r"(?<=\w)[-_](?=\w)", " ", text).split()).lstrip("0") or text


def _some(names: Sequence[str], noun: str) -> str:
    return f"{number_of(len(names), noun)} such as {', '.join(map(repr, names[:_NAMED]))}"
