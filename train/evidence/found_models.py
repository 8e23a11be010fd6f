"""Which rows the finished models of a run are, as their own records tell, whatever they were trained with."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from lugpi_core.fingerprint import flat, hash_file
from train.data.teacher_outputs import WEIGHTS
from train.evidence.rows import ALL, BASELINE, MORE, Terms, model_name, student_name
from train.learning.losses import KD_PRESETS
from train.models.model_folder import finished_folders, is_whole, metrics_of, training_of

# What makes a model another one without making its row another: shown together, models should agree in these.
_SETTINGS = ("flags", "max_length", "corpus", "separator", "text_model", "dtype", "unlabelled")
# What rows may differ in, but not the seeds of one.
_OF_A_ROW = ("tokens", "shares", "teachers_embeddings")


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """The finished models of a run.

    Attributes:
        folders: those that are models of rows, by the models' names.
        others: those that are of no row, or of one that another folder stands for, by name.
    """

    folders: dict[str, Path]
    others: tuple[Path, ...]


def recorded_models(run: Path, columns: Sequence[str]) -> Recorded:
    """Return the finished models of a run. Where several are the same row and seed, the one that is named after it goes before others, and
    these by name. ``columns`` are the image tokens that a student of all teachers has to have."""
    folders: dict[str, Path] = {}
    found = finished_folders(run)
    names = {folder: _model_name(folder, columns) for folder in found}
    for folder in sorted(found, key=lambda one: (one.name != names[one], one.name)):
        if (name := names[folder]) is not None:
            folders.setdefault(name, folder)
    return Recorded(folders=folders, others=tuple(folder for folder in found if folder not in folders.values()))


def recorded_columns(folders: Iterable[Path]) -> set[str]:
    """Return the image tokens that models have read."""
    read = (training_of(folder).get("image_tokens") for folder in folders)
    return {column for column in read if column is not None}


def has_more(found: Recorded) -> bool:
    """Whether any of them is a student that was taught of texts without labels too."""
    return any(training_of(folder).get("unlabelled") is not None for folder in found.folders.values())


def unlike_settings(folders: Mapping[str, Sequence[Path]]) -> dict[str, list[Any]]:
    """Return the settings in which models differ that were to differ in seed and row alone: their values, by words that say whose they are.

    Args:
        folders: of the models, by the names of their rows.
    """
    values: dict[str, list[Any]] = {}
    for row, of_row in folders.items():
        for folder in of_row:
            for name, value in _settings(row, training_of(folder)):
                if value not in values.setdefault(name, []):
                    values[name].append(value)
    return {name: found for name, found in values.items() if len(found) > 1}


def _settings(row: str, made_from: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in flat({name: made_from.get(name) for name in _SETTINGS}):
        # Rows without more texts stand beside some with.
        if name != "flags.seed" and (name, value) != ("unlabelled", None):
            yield f"these models differ in {name}", value
    for name, value in flat({name: made_from.get(name) for name in _OF_A_ROW}):
        yield f"the models of {row} differ in {name}", value
    # A student and its control, too, are to be taught with one loss.
    left_out = next((f" named {ending}" for ending in ("-ce", "-l2") if row.endswith(ending)), "")
    for name, value in flat(made_from.get("distillation", {})):
        yield f"the students{left_out} differ in {name}", value


def _model_name(folder: Path, columns: Sequence[str]) -> str | None:
    made_from = training_of(folder)
    row = _row(folder, made_from, columns)
    return None if row is None else model_name(row, made_from["flags"]["seed"])


def _row(folder: Path, made_from: Mapping[str, Any], columns: Sequence[str]) -> str | None:
    match made_from["command"]:
        case "baseline":
            return BASELINE
        case "images":
            return f"images-{made_from['image_tokens']}"
        case "teacher":
            return f"teacher-{_shown(made_from)}"
    return _student_row(folder, made_from, columns)


def _shown(made_from: Mapping[str, Any]) -> str:
    return str(made_from["image_tokens"] if made_from["privileged"] == "images" else made_from["privileged"])


def _student_row(folder: Path, made_from: Mapping[str, Any], columns: Sequence[str]) -> str | None:
    """Return a student's row; None for one that no row has: with fewer layers, unequal teachers or some of many, teachers that are gone or
    were trained anew, and of those that were taught of more texts, all with another loss or several teachers."""
    metrics = metrics_of(folder)
    taught_by = [folder.parent / teacher["name"] for teacher in metrics["teachers"]]
    if made_from["layers"] is not None or not all(is_whole(one) for one in taught_by):
        return None
    if "teachers" in made_from and made_from["teachers"] != [_weights_hash(one) for one in taught_by]:
        return None  # other models stand there under their names
    seen = [_shown(training_of(one)) for one in taught_by]
    terms = _terms(made_from["distillation"], metrics)
    if made_from["unlabelled"] is not None:
        return f"student-{seen[0]}{MORE}" if len(seen) == 1 and terms == "both" and seen[0] in (*columns, "none") else None
    if len(seen) > 1:
        has_equal_shares = len({round(share, 6) for share in made_from["shares"]}) == 1
        return f"student-{ALL}" if has_equal_shares and terms == "both" and sorted(seen) == sorted(columns) else None
    return None if terms is None else student_name(seen[0], terms)


def _weights_hash(teacher: Path) -> str:
    weights = teacher / WEIGHTS
    return _hash_of(weights, weights.stat().st_mtime_ns)


@lru_cache(maxsize=256)
def _hash_of(weights: Path, changed_ns: int) -> str:
    """Return a hash of weights; one teacher has many students, and is read once while it stays as it is (``changed_ns``)."""
    return hash_file(weights)


def _terms(weights: Mapping[str, Any], metrics: Mapping[str, Any]) -> Terms | None:
    """Return which of its soft terms a student was taught with: as the tables that trained it say, else all of its preset's but those whose
    weight is 0; None where none is left."""
    if metrics.get("terms") is not None:
        terms: Terms = metrics["terms"]
        return terms
    preset = KD_PRESETS[metrics["config"]["kd_preset"]]
    left_out = {name for name in ("alpha", "beta") if getattr(preset, name) and not weights[name]}
    if not weights["alpha"] and not weights["beta"]:
        return None
    return "l2" if "alpha" in left_out else "ce" if "beta" in left_out else "both"
