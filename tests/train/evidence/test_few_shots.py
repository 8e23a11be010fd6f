"""``tables --shots``: every model learns the drawn texts alone; intervals and numbers of episodes against formulas; what is refused."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import t

import train.models.train_model
from lugpi_core.corpora.load import load_corpus
from lugpi_core.corpora.options import CorpusSettings
from lugpi_core.corpora.shots import shots_of
from lugpi_core.errors import InputError
from lugpi_core.remote.run import MARKER
from lugpi_core.store.layout import PROMPT_TEXT
from tests.support.planted_store import plant, plant_column, telling_tokens
from tests.support.small_tables import fake_model, fake_student, fake_teacher, flags, recorded_answers, scores, words
from train.cli import main
from train.evidence.compare import TableRequest, finished_tables
from train.evidence.few_shots import episodes_for, spread_of_texts
from train.evidence.found_models import columns_of_rows, has_text_vectors
from train.evidence.tables import tables
from train.learning.loop import Training
from train.models.predictions import read_predictions
from train.options.tables import TablesOptions, run_of

ROWS = ("baseline", "teacher-none", "student-none")


@pytest.fixture(scope="module")
def run(small_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two episodes of two and of four shots."""
    run = tmp_path_factory.mktemp("shots")
    tables(TablesOptions(**flags(small_csv, run, rows=ROWS, shots=(4, 2), episodes=2)))
    return run


def test_figures_are_those_of_the_predictions(run: Path) -> None:
    report = json.loads((run / "shots.json").read_text())
    assert (report["shots"], report["episodes"], report["complete"]) == ([2, 4], [0, 1], True)
    assert [(one["row"], one["shots"]) for one in report["figures"]] == [(row, shots) for row in ROWS for shots in (2, 4)]
    for one in report["figures"]:
        folders = [run / f"shots-{one['shots']}" / f"{one['row']}{tail}" for tail in ("", "-seed1")]
        answers = [recorded_answers(folder, "test") for folder in folders]
        accuracies = [np.mean([label == best for label, best in zip(*of_one, strict=True)]) for of_one in answers]
        assert one["mean"] == pytest.approx(np.mean(accuracies))
        assert one["sd"] == pytest.approx(np.std(accuracies, ddof=1))
        assert one["of_episodes"] == pytest.approx(12.706 * np.std(accuracies, ddof=1) / math.sqrt(2), rel=1e-3)
        assert json.loads((folders[0] / "training.json").read_text())["shots"] == one["shots"]
    of_four = json.loads((run / "shots-4" / "tables.json").read_text())
    (test,) = [one for one in of_four["tables"][-1]["comparisons"] if (one["row"], one["reference"]) == ("student-none", "baseline")]
    (figure,) = [one for one in report["figures"] if (one["row"], one["shots"]) == ("student-none", 4)]
    assert figure["less_baseline"] == [test["difference"], *test["interval_over_seeds"]]
    assert "| student-none | 4     |" in (run / "shots.md").read_text()


