"""A folder of an object store, through fsspec: list, read, get, put. What was sent is read back and compared before it counts as there.

fsspec keeps listings and gives one instance to all who ask with the same options: neither is used here, because other machines write too.
A hash is always our own sha256: what stores call ETag depends on the tool that sent the object. Files are sent whole, never streamed:
fsspec's ``open(…, "wb")`` makes an object of what was written even if the block ends with an exception.
"""

import errno
import hashlib
import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from lugpi_core.errors import InputError
from lugpi_core.files import open_file, read_at, whole_file
from lugpi_core.remote.faults import LOCAL_FAULTS, final_of, is_final, raised_by, store_error

# Before each further try. The libraries try some faults again by themselves: a read that times out, s3fs and botocore together up to 25
# times, which takes minutes. Then there is no further try.
PAUSES_S = (0.5, 2.0, 8.0)
PATIENCE_S = 120.0
_CHUNK_BYTES = 16 << 20
_EXTRAS = {"s3": "lugpi[s3]", "gs": "lugpi[gs]", "az": "lugpi[az]"}
Result = TypeVar("Result")


class Taken(Exception):
    """There is another object of that name.

    Attributes:
        bytes, sha256: of what is there.
    """

    def __init__(self, size: int, sha256: str) -> None:
        super().__init__(f"{size} bytes, sha256 {sha256}")
        self.bytes, self.sha256 = size, sha256


