"""A user's own pictures beside the texts: which distinct ones there are, which text has which, and which row of a store each is.

Shapes: N examples, K pictures each, M rows.
"""

from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from featurize.encode.own_pictures import PictureKind, kind_of
from lugpi_core.corpora.corpus import Corpus
from lugpi_core.corpora.pictures import PictureCell, PictureFault
from lugpi_core.errors import InputError, number_of
from lugpi_core.fingerprint import digest
from lugpi_core.store.picture_table import PictureTable, StoredPicture, name_to_store

NO_PICTURE = "no picture"
_NAMED = 3


@dataclass(frozen=True, kw_only=True)
class PicturePlan:
    """The pictures of N texts: the rows of every column. Holds no picture.

    Attributes:
        rows: the picture of each row.
        cells: by the digest of a picture that can be read, a cell that has it, and its place there.
        images_of_example: int64 [N, K], the rows of each text's pictures; those of a text with fewer recur in turn.
        kinds: of the distinct pictures that can be read.
        fingerprint: of the pictures when the store was begun.
        pictures: how many the texts have, with repeats.
        filled_in: rows of a store that had no picture before.
    """

    rows: tuple[StoredPicture, ...] = field(repr=False)
    cells: Mapping[str, tuple[PictureCell, int]] = field(repr=False)
    images_of_example: NDArray[np.int64]
    kinds: tuple[PictureKind, ...] = field(repr=False)
    fingerprint: str
    pictures: int
    filled_in: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def images_per_text(self) -> int:
        """K."""
        return int(self.images_of_example.shape[1])

    @property
    def saved(self) -> int:
        """How many more rows there would be if texts with the same picture did not share its row."""
        return self.pictures - len(self)

    @property
    def faulty(self) -> tuple[StoredPicture, ...]:
        """The rows without a picture that can be read."""
        return tuple(picture for picture in self.rows if picture.fault)

    def table(self) -> PictureTable:
        """Return what a store records of its rows."""
        return PictureTable(fingerprint=self.fingerprint, rows=self.rows)

    def read(self, row: int) -> bytes:
        """Return the bytes of a picture's file.

        Raises:
            PictureFault: it could not be read when the run was planned.
            InputError: it is not what it was then.
        """
        picture = self.rows[row]
        if picture.fault:
            raise PictureFault(picture.fault)
        cell, place = self.cells[picture.digest]
        try:
            data = cell.pictures()[place].read()
        except (PictureFault, IndexError):
            data = b""
        if xxhash.xxh3_128_hexdigest(data) != picture.digest:
            raise InputError(
                got=f"{picture.words()}, which changed during the run",
                expected="the same pictures from beginning to end",
                do="put the earlier file back and run the command again, or run it in another --run-dir",
            )
        return data

    def retried(self, rows: Container[int]) -> "PicturePlan":
        """Return the plan that reads some rows although they could not be read before."""
        return replace(
            self,
            rows=tuple(
                replace(picture, fault="") if picture.fault and number in rows and picture.digest in self.cells else picture
                for number, picture in enumerate(self.rows)
            ),
        )

    def words(self) -> list[str]:
        """Return what a user should know of the pictures, a line each."""
        without = sum(picture.fault == NO_PICTURE for picture in self.rows)
        several = f", {self.images_per_text} of a text at most" if self.images_per_text > 1 else ""
        lines = [f"{number_of(len(self) - without, 'distinct picture{s}')}{several} ({self.saved:,} saved, their content is shared)"]
        turned, animated, deep = (sum(getattr(kind, name) for kind in self.kinds) for name in ("is_turned", "is_animated", "is_deep"))
        lines += [f"{number_of(turned, 'picture{s}')} turned as their EXIF says"] * bool(turned)
        lines += [f"{number_of(animated, 'picture{s}')} with several frames: the first is read"] * bool(animated)
        lines += [f"{number_of(deep, 'picture{s}')} of more than 8 bits: PIL, as the encoders' libraries, cuts at 255"] * bool(deep)
        lines += [f"{number_of(self.filled_in, 'picture{s}')} that the store lacked: filled in"] * bool(self.filled_in)
        lines += [f"{number_of(without, 'text{s}')} without a picture"] * bool(without)
        unread = [picture for picture in self.faulty if picture.fault != NO_PICTURE]
        if unread:
            first = {picture.fault: picture for picture in reversed(unread)}
            counted = Counter(picture.fault for picture in unread).most_common(_NAMED)
            told = ", ".join(f"{count} {why} (the first {first[why].words()})" for why, count in counted)
            lines.append(f"{number_of(len(unread), 'picture{s}')} cannot be read: {told}")
        return lines


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """The pictures of a corpus as they are now, those of each text in their order; a text without any has one that says so."""

    of_example: Sequence[Sequence[StoredPicture]]
    cells: Mapping[str, tuple[PictureCell, int]]
    kinds: tuple[PictureKind, ...]

    def __iter__(self) -> Iterator[StoredPicture]:
        return chain.from_iterable(self.of_example)


