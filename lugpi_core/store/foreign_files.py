"""Check that a file of unknown origin is a plain shard, before any byte of it is trusted.

A shard written by this version of HDF5 has exactly known bytes outside its rows; those are compared, and HDF5 is not used. Any other file,
from another version or another program, is opened by HDF5 in a separate process with limited memory and time, so that a file made to crash
or exhaust the library does no harm. It must be plain: every dataset contiguous, uncompressed, inside the file, with the shape, dtype and
offset that the manifest states; no links, no storage outside the file.
"""

import importlib
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from lugpi_core.errors import InputError
from lugpi_core.store.column_map import ShardPlace
from lugpi_core.store.layout import structure
from lugpi_core.store.shard import is_intact

MEMORY_BYTES = 1 << 30
TIME_S = 5.0  # for a file
START_S = 30.0  # for the process
CRASHED = "HDF5 cannot read it: it crashed, or took too much memory or time"


def refuse_structure(shards: Sequence[ShardPlace]) -> None:
    """Check the structure of shard files against their layouts and the offsets that the manifest states.

    Raises:
        InputError: one of them is not a plain shard of its layout.
    """
    for path, fault in structure_faults(shards).items():
        raise InputError(
            got=f"{path}: {fault}",
            expected="a plain HDF5 file as lugpi writes it: contiguous, uncompressed, without links or storage outside the file",
            do="get the file again from its source, or remove it and run the same featurize command again",
        )


def structure_faults(shards: Sequence[ShardPlace]) -> dict[Path, str]:
    """Return what is wrong with the structure of each file that is not a plain shard."""
    unknown = [shard for shard in shards if not _is_ours(shard)]
    faults: dict[Path, str] = {}
    while unknown:
        answers = _ask_child(unknown)
        if len(answers) < len(unknown):  # the child died at the first file that it did not answer; the rest go to the next child
            answers.append(CRASHED)
        faults |= {shard.path: fault for shard, fault in zip(unknown, answers, strict=False) if fault is not None}
        unknown = unknown[len(answers) :]
    return faults


def _is_ours(shard: ShardPlace) -> bool:
    stated = sum(shard.layout.bytes_of(name, shard.layout.rows) for name in shard.layout.datasets)
    if shard.path.stat().st_size < stated:  # before HDF5 plans a file of a size that is only claimed
        return False
    return dict(shard.offsets) == dict(structure(shard.layout).offsets) and is_intact(shard.path, shard.layout)


def _ask_child(shards: Sequence[ShardPlace]) -> list[str | None]:
    """Return the answers of a separate process, in order, up to the file at which it died."""
    questions = [
        {
            "path": str(shard.path.resolve()),
            "offsets": dict(shard.offsets),
            "attributes": {"fingerprint": shard.layout.fingerprint_digest, "first_row": shard.layout.first_row},
            "datasets": {name: [list(shape), dtype.str] for name, (shape, dtype) in shard.layout.datasets.items()},
        }
        for shard in shards
    ]
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "HDF5_USE_FILE_LOCKING": "FALSE"}
    command = [sys.executable, "-P", "-m", "lugpi_core.store.foreign_files"]
    child = subprocess.Popen(command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        output, _ = child.communicate(json.dumps(questions), timeout=START_S + TIME_S * len(shards))
    except subprocess.TimeoutExpired:
        child.kill()
        output, _ = child.communicate()
    return [json.loads(line) for line in output.splitlines(keepends=True) if line.endswith("\n")]


def fault_of(path: Path, question: Mapping[str, Any]) -> str | None:
    """Return why a file is not the plain shard that ``question`` describes (datasets, offsets, attributes), or None.

    HDF5 parses the file: call this only where a crash does no harm.
    """
    import h5py

    datasets = {name: (tuple(shape), np.dtype(dtype)) for name, (shape, dtype) in question["datasets"].items()}
    try:
        with h5py.File(path, "r", locking=False) as file:
            if strange := sorted(set(file) - datasets.keys()):
                return f"it also contains {', '.join(strange)}"
            found = {name: _plain_offset(file, name, shape, dtype) for name, (shape, dtype) in datasets.items()}
            stated = {
                name: np.asarray(file.attrs[name]).astype(str if isinstance(value, str) else int).item()
                for name, value in question["attributes"].items()
            }
    except (OSError, KeyError, RuntimeError, ValueError, TypeError, MemoryError) as error:
        return " ".join(str(error).split())[:200]
    ends = {name: found[name] + prod(shape) * dtype.itemsize for name, (shape, dtype) in datasets.items()}
    if max(ends.values()) > path.stat().st_size:
        return f"its datasets end beyond the end of the file, at {max(ends.values())}"
    if found != question["offsets"]:
        return f"its datasets lie at {found}, the manifest says {question['offsets']}"
    return None if stated == question["attributes"] else f"it is the shard {stated}, not {question['attributes']}"


def _plain_offset(file: Any, name: str, shape: tuple[int, ...], dtype: "np.dtype[Any]") -> int:
    import h5py

    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise ValueError(f"{name} is a link")
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset):
        raise ValueError(f"{name} is not a dataset")
    plan = dataset.id.get_create_plist()
    if plan.get_layout() != h5py.h5d.CONTIGUOUS or plan.get_nfilters() or plan.get_external_count():
        raise ValueError(f"{name} is not a plain contiguous dataset")
    if dataset.shape != shape or dataset.dtype != dtype:
        raise ValueError(f"{name} is {dataset.dtype} {dataset.shape}, not {dtype} {shape}")
    offset = dataset.id.get_offset()
    if offset is None:
        raise ValueError(f"{name} has no space")
    return int(offset)


def _answer() -> None:
    """Answer the questions on stdin, one line each; the process dies if a file takes too much memory or time."""
    importlib.import_module("h5py")  # before the limits, which are meant for the files

    questions = json.load(sys.stdin)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for question in questions:
        signal.setitimer(signal.ITIMER_REAL, TIME_S)  # its signal ends the process
        print(json.dumps(fault_of(Path(question["path"]), question)), flush=True)


if __name__ == "__main__":
    _answer()
