"""Accuracy, macro-F1 and McNemar's test, against counts made by hand."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lugpi_core.errors import InputError
from lugpi_core.examples import SPLITS, Corpus, Example
from train.metrics import markdown_table, mcnemar, read_hits, scores_by_split, write_predictions


def corpus_of(labels: list[int]) -> Corpus:
    examples = tuple(Example(id=f'a,"b"/{n}', text="t", prompt="p", label=label, split=SPLITS[n % 3]) for n, label in enumerate(labels))
    return Corpus(name="c", label_names=("x", "y", "z"), examples=examples, license="none")


def test_scores_are_those_of_each_split() -> None:
    labels = [0, 0, 0, 1, 1, 1, 2, 2, 2]
    predicted = [0, 1, 0, 1, 1, 1, 0, 2, 2]
    logits = torch.nn.functional.one_hot(torch.tensor(predicted), 3).float()
    scores = scores_by_split(corpus_of(labels), logits)
    assert scores["accuracy"] == {"train": pytest.approx(2 / 3, abs=1e-6), "validation": pytest.approx(2 / 3, abs=1e-6), "test": 1.0}
    # train: labels 0 1 2, predicted 0 1 0 → F1 of 2/3, 1 and 0
    assert scores["macro_f1"]["train"] == pytest.approx((2 / 3 + 1 + 0) / 3, abs=1e-6)


def test_predictions_are_written_and_read_back(tmp_path: Path) -> None:
    corpus = corpus_of([0, 1, 2, 0, 1, 2])
    logits = torch.eye(3).repeat(2, 1)
    logits[3] = torch.tensor([-1e-7, 0.5, -3.0])
    write_predictions(tmp_path / "p.csv", corpus, logits)
    ids, hits = read_hits(tmp_path / "p.csv", "train")
    assert ids == ['a,"b"/0', 'a,"b"/3']
    assert hits.tolist() == [True, False]


def test_predictions_that_are_not_there_are_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="train the model again"):
        read_hits(tmp_path / "p.csv", "test")


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_mcnemars_p_is_the_two_sided_binomial(pairs: list[tuple[bool, bool]]) -> None:
    first, second = (np.array(side) for side in zip(*pairs, strict=True))
    found = mcnemar(first, second)
    b, c = (sum(one and not other for one, other in pairs), sum(other and not one for one, other in pairs))
    n = b + c
    expected = min(1.0, 2 * sum(math.comb(n, k) for k in range(min(b, c) + 1)) / 2**n) if n else 1.0
    assert (found["only_first"], found["only_second"]) == (b, c)
    assert found["p"] == pytest.approx(expected, rel=1e-9)


def test_a_table_lines_up_in_plain_text() -> None:
    lines = markdown_table(("model", "test"), [("a long name", "0.5"), ("b", "")]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[1] == "| ----------- | ---- |"