def plan_pictures(corpus: Corpus, store: Path, table: PictureTable | None) -> PicturePlan:
    """Return the pictures of a corpus. Every file is read once, to tell its content; none is kept.

    Args:
        corpus: whose texts have pictures.
        store: for errors.
        table: of the store that is continued; its rows keep their numbers. None = a new store.

    Raises:
        InputError: a cell holds something that is no picture, none of the texts has a picture, or the store has others.
    """
    seen = _look(corpus)
    if not seen.kinds:
        raise InputError(
            got=f"no picture that can be read in {corpus.name} ({next((one.fault for one in seen), 'no texts')})",
            expected="pictures beside the texts",
            do="check the column and its paths, which are relative to the corpus file",
        )
    numbering = _Numbering(table)
    its = [[numbering.row_of(picture) for picture in pictures] for pictures in seen.of_example]
    if table is not None:
        numbering.use_idle_rows(seen, its)
        its = [
            [row if row >= 0 and numbering.rows[row].digest == picture.digest else -1 for row, picture in zip(rows, pictures, strict=True)]
            for rows, pictures in zip(its, seen.of_example, strict=True)
        ]
        _refuse_others(seen, table, its, store)
    rows = tuple(numbering.rows)
    most = max(map(len, its))
    return PicturePlan(
        rows=rows,
        cells=seen.cells,
        images_of_example=np.stack([np.resize(np.array(rows_of_text, np.int64), most) for rows_of_text in its]),
        kinds=seen.kinds,
        fingerprint=digest([picture.digest or picture.fault for picture in rows]) if table is None else table.fingerprint,
        pictures=sum(map(len, its)),
        filled_in=0 if table is None else sum(bool(then.fault) > bool(now.fault) for then, now in zip(table.rows, rows, strict=True)),
    )


def _look(corpus: Corpus) -> _Seen:
    of_example: list[list[StoredPicture]] = []
    cells: dict[str, tuple[PictureCell, int]] = {}
    kinds: dict[str, PictureKind | str] = {}
    for example in corpus.examples:
        cell = example.pictures
        assert cell is not None
        pictures = []
        for place, picture in enumerate(cell.pictures()):
            content = fault = ""
            try:
                data = picture.read()
                content = xxhash.xxh3_128_hexdigest(data)
                if content not in kinds:
                    kinds[content] = _kind_or_fault(data)
                fault = str(kinds[content]) if isinstance(kinds[content], str) else ""
            except PictureFault as error:
                fault = str(error)
            name = name_to_store(picture.name)
            pictures.append(StoredPicture(name=name, example=example.id, place=place, digest=content, fault=fault))
            if not fault:
                cells.setdefault(content, (cell, place))
        of_example.append(pictures or [StoredPicture(name="", example=example.id, place=0, digest="", fault=NO_PICTURE)])
    return _Seen(of_example=of_example, cells=cells, kinds=tuple(kind for kind in kinds.values() if isinstance(kind, PictureKind)))


