"""Which examples a report shows: cases by the answers of the shown models, and a choice with some of each. Pure functions.

Shapes: N test examples, K classes, V shown models.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lugpi_core.corpora.options import Task
from train.evidence.calibration import Reliability, class_reliability, reliability, same
from train.evidence.fidelity import Teachers
from train.evidence.resampling import MacroF1
from train.evidence.row_figures import ScoredModel
from train.learning.task_rules import rules_of

Role = Literal["baseline", "teacher", "student"]
Bools = NDArray[np.bool_]


# Of a regression, the share of the examples with the largest errors that makes a case of its own.
WORST_SHARE = 0.1


@dataclass(frozen=True, kw_only=True)
class ShownModel:
    """A model whose answers are shown next to those of others.

    Attributes:
        role: baseline, teacher or student.
        name: of its folder; of several teachers, all of them.
        seed: its own; of several teachers, that of the first.
        outputs: float64 [N, K], probabilities, or numbers; of several teachers, their mean, weighted by their shares.
        answers: int64 [N], float32 [N, K] of 0 and 1, or float64 [N].
        labels: in the same form.
        reliability: of its answers, or of the classes' probabilities if there are several labels; None of a regression.
        task: what the labels are.
    """

    role: Role
    name: str
    outputs: NDArray[np.float64]
    answers: NDArray[Any]
    labels: NDArray[Any]
    reliability: Reliability | None
    task: Task = "single-label"
    seed: int = 0

    @cached_property
    def hits(self) -> Bools:
        """bool [N], whether each answer is right, all of its classes if there are several; of a regression, whether its error is not among
        the largest tenth."""
        if self.task == "regression":
            return np.asarray(self.errors <= np.quantile(self.errors, 1 - WORST_SHARE))
        return same(self.answers, self.labels)

    @property
    def errors(self) -> NDArray[np.float64]:
        """float64 [N], the distance of each number from its label."""
        return np.asarray(np.abs(self.answers - self.labels))

    @property
    def score(self) -> float | None:
        """The primary metric of its answers; None where it is undefined."""
        match self.task:
            case "single-label":
                return float(self.hits.mean())
            case "multi-label":
                return MacroF1(self.labels > 0, self.answers > 0).value
            case "regression":
                return rules_of(self.task).scores(self.labels, self.answers[:, None])["spearman"]

    @property
    def confidence(self) -> NDArray[np.float64]:
        """float64 [N], the probability of each answer of one class."""
        return np.asarray(np.take_along_axis(self.outputs, self.answers[:, None], axis=1)[:, 0])

    @property
    def confusion(self) -> NDArray[np.int64]:
        """int64 [K, K], how many examples of a class (row) got an answer (column)."""
        classes = self.outputs.shape[1]
        counts: NDArray[np.int64] = np.bincount(self.labels * classes + self.answers, minlength=classes**2).reshape(classes, classes)
        return counts

    @property
    def class_f1(self) -> NDArray[np.float64]:
        """float64 [K], the F1 of each class if there are several labels."""
        found_K, named_K = np.split(MacroF1(self.labels > 0, self.answers > 0).parts.sum(axis=0), 2)
        return np.asarray(2 * found_K / np.maximum(named_K, 1))


def shown_model(role: Role, model: ScoredModel) -> ShownModel:
    """Return a model's answers to the test examples."""
    test = model.test
    return ShownModel(
        role=role,
        name=model.folder.name,
        outputs=rules_of(test.task).outputs(test.logits),
        answers=test.predicted,
        labels=test.labels,
        reliability=_reliability(test.task, test.logits, test.labels),
        task=test.task,
        seed=model.metrics["seed"],
    )


def shown_teachers(teachers: Teachers) -> ShownModel:
    """Return the joint answers of a student's teachers."""
    if len(teachers.models) == 1:
        return shown_model("teacher", teachers.models[0])
    test = teachers.models[0].test
    outputs_NK = teachers.outputs
    least = np.finfo(np.float64).tiny
    logits_NK = np.log(np.maximum(outputs_NK, least)) - (np.log(np.maximum(1 - outputs_NK, least)) if test.task == "multi-label" else 0)
    return ShownModel(
        role="teacher",
        name=" + ".join(teacher.folder.name for teacher in teachers.models),
        outputs=outputs_NK,
        answers=teachers.answers,
        labels=test.labels,
        reliability=_reliability(test.task, logits_NK, test.labels),
        task=test.task,
        seed=teachers.models[0].metrics["seed"],
    )


