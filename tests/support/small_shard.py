"""A shard of five rows, float16 or int8, for the tests of one shard."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lugpi_core.files import open_file
from lugpi_core.store.layout import ShardLayout
from lugpi_core.store.shard import ShardWriter, check_rows, create_shard

LAYOUT = ShardLayout(what="tokens", rows=5, row_shape=(3, 4), first_row=10, fingerprint_digest="f" * 32)
INT8 = replace(LAYOUT, dtype="int8")
GOOD = np.zeros(5, np.uint8)


def float_rows(seed: int = 0) -> NDArray[np.float16]:
    """Return float16 tokens of all rows."""
    return np.random.default_rng(seed).normal(size=(5, *LAYOUT.row_shape)).astype(np.float16)


def int8_rows() -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return int8 tokens and scales of all rows."""
    random = np.random.default_rng(1)
    return random.integers(-127, 128, size=(5, 3, 4), dtype=np.int8), random.random(size=(5, 3), dtype=np.float32)


def new_writer(path: Path, layout: ShardLayout = LAYOUT) -> ShardWriter:
    """Create an empty shard and open it for writing."""
    create_shard(path, layout)
    return ShardWriter(path, layout)


def written(path: Path, flags: NDArray[np.uint8] = GOOD, layout: ShardLayout = LAYOUT) -> ShardWriter:
    """Create a shard with all rows written."""
    writer = new_writer(path, layout)
    if layout.dtype == "int8":
        values, scales = int8_rows()
        writer.write(0, values, flags, scales)
    else:
        writer.write(0, float_rows(), flags)
    return writer


def flip(path: Path, offset: int, bit: int = 0) -> None:
    """Flip one bit of a file."""
    with open_file(path, os.O_RDWR) as descriptor:
        os.pwrite(descriptor, bytes([os.pread(descriptor, 1, offset)[0] ^ 1 << bit]), offset)


def holding(path: Path, layout: ShardLayout = LAYOUT) -> list[bool]:
    """Return for each row whether its hash matches."""
    return [bool(holds) for holds in check_rows(path, layout)]
