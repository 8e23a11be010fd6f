"""Files of cells between commas, semicolons or tabs.

They are read with :mod:`csv`, not with pandas: every cell keeps its value, and every error names its line.
"""

import csv
import io
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from lugpi_core.errors import InputError

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_DECLARED = "sep="  # Excel's own first line


@dataclass(frozen=True, kw_only=True)
class Delimited:
    """The rows of a file, each with a cell for every name."""

    names: list[str]
    rows: list[list[str]]


@contextmanager
def long_cells() -> Iterator[None]:
    """Let Python's CSV reader accept cells of any length inside the block; by default it rejects those above 128 KiB."""
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def delimited_columns(text: str, *, where: str, usual: str, wanted: Sequence[str]) -> tuple[tuple[str, ...], dict[str, list[object]]]:
    """Return all column names of a file with a header line, and the wanted columns.

    Cells are between the delimiter by which the header has most of the wanted columns: ``usual``, unless another one has more of them,
    which is told. Empty lines, and lines of empty cells, are skipped.

    Args:
        text: the file's content.
        where: the file, for errors.
        usual: the delimiter that the file's suffix promises.
        wanted: names of columns.

    Raises:
        InputError: a malformed line, a line with more or fewer cells than the header, or a wanted column twice.
    """
    if text[: len(_DECLARED)].lower() == _DECLARED:
        declaration, _, text = text.partition("\n")
        delimiter = declaration.rstrip("\r")[len(_DECLARED) :][:1] or usual
    else:
        delimiter = _delimiter(text, usual, wanted)
        if delimiter != usual:
            warnings.warn(f"{where} has {DELIMITERS[delimiter]} between its cells, and is read so", stacklevel=5)
    file = _unquoted(text) if delimiter == "\t" else None
    try:
        quoted = _quoted_after_spaces(text, delimiter, where) or _quoted(text, delimiter, where)
    except InputError:
        if file is None:
            raise
    else:
        # Tab-separated files are written with quoted cells (pandas, Excel) or with bare quotation marks (GLUE). Where both readings are
        # possible, bare marks would have swallowed the ends of lines.
        file = quoted if file is None or len(file.rows) == len(quoted.rows) else file
    place = {name: _place(name, file.names, where) for name in wanted}
    columns: dict[str, list[object]] = {name: [row[at] for row in file.rows] for name, at in place.items() if at is not None}
    named = {at: name for name, at in place.items() if at is not None}
    return tuple(named.get(at, name) for at, name in enumerate(file.names) if name.strip()), columns


def _delimiter(text: str, usual: str, wanted: Sequence[str]) -> str:
    """Return the delimiter with most wanted names in the header, or else with most cells; the usual one if none is better."""

    def score(delimiter: str) -> tuple[int, int]:
        names = {name.strip() for name in _header(text, delimiter)}
        return sum(name in names for name in wanted), len(names)

    return max((usual, *DELIMITERS), key=score)  # the first of equals


def _line_end(text: str) -> str:
    return "\n" if "\n" in text else "\r"  # alone it ends lines on old Macs


def _header(text: str, delimiter: str) -> list[str]:
    with long_cells():
        try:
            return next(csv.reader([text.partition(_line_end(text))[0]], delimiter=delimiter, skipinitialspace=delimiter != "\t"), [])
        except csv.Error:
            return []


def _quoted_after_spaces(text: str, delimiter: str, where: str) -> Delimited | None:
    """Return the rows of a file that has a space between delimiters and quotation marks, as ``a, "b, c"``; None if it has none."""
    if delimiter == "\t" or f'{delimiter} "' not in text:
        return None
    try:
        skipping = _quoted(text, delimiter, where, skips_spaces=True)
    except InputError:
        return None
    try:
        rows = _quoted(text, delimiter, where).rows
    except InputError:
        return skipping
    has_marks = any(len(cell) > 2 and cell[0] == " " and cell.strip()[::-1][:1] == '"' == cell.lstrip()[0] for row in rows for cell in row)
    return skipping if has_marks else None


def _quoted(text: str, delimiter: str, where: str, *, skips_spaces: bool = False) -> Delimited:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter, skipinitialspace=skips_spaces)
    rows: list[list[str]] = []
    try:
        with long_cells():
            names = next(reader, [])
            for cells in reader:
                if not any(cell.strip() for cell in cells):
                    continue
                while len(cells) > len(names) and not cells[-1].strip():
                    cells.pop()
                if len(cells) != len(names):
                    got = f"{len(cells)} cells in the row that ends at line {reader.line_num} of {where}"
                    do = f'quote cells with {DELIMITERS.get(delimiter, repr(delimiter))} or line breaks: "…"'
                    raise InputError(got=got, expected=f"{len(names)} as in its header", do=do)
                rows.append(cells)
    except csv.Error as error:
        got = f"malformed CSV ({error}) at line {reader.line_num} of {where}"
        expected = f"cells separated by {DELIMITERS.get(delimiter, repr(delimiter))} and quoted by double quotes"
        raise InputError(got=got, expected=expected, do="fix that line") from error
    return Delimited(names=names, rows=rows)


def _unquoted(text: str) -> Delimited | None:
    """Return the rows of a tab-separated file whose quotation marks are letters like others; None if its lines are not of equal length."""
    lines = [line.removesuffix("\r") for line in text.split(_line_end(text))]
    names, *rows = [line.split("\t") for line in lines if line.strip()] or [[]]
    if any(len(row) != len(names) for row in rows):
        return None
    return Delimited(names=names, rows=rows)


def _place(name: str, names: Sequence[str], where: str) -> int | None:
    """Return which column a name means: that name, or else that name with spaces around it."""
    for candidates in (list(names), [given.strip() for given in names]):
        if candidates.count(name) > 1:
            raise InputError(got=f"the column name {name} twice in {where}", expected="each once", do="rename one")
        if name in candidates:
            return candidates.index(name)
    return None
