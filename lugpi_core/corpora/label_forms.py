"""What one cell of a multi-label corpus contains: a list, an object from classes to 0 and 1, or a row of 0s and 1s."""

import ast
import json
import re
from collections.abc import Mapping, Sequence

from lugpi_core.errors import InputError

YES_AND_NO = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}
_STRING = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)
_BITS = re.compile("[01]+")
_NAME_OF_LIST = re.compile(r"^(?:array|frozenset|set|tuple|list)(?=\()")
_NAMED_WIDTHS = 5


def is_in_brackets(text: str) -> bool:
    """Whether a text begins with a bracket that is closed at its very end, as ``[a] or [b]`` does not."""
    depth = 0
    for place, letter in enumerate(text if text[:1] + text[-1:] in ("[]", "()", "{}") else ""):
        depth += (letter == text[0]) - (letter == text[-1])
        if not depth:
            return place == len(text) - 1
    return False


def looks_like_list(text: str) -> bool:
    """Whether a text is in brackets, maybe after the name of a kind of list, as ``frozenset({'a'})``."""
    return is_in_brackets(_NAME_OF_LIST.sub("", text))


def list_in(text: str) -> list[object] | dict[object, object] | None:
    """Return the list or the object that a text contains, in the form of JSON, Python or NumPy; None if there is none.

    NumPy writes ``['a' 'b']``, which is ``['ab']`` to Python.
    """
    if not is_in_brackets(text):
        return None
    outside = _STRING.sub('"', text)
    if re.fullmatch(r'\[\s*"(?:\s+")+\s*\]', outside):
        return [ast.literal_eval(part) for part in _STRING.findall(text)]
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            continue
        if isinstance(value, dict):
            return value
        return list(value) if isinstance(value, list | tuple | set) and not re.search(r'"\s*"', outside) else None
    return None


def cell_value(cell: object, separator: str | None) -> object:
    """Return what a cell contains: of text a list or an object, or None if it is neither; else the cell itself, its choices (Label Studio).

    Args:
        cell: as the table has it.
        separator: what stands between labels in text; empty if each letter is one; None if nothing does.
    """
    value = cell
    if isinstance(cell, str):
        text = cell.strip()
        value = list_in(text)
        is_other_list = looks_like_list(text) and ("," in text or (separator or ",") in text)
        if value is None and separator is not None and text.lower() != "nan" and not is_other_list:
            value = [part for part in text.split(separator) if part.strip()] if separator else list(text)
    match value:
        case {"choices": [*choices]} if isinstance(value, dict) and len(value) == 1:
            return choices
    return value


def has_rows_of_bits(cells: Sequence[object], separator: str | None) -> bool:
    """Whether every cell that is not missing is text such as ``0101``; if there is a separator, all have to be of one length."""
    texts = [cell.strip() if isinstance(cell, str) else "" for cell in cells if cell is not None]
    widths = {len(text) if _BITS.fullmatch(text) else 0 for text in texts}
    return bool(widths) and 0 not in widths and max(widths) > 1 and (separator is None or len(widths) == 1)


def vector_width(values: Sequence[object], classes: Sequence[str] | None, where: str) -> int:
    """Return of how many classes labels are encoded if every value is a list of as many 0s and 1s; otherwise 0.

    Lists of 0 and 1 without a number twice that have other lengths are numbers of classes.

    Raises:
        InputError: encoded labels of several lengths, or not as many as there are classes.
    """
    lists = [_bits(value) for value in values if not is_hidden_vector(value) and value is not None]
    if not lists or None in lists:
        return 0
    widths = sorted({len(bits or ()) for bits in lists})
    if len(widths) == 1 and widths[0] > 1 and (classes is None or len(classes) == widths[0]):
        return widths[0]
    if any(len(set(bits or ())) < len(bits or ()) for bits in lists):
        shown = ", ".join(map(str, widths[:_NAMED_WIDTHS])) + " …" * (len(widths) > _NAMED_WIDTHS)
        expected = "one length for all rows of all files" if classes is None else f"{len(classes)}, one for each class"
        raise InputError(got=f"lists of {shown} zeros and ones in {where}", expected=expected, do="make them equal, or list class names")
    return 0


def _bits(value: object) -> tuple[str, ...] | None:
    if not isinstance(value, list | tuple):
        return None
    bits = tuple(str(int(bit)) if isinstance(bit, bool) else str(bit).strip().removesuffix(".0") for bit in value)
    return bits if all(bit in ("0", "1") for bit in bits) else None


def is_hidden_vector(value: object) -> bool:
    """Whether it is a list of -1 only, which data sets write for "not labelled"."""
    return isinstance(value, list | tuple) and len(value) > 1 and all(part == -1 for part in value)


def answers(value: Mapping[object, object]) -> dict[object, bool] | None:
    """Return whether each key applies, or None if a value is not 0, 1, true or false."""
    said = {key: YES_AND_NO.get(str(part).strip().lower()) for key, part in value.items()}
    return {key: is_so for key, is_so in said.items() if is_so is not None} if None not in said.values() else None
