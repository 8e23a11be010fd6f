"""Archives: found or downloaded whole, read in memory, and all damage reported in one line."""

import hashlib
import io
import random
import re
import tarfile
import urllib.request
import zipfile
from email.message import Message
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lugpi_core.corpora import archives
from lugpi_core.corpora.archives import Archive, decoded, find_archive, tar_members, zip_member
from lugpi_core.errors import InputError

ANY = re.compile(r".*")
CONTENT = b"not really an archive"
ONCE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)


def _archive(*urls: str, sha256: str | None = None) -> Archive:
    return Archive(file_name="a.tar.gz", urls=urls, checksums=() if sha256 is None else (("sha256", sha256),))


@pytest.fixture
def source(tmp_path: Path) -> str:
    path = tmp_path / "public.tar.gz"
    path.write_bytes(CONTENT)
    return path.as_uri()


def test_an_archive_on_disk_is_accepted_whatever_its_checksum(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(b"repacked")
    assert find_archive(_archive(sha256="0" * 64), tmp_path) == tmp_path / "a.tar.gz"
    assert (tmp_path / "a.tar.gz").read_bytes() == b"repacked"


def test_a_download_with_the_right_checksum_lands_whole_and_alone(tmp_path: Path, source: str) -> None:
    path = find_archive(_archive(source, sha256=hashlib.sha256(CONTENT).hexdigest()), tmp_path / "new" / "data")
    assert path.read_bytes() == CONTENT
    assert list(path.parent.iterdir()) == [path]


def test_the_next_source_is_tried_when_one_fails(tmp_path: Path, source: str) -> None:
    path = find_archive(_archive((tmp_path / "gone").as_uri(), source), tmp_path / "data")
    assert path.read_bytes() == CONTENT


def test_if_no_source_works_file_folder_and_reasons_are_named(tmp_path: Path, source: str) -> None:
    gone = (tmp_path / "gone").as_uri()
    with pytest.raises(InputError) as caught:
        find_archive(_archive(gone, source, "nonsense", sha256="0" * 64), tmp_path / "data")
    message = str(caught.value)
    for words in (
        str(tmp_path / "data" / "a.tar.gz"),
        f"{gone}: ",
        f"{source}: its sha256 is",
        "nonsense: unknown url",
        "by hand",
        "--data-dir",
    ):
        assert words in message
    assert "\n" not in message
    assert not list((tmp_path / "data").iterdir())


class _ShortResponse(io.BytesIO):
    def __init__(self) -> None:
        super().__init__(CONTENT)
        self.headers = Message()
        self.headers["Content-Length"] = str(len(CONTENT) + 1)


def test_a_download_cut_short_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", lambda request, timeout: _ShortResponse())
    with pytest.raises(InputError, match=f"only {len(CONTENT)} of {len(CONTENT) + 1} bytes"):
        find_archive(_archive("https://example.org/a.tar.gz"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_data_folder_that_is_a_file_is_an_error(tmp_path: Path, source: str) -> None:
    (tmp_path / "data").write_text("")
    with pytest.raises(InputError, match="exists"):
        find_archive(_archive(source), tmp_path / "data")


def _tar(path: Path, members: dict[str, bytes], *, level: int = 6) -> Path:
    with tarfile.open(path, "w:gz", compresslevel=level) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def _content(path: Path) -> dict[str, bytes]:
    return {match[0]: content for match, content in tar_members(path, ANY)}


MEMBERS = {"d/1": b"one" * 400, "d/2": bytes(range(256)) * 9}


def test_only_regular_files_that_match_are_read(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "t.tar.gz", "w:gz") as tar:
        for name, kind in (("./d/1", tarfile.REGTYPE), ("d/2", tarfile.SYMTYPE), ("d/3", tarfile.DIRTYPE), ("e/../4", tarfile.REGTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    found = [match[1] for match, _ in tar_members(tmp_path / "t.tar.gz", re.compile(r"d/(\d)"))]
    assert found == ["1"]
    assert [path.name for path in tmp_path.iterdir()] == ["t.tar.gz"]


@ONCE
@given(part=st.floats(0, 1, exclude_max=True))
def test_a_tar_cut_anywhere_is_refused(tmp_path: Path, part: float) -> None:
    whole = _tar(tmp_path / "whole.tar.gz", MEMBERS).read_bytes()
    path = tmp_path / "cut.tar.gz"
    path.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(InputError, match=r"damaged archive .*cut\.tar\.gz at "):
        _content(path)


def test_a_tar_cut_inside_a_member_names_that_member(tmp_path: Path) -> None:
    path = _tar(tmp_path / "t.tar.gz", {"d/1": b"x", "d/long": random.Random(0).randbytes(100_000)})
    path.write_bytes(path.read_bytes()[:60_000])
    with pytest.raises(InputError, match=r"damaged archive .*t\.tar\.gz at d/long"):
        _content(path)


@ONCE
@given(place=st.integers(10, 10_000), bit=st.integers(0, 7), level=st.sampled_from([0, 6]))
def test_a_flipped_bit_never_passes_as_other_content(tmp_path: Path, place: int, bit: int, level: int) -> None:
    path = _tar(tmp_path / "t.tar.gz", MEMBERS, level=level)
    data = bytearray(path.read_bytes())
    data[10 + (place - 10) % (len(data) - 10)] ^= 1 << bit
    path.write_bytes(data)
    try:
        found = _content(path)
    except InputError:
        return
    assert found == MEMBERS


@pytest.mark.parametrize("content", [b"", b"plain text", b"\x1f\x8b\x08\x00" + b"x" * 50])
def test_a_file_that_is_no_tar_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t.tar.gz").write_bytes(content)
    with pytest.raises(InputError, match="damaged archive"):
        _content(tmp_path / "t.tar.gz")


def test_a_folder_in_place_of_an_archive_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="damaged archive"):
        _content(tmp_path)


def test_a_member_that_declares_too_much_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "LARGEST_MEMBER_BYTES", 10)
    _tar(tmp_path / "t.tar.gz", {"d/big": b"x" * 11})
    _zip(tmp_path / "t.zip", {"d/big": b"x" * 11})
    with pytest.raises(InputError, match=r"11 bytes declared by d/big in .*t\.tar\.gz"):
        _content(tmp_path / "t.tar.gz")
    with pytest.raises(InputError, match=r"11 bytes declared by d/big in .*t\.zip"):
        zip_member(tmp_path / "t.zip", "d/big")


def _zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_a_zip_member_is_read(tmp_path: Path) -> None:
    assert zip_member(_zip(tmp_path / "t.zip", MEMBERS), "d/2") == MEMBERS["d/2"]


def test_a_missing_zip_member_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no member d/3 in .*t\.zip"):
        zip_member(_zip(tmp_path / "t.zip", MEMBERS), "d/3")


@pytest.mark.parametrize("damage", ["cut", "flipped", "other", "gone"])
def test_a_damaged_zip_names_file_and_member(tmp_path: Path, damage: str) -> None:
    path = _zip(tmp_path / "t.zip", MEMBERS)
    data = path.read_bytes()
    flipped = data.replace(b"oneone", b"onetwo", 1)
    content = {"cut": data[:-30], "flipped": flipped, "other": b"hello", "gone": b""}[damage]
    path.write_bytes(content) if damage != "gone" else path.unlink()
    with pytest.raises(InputError, match=r"damaged archive .*t\.zip at d/1"):
        zip_member(path, "d/1")


def test_bytes_that_are_not_utf8_are_placed() -> None:
    assert decoded("ü\n".encode(), where="f") == "ü\n"
    with pytest.raises(InputError, match=r"byte 5 \(0xfc\) in line 3 of f"):
        decoded("a\nb\n ü".encode("latin-1"), where="f")
