"""The text of a user's file: UTF-8, or what its byte order mark says; unpacked where it is gzipped."""

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from lugpi_core.corpora.archives import decoded
from lugpi_core.errors import InputError

# The longest first: the mark of UTF-32 begins with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_UTF_8 = "utf-8-sig"
_GZIP = b"\x1f\x8b"
_NO_DATA = (
    (b"pk\x03\x04", "a ZIP archive", "unpack it; of a workbook, save the sheet as CSV (UTF-8)"),
    (b"<!doctype html", "a web page", "download the file again, from its raw address"),
    (b"version https://git-lfs", "a pointer of Git LFS", "fetch the data (git lfs pull)"),
)
SAMPLE_BYTES = 1024
_BLOCK_LETTERS = 1 << 20


@dataclass(frozen=True, kw_only=True)
class TextFile:
    """A file whose text has been decoded once, block by block, without keeping it.

    Attributes:
        path: the file.
        encoding: what it is decoded by, its byte order mark left out.
        is_packed: whether it is gzipped.
        beginning: its text to the end of the second line, lines ending with a line feed.
        before_marks: the letters that stand before a space and a quotation mark anywhere in it.
    """

    path: Path
    encoding: str
    is_packed: bool
    beginning: str
    before_marks: frozenset[str]

    @contextmanager
    def lines(self, newline: str, skip: int = 0) -> Iterator[TextIO]:
        """Yield the text as an iterator of lines with their ends, which ``newline`` is of as for ``open()``.

        Args:
            newline: the end of lines; empty: any.
            skip: letters at the beginning that are left out.
        """
        with (
            _open_bytes(self.path, is_packed=self.is_packed) as file,
            io.TextIOWrapper(file, encoding=self.encoding, newline=newline) as text,
        ):
            text.read(skip)
            yield text


def open_text(path: Path) -> TextFile:
    """Return a file whose text can be decoded.

    Raises:
        InputError: as ``file_text`` does.
    """
    try:
        with path.open("rb") as file:
            is_packed = file.read(len(_GZIP)) == _GZIP
        with _open_bytes(path, is_packed=is_packed) as unpacked:
            sample = unpacked.read(SAMPLE_BYTES)
        check_content(sample, str(path))
        encoding = _encoding(sample, str(path))
        beginning, lines, last = "", 0, ""
        before_marks: set[str] = set()
        with _open_bytes(path, is_packed=is_packed) as unpacked, io.TextIOWrapper(unpacked, encoding=encoding, newline="") as text:
            while block := text.read(_BLOCK_LETTERS):
                before_marks.update(part[-1:] for part in (last + block).split(' "')[:-1])
                last = (last + block)[-2:]
                if lines < 2:
                    beginning += block
                    lines += block.count("\n")
    except (EOFError, zlib.error, OSError, UnicodeDecodeError):
        file_text(path)  # says what is wrong
        raise
    if lines > 1:
        beginning = beginning[: beginning.index("\n", beginning.index("\n") + 1) + 1]
    return TextFile(path=path, encoding=encoding, is_packed=is_packed, beginning=beginning, before_marks=frozenset(before_marks))


def _open_bytes(path: Path, *, is_packed: bool) -> gzip.GzipFile | io.BufferedReader:
    return gzip.open(path, "rb") if is_packed else path.open("rb")


def file_text(path: Path) -> str:
    """Return the text of a file without its byte order mark.

    Raises:
        InputError: it cannot be read, is damaged, or is neither UTF-8 nor marked as UTF-16 or UTF-32.
    """
    try:
        content = path.read_bytes()
        if content.startswith(_GZIP):
            content = gzip.decompress(content)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(got=f"{path} ({error})", expected="a whole gzip file", do="get or pack it again") from error
    except OSError as error:
        raise InputError(got=f"{path} ({error.strerror or error})", expected="a readable file", do="check the path") from error
    check_content(content[:SAMPLE_BYTES], str(path))
    return _text(content, str(path))


def check_content(beginning: bytes, where: str) -> None:
    """Raise InputError if a file begins as something that takes the place of data: an archive, a web page, a pointer to the data."""
    for mark, what, do in _NO_DATA:
        if beginning.lstrip().lower().startswith(mark):
            raise InputError(got=f"{what} in {where}", expected="the data themselves", do=do)


def _text(content: bytes, where: str) -> str:
    encoding = _encoding(content[:SAMPLE_BYTES], where)
    if encoding == _UTF_8:
        return decoded(content, where=where).removeprefix("\ufeff")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        got = f"byte {error.start} of {where}, which begins as {encoding.upper()} does"
        raise InputError(got=got, expected=f"{encoding.upper()} to its end", do="save the file again, as UTF-8") from error


def _encoding(sample: bytes, where: str) -> str:
    """Return what a file that begins so is decoded by, without its byte order mark."""
    for mark, encoding in _MARKS.items():
        if sample.startswith(mark):
            return encoding
    for first, encoding in ((1, "utf-16le"), (0, "utf-16be")):
        if sample and sample[first::2].count(0) > len(sample) // 4:
            got = f"{where}, whose every second byte is NUL as in {encoding.upper()}"
            raise InputError(got=got, expected="UTF-8", do=f"convert it (iconv -f {encoding} -t utf-8)")
    return _UTF_8
