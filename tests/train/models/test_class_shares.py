"""Shares of several teachers, learnt by group of classes."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax

from lugpi_core.corpora.corpus import Corpus
from lugpi_core.errors import InputError
from tests.support.small_tables import flags
from train.data.teacher_outputs import outputs_path, read_teacher_outputs
from train.evidence.tables import tables
from train.learning.losses import KD_PRESETS, TeacherTarget, distillation_loss
from train.models.api import distill
from train.models.class_shares import PRIOR_TEXTS, ClassShares, best_shares, class_groups, learn_class_shares, soft_labels
from train.models.commands import student, teacher
from train.options.distillation import StudentOptions
from train.options.tables import TablesOptions
from train.options.training import TeacherOptions

Floats = NDArray[np.float64]
TEACHERS = ("teacher-clip-demo", "teacher-vit-demo")


def two_specialists(texts: int = 400) -> tuple[Floats, NDArray[np.int64]]:
    """Logits of two teachers of classes 0 to 3: one tells 0 from 1 and guesses between 2 and 3, the other the reverse."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, texts)
    logits = np.where((np.arange(4) < 2) == (labels < 2)[:, None], 2.0, -2.0) + rng.normal(0, 0.3, (2, texts, 4))
    for expert in range(2):
        knows = (labels < 2) == (expert == 0)
        logits[expert, np.flatnonzero(knows), labels[knows]] += 3
        guessed = np.where(labels < 2, rng.integers(0, 2, texts), rng.integers(2, 4, texts))
        logits[expert, np.flatnonzero(~knows), guessed[~knows]] += 3
    return logits, labels


def test_each_group_goes_to_the_teacher_that_is_right_there() -> None:
    logits, labels = two_specialists()
    found = learn_class_shares(logits, labels)
    assert found.groups == ((0, 1), (2, 3))
    assert found.shares[0, 0] > 0.9
    assert found.shares[1, 1] > 0.9
    assert abs(found.overall[0] - 0.5) < 0.1
    mixed = found.mixed(softmax(logits, axis=2))
    assert (mixed.argmax(axis=1) == labels).mean() > 0.99
    assert (softmax(logits, axis=2).mean(axis=0).argmax(axis=1) == labels).mean() < 0.9


@given(seed=st.integers(0, 10_000), texts=st.integers(0, 60), sharpness=st.floats(0.1, 8))
def test_no_other_shares_of_two_teachers_fit_better(seed: int, texts: int, sharpness: float) -> None:
    rng = np.random.default_rng(seed)
    likelihood = rng.uniform(size=(2, texts)) ** sharpness
    prior = rng.dirichlet([3, 3])
    prior = np.maximum(prior, 0.01) / np.maximum(prior, 0.01).sum()

    def objective(shares: Floats) -> Floats:
        of_prior = PRIOR_TEXTS * (prior[0] * np.log(shares) + prior[1] * np.log(1 - shares))
        return np.asarray(np.log(np.outer(shares, likelihood[0]) + np.outer(1 - shares, likelihood[1])).sum(axis=1) + of_prior)

    found = best_shares(likelihood, prior)
    assert found.sum() == pytest.approx(1)
    brute = objective(np.linspace(0.0005, 0.9995, 1999)).max()
    assert objective(found[:1])[0] >= brute - 1e-5 * (texts + PRIOR_TEXTS)


def test_of_three_teachers_the_best_shares_are_those_of_the_grid() -> None:
    rng = np.random.default_rng(3)
    likelihood, prior = rng.uniform(size=(3, 80)) ** 3, np.full(3, 1 / 3)
    grid = [np.array([a, b, 100 - a - b]) / 100 for a in range(1, 99) for b in range(1, 100 - a)]
    values = [np.log(share @ likelihood).sum() + PRIOR_TEXTS * (prior @ np.log(share)) for share in grid]
    np.testing.assert_allclose(best_shares(likelihood, prior), grid[int(np.argmax(values))], atol=0.011)


def test_groups_are_of_classes_that_are_confused() -> None:
    labels = np.repeat(np.arange(9), 5)
    joint = np.full((45, 9), 0.01)
    for n, label in enumerate(labels):
        joint[n, [label, (label + 3) % 9, (label + 6) % 9]] += [0.41, 0.3, 0.2]
    assert class_groups(joint, labels) == ((0, 3, 6), (1, 4, 7), (2, 5, 8))
    assert class_groups(joint[:, :3] / joint[:, :3].sum(axis=1, keepdims=True), labels % 3) == ((0, 1, 2),), "three classes are one group"
    assert sorted(sum(class_groups(joint[labels < 8], labels[labels < 8]), ())) == list(range(9)), "a class without a text"


