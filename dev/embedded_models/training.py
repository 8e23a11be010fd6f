"""One small training loop for all models: it resumes, and the same seed gives the same weights on one machine."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lugpi_core.command_line import say
from lugpi_core.errors import InputError
from lugpi_core.files import make_folder, read_json, whole_file, write_json
from lugpi_core.fingerprint import differences

_WARM_UP = 0.05
_SAVE_EVERY_S = 60.0
_LOG_EVERY = 200

# The loss of a step, from the step's own source of random numbers.
Loss = Callable[[torch.Generator], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """AdamW with warm-up and cosine decay to zero. ``averaged`` is the decay of a moving average of the weights, which is then kept instead
    of the weights (Karras et al. 2022, arXiv 2206.00364, table 1); 0 = no average. ``until`` ends the training before the rate is zero."""

    steps: int
    learning_rate: float
    weight_decay: float = 0.05
    averaged: float = 0.0
    seed: int = 0
    until: int | None = None

    @property
    def last(self) -> int:
        """How many steps are trained."""
        return self.steps if self.until is None else self.until

    def settings(self) -> dict[str, Any]:
        """Return what decides the weights, for checkpoints and records."""
        return {name: value for name, value in vars(self).items() if name != "until" or value is not None}

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        warm = max(1, round(_WARM_UP * self.steps))
        progress = (step - warm) / max(1, self.steps - warm)
        return self.learning_rate * min((step + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * max(0.0, progress)))


def fit(name: str, model: nn.Module, make_loss: Callable[[], Loss], schedule: Schedule, folder: Path) -> dict[str, Any]:
    """Train ``model`` in place, or load its weights from ``folder`` if it was trained before; return its record.

    A killed run resumes from its last checkpoint: everything random depends on the seed and the step number only.

    Raises:
        InputError: ``folder`` has a model that was trained with another schedule.

    Args:
        name: of the model, for its files ``<name>.pt`` and ``<name>.json``.
        model: with all parameters to train.
        make_loss: returns the loss function; called only if there is something to train.
        schedule: of the training.
        folder: for checkpoint and record.

    Returns:
        ``steps``, ``seconds``, ``loss`` (smoothed, at every hundredth of the steps).
    """
    weights, record = make_folder(folder) / f"{name}.pt", folder / f"{name}.json"
    if record.is_file():
        done: dict[str, Any] = read_json(record)
        require_same_settings(done["schedule"], schedule.settings(), weights)
        model.load_state_dict(torch.load(weights, weights_only=True)["model"])
        return done
    run = _Run(model, schedule)
    if weights.is_file():
        state = torch.load(weights, weights_only=True)
        require_same_settings(state["schedule"], schedule.settings(), weights)
        run.load(state)
    loss, saved_at = make_loss(), time.monotonic()
    while run.step < schedule.last:
        run.train_step(loss)
        if run.step % _LOG_EVERY == 0:
            say(f"{name}: step {run.step:,} of {schedule.last:,}, loss {run.smoothed:.4f}, {run.seconds:,.0f} s")
        if time.monotonic() - saved_at > _SAVE_EVERY_S:
            run.save(weights)
            saved_at = time.monotonic()
    run.take_average()
    run.save(weights)
    write_json(record, run.record())
    return run.record()


def require_same_settings(stored: dict[str, Any], wanted: dict[str, Any], path: Path) -> None:
    """Raise InputError if a file was written with other settings."""
    if unlike := differences(stored, wanted):
        raise InputError(
            got=f"{path}, written with other settings: {'; '.join(unlike)}",
            expected="the same seed and lengths",
            do="use those, remove the file, or give another --work-dir",
        )


class _Run:
    def __init__(self, model: nn.Module, schedule: Schedule) -> None:
        self.model, self.schedule = model, schedule
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=schedule.learning_rate, betas=(0.9, 0.99), weight_decay=schedule.weight_decay, fused=True
        )
        self.average = [parameter.detach().clone() for parameter in self.parameters] if schedule.averaged else []
        self.step, self.seconds, self.smoothed = 0, 0.0, math.nan
        self.curve: list[float] = []

    def train_step(self, loss: Loss) -> None:
        started = time.perf_counter()
        seed = self.schedule.seed * 1_000_003 + self.step
        torch.manual_seed(seed)  # dropout
        self.optimizer.param_groups[0]["lr"] = self.schedule.rate(self.step)
        self.model.train()
        value = loss(torch.Generator().manual_seed(seed))
        self.optimizer.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        if self.average:
            decay = min(self.schedule.averaged, (1 + self.step) / (10 + self.step))
            torch._foreach_lerp_(self.average, [parameter.detach() for parameter in self.parameters], 1 - decay)
        self._log_loss(float(value.detach()))
        self.seconds += time.perf_counter() - started

    def _log_loss(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss of step {self.step} is {loss}")
        self.smoothed = loss if math.isnan(self.smoothed) else 0.98 * self.smoothed + 0.02 * loss
        self.step += 1
        if self.step % max(1, self.schedule.steps // 100) == 0:
            self.curve.append(round(self.smoothed, 5))

    def take_average(self) -> None:
        with torch.no_grad():
            for parameter, average in zip(self.parameters, self.average, strict=False):  # no average: nothing to copy
                parameter.copy_(average)

    def save(self, path: Path) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "schedule": self.schedule.settings(),
            "rest": json.dumps([self.step, self.seconds, self.smoothed, self.curve]),
        }
        with whole_file(path) as partial:
            torch.save(state, partial)

    def load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average = state["average"]
        self.step, self.seconds, self.smoothed, self.curve = json.loads(state["rest"])

    def record(self) -> dict[str, Any]:
        parameters = sum(parameter.numel() for parameter in self.parameters)
        figures = {"steps": self.step, "seconds": round(self.seconds, 1), "parameters": parameters, "loss": self.curve}
        return {**figures, "schedule": self.schedule.settings()}
