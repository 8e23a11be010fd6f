"""Runs in an object store: which local folder has the files of which address."""

import os
from functools import lru_cache
from pathlib import Path

from lugpi_core.errors import InputError
from lugpi_core.files import make_folder, read_json, write_json
from lugpi_core.remote.address import address_of, local_folder
from lugpi_core.remote.folder import RemoteFolder

MARKER = ".remote.json"


def open_run(place: Path, scratch: Path | None) -> Path:
    """Return a run's local folder; for an address, after looking that its bucket is there. From then on ``remote_of`` knows the folder, in
    every process.

    Raises:
        InputError: as ``local_folder``; no such bucket, no library or no credentials for it.
    """
    run, address = local_folder(place, scratch), address_of(place)
    if address is not None:
        _remote(address, os.getpid()).require_bucket()
        if not (make_folder(run) / MARKER).exists():
            write_json(run / MARKER, {"address": address})
    return run


def remote_of(run: Path) -> RemoteFolder | None:
    """Return the folder of an object store whose files a local run folder has; None for a run that is only local."""
    if not (run / MARKER).is_file():
        return None
    record = read_json(run / MARKER)
    if not isinstance(record, dict) or not isinstance(record.get("address"), str):
        raise InputError(got=f"{run / MARKER} without an address", expected="the file as lugpi wrote it", do="remove it")
    return _remote(record["address"], os.getpid())


@lru_cache(maxsize=8)
def _remote(address: str, process: int) -> RemoteFolder:
    """Return the one client of a process: those of some libraries do not survive a fork."""
    return RemoteFolder(address)
