"""Shard files from anywhere: nothing outside the file is read, nothing is allocated for what a file only claims."""

import os
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from lugpi_core import shard as shard_module
from lugpi_core.errors import InputError
from lugpi_core.shard import ShardLayout, ShardWriter, create_shard, read_offsets

LAYOUT = ShardLayout(what="tokens", rows=5, row_shape=(3, 4), first_row=10, fingerprint_digest="f" * 32)
DATASETS = {"tokens": ((5, 3, 4), "<f2"), "row_hash": ((5,), "<u8"), "flags": ((5,), "u1")}


def _plain(file: h5py.File, leave_out: str = "") -> None:
    """The three datasets as h5py writes them by itself, but for one that the test makes."""
    for name, (shape, dtype) in DATASETS.items():
        if name != leave_out:
            file[name] = np.ones(shape, dtype)


def _soft_link(path: Path) -> None:
    with h5py.File(path, "w") as file:
        _plain(file, "tokens")
        file["real"] = np.zeros((5, 3, 4), np.float16)
        file["tokens"] = h5py.SoftLink("/real")


def _external_link(path: Path) -> None:
    with h5py.File(path.with_suffix(".other"), "w") as other:
        _plain(other)
    with h5py.File(path, "w") as file:
        _plain(file, "flags")
        file["flags"] = h5py.ExternalLink(path.with_suffix(".other").name, "/flags")


def _external_storage(path: Path) -> None:
    path.with_suffix(".secret").write_bytes(b"s" * 120)
    with h5py.File(path, "w") as file:
        _plain(file, "tokens")
        file.create_dataset("tokens", (5, 3, 4), "<f2", external=[(str(path.with_suffix(".secret")), 0, 120)])


def _chunked(path: Path) -> None:
    with h5py.File(path, "w") as file:
        _plain(file, "tokens")
        file.create_dataset("tokens", (5, 3, 4), "<f2", chunks=(1, 3, 4))


def _compressed(path: Path) -> None:
    with h5py.File(path, "w") as file:
        _plain(file, "row_hash")
        file.create_dataset("row_hash", (5,), "<u8", compression="gzip")


def _wrong_shape(path: Path) -> None:
    with h5py.File(path, "w") as file:
        _plain(file, "tokens")
        file["tokens"] = np.zeros((5, 4, 3), "<f2")


def _wrong_dtype(path: Path) -> None:
    with h5py.File(path, "w") as file:
        _plain(file, "tokens")
        file["tokens"] = np.zeros((5, 3, 4), ">f2")


def _no_space(path: Path) -> None:
    with h5py.File(path, "w") as file:
        _plain(file, "flags")
        file.create_dataset("flags", (5,), "u1")  # allocated late, so never


def _a_group(path: Path) -> None:
    with h5py.File(path, "w") as file:
        _plain(file, "tokens")
        file.create_group("tokens")


def _a_type(path: Path) -> None:
    with h5py.File(path, "w") as file:
        _plain(file, "tokens")
        file["tokens"] = np.dtype("<f2")


def _missing(path: Path) -> None:
    with h5py.File(path, "w") as file:
        _plain(file, "row_hash")


def _truncated(path: Path) -> None:
    create_shard(path, LAYOUT)
    os.truncate(path, path.stat().st_size - 1)


def _not_hdf5(path: Path) -> None:
    path.write_bytes(b"GIF89a" * 500)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


HOSTILE = (
    (_soft_link, "tokens is a link"),
    (_external_link, "flags is a link"),
    (_external_storage, "tokens is not a plain contiguous dataset"),
    (_chunked, "tokens is not a plain contiguous dataset"),
    (_compressed, "row_hash is not a plain contiguous dataset"),
    (_wrong_shape, r"tokens is float16 \(5, 4, 3\), not float16 \(5, 3, 4\)"),
    (_wrong_dtype, "tokens is >f2"),
    (_no_space, "flags has no space"),
    (_a_group, "tokens is not a dataset"),
    (_a_type, "tokens is not a dataset"),
    (_missing, "row_hash"),
    (_truncated, "truncated|end at byte"),
    (_not_hdf5, "signature"),
    (_empty, "signature|truncated|size"),
)


@pytest.mark.parametrize(("make", "reason"), HOSTILE, ids=lambda value: value.__name__ if callable(value) else "")
def test_a_hostile_or_damaged_file_is_refused_with_its_reason(tmp_path: Path, make: Callable[[Path], None], reason: str) -> None:
    make(tmp_path / "s")
    with pytest.raises(InputError, match=rf"{tmp_path}/s: .*({reason}).*; expected a shard as lugpi wrote it; remove this file"):
        ShardWriter(tmp_path / "s", LAYOUT)


def test_a_plain_file_that_somebody_else_wrote_rightly_is_read(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "s", "w") as file:
        _plain(file)
    assert not ShardWriter(tmp_path / "s", LAYOUT).valid.any(), "its hashes do not hold"


def test_a_file_that_ends_before_its_datasets_is_refused_though_hdf5_opens_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_shard(tmp_path / "s", LAYOUT)
    monkeypatch.setattr(shard_module, "plain_offset", lambda file, name, shape, dtype: (tmp_path / "s").stat().st_size - 1)
    with pytest.raises(InputError, match="its datasets end at byte"):
        read_offsets(tmp_path / "s", LAYOUT)
