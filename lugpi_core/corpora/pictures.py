"""A user's own pictures beside the texts: where each one's bytes are. They are read when they are needed, one cell at a time.

A cell holds a path, bytes, what ``datasets`` calls an image (an object with ``bytes`` and ``path``), a picture of PIL, a list of these, or
nothing. A path is relative to the file that names it.
"""

import ast
import io
import math
import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote

from lugpi_core.errors import InputError

# The largest file that is read as a picture; PIL is bounded by the number of its pixels.
LARGEST_BYTES = 256 << 20
_ADDRESSES = ("http://", "https://", "s3://", "gs://", "hf://", "file://", "data:")
# How RFC 8089 writes a file of this machine.
_LOCAL_FILE = re.compile(r"file:(?://(?:localhost)?)?(/(?!/).*)", re.IGNORECASE | re.DOTALL)


class PictureFault(Exception):
    """A picture cannot be read. Its argument says why, in a few words."""


class PictureCells(Protocol):
    """The cells of one column, by row."""

    @property
    def where(self) -> str:
        """The file or data set, for errors."""

    def place(self, path: str) -> Path | None:
        """Return the file that a path means; None: it is not followed, because the cells come from elsewhere."""

    def value(self, row: int) -> object:
        """Return what a cell holds."""


@dataclass(frozen=True, slots=True)
class PictureCell:
    """One cell: the pictures of one text."""

    cells: PictureCells
    row: int

    def pictures(self) -> tuple["Picture", ...]:
        """Return the pictures of the cell, none if it is empty.

        Raises:
            InputError: it holds something that names no picture.
        """
        return tuple(self._picture(item) for item in _items(self.cells.value(self.row)))

    def _picture(self, item: object) -> "Picture":
        match item:
            case bytes() | bytearray():
                return Picture(name=f"bytes in row {self.row}", data=bytes(item))
            case {"bytes": bytes(data)}:
                return Picture(name=f"bytes in row {self.row}", data=data)
            case str() | Path() | {"path": str()}:
                path = str(item["path"] if isinstance(item, Mapping) else item).strip()
                return Picture(name=path, path=self._place(path))
        if not _is_pil(item):
            raise InputError(
                got=f"{item!r:.60} in row {self.row}, counted from 0, of {self.cells.where}",
                expected="a picture: the path of a file, bytes, or an Image of datasets",
                do="name the column with the pictures (--images-from)",
            )
        return Picture(name=f"picture in row {self.row}", data=_as_png(item))

    def _place(self, path: str) -> Path:
        if local := _LOCAL_FILE.fullmatch(path):
            path = unquote(local[1])
        if path.lower().startswith(_ADDRESSES):
            raise InputError(
                got=f"the address {path[:80]} in row {self.row}, counted from 0, of {self.cells.where}",
                expected="pictures on this machine",
                do="download them and give the paths of the files",
            )
        place = self.cells.place(path)
        if place is None:
            raise InputError(
                got=f"the path {path[:80]} in row {self.row}, counted from 0, of {self.cells.where}",
                expected="the pictures themselves in the data set; a path from elsewhere is not followed on this machine",
                do="save the data set with its pictures, as bytes",
            )
        return place


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One picture: a file, or its bytes."""

    name: str
    path: Path | None = None
    data: bytes | None = None

    def read(self) -> bytes:
        """Return the bytes of its file.

        Raises:
            PictureFault: there is no such file, it cannot be read, or it is larger than 256 MiB.
        """
        if self.data is not None:
            return self.data
        assert self.path is not None
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe would be waited for
            with open(descriptor, "rb") as file:
                found = os.fstat(descriptor)
                if not stat.S_ISREG(found.st_mode):
                    raise PictureFault("no file")
                if found.st_size > LARGEST_BYTES:
                    raise PictureFault(f"{found.st_size >> 20} MiB, more than {LARGEST_BYTES >> 20}")
                return file.read(LARGEST_BYTES + 1)
        except FileNotFoundError:
            raise PictureFault("missing file") from None
        except (OSError, ValueError) as error:  # a name with a NUL is a ValueError
            raise PictureFault(f"file that cannot be read ({getattr(error, 'strerror', None) or error})") from None


def from_home(path: str) -> Path:
    """Return a path with the home folder in place of ``~`` or ``~user``; as it is if there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def _items(value: object) -> Sequence[object]:
    """Return what a cell lists: its items, the items of a list that is written as text, or the cell itself; nothing of an empty cell."""
    if isinstance(value, str) and value.strip().startswith("[") and value.strip().endswith("]"):
        try:
            value = ast.literal_eval(value.strip())  # of JSON and of Python alike
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return [value]
    items = value if isinstance(value, (list, tuple)) else [value]
    return [item for item in items if not _is_empty(item)]


def _is_empty(item: object) -> bool:
    match item:
        case None | "" | b"":
            return True
        case str():
            return not item.strip()
        case float():
            return math.isnan(item)  # pandas' word for an empty cell
        case {"bytes": None, "path": None}:
            return True
    return False


def _is_pil(item: object) -> bool:
    from PIL import Image

    return isinstance(item, Image.Image)


def _as_png(image: Any) -> bytes:
    """Return a picture of PIL as a PNG file, turned as its EXIF says; modes that PNG has not become RGB."""
    from PIL import ImageOps

    file = io.BytesIO()
    turned = ImageOps.exif_transpose(image)
    (turned if turned.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16") else turned.convert("RGB")).save(file, "PNG")
    return file.getvalue()
