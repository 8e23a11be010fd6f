"""What students read of their teachers and keep of their gains, from made-up predictions and from real small models."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import train.models.folds
from lugpi_core.corpora.load import load_corpus
from lugpi_core.corpora.options import CorpusSettings
from tests.support.small_report import write_task_run
from tests.support.small_tables import fake_model, fake_student, fake_teacher, flags, scores
from tests.support.small_tasks import multi_label_corpus
from train.cli import main
from train.evidence.compare import TableRequest, compare, finished_tables
from train.evidence.render import class_line
from train.evidence.table_report import TableReport
from train.options.settings import Optimization, Placement

GAINS = {0: (300, 200, 250, 220), 1: (310, 205, 260, 215)}  # right of 400: teacher, its control, student, its control


@pytest.fixture
def report(tmp_path: Path) -> TableReport:
    for seed, (teacher, text_teacher, student, text_student) in GAINS.items():
        end = "" if seed == 0 else f"-seed{seed}"
        fake_model(tmp_path, f"baseline{end}", scores(180), command="baseline", seed=seed)
        fake_teacher(tmp_path, f"teacher-clip-demo{end}", scores(teacher), seed=seed)
        fake_teacher(tmp_path, f"teacher-none{end}", scores(text_teacher), privileged="none", seed=seed)
        fake_student(tmp_path, f"student-clip-demo{end}", scores(student), teacher_names=[f"teacher-clip-demo{end}"], seed=seed)
        fake_student(tmp_path, f"student-none{end}", scores(text_student), teacher_names=[f"teacher-none{end}"], seed=seed)
    return finished_tables(tmp_path, "texts", TableRequest(rows=("table1", "controls"), seeds=(0, 1)))


def test_the_share_that_arrives_is_the_quotient_of_the_gains(report: TableReport) -> None:
    by_row = {row.row: row for row in report.why.rows}
    row = by_row["student-clip-demo"]
    teacher, student = (np.mean([each[first] - each[first + 1] for each in GAINS.values()]) / 400 for first in (0, 2))
    assert (row.teacher_gain, row.student_gain) == (pytest.approx(teacher), pytest.approx(student))
    assert row.carried == pytest.approx(student / teacher)
    assert row.interval is not None
    assert row.interval[0] < row.carried < row.interval[1]
    none = by_row["student-none"]
    assert (none.teacher_gain, none.carried, none.classes) == (None, None, ())
    assert row.train is not None
    assert (row.train.score, row.test.score) == (1.0, pytest.approx(np.mean([300, 310]) / 400))
    sure = [1 / (1 + np.exp(-gap)) for gap in (1.25, 0.75)]  # of the made-up logits for either class
    assert row.test.confidence == pytest.approx(np.mean(sure), abs=0.01)


def test_gains_of_the_classes_add_up_to_those_of_all(report: TableReport) -> None:
    row = next(row for row in report.why.rows if row.row == "student-clip-demo")
    assert [one.texts for one in row.classes] == [200, 200]
    assert np.mean([one.teacher for one in row.classes]) == pytest.approx(row.teacher_gain)
    assert np.mean([one.student for one in row.classes]) == pytest.approx(row.student_gain)
    assert class_line(row).startswith("student-clip-demo: its teachers gain most in ")


def test_every_form_of_the_report_has_it(report: TableReport) -> None:
    row = next(row for row in report.why.rows if row.row == "student-clip-demo")
    cell = f"{row.carried:.2f} ["
    assert f"## {report.why.title}" in report.to_markdown()
    assert cell in report.to_markdown()
    assert cell in report.to_latex()
    found = next(one for one in report.to_json()["why"]["rows"] if one["row"] == "student-clip-demo")
    assert found["carried"] == row.carried
    assert json.loads(json.dumps(found)) == found


def test_without_a_gain_nothing_can_arrive(tmp_path: Path) -> None:
    fake_teacher(tmp_path, "teacher-clip-demo", scores(201))
    fake_teacher(tmp_path, "teacher-none", scores(200), privileged="none")
    fake_student(tmp_path, "student-clip-demo", scores(250), teacher_names=["teacher-clip-demo"])
    fake_student(tmp_path, "student-none", scores(200), teacher_names=["teacher-none"])
    report = finished_tables(tmp_path, "texts", TableRequest(rows=("student-clip-demo",), seeds=(0,)))
    (row,) = report.why.rows
    assert (row.carried, row.interval) == (None, None)
    assert (row.teacher_gain, row.student_gain) == (pytest.approx(1 / 400), pytest.approx(50 / 400))


def test_of_one_seed_no_share_of_several_labels_is_known(tmp_path: Path) -> None:
    write_task_run(tmp_path, multi_label_corpus(), seeds=1)
    report = finished_tables(tmp_path, "several", TableRequest(rows=("student-planted",), seeds=(0,)))
    (row,) = report.why.rows
    assert row.teacher_gain is not None
    assert row.teacher_gain > 0
    assert row.carried is None
    assert "and of one seed where a text has several labels or a number" in report.why.caption


@pytest.fixture(scope="module")
def run(small_csv: Path, small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run with students of teachers with two folds, of images and of none."""
    folder = tmp_path_factory.mktemp("folds") / "topics"
    shutil.copytree(small_run / "tokens", folder / "tokens")
    report = compare(
        load_corpus(str(small_csv), CorpusSettings(split_column="split")),
        folder,
        rows=("student-clip-demo-folds2", "student-none-folds2"),
        seeds=1,
        folds=2,
        text_model="demo",
        optimization=Optimization(epochs=1, learning_rate=1e-3, optimizer="adamw"),
        placement=Placement(device="cpu"),
    )
    report.write()
    return folder, report.to_json()


