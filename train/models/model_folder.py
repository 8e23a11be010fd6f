"""The folder of one trained model: already done, to be continued, or refused because it was made otherwise.

``training.json`` is written when training starts and says what decides the result; ``metrics.json`` is written last and means the folder
is whole.
"""

from pathlib import Path
from typing import Any

from lugpi_core.errors import InputError
from lugpi_core.files import make_folder, read_json, sweep, write_json
from lugpi_core.fingerprint import Fingerprint, differences
from train.data.teacher_outputs import WEIGHTS
from train.learning.checkpoint import has_checkpoint, remove_checkpoints
from train.models.predictions import PREDICTIONS

METRICS = "metrics.json"
TRAINING = "training.json"
# What others read of a finished model's two records, and what they read of one kind of model beside.
_OF_METRICS = {"command", "accuracy", "examples", "history", "peak_memory", "teachers", "seed", "notice", "config"}
_OF_TRAINING = {"command", "flags"}
_OF_KIND = {
    "images": {"image_tokens"},
    "teacher": {"image_tokens", "privileged"},
    "student": {"distillation", "layers", "shares", "unlabelled"},
}


def finished_metrics(folder: Path, fingerprint: Fingerprint, *, remedy: str = "give another --name") -> dict[str, Any] | None:
    """Return the metrics of a folder that is whole, or None where training has to start or go on; records the fingerprint of a new folder.

    ``remedy`` is what to do, beside repeating the settings, where the folder is another model's.

    Raises:
        InputError: the folder holds a model that was trained otherwise; the fields that differ are named.
    """
    sweep(make_folder(folder))
    started = folder / TRAINING
    whole = is_whole(folder)
    if whole and not started.is_file():
        raise InputError(got=f"{folder}, a finished model without {TRAINING}", expected=f"what decided it in {TRAINING}", do=remedy)
    if started.is_file() and (whole or has_checkpoint(folder)):
        if unlike := differences(_record(started, set()), fingerprint):
            raise InputError(
                got=f"{folder}, a model that was trained otherwise: {'; '.join(unlike)}",
                expected="the same settings as that model's",
                do=f"repeat them, or {remedy}",
            )
    else:
        write_json(started, fingerprint)
    if whole:
        remove_checkpoints(folder)  # of a training that was killed after its last word
    else:
        # Old figures would call the folder whole as soon as new weights and predictions stand in it.
        (folder / METRICS).unlink(missing_ok=True)
    return _record(folder / METRICS, set()) if whole else None


def is_whole(folder: Path) -> bool:
    """Whether a folder holds a finished model."""
    return all((folder / name).is_file() for name in (METRICS, WEIGHTS, PREDICTIONS))


def finished_folders(run: Path) -> list[Path]:
    """Return the folders of the run's finished models whose settings are on record, by name."""
    return sorted(path.parent for path in run.glob(f"*/{TRAINING}") if is_whole(path.parent))


def find_finished(folder: Path, fingerprint: Fingerprint) -> Path | None:
    """Return a finished folder beside ``folder``, or itself, with the model of that fingerprint, whatever its name; itself before others,
    these by name. None where there is none."""
    for one in sorted(finished_folders(folder.parent), key=lambda found: (found != folder, found.name)):
        if not differences(_record(one / TRAINING, set()), fingerprint):
            return one
    return None


def metrics_of(folder: Path) -> dict[str, Any]:
    """Return the metrics of a finished model.

    Raises:
        InputError: they are damaged.
    """
    return _record(folder / METRICS, _OF_METRICS)


def training_of(folder: Path) -> dict[str, Any]:
    """Return what decided a finished model.

    Raises:
        InputError: the record is damaged.
    """
    found = _record(folder / TRAINING, _OF_TRAINING)
    return _record(folder / TRAINING, _OF_KIND.get(found["command"], set()))


def _record(path: Path, names: set[str]) -> dict[str, Any]:
    found = read_json(path)
    if not isinstance(found, dict) or names - found.keys():
        lacking = ", ".join(sorted(names - found.keys())) if isinstance(found, dict) else "any name in it"
        remedy = "remove the model's folder and train it again"
        raise InputError(got=f"{path} without {lacking}", expected="the file as lugpi wrote it", do=remedy)
    return found


def finish(folder: Path, metrics: dict[str, Any]) -> None:
    """Write the metrics, which makes the folder whole, and remove what only a continued training would need."""
    write_json(folder / METRICS, metrics)
    remove_checkpoints(folder)


def require_finished(folder: Path, *, what: str, command: str) -> dict[str, Any]:
    """Return the metrics of a model that another step needs.

    Raises:
        InputError: it is not there or not finished; ``command`` makes it.
    """
    if not (folder / METRICS).is_file():
        raise InputError(got=f"no finished {what} in {folder}", expected="one", do=f"run {command} first")
    return metrics_of(folder)
