"""The text of a user's file: UTF-8, or what its byte order mark says; unpacked where it is gzipped."""

import codecs
import gzip
import zlib
from pathlib import Path

from lugpi_core.corpora.archives import decoded
from lugpi_core.errors import InputError

# The longest first: the mark of UTF-32 begins with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_GZIP = b"\x1f\x8b"
_NO_DATA = (
    (b"pk\x03\x04", "a ZIP archive", "unpack it; of a workbook, save the sheet as CSV (UTF-8)"),
    (b"<!doctype html", "a web page", "download the file again, from its raw address"),
    (b"version https://git-lfs", "a pointer of Git LFS", "fetch the data (git lfs pull)"),
)
SAMPLE_BYTES = 1024


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
    for mark, encoding in _MARKS.items():
        if content.startswith(mark):
            try:
                return content.decode(encoding)
            except UnicodeDecodeError as error:
                got = f"byte {error.start} of {where}, which begins as {encoding.upper()} does"
                raise InputError(got=got, expected=f"{encoding.upper()} to its end", do="save the file again, as UTF-8") from error
    sample = content[:SAMPLE_BYTES]
    for first, encoding in ((1, "utf-16le"), (0, "utf-16be")):
        if sample and sample[first::2].count(0) > len(sample) // 4:
            got = f"{where}, whose every second byte is NUL as in {encoding.upper()}"
            raise InputError(got=got, expected="UTF-8", do=f"convert it (iconv -f {encoding} -t utf-8)")
    return decoded(content, where=where).removeprefix("\ufeff")