def test_models_learn_the_drawn_texts_alone(small_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = load_corpus(str(small_csv), CorpusSettings(split_column="split"))
    learnt: list[list[int]] = []
    fit = train.models.train_model.fit

    def seen(training: Training) -> list[dict[str, Any]]:
        learnt.append(list(training.learnt))
        return fit(training)

    monkeypatch.setattr(train.models.train_model, "fit", seen)
    options = TablesOptions(**flags(small_csv, tmp_path, rows=("baseline",), shots=(3,), episodes=2))
    tables(options)
    assert learnt == [shots_of(corpus, 3, episode=episode) for episode in (0, 1)]
    assert tables(options)["complete"]
    assert len(learnt) == 2, "finished models are found again"
    shown = tables(TablesOptions(**flags(small_csv, tmp_path, rows=("baseline",), shots=(3,), episodes=2, train=False)))
    assert shown["figures"][0]["mean"] == json.loads((tmp_path / "shots.json").read_text())["figures"][0]["mean"]


def test_all_teachers_of_an_ensemble_learn_the_texts_of_their_episode(
    small_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = load_corpus(small_csv, CorpusSettings(split_column="split"))
    learnt: dict[str, list[int]] = {}
    fit = train.models.train_model.fit

    def seen(training: Training) -> list[dict[str, Any]]:
        learnt[training.folder.name] = list(training.learnt)
        return fit(training)

    monkeypatch.setattr(train.models.train_model, "fit", seen)
    student = "student-none-ensemble2"
    options = flags(small_csv, tmp_path, rows=(student,), shots=(2,), episodes=2, ensemble=2, processes=1)
    tables(TablesOptions(**options))
    for episode, names in enumerate((("teacher-none", "teacher-none-seed1000", student), ("teacher-none-seed1", "teacher-none-seed1001"))):
        assert [learnt[name] for name in names] == [shots_of(corpus, 2, episode=episode)] * len(names)
    records = {name: json.loads((tmp_path / "shots-2" / name / "training.json").read_text()) for name in learnt}
    assert {name: record.get("episode") for name, record in records.items() if name.startswith("teacher")} == {
        "teacher-none": None,
        "teacher-none-seed1": None,
        "teacher-none-seed1000": 0,
        "teacher-none-seed1001": 1,
    }
    assert len(learnt) == 6
    monkeypatch.setattr(train.models.train_model, "fit", None)
    for train_missing in (True, False):
        shown = tables(TablesOptions(**{**options, "train": train_missing}))
        assert [(one["row"], one["episodes"]) for one in shown["figures"]] == [(student, 2)]
    for name in ("teacher-none-seed1000", "teacher-none-seed1001"):  # as earlier versions trained them
        record = tmp_path / "shots-2" / name / "training.json"
        record.write_text(json.dumps({key: value for key, value in records[name].items() if key != "episode"}))
    assert tables(TablesOptions(**options, train=False))["figures"] == [], "students of teachers of other texts are of no row"


@pytest.mark.parametrize("sd", [0.003, 0.01, 0.04, 0.2])
def test_the_number_of_episodes_is_the_smallest_that_is_enough(sd: float) -> None:
    def half(episodes: int) -> float:
        return float(t.ppf(0.975, episodes - 1)) * sd / math.sqrt(episodes)

    assert episodes_for(sd) == next(episodes for episodes in range(2, 10_000) if half(episodes) <= 0.01)


def test_no_spread_needs_two_episodes() -> None:
    assert episodes_for(0.0) == 2


def test_the_spread_of_texts_is_that_of_the_crossed_design() -> None:
    # Texts of a difficulty of their own, and noise: of many episodes the variance component of the texts is that of their difficulties.
    random = np.random.default_rng(0)
    difficulty_N = np.where(np.arange(2000) % 2, 0.9, 0.3)
    hits = random.random((400, 2000)) < difficulty_N
    assert spread_of_texts(hits) == pytest.approx(1.96 * 0.3 / math.sqrt(2000), rel=0.02)
    assert spread_of_texts(hits[:1]) == pytest.approx(1.96 * math.sqrt(hits[0].mean() * (1 - hits[0].mean()) / 2000), rel=1e-3)
    assert spread_of_texts(random.random((50, 2000)) < 0.5) < 0.005, "noise alone is none of the texts'"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"shots": (0,)}, "got --shots 0; expected 1 or more texts of each class"),
        ({"shots": (5, 5)}, "got --shots 5 5; expected one name or several different ones"),
        ({"episodes": 3}, "got --episodes 3; expected --shots, whose episodes they are"),
        ({"shots": (5,), "episodes": 0}, "got --episodes 0; expected 1 or more"),
        ({"shots": (5, 2), "folds": 3}, "got --folds 3 with --shots 2; expected at least as many texts of each class as folds"),
        ({"shots": (1,), "folds": 2}, "one; leave one of them out"),
    ],
)
def test_bad_numbers_are_refused_before_anything_is_read(tmp_path: Path, more: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        TablesOptions(**flags(tmp_path / "none.csv", tmp_path, **more))


def test_what_no_train_does_not_compare_is_said_once(run: Path, small_csv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tables(TablesOptions(**flags(small_csv, run, rows=ROWS, shots=(4, 2), episodes=2, train=False)))
    assert capsys.readouterr().err.count("note: --no-train shows what the run holds") == 1


@pytest.fixture
def shown(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Show what a run with a store and made-up models of two and of five shots has."""
    planted = plant(tmp_path, counts=(9, 3, 3))
    for name in ("clip-demo", PROMPT_TEXT):
        plant_column(planted, name, telling_tokens(np.arange(15) % 3, strength=1.0))
    for shots in (2, 5):
        fake_model(planted.run_dir / f"shots-{shots}", "baseline", scores(200), command="baseline", shots=shots)
    return lambda **more: tables(TablesOptions(dataset="own.csv", run_dir=planted.run_dir, train=False, shots=(2, 5), episodes=2, **more))


def test_no_train_finds_the_store_of_the_run(shown: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    """Rows and columns are those of the run's store, though no model of a few shots has read them."""
    report = shown(columns=("clip-demo",))
    assert {"teacher-clip-demo", "student-text"} <= {name.removesuffix("-seed1") for name in report["missing"]["5"]}
    few = tmp_path / "run" / "shots-2"
    assert run_of(few) == tmp_path / "run" == run_of(few.parent)
    assert columns_of_rows(few) == ("clip-demo",)
    assert has_text_vectors(few)
    (few / "tokens").mkdir()
    assert run_of(few) == few, "a run of that name"


def test_a_number_of_shots_may_lack_rows_of_another(shown: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    folder = tmp_path / "run" / "shots-5"
    fake_teacher(folder, "teacher-gone", scores(300), image_tokens="gone", shots=5)
    fake_student(folder, "student-gone", scores(210), teacher_names=["teacher-gone"], shots=5)
    assert [(one["row"], one["shots"]) for one in shown()["figures"]] == [
        ("baseline", 2),
        ("baseline", 5),
        ("teacher-gone", 5),
        ("student-gone", 5),
    ]


def test_episodes_on_other_test_texts_are_left_out_and_told(shown: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    fake_model(tmp_path / "run" / "shots-2", "baseline-seed1", scores(150, 300), command="baseline", seed=1, shots=2)
    fake_model(tmp_path / "run" / "shots-5", "baseline-seed1", scores(220), command="baseline", seed=1, shots=5)
    report = shown(rows=("baseline",))
    assert [(one["shots"], one["episodes"], one["mean"]) for one in report["figures"]] == [(2, 1, 0.5), (5, 2, pytest.approx(0.525))]
    note = "baseline with 2 shots leaves out 1 of 2 models: their test texts are not the first's"
    assert report["notes"] == [note]
    assert f"\nnote: {note}\n" in (tmp_path / "run" / "shots.md").read_text()


def test_the_papers_figures_are_not_beside_those_of_few_shots(tmp_path: Path) -> None:
    for run, training in ((tmp_path, {}), (tmp_path / "shots-2", {"shots": 2})):
        fake_model(run, "baseline", scores(200), command="baseline", **training)
    request = TableRequest(rows=("baseline",), seeds=(0,), paper_dataset="imdb")
    assert [finished_tables(run, "imdb", request).rows["baseline"].paper for run in (tmp_path, tmp_path / "shots-2")] == [0.919, None]


def test_folds_are_those_of_the_drawn_texts(small_csv: Path, tmp_path: Path) -> None:
    """In folds of all train texts the six that episode 2 draws are in one fold, whose teacher would learn nothing."""
    rows = ("teacher-none", "student-none-folds2")
    tables(TablesOptions(**flags(small_csv, tmp_path, rows=rows, shots=(2,), episodes=1, seed=2, folds=2)))
    folder, whole = (tmp_path / "shots-2" / f"teacher-none{folds}-seed2" for folds in ("-folds2", ""))
    metrics = json.loads((folder / "metrics.json").read_text())
    assert [fold["held_out"] for fold in metrics["folds"]["each"]] == [3, 3]
    assert json.loads((folder / "training.json").read_text())["folds"] == {"count": 2, "seed": 2, "of": "shots"}
    corpus = load_corpus(small_csv, CorpusSettings(split_column="split"))
    drawn = {corpus.examples[row].id for row in shots_of(corpus, 2, episode=2)}
    seen = read_predictions(whole / "predictions.csv")["train"]
    right = [bool(hit) for name, hit in zip(seen.ids, seen.predicted == seen.labels, strict=True) if name in drawn]
    assert metrics["folds"]["seen"]["score"] == pytest.approx(np.mean(right), abs=1e-6), "of the texts that it was trained on"


def test_too_many_shots_are_one_line_and_leave_nothing(small_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert main(["tables", *words(flags(small_csv, run)), "--rows", "baseline", "--shots", "2", "13"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(r"error: got --shots 13 for 12 different train texts of class '\w+' of topics; .*; give --shots 12 or less", error)
    assert not run.exists()


def test_a_run_in_an_object_store_is_refused(small_csv: Path, tmp_path: Path) -> None:
    (tmp_path / MARKER).write_text(json.dumps({"address": "memory://bucket/run"}))
    with pytest.raises(InputError, match="got --shots in an object store; expected a run in a folder"):
        tables(TablesOptions(**flags(small_csv, tmp_path, rows=("baseline",), shots=(2,))))
