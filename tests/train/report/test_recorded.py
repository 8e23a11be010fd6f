"""What other commands recorded about a run, in its report: learning curves and compared stores, shown only if they are of this run."""

import json
import math
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from lugpi_core.errors import InputError
from lugpi_core.fingerprint import hash_file
from lugpi_core.thumbnails import COMPARISON
from tests.support.small_report import corpus_of, flags, write_model
from train.cli import main
from train.evidence.few_shots import ShotsFigure
from train.file_names import PREDICTIONS, SEEN, SHOTS_FIGURES
from train.options.tools import ReportOptions
from train.report.charts import Chart, Curve, Line, Rect, Text
from train.report.command import content_of
from train.report.content import ComparedColumn, ReportContent, ShownAgreement, ShownProbe, StoreWork
from train.report.page import page
from train.report.recorded_charts import MOST_LINES, agreement_chart, probe_chart, shots_charts, work_chart

FIGURE = ShotsFigure(
    row="baseline",
    shots=5,
    episodes=3,
    mean=0.2,
    sd=0.02,
    of_episodes=0.05,
    of_texts=0.01,
    needed=18,
    less_baseline=None,
    less_control=None,
)
COMPARED = {
    "corpus": "",
    "stores": [
        {"label": "<a>", "work": {"denoise_tflop": 3.0, "prompt_tflop": 0.5, "decode_tflop": 0.5}},
        {"label": "own", "work": {"left_out": "the pictures are the user's own"}},
    ],
    "table": {"header": ["", "<a>", "own"], "rows": [["generator", "a&b", "own images"]]},
    "chart": [
        {
            "name": "clip",
            "probes": [{"label": "<a>", "accuracy": 0.5, "interval": [0.4, 0.6], "best_guess": 0.25}],
            "agreements": [{"label": "own", "texts": 30, "own_is_nearer": 0.75, "standard_error": 0.05}],
        }
    ],
    "sentences": ["clip: a note -1.5 points"],
}


def content(corpus_csv: Path, run: Path) -> ReportContent:
    return content_of(ReportOptions(**flags(corpus_csv, run)))


