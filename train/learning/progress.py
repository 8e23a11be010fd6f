"""Progress of a training: a progress bar, ``log.jsonl`` in the model's folder, and trackers.

A figure on the device is copied asynchronously and reported one report later, so that reporting does not slow down a step.
"""

import importlib.util
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lugpi_core.errors import InputError
from lugpi_core.files import write_text
from train.learning.distributed import Processes

LOG = "log.jsonl"
_shows_bars: ContextVar[bool] = ContextVar("shows_bars", default=True)
EVERY_STEPS = 50


@dataclass(frozen=True, kw_only=True)
class Trackers:
    """Names of accelerate's trackers, and what they record about the run."""

    names: Sequence[str] = ()
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class _PendingStep:
    """A step whose loss is being copied to the host."""

    step: int
    examples: int
    learning_rate: float
    at_s: float
    loss_sum: torch.Tensor
    arrived: Any


class Progress:
    """Reports the figures of a training.

    Args:
        bar: a progress bar that counts examples.
        tracker: accelerate's, or None.
        log: ``log.jsonl``, open for appending, or None in every process but the first.
    """

    def __init__(self, bar: Any, tracker: Any, log: Any) -> None:
        self._bar, self._tracker, self._log = bar, tracker, log
        self._counted = 0  # examples of the epoch that the bar shows
        self._last = (0, 0.0, time.perf_counter())  # examples and loss sum of the epoch at the last report, and its time
        self._pending: _PendingStep | None = None
        self._postfix: dict[str, str] = {}

    def begin_epoch(self, examples: int, loss_sum: float) -> None:
        """Begin an epoch, ``examples`` of which are done already with this sum of losses."""
        self._counted = examples
        self._last = (examples, loss_sum, time.perf_counter())

    def step(self, step: int, examples: int, learning_rate: float, loss_sum: torch.Tensor) -> None:
        """Report every 50th step.

        Args:
            step: its number, from 1.
            examples: of the epoch so far.
            learning_rate: of this step.
            loss_sum: sum of the losses of these examples; stays on its device.
        """
        if step % EVERY_STEPS:
            return
        self._report_pending()
        self._count(examples)
        self._pending = _PendingStep(
            step=step,
            examples=examples,
            learning_rate=learning_rate,
            at_s=time.perf_counter(),
            loss_sum=loss_sum.detach().to("cpu", copy=True, non_blocking=True),
            arrived=_event(loss_sum.device),
        )
        if loss_sum.device.type == "cpu":
            self._report_pending()

    def epoch(self, record: dict[str, Any], step: int, examples: int) -> None:
        """Report a finished epoch."""
        self._report_pending()
        self._count(examples)
        score = next(value for name, value in record.items() if name.startswith("validation_"))
        self._postfix |= {"validation": "undefined" if score is None else f"{score:.4f}"}
        self._bar.set_postfix(self._postfix)
        self._write({"step": step, **record})

    def _count(self, examples: int) -> None:
        self._bar.update(examples - self._counted)
        self._counted = examples

    def _report_pending(self) -> None:
        pending, self._pending = self._pending, None
        if pending is None:
            return
        if pending.arrived is not None:
            pending.arrived.synchronize()  # returns at once: it was recorded a report ago
        examples, loss_sum, at_s = self._last
        self._last = (pending.examples, float(pending.loss_sum), pending.at_s)
        seen = pending.examples - examples
        loss = (self._last[1] - loss_sum) / seen if seen else 0.0
        self._postfix |= {"loss": f"{loss:.4f}"}
        self._bar.set_postfix(self._postfix, refresh=False)
        rate = seen / max(pending.at_s - at_s, 1e-9)
        if math.isfinite(loss):  # JSON cannot represent other values, and the training is about to fail on them
            figures = {"loss": round(loss, 6), "learning_rate": pending.learning_rate, "examples_per_s": round(rate, 2)}
            self._write({"step": pending.step, **figures})

    def _write(self, figures: dict[str, Any]) -> None:
        if self._log is not None:
            self._log.write(json.dumps(figures) + "\n")
            self._log.flush()
        if self._tracker is not None:
            defined = {name: value for name, value in figures.items() if name != "step" and value is not None}
            self._tracker.log(defined, step=figures["step"])


@contextmanager
def progress(folder: Path, processes: Processes, *, examples: tuple[int, int], step: int, trackers: Trackers) -> Iterator[Progress]:
    """Yield the progress of a training, open for the block. Lines of ``log.jsonl`` from after ``step`` are removed first.

    Args:
        folder: of the model.
        processes: only the first one reports.
        examples: number of examples trained on already, and of all epochs.
        step: number of steps that are done.
        trackers: which trackers report as well.

    Raises:
        InputError: a tracker is not installed.
    """
    require_trackers(trackers.names)
    tracker = _tracker(folder, trackers, on_cpu=processes.device == "cpu")  # in every process: accelerate counts them
    done, total = examples
    if not processes.is_first:
        yield Progress(progress_bar(total, done=done, unit="example", disable=True), None, None)
        return
    cut_log(folder / LOG, step)
    with (folder / LOG).open("a", encoding="utf-8") as log, progress_bar(total, done=done, unit="example", title=folder.name) as bar:
        try:
            yield Progress(bar, tracker, log)
        finally:
            if tracker is not None:
                for one in tracker.trackers:  # accelerate's end_training would also destroy the process group, which is still needed
                    one.finish()


def progress_bar(total: int, *, unit: str, done: int = 0, title: str | None = None, disable: bool = False) -> Any:
    """Return a tqdm progress bar on stderr; in a log file it writes a line every ten seconds."""
    from tqdm import tqdm

    interval_s = 0.1 if sys.stderr.isatty() else 10
    is_hidden = disable or not _shows_bars.get()
    return tqdm(total=total, initial=done, unit=unit, desc=title, mininterval=interval_s, disable=is_hidden)


@contextmanager
def without_bars() -> Iterator[None]:
    """Show no progress bar inside the block: those of processes side by side would overwrite each other."""
    token = _shows_bars.set(False)
    try:
        yield
    finally:
        _shows_bars.reset(token)


def require_trackers(names: Sequence[str]) -> None:
    """Raise InputError unless the packages of the trackers are installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise InputError(got=f"--track {name}", expected="that package installed", do=f"pip install {name}")


def cut_log(path: Path, step: int) -> None:
    """Remove the lines of a log that were written after ``step``, and incomplete ones: they will be written again."""
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and _step_of(line) <= step]
    if kept != lines:
        write_text(path, "".join(kept))


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def _event(device: torch.device) -> Any:
    if device.type != "cuda":
        return None
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    return event


def _tracker(folder: Path, trackers: Trackers, *, on_cpu: bool) -> Any:
    if not trackers.names:
        return None
    from accelerate import Accelerator

    accelerator = Accelerator(log_with=list(trackers.names), project_dir=folder, cpu=on_cpu)
    config = {name: value if isinstance(value, bool | int | float | str) else str(value) for name, value in trackers.config.items()}
    accelerator.init_trackers("lugpi", config=config)
    return accelerator
