"""Tables of multi-label and regression models: every figure is of the task's metric, and nothing says accuracy."""

import io
import json
import math
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from scipy.special import log_expit
from scipy.stats import spearmanr
from sklearn.metrics import f1_score

from lugpi_core.corpora.corpus import Corpus
from lugpi_core.errors import InputError
from tests.support.planted_store import Planted, plant_column
from tests.support.small_report import made_up_logits, write_task_model, write_task_run
from tests.support.small_tables import fake_model, scores
from tests.support.small_tasks import multi_label_corpus, plant_tokens, regression_corpus
from train.evidence.calibration import binary_cross_entropy, classwise_ece
from train.evidence.compare import compare, finished_tables
from train.evidence.table_report import TableReport
from train.evidence.tables import TableRequest

CORPORA = {"multi-label": multi_label_corpus(), "regression": regression_corpus()}
NAMES = ("baseline", "teacher-planted", "student-planted", "teacher-none", "student-none")


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[TableReport, Path, Corpus]]:
    """The tables of two seeds of each task."""
    found = {}
    for task, corpus in CORPORA.items():
        run = tmp_path_factory.mktemp(task)
        write_task_run(run, corpus)
        found[task] = (compare(corpus, run, rows=NAMES, seeds=2, train=False), run, corpus)
    return found


def test_scores_of_several_labels_are_those_of_scikit_learn(reports: dict[str, tuple[TableReport, Path, Corpus]]) -> None:
    report, run, corpus = reports["multi-label"]
    test, labels = corpus.rows("test"), corpus.targets()
    for name, row in report.rows.items():
        model = row.models[0]
        metrics = json.loads((run / model.folder / "metrics.json").read_text())
        frame = pandas.read_csv(run / model.folder / "predictions.csv")
        logits = frame[[column for column in frame if column.startswith("logit_")]].to_numpy()[test]
        answers = 1 / (1 + np.exp(-logits)) >= np.array(metrics["thresholds"])
        assert model.test["macro_f1"] == pytest.approx(f1_score(labels[test], answers, average="macro"), abs=1e-6), name
        assert model.test["micro_f1"] == pytest.approx(f1_score(labels[test], answers, average="micro"), abs=1e-6)
        assert model.test["subset_accuracy"] == pytest.approx((answers == labels[test]).all(axis=1).mean(), abs=1e-6)
        entropy = -log_expit(np.where(labels[test] > 0, logits, -logits)).mean()
        assert model.fidelity["nll"] == pytest.approx(entropy)
        assert row.test is not None
        assert list(row.test) == ["macro_f1", "micro_f1", "subset_accuracy"]


def test_scores_of_numbers_are_those_of_scipy(reports: dict[str, tuple[TableReport, Path, Corpus]]) -> None:
    report, run, corpus = reports["regression"]
    test, labels = corpus.rows("test"), corpus.targets()
    predicted = {}
    for name, row in report.rows.items():
        frame = pandas.read_csv(run / row.models[0].folder / "predictions.csv")
        predicted[name] = frame["prediction"].to_numpy()[test]
        residuals = predicted[name] - labels[test]
        model = row.models[0]
        assert model.test["spearman"] == pytest.approx(spearmanr(labels[test], predicted[name])[0])
        assert model.test["mse"] == pytest.approx((residuals**2).mean(), rel=1e-5)
        assert (model.fidelity["bias"], model.fidelity["mae"]) == pytest.approx((residuals.mean(), np.abs(residuals).mean()), rel=1e-5)
    student = report.rows["student-planted"].models[0].fidelity
    agreement = spearmanr(predicted["student-planted"], predicted["teacher-planted"])[0]
    errors = {name: np.abs(of_row - labels[test]) for name, of_row in predicted.items()}
    assert student["agreement"] == pytest.approx(agreement)
    assert student["nearer"] == pytest.approx((errors["student-planted"] < errors["baseline"]).mean())
    assert student["farther"] == pytest.approx((errors["student-planted"] > errors["baseline"]).mean())
    assert set(report.rows["baseline"].models[0].fidelity) == {"bias", "mae", "agreement", "nearer", "farther"}
    assert report.rows["baseline"].models[0].fidelity["nearer"] is None


@pytest.mark.parametrize(
    ("task", "header", "words"),
    [
        ("multi-label", "| row | seeds | validation macro-F1 | test macro-F1 | micro-F1 | subset accuracy | - baseline |", "in points"),
        (
            "regression",
            "| row | seeds | validation Spearman | test Spearman | Pearson | MSE | - baseline |",
            "Differences in test Spearman have",
        ),
    ],
)
def test_every_form_names_the_tasks_metric(
    reports: dict[str, tuple[TableReport, Path, Corpus]], task: str, header: str, words: str
) -> None:
    report, _, _ = reports[task]
    page = report.to_markdown()
    assert header in " ".join(page.split())
    assert words in page
    for text in (page, report.to_latex(), report.to_csv(), json.dumps(report.to_json())):
        assert "accuracy" not in text.replace("subset accuracy", "").replace("subset_accuracy", "")
        assert "McNemar" not in text
    assert ("points" in page) is (task == "multi-label")
    assert "approximate randomization (9,999 random swaps" in page
    assert report.to_json()["task"] == task
    frame = pandas.read_csv(io.StringIO(report.to_csv()))
    primary = "macro_f1" if task == "multi-label" else "spearman"
    assert frame[f"test_{primary}_mean"].notna().all()
    assert "paper_test_accuracy" not in frame


