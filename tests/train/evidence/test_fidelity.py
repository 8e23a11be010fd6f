"""Fidelity and calibration of a run's models: which models are compared, and where the figures are shown."""

import csv
import io
import json
import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lugpi_core.fingerprint import hash_file
from tests.support.small_tables import fake_model, fake_student, fake_teacher, scores
from train.evidence.fidelity import FIDELITY, fidelity_figures, teachers_of
from train.evidence.row_figures import ScoredModel, scored
from train.evidence.tables import tables
from train.file_names import WEIGHTS
from train.options.tables import TablesOptions

TITLE = "Fidelity and calibration on the test split"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two seeds; of 400 test examples the baseline has the first 300 right, the teacher 320, the student 310."""
    for seed in range(2):
        tail = f"-seed{seed}" if seed else ""
        fake_model(tmp_path, f"baseline{tail}", scores(300), seed=seed, command="baseline")
        fake_teacher(tmp_path, f"teacher-clip-demo{tail}", scores(320 + 40 * seed), seed=seed)
        fake_student(tmp_path, f"student-clip-demo{tail}", scores(310, first=5), seed=seed, teacher_names=[f"teacher-clip-demo{tail}"])
    return tmp_path


def shown(run: Path, capsys: pytest.CaptureFixture[str], **more: Any) -> dict[str, Any]:
    report = tables(TablesOptions(dataset="topics.csv", run_dir=run, train=False, rows=("table1",), seeds=2, **more))
    capsys.readouterr()
    return report


def figures(run: Path, name: str = "student-clip-demo", baseline: str | None = "baseline") -> dict[str, float | None]:
    return fidelity_figures(scored(run / name), None if baseline is None else scored(run / baseline), cache(scored))


def set_logits(folder: Path, logits: Sequence[Sequence[float]]) -> None:
    """Set the logits of a model's test examples; the last repeats for the rest."""
    lines = list(csv.reader(io.StringIO((folder / "predictions.csv").read_text())))
    tests = [cells for cells in lines if cells[1] == "test"]
    for n, cells in enumerate(tests):
        cells[3:] = map(str, logits[min(n, len(logits) - 1)])
    text = io.StringIO()
    csv.writer(text).writerows(lines)
    (folder / "predictions.csv").write_text(text.getvalue())


def test_fidelity_and_churn_by_hand(run: Path) -> None:
    # Student right on 5..314, baseline on 0..299, teacher on 0..319; where it is wrong there is one other class.
    found = figures(run)
    assert found["churn"] == pytest.approx((5 + 15) / 400)
    assert found["improved"] == pytest.approx(15 / 20)
    assert found["worsened"] == pytest.approx(5 / 20)
    assert found["agreement"] == pytest.approx(1 - (5 + 5) / 400)
    # Every logit is .25 or 1.5 for class 0 and .25 or 1.25 for class 1: answers differ by .25 and .75 from the other, and the confidence
    # of both is above a half; recomputed here directly.
    confident = [1 / (1 + np.exp(-abs(a - b))) for a, b in ((1.5, 0.25), (0.5, 1.25))]
    assert 0.5 < min(confident) < max(confident) < 1
    test = scored(run / "student-clip-demo").test
    shares = np.exp(test.logits) / np.exp(test.logits).sum(axis=1, keepdims=True)
    assert found["nll"] == pytest.approx(-np.log(shares[np.arange(400), test.labels]).mean())


def test_figures_are_none_without_a_model_to_compare_with(run: Path) -> None:
    nothing = {"agreement": None, "churn": None, "improved": None, "worsened": None}
    assert figures(run, "baseline") | nothing == figures(run, "baseline"), "the baseline is not compared with itself"
    teacher = figures(run, "teacher-clip-demo")
    assert teacher["agreement"] is None
    assert teacher["churn"] == pytest.approx(20 / 400)
    assert figures(run, baseline=None)["churn"] is None
    path = run / "baseline" / "predictions.csv"
    path.write_text(path.read_text().replace("test/7,", "test/700,"))
    assert figures(run)["churn"] is None, "other examples"
    set_logits(run / "student-clip-demo", scored(run / "baseline").test.logits.tolist())
    path.write_text(path.read_text().replace("test/700,", "test/7,"))
    same = figures(run)
    assert (same["churn"], same["improved"], same["worsened"]) == (0.0, None, None)


