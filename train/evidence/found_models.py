"""Which rows of the tables the finished models of a run belong to, derived from their own records, whatever trained them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from lugpi_core.command_line import say
from lugpi_core.corpora.corpus import Corpus
from lugpi_core.errors import InputError, nearest
from lugpi_core.fingerprint import agree, flat, hash_weights_file
from lugpi_core.store.layout import CANDIDATES, PROMPT_TEXT
from lugpi_core.store.reader import columns_of, image_columns_of
from train.evidence.rows import (
    ALL,
    BASELINE,
    ENSEMBLE_IN_NAME,
    LEARNT_ENDING,
    MORE,
    Row,
    clip_first,
    is_without_images,
    member_seeds,
    model_name,
    rows_of,
    student_name,
    teacher_name,
)
from train.file_names import WEIGHTS
from train.learning.losses import KD_PRESETS, Terms
from train.models.model_folder import finished_folders, is_whole, metrics_of, training_of
from train.options.tables import run_of

# Settings that make another model but not another row: all models that are shown together should agree in these.
_SHARED_SETTINGS = ("flags", "max_length", "corpus", "separator", "text_model", "dtype", "unlabelled")
# Settings in which rows may differ, but not the seeds of one row.
_ROW_SETTINGS = ("tokens", "shares", "teachers_embeddings", "several_images", "redraw")


@dataclass(frozen=True, kw_only=True)
class FoundModels:
    """The finished models of a run.

    Attributes:
        folders: of the models that belong to rows, by the models' names.
        others: folders of models that belong to no row, or to one that already has a model of that seed; by name.
        members: folders of the teachers of ensembles under other seeds than their students', by the models' names; no rows show them.
    """

    folders: dict[str, Path]
    others: tuple[Path, ...]
    members: Mapping[str, Path] = field(default_factory=dict)

    @property
    def every_folder(self) -> dict[str, Path]:
        """Those of rows and members."""
        return {**self.folders, **self.members}

    @property
    def has_unlabelled(self) -> bool:
        """Whether any of the rows' models is a student that was distilled on unlabelled texts too."""
        return any(training_of(folder).get("unlabelled") is not None for folder in self.folders.values())

    @property
    def folds(self) -> set[int]:
        """On how many folds teachers among the rows' models were cross-fitted."""
        return {folds["count"] for folder in self.folders.values() if (folds := training_of(folder).get("folds")) is not None}

    @property
    def ensembles(self) -> set[int]:
        """Of how many teachers of a kind students among the rows' models were distilled."""
        return {int(found[1]) for name in self.folders if (found := ENSEMBLE_IN_NAME.search(name)) is not None}


def folders_of_corpus(run: Path, corpus: Corpus | str) -> list[Path]:
    """Return the folders of a run's finished models that were trained on a corpus, by name.

    Args:
        run: folder of the run.
        corpus: its fingerprint must be the models'; if only its name is given, that must be the one that they record.

    Raises:
        InputError: the run has finished models, but all are of other corpora.
    """
    finished = finished_folders(run)
    name, other = (corpus, "") if isinstance(corpus, str) else (corpus.name, " with other texts, labels or splits")
    names = {folder: str(metrics_of(folder).get("dataset", name)) for folder in finished}
    if isinstance(corpus, str):
        folders = [folder for folder in finished if names[folder] == name]
    else:
        folders = [folder for folder in finished if training_of(folder).get("corpus") == corpus.fingerprint()]
    left_out = [folder for folder in finished if folder not in folders]
    corpora = ", ".join(sorted({names[folder] + (other if names[folder] == name else "") for folder in left_out}))
    if left_out and not folders:
        raise InputError(
            got=f"{run}, whose finished models were trained on {corpora}",
            expected=f"models of {name}" + (" as it is loaded now" if other else ""),
            do="repeat the corpus and its settings that they were trained with, or name another run",
        )
    if left_out:
        say(f"note: not counted, because trained on {corpora}: {', '.join(folder.name for folder in left_out)}")
    return folders


def found_models(finished: Sequence[Path], columns: Sequence[str]) -> FoundModels:
    """Return which rows a run's finished models belong to. Where several are of one row and seed, the one that is named after it is taken,
    else the first by name.

    Args:
        finished: folders of the finished models, by name.
        columns: the image tokens that a student of all teachers must have.
    """
    folders: dict[str, Path] = {}
    names = {folder: _model_name(folder, columns) for folder in finished}
    for folder in sorted(finished, key=lambda folder: (folder.name != names[folder], folder.name)):
        if (name := names[folder]) is not None:
            folders.setdefault(name, folder)
    return models_of_rows(folders, tuple(folder for folder in finished if folder not in folders.values()))


