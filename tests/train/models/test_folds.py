"""Teachers with folds: whose outputs students read, how an interrupted training goes on, and what is refused."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lugpi_core.corpora.corpus import Corpus
from lugpi_core.corpora.folds import fold_of_each
from lugpi_core.corpora.load import load_corpus
from lugpi_core.corpora.options import CorpusSettings
from lugpi_core.errors import InputError
from train.cli import main
from train.data.teacher_outputs import TeacherOutputs, outputs_path, read_teacher_outputs
from train.learning.procrustes import align
from train.models import folds as folding
from train.models.api import distill, train_teacher
from train.models.kinds import loss_weights
from train.options.settings import DistillationSettings, Optimization, Placement

FOLDS = 2
OPTIMIZATION = Optimization(epochs=1, learning_rate=1e-3, optimizer="adamw")


@pytest.fixture(scope="module")
def corpus(small_csv: Path) -> Corpus:
    return load_corpus(str(small_csv), CorpusSettings(split_column="split"))


@pytest.fixture(scope="module")
def train(small_run: Path) -> Callable[..., Path]:
    """Train a teacher in a run, and return its folder."""

    def train(corpus: Corpus, run: Path, optimization: Optimization = OPTIMIZATION, **more: Any) -> Path:
        own = {"privileged": "none", "text_model": "demo", "placement": Placement(device="cpu"), "run_dir": run}
        return train_teacher(corpus, small_run / "tokens", optimization=optimization, **{**own, **more}).folder

    return train


@pytest.fixture(scope="module")
def folder(corpus: Corpus, train: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher with folds that reads no images: a store is of one cut into splits, and the references have others."""
    return train(corpus, tmp_path_factory.mktemp("folds"), folds=FOLDS)


def outputs_of(folder: Path, corpus: Corpus) -> TeacherOutputs:
    return read_teacher_outputs(outputs_path(folder), corpus_fingerprint=corpus.fingerprint())


def with_fold_as_test(corpus: Corpus, fold: int) -> tuple[Corpus, list[int]]:
    """The corpus with a fold of the train texts moved to test, and the rows of the fold."""
    rows = np.flatnonzero(fold_of_each(corpus, FOLDS, seed=0) == fold)
    splits = corpus.columns.splits.copy()
    splits[rows] = 2
    return replace(corpus, examples=replace(corpus.columns, splits=splits)), rows.tolist()


def test_each_train_text_has_the_outputs_of_a_teacher_that_never_saw_it(
    corpus: Corpus, folder: Path, train: Callable[..., Path], tmp_path: Path
) -> None:
    assert folder.name == "teacher-none-folds2"
    ours, whole = outputs_of(folder, corpus), outputs_of(train(corpus, tmp_path, name="whole"), corpus)
    held_out = corpus.rows("validation") + corpus.rows("test")
    assert torch.equal(ours.logits[held_out], whole.logits[held_out])
    assert torch.equal(ours.embeddings[held_out], whole.embeddings[held_out])
    validation = corpus.rows("validation")
    for fold in range(FOLDS):
        moved, rows = with_fold_as_test(corpus, fold)
        reference = outputs_of(train(moved, tmp_path, name=f"without-{fold}"), moved)
        torch.testing.assert_close(ours.logits[rows], reference.logits[rows], rtol=0, atol=1e-6)
        expected = align(reference.embeddings[rows], reference.embeddings[validation], whole.embeddings[validation])
        torch.testing.assert_close(ours.embeddings[rows], expected, rtol=0, atol=1e-4)
    metrics = json.loads((folder / "metrics.json").read_text())
    predicted = np.loadtxt(folder / "predictions.csv", delimiter=",", skiprows=1, usecols=(2, 3, 4, 5))
    train_rows = corpus.rows("train")
    np.testing.assert_allclose(predicted[:, 1:], ours.logits.numpy(), atol=1e-5)
    right = predicted[train_rows, 1:].argmax(axis=1) == predicted[train_rows, 0]
    assert metrics["accuracy"]["train"] == pytest.approx(right.mean(), abs=1e-6)
    assert [one["held_out"] for one in metrics["folds"]["each"]] == [18, 18]
    seen = (whole.logits[train_rows].argmax(dim=1).numpy() == predicted[train_rows, 0]).mean()
    assert metrics["folds"]["seen"]["score"] == pytest.approx(seen, abs=1e-6)


def test_an_interrupted_training_repeats_no_fold_that_is_finished(
    corpus: Corpus, folder: Path, train: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    fit, fitted = folding.fit, list[str]()

    def fit_once(training: Any) -> Any:
        fitted.append(training.folder.name)
        if len(fitted) == 2:
            raise KeyboardInterrupt
        return fit(training)

    monkeypatch.setattr(folding, "fit", fit_once)
    with pytest.raises(KeyboardInterrupt):
        train(corpus, tmp_path, folds=FOLDS)
    assert "3 trainings, 2 times the work of one\n" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"folds.count: found 2, wanted 3"):
        train(corpus, tmp_path, folds=3, name=folder.name)
    again = train(corpus, tmp_path, folds=FOLDS)
    assert fitted == ["fold-1", "fold-2", "fold-2"]
    assert "1 of the folds are done" in capsys.readouterr().err
    assert outputs_path(again).read_bytes() == outputs_path(folder).read_bytes()
    assert not list(again.rglob("checkpoints"))


