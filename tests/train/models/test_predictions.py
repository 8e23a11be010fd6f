"""Accuracy and macro-F1, compared with counts by hand, and predictions from file."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lugpi_core.corpora.corpus import SPLITS, Corpus, Example
from lugpi_core.errors import InputError
from train.models.markdown import markdown_table
from train.models.predictions import read_predictions, scores_by_split, write_predictions


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
    found = read_predictions(tmp_path / "p.csv")
    assert {split: one.hits.tolist() for split, one in found.items()} == {
        "train": [True, False],
        "validation": [True] * 2,
        "test": [True] * 2,
    }
    assert found["train"].labels.tolist() == [0, 0]
    assert found["train"].predicted.tolist() == [0, 1]
    scores = scores_by_split(corpus, logits)
    for split in SPLITS:
        assert found[split].accuracy == pytest.approx(scores["accuracy"][split], abs=1e-6)
        assert found[split].macro_f1 == pytest.approx(scores["macro_f1"][split], abs=1e-6)


def test_an_id_may_be_long(tmp_path: Path) -> None:
    corpus = corpus_of([0, 1, 2])
    first = replace(corpus.examples[0], id="x" * 200_000)
    write_predictions(tmp_path / "p.csv", replace(corpus, examples=(first, *corpus.examples[1:])), torch.eye(3))
    assert len(read_predictions(tmp_path / "p.csv")[first.split].ids[0]) == 200_000


def test_the_same_examples_have_the_same_hash(tmp_path: Path) -> None:
    found = []
    for number, labels in enumerate(([0, 1, 2], [0, 1, 2], [1, 1, 2])):
        write_predictions(tmp_path / f"{number}.csv", corpus_of(labels), torch.eye(3) * (1 + number))
        found.append(read_predictions(tmp_path / f"{number}.csv"))
    assert found[0]["train"].examples == found[1]["train"].examples
    assert found[0]["train"].examples != found[2]["train"].examples, "another label"
    assert found[0]["train"].examples != found[0]["test"].examples, "other ids"


def test_of_equal_logits_the_first_counts(tmp_path: Path) -> None:
    logits = torch.tensor([[0.5, 0.5, 0.0], [0.0, 1.0, 1.0], [2.0, 2.0, 2.0]])
    write_predictions(tmp_path / "p.csv", corpus_of([0, 1, 0]), logits)
    predicted = [int(one.predicted[0]) for one in read_predictions(tmp_path / "p.csv").values()]
    assert predicted == logits.argmax(dim=1).tolist()


def test_missing_predictions_are_reported(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="train it again"):
        read_predictions(tmp_path / "p.csv")


@pytest.mark.parametrize("damage", ["", "id,split,label\n", "cut", "word", "split", "column", "nan", "inf", "class", "number"])
def test_damaged_predictions_are_reported(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "p.csv"
    write_predictions(path, corpus_of([0, 1, 2]), torch.eye(3))
    lines = path.read_text().splitlines()
    broken = {
        "cut": [*lines[:-1], lines[-1][:-4]],
        "word": [*lines[:-1], lines[-1].rpartition(",")[0] + ",much"],
        "split": [line.replace(",test,", ",tset,") for line in lines],
        "column": [*lines[:-1], lines[-1] + ",1"],
        "nan": [*lines[:-1], lines[-1].rpartition(",")[0] + ",nan"],
        "inf": [*lines[:-1], lines[-1].rpartition(",")[0] + ",-inf"],
        "class": [line.replace(",test,2,", ",test,3,") for line in lines],
        "number": [line.replace(",test,2,", f",test,{2**70},") for line in lines],
    }
    path.write_text("\n".join(broken.get(damage, [damage])))
    with pytest.raises(InputError, match="damaged"):
        read_predictions(path)


def test_a_table_lines_up_in_plain_text() -> None:
    lines = markdown_table(("model", "test"), [("a long name", "0.5"), ("b", "")]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[1] == "| ----------- | ---- |"


def several_corpus() -> Corpus:
    targets = ((0,), (), (0, 1), (1,), (0,), (0, 1))
    examples = tuple(
        Example(id=str(n), text="t", prompt="p", label=-1, split=SPLITS[n % 3], target=target) for n, target in enumerate(targets)
    )
    return Corpus(name="c", label_names=("x", "y"), examples=examples, license="none", task="multi-label")


def numbers_corpus() -> Corpus:
    targets = (1.5, -2e-7, 3.3, 1e5, 0.0, 2.0)
    examples = tuple(
        Example(id=str(n), text="t", prompt="p", label=-1, split=SPLITS[n % 3], target=target) for n, target in enumerate(targets)
    )
    return Corpus(name="c", label_names=("number",), examples=examples, license="none", task="regression")


def test_predictions_of_several_labels_come_back_with_their_thresholds(tmp_path: Path) -> None:
    corpus, logits = several_corpus(), torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    write_predictions(tmp_path / "p.csv", corpus, logits)
    assert (tmp_path / "p.csv").read_text().splitlines()[0] == "id,split,label_0,label_1,logit_0,logit_1"
    (tmp_path / "metrics.json").write_text(json.dumps({"thresholds": [0.4, 0.6]}))
    found = read_predictions(tmp_path / "p.csv")
    scores = scores_by_split(corpus, logits, (0.4, 0.6))
    for split, predicted in found.items():
        rows = corpus.rows(split)
        assert predicted.thresholds == (0.4, 0.6)
        assert (predicted.labels == corpus.targets()[rows]).all()
        assert (predicted.predicted == (logits.sigmoid()[rows] >= torch.tensor([0.4, 0.6])).numpy()).all()
        assert predicted.hits.tolist() == (predicted.predicted == predicted.labels).all(axis=1).tolist()
        assert predicted.scores == {metric: pytest.approx(by_split[split], abs=1e-6) for metric, by_split in scores.items()}


def test_predictions_of_numbers_come_back(tmp_path: Path) -> None:
    corpus, logits = numbers_corpus(), torch.arange(6.0)[:, None] * 1e4
    write_predictions(tmp_path / "p.csv", corpus, logits)
    lines = (tmp_path / "p.csv").read_text().splitlines()
    assert lines[:3] == ["id,split,target,prediction", "0,train,1.5,0", "1,validation,-2e-07,10000"]
    for split, predicted in read_predictions(tmp_path / "p.csv").items():
        rows = corpus.rows(split)
        assert (predicted.labels == corpus.targets()[rows]).all(), "every digit of a float32"
        assert predicted.predicted.tolist() == logits[rows, 0].tolist()
        by_split = scores_by_split(corpus, logits)
        assert predicted.scores == {metric: pytest.approx(by_split[metric][split], rel=1e-6, abs=1e-6) for metric in by_split}


@pytest.mark.parametrize("corpus", [several_corpus(), numbers_corpus()], ids=["several", "numbers"])
@pytest.mark.parametrize("damage", ["half", "nan", "text", "no thresholds"])
def test_damaged_predictions_of_other_tasks_are_reported(tmp_path: Path, corpus: Corpus, damage: str) -> None:
    write_predictions(tmp_path / "p.csv", corpus, torch.zeros(6, len(corpus.label_names)))
    thresholds = [0.5] if damage == "no thresholds" else [0.5, 0.5]
    (tmp_path / "metrics.json").write_text(json.dumps({"thresholds": thresholds}))
    cell = {"half": "0.5,0.5", "nan": "nan", "text": "many"}.get(damage)
    lines = (tmp_path / "p.csv").read_text().splitlines()
    if cell is not None:
        lines[1] = ",".join([*lines[1].split(",")[:2], cell, *lines[1].split(",")[3:]])
    (tmp_path / "p.csv").write_text("\n".join(lines))
    if corpus.task == "regression" and damage == "no thresholds":
        return  # it has none
    with pytest.raises(InputError, match="damaged"):
        read_predictions(tmp_path / "p.csv")
