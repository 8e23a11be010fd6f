"""Which rows the finished models of a run are, as their own records tell, whatever they were trained with."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lugpi_core.files import read_json
from lugpi_core.fingerprint import flat
from train.model_folder import METRICS, TRAINING, finished_folders
from train.rows import ALL, BASELINE, MORE, model_name

# What makes a model another one without making its row another: shown together, models should agree in these.
_SETTINGS = ("flags", "max_length", "corpus", "text_model", "dtype", "unlabelled")


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
    read = (read_json(folder / TRAINING).get("image_tokens") for folder in folders)
    return {column for column in read if column is not None}


def has_more(found: Recorded) -> bool:
    """Whether any of them is a student that was taught of texts without labels too."""
    return any(read_json(folder / TRAINING).get("unlabelled") is not None for folder in found.folders.values())


def unlike_settings(folders: Sequence[Path]) -> dict[str, list[Any]]:
    """Return the settings in which models differ that were to differ in seed and row alone: their values, by the settings' names."""
    values: dict[str, list[Any]] = {}
    for folder in folders:
        made_from = read_json(folder / TRAINING)
        for name, value in flat({name: made_from.get(name) for name in _SETTINGS}):
            if (name, value) == ("unlabelled", None):  # rows without more texts, beside some with
                continue
            if name != "flags.seed" and value not in values.setdefault(name, []):
                values[name].append(value)
    return {name: found for name, found in values.items() if len(found) > 1}


def _model_name(folder: Path, columns: Sequence[str]) -> str | None:
    made_from = read_json(folder / TRAINING)
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
    """Return a student's row; None for one that no row has: with fewer layers, unequal teachers or some of many, and of those that were
    taught of more texts, all with another loss or several teachers."""
    taught_by = [folder.parent / teacher["name"] / TRAINING for teacher in read_json(folder / METRICS)["teachers"]]
    if made_from["layers"] is not None or not all(path.is_file() for path in taught_by):
        return None
    seen = [_shown(read_json(path)) for path in taught_by]
    soft = {name for name in ("alpha", "beta") if made_from["distillation"][name]}
    if made_from["unlabelled"] is not None:
        return f"student-{seen[0]}{MORE}" if len(seen) == 1 and len(soft) == 2 and seen[0] in (*columns, "none") else None
    if len(seen) > 1:
        has_equal_shares = len({round(share, 6) for share in made_from["shares"]}) == 1
        return f"student-{ALL}" if has_equal_shares and len(soft) == 2 and sorted(seen) == sorted(columns) else None
    terms = {("alpha",): "-ce", ("beta",): "-l2", ("alpha", "beta"): ""}.get(tuple(sorted(soft)))
    return None if terms is None else f"student-{seen[0]}{terms}"