def rows_of_found(
    run: Path,
    columns: Sequence[str],
    found: FoundModels,
    *,
    has_more: bool = False,
    folds: int | None = None,
    ensemble: int | None = None,
) -> tuple[Row, ...]:
    """Return the rows that a run's finished models may have, and those that are asked for though no model of them is finished.

    Args:
        run: folder of the run.
        columns: the image tokens that get rows.
        found: the finished models.
        has_more: whether rows of students on unlabelled texts are asked for.
        folds, ensemble: numbers of folds and of teachers that are asked for; None = none.
    """
    return rows_of(
        columns,
        has_more=has_more or found.has_unlabelled,
        has_vectors=has_text_vectors(run, [*found.every_folder.values(), *found.others]),
        folds=sorted(found.folds | ({folds} if folds else set())),
        ensembles=sorted(found.ensembles | ({ensemble} if ensemble else set())),
    )


def models_of_rows(folders: Mapping[str, Path], others: tuple[Path, ...] = ()) -> FoundModels:
    """Return finished models with the other teachers of ensembles apart from those of the rows.

    Args:
        folders: of models of rows, by the models' names.
        others: folders of models that belong to no row.
    """
    members = _members(folders)
    shown = {name: folder for name, folder in folders.items() if name not in members}
    return FoundModels(folders=shown, others=others, members=members)


def _members(folders: Mapping[str, Path]) -> dict[str, Path]:
    """Return the teachers of ensembles by name, but for those of a seed with which other models than teachers were trained too."""
    ensembles = [metrics_of(folder) for name, folder in folders.items() if ENSEMBLE_IN_NAME.search(name)]
    of_ensembles = {teacher["name"] for metrics in ensembles for teacher in metrics["teachers"]}
    seeds = {metrics_of(folder)["seed"] for name, folder in folders.items() if not name.startswith("teacher-")}
    return {name: folder for name, folder in folders.items() if folder.name in of_ensembles and metrics_of(folder)["seed"] not in seeds}


def columns_of_rows(run: Path, requested: Sequence[str] = (), finished: Sequence[Path] = ()) -> tuple[str, ...]:
    """Return the image tokens that get rows: those requested, or all that the run's store has, CLIP's first.

    Args:
        run: folder of the run, or of its models of a few shots.
        requested: names of columns.
        finished: folders of finished models; the image tokens that they have read count too, though the store may be gone.

    Raises:
        InputError: a requested column does not exist.
    """
    store = run_of(run) / "tokens"
    available = set(image_columns_of(store))
    available |= {column for folder in finished if (column := training_of(folder).get("image_tokens")) not in (None, PROMPT_TEXT)}
    for column in requested:
        if column == PROMPT_TEXT:
            raise InputError(
                got=f"--columns {PROMPT_TEXT}, which are of no image",
                expected="tokens of images" + (f": {', '.join(clip_first(available))}" if available else ""),
                do="leave it out: the text vectors have rows of their own, teacher-text and student-text, where the store has them",
            )
        if column == CANDIDATES:
            expected = f"one of {', '.join(clip_first(available))}" if available else "tokens of images"
            raise InputError(got=f"--columns {CANDIDATES}, which are scores of images and no tokens", expected=expected, do="leave it out")
        if column not in available:
            expected = f"one of {', '.join(clip_first(available))}" if available else "tokens that featurize wrote"
            do = nearest(column, available) if available else "run python -m featurize first"
            raise InputError(got=f"--columns {column}, which {store} does not have", expected=expected, do=do)
    return tuple(requested) or clip_first(available)


def has_text_vectors(run: Path, finished: Sequence[Path] = ()) -> bool:
    """Whether models that read the generator's text vectors have rows: the run's store has these, or a finished teacher read them."""
    return PROMPT_TEXT in columns_of(run_of(run) / "tokens") or any(training_of(folder).get("privileged") == "text" for folder in finished)


def differing_settings(folders: Mapping[str, Sequence[Path]]) -> dict[str, list[Any]]:
    """Return the settings that differ between models although only seed and row should: their values, by a phrase that names them.

    Args:
        folders: of the models, by the names of their rows.
    """
    values: dict[str, list[Any]] = {}
    for row, of_row in folders.items():
        for folder in of_row:
            for name, value in _settings(row, training_of(folder)):
                of_name = values.setdefault(name, [])
                if not any(agree(value, other) for other in of_name):
                    of_name.append(value)
    return {name: of_name for name, of_name in values.items() if len(of_name) > 1}


