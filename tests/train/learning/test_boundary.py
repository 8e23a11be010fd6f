"""Samples behind a teacher's boundary: the step and the loss by hand, and students that are distilled on them."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lugpi_core.corpora.corpus import Corpus
from lugpi_core.errors import InputError
from lugpi_core.runtime.stopping import Stopped
from tests.support.interruption import stop_once
from tests.support.small_tasks import SPLITS, multi_label_corpus, regression_corpus
from tests.support.small_training import tiny_classifier
from tests.support.topics import topic_texts
from train.evidence.compare import compare
from train.evidence.rows import Row
from train.evidence.schedule import row_loss
from train.evidence.shadows import Recorded
from train.learning.boundary import BEHIND, Heads, boundary_loss, boundary_samples, drawn_classes
from train.learning.losses import KD_PRESETS, TeacherTarget, distillation, distillation_loss
from train.learning.networks import Student, TextClassifier
from train.models.api import distill, train_teacher
from train.models.kinds import loss_weights, plain_weights, require_boundary
from train.options.settings import KD_EXTRA_WEIGHT, DistillationSettings, Optimization, Placement
from train.options.sweep import SweepOptions

TRAINING: Any = {"text_model": "demo", "placement": Placement(device="cpu")}
BSS = DistillationSettings(kd_extra="bss")
Train = Callable[..., Path]


def optimization(**more: Any) -> Optimization:
    return Optimization(**{"epochs": 2, "learning_rate": 1e-3, "optimizer": "adamw", **more})


def softmax(logits: Any) -> Any:
    return np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)


def test_a_step_ends_behind_the_boundary_of_two_classes_by_hand() -> None:
    head = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    logits = torch.tensor([[2.0, 1.0, -5.0]])
    steps, is_sample = boundary_samples(logits, head, torch.tensor([0]), torch.tensor([1]))
    # L = 1, g = (1, -1), |g|² = 2
    np.testing.assert_allclose(steps, [[-(1 + BEHIND) / 2, (1 + BEHIND) / 2]], rtol=1e-6)
    assert is_sample.tolist() == [True]
    there = logits + steps @ head.T
    np.testing.assert_allclose(there, [[1.5, 1.5, -5.0]], atol=1e-4)
    assert float(there[0, 1] - there[0, 0]) == pytest.approx(BEHIND, rel=1e-2)


@pytest.mark.parametrize(
    ("logits", "label", "why"),
    [
        ([2.0, 1.0, 1.9], 0, "the third class wins where the other two are equal"),
        ([1.0, 2.0, -5.0], 0, "the teacher is wrong"),
        ([2.0, 1.0, -5.0], -1, "the text has no label"),
    ],
)
def test_a_text_without_a_boundary_to_cross_is_no_sample(logits: list[float], label: int, why: str) -> None:
    steps, is_sample = boundary_samples(torch.tensor([logits]), torch.eye(3), torch.tensor([label]), torch.tensor([1]))
    assert not is_sample.any(), why
    assert not steps.any()


def test_teachers_whose_classes_have_one_direction_give_finite_losses() -> None:
    heads = Heads(torch.randn(2, 3), torch.ones(2, 3))
    student = torch.randn(4, 2, requires_grad=True)
    loss = boundary_loss(student, 50 * torch.randn(4, 2), heads, torch.tensor([0, 1, 0, 1]), temperature=1.0, soften_student=False)
    torch.autograd.backward(loss)
    assert float(loss.detach()) == 0
    assert student.grad is not None
    assert not student.grad.any()


@pytest.mark.parametrize("preset", KD_PRESETS)
def test_the_loss_is_its_formula_with_every_preset(preset: Any) -> None:
    weights = distillation(preset, kd_extra="bss", kd_extra_weight=1.5)
    # Of two classes the other one is drawn for certain. The last text has no label, and of the second the teacher is wrong.
    t, s = np.array([[2.0, 1.0], [3.0, -1.0], [-0.5, 4.0], [1.0, 0.0]]), np.array([[1.0, 0.5], [0.0, 0.2], [0.3, -0.4], [2.0, 1.0]])
    m, w = np.array([[1.0, 0.5, 0.0], [-0.5, 1.0, 2.0]]), np.array([[0.2, -0.3, 0.4], [1.0, 0.1, -0.6]])
    labels, expected = np.array([0, 1, 1, -1]), 0.0
    for row in (0, 2):
        b, k = labels[row], 1 - labels[row]
        g = m[b] - m[k]
        step = -(t[row, b] - t[row, k] + BEHIND) * g / (g @ g)
        there, moved, tau = t[row] + m @ step, s[row] + w @ step, weights.temperature
        q = softmax(moved / tau if weights.soften_student else moved)
        expected += -(softmax(there / tau) * np.log(q)).sum() * (tau**2 if weights.soften_student else 1) / 4
    e = torch.zeros(4, 3)
    heads = Heads(torch.from_numpy(w).float(), torch.from_numpy(m).float())
    given = [torch.from_numpy(part).float() for part in (s, t)]

    def loss(of: Any) -> float:
        targets = [TeacherTarget(0.4, given[1], e, e, heads=heads), TeacherTarget(0.6, given[1], e, e, heads=heads)]
        return float(distillation_loss(of, given[0], targets, torch.from_numpy(labels)))

    assert loss(weights) - loss(distillation(preset)) == pytest.approx(1.5 * expected, rel=1e-4)
    with pytest.raises(ValueError, match="kd_extra without heads"):
        distillation_loss(weights, given[0], [TeacherTarget(1.0, given[1], e, e)], torch.from_numpy(labels))


def test_other_classes_are_drawn_as_the_teacher_finds_them_likely() -> None:
    torch.manual_seed(0)
    logits = torch.tensor([[3.0, 1.0, 0.0, -1.0]]).expand(20_000, -1)
    drawn = torch.bincount(drawn_classes(logits, torch.zeros(20_000, dtype=torch.int64)), minlength=4) / 20_000
    np.testing.assert_allclose(drawn, [0, *softmax(np.array([1.0, 0.0, -1.0]))], atol=0.015)


def test_gradients_reach_the_student_and_not_the_teacher() -> None:
    student, teacher = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    logits = torch.tensor([[0.5, 0.1]], requires_grad=True)
    loss = boundary_loss(
        logits, torch.tensor([[2.0, 1.0]]), Heads(student, teacher), torch.tensor([0]), temperature=2.0, soften_student=True
    )
    torch.autograd.backward(loss)
    assert student.grad is not None
    assert student.grad.abs().sum() > 0
    assert logits.grad is not None
    assert teacher.grad is None


@pytest.mark.parametrize("width", [32, 7])
def test_a_step_adds_to_logits_what_the_heads_say(width: int) -> None:
    head = torch.randn(5, width)
    network = Student(TextClassifier(tiny_classifier("distilbert")), [width], (), [head]).eval()
    output = network({"input_ids": torch.arange(8).reshape(2, 4), "attention_mask": torch.ones(2, 4, dtype=torch.long)})
    step = torch.randn(2, 32)
    [heads] = output.heads
    moved = network.classifier.last_linear(output.embeddings + step)
    torch.testing.assert_close(output.logits + step @ heads.student_KD.T, moved)
    project: Any = network.project[0]
    torch.testing.assert_close(step @ heads.teacher_KD.T, (project(step) - project(torch.zeros(2, 32))) @ head.T)
    assert not [name for name in network.state_dict() if "teacher_head" in name], "it is no weight of the student"


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    texts, topics = zip(*topic_texts(60), strict=True)
    return Corpus.from_texts(texts, topics, splits=SPLITS, name="topics")


@pytest.fixture(scope="module")
def run(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a text-only teacher that tells the topics apart."""
    folder = tmp_path_factory.mktemp("boundary") / "topics"
    own = optimization(epochs=8, learning_rate=2e-3)
    train_teacher(corpus, None, privileged="none", name="teacher", run_dir=folder, optimization=own, **TRAINING)
    return folder


