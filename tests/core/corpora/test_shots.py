"""A few train texts of each class: as many as asked, nested, other ones in each episode; and what is refused."""

from collections import Counter

import pytest

from lugpi_core.corpora.corpus import Corpus
from lugpi_core.corpora.options import Task
from lugpi_core.corpora.shots import shots_of
from lugpi_core.errors import InputError


def corpus(texts: list[str] | None = None) -> Corpus:
    train = texts or [f"text {n}" for n in range(40)]
    labels = [("a", "b")[n % 2] for n in range(len(train))]
    return Corpus.from_texts([*train, "v", "t"], [*labels, "a", "b"], splits=["train"] * len(train) + ["validation", "test"])


def test_each_class_has_as_many_texts_and_fewer_shots_are_a_part_of_more() -> None:
    one = corpus()
    few, more = shots_of(one, 3, episode=5), shots_of(one, 8, episode=5)
    for rows, shots in ((few, 3), (more, 8)):
        assert Counter(one.examples[row].label for row in rows) == {0: shots, 1: shots}
        assert rows == sorted(set(rows) & set(one.rows("train")))
    assert set(few) < set(more)
    assert shots_of(one, 3, episode=5) == few
    assert len({tuple(shots_of(one, 3, episode=episode)) for episode in range(10)}) == 10
    assert shots_of(one, 20, episode=0) == one.rows("train")


def test_a_repeated_text_is_one_shot() -> None:
    with pytest.warns(UserWarning, match="repeat an earlier one"):
        one = corpus([f"text {n % 10}" for n in range(40)])
    rows = shots_of(one, 5, episode=0)
    assert len({one.examples[row].text for row in rows}) == 10
    with pytest.raises(InputError, match=r"got --shots 6 for 5 different train texts of class 'a' of .*; give --shots 5 or less"):
        shots_of(one, 6, episode=0)


@pytest.mark.parametrize(("task", "labels"), [("regression", [0.5, 1.5, 2.5, 3.5]), ("multi-label", [["a"], ["b"], ["a"], ["b"]])])
def test_shots_are_of_single_classes(task: Task, labels: list[object]) -> None:
    one = Corpus.from_texts(["p", "q", "r", "s"], labels, splits=["train", "train", "validation", "test"], task=task)
    with pytest.raises(InputError, match=f"got --shots with a {task} corpus; expected texts with one class each"):
        shots_of(one, 1, episode=0)
