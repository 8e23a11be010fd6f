"""What a run's commands write beside stores: whole folders, such as models, and single files, such as tables."""

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lugpi_core.errors import InputError
from lugpi_core.files import make_folder, write_bytes, write_json
from lugpi_core.remote.folder import RemoteFolder, Taken, measured
from lugpi_core.remote.run import remote_of

# The record of a folder: size and sha256 of each of its files. It is sent last: a folder without it does not exist.
FILES = "files.json"


def pull_files(run: Path) -> None:
    """Bring the single files of a run. Does nothing in a run that is only local."""
    remote = remote_of(run)
    for name in () if remote is None else remote.files():
        data = remote.read(name) if remote is not None else None
        if data is not None and not name.startswith("."):
            write_bytes(run / name, data)


def push_files(run: Path) -> None:
    """Send the single files of a run that have changed. Does nothing in a run that is only local."""
    if remote := remote_of(run):
        for path in sorted(run.iterdir()):
            if path.is_file() and not path.name.startswith("."):
                data = remote.read(path.name)
                if data is None or (len(data), hashlib.sha256(data).hexdigest()) != measured(path):
                    remote.put(path, path.name)


def share_record(run: Path, name: str) -> bool:
    """Have a small JSON file, which is written once, here and in the object store: one that is there takes the place of ours, else ours is
    sent. Return whether ours was replaced. Does nothing in a run that is only local.

    Args:
        run: its local folder.
        name: of the file, below it; it need not be here.
    """
    remote, path = remote_of(run), run / name
    if remote is None:
        return False
    theirs = _json_there(remote, name)
    if theirs is None and path.is_file():
        try:
            remote.put_new(path, name)
        except Taken:  # by another machine in this moment, or torn
            theirs = _json_there(remote, name)
            if theirs is None:
                remote.put(path, name)
    if theirs is None or (path.is_file() and path.read_bytes() == theirs):
        return False
    is_replaced = path.is_file()
    make_folder(path.parent)
    write_bytes(path, theirs)
    return is_replaced


def share_records(run: Path, below: str, name: str) -> bool:
    """Call ``share_record`` for the file of that name in every folder that a folder of the run has here or there; return whether one of
    ours was replaced."""
    remote = remote_of(run)
    if remote is None:
        return False
    folders = {*remote.folders(below), *(path.parent.name for path in (run / below).glob(f"*/{name}"))}
    replaced = [folder for folder in sorted(folders) if share_record(run, f"{below}/{folder}/{name}")]
    return bool(replaced)


def _json_there(remote: RemoteFolder, name: str) -> bytes | None:
    """Return the content of a JSON file in the object store, or None if there is none or it is torn."""
    data = remote.read(name)
    try:
        json.loads(data or b"")
    except ValueError:
        return None
    return data


def folders_there(run: Path) -> list[str]:
    """Return the names of the folders of a run that may be whole in the object store; empty if the run is only local."""
    remote = remote_of(run)
    return [] if remote is None else [name for name in remote.folders() if not name.startswith("tokens")]


def pull_folder(folder: Path, *, last: Sequence[str]) -> bool:
    """Bring a folder of a run, if the object store has all of it; return whether it has. Files that are here as recorded are kept.

    Args:
        folder: the local one.
        last: names of the files that are written last.

    Raises:
        InputError: a file differs from its record.
    """
    remote = remote_of(folder.parent)
    files = None if remote is None else _record(remote, folder.name)
    if remote is None or files is None:
        return False
    for name in sorted(files, key=lambda name: (name in last, name)):
        path, (size, sha256) = folder / name, files[name]
        if not path.is_file() or measured(path) != (size, sha256):
            make_folder(path.parent)
            remote.get(f"{folder.name}/{name}", path, sha256=sha256, size=size)
    write_json(folder / FILES, files)
    return True


def begin_folder(folder: Path, name: str) -> None:
    """Send the file that a folder of a run begins with, unless there is one. Does nothing in a run that is only local.

    Raises:
        InputError: the store cannot be written to, which is better known before hours of work than after them.
    """
    remote = remote_of(folder.parent)
    if remote is not None:
        with suppress(Taken):  # of a training that did not end; a folder without its record does not exist
            remote.put_new(folder / name, f"{folder.name}/{name}")


def push_folder(folder: Path, *, last: Sequence[str], decisive: Sequence[str], without: Sequence[str]) -> None:
    """Send what the object store lacks of a folder of a run, its record last. Does nothing in a run that is only local.

    Args:
        folder: the local one.
        last: names of the files that are sent after the others.
        decisive: names of files that two folders of one name have in common; others may be added and replaced later.
        without: names of folders in it that are not sent.

    Raises:
        InputError: the store has another folder of that name.
    """
    remote = remote_of(folder.parent)
    if remote is None:
        return
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != FILES}
    files = {name: list(measured(path)) for name, path in paths.items() if name[0] != "." and name.split("/")[0] not in without}
    theirs = _record(remote, folder.name)
    _refuse_other(remote.address, folder.name, files, theirs, decisive)
    new = [name for name in files if theirs is None or theirs.get(name) != files[name]]
    for name in sorted(new, key=lambda name: (name in last, name)):
        remote.put(paths[name], f"{folder.name}/{name}")
    write_json(folder / FILES, files)
    if theirs is not None:
        if new:
            remote.put(folder / FILES, f"{folder.name}/{FILES}")
        return
    try:
        remote.put_new(folder / FILES, f"{folder.name}/{FILES}")
    except Taken:
        _refuse_other(remote.address, folder.name, files, _record(remote, folder.name), decisive)
        remote.put(folder / FILES, f"{folder.name}/{FILES}")


def _refuse_other(address: str, name: str, ours: dict[str, Any], theirs: dict[str, Any] | None, decisive: Sequence[str]) -> None:
    unlike = [] if theirs is None else [file for file in decisive if ours.get(file) != theirs.get(file)]
    if theirs is not None and unlike:
        here, there = (sums[unlike[0]][1] if unlike[0] in sums else "none" for sums in (ours, theirs))
        raise InputError(
            got=f"{name} here, whose {unlike[0]} has the sha256 {here}, and {address}/{name}, where it has {there}",
            expected="one model of a name, trained once",
            do="rename or remove the local folder, and run the same command again: it takes the one that is there",
        )


def _record(remote: RemoteFolder, name: str) -> dict[str, Any] | None:
    """Return the record of a folder, or None if there is none or it is torn."""
    data = remote.read(f"{name}/{FILES}")
    try:
        files = None if data is None else json.loads(data)
    except ValueError:
        return None
    if not isinstance(files, dict):
        return None
    right = all(isinstance(value, list) and list(map(type, value)) == [int, str] and _is_inside(file) for file, value in files.items())
    return files if right else None


def _is_inside(name: str) -> bool:
    return bool(name) and not name.startswith("/") and ".." not in name.split("/")
