"""Checkpoints, written atomically, with everything that the next step depends on; and weights files.

A checkpoint is ``checkpoints/step-<n>/`` with ``state.pt`` and, written last, ``complete.json`` with its hash. It is written under another
name, synced and renamed before older ones are removed, so that at any moment the newest complete checkpoint loads.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from lugpi_core.command_line import say
from lugpi_core.errors import InputError
from lugpi_core.files import open_file, read_at, read_json, sweep, whole_file, whole_folder, write_at, write_json
from train.file_names import FOLDS, HEAD, OUTPUTS

if TYPE_CHECKING:
    import torch  # at run time only where weights are: reports ask no more than whether there is a checkpoint
    from torch import nn

CHECKPOINTS = "checkpoints"
STATE = "state.pt"
COMPLETE = "complete.json"
# The newest, and one more in case it gets damaged.
KEPT = 2
_CHUNK_BYTES = 1 << 22


def save_checkpoint(folder: Path, step: int, state: dict[str, Any]) -> None:
    """Write the state after ``step`` steps atomically, then remove all but the newest two checkpoints.

    Raises:
        OSError: the disk is full or fails; existing checkpoints stay.
    """
    import torch

    checkpoints = folder / CHECKPOINTS
    sweep(checkpoints)
    with whole_folder(checkpoints / f"step-{step:09d}") as partial, open_file(partial / STATE, os.O_CREAT | os.O_WRONLY) as descriptor:
        stream = _HashedStream(descriptor)
        try:
            torch.save(state, stream)  # type: ignore[arg-type]
        except RuntimeError:
            if stream.error is not None:  # torch reports only that the stream is at the wrong position
                raise stream.error from None
            raise
        write_json(partial / COMPLETE, {"step": step, "bytes": stream.written, "xxh3": stream.hasher.hexdigest()})
    for path in _newest_first(folder)[KEPT:]:
        shutil.rmtree(path, ignore_errors=True)


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """Return the state of the newest undamaged checkpoint, or None if there is no checkpoint. Damaged ones are named on stderr.

    Raises:
        InputError: there are checkpoints, and all of them are damaged.
    """
    import torch

    paths, damaged = _newest_first(folder), list[Path]()
    for path in paths:
        fault = _fault(path)
        if fault is None:
            for other in damaged:  # renamed, so that they do not count among those to keep
                shutil.rmtree(aside := other.with_name(f"damaged-{other.name}"), ignore_errors=True)
                other.replace(aside)
            state: dict[str, Any] = torch.load(path / STATE, map_location="cpu", weights_only=True)
            return state
        say(f"warning: {path} is damaged ({fault}); using the one before it")
        damaged.append(path)
    if paths:
        raise InputError(
            got=f"{folder / CHECKPOINTS}, in which every checkpoint is damaged",
            expected="an undamaged one",
            do="remove it; training starts from the beginning",
        )
    return None


def has_checkpoint(folder: Path) -> bool:
    """Whether there is a checkpoint to resume from."""
    return bool(_newest_first(folder))


def is_begun(folder: Path) -> bool:
    """Whether there is a checkpoint of a training, or of the first part of one in two; or one of a fold, or a fold that is finished."""
    return any(map(has_checkpoint, _parts(folder))) or any((folder / FOLDS).glob(f"*/{OUTPUTS}"))


def remove_checkpoints(folder: Path) -> None:
    """Remove all checkpoints, also those of the first part of a training in two, and of folds."""
    for part in _parts(folder):
        shutil.rmtree(part / CHECKPOINTS, ignore_errors=True)


def _parts(folder: Path) -> list[Path]:
    trainings = [folder, *sorted((folder / FOLDS).glob("*"))]
    return [part for training in trainings for part in (training, training / HEAD)]


def _newest_first(folder: Path) -> list[Path]:
    return sorted((folder / CHECKPOINTS).glob("step-*"), reverse=True)


def _fault(path: Path) -> str | None:
    """Return what is wrong with a checkpoint, or None. All bytes are hashed first, so that nothing damaged is ever parsed."""
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
        return f"{STATE} does not match {COMPLETE}"
    return None


class _HashedStream:
    """A file to write to, which hashes what is written."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.hasher = xxhash.xxh3_128()
        self.written = 0
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        """Append all of the data."""
        view = memoryview(data).cast("B")
        try:
            write_at(self._descriptor, view, self.written)
        except OSError as error:
            self.error = error
            raise
        self.hasher.update(view)
        self.written += len(view)
        return len(view)

    def flush(self) -> None:
        """Do nothing: nothing is buffered."""


def learnt_state(model: "nn.Module") -> "dict[str, torch.Tensor]":
    """Return the state of a model without its frozen weights."""
    frozen = _frozen_names(model)
    return {name: tensor for name, tensor in model.state_dict().items() if name not in frozen}


def load_learnt_state(model: "nn.Module", state: "Mapping[str, torch.Tensor]") -> None:
    """Load what ``learnt_state`` returned of the same model; frozen weights may be in it, as earlier versions wrote them."""
    missing, unexpected = model.load_state_dict(state, strict=False)
    if lacking := [*unexpected, *sorted(set(missing) - _frozen_names(model))]:
        raise RuntimeError(f"a state of another model: {', '.join(lacking[:3])}")


def _frozen_names(model: "nn.Module") -> set[str]:
    return {name for name, weight in model.named_parameters(remove_duplicate=False) if not weight.requires_grad}


def save_weights(path: Path, model: "nn.Module") -> None:
    """Write a model's weights as safetensors, atomically; tensors that share memory are written once."""
    from safetensors.torch import save_model

    with whole_file(path) as partial:
        save_model(model, str(partial))


def load_weights(path: Path, model: "nn.Module") -> None:
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