@pytest.mark.parametrize("task", CORPORA)
def test_rows_are_compared_by_the_primary_metric(reports: dict[str, tuple[TableReport, Path, Corpus]], task: str) -> None:
    report, _, _ = reports[task]
    findings = {(finding.row, finding.reference): finding for finding in report.findings}
    with_controls = {(f"{kind}-planted", f"{kind}-none") for kind in ("teacher", "student")}
    assert set(findings) == {(row, "baseline") for row in NAMES[1:]} | with_controls
    for (row, reference), finding in findings.items():
        values: list[float] = []
        for seed in range(2):
            first, second = (report.rows[name].models[seed].test for name in (row, reference))
            metric = next(iter(first))
            values.append((first[metric] or 0) - (second[metric] or 0))
        assert finding.comparison.difference == pytest.approx(np.mean(values), abs=1e-5)
        assert finding.comparison.metric == metric
    clear = findings["teacher-planted", "baseline"]
    assert clear.holm_p < 0.05
    assert clear.comparison.low > 0
    sentence = findings["teacher-planted", "baseline"].sentence
    assert ("points" in sentence) is (task == "multi-label")


def test_an_undefined_correlation_is_shown_as_such_and_not_compared(tmp_path: Path) -> None:
    corpus = regression_corpus()
    write_task_model(tmp_path, "baseline", corpus, torch.full((60, 1), 2.0), command="baseline")
    teacher = made_up_logits(corpus, 0.1, number=1)
    write_task_model(tmp_path, "teacher-none", corpus, teacher, command="teacher", privileged="none", image_tokens=None)
    report = compare(corpus, tmp_path, rows=("baseline", "teacher-none"), seeds=1, train=False)
    assert report.findings == ()
    assert (
        "Spearman and Pearson are undefined where all answers, or all labels, are equal, so these models are not compared: baseline"
        in report.notes
    )
    cells = {row[0]: row[1:] for row in report.cells(report.tables[0])}
    assert cells["baseline"][1:4] == ("undefined", "undefined", "undefined")
    assert report.to_json()["rows"]["baseline"]["test"]["spearman"] is None
    json.dumps(report.to_json(), allow_nan=False)
    report.write()


def test_models_of_several_tasks_cannot_stand_in_one_table(tmp_path: Path) -> None:
    write_task_model(tmp_path, "mine", multi_label_corpus(), made_up_logits(multi_label_corpus(), 0.1, number=1), command="baseline")
    fake_model(tmp_path, "baseline", scores(300), command="baseline")
    with pytest.raises(InputError, match=r"models of several tasks in .*: multi-label \(mine\), single-label \(baseline\)"):
        finished_tables(tmp_path, "several", TableRequest())


def test_classwise_calibration_is_the_mean_of_the_classes_own() -> None:
    labels = np.array([[1, 0], [1, 0], [0, 0], [1, 0]], np.float32)
    logits = np.log(np.array([[0.75, 0.1]]) / np.array([[0.25, 0.9]])).repeat(4, axis=0)
    assert classwise_ece(logits, labels) == pytest.approx((0 + 0.1) / 2)
    assert binary_cross_entropy(logits, labels) == pytest.approx((-3 * math.log(0.75) - math.log(0.25) - 4 * math.log(0.9)) / 8)
    assert binary_cross_entropy(np.array([[800.0], [-800.0]]), np.array([[1.0], [1.0]], np.float32)) == 400
    assert classwise_ece(np.array([[800.0], [-800.0]]), np.array([[1.0], [0.0]], np.float32)) == 0


def test_shares_by_class_are_refused_for_several_labels_before_any_training(tmp_path: Path) -> None:
    corpus = CORPORA["multi-label"]
    drawings = np.arange(len(corpus.examples))[:, None]
    plant_tokens(corpus, tmp_path)
    plant_column(Planted(table=tmp_path, run_dir=tmp_path, corpus=corpus, drawings=drawings), "other", np.ones((len(drawings), 3, 16)))
    error = "got --teacher-weights learnt for .*, a multi-label corpus; expected one class for each text"
    with pytest.raises(InputError, match=error):
        compare(corpus, tmp_path, rows=("baseline", "student-all-learnt"), seeds=1, text_model="demo")
    assert not list(tmp_path.glob("*/training.json"))
