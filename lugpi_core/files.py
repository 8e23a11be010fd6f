"""Files that are either whole or not there: written beside their place, synced, renamed.

Sources: the write-sync-rename-sync-folder order is what POSIX needs for a crash-safe replace (rename(2), fsync(2)).
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lugpi_core.errors import InputError


def sync_folder(folder: Path) -> None:
    """Make the folder's own entries (a new name, a rename) durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Make the content of one file durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a path beside ``path`` to write to; at the end of the block it is synced and takes its place. On an error it is removed."""
    make_folder(path.parent)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    os.close(descriptor)
    partial = Path(name)
    try:
        yield partial
        partial.chmod(0o666 & ~_umask())
        sync_file(partial)
        partial.replace(path)
        sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``folder`` to fill; at the end of the block it takes its place, and what stood there is removed."""
    make_folder(folder.parent)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
    try:
        yield partial
        partial.chmod(0o777 & ~_umask())
        for path in sorted(partial.rglob("*")):
            if path.is_file():
                sync_file(path)
        if folder.exists():
            shutil.rmtree(folder)
        partial.replace(folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, whole or not at all."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, whole or not at all; NaN and infinities are refused (they are not JSON)."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Return the value of a JSON file.

    Raises:
        InputError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(got=f"no file {path}", expected="a JSON file that lugpi wrote", do="run the command that makes it") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(
            got=f"{path}, which is not JSON ({error})", expected="the file as lugpi wrote it", do="remove it and run the command again"
        ) from None


def make_folder(folder: Path) -> Path:
    """Create ``folder`` with its parents and return it.

    Raises:
        InputError: it cannot be created or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(got=f"{folder} ({error.strerror})", expected="a folder that can be written", do="choose another folder") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(got=f"{folder} (no permission)", expected="a folder that can be written", do="choose another folder")
    return folder


def cache_folder() -> Path:
    """Return the folder for what can be made again at any time: ``$LUGPI_CACHE``, else ``$XDG_CACHE_HOME/lugpi``, else
    ``~/.cache/lugpi``."""
    if named := os.environ.get("LUGPI_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lugpi"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