def test_a_teacher_that_is_gone_or_replaced_gives_no_agreement(run: Path) -> None:
    student, teacher = run / "student-clip-demo", run / "teacher-clip-demo"
    training = json.loads((student / "training.json").read_text())
    (student / "training.json").write_text(json.dumps({**training, "teachers": [hash_file(teacher / WEIGHTS)]}))
    assert figures(run)["agreement"] is not None
    (teacher / WEIGHTS).write_bytes(b"another model's")
    assert figures(run)["agreement"] is None
    (student / "training.json").write_text(json.dumps({**training, "teachers": [hash_file(teacher / WEIGHTS)]}))
    assert figures(run)["agreement"] is not None
    path = teacher / "predictions.csv"
    path.write_text(path.read_text().replace("test/7,", "test/700,"))
    assert figures(run)["agreement"] is None, "other examples"
    shutil.rmtree(teacher)
    assert figures(run)["agreement"] is None


def test_several_teachers_are_weighted_by_their_shares(run: Path) -> None:
    fake_teacher(run, "sure", scores(300))
    fake_teacher(run, "unsure", scores(300))
    set_logits(run / "sure", [[4.0, 0.0]])
    set_logits(run / "unsure", [[0.0, 1.0]])
    fake_student(run, "of-two", scores(300), teacher_names=["sure", "unsure"], shares=[0.5, 0.5])
    fake_student(run, "of-one", scores(300), teacher_names=["sure", "unsure"], shares=[0.1, 0.9])
    # Together they answer 0, and in its group the unsure one counts.
    by_class = {"groups": [[0], [1]], "shares": [[0.1, 0.9], [0.9, 0.1]]}
    fake_student(run, "learnt", scores(300), teacher_names=["sure", "unsure"], shares=[0.5, 0.5], class_shares=by_class)
    teachers = {name: teachers_of(scored(run / name), scored) for name in ("of-two", "of-one", "learnt")}
    answers = {name: set(found.answers.tolist()) for name, found in teachers.items() if found is not None}
    assert answers == {"of-two": {0}, "of-one": {1}, "learnt": {1}}


def test_tables_show_means_over_seeds(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = shown(run, capsys)
    row = report["rows"]["student-clip-demo"]
    each = [model["fidelity"] for model in row["models"]]
    assert [one["agreement"] for one in each] == [pytest.approx(1 - 10 / 400), pytest.approx(1 - 50 / 400)]
    for name in FIDELITY["single-label"].figures:
        values = [one[name] for one in each]
        assert row["fidelity"][name] == {"mean": pytest.approx(np.mean(values)), "sd": pytest.approx(np.std(values, ddof=1), abs=1e-12)}
    assert report["rows"]["baseline"]["fidelity"]["churn"] is None
    assert report["rows"]["images-clip-demo"]["fidelity"] is None, "no model is finished"
    assert report["fidelity"] == {
        "title": TITLE,
        "caption": FIDELITY["single-label"].caption,
        "rows": ["baseline", "teacher-clip-demo", "student-clip-demo"],
    }


def test_all_four_files_have_the_fidelity_figures(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = shown(run, capsys)
    assert json.loads((run / "tables.json").read_text()) == report
    _, _, after = (run / "tables.md").read_text().partition(f"## {TITLE}\n")
    lines = after.partition("\n## ")[0].splitlines()
    table = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]] for line in lines if "|" in line}
    assert table["row"] == ["ECE", "NLL", "agreement", "churn", "improved", "worsened"]
    assert table["student-clip-demo"][2] == "0.9250 ± 0.0707"
    assert table["baseline"][2:] == ["", "", "", ""]
    assert TITLE in (run / "tables.tex").read_text()
    line = next(line for line in csv.DictReader(io.StringIO((run / "tables.csv").read_text())) if line["row"] == "student-clip-demo")
    assert float(line["test_churn_mean"]) == pytest.approx(20 / 400)
    assert float(line["test_improved_sd"]) == pytest.approx(0, abs=1e-12)
    assert set(line) >= {f"test_{figure}_{what}" for figure in FIDELITY["single-label"].figures for what in ("mean", "sd")}


def test_each_folder_is_read_once(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[Path] = []

    def counted(folder: Path) -> ScoredModel:
        asked.append(folder)
        return scored(folder)

    monkeypatch.setattr("train.evidence.compare.scored", counted)
    shown(run, capsys)
    assert len(asked) == len(set(asked)) == 6
