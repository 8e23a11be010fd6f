"""A process that trains models of tables for the one that started it (``side_by_side.py``), one after another.

It reads frames of pickles from stdin, of its own parent only: a ``Start``, then a ``Job`` for each model, and an empty frame when there is
no more. For each job it writes an ``Answer`` to stdout as a line of JSON. If stdin ends before, the parent is gone: the process stops as it
does at SIGTERM, with a checkpoint.
"""

import json
import os
import pickle
import queue
import signal
import sys
import threading
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from lugpi_core.command_line import show_warnings_in_one_line
from lugpi_core.errors import DISK_FAULTS, EXIT_BAD_INPUT, EXIT_OK, EXIT_SIGNAL, InputError
from lugpi_core.runtime.libraries import prepare_libraries, start_up, this_process_is_ours
from lugpi_core.runtime.stopping import Stopped, terminated_like_interrupted
from train.evidence.outcome import FinishedModel
from train.evidence.rows import PlannedModel

if TYPE_CHECKING:
    from train.evidence.schedule import Experiment

_LENGTH_BYTES = 8


@dataclass(frozen=True, kw_only=True)
class Start:
    """What every model is trained from, and how many threads the process computes with."""

    experiment: "Experiment"
    threads: int


@dataclass(frozen=True, kw_only=True)
class Job:
    """A model to find or to train, with the folders of its teachers by their names."""

    model: PlannedModel
    folders: Mapping[str, Path]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What became of a job.

    Attributes:
        finished: what became of the model; None if a process of another command trains it.
        error: the parts of an InputError, which ends the process.
        disk_fault: errno, message and file name of an error of the disk, which ends the process.
    """

    finished: FinishedModel | None = None
    error: Mapping[str, str] | None = None
    disk_fault: tuple[int, str, str] | None = None

    def to_line(self) -> str:
        """Return it as a line of JSON."""
        return json.dumps(asdict(self), default=os.fspath) + "\n"

    @classmethod
    def of_line(cls, line: str | bytes) -> "Answer":
        """Return the answer in a line of JSON."""
        parts: dict[str, Any] = json.loads(line)
        if model := parts.pop("finished", None):
            return cls(finished=FinishedModel(**{**model, "folder": None if model["folder"] is None else Path(model["folder"])}))
        return cls(**parts)


def write_frame(stream: IO[bytes], frame: bytes) -> None:
    """Write bytes so that ``work`` finds their end; none of them means that there is no more."""
    stream.write(len(frame).to_bytes(_LENGTH_BYTES, "big") + frame)
    stream.flush()


def work() -> int:
    """Do the jobs that arrive on stdin; return the exit status."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever a library prints, also in C
    try:
        with warnings.catch_warnings(), terminated_like_interrupted():
            show_warnings_in_one_line()
            frames = _frames(sys.stdin.fileno())
            prepare_libraries()
            start: Start = pickle.loads(frames.get())
            return _do_jobs(start, frames, answers)
    except KeyboardInterrupt as stop:
        return EXIT_SIGNAL + (stop.signal_number if isinstance(stop, Stopped) else signal.SIGINT)


def _frames(descriptor: int) -> "queue.SimpleQueue[bytes]":
    """Return a queue of the frames that arrive on a descriptor, the empty one last. They are read while libraries are imported, so that the
    parent need not wait. If it ends before, this process gets a SIGTERM."""
    frames: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    main = threading.main_thread().ident
    assert main is not None

    def read_exactly(count: int) -> bytes:
        # Not through sys.stdin: a thread that waits in a buffered stream makes the interpreter abort when it ends.
        frame = bytearray()
        while len(frame) < count and (part := os.read(descriptor, count - len(frame))):
            frame += part
        return bytes(frame)

    def read() -> None:
        while len(header := read_exactly(_LENGTH_BYTES)) == _LENGTH_BYTES:
            length = int.from_bytes(header, "big")
            frame = read_exactly(length)
            if len(frame) < length:
                break
            frames.put(frame)
            if not frame:
                return
        signal.pthread_kill(main, signal.SIGTERM)  # to the thread that waits, which a signal to the process may not wake

    threading.Thread(target=read, daemon=True).start()
    return frames


def _do_jobs(start: Start, frames: "queue.SimpleQueue[bytes]", answers: Any) -> int:
    this_process_is_ours()
    with start_up():
        import torch

        from train.evidence.schedule import finish_model
        from train.learning.progress import without_bars

    torch.set_num_threads(start.threads)
    with without_bars():
        while frame := frames.get():
            job: Job = pickle.loads(frame)
            try:
                finished = finish_model(start.experiment, job.model, job.folders)
            except InputError as error:
                _send(answers, Answer(error=error.parts))
                return EXIT_BAD_INPUT
            except OSError as error:
                if error.errno not in DISK_FAULTS:
                    raise
                fault = (error.errno, str(error.strerror), str(error.filename2 or error.filename or "a file"))
                _send(answers, Answer(disk_fault=fault))
                return EXIT_BAD_INPUT
            _send(answers, Answer(finished=finished))
    return EXIT_OK


def _send(answers: Any, answer: Answer) -> None:
    answers.write(answer.to_line())
    answers.flush()
