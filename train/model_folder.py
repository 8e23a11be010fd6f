"""The folder of one trained model: already done, to be continued, or refused because it was made otherwise.

``training.json`` is written when training starts and says what decides the result; ``metrics.json`` is written last and means the folder
is whole.
"""

from pathlib import Path
from typing import Any

from lugpi_core.errors import InputError
from lugpi_core.files import make_folder, read_json, sweep, write_json
from lugpi_core.fingerprint import Fingerprint, differences
from train.checkpoint import has_checkpoint, remove_checkpoints
from train.metrics import PREDICTIONS
from train.teacher_outputs import WEIGHTS

METRICS = "metrics.json"
TRAINING = "training.json"


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
        if unlike := differences(read_json(started), fingerprint):
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
    return read_json(folder / METRICS) if whole else None


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
        if not differences(read_json(one / TRAINING), fingerprint):
            return one
    return None


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
    metrics: dict[str, Any] = read_json(folder / METRICS)
    return metrics
