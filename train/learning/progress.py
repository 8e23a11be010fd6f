"""What a training says while it runs: a progress bar, ``log.jsonl`` beside the model, and trackers where they are asked for.

A figure that lies on the device is copied without waiting for it and read one report later, so that reporting costs no step its pace.
"""

import importlib.util
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lugpi_core.errors import InputError
from lugpi_core.files import write_text
from train.learning.distributed import Processes

LOG = "log.jsonl"
EVERY_STEPS = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class _Noted:
    """A moment of the training whose loss is on its way to the host."""

    step: int
    examples: int
    learning_rate: float
    at_s: float
    loss_sum: torch.Tensor
    arrived: Any


class Reports:
    """Where figures go. Only the first process has any.

    Args:
        folder: of the model.
        bar: a progress bar that counts examples.
        tracker: accelerate's, or None.
        log: ``log.jsonl``, open for appending, or None in every process but the first.
    """

    def __init__(self, folder: Path, bar: Any, tracker: Any, log: Any) -> None:
        self._folder, self._bar, self._tracker, self._log = folder, bar, tracker, log
        self._counted = 0  # examples of the epoch that the bar shows
        self._last = (0, 0.0, time.perf_counter())  # examples and sum of losses of the epoch as last reported, and when
        self._noted: _Noted | None = None
        self._shown: dict[str, str] = {}

    def begin_epoch(self, examples: int, loss_sum: float) -> None:
        """Start to count an epoch, of which that much is done already."""
        self._counted = examples
        self._last = (examples, loss_sum, time.perf_counter())

    def step(self, step: int, examples: int, learning_rate: float, loss_sum: torch.Tensor) -> None:
        """Take note of a step, every 50th.

        Args:
            step: its number, from 1.
            examples: of the epoch so far.
            learning_rate: of this step.
            loss_sum: sum of the losses of these examples; stays on its device.
        """
        if step % EVERY_STEPS:
            return
        self._flush()
        self._count(examples)
        self._noted = _Noted(
            step=step,
            examples=examples,
            learning_rate=learning_rate,
            at_s=time.perf_counter(),
            loss_sum=loss_sum.detach().to("cpu", copy=True, non_blocking=True),
            arrived=_event(loss_sum.device),
        )
        if loss_sum.device.type == "cpu":
            self._flush()

    def epoch(self, record: dict[str, Any], step: int, examples: int) -> None:
        """Report an epoch that is over."""
        self._flush()
        self._count(examples)
        self._shown |= {"validation": f"{record['validation_accuracy']:.4f}"}
        self._bar.set_postfix(self._shown)
        self._write({"step": step, **record})

    def _count(self, examples: int) -> None:
        self._bar.update(examples - self._counted)
        self._counted = examples

    def _flush(self) -> None:
        noted, self._noted = self._noted, None
        if noted is None:
            return
        if noted.arrived is not None:
            noted.arrived.synchronize()  # long past: it was recorded a report ago
        examples, loss_sum, at_s = self._last
        self._last = (noted.examples, float(noted.loss_sum), noted.at_s)
        seen = noted.examples - examples
        loss = (self._last[1] - loss_sum) / seen if seen else 0.0
        self._shown |= {"loss": f"{loss:.4f}"}
        self._bar.set_postfix(self._shown, refresh=False)
        rate = seen / max(noted.at_s - at_s, 1e-9)
        if math.isfinite(loss):  # JSON has no word for the others, and training will end on them
            figures = {"loss": round(loss, 6), "learning_rate": noted.learning_rate, "examples_per_s": round(rate, 2)}
            self._write({"step": noted.step, **figures})

    def _write(self, figures: dict[str, Any]) -> None:
        if self._log is not None:
            self._log.write(json.dumps(figures) + "\n")
            self._log.flush()
        if self._tracker is not None:
            self._tracker.log({name: value for name, value in figures.items() if name != "step"}, step=figures["step"])


@contextmanager
def reports(
    folder: Path, processes: Processes, *, examples: tuple[int, int], step: int, track: Sequence[str], config: dict[str, Any]
) -> Iterator[Reports]:
    """Yield where figures go for as long as the block lasts; lines of ``log.jsonl`` that belong behind ``step`` are taken back.

    Args:
        folder: of the model.
        processes: the first one reports.
        examples: how many are learnt from already, and of all epochs.
        step: the steps that are done.
        track: names of trackers.
        config: what the trackers are told about the run.

    Raises:
        InputError: a tracker is not installed.
    """
    require_trackers(track)
    tracker = _tracker(folder, track, config, on_cpu=processes.device == "cpu")  # in every process, for accelerate counts them
    if not processes.is_first:
        yield Reports(folder, _bar(folder, examples, disable=True), None, None)
        return
    cut_log(folder / LOG, step)
    with (folder / LOG).open("a", encoding="utf-8") as log, _bar(folder, examples) as bar:
        try:
            yield Reports(folder, bar, tracker, log)
        finally:
            if tracker is not None:
                for one in tracker.trackers:  # accelerate's own end_training would also part the processes, which go on
                    one.finish()


def require_trackers(names: Sequence[str]) -> None:
    """Raise InputError unless the packages of the trackers are installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise InputError(got=f"--track {name}", expected="that package installed", do=f"pip install {name}")


def cut_log(path: Path, step: int) -> None:
    """Remove from a log what was written after ``step``, and a line that was not written to its end: it will be said again."""
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


def _tracker(folder: Path, names: Sequence[str], config: dict[str, Any], *, on_cpu: bool) -> Any:
    if not names:
        return None
    from accelerate import Accelerator

    accelerator = Accelerator(log_with=list(names), project_dir=folder, cpu=on_cpu)
    accelerator.init_trackers("lugpi", config={name: _plain(value) for name, value in config.items()})
    return accelerator


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str) else str(value)


def _bar(folder: Path, examples: tuple[int, int], *, disable: bool = False) -> Any:
    from tqdm import tqdm

    # In a log file a line every ten seconds is enough.
    interval_s = 0.1 if sys.stderr.isatty() else 10
    done, total = examples
    return tqdm(total=total, initial=done, unit="example", desc=folder.name, mininterval=interval_s, disable=disable)
