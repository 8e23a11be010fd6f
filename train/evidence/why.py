"""Why students gain what they gain: how right and how sure teachers are of the texts that students read them on, what share of a teacher's
gain over its control arrives, and in which classes.

Shapes: S seeds, N test examples, K classes.
"""

import statistics
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from lugpi_core.errors import InputError
from lugpi_core.files import read_json
from train.evidence.records import ClassGain, Sharpness, WhyRow, WhyTable
from train.evidence.resampling import Score
from train.evidence.row_figures import ScoredModel, is_defined, score_of, sharpness_of
from train.evidence.rows import Row
from train.evidence.statistics import share_interval
from train.models.predictions import Predicted

TITLE = "Why: what students read of their teachers, and what of the teachers' gain arrives"
CAPTION = (
    "Right and sure: the teachers' score, and the mean probability of their answers, on the train texts that students read them on, and on "
    "test texts. A teacher that is right and sure on every train text says there what the label says; with folds a train text is answered "
    "by a teacher that has not seen it. Gains are over the text-only control: of the teachers over those of the control, of the students "
    "over its students. Carried: the second as a share of the first, with its 95 % interval (Fieller 1954) over seeds and texts; empty "
    "where the teachers' gain is not distinguishable from 0, so that any share would be in the interval, and of one seed where a text "
    "has several labels or a number."
)
Floats = NDArray[np.float64]
Models = Mapping[str, Mapping[int, ScoredModel]]  # by row and seed


def why_table(students: Sequence[Row], rows: Mapping[str, Row], models: Models) -> WhyTable:
    """Return the table of the rows of students with one teacher and the whole loss.

    Args:
        students: rows of the report.
        rows: every row by name.
        models: finished models of the rows, of their teachers, of their controls and of these' teachers.
    """
    shown = [row for row in students if row.command == "student" and row.terms == "both" and len(row.teachers) == 1]
    found = [_why_row(row, None if row.control is None else rows[row.control], models) for row in shown]
    return WhyTable(title=TITLE, caption=CAPTION, rows=tuple(row for row in found if row is not None))


def needed_rows(students: Sequence[Row], rows: Mapping[str, Row]) -> set[str]:
    """Return the names of the rows whose models ``why_table`` reads."""
    with_controls = [*students, *(rows[row.control] for row in students if row.control is not None)]
    return {name for row in with_controls if row.command == "student" for name in (row.name, *row.teachers)}


def _why_row(student: Row, control: Row | None, models: Models) -> WhyRow | None:
    teachers, students = models.get(student.taught_by, {}), models.get(student.name, {})
    seeds = sorted(teachers.keys() & students.keys())
    if not seeds:
        return None
    train = [one for seed in seeds if (one := teachers[seed].train) is not None]
    row = WhyRow(row=student.name, train=_mean(train) if train else None, test=_mean([sharpness_of(teachers[seed].test) for seed in seeds]))
    if control is None:
        return row
    four = [models.get(name, {}) for name in (student.taught_by, control.taught_by, student.name, control.name)]
    quadruples = [[of_row[seed].test for of_row in four] for seed in seeds if all(seed in of_row for of_row in four)]
    same = [each for each in quadruples if len({one.examples for one in (*each, quadruples[0][0])}) == 1 and all(map(is_defined, each))]
    if not same:
        return row
    teacher_SN, student_SN = (np.stack([_gained(each[first], each[first + 1]) for each in same]) for first in (0, 2))
    interval = share_interval(teacher_SN, student_SN) if len(same) > 1 or same[0][0].task == "single-label" else None
    gains = float(teacher_SN.mean()), float(student_SN.mean())
    return WhyRow(
        row=row.row,
        train=row.train,
        test=row.test,
        teacher_gain=gains[0],
        student_gain=gains[1],
        carried=None if interval is None else gains[1] / gains[0],
        interval=interval,
        classes=_classes(same, _class_names(students[seeds[0]])),
    )


def _mean(each: Sequence[Sharpness]) -> Sharpness:
    scores, sure = [one.score for one in each if one.score is not None], [one.confidence for one in each if one.confidence is not None]
    return Sharpness(score=statistics.fmean(scores) if scores else None, confidence=statistics.fmean(sure) if sure else None)


def _gained(first: Predicted, second: Predicted) -> Floats:
    """Return float64 [N] whose mean is the difference of two models' scores: that of the hits, or of pseudo-values."""
    if first.task == "single-label":
        return first.hits.astype(np.float64) - second.hits
    one, other = _pseudo_values(score_of(first)), _pseudo_values(score_of(second))
    return one - other


def _pseudo_values(score: Score) -> Floats:
    return score.influence + score.value


def _classes(quadruples: Sequence[Sequence[Predicted]], names: Mapping[int, str]) -> tuple[ClassGain, ...]:
    labels = quadruples[0][0].labels
    if quadruples[0][0].task == "regression":
        return ()
    if labels.ndim == 1:
        labels = labels[:, None] == np.arange(quadruples[0][0].logits.shape[1])
        right = [[np.repeat(one.hits[:, None], labels.shape[1], axis=1) for one in each] for each in quadruples]
    else:
        right = [[(one.predicted == one.labels) for one in each] for each in quadruples]
    gained = [np.mean([each[first].astype(np.float64) - each[first + 1] for each in right], axis=0) for first in (0, 2)]
    has_NK = labels > 0
    classes = [
        ClassGain(
            name=names.get(k, str(k)),
            texts=int(has_NK[:, k].sum()),
            teacher=float(gained[0][has_NK[:, k], k].mean()),
            student=float(gained[1][has_NK[:, k], k].mean()),
        )
        for k in range(has_NK.shape[1])
        if has_NK[:, k].any()
    ]
    return tuple(sorted(classes, key=lambda one: (-one.teacher, one.name)))


def _class_names(student: ScoredModel) -> dict[int, str]:
    """Return the names of the classes by number, as the exported student has them; empty where it has none."""
    try:
        names = read_json(student.folder / "config.json").get("id2label", {})
    except (OSError, InputError):
        return {}
    return {int(number): str(name) for number, name in names.items()}
