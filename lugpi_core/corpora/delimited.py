"""Files of cells between commas, semicolons or tabs.

They are read with :mod:`csv`, not with pandas or Arrow: every cell keeps its value, and every error names its line. Only the columns that
are wanted are kept, as one buffer each; the file is read block by block.
"""

import csv
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from lugpi_core.corpora.columns import TextColumn, TextColumnBuilder, batched
from lugpi_core.corpora.text_files import TextFile
from lugpi_core.errors import InputError

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_DECLARED = "sep="  # Excel's own first line
_ROWS_AT_ONCE = 1024


@dataclass(frozen=True, kw_only=True)
class Delimited:
    """What is kept of a file.

    Attributes:
        names: of all columns.
        columns: the cells of some, by place.
        rows: how many there are.
        has_marks: whether a cell stands between quotation marks, after a space.
    """

    names: list[str]
    columns: dict[int, TextColumn]
    rows: int
    has_marks: bool = False


@dataclass(frozen=True, kw_only=True)
class _Source:
    """A file, and how it is read.

    Attributes:
        file: the file.
        where: for errors.
        delimiter: between its cells.
        wanted: names of the columns that are kept.
        skip: letters before the line with the names.
        line_end: of its lines, if quotation marks mean nothing.
    """

    file: TextFile
    where: str
    delimiter: str
    wanted: frozenset[str]
    skip: int
    line_end: str

    def builders(self, names: Sequence[str]) -> dict[int, TextColumnBuilder]:
        """Return a growing column for each place with a wanted name."""
        return {at: TextColumnBuilder() for at, name in enumerate(names) if name in self.wanted or name.strip() in self.wanted}


@contextmanager
def long_cells() -> Iterator[None]:
    """Let Python's CSV reader accept cells of any length inside the block; by default it rejects those above 128 KiB."""
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def delimited_columns(
    file: TextFile, *, where: str, usual: str, wanted: Sequence[str]
) -> tuple[tuple[str, ...], dict[str, Sequence[object]]]:
    """Return all column names of a file with a header line, and the wanted columns.

    Cells are between the delimiter by which the header has most of the wanted columns: ``usual``, unless another one has more of them,
    which is told. Empty lines, and lines of empty cells, are skipped.

    Args:
        file: the file.
        where: the file, for errors.
        usual: the delimiter that the file's suffix promises.
        wanted: names of columns.

    Raises:
        InputError: a malformed line, a line with more or fewer cells than the header, or a wanted column twice.
    """
    beginning, skip = file.beginning, 0
    if beginning[: len(_DECLARED)].lower() == _DECLARED:
        declaration, line_feed, beginning = beginning.partition("\n")
        delimiter, skip = declaration.rstrip("\r")[len(_DECLARED) :][:1] or usual, len(declaration + line_feed)
    else:
        delimiter = _delimiter(beginning, usual, wanted)
        if delimiter != usual:
            warnings.warn(f"{where} has {DELIMITERS[delimiter]} between its cells, and is read so", stacklevel=5)
    source = _Source(file=file, where=where, delimiter=delimiter, wanted=frozenset(wanted), skip=skip, line_end=_line_end(beginning))
    read = _read_tabs(source) if delimiter == "\t" else _read_delimited(source)
    place = {name: _place(name, read.names, where) for name in wanted}
    columns: dict[str, Sequence[object]] = {name: read.columns[at] for name, at in place.items() if at is not None}
    named = {at: name for name, at in place.items() if at is not None}
    return tuple(named.get(at, name) for at, name in enumerate(read.names) if name.strip()), columns


def _read_tabs(source: _Source) -> Delimited:
    """Return the rows of a tab-separated file.

    Such files are written with quoted cells (pandas, Excel) or with bare quotation marks (GLUE). Where both readings are possible, bare
    marks would have swallowed the ends of lines.
    """
    rows = _count_unquoted_rows(source)
    try:
        quoted = _read_quoted(source)
    except InputError:
        if rows is None:
            raise
    else:
        if rows is None or rows == quoted.rows:
            return quoted
    return _read_unquoted(source)


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


