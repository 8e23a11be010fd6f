"""Columns of many texts in one buffer of UTF-8, and which of their texts are equal, without a Python object for each.

A Python string takes 50 bytes beside its letters, and a million of them in a dictionary a hundred more each.
"""

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar, overload

import numpy as np
import xxhash
from numpy.typing import NDArray

_AT_ONCE = 4096
_COMPARED_AT_ONCE = 1 << 16
Item = TypeVar("Item")


def batched(items: Iterable[Item], size: int = _AT_ONCE) -> Iterator[tuple[Item, ...]]:
    """Yield items in tuples of this size; the last may be shorter."""
    iterator = iter(items)
    while some := tuple(islice(iterator, size)):
        yield some


class TextColumn(Sequence[str]):
    """Texts in one buffer, 8 bytes each beside their UTF-8. Half a surrogate pair, which UTF-8 has no form for, is kept.

    Args:
        data: the bytes of all texts. They may be followed by more, but never change.
        starts: int64 [N], where each text begins.
        ends: int64 [N], where it ends.
    """

    __slots__ = ("_data", "_ends", "_starts")

    def __init__(self, data: bytearray, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> None:
        self._data, self._starts, self._ends = data, starts, ends

    @classmethod
    def of(cls, texts: Iterable[str]) -> "TextColumn":
        """Return the column of some texts; of a column, itself."""
        if isinstance(texts, TextColumn):
            return texts
        builder = TextColumnBuilder()
        for some in batched(texts):
            builder.extend(some)
        return builder.column()

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> "TextColumn": ...
    def __getitem__(self, place: int | slice) -> "str | TextColumn":
        """Return a text, or a column of some of them, which shares the buffer."""
        if isinstance(place, slice):
            return TextColumn(self._data, self._starts[place], self._ends[place])
        return self._data[self._starts[place] : self._ends[place]].decode("utf-8", "surrogatepass")

    def __iter__(self) -> Iterator[str]:
        return (text.decode("utf-8", "surrogatepass") for text in self.encoded())

    def __eq__(self, other: object) -> bool:
        if isinstance(other, TextColumn):
            return len(self) == len(other) and all(map(bytearray.__eq__, self.encoded(), other.encoded()))
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(mine == its for mine, its in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"TextColumn({list(self[:3])!r:.100}, {len(self)} in all)"

    def encoded(self) -> Iterator[bytearray]:
        """Yield the UTF-8 of each text."""
        data = self._data
        for first in range(0, len(self), _AT_ONCE):
            starts, ends = self._starts[first : first + _AT_ONCE].tolist(), self._ends[first : first + _AT_ONCE].tolist()
            for start, end in zip(starts, ends, strict=True):
                yield data[start:end]

    def lengths(self) -> NDArray[np.int64]:
        """Return the number of bytes of each text, int64 [N]."""
        return self._ends - self._starts

    def take(self, rows: NDArray[np.int64] | Sequence[int]) -> "TextColumn":
        """Return the column of some of the texts, which shares the buffer."""
        rows = np.asarray(rows, np.int64)
        return TextColumn(self._data, self._starts[rows], self._ends[rows])

    def parts(self, cut: Callable[[str], Sequence[tuple[int, int]]]) -> tuple["TextColumn", NDArray[np.int64]]:
        """Return the column of parts of the texts, text after text, which shares the buffer, and how many each text has, int64 [N].

        Args:
            cut: returns where the parts of a text begin and end, in letters.
        """
        starts, ends, counts = array("q"), array("q"), array("q")
        for text, start in zip(self, self._starts.tolist(), strict=True):
            spans = cut(text)
            counts.append(len(spans))
            for begin, end in spans if text.isascii() else [(_bytes_of(text[:begin]), _bytes_of(text[:end])) for begin, end in spans]:
                starts.append(start + begin)
                ends.append(start + end)
        return TextColumn(self._data, np.frombuffer(starts, np.int64), np.frombuffer(ends, np.int64)), np.frombuffer(counts, np.int64)

    def followed_by(self, others: Iterable["TextColumn"]) -> "TextColumn":
        """Return these texts and those of other columns. The buffer grows: no copy of it is made."""
        starts, ends = [self._starts], [self._ends]
        for other in others:
            is_same = other._data is self._data
            shift = 0 if is_same else len(self._data)
            if not is_same:
                self._data += other._data
            starts.append(other._starts + shift)
            ends.append(other._ends + shift)
        return TextColumn(self._data, np.concatenate(starts), np.concatenate(ends))


def _bytes_of(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


class TextColumnBuilder:
    """A column that grows; the system moves a large buffer without copying it."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._ends = array("q", [0])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def extend(self, texts: Sequence[str]) -> None:
        """Append some texts."""
        data = "".join(texts).encode("utf-8", "surrogatepass")
        end = self._ends[-1]
        # As many bytes as letters: all of them are ASCII.
        is_ascii = len(data) == sum(map(len, texts))
        for text in texts:
            end += len(text) if is_ascii else _bytes_of(text)
            self._ends.append(end)
        self._data += data

    def column(self) -> TextColumn:
        """Return the column. Nothing may be appended after that."""
        ends = np.frombuffer(self._ends, np.int64)
        return TextColumn(self._data, ends[:-1], ends[1:])


class ColumnBuilder:
    """A column of any values that grows: of texts alone it is a ``TextColumn``, else a list."""

    def __init__(self) -> None:
        self._texts = TextColumnBuilder()
        self._cells: list[object] | None = None

    def extend(self, cells: Sequence[object]) -> None:
        """Append some values."""
        texts = [cell for cell in cells if isinstance(cell, str)]
        if self._cells is None and len(texts) < len(cells):
            self._cells = list(self._texts.column())
        if self._cells is None:
            self._texts.extend(texts)
        else:
            self._cells += cells

    def column(self) -> Sequence[object]:
        """Return the column. Nothing may be appended after that."""
        return self._texts.column() if self._cells is None else self._cells


class NumberedNames(Sequence[str]):
    """Names such as ``row/0``, ``row/1`` …, of which nothing is stored.

    Args:
        prefix: stands before each number.
        numbers: a range, or int64 [N] where rows have been left out.
    """

    __slots__ = ("_numbers", "_prefix")

    def __init__(self, prefix: str, numbers: range | NDArray[np.int64]) -> None:
        self._prefix, self._numbers = prefix, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> "NumberedNames": ...
    def __getitem__(self, place: int | slice) -> "str | NumberedNames":
        """Return a name, or some of them."""
        if isinstance(place, slice):
            return NumberedNames(self._prefix, self._numbers[place])
        return f"{self._prefix}{self._numbers[place]}"

    def take(self, rows: NDArray[np.int64] | Sequence[int]) -> "NumberedNames":
        """Return the names of some rows."""
        return NumberedNames(self._prefix, np.asarray(self._numbers, np.int64)[np.asarray(rows, np.int64)])


Texts = TextColumn | NumberedNames


def joined(columns: Sequence[Texts]) -> Texts:
    """Return the texts of one column after the other. Of several the first one's buffer grows."""
    if len(columns) == 1:
        return columns[0]
    first, *others = [TextColumn.of(column) for column in columns]
    return first.followed_by(others)


def has_repeats(texts: TextColumn) -> bool:
    """Whether two of the texts are equal."""
    return bool(equal_rows(texts.encoded, texts.__getitem__, len(texts)))


def _hash(text: bytes | bytearray) -> int:
    return xxhash.xxh3_64_intdigest(text)


def candidates(keys: Iterable[bytes | bytearray], count: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the rows of some keys with equal ones side by side, and which of these rows begin with another key.

    Equal keys have equal hashes; other keys hardly ever have, so the caller compares those that stand together. Rows of one key ascend.

    Args:
        keys: N of them.
        count: N.
    """
    hashes_N = np.fromiter(map(_hash, keys), np.uint64, count)
    order = np.argsort(hashes_N, kind="stable")
    begins = np.ones(count, np.bool_)
    for first in range(1, count, _COMPARED_AT_ONCE):  # in parts, which take no more memory for more rows
        its = hashes_N[order[first - 1 : first + _COMPARED_AT_ONCE]]
        begins[first : first + _COMPARED_AT_ONCE] = its[1:] != its[:-1]
    return order, begins


def equal_rows(keys: Callable[[], Iterable[bytes | bytearray]], exact: Callable[[int], object], count: int) -> list[list[int]]:
    """Return the rows that have the same key as others: those of each such key, ascending, in the order of their first rows.

    Args:
        keys: returns the N keys; equal ones have equal bytes.
        exact: returns what really has to be equal, of a row.
        count: N.
    """
    order, begins = candidates(keys(), count)
    firsts = np.flatnonzero(begins)
    sizes = np.diff(np.append(firsts, count))
    groups: list[list[int]] = []
    for first, size in zip(firsts[sizes > 1].tolist(), sizes[sizes > 1].tolist(), strict=True):
        same: dict[object, list[int]] = {}
        for row in order[first : first + size].tolist():
            same.setdefault(exact(row), []).append(row)
        groups += [rows for rows in same.values() if len(rows) > 1]
    return sorted(groups)


def numbered(texts: TextColumn) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows of the distinct texts, int64 [P], each one's first, ascending; and the number of each row's text, int64 [N]."""
    count = len(texts)
    order, begins = candidates(texts.encoded(), count)
    if begins.all():
        return np.arange(count), np.arange(count)
    is_first = np.zeros(count, np.bool_)
    is_first[order[begins]] = True
    numbers = np.cumsum(is_first, dtype=np.int64)
    numbers -= 1  # right where a text is the first of its group
    firsts, others = np.flatnonzero(begins), np.flatnonzero(~begins)
    numbers[order[others]] = numbers[order[firsts[np.searchsorted(firsts, others) - 1]]]
    del order, firsts, others
    rows, repeats = np.flatnonzero(is_first), np.flatnonzero(~is_first)
    if any(mine != its for mine, its in zip(texts.take(repeats).encoded(), texts.take(rows[numbers[repeats]]).encoded(), strict=True)):
        return _numbered_one_by_one(texts)
    return rows, numbers


def _numbered_one_by_one(texts: TextColumn) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the same where different texts have the same hash."""
    number: dict[str, int] = {}
    numbers = np.array([number.setdefault(text, len(number)) for text in texts], np.int64)
    return np.unique(numbers, return_index=True)[1].astype(np.int64), numbers