def test_seconds_of_folds_include_those_of_the_head_alone(
    corpus: Corpus, train: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = folding.fit
    monkeypatch.setattr(folding, "fit", lambda training: [{**record, "seconds": 0.0} for record in fit(training)])
    folder = train(corpus, tmp_path, replace(OPTIMIZATION, update="lp-ft"), folds=FOLDS)
    each = json.loads((folder / "metrics.json").read_text())["folds"]["each"]
    for fold, record in enumerate(each, start=1):
        head = json.loads((folder / "folds" / f"fold-{fold}" / "head" / "history.json").read_text())
        assert record["seconds"] == pytest.approx(sum(epoch["seconds"] for epoch in head), abs=1e-3)
        assert head[0]["seconds"] > 0


def test_lost_outputs_are_written_again_from_those_of_the_folds(
    corpus: Corpus, folder: Path, train: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(folder, run / folder.name)
    outputs_path(run / folder.name).unlink()
    monkeypatch.setattr(folding, "fit", None)
    assert outputs_path(train(corpus, run, folds=FOLDS)).read_bytes() == outputs_path(folder).read_bytes()


def test_the_teacher_on_all_texts_is_that_of_the_run_if_it_is_finished(
    corpus: Corpus, folder: Path, train: Callable[..., Path], tmp_path: Path, capsys: Any
) -> None:
    train(corpus, tmp_path)
    made = train(corpus, tmp_path, folds=FOLDS)
    assert "the teacher on all texts is teacher-none, which is finished already" in capsys.readouterr().err
    assert outputs_path(made).read_bytes() == outputs_path(folder).read_bytes()
    assert (made / "training.json").read_text() == (folder / "training.json").read_text()


def test_a_student_is_bound_to_the_folds_of_its_teacher(corpus: Corpus, folder: Path, tmp_path: Path, train: Callable[..., Path]) -> None:
    run = tmp_path / "run"
    shutil.copytree(folder, run / folder.name)
    plain = train(corpus, run)
    settings: Any = {"text_model": "demo", "optimization": OPTIMIZATION, "placement": Placement(device="cpu")}
    student = distill(corpus, [run / folder.name], **settings)
    training = json.loads((student.folder / "training.json").read_text())
    assert {name: training["teachers_folds"][0][name] for name in ("count", "seed")} == {"count": FOLDS, "seed": 0}
    assert student.metrics["teachers"][0]["folds"] == FOLDS
    with pytest.raises(InputError, match=r"a model trained with other settings: .*teachers_folds: found"):
        distill(corpus, [plain], **settings)
    with pytest.raises(
        InputError, match=r"teachers teacher-none-folds2 \(2 folds\), teacher-none \(no folds\); expected the same number of folds"
    ):
        distill(corpus, [run / folder.name, plain], **settings, name="of-both")
    shutil.copy(outputs_path(plain), outputs_path(run / folder.name))
    with pytest.raises(InputError, match="whose folds are not those of"):
        distill(corpus, [run / folder.name], **settings, name="mixed")


def test_folds_that_cannot_be_are_refused_in_one_line(small_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ("teacher", "--dataset", str(small_csv), "--split-column", "split", "--privileged", "none", "--run-dir", str(tmp_path))
    for folds, message in ((1, "got --folds 1; expected 2 or more"), (13, "12 different train texts of class")):
        assert main([*common, "--text-model", "demo", "--folds", str(folds)]) == 2
        error = capsys.readouterr().err.splitlines()
        assert [line for line in error if line.startswith("error")] == error[-1:]
        assert message in error[-1]
    with pytest.raises(TypeError, match=r"folds: got 2\.0; expected int"):
        train_teacher(Corpus.from_texts(["a"], None), None, privileged="none", run_dir=tmp_path, folds=2.0)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="unlabelled texts in the corpus"):
        train_teacher(Corpus.from_texts(["a", "b"], None), None, privileged="none", run_dir=tmp_path, folds=2)


def test_controls_and_frozen_layers_have_folds_too(corpus: Corpus, train: Callable[..., Path], tmp_path: Path) -> None:
    frozen = replace(OPTIMIZATION, freeze_layers=1)
    more = {"privileged": "shuffled", "column": "clip-demo", "optimization": frozen}
    folder, whole = (train(corpus, tmp_path, **more, folds=folds) for folds in (FOLDS, None))
    assert (folder.name, whole.name) == ("teacher-shuffled-folds2", "teacher-shuffled")
    ours, theirs = outputs_of(folder, corpus), outputs_of(whole, corpus)
    held_out = corpus.rows("validation") + corpus.rows("test")
    assert torch.equal(ours.logits[held_out], theirs.logits[held_out])
    assert not any(torch.equal(ours.logits[row], theirs.logits[row]) for row in corpus.rows("train"))


@pytest.mark.parametrize(
    ("given", "beta", "said"),
    [
        ({}, 0, "note: --beta 0, not 1"),
        ({"alpha": 0.0, "predict_image": 1.0}, 1, "note: --beta 1 stays with --alpha 0"),
        ({"alpha": 0.0, "beta": 1.0}, 1, ""),
    ],
)
def test_a_distance_of_embeddings_that_share_no_space_is_told(
    given: dict[str, float], beta: float, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert loss_weights(DistillationSettings(**given), has_folds=True).beta == beta
    error = capsys.readouterr().err
    assert error.startswith(said) if said else not error
