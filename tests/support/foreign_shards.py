"""Shard files that were not written by lugpi, with a manifest that matches them."""

import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xxhash

from lugpi_core.fingerprint import digest
from lugpi_core.store.column_map import ShardPlace
from lugpi_core.store.layout import structure
from lugpi_core.store.manifest import MANIFEST, ColumnSpec, open_manifest
from lugpi_core.store.writer import ColumnWriter
from tests.support.checkout import ROOT

SPEC = ColumnSpec(name="clip", what="tokens", rows=5, row_shape=(3, 4), shard_rows=5, fingerprint={"seed": 0})
LAYOUT = SPEC.layout(0)


def plain(file: h5py.File, leave_out: str = "") -> None:
    """Write the attributes and datasets as h5py does by default, except one dataset that the test writes."""
    file.attrs["fingerprint"], file.attrs["first_row"] = np.bytes_(LAYOUT.fingerprint_digest), LAYOUT.first_row
    for name, (shape, dtype) in LAYOUT.datasets.items():
        if name != leave_out:
            file[name] = np.ones(shape, dtype)


@cache
def _genuine_record() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        column = ColumnWriter(Path(folder), SPEC)
        writer = column.claim(0)
        assert writer is not None
        writer.write(0, np.ones((5, 3, 4), np.float16), np.zeros(5, np.uint8))
        column.commit(0, writer)
        return column.records[0]


def write_matching_manifest(store: Path, offsets: dict[str, int] | None = None) -> None:
    """Write a manifest that matches the shard file, whatever it is: an attacker could write both."""
    folder = store / SPEC.name
    path = folder / SPEC.shard_name(0)
    content = path.read_bytes() if path.is_file() else b""
    record = {
        **_genuine_record(),
        "bytes": path.stat().st_size,
        "offsets": offsets or dict(structure(LAYOUT).offsets),
        "xxh3_128": xxhash.xxh3_128_hexdigest(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    open_manifest(folder, SPEC)
    rewrite_manifest(folder / MANIFEST, lambda value: value["shards"].update({"0": record}))


def rewrite_manifest(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the content of a manifest and hash it again."""
    value = json.loads(path.read_text())
    del value["xxh3_128"]
    change(value)
    path.write_text(json.dumps({**value, "xxh3_128": digest(value)}))


def offsets_of(path: Path) -> dict[str, int]:
    """Return where the datasets of a file start."""
    with h5py.File(path, "r") as file:
        return {name: file[name].id.get_offset() for name in LAYOUT.datasets}


def place_of(path: Path, offsets: dict[str, int] | None = None) -> ShardPlace:
    """Return where the rows of a file are, or are claimed to be."""
    return ShardPlace(path, LAYOUT, offsets or structure(LAYOUT).offsets, path.stat().st_size)


def shard_of(store: Path) -> Path:
    """Return the path of a store's only shard, after creating its folder."""
    (store / SPEC.name).mkdir(parents=True, exist_ok=True)
    return store / SPEC.name / SPEC.shard_name(0)


def in_a_child(module: str, function: str, *arguments: str | int, timeout_s: float = 1200) -> list[dict[str, Any]]:
    """Call a function of a module in a separate process; return the JSON lines that it prints."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from {module} import {function}; {function}(*sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], cwd="/", capture_output=True, text=True, timeout=timeout_s, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]
