"""The report of an audit, from made-up answers: which texts are members, which seeds are compared, and what is said of both."""

import csv
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lugpi_core.corpora.corpus import Corpus
from train.evidence import audit, membership
from train.evidence.audit import AuditReport, AuditResult
from train.evidence.audited import Answers, Audited, Texts, attack_all, read_answers, texts_of
from train.evidence.shadows import Recorded, halves_of
from train.models.predictions import Predicted, write_predictions

TRAIN, TEST = 80, 20
CORPUS = Corpus.from_texts([f"text {n}" for n in range(120)], ["a", "b"] * 60, splits=["train"] * TRAIN + ["validation", "test"] * TEST)
TEXTS = texts_of(CORPUS, halves_of(CORPUS, 4, seed=0), seed=0)
HAS_IMAGE = np.arange(120) % 4 < 2


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "RESAMPLES", 5)


def answers(texts: Texts, seed: int) -> Answers:
    generator = np.random.default_rng(seed)
    parts = [
        Predicted(ids=tuple(map(str, range(count))), labels=np.arange(count) % 2, logits=generator.normal(0, 1, (count, 2)))
        for count in texts.counts
    ]
    return Answers(members=parts[0], others=parts[1])


def result(name: str, command: str, seeds: Sequence[int], texts: Texts = TEXTS) -> AuditResult:
    trainings = [{"command": command, "flags": {"seed": seed}, "image_tokens": "clip-demo"} for seed in seeds]
    models = tuple(
        Recorded(folder=Path(f"{name}-seed{seed}"), training=one, metrics={}) for seed, one in zip(seeds, trainings, strict=True)
    )
    own = tuple(answers(texts, seed) for seed in seeds)
    found = attack_all(own, (answers(texts, 90 + number) for number in range(4)), texts, seed=0)
    return AuditResult(audited=Audited(name=name, models=models), texts=texts, answers=own, found=found)


def report(*results: AuditResult) -> AuditReport:
    return AuditReport(corpus=CORPUS, texts=TEXTS, shadows=4, seed=0, results=results)


def notes_of(*results: AuditResult) -> list[str]:
    return [note for note in report(*results).notes if "FPR" not in note]


def test_differences_over_fewer_seeds_than_the_figures_are_told() -> None:
    baseline, same = result("baseline", "baseline", (0, 1)), result("teacher-none", "teacher", (0, 1))
    assert notes_of(baseline, same) == []
    one, none = result("teacher-clip", "teacher", (1,)), result("student-none", "student", (2, 3))
    assert notes_of(one, none) == [], "without a baseline there are no differences"
    assert notes_of(baseline, same, one, none) == [
        "differences are over the seeds that a row and baseline both have, figures over all of a row's seeds: "
        "teacher-clip over the seed 1; student-none over none"
    ]


def test_members_of_a_classifier_of_images_are_the_train_texts_that_have_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has not learnt the others, and there is a difference only between figures over the same texts."""
    monkeypatch.setattr(audit, "hash_file", str)
    baseline, of_images = result("baseline", "baseline", (0,)), result("images-clip", "images", (0,))
    shadows: Any = SimpleNamespace(corpus=CORPUS, tokens=lambda column: SimpleNamespace(has_image={"clip-demo": HAS_IMAGE}[column]))
    assert audit._learnt_by(baseline.audited, shadows, TEXTS) is TEXTS
    texts = audit._learnt_by(of_images.audited, shadows, TEXTS)
    assert texts.counts == (TRAIN // 2, TEST)
    np.testing.assert_array_equal(texts.seen_HM, TEXTS.seen_HM[:, HAS_IMAGE[:TRAIN]])
    found = report(baseline, result("images-clip", "images", (0,), texts), result("images-all", "images", (0,)))
    figures = found.to_json()["models"]
    assert [figures[name]["members"] for name in figures] == [TRAIN, TRAIN // 2, TRAIN]
    assert [len(figures[name]["minus_baseline"]) for name in figures] == [0, 0, 3]
    assert "members of images-clip are 40 train texts, which have an image: no baseline has these members" in found.notes
    audit._write_scores(tmp_path / "audit.csv", found)
    with (tmp_path / "audit.csv").open(newline="") as file:
        models = [line["model"] for line in csv.DictReader(file)]
    assert {name: models.count(name) for name in dict.fromkeys(models)} == {
        "baseline-seed0": TRAIN + TEST,
        "images-clip-seed0": TRAIN // 2 + TEST,
        "images-all-seed0": TRAIN + TEST,
    }


def test_answers_to_texts_that_were_not_learnt_are_left_out(tmp_path: Path) -> None:
    logits = torch.arange(240.0).reshape(120, 2)
    write_predictions(tmp_path / "predictions.csv", CORPUS, logits)
    found = read_answers(tmp_path, TEXTS.of_learnt(HAS_IMAGE[:TRAIN]))
    np.testing.assert_array_equal(found.members.logits, logits.numpy()[:TRAIN][HAS_IMAGE[:TRAIN]])
    assert found.members.ids == tuple(CORPUS.columns.ids[n] for n in np.flatnonzero(HAS_IMAGE[:TRAIN]))
    assert len(found.others.ids) == TEST
