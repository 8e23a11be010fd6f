"""Checkpoints: everything that the next step depends on, in a folder that is whole or not there; and single weights.

A checkpoint is ``checkpoints/step-<n>/`` with ``state.pt`` and, written last, ``complete.json`` with its hash. It is filled under another
name, synced and renamed, and only then are older ones removed: at any moment the newest whole checkpoint loads.
"""

import os
import shutil
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import nn

from lugpi_core.command_line import say
from lugpi_core.errors import InputError
from lugpi_core.files import open_file, read_at, read_json, sweep, whole_file, whole_folder, write_at, write_json

CHECKPOINTS = "checkpoints"
STATE = "state.pt"
COMPLETE = "complete.json"
# One to go on from, and one in case the disk spoils it.
KEPT = 2
_CHUNK_BYTES = 1 << 22


def save_checkpoint(folder: Path, step: int, state: dict[str, Any]) -> None:
    """Write the state after ``step`` steps, whole or not at all, then remove all but the newest two.

    Raises:
        OSError: the disk is full or refuses; the checkpoints that are there stay.
    """
    checkpoints = folder / CHECKPOINTS
    sweep(checkpoints)
    with whole_folder(checkpoints / f"step-{step:09d}") as partial, open_file(partial / STATE, os.O_CREAT | os.O_WRONLY) as descriptor:
        stream = _HashedStream(descriptor)
        try:
            torch.save(state, stream)  # type: ignore[arg-type]
        except RuntimeError:
            if stream.refused is not None:  # torch says only that its stream is not where it should be
                raise stream.refused from None
            raise
        write_json(partial / COMPLETE, {"step": step, "bytes": stream.written, "xxh3": stream.hasher.hexdigest()})
    for path in _newest_first(folder)[KEPT:]:
        shutil.rmtree(path, ignore_errors=True)


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """Return the state of the newest checkpoint that holds; None when there is none. One that does not hold is named on stderr.

    Raises:
        InputError: there are checkpoints, and none of them holds.
    """
    paths, damaged = _newest_first(folder), list[Path]()
    for path in paths:
        fault = _fault(path)
        if fault is None:
            for other in damaged:  # out of the way of the count of those that are kept, for whoever wants to look
                shutil.rmtree(aside := other.with_name(f"damaged-{other.name}"), ignore_errors=True)
                other.replace(aside)
            state: dict[str, Any] = torch.load(path / STATE, map_location="cpu", weights_only=True)
            return state
        say(f"warning: {path} is damaged ({fault}); the one before it is taken")
        damaged.append(path)
    if paths:
        raise InputError(
            got=f"{folder / CHECKPOINTS}, in which every checkpoint is damaged",
            expected="a whole one",
            do="remove it; training starts anew",
        )
    return None


def has_checkpoint(folder: Path) -> bool:
    """Whether there is anything to go on from."""
    return bool(_newest_first(folder))


def remove_checkpoints(folder: Path) -> None:
    """Remove what only a training that goes on would need."""
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)


def _newest_first(folder: Path) -> list[Path]:
    return sorted((folder / CHECKPOINTS).glob("step-*"), reverse=True)


def _fault(path: Path) -> str | None:
    """Return what is wrong with a checkpoint, or None: every byte is compared with the hash, so that nothing damaged is ever parsed."""
    try:
        complete = read_json(path / COMPLETE)
        hasher = xxhash.xxh3_128()
        with open_file(path / STATE, os.O_RDONLY) as descriptor:
            size = os.fstat(descriptor).st_size
            for offset in range(0, size, _CHUNK_BYTES):
                hasher.update(read_at(descriptor, _CHUNK_BYTES, offset))
    except (OSError, InputError) as error:
        return " ".join(str(error).split())[:160]
    if not isinstance(complete, dict) or (complete.get("bytes"), complete.get("xxh3")) != (size, hasher.hexdigest()):
        return f"{STATE} is not what {COMPLETE} says"
    return None


class _HashedStream:
    """A file to write to that knows the hash of what went through."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.hasher = xxhash.xxh3_128()
        self.written = 0
        self.refused: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all of the data behind what is there."""
        view = memoryview(data).cast("B")
        try:
            write_at(self._descriptor, view, self.written)
        except OSError as error:
            self.refused = error
            raise
        self.hasher.update(view)
        self.written += len(view)
        return len(view)

    def flush(self) -> None:
        """Nothing is held back."""


def save_weights(path: Path, model: nn.Module) -> None:
    """Write a model's weights as safetensors, whole or not at all; tensors that share memory are written once."""
    from safetensors.torch import save_model

    with whole_file(path) as partial:
        save_model(model, str(partial))


def load_weights(path: Path, model: nn.Module) -> None:
    """Load weights that ``save_weights`` wrote into a model of the same shape.

    Raises:
        InputError: the file is missing or damaged, or belongs to another model.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_model

    try:
        load_model(model, str(path))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise InputError(
            got=f"{path} ({' '.join(str(error).split())[:160]})",
            expected="the weights of this model",
            do="remove its folder and train it again",
        ) from None