def _read_delimited(source: _Source) -> Delimited:
    """Return the rows of a file, which may have a space between delimiters and quotation marks, as ``a, "b, c"``."""
    try:
        read = _read_quoted(source)
    except InputError:
        if source.delimiter not in source.file.before_marks:
            raise
        try:
            return _read_quoted(source, skips_spaces=True)
        except InputError:
            pass
        raise
    if not read.has_marks:
        return read
    try:
        return _read_quoted(source, skips_spaces=True)
    except InputError:
        return read


def _read_quoted(source: _Source, *, skips_spaces: bool = False) -> Delimited:
    delimiter, where, count, has_marks = source.delimiter, source.where, 0, False
    looks_for_marks = not skips_spaces and delimiter in source.file.before_marks
    with source.file.lines("", source.skip) as lines, long_cells():
        reader = csv.reader(lines, strict=True, delimiter=delimiter, skipinitialspace=skips_spaces)
        try:
            names = next(reader, [])
            builders = source.builders(names)
            rows: list[list[str]] = []
            for cells in reader:
                if not any(map(str.strip, cells)):
                    continue
                while len(cells) > len(names) and not cells[-1].strip():
                    cells.pop()
                if len(cells) != len(names):
                    got = f"{len(cells)} cells in the row that ends at line {reader.line_num} of {where}"
                    do = f'quote cells with {DELIMITERS.get(delimiter, repr(delimiter))} or line breaks: "…"'
                    raise InputError(got=got, expected=f"{len(names)} as in its header", do=do)
                has_marks = has_marks or (looks_for_marks and any(map(_is_in_marks, cells)))
                rows.append(cells)
                if len(rows) == _ROWS_AT_ONCE:
                    count += _append(builders, rows)
        except csv.Error as error:
            got = f"malformed CSV ({error}) at line {reader.line_num} of {where}"
            expected = f"cells separated by {DELIMITERS.get(delimiter, repr(delimiter))} and quoted by double quotes"
            raise InputError(got=got, expected=expected, do="fix that line") from error
    count += _append(builders, rows)
    return _delimited_of(names, builders, count, has_marks=has_marks)


def _is_in_marks(cell: str) -> bool:
    return cell[:1] == " " and len(cell) > 2 and cell.rstrip()[-1:] == '"' == cell.lstrip()[:1]


def _append(builders: dict[int, TextColumnBuilder], rows: list[list[str]]) -> int:
    """Append the wanted cells of some rows, forget the rows, and return how many they were."""
    count = len(rows)
    for at, builder in builders.items():
        builder.extend([cells[at] for cells in rows])
    rows.clear()
    return count


def _delimited_of(names: list[str], builders: dict[int, TextColumnBuilder], rows: int, *, has_marks: bool = False) -> Delimited:
    return Delimited(names=names, columns={at: builder.column() for at, builder in builders.items()}, rows=rows, has_marks=has_marks)


def _lines(source: _Source) -> Iterator[list[str]]:
    """Yield the cells of each line of a tab-separated file whose quotation marks are letters like others."""
    with source.file.lines(source.line_end, source.skip) as lines:
        for line in lines:
            if line.strip():
                yield line.removesuffix(source.line_end).removesuffix("\r").split("\t")


def _count_unquoted_rows(source: _Source) -> int | None:
    """Return the number of such lines below the header; None if they are not of equal length."""
    lines = _lines(source)
    names, count = next(lines, []), 0
    for cells in lines:
        if len(cells) != len(names):
            return None
        count += 1
    return count


def _read_unquoted(source: _Source) -> Delimited:
    lines = _lines(source)
    names, count = next(lines, []), 0
    builders = source.builders(names)
    for rows in batched(lines, _ROWS_AT_ONCE):
        count += _append(builders, list(rows))
    return _delimited_of(names, builders, count)


def _place(name: str, names: Sequence[str], where: str) -> int | None:
    """Return which column a name means: that name, or else that name with spaces around it."""
    for candidates in (list(names), [given.strip() for given in names]):
        if candidates.count(name) > 1:
            raise InputError(got=f"the column name {name} twice in {where}", expected="each once", do="rename one")
        if name in candidates:
            return candidates.index(name)
    return None
