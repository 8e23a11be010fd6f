"""Encodings and packed files: read as they say, or refused for what they are."""

import gzip
import zipfile
from pathlib import Path

import pytest

from lugpi_core.corpora.text_files import file_text
from lugpi_core.corpora.user_files import file_table
from lugpi_core.errors import InputError

TEXT = "text,label\nKäse 例,x\nbread,y\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_byte_order_mark_says_the_encoding(tmp_path: Path, encoding: str, packed: bool) -> None:
    content = TEXT.encode(encoding)
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(content) if packed else content)
    assert file_text(tmp_path / "t.csv.gz") == TEXT


@pytest.mark.parametrize(("mark", "encoding"), [(b"\xfe\xff", "utf-16-be"), (b"\xff\xfe", "utf-16-le"), (b"\0\0\xfe\xff", "utf-32-be")])
def test_both_byte_orders_are_read(tmp_path: Path, mark: bytes, encoding: str) -> None:
    (tmp_path / "t.csv").write_bytes(mark + TEXT.encode(encoding))
    assert file_text(tmp_path / "t.csv") == TEXT


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (TEXT.encode("utf-16-le"), r"every second byte is NUL as in UTF-16LE; expected UTF-8; .*iconv -f utf-16le"),
        (TEXT.encode("utf-16-be"), r"as in UTF-16BE"),
        (TEXT.encode("utf-16")[:-1], r"byte \d+ of .*t\.csv, which begins as UTF-16 does"),
        ("a,b\ncafé,x\n".encode("latin-1"), r"byte 7 \(0xe9\) in line 2 of .*latin-1: iconv -f latin1"),
        ("a,b\n“so”,x\n".encode("cp1252"), r"byte 4 \(0x93\) in line 2 of .*iconv -f windows-1252"),
        (gzip.compress(TEXT.encode(), mtime=0)[:-9], r"t\.csv \(.*\); expected a whole gzip file"),
        (b"\x1f\x8bnothing", "expected a whole gzip file"),
    ],
)
def test_another_encoding_is_refused_for_what_it_is(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(InputError, match=message):
        file_text(tmp_path / "t.csv")


def test_a_zip_archive_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "t.csv", "w") as archive:
        archive.writestr("t.csv", TEXT)
    with pytest.raises(InputError, match=r"a ZIP archive in .*t\.csv; expected the data themselves; unpack it"):
        file_text(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<!DOCTYPE html>\n<html>", "a web page in .*from its raw address"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n", r"a pointer of Git LFS in .*git lfs pull"),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_what_stands_in_for_the_data_is_named(tmp_path: Path, content: str, message: str, suffix: str) -> None:
    (tmp_path / f"t{suffix}").write_text(content)
    with pytest.raises(InputError, match=message):
        file_table(tmp_path / f"t{suffix}", "train", ("text",))
