"""Small HDF5 files that are written in one piece and have a hash over every byte.

HDF5 ignores a *user block* at the start of a file. Ours contains a line of JSON: the xxh3-128 of the rest of the line and of all that
follows, some metadata, and where each dataset's bytes start. So h5py opens the file like any other, and lugpi checks and reads it without
HDF5.
"""

import io
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from lugpi_core.errors import InputError
from lugpi_core.files import open_file, read_at, write_bytes

USER_BLOCK_BYTES = 4096
_LARGEST_BYTES = 1 << 31
_DTYPE = re.compile(r"[<>|](?:[iuS][0-9]{1,9}|f4)")  # NumPy evaluates parts of longer texts


def write_sealed(path: Path, about: dict[str, Any], build: Callable[[Any], None]) -> None:
    """Write the HDF5 file that ``build`` fills, sealed, whole or not at all; equal content gives equal bytes.

    Args:
        path: the file.
        about: JSON values for the seal.
        build: called with the open ``h5py.File``, in memory.
    """
    write_bytes(path, sealed_bytes(about, build))


def sealed_bytes(about: dict[str, Any], build: Callable[[Any], None]) -> bytes:
    """Return the bytes of a sealed file."""
    import h5py

    memory = io.BytesIO()
    with h5py.File(memory, "w", libver=("v110", "v110"), userblock_size=USER_BLOCK_BYTES) as file:
        build(file)
        datasets = {name: [item.id.get_offset(), item.dtype.str, list(item.shape)] for name, item in file.items() if _is_plain(item)}
    body = memory.getvalue()[USER_BLOCK_BYTES:]
    return _seal({"datasets": datasets, **about}, body) + body


def read_sealed(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Return a sealed file's metadata and its datasets, after comparing all of it with its hash. HDF5 does not read the file.

    Raises:
        InputError: it does not exist, is not sealed, or has changed since it was written.
    """
    try:
        with open_file(path, os.O_RDONLY) as descriptor:
            data = read_at(descriptor, min(os.fstat(descriptor).st_size, _LARGEST_BYTES), 0)
        head, body = data[:USER_BLOCK_BYTES], data[USER_BLOCK_BYTES:]
        seal = json.loads(head.rstrip(b"\0"))
        del seal["xxh3_128"]
        if head != _seal(seal, body):
            raise ValueError("its content differs from its hash")
        arrays = {name: _array(data, *place) for name, place in seal.pop("datasets").items()}
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(got=f"no file {path}", expected="one that featurize wrote", do="run python -m featurize first") from None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise InputError(
            got=f"{path} ({str(error)[:100]})", expected="the file as lugpi wrote it", do="run the same featurize command again"
        ) from None
    return seal, arrays


def _seal(about: dict[str, Any], body: bytes) -> bytes:
    """Return the user block: the metadata, and a hash of it and of all that follows."""
    hasher = xxhash.xxh3_128(json.dumps(about, sort_keys=True).encode())
    hasher.update(body)
    seal = json.dumps({"xxh3_128": hasher.hexdigest(), **about}, sort_keys=True).encode() + b"\n"
    if len(seal) > USER_BLOCK_BYTES:
        raise ValueError(f"a seal of {len(seal)} bytes")
    return seal.ljust(USER_BLOCK_BYTES, b"\0")


def _is_plain(item: Any) -> bool:
    import h5py

    return isinstance(item, h5py.Dataset) and not item.is_virtual and item.id.get_offset() is not None


def _array(data: bytes, offset: int, dtype: str, shape: list[int]) -> NDArray[Any]:
    if not _DTYPE.fullmatch(dtype) or any(type(number) is not int or number < 0 for number in [offset, *shape]):
        raise ValueError(f"a dataset of {dtype} {shape} at {offset}")
    kind = np.dtype(dtype)
    count = int(np.prod(shape, dtype=object))
    if offset + count * kind.itemsize > len(data):
        raise ValueError(f"a dataset of {dtype} {shape} at {offset} in {len(data)} bytes")
    return np.frombuffer(data, kind, count, offset).reshape(shape)
