"""Checkpoints: one file an epoch, written whole, holding everything that the next epoch depends on."""

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lugpi_core.errors import InputError
from lugpi_core.files import whole_file

CHECKPOINT = "checkpoint.pt"


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write the state of a training run with the random generators' own, whole or not at all."""
    generators = {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}
    with whole_file(folder / CHECKPOINT) as partial:
        torch.save({**state, "generators": generators}, partial)


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """Return the last state and set the random generators as they were then; None when there is none.

    Raises:
        InputError: the file is damaged.
    """
    path = folder / CHECKPOINT
    if not path.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        generators = state.pop("generators")
    except (RuntimeError, EOFError, KeyError, ValueError, OSError, pickle.UnpicklingError) as error:
        raise InputError(
            got=f"{path} ({' '.join(str(error).split())[:120]})", expected="a whole checkpoint", do="remove it; training starts anew"
        ) from None
    torch.set_rng_state(generators["cpu"])
    if generators["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(generators["cuda"])
    return state


def best_name(epoch: int) -> str:
    """Return the file name of an epoch's weights; the epoch is part of it, so that weights and history cannot disagree after a kill."""
    return f"best-{epoch:03d}.safetensors"


def remove_other_best(folder: Path, epoch: int | None) -> None:
    """Remove the weights kept of every epoch but one; of all when None."""
    for path in folder.glob("best-*.safetensors"):
        if epoch is None or path.name != best_name(epoch):
            path.unlink(missing_ok=True)


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
