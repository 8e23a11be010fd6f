"""``pictures.h5`` in a store of a user's own pictures: which picture each row is, so that one that changed is told, and one that was
missing can be filled in."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lugpi_core.errors import InputError
from lugpi_core.store.lease import locked
from lugpi_core.store.sealed_file import read_sealed, write_sealed

PICTURES = "pictures.h5"
_LONGEST_NAME = 200  # bytes; of a longer one, its end


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPicture:
    """A picture of a text: a row of every column.

    Attributes:
        name: as its cell names it, of a long name the end; empty if the text has none.
        example: id of the text; if several have it, of the first.
        place: in the text's cell, counted from 0.
        digest: xxh3-128 of its file's bytes; empty if there is no file.
        fault: why it cannot be read; empty if it can.
    """

    name: str
    example: str
    place: int
    digest: str
    fault: str = ""

    def words(self) -> str:
        """Return which picture it is, for a person."""
        return f"{self.name} of {self.example}" if self.name else f"that of {self.example}"


def name_to_store(name: str) -> str:
    """Return a name as the table has it: its last 200 bytes."""
    return name.encode(errors="backslashreplace")[-_LONGEST_NAME:].decode(errors="ignore")


@dataclass(frozen=True, kw_only=True)
class PictureTable:
    """The pictures of a store.

    Attributes:
        fingerprint: of the pictures when the store was begun, as its columns state it.
        rows: the picture of each row, as it was last seen.
    """

    fingerprint: str
    rows: tuple[StoredPicture, ...]


def write_picture_table(store: Path, table: PictureTable) -> None:
    """Write ``pictures.h5``, whole or not at all, unless it is there already."""
    with locked(store):
        if read_picture_table(store) != table:
            _write(store, table)


def add_faults(store: Path, faults: Mapping[int, str]) -> None:
    """Record why some rows, whose files could be opened, could not be read after all."""
    with locked(store):
        table = read_picture_table(store)
        if table is not None:
            rows = [replace(picture, fault=faults.get(row, picture.fault)) for row, picture in enumerate(table.rows)]
            _write(store, replace(table, rows=tuple(rows)))


def read_picture_table(store: Path) -> PictureTable | None:
    """Return the table of a store; None if there is none, or it is damaged: then it is written again, if the pictures are the same."""
    try:
        about, arrays = read_sealed(store / PICTURES)
        columns = [arrays[name].tolist() for name in ("name", "example", "digest", "fault", "place")]
        rows = []
        for *texts, place in zip(*columns, strict=True):
            name, example, digest, fault = (text.decode() for text in texts)
            rows.append(StoredPicture(name=name, example=example, place=place, digest=digest, fault=fault))
    except (InputError, KeyError, ValueError, AttributeError):
        return None
    return PictureTable(fingerprint=str(about.get("fingerprint")), rows=tuple(rows))


def _write(store: Path, table: PictureTable) -> None:
    def texts(values: Iterable[str]) -> NDArray[np.bytes_]:
        return np.array([value.encode(errors="backslashreplace") for value in values], "S")

    def build(file: Any) -> None:
        file["name"] = texts(picture.name for picture in table.rows)
        file["example"] = texts(picture.example for picture in table.rows)
        file["digest"] = texts(picture.digest for picture in table.rows)
        file["fault"] = texts(picture.fault for picture in table.rows)
        file["place"] = np.array([picture.place for picture in table.rows], "<i8")

    write_sealed(store / PICTURES, {"fingerprint": table.fingerprint}, build)