class RemoteFolder:
    """A folder of an object store. Its methods take names below it, with slashes.

    What fails is tried again after each of ``PAUSES_S``, as long as ``PATIENCE_S`` has not passed. All methods raise InputError, in one
    line without credentials, if it stays.

    Args:
        address: as ``address_of`` returns it.

    Raises:
        InputError: the library for the scheme is not installed, or cannot be set up.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._scheme = address.partition(":")[0]
        try:
            self._raised = raised_by(self._scheme)
            final_of(self._scheme)  # imports what it names
            self._fs, root = self._set_up()
        except ImportError as error:
            package = _EXTRAS.get(self._scheme, "lugpi")
            raise InputError(
                got=f"{address} without its library ({error})", expected="it installed", do=f"run pip install '{package}'"
            ) from None
        self._root = root.rstrip("/")

    def _set_up(self) -> tuple[Any, str]:
        import fsspec

        faults: tuple[type[Exception], ...] = (ValueError, *self._raised)  # ValueError: adlfs without an account
        try:
            file_system, root = fsspec.url_to_fs(self.address, use_listings_cache=False, skip_instance_cache=True)
        except faults as error:
            raise store_error(self.address, "setting up its library", error) from None
        return file_system, str(root)

    def require_bucket(self) -> None:
        """Raise InputError unless the bucket is there and can be listed; the folder itself need not exist, as stores have none."""
        try:
            self._tried("listing it", lambda: self._fs.ls(self._root, detail=True))
        except FileNotFoundError:
            if self._scheme != "memory":
                self._refuse_absent_bucket("/".join(self._root.split("/")[: 3 if self._scheme == "hf" else 1]))

    def files(self, below: str = "") -> dict[str, int]:
        """Return the sizes of the files directly in a folder, by name without the folder; empty if there is no folder."""
        return {name: int(entry["size"]) for name, entry in self._entries(below).items() if entry["type"] == "file"}

    def folders(self, below: str = "") -> list[str]:
        """Return the names of the folders directly in a folder, sorted."""
        return sorted(name for name, entry in self._entries(below).items() if entry["type"] == "directory")

    def read(self, name: str) -> bytes | None:
        """Return the content of a small file, or None if there is none."""
        try:
            return self._tried(f"reading {name}", lambda: self._whole(name))
        except FileNotFoundError:
            return None

    def read_many(self, sizes: Mapping[str, int]) -> dict[str, bytes]:
        """Return the content of many small files, several at a time where the library can.

        Args:
            sizes: of each, as ``files`` gave them; fewer bytes are read again.
        """
        names, found = {self._key(name): name for name in sizes}, dict[str, bytes]()

        def rest() -> None:
            answers = self._fs.cat([key for key, name in names.items() if name not in found], on_error="return")
            faults = [self._keep(names[key], answer, sizes, found) for key, answer in answers.items()]
            for fault in faults:
                if fault is not None:
                    raise fault
            if len(found) < len(names):
                raise OSError(errno.EIO, f"{len(names) - len(found)} of {len(names)} answers are missing")

        if names:
            self._tried(f"reading {len(names)} files", rest)
        return found

    def get(self, name: str, to: Path, *, sha256: str | None, size: int) -> None:
        """Download a file, whole or not at all, and compare it with its size and its sha256, if that is known.

        Raises:
            InputError: also if the content is another, or there is no such file.
        """
        found = (0, "")
        with whole_file(to) as whole:
            for pause_s in (0.0, *PAUSES_S):
                time.sleep(pause_s)
                try:
                    self._tried(f"downloading {name}", lambda: self._fs.get_file(self._key(name), str(whole)), whole)
                except FileNotFoundError as error:
                    raise _absent(self.address, name, error) from None
                found = measured(whole)
                if found[0] == size and sha256 in (None, found[1]):
                    return
            raise InputError(
                got=f"{self.address}/{name} of {found[0]:,} bytes, whose content differs from its record",
                expected=f"{size:,} bytes" + ("" if sha256 is None else f" with the sha256 {sha256}"),
                do="run python -m featurize verify --repair with the same --run-dir",
            )

    def put_new(self, path: Path, name: str) -> None:
        """Upload a file under a name that is free, and compare what is there with it. Equal content that is there already is right.

        Raises:
            Taken: there is another object of that name; it stays. Of several writers one succeeds where the store has conditional writes
                (S3, GCS, Azure); elsewhere the library looks before it writes, and who comes last stays.
        """
        self._put(path, name, "create")

    def put(self, path: Path, name: str) -> None:
        """Upload a file in place of any other of that name, and compare what is there with it."""
        self._put(path, name, "overwrite")

    def sha256(self, name: str) -> str:
        """Return the sha256 of a file, which is read for it; empty if there is none."""
        return self._measured(name)[1]

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        try:
            self._tried(f"removing {name}", lambda: self._fs.rm_file(self._key(name)))
        except FileNotFoundError:
            return

    def _put(self, path: Path, name: str, mode: str) -> None:
        ours, key = measured(path), self._key(name)
        theirs = (-1, "")
        for pause_s in (0.0, *PAUSES_S):
            time.sleep(pause_s)
            refused = False
            try:
                self._tried(f"uploading {name}", partial(self._fs.put_file, str(path), key, mode=mode), path)
            except FileExistsError:  # of another writer, or of our own try whose answer was lost
                refused = True
            except FileNotFoundError as error:
                raise store_error(self.address, f"uploading {name}", error) from None
            theirs = self._measured(name)
            if theirs == ours:
                return
            if refused:
                raise Taken(*theirs)
            mode = "overwrite"  # what we have created is not what was sent
        raise store_error(self.address, f"uploading {name}", OSError(errno.EIO, f"{theirs[0]:,} of {ours[0]:,} bytes are there, or others"))

    def _refuse_absent_bucket(self, bucket: str) -> None:
        try:
            self._fs.ls(bucket, detail=True)
        except FileNotFoundError as error:
            raise store_error(self.address, "looking for the bucket", error) from None
        except self._raised:  # credentials for the folder alone may not list the bucket
            return

    def _measured(self, name: str) -> tuple[int, str]:
        """Return the size and the sha256 of a file in the store, which is read for it."""
        key, hasher = self._key(name), hashlib.sha256()
        try:
            size = self._tried(f"looking for {name}", lambda: int(self._fs.info(key)["size"]))
            for start in range(0, size, _CHUNK_BYTES):
                stop = min(start + _CHUNK_BYTES, size)
                hasher.update(self._tried(f"reading {name} back", partial(self._range, key, start, stop)))
        except FileNotFoundError:  # removed in the meantime
            return -1, ""
        return size, hasher.hexdigest()

    def _whole(self, name: str) -> bytes:
        key = self._key(name)
        return self._range(key, 0, int(self._fs.info(key)["size"]))

    def _range(self, key: str, start: int, stop: int) -> bytes:
        data = self._fs.cat_file(key, start=start, end=stop) if stop > start else b""
        if len(data) != stop - start:
            raise OSError(errno.EIO, f"{len(data):,} of {stop - start:,} bytes came")
        return bytes(data)

    def _keep(self, name: str, answer: Any, sizes: Mapping[str, int], found: dict[str, bytes]) -> Exception | None:
        """Keep the answer of a whole file; return what is wrong with another."""
        if isinstance(answer, Exception):
            return answer
        if len(answer) != sizes[name]:
            return OSError(errno.EIO, f"{len(answer):,} of {sizes[name]:,} bytes came")
        found[name] = bytes(answer)
        return None

    def _entries(self, below: str) -> dict[str, dict[str, Any]]:
        folder = self._key(below) if below else self._root
        try:
            entries = self._tried(f"listing {below or 'it'}", lambda: self._fs.ls(folder, detail=True))
        except FileNotFoundError:
            return {}
        named = {str(entry["name"]).rstrip("/"): entry for entry in entries}
        return {name.removeprefix(f"{folder}/"): entry for name, entry in named.items() if name.startswith(f"{folder}/")}

    def _key(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _tried(self, doing: str, act: Callable[[], Result], local: Path | None = None) -> Result:
        """Return what ``act`` returns, at the first try or a later one.

        Raises:
            FileNotFoundError, FileExistsError: that is the answer.
            InputError: it failed each time, or as no second try helps.
        """
        begun_s = time.monotonic()
        for pause_s in (*PAUSES_S, None):
            self._fs.invalidate_cache()  # HfFileSystem keeps listings whatever it is told
            try:
                return act()
            except (FileNotFoundError, FileExistsError):
                raise
            except self._raised as error:
                if local is not None and isinstance(error, OSError) and error.errno in LOCAL_FAULTS:
                    raise OSError(error.errno, error.strerror, str(local)) from None
                if pause_s is None or is_final(self._scheme, error) or time.monotonic() - begun_s > PATIENCE_S:
                    raise store_error(self.address, doing, error) from None
            time.sleep(pause_s)
        raise AssertionError("unreachable")


def measured(path: Path) -> tuple[int, str]:
    """Return the size and the sha256 of a local file."""
    hasher, at = hashlib.sha256(), 0
    with open_file(path, os.O_RDONLY) as descriptor:
        while chunk := read_at(descriptor, _CHUNK_BYTES, at):
            hasher.update(chunk)
            at += len(chunk)
    return at, hasher.hexdigest()


def _absent(address: str, name: str, error: Exception) -> InputError:
    return InputError(
        got=f"no {address}/{name} ({type(error).__name__})",
        expected="the file that its record names",
        do="run python -m featurize verify --repair with the same --run-dir",
    )