def write_shots(run: Path, corpus_csv: Path) -> None:
    """Write models of one and two texts of each class, in two episodes, and their figures by the command itself."""
    for shots in (1, 2):
        for seed in (0, 1):
            wrong = dict.fromkeys(range(12 // shots + seed), 1)
            name = "baseline" + f"-seed{seed}" * (seed > 0)
            write_model(run / f"shots-{shots}", name, corpus_of(corpus_csv), wrong, command="baseline", seed=seed, shots=shots)
    words = ["tables", "--dataset", str(corpus_csv), "--split-column", "split", "--run-dir", str(run)]
    assert main([*words, "--shots", "1", "2", "--episodes", "2", "--rows", "baseline", "--no-train"]) == 0


def test_learning_curves_are_those_of_the_models_that_are_there(corpus_csv: Path, run: Path) -> None:
    assert 'id="shots"' not in page(content(corpus_csv, run)), "no section without the file"
    write_shots(run, corpus_csv)
    shown = content(corpus_csv, run)
    assert [(one.shots, one.mean) for one in shown.shots] == [(1, pytest.approx(1 - 12.5 / 24)), (2, pytest.approx(1 - 6.5 / 24))]
    text = page(shown)
    assert 'href="#shots"' in text
    assert "baseline, 2 texts of each class: 72.9% in 2 episodes, 95% interval" in text
    few = content(corpus_csv, run / "shots-2")
    assert few.shots == shown.shots, "to the models of a few shots belong the figures of their run"
    assert any(example.image is not None for example in few.examples), "and its images"
    answers = run / "shots-1" / "baseline" / PREDICTIONS
    answers.write_text(answers.read_text() + "\n")
    shown = content(corpus_csv, run)
    assert shown.shots == ()
    assert any("shots.json is of other models than the run's" in note and "--no-train" in note for note in shown.notes)


def test_a_run_with_few_shots_alone_names_the_page_it_can_have(corpus_csv: Path, tmp_path: Path) -> None:
    write_shots(tmp_path / "few", corpus_csv)
    with pytest.raises(InputError, match="few with models of a few shots alone") as caught:
        content(corpus_csv, tmp_path / "few")
    (place,) = re.findall(r"--run-dir (\S+)\)", str(caught.value))
    assert len(content(corpus_csv, Path(place)).shots) == 2


@pytest.mark.parametrize("damage", ["{}", '{"figures": [{"row": "baseline"}], "models": {}}', '{"figures": []}', "[]", "{"])
def test_damaged_records_are_notes(corpus_csv: Path, run: Path, damage: str) -> None:
    (run / SHOTS_FIGURES).write_text(damage)
    (run / COMPARISON).write_text(damage)
    shown = content(corpus_csv, run)
    assert (shown.shots, shown.stores) == ((), None)
    assert len([note for note in shown.notes if "damaged, or of an earlier version; run python -m" in note]) == 2


def test_compared_stores_are_shown_if_they_are_of_the_corpus(corpus_csv: Path, run: Path) -> None:
    (run / COMPARISON).write_text(json.dumps({**COMPARED, "corpus": "another"}))
    shown = content(corpus_csv, run)
    assert shown.stores is None
    assert any("is of another corpus than the run's; run python -m featurize inspect --stores again" in note for note in shown.notes)
    (run / COMPARISON).write_text(json.dumps({**COMPARED, "corpus": corpus_of(corpus_csv).fingerprint()}))
    text = page(content(corpus_csv, run))
    section = text[text.index('id="stores"') : text.index('id="training"')]
    assert section.count("<svg") == 3
    assert "&lt;a&gt;: 50.0%, 95% interval 40.0% to 60.0%" in section
    assert "a&amp;b" in section
    assert "<li>clip: a note −1.5 points</li>" in section
    assert "<a>" not in section


def test_pictures_of_classes_are_shown_if_they_are_of_the_teacher_that_is_there(corpus_csv: Path, run: Path) -> None:
    (run / "seen.png").write_bytes(b"PNG")
    record = {
        "corpus": corpus_of(corpus_csv).fingerprint(),
        "models": {"teacher": hash_file(run / "teacher" / PREDICTIONS)},
        "table": {"header": ["class", "optimised, best"], "rows": [["<a>", "-1.25"]]},
        "legend": "Log-odds.",
        "sheet": {"file": "seen.png", "hash": hash_file(run / "seen.png")},
    }
    (run / SEEN).write_text(json.dumps(record))
    text = page(content(corpus_csv, run))
    section = text[text.index('id="seen"') : text.index('id="training"')]
    assert 'src="data:image/png;base64,UE5H"' in section
    assert "&lt;a&gt;" in section
    assert "<td>−1.25</td>" in section
    for change in ({"corpus": "another"}, {"models": {"teacher": "another"}}, {"models": {"gone": "another"}}):
        (run / SEEN).write_text(json.dumps({**record, **change}))
        shown = content(corpus_csv, run)
        assert shown.seen is None
        assert any("is of another teacher, corpus or sheet than the run's; run python -m lugpi see again" in note for note in shown.notes)
    assert 'id="seen"' not in page(shown)


def shapes(chart: Chart, kind: str) -> list[Any]:
    return [one for one in chart.shapes if not isinstance(one, Text) and one.kind.startswith(kind)]


def test_shots_stand_at_their_logarithms_with_their_intervals() -> None:
    figures = [
        replace(FIGURE, row=row, shots=shots, mean=mean)
        for row in ("baseline", "teacher-a")
        for shots, mean in ((5, 0.2), (10, 0.3), (40, 0.6))
    ]
    (chart,) = shots_charts(figures)
    first, second = [one for one in shapes(chart, "of-row") if isinstance(one, Curve) and one.has_dots]
    (x5, y5), (x10, y10), (x40, y40) = first.points
    assert (x40 - x5) / (x10 - x5) == pytest.approx(math.log(8) / math.log(2))
    assert (y5 - y40) / (y5 - y10) == pytest.approx(4)
    assert second.points[0][0] > x5, "whiskers of two rows stand side by side"
    whisker = next(one for one in shapes(chart, "whisker") if isinstance(one, Line) and one.x1 == one.x2)
    assert (whisker.y1 - whisker.y2) / (y5 - y10) == pytest.approx(1), "0.05 to each side, as 0.2 to 0.3"
    assert [one.words for one in chart.shapes if isinstance(one, Text) and one.words in ("5", "10", "40")] == ["5", "10", "40"]
    titles = [one.title for one in shapes(chart, "hit") if isinstance(one, Rect)]
    assert titles[0] == "baseline, 5 texts of each class: 20.0% in 3 episodes, 95% interval 15.0% to 25.0%"
    (alone,) = shots_charts([replace(FIGURE, of_episodes=None, episodes=1)])
    assert shapes(alone, "whisker") == []


@pytest.mark.parametrize("mean", [0.0, 0.5, 1.0])
def test_each_kind_of_model_has_a_chart_and_many_rows_have_more(mean: float) -> None:
    rows = ["baseline", *(f"teacher-{n}" for n in range(MOST_LINES + 1)), "student-a"]
    charts = shots_charts([replace(FIGURE, row=row, shots=shots, mean=mean) for row in rows for shots in (5, 6, 7, 1000)])
    assert [chart.kind for chart in charts] == ["teacher", "teacher", "student"]
    for chart in charts:
        legend = [one for one in chart.shapes if isinstance(one, Text) and re.match(r"\d  \S", one.words)]
        assert legend[0].words == "1  baseline"
        ends = sorted(one.y for one in chart.shapes if isinstance(one, Text) and re.fullmatch(r"\d", one.words) and one.x > 310)
        assert len(ends) == len(legend)
        assert all(two - one >= 10.9 for one, two in pairwise(ends)), "equal values have labels apart"
        assert 8 <= ends[0] < ends[-1] <= 8 + 210 + 4, "inside the chart"
        marks = [one.words for one in chart.shapes if isinstance(one, Text) and one.words in ("5", "6", "7", "1,000") and one.x < 310]
        assert marks[0] == "5"
        assert "6" not in marks, "no room"


def test_probes_agreement_and_work_are_to_scale() -> None:
    probe = ShownProbe(label="0", accuracy=0.3, interval=(0.2, 0.4), best_guess=0.2)
    column = ComparedColumn(
        name="clip",
        probes=(probe, replace(probe, accuracy=0.4, interval=(0.3, 0.5))),
        agreements=(ShownAgreement(label="0", texts=30, own_is_nearer=0.98, standard_error=0.05),),
    )
    probes, agreement = probe_chart(column), agreement_chart(column)
    assert probes is not None
    assert agreement is not None
    dots = [one.points[0][0] for one in probes.shapes if isinstance(one, Curve)]
    spans = [(one.x1, one.x2) for one in shapes(probes, "axis") if one.y1 == one.y2]
    (reference, *_) = shapes(probes, "diagonal")
    assert dots[0] - spans[0][0] == pytest.approx(dots[1] - dots[0])
    assert spans[1][1] - reference.x1 == pytest.approx(3 * (dots[1] - dots[0])), ".5 is 3 times as far from .2"
    assert shapes(agreement, "hit")[0].title == "0: 98.0% of 30 texts, 95% interval 88.2% to 100.0%"
    works = [StoreWork(label=str(n), denoise_tflop=n, prompt_tflop=0.0, decode_tflop=0.0) for n in (1.0, 4.0)]
    work = work_chart(works)
    assert work is not None
    one, four = shapes(work, "bar")
    assert four.width == pytest.approx(4 * one.width)
    assert work_chart([]) is probe_chart(replace(column, probes=())) is None