@pytest.fixture(scope="module")
def student(corpus: Corpus, run: Path) -> Train:
    def train(name: str, loss: DistillationSettings = BSS, **more: Any) -> Path:
        own = {"optimization": optimization(epochs=1), **TRAINING, **more}
        return distill(corpus, [run / "teacher"], distillation=loss, name=name, **own).folder

    return train


def json_of(path: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(path.read_text())
    return record


def test_a_stopped_student_draws_the_same_classes_again_and_the_term_decides_it(
    student: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, plain = student("whole"), student("plain", DistillationSettings())
    stop_once(monkeypatch, step=2)
    with pytest.raises(Stopped):
        student("stopped")
    assert (student("stopped") / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    losses = [json_of(folder / "metrics.json")["history"][0]["loss"] for folder in (whole, plain)]
    assert losses[0] > losses[1] + 0.1, "some texts have a boundary"
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (whole, plain))
    assert {name: weight.shape for name, weight in ours.items()} == {name: weight.shape for name, weight in theirs.items()}
    recorded = [json_of(folder / "training.json")["distillation"] for folder in (whole, plain)]
    assert recorded[0] == {**recorded[1], "kd_extra": "bss", "kd_extra_weight": 2.0}
    assert "kd_extra" not in recorded[1], "older students are recognized"
    assert plain_weights(Recorded.of(whole).loss) == plain_weights(BSS), "an audit trains shadows with the same loss"
    with pytest.raises(InputError, match=r"distillation.kd_extra_weight: found 2.0, wanted 1.0"):
        student("whole", replace(BSS, kd_extra_weight=1.0))
    assert "note: --kd-extra" not in capsys.readouterr().err
    loss_weights(replace(BSS, kd_preset="hinton"))
    assert "note: --kd-extra bss with --beta 0" in capsys.readouterr().err


def test_what_has_no_boundary_is_refused_in_one_line_before_anything_is_trained(tmp_path: Path) -> None:
    for make, task in ((multi_label_corpus, "multi-label"), (regression_corpus, "regression")):
        with pytest.raises(
            InputError, match=rf"--kd-extra bss for a {task} task, .*; expected one class for each text; leave --kd-extra out"
        ):
            compare(make(), tmp_path, seeds=1, rows=["student-none"], distillation=BSS, optimization=optimization(), **TRAINING)
        with pytest.raises(InputError, match=f"--kd-extra bss for a {task} task"):
            require_boundary(BSS, task, has_folds=False)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="with teachers of folds, each of which has a boundary of its own"):
        require_boundary(BSS, "single-label", has_folds=True)
    with pytest.raises(InputError, match="--kd-extra bss with --teacher-weights learnt, a mixture"):
        require_boundary(BSS, "single-label", has_folds=False, is_mixed=True)
    assert not list(tmp_path.iterdir())


def test_a_weight_needs_what_it_weighs() -> None:
    for weight in (0.0, -1.0, float("inf")):
        with pytest.raises(InputError, match="expected a weight above 0"):
            DistillationSettings(kd_extra="bss", kd_extra_weight=weight)
    with pytest.raises(InputError, match=r"--kd-extra-weight 3.0 without --kd-extra"):
        DistillationSettings(kd_extra_weight=3.0)
    with pytest.raises(InputError, match=r"--kd-extra-weight 1.0 without --kd-extra"):
        SweepOptions(dataset="demo", over=("kd_extra_weight=1:4",))
    both = SweepOptions(dataset="demo", over=("kd_extra_weight=1:4",), kd_extra="bss")
    assert (both.space[0].low, both.space[0].high) == (1.0, 4.0)
    assert SweepOptions(dataset="demo", over=("kd_extra=none,bss",)).space[0].choices == ("none", "bss")


def test_a_swept_kd_extra_has_its_weight_where_it_is_not_none() -> None:
    given = SweepOptions(dataset="demo", over=("kd_extra=none,bss",), kd_extra_weight=3.0)
    assert [given.student({"kd_extra": value}).kd_extra_weight for value in ("none", "bss")] == [KD_EXTRA_WEIGHT, 3.0]
    swept = SweepOptions(dataset="demo", over=("kd_extra=none,bss", "kd_extra_weight=1:4"))
    weights = [swept.student({"kd_extra": value, "kd_extra_weight": 1.5}).kd_extra_weight for value in ("none", "bss")]
    assert weights == [KD_EXTRA_WEIGHT, 1.5]
    with pytest.raises(InputError, match="expected a weight above 0"):
        SweepOptions(dataset="demo", over=("kd_extra=none,bss", "kd_extra_weight=0:4"))


def test_a_row_without_soft_labels_is_without_it() -> None:
    weighted = replace(BSS, kd_extra_weight=1.0)
    row = Row(name="student-clip-l2", command="student", groups=(), teachers=("teacher-clip",), terms="l2")
    assert row_loss(weighted, row) == DistillationSettings(alpha=0.0)
    assert row_loss(weighted, replace(row, terms="ce")) == replace(weighted, beta=0.0)
