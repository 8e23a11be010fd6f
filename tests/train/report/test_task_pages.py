"""The page of multi-label models and of regressions: every figure is of their task, and nothing says accuracy or confidence."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lugpi_core.corpora.corpus import Corpus
from lugpi_core.corpora.load import load_corpus
from lugpi_core.corpora.options import CorpusSettings
from tests.support.chromium import BINARY, Chromium
from tests.support.small_report import write_task_run
from tests.support.small_tasks import multi_label_corpus, regression_corpus
from train.cli import main
from train.evidence.calibration import class_reliability
from train.learning.task_rules import METRIC_NAMES
from train.report.cases import Role, ShownModel, cases_of, changes_by_class
from train.report.charts import Rect, numbers_chart
from train.report.page import points_in_words

TASKS = ("multi-label", "regression")
# In the room that the page has in a window of 1,200 px.
NO_TABLE_IS_CUT = """(() => {
  const main = document.querySelector("main"); main.style.width = "1168px";
  return [...document.querySelectorAll(".scroll")].every(one => one.scrollWidth <= one.clientWidth)
})()"""


def written(folder: Path, task: str) -> tuple[Path, Corpus]:
    """Write a corpus of the task, models of it and their page; return the page and the corpus."""
    made = multi_label_corpus() if task == "multi-label" else regression_corpus(scale=1e4)
    path = folder / "corpus.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "split"])
        for example in made.examples:
            label = "|".join(made.label_names[k] for k in example.target) if isinstance(example.target, tuple) else example.target
            writer.writerow([example.text, label, example.split])
    separator = {"label_separator": "|"} if task == "multi-label" else {}
    corpus = load_corpus(path, CorpusSettings(split_column="split", task=made.task, **separator))
    write_task_run(folder / "run", corpus)
    words = ["report", "--dataset", str(path), "--split-column", "split", "--run-dir", str(folder / "run"), "--task", task]
    assert main([*words, *(["--label-separator", "|"] if separator else [])]) == 0
    return folder / "run" / "report.html", corpus


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Corpus]]:
    return {task: written(tmp_path_factory.mktemp(task), task) for task in TASKS}


def words_of(page: Path) -> str:
    """The page's words without style, scripts and data."""
    text = re.sub(r"<(style|script)\b.*?</\1>", " ", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", " ", text).split())


@pytest.mark.parametrize(
    ("task", "wanted", "unwanted"),
    [
        (
            "multi-label",
            [
                "test macro-F1 of",
                "points compared with the baseline",
                "F1 of each class",
                "Validation macro-F1 by epoch",
                "binary cross-entropy",
            ],
            ["Confusions", "Spearman", "confidence of"],
        ),
        (
            "regression",
            [
                "test Spearman of",
                "Fidelity and errors",
                "Answers and labels",
                "Validation Spearman by epoch",
                "squared error",
                "with a number each",
            ],
            ["Confusions", "points", "macro-F1", "calibration diagram", "Reliability", "classes."],
        ),
    ],
)
def test_the_page_speaks_of_its_task(pages: dict[str, tuple[Path, Corpus]], task: str, wanted: list[str], unwanted: list[str]) -> None:
    words = words_of(pages[task][0])
    assert [phrase for phrase in wanted if phrase not in words] == []
    assert [phrase for phrase in unwanted if phrase in words] == []
    assert "accuracy" not in words.replace("subset accuracy", "")


@pytest.mark.parametrize("task", TASKS)
def test_the_cards_have_the_means_and_differences_of_the_table(pages: dict[str, tuple[Path, Corpus]], task: str) -> None:
    text = pages[task][0].read_text(encoding="utf-8")
    [content] = re.findall(r'id="data">(.*?)</script>', text, re.DOTALL)
    tables, words = json.loads(content)["tables"], words_of(pages[task][0])
    metric = {"multi-label": "macro_f1", "regression": "spearman"}[task]
    means = [tables["rows"][row]["test"][metric]["mean"] for row in ("baseline", "teacher-planted", "student-planted")]
    assert re.findall(r'<dd class="figure">(.*?)</dd>', text) == [f"{mean:.4f}" for mean in means]
    difference = next(one for one in tables["tables"][0]["comparisons"] if one["row"] == "student-planted")["difference"]
    shown = f"{difference:+.4f}" if task == "regression" else f"{100 * difference:+.2f} points"
    assert f"test {METRIC_NAMES[metric]} of student-planted , mean of 2 seeds {shown} compared with the baseline, not significant" in words
    assert "student (student-planted, seed 0)" in words.replace("student </span>", "student"), "figures of one model name its seed"


def test_what_an_ece_is_of_is_said(pages: dict[str, tuple[Path, Corpus]]) -> None:
    words = words_of(pages["multi-label"][0])
    assert "ECE of the table is the mean over the classes and over the seeds; that under a diagram is of all classes together" in words


def test_numbers_are_written_as_in_the_data(pages: dict[str, tuple[Path, Corpus]]) -> None:
    words = words_of(pages["regression"][0])
    assert not re.search(r"\de\+", words)
    assert " 50000 " in words, "an axis"


@pytest.mark.parametrize("task", TASKS)
def test_the_pages_data_are_those_of_the_corpus(pages: dict[str, tuple[Path, Corpus]], task: str) -> None:
    page, corpus = pages[task]
    [content] = re.findall(r'id="data">(.*?)</script>', page.read_text(encoding="utf-8"), re.DOTALL)
    data = json.loads(content)
    assert data["tables"]["task"] == task
    for shown in data["examples"]:
        target = corpus.examples[shown["row"]].target
        assert shown["label"] == (list(target) if isinstance(target, tuple) else [])
        assert set(shown["answers"]) == {"baseline", "teacher", "student"}


@pytest.mark.skipif(BINARY is None, reason="no Chromium here (apt-get install chromium)")
def test_an_example_with_several_classes_is_found_by_each(pages: dict[str, tuple[Path, Corpus]]) -> None:
    page, corpus = pages["multi-label"]
    tests = corpus.rows("test")
    browser = Chromium()
    try:
        browser.open(page)
        for k in range(len(corpus.label_names)):
            browser.evaluate(
                f"(() => {{ const c = document.getElementById('by-class'); c.value = '{k}'; c.dispatchEvent(new Event('change')) }})()"
            )
            shown = browser.evaluate("[...document.querySelectorAll('.card')].filter(card => !card.hidden).length")
            assert shown == corpus.targets()[tests, k].sum()
        assert browser.evaluate(NO_TABLE_IS_CUT)
        browser.open(pages["regression"][0])
        assert browser.evaluate(NO_TABLE_IS_CUT)
        assert browser.evaluate("document.getElementById('by-class').offsetParent === null")
        assert browser.complaints == []
    finally:
        browser.close()


def several(role: Role, answers: list[list[int]], labels: list[list[int]]) -> ShownModel:
    logits, right = np.array(answers) * 4.0 - 2, np.array(labels, np.float32)
    reliability = class_reliability(logits, right)
    shares = 1 / (1 + np.exp(-logits))
    return ShownModel(
        role=role,
        name=role,
        outputs=shares,
        answers=np.array(answers, np.float32),
        labels=right,
        reliability=reliability,
        task="multi-label",
    )


def test_cases_and_changes_of_several_labels_by_hand() -> None:
    labels = [[1, 0], [1, 1], [0, 0], [0, 1]]
    baseline = several("baseline", [[1, 0], [1, 0], [1, 0], [0, 1]], labels)
    student = several("student", [[1, 0], [1, 1], [1, 1], [1, 1]], labels)
    held = {case.key: np.flatnonzero(case.holds).tolist() for case in cases_of([baseline, student])}
    assert held == {
        "baseline-wrong-student-right": [1],
        "student-wrong-baseline-right": [3],
        "answers-differ": [1, 2, 3],
        "all-right": [0],
        "all-wrong": [2],
    }
    changes = {one.label: (one.examples, one.repaired, one.broken) for one in changes_by_class(baseline, student)}
    assert changes == {0: (4, 0, 1), 1: (4, 1, 1)}
    assert student.class_f1.tolist() == [pytest.approx(2 * 2 / 6), pytest.approx(2 * 2 / 5)]
    assert student.score == pytest.approx((2 / 3 + 4 / 5) / 2)


def test_cases_of_numbers_are_which_model_is_nearer_and_the_largest_errors() -> None:
    labels = np.arange(20.0)
    models = []
    errors_of: dict[Role, NDArray[np.float64]] = {"baseline": np.full(20, 1.0), "student": np.linspace(0, 2, 20)}
    for role, errors in errors_of.items():
        answers = labels + errors
        models.append(
            ShownModel(
                role=role,
                name=role,
                outputs=answers[:, None],
                answers=answers,
                labels=labels,
                reliability=None,
                task="regression",
            )
        )
    held = {case.key: np.flatnonzero(case.holds).tolist() for case in cases_of(models)}
    assert held["baseline-farther-student-nearer"] == list(range(10))
    assert held["student-farther-baseline-nearer"] == list(range(10, 20))
    assert held["student-worst"] == [18, 19]
    assert models[1].score == pytest.approx(1)


def test_numbers_stand_at_their_place_and_at_most_some_are_drawn() -> None:
    chart = numbers_chart(np.array([0.0, 10.0]), np.array([0.0, 5.0]), "x")
    first, second = (shape for shape in chart.shapes if isinstance(shape, Rect))
    assert (second.x - first.x, first.y - second.y) == (pytest.approx(278), pytest.approx(139))
    many = numbers_chart(np.arange(10_000.0), np.arange(10_000.0), "x")
    points = sum(isinstance(shape, Rect) for shape in many.shapes)
    assert 1000 < points <= 1500
    assert points_in_words(10_000) == f"{points:,} of the 10,000 test examples, evenly spaced by label"
    assert numbers_chart(np.zeros(3), np.zeros(3), "equal").shapes


def test_the_page_says_how_many_numbers_are_drawn(pages: dict[str, tuple[Path, Corpus]]) -> None:
    page, corpus = pages["regression"]
    assert points_in_words(1500) == "each test example"
    assert f"A point for {points_in_words(len(corpus.rows('test')))}; on the diagonal" in words_of(page)
