"""Which examples a report shows: the cases that models' answers make, and a choice that has some of each. Pure functions.

Shapes: N test examples, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from train.evidence.calibration import Reliability, answers, probabilities, reliability, teachers_answers
from train.evidence.fidelity import Teachers
from train.evidence.row_figures import ScoredModel

Role = Literal["baseline", "teacher", "student"]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Voice:
    """One of the models whose answers are shown side by side.

    Attributes:
        role: what it is to the others.
        name: of its folder; of several teachers, all of them.
        examples: hash of the test examples.
        probabilities: float64 [N, K]; of several teachers, their mean, weighted by their shares.
        answers: int64 [N].
        labels: int64 [N].
        reliability: of its answers.
    """

    role: Role
    name: str
    examples: str
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


def voice(role: Role, model: ScoredModel) -> Voice:
    """Return one model's word on the test examples."""
    test = model.test
    return Voice(
        role=role,
        name=model.folder.name,
        examples=test.examples,
        probabilities=probabilities(test.logits),
        answers=answers(test.logits),
        labels=test.labels,
        reliability=reliability(test.logits, test.labels),
    )


def voice_of_teachers(teachers: Teachers) -> Voice:
    """Return what a student's teachers say together."""
    if len(teachers.models) == 1:
        return voice("teacher", teachers.models[0])
    logits = [teacher.test.logits for teacher in teachers.models]
    parts = zip(teachers.shares, logits, strict=True)
    mixed_NK = np.asarray(sum(share * probabilities(one) for share, one in parts))
    test = teachers.models[0].test
    return Voice(
        role="teacher",
        name=" + ".join(teacher.folder.name for teacher in teachers.models),
        examples=test.examples,
        probabilities=mixed_NK,
        answers=teachers_answers(logits, teachers.shares),
        labels=test.labels,
        reliability=reliability(np.log(np.maximum(mixed_NK, np.finfo(np.float64).tiny)), test.labels),
    )


@dataclass(frozen=True, kw_only=True)
class Case:
    """A question that an example answers with yes or no.

    Attributes:
        key: of the filter.
        words: as a reader is asked.
        holds: bool [N].
    """

    key: str
    words: str
    holds: Bools


def cases_of(voices: Sequence[Voice]) -> list[Case]:
    """Return the cases that voices make: who is wrong where another is right, where their answers differ, where all are right or wrong."""
    cases = [
        Case(key=f"{one.role}-wrong-{other.role}-right", words=f"{one.role} wrong, {other.role} right", holds=~one.hits & other.hits)
        for one, other in permutations(voices, 2)
    ]
    if not voices:
        return cases
    hits = np.array([one.hits for one in voices])
    if len(voices) > 1:
        answers_VN = np.array([one.answers for one in voices])
        differ = np.asarray((answers_VN != answers_VN[0]).any(axis=0))
        cases.append(Case(key="answers-differ", words="the answers differ", holds=differ))
    every = "all" if len(voices) > 1 else voices[0].role
    cases.append(Case(key="all-right", words=f"{every} right", holds=np.asarray(hits.all(axis=0))))
    cases.append(Case(key="all-wrong", words=f"{every} wrong", holds=np.asarray(~hits.any(axis=0))))
    return cases


def pattern_of(voices: Sequence[Voice], examples: int) -> NDArray[np.int64]:
    """Return a number for each example, int64 [N]: equal where the same voices are right."""
    return np.asarray(sum((one.hits.astype(np.int64) << n for n, one in enumerate(voices)), np.zeros(examples, np.int64)))


def chosen_examples(pattern_N: NDArray[np.int64], has_picture_N: Bools, count: int, seed: int) -> NDArray[np.int64]:
    """Return at most ``count`` test examples, int64, ascending: those that have a picture before those that have none, and among each, as
    many of every pattern of right and wrong as there are, in turn, so that what is rare is there too; within a pattern at random.

    Args:
        pattern_N: the pattern of each example.
        has_picture_N: whether it has a picture.
        count: how many are wanted.
        seed: of the draws.
    """
    chance = np.random.default_rng(seed)
    chosen: list[int] = []
    for tier in (has_picture_N, ~has_picture_N):
        queues = [chance.permutation(np.flatnonzero(tier & (pattern_N == one))).tolist() for one in np.unique(pattern_N)]
        longest = max(map(len, queues), default=0)
        chosen += [queue[n] for n in range(longest) for queue in queues if n < len(queue)]
    return np.sort(np.array(chosen[:count], np.int64))


@dataclass(frozen=True, kw_only=True)
class ClassChange:
    """What a model changes of one class's test examples beside another: how many answers became right, and how many wrong."""

    label: int
    examples: int
    repaired: int
    broken: int


def changes_by_class(before: Voice, after: Voice) -> list[ClassChange]:
    """Return the changes of every class that has test examples, the greatest gain first."""
    classes, labels = after.probabilities.shape[1], after.labels
    counted = {
        "examples": np.bincount(labels, minlength=classes),
        "repaired": np.bincount(labels[after.hits & ~before.hits], minlength=classes),
        "broken": np.bincount(labels[before.hits & ~after.hits], minlength=classes),
    }
    changes = [ClassChange(label=k, **{name: int(counts[k]) for name, counts in counted.items()}) for k in range(classes)]
    return sorted((one for one in changes if one.examples), key=lambda one: (one.broken - one.repaired, one.label))