def test_the_soft_term_is_the_sum_over_teachers_with_each_texts_shares() -> None:
    rng = np.random.default_rng(1)
    logits, students = rng.normal(0, 3, (2, 12, 4)), rng.normal(0, 1, (12, 4))
    learnt = ClassShares(groups=((0, 1), (2, 3)), shares=np.array([[0.9, 0.1], [0.0, 1.0]]), overall=np.array([0.4, 0.6]))
    for preset in ("paper", "hinton"):
        weights = KD_PRESETS[preset]
        tau = weights.temperature
        expected = 0.0
        for n in range(12):
            joint = 0.4 * softmax(logits[0, n]) + 0.6 * softmax(logits[1, n])
            shares = learnt.shares[0 if joint.argmax() < 2 else 1]
            student_ = log_softmax(students[n] / (tau if weights.soften_student else 1))
            expected -= sum(share * (softmax(logits[i, n] / tau) @ student_) for i, share in enumerate(shares)) / 12
        expected *= tau**2 if weights.soften_student else 1
        mixed = torch.from_numpy(learnt.mixed_logits(logits, tau)).float()
        nothing = torch.zeros(12, 3)
        targets = [TeacherTarget(share, mixed, nothing, nothing) for share in learnt.overall]
        unlabelled = torch.full((12,), -1)
        loss = distillation_loss(weights, torch.from_numpy(students).float(), targets, unlabelled)
        assert float(loss) == pytest.approx(weights.alpha * expected, rel=1e-5), preset


@pytest.fixture(scope="module")
def run(small_csv: Path, small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a teacher of CLIP tokens and one of ViT's."""
    folder = tmp_path_factory.mktemp("shares") / "topics"
    shutil.copytree(small_run / "tokens", folder / "tokens")
    for column in ("clip-demo", "vit-demo"):
        teacher(TeacherOptions(**flags(small_csv, folder, image_tokens=column, name=f"teacher-{column}")))
    return folder


def learnt_by(folder: Path, small_csv: Path, name: str, **more: Any) -> dict[str, Any]:
    return student(StudentOptions(**flags(small_csv, folder, teachers=TEACHERS, teacher_weights="learnt", name=name, **more)))


def test_a_student_learns_the_shares_and_records_them(run: Path, small_csv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = learnt_by(run, small_csv, "learnt")
    assert "shares of the teachers, learnt on the validation texts: teacher-clip-demo 0." in capsys.readouterr().err
    training = json.loads((run / "learnt" / "training.json").read_text())
    logits = []
    for name in TEACHERS:
        outputs = read_teacher_outputs(outputs_path(run / name), corpus_fingerprint=training["corpus"])
        logits.append(outputs.logits.numpy().astype(np.float64))
    with (run / TEACHERS[0] / "predictions.csv").open() as file:
        lines = list(csv.DictReader(file))
    rows = [n for n, line in enumerate(lines) if line["split"] == "validation"]
    expected = learn_class_shares(np.stack(logits)[:, rows], np.array([int(lines[n]["label"]) for n in rows]))
    assert training["class_shares"] == expected.fingerprint()
    assert training["shares"] == expected.overall.tolist()
    record = metrics["learnt_shares"]
    assert (record["split"], sum(group["texts"] for group in record["groups"])) == ("validation", len(rows))
    assert list(record["overall"].values()) == expected.overall.tolist()
    assert metrics["config"]["teacher_weights"] == "learnt"
    assert learnt_by(run, small_csv, "learnt")["already_done"]


def test_tables_have_a_row_of_learnt_shares_if_it_is_named(run: Path, small_csv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    learnt_by(run, small_csv, "learnt")
    options = flags(small_csv, run, rows=("student-all-learnt", "teacher-clip-demo"), seeds=1, processes=1)
    report = tables(TablesOptions(**options))
    assert report["trained"] == []
    assert [one["folder"] for one in report["rows"]["student-all-learnt"]["models"]] == ["learnt"]
    assert [table["name"] for table in report["tables"]] == ["table1", "controls"]
    own = {"dataset": str(small_csv), "run_dir": run, "seeds": 1, "train": False}
    hidden = tables(TablesOptions(**own, rows=("controls",)))
    assert "student-all-learnt" not in hidden["rows"]
    assert "learnt" in [one["folder"] for one in hidden["others"]]
    logits = []
    for name in ("learnt", *TEACHERS):
        rows = np.loadtxt(run / name / "predictions.csv", delimiter=",", skiprows=1, usecols=(3, 4, 5))
        logits.append(rows[-12:])
    training = json.loads((run / "learnt" / "training.json").read_text())
    shares = dict(zip(TEACHERS, training["shares"], strict=True))
    assert len(training["class_shares"]["groups"]) == 1, "three classes"
    (of_group,) = training["class_shares"]["shares"]
    mixed = sum(share * softmax(one, axis=1) for share, one in zip(of_group, logits[1:], strict=True))
    expected = np.mean(np.asarray(mixed).argmax(axis=1) == logits[0].argmax(axis=1))
    assert report["rows"]["student-all-learnt"]["models"][0]["fidelity"]["agreement"] == pytest.approx(expected)
    assert sum(shares.values()) == pytest.approx(1)
    capsys.readouterr()


def test_learning_shares_is_refused_where_there_is_nothing_to_learn(small_csv: Path, run: Path) -> None:
    with pytest.raises(InputError, match="learnt for 1 teacher; expected two teachers or more"):
        StudentOptions(**flags(small_csv, run, teachers=("teacher",), teacher_weights="learnt"))
    texts = Corpus.from_texts(["a", "b", "c"], labels=[["x", "y"]] * 3, splits=["train", "validation", "test"], task="multi-label")
    with pytest.raises(InputError, match="a multi-label corpus; expected one class for each text"):
        soft_labels(texts, [], (), "learnt", 1.0)
    with pytest.raises(TypeError, match="teacher_weights: got 'learned'; expected a list of numbers"):
        distill(texts, [run / name for name in TEACHERS], teacher_weights="learned")  # type: ignore[arg-type]
