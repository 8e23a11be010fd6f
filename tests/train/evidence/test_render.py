"""The report of a run's finished models: every figure recomputed from predictions.csv, and the four files it is written to."""

import csv
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lugpi_core.errors import InputError
from tests.support.small_tables import assert_recomputed, fake_model, fake_student, fake_teacher, right, scores
from train.cli import main
from train.evidence.render import header, latex_escaped
from train.evidence.tables import tables
from train.options.tables import TablesOptions

SEEDS = 3
Show = Callable[..., dict[str, Any]]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run in which images help the student: three seeds of the rows of one column, the text-only control and nothing else."""
    folder = tmp_path / "topics"
    for seed in range(SEEDS):
        tail = f"-seed{seed}" if seed else ""
        fake_model(folder, f"baseline{tail}", scores(300 + seed), seed=seed, command="baseline")
        fake_teacher(folder, f"teacher-clip-demo{tail}", scores(360 - seed), seed=seed)
        fake_student(folder, f"student-clip-demo{tail}", scores(350 + seed), seed=seed, teacher_names=[f"teacher-clip-demo{tail}"])
        fake_teacher(folder, f"teacher-none{tail}", scores(310), seed=seed, privileged="none")
        fake_student(folder, f"student-none{tail}", scores(320 - 2 * seed), seed=seed, teacher_names=[f"teacher-none{tail}"])
    return folder


@pytest.fixture
def show(run: Path, capsys: pytest.CaptureFixture[str]) -> Show:
    """Return the tables of the run as it is, without training."""

    def shown(**more: Any) -> dict[str, Any]:
        report = tables(TablesOptions(dataset="topics.csv", run_dir=run, train=False, **more))
        capsys.readouterr()
        return report

    return shown


def test_every_figure_follows_from_the_predictions(run: Path, show: Show) -> None:
    report = show()
    assert [table["name"] for table in report["tables"]] == ["table1", "table2", "controls"]
    assert {(test["row"], test["reference"]) for test in report["tables"][0]["comparisons"]} == {
        ("teacher-clip-demo", "baseline"),
        ("teacher-clip-demo", "teacher-none"),
        ("student-clip-demo", "baseline"),
        ("student-clip-demo", "student-none"),
    }
    assert_recomputed(run, report)


def test_accuracies_come_from_predictions_not_from_metrics_json(run: Path, show: Show, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "baseline" / "metrics.json"
    metrics = json.loads(path.read_text())
    metrics["accuracy"]["test"] = 0.99
    path.write_text(json.dumps(metrics))
    report = tables(TablesOptions(dataset="topics.csv", run_dir=run, train=False))
    assert report["rows"]["baseline"]["models"][0]["test"]["accuracy"] == 0.75
    assert "gives test accuracy 0.7500, its metrics.json say 0.9900" in capsys.readouterr().err


def test_p_is_adjusted_over_all_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Differences of 6 to 12 texts, so that no p is near 0 or 1.
    fake_model(tmp_path, "baseline", scores(300), command="baseline")
    for name, count, shown in (("teacher-clip-demo", 308, "images"), ("teacher-none", 306, "none"), ("teacher-blank", 312, "blank")):
        fake_teacher(tmp_path, name, scores(count), privileged=shown)
    found = tables(TablesOptions(dataset="topics.csv", run_dir=tmp_path, train=False))["tables"]
    # Teacher and baseline, teacher and text-only teacher: 8 and 2 discordant texts on one side, (1/2)^8 and (1/2)^2, twice.
    assert [test["pooled"]["p"] for test in found[0]["comparisons"]] == pytest.approx([2 / 2**8, 2 / 2**2])
    assert [test["holm_p"] for test in found[0]["comparisons"]] == pytest.approx([4 * 2 / 2**8, 0.5]), "of the five in both tables"
    # Controls: text-only and baseline, blank and baseline, blank and text-only.
    assert [test["pooled"]["p"] for test in found[2]["comparisons"]] == pytest.approx([2 / 2**6, 2 / 2**12, 2 / 2**6])
    assert [test["holm_p"] for test in found[2]["comparisons"]] == pytest.approx([3 * 2 / 2**6, 5 * 2 / 2**12, 3 * 2 / 2**6])


def test_every_compared_row_has_a_verdict(show: Show) -> None:
    report = show()
    first, controls = report["tables"][0]["verdicts"], report["tables"][2]["verdicts"]
    assert [sentence.split(":")[0] for sentence in first] == ["teacher-clip-demo", "student-clip-demo"]
    assert first[1].endswith("unless shuffled and blank images, which are not compared here, help as much (--rows controls).")
    assert controls[1].startswith("student-none: better than the baseline by 4.25 points (p = ")
    assert controls[1].endswith("It sees no images: the gain comes from distillation alone.")


def test_missing_models_are_marked(run: Path, show: Show) -> None:
    for seed in ("-seed1", "-seed2"):
        (run / f"student-none{seed}" / "metrics.json").unlink()
    report = show()
    assert {"student-none-seed1", "student-none-seed2", "images-clip-demo", "student-clip-demo-ce-seed2"} <= set(report["missing"])
    assert report["rows"]["images-clip-demo"]["test"] is None
    assert report["complete"] is True, "nothing failed: nothing was trained"
    lines = (run / "tables.md").read_text().splitlines()
    assert re.match(r"\| images-clip-demo +\| 0 of 3 +\| missing", next(line for line in lines if "images-clip-demo" in line))
    assert re.match(r"\| student-none +\| 1 of 3 +\| 0\.5000 +\| 0\.8000 ", next(line for line in lines if "| student-none" in line))
    against = next(test for test in report["tables"][0]["comparisons"] if test["reference"] == "student-none")
    assert against["seeds"] == [0], "the seeds that both have"
    (note,) = report["notes"]
    assert note.endswith(
        "the means over all of a row's seeds: student-clip-demo less student-none over the seed 0, "
        "student-none less baseline over the seed 0"
    )
    assert_recomputed(run, report)


def test_models_are_found_whatever_their_folders_names(run: Path, show: Show) -> None:
    before = show()["rows"]
    for name, other in (("baseline", "plain"), ("student-clip-demo-seed1", "distilled"), ("teacher-none-seed2", "text-only")):
        (run / name).rename(run / other)
    after = show()["rows"]
    for name in ("baseline", "student-clip-demo", "teacher-none"):
        assert after[name]["test"] == before[name]["test"]
    assert [model["folder"] for model in after["baseline"]["models"]] == ["plain", "baseline-seed1", "baseline-seed2"]


def test_models_of_no_row_have_a_table_of_their_own(run: Path, show: Show) -> None:
    for name in ("student-clip-demo", "baseline"):
        shutil.rmtree(run / name)  # so that others of that seed could stand for it
    fake_student(run, "small", scores(200), teacher_names=["teacher-clip-demo"], layers=1)
    fake_student(run, "more-texts", scores(210), teacher_names=["teacher-clip-demo"], unlabelled="abc")
    fake_student(run, "more-small", scores(215), teacher_names=["teacher-clip-demo"], unlabelled="abc", layers=1)
    fake_student(run, "two", scores(220), teacher_names=["teacher-clip-demo", "teacher-none"])
    fake_student(run, "orphan", scores(230), teacher_names=["missing"])
    fake_student(run, "of-the-former-teacher", scores(232), teacher_names=["teacher-clip-demo"], teachers=["a hash of other weights"])
    fake_student(run, "hard-only", scores(235), teacher_names=["teacher-clip-demo"], alpha=0.0, beta=0.0)
    fake_model(run, "another", scores(240), command="baseline")
    fake_model(run, "one-more", scores(245), command="baseline")
    fake_model(run, "baseline-seed9", scores(250), seed=9, command="baseline")
    fake_student(run, "ce-only", scores(260), teacher_names=["teacher-clip-demo"], beta=0.0)
    fake_student(run, "l2-only", scores(270), teacher_names=["teacher-clip-demo"], alpha=0.0)
    report = show()
    assert [one["folder"] for one in report["others"]] == [
        "baseline-seed9",
        "hard-only",
        "more-small",
        "of-the-former-teacher",
        "one-more",
        "orphan",
        "small",
        "two",
    ]
    assert report["rows"]["student-clip-demo"]["seeds"] == [1, 2]
    there = {name: [model["folder"] for model in report["rows"][name]["models"]] for name in report["rows"]}
    assert there["baseline"] == ["another", "baseline-seed1", "baseline-seed2"]
    assert (there["student-clip-demo-ce"], there["student-clip-demo-l2"]) == (["ce-only"], ["l2-only"])
    assert "## Other models of the run" in (run / "tables.md").read_text()


HINTON = {"kd_preset": "hinton", "hard": 0.5, "alpha": 0.5, "beta": 0.0, "temperature": 4.0, "soften_student": True}


@pytest.mark.parametrize(
    ("loss", "row"),
    [
        (HINTON, "student-vit-demo"),
        ({**HINTON, "beta": 1.0}, "student-vit-demo"),
        ({**HINTON, "alpha": 0.0, "beta": 1.0}, "student-vit-demo-l2"),
        ({"beta": 0.0}, "student-vit-demo-ce"),
        ({"beta": 0.0, "terms": "both"}, "student-vit-demo"),
        ({"alpha": 0.0, "terms": "both"}, "student-vit-demo"),
        ({"alpha": 0.0, "terms": "l2"}, "student-vit-demo-l2"),
    ],
    ids=str,
)
def test_a_students_loss_decides_its_row(run: Path, show: Show, loss: dict[str, Any], row: str) -> None:
    """A term that the preset lacks is not left out; the terms that tables recorded take precedence."""
    fake_teacher(run, "teacher-vit-demo", scores(300), image_tokens="vit-demo")
    fake_student(run, "one", scores(260), teacher_names=["teacher-vit-demo"], **loss)
    report = show(columns=("clip-demo", "vit-demo"))
    assert [name for name in report["rows"] if [one["folder"] for one in report["rows"][name]["models"]] == ["one"]] == [row]


def test_the_model_named_after_its_row_takes_precedence(run: Path, show: Show) -> None:
    fake_model(run, "a", scores(240), command="baseline")
    report = show()
    assert report["rows"]["baseline"]["models"][0]["folder"] == "baseline"
    assert [one["folder"] for one in report["others"]] == ["a"]


@pytest.mark.parametrize(
    ("teacher_names", "more", "is_of_all"),
    [
        (("clip-demo", "vit-demo"), {}, True),
        (("vit-demo", "clip-demo"), {}, True),
        (("clip-demo", "vit-demo"), {"shares": [0.9, 0.1]}, False),
        (("clip-demo", "vit-demo"), {"class_shares": {"groups": [[0, 1]], "shares": [[0.5, 0.5]]}}, False),
        (("clip-demo", "vit-demo"), {"beta": 0.0}, False),
        (("clip-demo", "third"), {}, False),
        (("clip-demo", "none"), {}, False),
    ],
)
def test_student_all_has_equal_shares_of_every_column(
    run: Path, show: Show, teacher_names: tuple[str, ...], more: dict[str, Any], is_of_all: bool
) -> None:
    fake_teacher(run, "teacher-vit-demo", scores(300), image_tokens="vit-demo")
    fake_teacher(run, "teacher-third", scores(300), image_tokens="third")
    fake_student(run, "several", scores(340), teacher_names=[f"teacher-{one}" for one in teacher_names], **more)
    report = show(columns=("clip-demo", "vit-demo"))
    assert [one["folder"] for one in report["rows"]["student-all"]["models"]] == ["several"] * is_of_all
    assert ("several" in [one["folder"] for one in report["others"]]) is not is_of_all


def test_differing_settings_are_noted(run: Path, show: Show) -> None:
    assert show()["notes"] == []
    fake_teacher(run, "teacher-shuffled", scores(290), privileged="shuffled", flags={"epochs": 50})
    note, fewer = show()["notes"]
    assert note.startswith("these models differ in flags.epochs: ")
    assert "teacher-shuffled less baseline over the seed 0" in fewer
    assert {"2", "50"} <= set(re.findall(r"\d+", note))


def test_differing_losses_and_tokens_are_noted(run: Path, show: Show) -> None:
    fake_teacher(run, "teacher-blank", scores(290), privileged="blank")
    fake_student(run, "student-blank", scores(310), teacher_names=["teacher-blank"], temperature=1.0)
    fake_teacher(run, "teacher-shuffled", scores(290), privileged="shuffled", tokens={"seed": 0})
    fake_teacher(run, "teacher-shuffled-seed1", scores(290), privileged="shuffled", tokens={"seed": 1}, seed=1)
    fake_student(run, "ce-only", scores(260), teacher_names=["teacher-clip-demo"], beta=0.0)
    *notes, fewer = show()["notes"]
    assert fewer.startswith("these differences are over the seeds that both rows have")
    assert sorted(note.partition(";")[0] for note in notes) == [
        "the models of teacher-shuffled differ in tokens.seed: 0, 1",
        "the students differ in temperature: 8.0, 1.0",
    ]


def test_a_prediction_of_images_that_only_some_students_have_is_noted(run: Path, show: Show) -> None:
    fake_teacher(run, "teacher-shuffled", scores(290), privileged="shuffled")
    fake_student(run, "predicts", scores(340), teacher_names=["teacher-shuffled"], predict_image=1.0)
    note, _ = show()["notes"]
    assert note.startswith("the students differ in predict_image: 0.0, 1.0")


def test_models_of_other_examples_are_not_compared(run: Path, show: Show) -> None:
    path = run / "baseline" / "predictions.csv"
    path.write_text(path.read_text().replace("test/7,", "test/700,"))
    against = next(test for test in show()["tables"][0]["comparisons"] if test["reference"] == "baseline")
    assert against["seeds"] == [1, 2]


def test_references_need_not_be_shown(show: Show) -> None:
    report = show(rows=("student-clip-demo",))
    assert list(report["rows"]) == ["student-clip-demo"]
    assert {test["reference"] for test in report["tables"][0]["comparisons"]} == {"baseline", "student-none"}


def test_seeds_and_columns_can_be_chosen(run: Path, show: Show) -> None:
    report = show(seed=1, seeds=2, rows=("baseline",))
    assert report["seeds"] == [1, 2]
    assert [model["folder"] for model in report["rows"]["baseline"]["models"]] == ["baseline-seed1", "baseline-seed2"]
    with pytest.raises(InputError, match=r"--columns clip-dmo.*did you mean 'clip-demo'"):
        show(columns=("clip-dmo",))


def test_the_papers_figures_are_shown_for_its_corpora(run: Path, show: Show, capsys: pytest.CaptureFixture[str]) -> None:
    assert {row["paper"] for row in show()["rows"].values()} == {None}
    report = tables(TablesOptions(dataset="imdb", run_dir=run, train=False))
    assert report["rows"]["student-clip-demo"]["paper"] == 0.931
    assert re.search(r"\| images-clip-demo .*\| 0\.549 \|", capsys.readouterr().out), "also where ours is missing"


def test_cost_is_mean_hours_and_peak_memory(run: Path, show: Show) -> None:
    path = run / "baseline-seed2" / "metrics.json"
    metrics = json.loads(path.read_text())
    metrics["history"].append({"seconds": 2 * 3600.0})
    metrics["head_history"] = [{"seconds": 3600.0}]
    metrics["peak_memory"] = {"host_bytes": 9e9, "device_bytes": 4e9}
    path.write_text(json.dumps(metrics))
    row = show()["rows"]["baseline"]
    assert row["train_hours"] == pytest.approx((1 + 1 + 4) / 3)
    assert row["peak_gb"] == 4.0, "of the GPU where there was one"


def test_markdown_is_printed_and_json_is_the_last_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tables", "--dataset", "topics.csv", "--run-dir", str(run), "--no-train"]) == 0
    printed = capsys.readouterr().out
    report = json.loads(printed.splitlines()[-1])
    assert report == json.loads((run / "tables.json").read_text())
    assert printed.startswith((run / "tables.md").read_text())
    assert report["written"] == [str(run / f"tables.{kind}") for kind in ("md", "tex", "csv", "json")]
    for table in report["tables"]:
        for text in (table["title"], table["caption"], *table["verdicts"]):
            assert text in printed
    assert not list(run.glob(".*.partial"))


def test_the_csv_has_plain_numbers_and_a_line_per_row(run: Path, show: Show) -> None:
    report = show()
    lines = list(csv.DictReader(io.StringIO((run / "tables.csv").read_text())))
    assert [(line["table"], line["row"]) for line in lines] == [(table["name"], row) for table in report["tables"] for row in table["rows"]]
    student = next(line for line in lines if line["row"] == "student-clip-demo")
    assert float(student["test_accuracy_mean"]) == report["rows"]["student-clip-demo"]["test"]["accuracy"]["mean"]
    assert float(student["less_control"]) == pytest.approx(np.mean([30 / 400, 33 / 400, 36 / 400]))
    assert float(student["holm_p_control"]) < 1e-6
    assert next(line for line in lines if line["row"] == "images-clip-demo")["test_accuracy_mean"] == ""


def test_latex_tables_are_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "own_50%"
    fake_model(run, "baseline", scores(300), command="baseline")
    fake_model(run, "images", scores(100), command="images", image_tokens="my_clip")
    assert main(["tables", "--dataset", "own_50%.csv", "--run-dir", str(run), "--no-train"]) == 0
    text = (run / "tables.tex").read_text()
    tabular = re.findall(r"\\toprule\n(.*?)\\bottomrule", text, flags=re.DOTALL)
    assert len(tabular) == 4, "three tables, and fidelity and calibration"
    for row in tabular[0].splitlines():
        assert row == r"\midrule" or (row.endswith(r" \\") and row.count(" & ") == len(header("single-label")) - 1), row
    assert r"images-my\_clip & 1 of 3 & 0.5000 & 0.2500" in tabular[0]
    assert [row.count(" & ") for row in tabular[3].splitlines()] == [6, 0, 6, 6], "a header, a rule, and two rows with models"
    assert r"$-$50.00 [$-$" in tabular[0]
    assert r"\caption{own\_50\%. Table 1" in text
    uncommented = [line for line in text.splitlines() if not line.startswith("%")]
    assert not [line for line in uncommented if re.search(r"(?<!\\)[%#_]", line)]
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 4


def test_every_special_letter_of_latex_is_escaped() -> None:
    assert latex_escaped(r"a_b & 5% $1 #2 {x} ~y ^z \w ±1 <2>") == (
        r"a\_b \& 5\% \$1 \#2 \{x\} \textasciitilde{}y \textasciicircum{}z \textbackslash{}w $\pm$1 \textless{}2\textgreater{}"
    )


def test_one_seed_has_no_spread(run: Path, show: Show) -> None:
    report = show(seeds=1)
    assert report["rows"]["baseline"]["test"]["accuracy"] == {"mean": 0.75, "sd": None}
    text = (run / "tables.md").read_text()
    assert "±" not in text
    assert "One seed: how much results vary between seeds is unknown" in text
    assert_recomputed(run, report)


@pytest.mark.parametrize("rows", [(), ("--rows", "student-vit-demo")])
def test_a_run_with_nothing_to_show_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: tuple[str, ...]) -> None:
    if rows:
        fake_teacher(tmp_path, "teacher-vit-demo", scores(300), image_tokens="vit-demo")
    assert main(["tables", "--dataset", "topics.csv", "--run-dir", str(tmp_path), "--no-train", *rows]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: got no finished model of these rows in ")
    assert printed.out == ""


def test_right_hits_begin_where_requested() -> None:
    assert right(2, 4, first=1) == [False, True, True, False]
