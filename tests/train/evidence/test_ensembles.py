"""Ensembles of teachers: their joint answers, and the rows of their students, trained and found again."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit, logit, softmax

import train.models.train_model
from lugpi_core.errors import InputError
from tests.support.small_tables import fake_model, fake_student, fake_teacher, flags, recorded_answers, scores
from train.cli import main
from train.evidence.compare import TableRequest, finished_tables
from train.evidence.ensembles import joint_predictions
from train.models.predictions import Predicted
from train.options.tables import require_ensemble


def test_what_several_teachers_answer_is_the_mean_of_their_probabilities() -> None:
    each = [np.array([[2.0, 0.0, -1.0], [900.0, -900.0, 0.0]]), np.array([[0.0, 1.0, 1.0], [900.0, -900.0, 0.0]])]
    predicted = joint_predictions([Predicted(ids=("a", "b"), labels=np.array([0, 1]), logits=one) for one in each])
    assert np.isfinite(predicted.logits).all()
    np.testing.assert_allclose(softmax(predicted.logits, axis=1), (softmax(each[0], axis=1) + softmax(each[1], axis=1)) / 2, atol=1e-300)


def test_several_labels_have_the_mean_of_the_thresholds_and_numbers_their_mean() -> None:
    logits, thresholds = [np.array([[2.0, -1.0]]), np.array([[0.0, 1.0]])], [(0.2, 0.6), (0.4, 0.8)]
    labels = np.array([[1.0, 0.0]], np.float32)
    each = [
        Predicted(ids=("a",), labels=labels, logits=one, task="multi-label", thresholds=two)
        for one, two in zip(logits, thresholds, strict=True)
    ]
    joint = joint_predictions(each)
    np.testing.assert_allclose(joint.logits, logit((expit(logits[0]) + expit(logits[1])) / 2))
    assert joint.thresholds == pytest.approx((0.3, 0.7))
    numbers = [Predicted(ids=("a",), labels=np.array([2.0], np.float32), logits=np.array([[one]]), task="regression") for one in (1.0, 4.0)]
    assert joint_predictions(numbers).predicted.tolist() == [2.5]


def _ensembles(run: Path) -> None:
    """Write two seeds of students of two teachers each."""
    for seed in (0, 1):
        end = "" if seed == 0 else f"-seed{seed}"
        fake_model(run, f"baseline{end}", scores(180), command="baseline", seed=seed)
        for kind, privileged, right in (("clip-demo", "images", (300, 320)), ("none", "none", (200, 220))):
            names = [f"teacher-{kind}{end}", f"teacher-{kind}-seed{seed + 1000}"]
            for name, of_name, own in zip(names, right, (seed, seed + 1000), strict=True):
                fake_teacher(run, name, scores(of_name), privileged=privileged, seed=own)
            student = f"student-{kind}-ensemble2{end}"
            fake_student(run, student, scores(right[0] - 50), teacher_names=names, shares=[0.5, 0.5], seed=seed)


def test_students_of_ensembles_are_found_with_their_control_and_what_they_carry(tmp_path: Path) -> None:
    _ensembles(tmp_path)
    report = finished_tables(tmp_path, "texts", TableRequest(rows=("ensemble", "teacher-none"), seeds=(0, 1)))
    assert report.rows["student-clip-demo-ensemble2"].seeds == report.rows["teacher-none"].seeds == (0, 1)
    assert {(one.row, one.reference) for one in report.findings} >= {("student-clip-demo-ensemble2", "student-none-ensemble2")}
    row = next(row for row in report.why.rows if row.row == "student-clip-demo-ensemble2")
    assert row.teacher_gain is not None
    assert row.teacher_gain > 0.2
    assert row.student_gain == pytest.approx(100 / 400)
    assert report.others == ()  # the other teachers of the ensembles are no models without a row


def test_a_student_of_other_seeds_teachers_is_of_no_row(tmp_path: Path) -> None:
    for seed in (0, 1):
        fake_teacher(tmp_path, f"teacher-none-{seed}", scores(200), privileged="none", seed=seed)
    fake_student(tmp_path, "student", scores(200), teacher_names=["teacher-none-0", "teacher-none-1"], shares=[0.5, 0.5])
    report = finished_tables(tmp_path, "texts", TableRequest(seeds=(0, 1)))
    assert [model.folder for model in report.others] == ["student"]


@pytest.mark.parametrize(("members", "seeds", "told"), [(1, (0,), "2 or more"), (True, (0,), "2 or more"), (3, (0, 1000), "1000 apart")])
def test_ensembles_that_cannot_be_are_refused(members: object, seeds: tuple[int, ...], told: str) -> None:
    require_ensemble(None, seeds)
    with pytest.raises(InputError, match=told):
        require_ensemble(members, seeds)


def test_tables_train_them_and_find_them_again(small_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [
        "tables",
        *(word for name, value in flags(small_csv, tmp_path).items() for word in (f"--{name.replace('_', '-')}", str(value))),
    ]
    student = "student-none-ensemble2"
    assert main([*words, "--seeds", "1", "--rows", student, "--ensemble", "2", "--processes", "1"]) == 0
    report = json.loads((tmp_path / "tables.json").read_text())
    assert report["trained"] == ["teacher-none", "teacher-none-seed1000", student]
    assert report["others"] == []
    teachers = [np.array(_logits(tmp_path / name)) for name in report["trained"][:2]]
    assert not np.allclose(*teachers)
    (row,) = report["why"]["rows"]
    both = softmax(teachers[0], axis=1) + softmax(teachers[1], axis=1)
    assert row["test"]["score"] == pytest.approx(np.mean(both.argmax(1) == recorded_answers(tmp_path / student, "test")[0]))
    monkeypatch.setattr(train.models.train_model, "fit", None)
    assert main([*words, "--seeds", "1", "--rows", "ensemble", "--no-train"]) == 0
    found = json.loads((tmp_path / "tables.json").read_text())
    assert (found["rows"][student], found["why"], found["others"]) == (report["rows"][student], report["why"], [])


def _logits(folder: Path) -> list[list[float]]:
    with (folder / "predictions.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    return [[float(value) for name, value in row.items() if name.startswith("logit_")] for row in rows]
