"""The folder of one trained model: finished, to be resumed, or refused because its settings differ; and the lock on it.

``training.json`` is written when training starts and records everything that decides the result. ``metrics.json`` is written last, so that
a folder with it is complete.
"""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lugpi_core.command_line import say
from lugpi_core.errors import InputError
from lugpi_core.files import is_writable, make_folder, read_json, sweep, write_json
from lugpi_core.fingerprint import Fingerprint, differences
from lugpi_core.remote.address import address_of, local_folder
from lugpi_core.remote.results import begin_folder, folders_there, pull_folder, push_folder
from lugpi_core.remote.run import open_run, remote_of
from train.file_names import HEAD, METRICS, PREDICTIONS, TRAINING, WEIGHTS
from train.learning.checkpoint import CHECKPOINTS, is_begun, remove_checkpoints
from train.options.settings import Optimization

LOCKS = ".locks"
_WITHOUT_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP)
# The fields that are read of a finished model's two records, and of those of one kind of model.
_OF_METRICS = {"command", "examples", "history", "peak_memory", "teachers", "seed", "notice", "config"}
_OF_TRAINING = {"command", "flags"}
_OF_KIND = {
    "images": {"image_tokens"},
    "teacher": {"image_tokens", "privileged"},
    "student": {"distillation", "layers", "shares", "unlabelled"},
}


def finished_metrics(folder: Path, fingerprint: Fingerprint, *, remedy: str = "give another name (--name)") -> dict[str, Any] | None:
    """Return the metrics of a finished folder, or None if training has to start or to resume; records the fingerprint of a new folder.

    ``remedy`` is what to do, other than repeating the settings, if the folder is another model's.

    Raises:
        InputError: the folder contains a model trained with other settings; the fields that differ are named.
    """
    synchronize(folder)
    started = folder / TRAINING
    whole = is_whole(folder)
    is_fixed = whole and not is_writable(folder)
    if not is_fixed:
        sweep(make_folder(folder))
    if whole and not started.is_file():
        raise InputError(got=f"{folder}, a finished model without {TRAINING}", expected=f"what decided it in {TRAINING}", do=remedy)
    if started.is_file() and (whole or is_begun(folder)):
        if unlike := _differences(_record(started, set()), fingerprint):
            raise InputError(
                got=f"{folder}, a model trained with other settings: {'; '.join(unlike)}",
                expected="the same settings as that model's",
                do=f"repeat them, or {remedy}",
            )
    else:
        shutil.rmtree(folder / HEAD, ignore_errors=True)  # of a first part that ended before its first checkpoint
        write_json(started, fingerprint)
    if whole and not is_fixed:
        remove_checkpoints(folder)  # of a training that was killed just before it removed them
    if not whole:
        # Old metrics would mark the folder as finished as soon as new weights and predictions are in it.
        (folder / METRICS).unlink(missing_ok=True)
        begin_folder(folder, TRAINING)
    return _record(folder / METRICS, set()) if whole else None


def _differences(found: Fingerprint, wanted: Fingerprint) -> list[str]:
    """Return ``differences``; a setting that only one of the two records had its default in the other."""
    defaults = asdict(Optimization())
    names = {name for each in (found, wanted) for name in each.get("flags", {}) if name in defaults}
    return differences(*({**each, "flags": {name: defaults[name] for name in names} | each.get("flags", {})} for each in (found, wanted)))


def is_whole(folder: Path) -> bool:
    """Whether a folder contains a finished model."""
    return all((folder / name).is_file() for name in (METRICS, WEIGHTS, PREDICTIONS))


def finished_folders(run: Path) -> list[Path]:
    """Return the folders of the run's finished models whose settings are recorded, by name; those in the run's object store too."""
    for name in {*folders_there(run), *(path.parent.name for path in run.glob(f"*/{TRAINING}") if remote_of(run))}:
        synchronize(run / name)
    return sorted(path.parent for path in run.glob(f"*/{TRAINING}") if is_whole(path.parent))


def find_finished(folder: Path, fingerprint: Fingerprint) -> Path | None:
    """Return the finished folder in the same run with the model of that fingerprint, whatever its name, or None: ``folder`` itself, else
    the first by name."""
    for candidate in sorted(finished_folders(folder.parent), key=lambda path: (path != folder, path.name)):
        if not differences(_record(candidate / TRAINING, set()), fingerprint):
            return candidate
    return None