def _reliability(task: Task, logits_NK: NDArray[np.float64], labels: NDArray[Any]) -> Reliability | None:
    if task == "regression":
        return None
    return reliability(logits_NK, labels) if task == "single-label" else class_reliability(logits_NK, labels)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A group of test examples that the page can filter by.

    Attributes:
        key: of the filter.
        label: for the reader.
        holds: bool [N].
    """

    key: str
    label: str
    holds: Bools


def cases_of(models: Sequence[ShownModel]) -> list[Case]:
    """Return the cases of the shown models: one is wrong where another is right, their answers differ, all are right, all are wrong. Of a
    regression: one is farther from the label than another, and the largest errors of each."""
    if models and models[0].task == "regression":
        return [
            *(
                Case(
                    key=f"{first.role}-farther-{second.role}-nearer",
                    label=f"{first.role} farther, {second.role} nearer",
                    holds=np.asarray(first.errors > second.errors),
                )
                for first, second in permutations(models, 2)
            ),
            *(Case(key=f"{model.role}-worst", label=f"the largest errors of the {model.role}", holds=~model.hits) for model in models),
        ]
    cases = [
        Case(
            key=f"{first.role}-wrong-{second.role}-right", label=f"{first.role} wrong, {second.role} right", holds=~first.hits & second.hits
        )
        for first, second in permutations(models, 2)
    ]
    if not models:
        return cases
    hits = np.array([model.hits for model in models])
    if len(models) > 1:
        differ = np.any([~same(model.answers, models[0].answers) for model in models[1:]], axis=0)
        cases.append(Case(key="answers-differ", label="the answers differ", holds=np.asarray(differ)))
    every = "all" if len(models) > 1 else models[0].role
    cases.append(Case(key="all-right", label=f"{every} right", holds=np.asarray(hits.all(axis=0))))
    cases.append(Case(key="all-wrong", label=f"{every} wrong", holds=np.asarray(~hits.any(axis=0))))
    return cases


def pattern_of(models: Sequence[ShownModel], examples: int) -> NDArray[np.int64]:
    """Return a number for each example, int64 [N]: equal where the same models are right."""
    return np.asarray(sum((model.hits.astype(np.int64) << n for n, model in enumerate(models)), np.zeros(examples, np.int64)))


def chosen_examples(pattern_N: NDArray[np.int64], has_image_N: Bools, count: int, seed: int) -> NDArray[np.int64]:
    """Return at most ``count`` test examples, int64, ascending: those with an image before those without, and among each the same number
    of every pattern of right and wrong while there are any, so that rare patterns are included; at random within a pattern.

    Args:
        pattern_N: the pattern of each example.
        has_image_N: whether it has an image.
        count: how many to choose.
        seed: of the draws.
    """
    generator = np.random.default_rng(seed)
    chosen: list[int] = []
    for tier in (has_image_N, ~has_image_N):
        queues = [generator.permutation(np.flatnonzero(tier & (pattern_N == pattern))).tolist() for pattern in np.unique(pattern_N)]
        longest = max(map(len, queues), default=0)
        chosen += [queue[n] for n in range(longest) for queue in queues if n < len(queue)]
    return np.sort(np.array(chosen[:count], np.int64))


@dataclass(frozen=True, kw_only=True)
class ClassChange:
    """How a model's answers to one class's test examples differ from another's: how many became right, and how many wrong. With several
    labels, its yes or no for the class to every test example."""

    label: int
    examples: int
    repaired: int
    broken: int


def changes_by_class(before: ShownModel, after: ShownModel) -> list[ClassChange]:
    """Return the changes of every class that has test examples, the greatest gain first. Not of a regression."""
    classes = after.outputs.shape[1]
    if after.task == "multi-label":
        concerned_NK = np.ones(after.labels.shape, bool)
        was_right_NK, is_right_NK = (model.answers == model.labels for model in (before, after))
    else:
        concerned_NK = after.labels[:, None] == np.arange(classes)
        was_right_NK, is_right_NK = (concerned_NK & model.hits[:, None] for model in (before, after))
    counted = {
        "examples": concerned_NK.sum(axis=0),
        "repaired": (is_right_NK & ~was_right_NK).sum(axis=0),
        "broken": (was_right_NK & ~is_right_NK).sum(axis=0),
    }
    changes = [ClassChange(label=k, **{name: int(counts[k]) for name, counts in counted.items()}) for k in range(classes)]
    return sorted((change for change in changes if change.examples), key=lambda change: (change.broken - change.repaired, change.label))
