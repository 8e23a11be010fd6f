"""The same tokens in every format that is compared: raw, ``.npy``, three layouts of HDF5, and the store."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from lugpi_core.store.manifest import ColumnSpec
from lugpi_core.store.writer import ColumnWriter

COLUMN = "clip"
BLOCK_ROWS = 16  # featurize's default batch
Tokens = NDArray[np.float16]
# The chunk layouts of the HDF5 files.
LAYOUTS = ("contiguous", "one-row chunks", "chunks=True")


@dataclass(frozen=True, kw_only=True)
class TokenFiles:
    """Where the tokens, float16 [rows, *row_shape], are in each format."""

    rows: int
    row_shape: tuple[int, int]
    raw: Path
    npy: Path
    hdf5: dict[str, Path]
    store: Path

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return 2 * self.row_shape[0] * self.row_shape[1]

    @property
    def shards(self) -> list[Path]:
        """The files of the store's column."""
        return sorted((self.store / COLUMN).glob("shard-*.h5"))

    def remove(self) -> None:
        """Remove all files, which take gigabytes, before the end of the run."""
        shutil.rmtree(self.raw.parent)


def random_tokens(rows: int, row_shape: tuple[int, int], seed: int = 0) -> Tokens:
    """Return finite float16 values of random bits: quick to generate and incompressible."""
    return np.random.default_rng(seed).integers(0, 1 << 14, (rows, *row_shape), dtype=np.uint16).view(np.float16)


def write_everywhere(folder: Path, tokens: Tokens, *, shard_rows: int) -> TokenFiles:
    """Write the tokens in every format."""
    folder.mkdir()
    hdf5 = {layout: folder / f"{n}.h5" for n, layout in enumerate(LAYOUTS)}
    files = TokenFiles(
        rows=len(tokens),
        row_shape=tokens.shape[1:],
        raw=folder / "raw.bin",
        npy=folder / "tokens.npy",
        hdf5=hdf5,
        store=folder / "store",
    )
    tokens.tofile(files.raw)
    np.save(files.npy, tokens)
    for layout, path in hdf5.items():
        chunks = {"contiguous": None, "one-row chunks": (1, *tokens.shape[1:]), "chunks=True": True}[layout]
        with h5py.File(path, "w") as file:
            file.create_dataset("tokens", data=tokens, chunks=chunks)
    fill_store(files.store, tokens, shard_rows=shard_rows)
    return files


def fill_store(store: Path, tokens: Tokens, *, shard_rows: int, merged: bool = False) -> None:
    """Write a store of one column as featurize does: shard by shard, in blocks of 16 rows, each shard committed when it is full.

    With ``merged`` also the last step of featurize, which writes the records of all shards into the manifest.
    """
    spec = ColumnSpec(
        name=COLUMN,
        what="tokens",
        rows=len(tokens),
        row_shape=tokens.shape[1:],
        shard_rows=shard_rows,
        fingerprint={"made": "to be measured"},
    )
    writer = ColumnWriter(store, spec)
    for shard in range(spec.shards):
        layout = spec.layout(shard)
        file = writer.claim(shard)
        assert file is not None, "the store exists already"
        part = tokens[layout.first_row : layout.first_row + layout.rows]
        for first in range(0, layout.rows, BLOCK_ROWS):
            block = part[first : first + BLOCK_ROWS]
            file.write(first, block, np.zeros(len(block), np.uint8))
        writer.commit(shard, file)
    if merged:
        writer.finish()


def fill_raw(folder: Path, tokens: Tokens, *, shard_rows: int) -> None:
    """Write the same rows as plain files in the same blocks, a file a shard, each synced when it is full: the minimum for a disk."""
    folder.mkdir(parents=True)
    for start in range(0, len(tokens), shard_rows):
        descriptor = os.open(folder / f"{start}.bin", os.O_CREAT | os.O_WRONLY)
        try:
            part = tokens[start : start + shard_rows]
            for first in range(0, len(part), BLOCK_ROWS):
                os.write(descriptor, part[first : first + BLOCK_ROWS].data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def fill_hdf5(folder: Path, tokens: Tokens, *, shard_rows: int) -> None:
    """Write the same rows as plain contiguous HDF5 files in the same blocks, a file a shard, each flushed and synced when it is full."""
    folder.mkdir(parents=True)
    for start in range(0, len(tokens), shard_rows):
        part, path = tokens[start : start + shard_rows], folder / f"{start}.h5"
        with h5py.File(path, "w") as file:
            rows = file.create_dataset("tokens", part.shape, part.dtype)
            for first in range(0, len(part), BLOCK_ROWS):
                rows[first : first + BLOCK_ROWS] = part[first : first + BLOCK_ROWS]
        with path.open("rb") as file:
            os.fsync(file.fileno())