def _settings(row: str, training: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in flat({name: training.get(name) for name in _SHARED_SETTINGS}):
        # Rows with and without unlabelled texts are shown together.
        if name != "flags.seed" and (name, value) != ("unlabelled", None):
            yield f"these models differ in {name}", value
    # Learnt shares differ as the teachers do.
    of_row = [name for name in _ROW_SETTINGS if not (name == "shares" and "class_shares" in training)]
    for name, value in flat({name: training.get(name) for name in of_row}):
        yield f"the models of {row} differ in {name}", value
    # A student and its control should have the same loss.
    ending = next((f" named {ending}" for ending in ("-ce", "-l2") if row.endswith(ending)), "")
    loss = training.get("distillation", {})
    if loss:  # what is recorded where it is not the default
        loss = {"kd_extra": "none", **({} if is_without_images(row) else {"predict_image": 0.0}), **loss}
    for name, value in flat(loss):
        yield f"the students{ending} differ in {name}", value


def _model_name(folder: Path, columns: Sequence[str]) -> str | None:
    training = training_of(folder)
    row = _row(folder, training, columns)
    return None if row is None else model_name(row, training["flags"]["seed"])


def _row(folder: Path, training: Mapping[str, Any], columns: Sequence[str]) -> str | None:
    match training["command"]:
        case "baseline":
            return BASELINE
        case "images":
            return f"images-{training['image_tokens']}"
        case "teacher":
            return teacher_name(_kind_of_teacher(training), _folds(training))
    return _student_row(folder, training, columns)


def _folds(training: Mapping[str, Any]) -> int | None:
    count: int | None = training.get("folds", {}).get("count")
    return count


def _kind_of_teacher(training: Mapping[str, Any]) -> str:
    return str(training["image_tokens"] if training["privileged"] == "images" else training["privileged"])


def _student_row(folder: Path, training: Mapping[str, Any], columns: Sequence[str]) -> str | None:
    """Return a student's row. None for students that no row has: with fewer layers, with an anchor, with unequal or only some of several
    teachers, with teachers that are gone or were trained again; and of those on unlabelled texts, or of teachers with folds, with another
    loss or teachers of several kinds."""
    metrics = metrics_of(folder)
    teachers = [folder.parent / teacher["name"] for teacher in metrics["teachers"]]
    if training["layers"] is not None or "anchor" in training or not all(is_whole(teacher) for teacher in teachers):
        return None
    if "teachers" in training and not agree(training["teachers"], [_weights_hash(teacher) for teacher in teachers]):
        return None  # the folders have the same names but hold other models
    of_teachers = [training_of(teacher) for teacher in teachers]
    kinds, folds = [_kind_of_teacher(one) for one in of_teachers], _folds(of_teachers[0])
    terms = _terms(training["distillation"], metrics)
    if folds is not None:  # the distance of the embeddings is no part of their loss, unless it is given
        terms = "both" if training["distillation"]["alpha"] else None
    members = len(kinds)
    if members > 1:
        is_learnt = "class_shares" in training
        has_equal_shares = len({round(share, 6) for share in training["shares"]}) == 1
        is_of_all = sorted(kinds) == sorted(columns) and training["unlabelled"] is None
        seeds = member_seeds(training["flags"]["seed"], members)
        is_ensemble = len(set(kinds)) == 1 and tuple(one["flags"]["seed"] for one in of_teachers) == seeds
        if "shots" in training:  # teachers of earlier versions have each learnt texts of their own
            is_ensemble &= {one.get("episode", one["flags"]["seed"]) for one in of_teachers} == {training["flags"]["seed"]}
        if terms != "both" or folds is not None or not (is_of_all if is_learnt else has_equal_shares and (is_of_all or is_ensemble)):
            return None
        if is_of_all:
            return f"student-{ALL}" + LEARNT_ENDING * is_learnt
    if training["unlabelled"] is not None:
        return student_name(kinds[0], "both", folds, members) + MORE if terms == "both" else None
    return None if terms is None else student_name(kinds[0], terms, folds, members)


def _weights_hash(teacher: Path) -> str:
    weights = teacher / WEIGHTS
    return _hash_of(weights, weights.stat().st_mtime_ns)


@lru_cache(maxsize=256)
def _hash_of(weights: Path, changed_ns: int) -> str:
    """Return a hash of weights, cached by their time of change: one teacher has many students."""
    return hash_weights_file(weights)


def _terms(weights: Mapping[str, Any], metrics: Mapping[str, Any]) -> Terms | None:
    """Return a student's soft terms: as the tables that trained it recorded them, else those of its preset whose weight is not 0; None
    where none is left."""
    if metrics.get("terms") is not None:
        terms: Terms = metrics["terms"]
        return terms
    preset = KD_PRESETS[metrics["config"]["kd_preset"]]
    left_out = {name for name in ("alpha", "beta") if getattr(preset, name) and not weights[name]}
    if not weights["alpha"] and not weights["beta"]:
        return None
    return "l2" if "alpha" in left_out else "ce" if "beta" in left_out else "both"
