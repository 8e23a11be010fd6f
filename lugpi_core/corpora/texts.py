"""Which texts a tokenizer and a file can take, and how the rows of those that they cannot are named."""

import re
from collections.abc import Sequence

from lugpi_core.corpora.columns import TextColumn
from lugpi_core.errors import InputError, number_of

_NAMED_ROWS = 5
_HALF_A_PAIR = re.compile(r"[\ud800-\udfff]")


def checked_texts(
    values: Sequence[object], *, what: str, where: str, names: Sequence[str] | None = None, numbers: Sequence[int] | None = None
) -> Sequence[str]:
    """Return ``values`` if all of them are texts that a tokenizer accepts. Any length, script and markup is allowed.

    Raises:
        InputError: some are not text, empty, or contain a NUL or half a surrogate pair; names the first few, by ``names`` or by row from 0
            (``numbers`` if rows have been left out).
    """
    bad: dict[str, list[int]] = {}
    for row, value in enumerate(values):
        if (fault := text_fault(value)) is not None:
            bad.setdefault(fault, []).append(row)
    if bad:
        fault, rows = next(iter(bad.items()))
        if names is not None:
            where_in = listed([names[row] for row in rows], of="examples")
        else:
            where_in = listed(rows if numbers is None else [numbers[row] for row in rows])
        raise InputError(got=f"{number_of(len(rows), fault)} in {what} of {where}: {where_in}", expected="text", do="fix or remove them")
    return values if isinstance(values, TextColumn) else [value for value in values if isinstance(value, str)]


def text_fault(value: object) -> str | None:
    """Return what is wrong with a text, as a noun with ``{s}`` for its plural, or None."""
    if not isinstance(value, str):
        return "value{s} missing or not text"
    if not value.strip():
        return "empty text{s}"
    if "\0" in value:
        return "text{s} with a NUL character"
    return "text{s} with half a surrogate pair" if has_half_a_pair(value) else None


def has_half_a_pair(text: str) -> bool:
    """Whether a text contains half a surrogate pair, which a JSON escape can produce and UTF-8 cannot encode."""
    return not text.isascii() and _HALF_A_PAIR.search(text) is not None


def listed(rows: Sequence[object], of: str = "rows, counted from 0,") -> str:
    """Return the first few of some rows, as ``rows, counted from 0, 3, 7 …``."""
    first = ", ".join(str(row) for row in rows[:_NAMED_ROWS])
    return f"{of} {first}" + (" …" if len(rows) > _NAMED_ROWS else "")