def right_on(folder: Path, split: str) -> float:
    with (folder / "predictions.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == split]
    return float(np.mean([int(row["label"]) == np.argmax([float(row[f"logit_{k}"]) for k in range(3)]) for row in rows]))


def test_tables_train_folds_on_top_of_the_teachers_on_all_texts(run: tuple[Path, dict[str, Any]]) -> None:
    folder, report = run
    assert report["trained"] == [
        *("teacher-clip-demo", "teacher-none", "teacher-clip-demo-folds2", "teacher-none-folds2"),
        *("student-clip-demo-folds2", "student-none-folds2"),
    ]
    assert list(report["rows"]) == ["student-clip-demo-folds2", "student-none-folds2"], "teachers with folds have no row of their own"
    (table,) = report["tables"]
    assert [(one["row"], one["reference"]) for one in table["comparisons"]] == [("student-clip-demo-folds2", "student-none-folds2")]
    training = json.loads((folder / "student-clip-demo-folds2" / "training.json").read_text())
    assert training["distillation"]["beta"] == 0, "embeddings of several teachers share no space"
    row = next(one for one in report["why"]["rows"] if one["row"] == "student-clip-demo-folds2")
    cross_fitted, plain = folder / "teacher-clip-demo-folds2", folder / "teacher-clip-demo"
    assert row["train"]["score"] == pytest.approx(right_on(cross_fitted, "train"))
    assert row["test"]["score"] == pytest.approx(right_on(plain, "test"))
    metrics = json.loads((cross_fitted / "metrics.json").read_text())
    assert metrics["folds"]["seen"]["score"] == pytest.approx(right_on(plain, "train"), abs=1e-6)


def test_tables_find_them_again(run: tuple[Path, dict[str, Any]], small_csv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, report = run
    monkeypatch.setattr(train.models.folds, "fit", None)
    common = flags(small_csv, folder)
    words = ["tables", *(word for name, value in common.items() for word in (f"--{name.replace('_', '-')}", str(value))), "--seeds", "1"]
    assert main([*words, "--rows", "folds", "--no-train"]) == 0
    found = json.loads((folder / "tables.json").read_text())
    assert found["rows"]["student-clip-demo-folds2"] == report["rows"]["student-clip-demo-folds2"]
    assert found["others"] == []
    assert main([*words, "--rows", "student-clip-demo-folds2", "--folds", "2"]) == 0
    assert json.loads((folder / "tables.json").read_text())["trained"] == []
