"""Original archives: found on disk or downloaded, and read in memory. Nothing is unpacked to disk."""

import gzip
import hashlib
import http.client
import os
import re
import sys
import tarfile
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lugpi_core.errors import InputError

BLOCK_BYTES = 1 << 20
LARGEST_MEMBER_BYTES = 64 << 20  # the largest real one has 15 MB, but a small archive can declare any size
TIMEOUT_S = 30
_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError)


@dataclass(frozen=True, kw_only=True)
class Archive:
    """A public archive. ``checksums`` are pairs of a :mod:`hashlib` name and the hex digest of the public file, if known."""

    file_name: str
    urls: tuple[str, ...]
    checksums: tuple[tuple[str, str], ...] = ()


def find_archive(archive: Archive, data_dir: Path) -> Path:
    """Return the archive's path in ``data_dir``, downloading it into that folder if it is missing.

    An existing file is accepted whatever its checksum: repacked archives are allowed, and their members are counted by the readers.
    Holds one block of 1 MiB in memory.

    Raises:
        InputError: no source works; names the file to place by hand, its folder, and why each source failed.
    """
    path = data_dir / archive.file_name
    if path.is_file():
        return path
    failures = []
    for url in archive.urls:
        try:
            _download(url, path, archive.checksums)
        except (OSError, http.client.HTTPException, ValueError) as error:
            failures.append(f"{url}: {_short(error)}")
        else:
            return path
    raise InputError(
        got=f"no {archive.file_name} in {data_dir}, and no download ({'; '.join(failures) or 'it has no public source'})",
        expected=f"the original archive at {path}",
        do="place it there by hand, or point --data-dir to the folder that has it",
    )


def _download(url: str, path: Path, checksums: tuple[tuple[str, str], ...]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    print(f"downloading {url}", file=sys.stderr)
    try:
        _fetch(url, partial, {name: hashlib.new(name) for name, _ in checksums}, dict(checksums))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _fetch(url: str, partial: Path, digests: "dict[str, hashlib._Hash]", expected: dict[str, str]) -> None:
    request = urllib.request.Request(url, headers={"User-Agent": "lugpi"})
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response, partial.open("wb") as file:
        while block := response.read(BLOCK_BYTES):
            file.write(block)
            for digest in digests.values():
                digest.update(block)
        declared = response.headers.get("Content-Length")
        if declared is not None and int(declared) != file.tell():
            raise OSError(f"only {file.tell():,} of {int(declared):,} bytes arrived")
        file.flush()
        os.fsync(file.fileno())
    for name, digest in digests.items():
        if digest.hexdigest() != expected[name]:
            raise OSError(f"its {name} is {digest.hexdigest()}, not {expected[name]}")


def tar_members(path: Path, pattern: re.Pattern[str]) -> Iterator[tuple[re.Match[str], bytes]]:
    """Yield the regular files of a ``.tar.gz`` whose whole name matches ``pattern``, in the archive's order, one in memory at a time.

    The file is read to its end, so that gzip's own checksum is verified as well.

    Raises:
        InputError: the archive is damaged or cut short, or a member declares more than 64 MiB.
    """
    name = "its first member"
    try:
        with gzip.open(path) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
            for member in tar:
                name = f"the member after {member.name}"
                match = pattern.fullmatch(member.name.removeprefix("./"))
                if match is not None and member.isreg():
                    yield match, _tar_content(path, tar, member)
            while stream.read(BLOCK_BYTES):
                pass
    except _DAMAGE as error:
        raise _damaged(path, name, error) from error


def _tar_content(path: Path, tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    _check_size(path, member.name, member.size)
    try:
        content = tar.extractfile(member)
        assert content is not None  # tar_members passes regular files only
        return content.read()
    except _DAMAGE as error:
        raise _damaged(path, member.name, error) from error


def zip_member(path: Path, name: str) -> bytes:
    """Return the content of one member of a ``.zip``.

    Raises:
        InputError: the archive is damaged or cut short, has no such member, or the member declares more than 64 MiB.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if name not in archive.namelist():
                raise InputError(got=f"no member {name} in {path}", expected="the original archive", do=_REPLACE)
            _check_size(path, name, archive.getinfo(name).file_size)
            return archive.read(name)
    except _DAMAGE as error:
        raise _damaged(path, name, error) from error


_REPLACE = "delete it and run the same command again, or place a good copy there"


def _check_size(path: Path, name: str, size_bytes: int) -> None:
    if size_bytes > LARGEST_MEMBER_BYTES:
        raise InputError(
            got=f"{size_bytes:,} bytes declared by {name} in {path}", expected=f"at most {LARGEST_MEMBER_BYTES:,}", do=_REPLACE
        )


def _damaged(path: Path, name: str, error: BaseException) -> InputError:
    return InputError(got=f"a damaged archive {path} at {name} ({_short(error)})", expected="a complete, readable archive", do=_REPLACE)


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def decoded(content: bytes, *, where: str) -> str:
    """Return UTF-8 bytes as text.

    Raises:
        InputError: they are not UTF-8; names ``where``, the line and the byte.
    """
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        # 0x80 to 0x9f are control characters in latin-1, and quotation marks, dashes and the euro in what Windows calls by that name.
        is_windows = any(0x80 <= byte <= 0x9F for byte in content)
        likely = "Windows' latin-1: iconv -f windows-1252" if is_windows else "latin-1: iconv -f latin1"
        raise InputError(
            got=f"byte {error.start} (0x{content[error.start]:02x}) in line {line} of {where}",
            expected="UTF-8",
            do=f"save the file as UTF-8 (for one in {likely} -t utf-8)",
        ) from error
