"""Which examples a report shows: cases and choice, against loops over examples."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.evidence.calibration import reliability
from train.report.cases import Role, ShownModel, cases_of, changes_by_class, chosen_examples, pattern_of

LABELS = np.array([0, 0, 1, 1, 2, 2])


def model_with(role: Role, answers: list[int]) -> ShownModel:
    logits = np.eye(3)[answers] * 2
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return ShownModel(
        role=role,
        name=role,
        outputs=shares,
        answers=np.array(answers),
        labels=LABELS,
        reliability=reliability(logits, LABELS),
    )


MODELS = [model_with("baseline", [0, 1, 1, 2, 0, 0]), model_with("teacher", [0, 0, 1, 2, 2, 1]), model_with("student", [0, 0, 0, 2, 2, 1])]


def test_cases_by_hand() -> None:
    held = {case.key: np.flatnonzero(case.holds).tolist() for case in cases_of(MODELS)}
    assert held == {
        "baseline-wrong-teacher-right": [1, 4],
        "baseline-wrong-student-right": [1, 4],
        "teacher-wrong-baseline-right": [],
        "teacher-wrong-student-right": [],
        "student-wrong-baseline-right": [2],
        "student-wrong-teacher-right": [2],
        "answers-differ": [1, 2, 4, 5],
        "all-right": [0],
        "all-wrong": [3, 5],
    }
    assert [case.key for case in cases_of(MODELS[:1])] == ["all-right", "all-wrong"]
    assert cases_of(MODELS[:1])[1].label == "baseline wrong"
    assert cases_of([]) == []


def test_confusions_and_confidence_by_hand() -> None:
    assert MODELS[0].confusion.tolist() == [[1, 1, 0], [0, 1, 1], [2, 0, 0]]
    assert MODELS[0].confidence == pytest.approx(np.exp(2) / (np.exp(2) + 2))
    assert pattern_of(MODELS, 6).tolist() == [7, 6, 3, 0, 6, 0]


def test_changes_of_each_class_the_greatest_gain_first() -> None:
    found = changes_by_class(MODELS[0], MODELS[2])
    assert [(one.label, one.examples, one.repaired, one.broken) for one in found] == [(0, 2, 1, 0), (2, 2, 1, 0), (1, 2, 0, 1)]


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=80), st.integers(0, 90), st.integers(0, 5))
def test_images_come_first_and_patterns_in_equal_numbers(examples: list[tuple[int, bool]], count: int, seed: int) -> None:
    pattern = np.array([one for one, _ in examples], np.int64)
    has_image = np.array([there for _, there in examples], np.bool_)
    chosen = chosen_examples(pattern, has_image, count, seed)
    assert len(chosen) == min(count, len(examples))
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert chosen.tolist() == chosen_examples(pattern, has_image, count, seed).tolist()
    left_out = np.setdiff1d(np.arange(len(examples)), chosen)
    if (~has_image[chosen]).any():
        assert not has_image[left_out].any(), "one without an image came before one with an image"
    for tier in (True, False):
        taken = Counter(pattern[n] for n in chosen.tolist() if has_image[n] == tier)
        for one in {pattern[n] for n in left_out.tolist() if has_image[n] == tier}:
            assert taken[one] >= max(taken.values(), default=0) - 1, "a pattern that has more was passed over"


def test_another_seed_chooses_others() -> None:
    pattern, has_image = np.zeros(1000, np.int64), np.ones(1000, np.bool_)
    assert chosen_examples(pattern, has_image, 10, 0).tolist() != chosen_examples(pattern, has_image, 10, 1).tolist()