def _kind_or_fault(data: bytes) -> PictureKind | str:
    try:
        return kind_of(data)
    except PictureFault as error:
        return str(error)


class _Numbering:
    """Finds the row of each picture: one for each content, and one for each picture that is missing or damaged, whatever it holds.

    Args:
        table: of a store that is continued; None = a new one.

    Attributes:
        rows: the picture of each row; one that was missing and is there now takes its place.
    """

    def __init__(self, table: PictureTable | None) -> None:
        self._is_new = table is None
        self.rows = [] if table is None else list(table.rows)
        self._by_digest = {picture.digest: row for row, picture in enumerate(self.rows) if picture.digest}
        self._waiting = {(picture.example, picture.place): row for row, picture in enumerate(self.rows) if picture.fault}
        self._waiting_by_name: dict[str, dict[int, None]] = {}
        for row in self._waiting.values():
            self._waiting_by_name.setdefault(self.rows[row].name, {})[row] = None

    def row_of(self, picture: StoredPicture) -> int:
        """Return the row of a picture; -1 if the store that is continued has none for it."""
        same_place = self._waiting.get((picture.example, picture.place))
        if of_name := self._waiting_by_name.get(picture.name):  # among several that wait for this file, that of the same text
            return self._take(same_place if same_place in of_name else next(iter(of_name)), picture)
        if not picture.fault and picture.digest in self._by_digest:
            return self._by_digest[picture.digest]
        if same_place is not None:
            return self._take(same_place, picture)
        if not self._is_new:
            return -1
        self.rows.append(picture)
        if not picture.fault:
            self._by_digest[picture.digest] = len(self.rows) - 1
        return len(self.rows) - 1

    def use_idle_rows(self, seen: _Seen, its: list[list[int]]) -> None:
        """Give rows that still wait for a picture, while their text has one of the content of another row, that picture."""
        if not self._waiting:
            return
        places = {
            (picture.example, picture.place): (text, picture) for text, pictures in enumerate(seen.of_example) for picture in pictures
        }
        for place in list(self._waiting):
            text, picture = places.get(place, (-1, None))
            if picture is not None and not picture.fault:
                its[text][picture.place] = self._take(self._waiting[place], picture)

    def _take(self, row: int, picture: StoredPicture) -> int:
        then = self.rows[row]
        del self._waiting[then.example, then.place], self._waiting_by_name[then.name][row]
        # What could be opened but not read before, cannot be read now.
        self.rows[row] = replace(picture, fault=then.fault) if picture.digest and picture.digest == then.digest else picture
        if not picture.fault:
            self._by_digest.setdefault(picture.digest, row)
        return row


def _refuse_others(seen: _Seen, table: PictureTable, its: Iterable[Iterable[int]], store: Path) -> None:
    """Raise InputError if pictures were changed, added or removed since a store was begun; its rows are fixed."""
    names = {picture.name for picture in table.rows if picture.name and not picture.fault}
    unlike: dict[str, list[StoredPicture]] = defaultdict(list)
    for picture, row in zip(seen, chain.from_iterable(its), strict=True):
        if row < 0:
            unlike["missing" if not picture.digest else "changed" if picture.name in names else "added"].append(picture)
    changed = {picture.name for picture in unlike["changed"]}
    contents = {picture.digest for picture in seen}
    told = {(picture.example, picture.place) for picture in unlike["missing"]}
    for picture in table.rows:
        is_told = picture.name in changed or (picture.example, picture.place) in told
        if not picture.fault and picture.digest not in contents and not is_told:
            unlike["missing"].append(picture)
    found = {what: pictures for what, pictures in unlike.items() if pictures}
    if found:
        words = ", ".join(f"{len(pictures):,} {what} (the first {pictures[0].words()})" for what, pictures in found.items())
        back = "" if found.keys() == {"added"} else "put the earlier files back, or "
        raise InputError(
            got=f"other pictures than those of the store in {store}: {words}",
            expected="the pictures that it was begun with; only those that were missing or cannot be read may come later",
            do=f"{back}encode all as they are now in another --run-dir",
        )