def metrics_of(folder: Path) -> dict[str, Any]:
    """Return the metrics of a finished model.

    Raises:
        InputError: they are damaged.
    """
    record = _record(folder / METRICS, _OF_METRICS)
    # Of another task than single-label the record names its primary metric.
    return _record(folder / METRICS, {str(record.get("metric", "accuracy"))})


def training_of(folder: Path) -> dict[str, Any]:
    """Return the fingerprint of a finished model.

    Raises:
        InputError: the record is damaged.
    """
    record = _record(folder / TRAINING, _OF_TRAINING)
    return _record(folder / TRAINING, _OF_KIND.get(record["command"], set()))


def _record(path: Path, names: set[str]) -> dict[str, Any]:
    record = read_json(path)
    if not isinstance(record, dict) or names - record.keys():
        lacking = ", ".join(sorted(names - record.keys())) if isinstance(record, dict) else "any name in it"
        remedy = "remove the model's folder and train it again"
        raise InputError(got=f"{path} without {lacking}", expected="the file as lugpi wrote it", do=remedy)
    return record


def finish(folder: Path, metrics: dict[str, Any]) -> None:
    """Write the metrics, which marks the folder as finished, and remove the checkpoints."""
    write_json(folder / METRICS, metrics)
    remove_checkpoints(folder)
    synchronize(folder)


def synchronize(folder: Path) -> None:
    """Let a finished model be here and in the run's object store, if it is in one of them. Does nothing in a run that is only local.

    Raises:
        InputError: the two have different models of that name.
    """
    if remote_of(folder.parent) is None:
        return
    if is_whole(folder):
        _send(folder, (folder / METRICS).stat().st_mtime_ns)
    else:
        pull_folder(folder, last=[METRICS])


def model_at(place: Path, scratch: Path | None) -> Path:
    """Return the local folder of a model; for one in an object store, ``s3://BUCKET/RUN/MODEL``, after bringing it.

    Raises:
        InputError: as ``open_run``; or there is no finished model.
    """
    address = address_of(place)
    if address is None:
        return local_folder(place, scratch)
    folder = open_run(place.parent, scratch) / place.name
    synchronize(folder)
    if not is_whole(folder):
        raise InputError(
            got=f"no finished model in {address}", expected="one that python -m train sent there", do="name its folder: RUN-DIR/NAME"
        )
    return folder


@lru_cache(maxsize=1024)
def _send(folder: Path, written_ns: int) -> None:
    """Send a finished model once in a process."""
    push_folder(folder, last=[METRICS], decisive=[WEIGHTS, PREDICTIONS, TRAINING], without=[CHECKPOINTS])


def require_finished(folder: Path, *, what: str, command: str) -> dict[str, Any]:
    """Return the metrics of a model that another step needs.

    Raises:
        InputError: it is missing or unfinished; ``command`` trains it.
    """
    synchronize(folder)
    if not (folder / METRICS).is_file():
        raise InputError(got=f"no finished {what} in {folder}", expected="one", do=f"run {command} first")
    return metrics_of(folder)


@contextmanager
def model_lock(run: Path, model: str) -> Iterator[bool]:
    """Hold a model's lock for the block and yield True; yield False at once if another process holds it.

    The lock is on ``<run>/.locks/<model>.lock``. The operating system releases it when its holder dies. The empty files stay: a lock on a
    file that someone removed would exclude no other process.
    """
    with folder_lock(make_folder(run / LOCKS) / f"{model}.lock", folder=run) as is_ours:
        yield is_ours


@contextmanager
def folder_lock(path: Path, *, folder: Path) -> Iterator[bool]:
    """Hold the lock file ``path`` of a folder for the block and yield True; yield False at once if another process holds it.

    On a file system without locks it yields True, with a warning.
    """
    lock = FileLock(path, timeout=0)
    is_ours = True
    try:
        lock.acquire()
    except Timeout:
        is_ours = False
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            raise
        say(f"warning: {folder} is on a file system without locks: run one command on it at a time")
    try:
        yield is_ours
    finally:
        lock.release()  # does nothing if it was not acquired


@contextmanager
def exclusive(run: Path, model: str) -> Iterator[None]:
    """Hold a model's lock for the block. A finished model in a run that cannot be written to needs none: nobody trains it.

    Raises:
        InputError: another process holds it.
    """
    if is_whole(run / model) and not is_writable(run):
        yield
        return
    with model_lock(run, model) as is_ours:
        if not is_ours:
            raise InputError(
                got=f"{run / model}, which another command is training",
                expected="one command per model",
                do="wait for it, or give another name (--name)",
            )
        yield
