"""The rules of each task against written formulas and scikit-learn, SciPy and torch."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, f1_score
from sklearn.utils.class_weight import compute_class_weight

from lugpi_core.corpora.corpus import UNLABELLED
from lugpi_core.corpora.options import Task
from lugpi_core.errors import InputError
from train.learning.task_rules import best_threshold, plain_number, rules_of, task_of

TASKS: tuple[Task, ...] = ("single-label", "multi-label", "regression")
Array = NDArray[np.float64]


def sigmoid(logits: Array) -> Array:
    return 1 / (1 + np.exp(-logits))


def targets_of(task: Task, generator: np.random.Generator, examples: int, classes: int) -> NDArray[Any]:
    match task:
        case "single-label":
            return generator.integers(0, classes, examples)
        case "multi-label":
            return generator.integers(0, 2, (examples, classes)).astype(np.float32)
        case "regression":
            return generator.normal(2, 3, examples).astype(np.float32)


def without_label(task: Task, targets: NDArray[Any], rows: slice) -> NDArray[Any]:
    targets = targets.copy()
    targets[rows] = UNLABELLED if task == "single-label" else np.nan
    return targets


@pytest.mark.parametrize("weighted", [False, True])
@given(seed=st.integers(0, 10_000), examples=st.integers(1, 12), classes=st.integers(2, 8), unlabelled=st.integers(0, 5))
def test_the_hard_loss_and_its_gradient_are_the_written_formula(
    weighted: bool, seed: int, examples: int, classes: int, unlabelled: int
) -> None:
    generator = np.random.default_rng(seed)
    labelled = np.arange(examples) < examples - unlabelled
    for task in TASKS:
        logits = generator.normal(0, 3, (examples, 1 if task == "regression" else classes))
        targets = targets_of(task, generator, examples, classes)
        weights = generator.uniform(0.2, 3, classes) if weighted and task != "regression" else np.ones(logits.shape[1])
        losses, gradient = np.zeros(examples), np.zeros_like(logits)
        match task:
            case "single-label":
                shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
                hot = np.eye(classes)[targets]
                losses = -weights[targets] * np.log(shares[np.arange(examples), targets])
                gradient = weights[targets][:, None] * (shares - hot)
            case "multi-label":
                p = sigmoid(logits)
                losses = -(weights * targets * np.log(p) + (1 - targets) * np.log(1 - p)).mean(axis=1)
                gradient = (-weights * targets * (1 - p) + (1 - targets) * p) / classes
            case "regression":
                losses = (logits[:, 0] - targets) ** 2
                gradient = 2 * (logits - targets[:, None])
        tensor = torch.from_numpy(logits).requires_grad_()
        given_targets = torch.from_numpy(without_label(task, targets, slice(max(0, examples - unlabelled), None)))
        found = rules_of(task).hard_loss(tensor, given_targets, torch.from_numpy(weights) if weighted else None)
        assert float(found.detach()) == pytest.approx((losses * labelled).sum() / examples, rel=1e-6, abs=1e-9)
        (slope,) = torch.autograd.grad(found, tensor)
        np.testing.assert_allclose(slope.numpy(), gradient * labelled[:, None] / examples, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("soften_student", [False, True])
@given(seed=st.integers(0, 10_000), examples=st.integers(1, 12), classes=st.integers(1, 8), tau=st.floats(0.5, 10))
def test_the_soft_loss_and_its_gradient_are_the_written_formula(
    soften_student: bool, seed: int, examples: int, classes: int, tau: float
) -> None:
    generator = np.random.default_rng(seed)
    s, t = (generator.normal(0, 3, (examples, classes)) for _ in range(2))
    student = torch.from_numpy(s).requires_grad_()
    soft = {"temperature": tau, "soften_student": soften_student}

    found = rules_of("multi-label").soft_loss(student, torch.from_numpy(t), **soft)
    target, q = sigmoid(t / tau), sigmoid(s / tau if soften_student else s)
    factor = tau**2 if soften_student else 1.0
    assert float(found.detach()) == pytest.approx(-factor * (target * np.log(q) + (1 - target) * np.log(1 - q)).mean(), rel=1e-6)
    (slope,) = torch.autograd.grad(found, student)
    inner = 1 / tau if soften_student else 1.0
    np.testing.assert_allclose(slope.numpy(), factor * inner * (q - target) / s.size, rtol=1e-5, atol=1e-9)

    found = rules_of("regression").soft_loss(student, torch.from_numpy(t), **soft)
    assert float(found.detach()) == pytest.approx(((s - t) ** 2).mean())
    (slope,) = torch.autograd.grad(found, student)
    np.testing.assert_allclose(slope.numpy(), 2 * (s - t) / s.size)


def test_the_multi_label_term_is_the_single_label_one_of_each_class_and_its_absence() -> None:
    s, t = torch.randn(6, 4, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    for softened in (False, True):
        soft: Any = {"temperature": 3.0, "soften_student": softened}
        pairs = [
            rules_of("single-label").soft_loss(
                *(torch.stack([part[:, k], torch.zeros(6, dtype=torch.float64)], dim=1) for part in (s, t)), **soft
            )
            for k in range(4)
        ]
        torch.testing.assert_close(rules_of("multi-label").soft_loss(s, t, **soft), torch.stack(pairs).mean())


@pytest.mark.parametrize("task", TASKS)
def test_a_batch_without_a_label_has_a_loss_of_zero_and_no_gradient(task: Task) -> None:
    logits = torch.randn(3, 1 if task == "regression" else 4, requires_grad=True)
    targets = without_label(task, targets_of(task, np.random.default_rng(0), 3, 4), slice(None))
    loss = rules_of(task).hard_loss(logits, torch.from_numpy(targets))
    assert float(loss.detach()) == 0
    (slope,) = torch.autograd.grad(loss, logits)
    assert not slope.any()


def test_balanced_weights_of_single_labels_are_those_of_scikit_learn() -> None:
    targets = np.array([0, 0, 0, 0, 0, 2, 2, 3], np.int64)
    found = rules_of("single-label").balanced_weights(targets, 5)
    occurring = np.unique(targets)
    np.testing.assert_allclose(found[occurring], compute_class_weight("balanced", classes=occurring, y=targets))
    assert found[[1, 4]].tolist() == [1, 1], "classes without a train example"
    assert found[targets].mean() == pytest.approx(1), "the loss keeps its size"


def test_balanced_weights_of_several_labels_are_negatives_per_positive() -> None:
    targets = np.array([[1, 0, 1], [0, 0, 1], [0, 0, 1], [0, 0, 1]], np.float32)
    found = rules_of("multi-label").balanced_weights(targets, 3)
    assert found.tolist() == [3, 1, 1], "a class that is never or always there keeps its weight: 0 would stop its training"


def test_balanced_weights_of_numbers_are_refused() -> None:
    with pytest.raises(InputError, match="balanced for a regression"):
        rules_of("regression").balanced_weights(np.ones(3), 1)


@given(seed=st.integers(0, 10_000), examples=st.integers(1, 30), classes=st.integers(1, 6))
def test_multi_label_scores_are_those_of_scikit_learn(seed: int, examples: int, classes: int) -> None:
    generator = np.random.default_rng(seed)
    logits, targets = generator.normal(0, 2, (examples, classes)), targets_of("multi-label", generator, examples, classes)
    thresholds = generator.uniform(0.1, 0.9, classes)
    rules = rules_of("multi-label")
    answers = sigmoid(logits) >= thresholds
    assert (rules.answers(logits, thresholds.tolist()) == answers).all()
    assert rules.scores(targets, logits, thresholds.tolist()) == {
        "macro_f1": pytest.approx(np.mean([f1_score(targets[:, k], answers[:, k], zero_division=0.0) for k in range(classes)])),
        "micro_f1": pytest.approx(f1_score(targets.ravel(), answers.ravel(), zero_division=0.0)),
        "subset_accuracy": pytest.approx(accuracy_score(targets, answers)),
    }


def test_texts_without_any_class_are_scored() -> None:
    rules, nothing = rules_of("multi-label"), np.zeros((4, 3), np.float32)
    assert rules.scores(nothing, np.full((4, 3), -5.0)) == {"macro_f1": 0, "micro_f1": 0, "subset_accuracy": 1}
    assert rules.thresholds(nothing, np.full((4, 3), -5.0)) == (0.5, 0.5, 0.5)


@given(seed=st.integers(0, 10_000), examples=st.integers(1, 40), ties=st.booleans())
def test_no_threshold_has_a_higher_f1_than_the_chosen_one(seed: int, examples: int, ties: bool) -> None:
    generator = np.random.default_rng(seed)
    scores = generator.uniform(0, 1, examples).round(1 if ties else 16)
    positive = generator.uniform(0, 1, examples) < 0.3
    chosen = best_threshold(positive, scores)
    assert 0 <= chosen <= 1
    if not positive.any():
        assert chosen == 0.5
        return
    found = f1_score(positive, scores >= chosen, zero_division=0.0)
    for other in (*scores, 0.5, 0.0):
        assert f1_score(positive, scores >= other, zero_division=0.0) <= found + 1e-12


def test_a_half_is_kept_where_no_other_threshold_is_better() -> None:
    assert best_threshold(np.array([True, True, False]), np.array([0.9, 0.55, 0.1])) == 0.5
    assert best_threshold(np.array([True, True, True]), np.array([0.9, 0.8, 0.7])) == 0.5, "all positive, all found"
    assert best_threshold(np.array([True, True, True]), np.array([0.4, 0.3, 0.2])) == pytest.approx(0.1), "all positive, none found"
    assert best_threshold(np.array([True, False, False]), np.array([0.4, 0.2, 0.1])) == pytest.approx(0.3)
    assert best_threshold(np.array([False, True]), np.array([0.0, 0.0])) == 0, "a sigmoid that underflows"


@given(seed=st.integers(0, 10_000), examples=st.integers(3, 30), scale=st.sampled_from([1e-6, 1.0, 1e6]), ties=st.booleans())
def test_correlations_are_those_of_scipy(seed: int, examples: int, scale: float, ties: bool) -> None:
    from scipy.stats import pearsonr, spearmanr

    generator = np.random.default_rng(seed)
    right = generator.normal(0, scale, examples)
    right = np.round(right / scale) * scale if ties else right
    right[0] = 9 * scale  # not all equal
    logits = (right + generator.normal(0, scale, examples))[:, None]
    scores = rules_of("regression").scores(right, logits)
    assert scores["spearman"] == pytest.approx(spearmanr(right, logits[:, 0]).statistic, abs=1e-9)
    assert scores["pearson"] == pytest.approx(pearsonr(right, logits[:, 0]).statistic, abs=1e-9)
    assert scores["mse"] == pytest.approx(((right - logits[:, 0]) ** 2).mean())


@pytest.mark.parametrize(("right", "answers"), [([1, 1, 1], [1, 2, 3]), ([1, 2, 3], [2, 2, 2]), ([5], [4]), ([1e5, 1e5], [0.1, 0.2])])
def test_a_correlation_of_equal_numbers_is_undefined_and_no_nan(right: list[float], answers: list[float]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = rules_of("regression").scores(np.array(right, np.float32), np.array(answers, np.float32)[:, None])
    assert scores["spearman"] is None
    assert scores["pearson"] is None
    assert scores["mse"] is not None


def test_the_outputs_are_those_of_a_pipeline() -> None:
    logits = np.array([[1.0, -2.0, 800.0], [-800.0, 0.0, 3.0]])
    tensor = torch.from_numpy(logits)
    np.testing.assert_allclose(rules_of("single-label").outputs(logits), tensor.softmax(dim=1).numpy())
    np.testing.assert_allclose(rules_of("multi-label").outputs(logits), tensor.sigmoid().numpy())
    np.testing.assert_allclose(rules_of("regression").outputs(logits[:, :1]), logits[:, :1])


@pytest.mark.parametrize("task", TASKS)
def test_a_task_is_known_by_its_hugging_face_name(task: Task) -> None:
    assert task_of(rules_of(task).problem_type) == task
    assert task_of("token_classification") is None


@pytest.mark.parametrize(
    ("value", "digits", "written"),
    [
        (20549.3, 6, "20549.3"),
        (20549.3, 4, "20549"),
        (-10544.3, 4, "-10544"),
        (170.4, 4, "170.4"),
        (0.5, 4, "0.5"),
        (10005.0, 6, "10005"),
        (9_999_999, 4, "9999999"),
        (1e7, 4, "1e+07"),
        (0.00012345, 4, "0.0001234"),
        (0.00001, 4, "1e-05"),
        (0.0, 4, "0"),
        (9999.96, 4, "10000"),
    ],
)
def test_numbers_are_written_without_exponents_unless_very_large_or_small(value: float, digits: int, written: str) -> None:
    assert plain_number(value, digits) == written


@pytest.mark.parametrize("seed", range(20))
def test_macro_f1_of_one_label_is_scikit_learns_to_the_bit(seed: int) -> None:
    numbers = np.random.default_rng(seed)
    classes = int(numbers.integers(2, 9))
    targets, logits = numbers.integers(0, max(classes - seed % 3, 1), 50), numbers.normal(size=(50, classes))
    expected = f1_score(targets, logits.argmax(axis=1), average="macro", zero_division=0.0)
    assert rules_of("single-label").scores(targets, logits)["macro_f1"] == expected
