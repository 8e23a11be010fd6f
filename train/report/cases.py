"""Which examples a report shows: cases by the answers of the shown models, and a choice with some of each. Pure functions.

Shapes: N test examples, K classes, V shown models.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from train.evidence.calibration import Reliability, answers, probabilities, reliability
from train.evidence.fidelity import Teachers
from train.evidence.row_figures import ScoredModel

Role = Literal["baseline", "teacher", "student"]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class ShownModel:
    """A model whose answers are shown next to those of others.

    Attributes:
        role: baseline, teacher or student.
        name: of its folder; of several teachers, all of them.
        probabilities: float64 [N, K]; of several teachers, their mean, weighted by their shares.
        answers: int64 [N].
        labels: int64 [N].
        reliability: of its answers.
    """

    role: Role
    name: str
    probabilities: NDArray[np.float64]
    answers: NDArray[np.int64]
    labels: NDArray[np.int64]
    reliability: Reliability

    @property
    def hits(self) -> Bools:
        """bool [N], whether each answer is right."""
        hits: Bools = self.answers == self.labels
        return hits

    @property
    def confidence(self) -> NDArray[np.float64]:
        """float64 [N], the probability of each answer."""
        return np.asarray(np.take_along_axis(self.probabilities, self.answers[:, None], axis=1)[:, 0])

    @property
    def confusion(self) -> NDArray[np.int64]:
        """int64 [K, K], how many examples of a class (row) got an answer (column)."""
        classes = self.probabilities.shape[1]
        counts: NDArray[np.int64] = np.bincount(self.labels * classes + self.answers, minlength=classes**2).reshape(classes, classes)
        return counts


def shown_model(role: Role, model: ScoredModel) -> ShownModel:
    """Return a model's answers to the test examples."""
    test = model.test
    return ShownModel(
        role=role,
        name=model.folder.name,
        probabilities=probabilities(test.logits),
        answers=answers(test.logits),
        labels=test.labels,
        reliability=reliability(test.logits, test.labels),
    )


def shown_teachers(teachers: Teachers) -> ShownModel:
    """Return the joint answers of a student's teachers."""
    if len(teachers.models) == 1:
        return shown_model("teacher", teachers.models[0])
    test = teachers.models[0].test
    parts = zip(teachers.shares, teachers.models, strict=True)
    mixed_NK = np.asarray(sum(share * probabilities(teacher.test.logits) for share, teacher in parts))
    return ShownModel(
        role="teacher",
        name=" + ".join(teacher.folder.name for teacher in teachers.models),
        probabilities=mixed_NK,
        answers=teachers.answers,
        labels=test.labels,
        reliability=reliability(np.log(np.maximum(mixed_NK, np.finfo(np.float64).tiny)), test.labels),
    )


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
    """Return the cases of the shown models: one is wrong where another is right, their answers differ, all are right, all are wrong."""
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
        answers_VN = np.array([model.answers for model in models])
        differ = np.asarray((answers_VN != answers_VN[0]).any(axis=0))
        cases.append(Case(key="answers-differ", label="the answers differ", holds=differ))
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
    """How a model's answers to one class's test examples differ from another's: how many became right, and how many wrong."""

    label: int
    examples: int
    repaired: int
    broken: int


def changes_by_class(before: ShownModel, after: ShownModel) -> list[ClassChange]:
    """Return the changes of every class that has test examples, the greatest gain first."""
    classes, labels = after.probabilities.shape[1], after.labels
    counted = {
        "examples": np.bincount(labels, minlength=classes),
        "repaired": np.bincount(labels[after.hits & ~before.hits], minlength=classes),
        "broken": np.bincount(labels[before.hits & ~after.hits], minlength=classes),
    }
    changes = [ClassChange(label=k, **{name: int(counts[k]) for name, counts in counted.items()}) for k in range(classes)]
    return sorted((change for change in changes if change.examples), key=lambda change: (change.broken - change.repaired, change.label))
