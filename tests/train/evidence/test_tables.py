"""``compare`` and ``python -m train tables`` train what is missing: each model once, in any process, after any interruption."""

import fcntl
import json
import os
import resource
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import train.evidence.schedule
import train.models.commands
import train.models.model_folder
import train.models.train_model
from lugpi_core.corpora.load import load_corpus
from lugpi_core.corpora.options import CorpusSettings
from lugpi_core.errors import InputError
from lugpi_core.runtime.stopping import Stopped
from tests.support.checkout import Start
from tests.support.small_tables import assert_recomputed, fake_model, flags, scores, words
from train.cli import main
from train.evidence.compare import compare
from train.evidence.rows import models_of, rows_of
from train.evidence.tables import tables
from train.learning import loop
from train.options.distillation import StudentOptions
from train.options.settings import Optimization, Placement
from train.options.tables import TablesOptions
from train.options.training import BaselineOptions, TeacherOptions

COLUMNS = ("clip-demo", "vit-demo")
TEXT_ROWS = ("baseline", "teacher-none", "student-none")
Make = Callable[..., TablesOptions]
Copy = Callable[..., None]


@pytest.fixture
def make(small_csv: Path, tmp_path: Path) -> Make:
    """Make the options of tables without images, in a run of the test's own."""
    return lambda **more: TablesOptions(**flags(small_csv, tmp_path / "run", **{"rows": TEXT_ROWS, "seeds": 1, **more}))


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the folders that are trained, in order."""
    names: list[str] = []
    fit = train.models.train_model.fit

    def counted(training: Any) -> Any:
        names.append(training.folder.name)
        return fit(training)

    monkeypatch.setattr(train.models.train_model, "fit", counted)
    return names


def predictions(run: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in sorted(run.glob("*/predictions.csv"))}


@pytest.fixture(scope="module")
def straight_run(small_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the rows without images, two seeds, trained without interruption."""
    run = tmp_path_factory.mktemp("straight")
    tables(TablesOptions(**flags(small_csv, run, rows=TEXT_ROWS, seeds=2)))
    return run


@pytest.fixture
def straight(straight_run: Path) -> dict[str, bytes]:
    """The predictions of that run's models, by their names."""
    return predictions(straight_run)


@pytest.fixture
def finished(straight_run: Path, make: Make) -> Copy:
    """Copy models of that run into the test's own run."""

    def copy(*names: str) -> None:
        for name in names:
            shutil.copytree(straight_run / name, make().run / name)

    return copy


@pytest.fixture(scope="module")
def whole(small_csv: Path, small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TablesOptions, dict[str, Any], list[str]]:
    """Every row, one seed, in a run with some models under other names: the options, the report, and what was trained."""
    run = tmp_path_factory.mktemp("tables") / "topics"
    shutil.copytree(small_run / "tokens", run / "tokens")
    train.models.commands.baseline(BaselineOptions(**flags(small_csv, run, name="plain")))
    train.models.commands.teacher(TeacherOptions(**flags(small_csv, run, name="multimodal", image_tokens="clip-demo")))
    train.models.commands.student(StudentOptions(**flags(small_csv, run, name="distilled", teachers=("multimodal",))))
    options = TablesOptions(**flags(small_csv, run, seeds=1))
    with pytest.MonkeyPatch.context() as patch:
        names: list[str] = []
        fit = train.models.train_model.fit
        patch.setattr(train.models.train_model, "fit", lambda training: (names.append(training.folder.name), fit(training))[1])
        return options, tables(options), names


def test_every_row_is_trained_once_unless_found_under_another_name(
    whole: tuple[TablesOptions, dict[str, Any], list[str]],
) -> None:
    options, report, fitted = whole
    rows = [row for row in rows_of(COLUMNS) if not row.is_learnt]
    wanted = [model.name for model in models_of(rows, rows, (0,))]
    found = {"baseline": "plain", "teacher-clip-demo": "multimodal", "student-clip-demo": "distilled"}
    assert fitted == report["trained"] == [name for name in wanted if name not in found]
    folders = {name: [model["folder"] for model in row["models"]] for name, row in report["rows"].items()}
    assert folders == {row.name: [found.get(row.name, row.name)] for row in rows}
    assert not any((options.run / name).exists() for name in found)
    assert (report["missing"], report["failed"], report["others"]) == ([], {}, [])


def test_every_model_is_that_of_its_row(whole: tuple[TablesOptions, dict[str, Any], list[str]]) -> None:
    options, report, _ = whole
    for row in (row for row in rows_of(COLUMNS) if not row.is_learnt):
        folder = options.run / report["rows"][row.name]["models"][0]["folder"]
        training = json.loads((folder / "training.json").read_text())
        assert training["command"] == row.command
        assert training.get("image_tokens") == row.column
        if row.command == "teacher":
            assert training["privileged"] == row.privileged
        if row.command == "student":
            weights = training["distillation"]
            assert (weights["alpha"] > 0, weights["beta"] > 0) == {"both": (True, True), "ce": (True, False), "l2": (False, True)}[
                row.terms
            ]
            teachers = [report["rows"][name]["models"][0]["folder"] for name in row.teachers]
            metrics = json.loads((folder / "metrics.json").read_text())
            assert [one["name"] for one in metrics["teachers"]] == teachers
            assert [one["privileged"] for one in metrics["teachers"]] == [row.privileged] * len(teachers)


def test_trained_tables_follow_from_the_predictions(whole: tuple[TablesOptions, dict[str, Any], list[str]]) -> None:
    options, report, _ = whole
    assert_recomputed(options.run, {**report, "run": str(options.run)})
    assert "draws emoji" in report["notes"][0]


def test_the_same_command_again_trains_nothing(
    whole: tuple[TablesOptions, dict[str, Any], list[str]], fitted: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    options, report, _ = whole
    kept = {path: path.stat().st_mtime_ns for path in options.run.glob("*/*") if path.is_file()}
    capsys.readouterr()
    assert tables(options) == {**report, "trained": []}
    assert fitted == []
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert capsys.readouterr().out == (options.run / "tables.md").read_text() + "\n"


def test_without_training_the_tables_are_the_same(whole: tuple[TablesOptions, dict[str, Any], list[str]]) -> None:
    options, report, _ = whole
    shown = tables(TablesOptions(dataset=options.dataset, run_dir=options.run, train=False, seeds=1))
    assert shown == {**report, "trained": []}


def test_finished_references_are_used_though_not_requested(
    whole: tuple[TablesOptions, dict[str, Any], list[str]], fitted: list[str], small_csv: Path
) -> None:
    options, report, _ = whole
    some = tables(TablesOptions(**flags(small_csv, options.run, seeds=1, rows=("student-vit-demo",))))
    assert fitted == []
    assert list(some["rows"]) == ["student-vit-demo"]
    assert [test["reference"] for test in some["tables"][0]["comparisons"]] == ["baseline", "student-none"]
    assert some["rows"]["student-vit-demo"] == report["rows"]["student-vit-demo"]


def test_teachers_of_a_row_are_trained_but_not_shown(make: Make, fitted: list[str]) -> None:
    report = tables(make(rows=("student-none",), seeds=2, seed=1))
    assert fitted == ["teacher-none-seed1", "student-none-seed1", "teacher-none-seed2", "student-none-seed2"]
    assert list(report["rows"]) == ["student-none"]
    assert report["tables"][0]["comparisons"] == []


def test_more_seeds_keep_the_finished_models(make: Make, finished: Copy, fitted: list[str], straight: dict[str, bytes]) -> None:
    finished(*TEXT_ROWS)
    tables(make(seeds=2))
    assert fitted == [f"{row}-seed1" for row in TEXT_ROWS]
    assert predictions(make().run) == straight


def test_a_folder_with_other_settings_is_refused(make: Make, finished: Copy) -> None:
    finished("baseline")
    with pytest.raises(InputError, match=r"--epochs: 1 then, 2 now.*rename that folder"):
        tables(make(rows=("baseline",), epochs=2))
    (make().run / "baseline").rename(make().run / "shorter")
    report = tables(make(rows=("baseline",), epochs=2))
    assert report["trained"] == ["baseline"]


def test_lost_teacher_outputs_are_written_without_training(make: Make, finished: Copy, fitted: list[str]) -> None:
    finished("teacher-none")
    outputs = make().run / "teacher-none" / "outputs.safetensors"
    before = outputs.read_bytes()
    outputs.unlink()
    assert tables(make(rows=("student-none",)))["trained"] == ["student-none"]
    assert outputs.read_bytes() == before
    assert fitted == ["student-none"]


def test_teacher_outputs_in_half_precision_are_kept(make: Make, small_csv: Path, fitted: list[str]) -> None:
    run = make().run
    train.models.commands.teacher(TeacherOptions(**flags(small_csv, run, name="half", privileged="none", outputs_dtype="float16")))
    before = (run / "half" / "outputs.safetensors").read_bytes()
    tables(make(rows=("student-none",)))
    assert (run / "half" / "outputs.safetensors").read_bytes() == before
    assert fitted == ["half", "student-none"]


def test_students_with_another_loss_belong_to_their_rows(make: Make, finished: Copy) -> None:
    finished("teacher-none")
    tables(make(rows=("student-none",), beta=0.0))
    report = tables(make(rows=("student-none",), train=False))
    assert report["rows"]["student-none"]["seeds"] == [0]


def command_line(small_csv: Path, run: Path, *more: str) -> list[str]:
    return ["-m", "train", "tables", *words(flags(small_csv, run)), "--rows", *TEXT_ROWS, *more]


def test_a_killed_command_resumes_to_the_same_predictions(
    small_csv: Path, make: Make, straight: dict[str, bytes], fitted: list[str], start: Start
) -> None:
    run = make().run
    child = start(*command_line(small_csv, run, "--seeds", "1", "--checkpoint-minutes", "0"))
    deadline_s = time.monotonic() + 180
    while not list(run.glob("teacher-none/checkpoints/step-*")) and child.poll() is None and time.monotonic() < deadline_s:
        time.sleep(0.005)
    child.kill()
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    assert list(run.glob("teacher-none/checkpoints/step-*"))
    assert not (run / "teacher-none" / "metrics.json").exists()
    report = tables(make())
    assert fitted == ["teacher-none", "student-none"], "the baseline was finished before the kill"
    assert report["missing"] == []
    assert predictions(run) == {name: straight[name] for name in TEXT_ROWS}


def test_two_processes_train_every_model_once(small_csv: Path, tmp_path: Path, straight: dict[str, bytes], start: Start) -> None:
    children = [start(*command_line(small_csv, tmp_path, "--seeds", "2")) for _ in range(2)]
    reports = []
    for child in children:
        out, err = child.communicate(timeout=240)
        assert child.returncode == 0, err
        assert "Traceback" not in err
        reports.append(json.loads(out.splitlines()[-1]))
    assert sorted(reports[0]["trained"] + reports[1]["trained"]) == sorted(straight)
    assert {**reports[0], "trained": []} == {**reports[1], "trained": []}
    assert predictions(tmp_path) == straight


def test_a_model_that_another_process_trains_is_awaited(
    make: Make, monkeypatch: pytest.MonkeyPatch, fitted: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    options = make(rows=("baseline", "teacher-none", "student-none"))
    locks = options.run / train.models.model_folder.LOCKS
    locks.mkdir(parents=True)
    with (locks / "teacher-none.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        waits: list[list[str]] = []

        def looked(_: float) -> None:
            waits.append(list(fitted))
            if len(waits) == 3:
                fcntl.flock(held, fcntl.LOCK_UN)

        monkeypatch.setattr(train.evidence.schedule, "time", SimpleNamespace(sleep=looked))
        report = tables(options)
    assert waits == [["baseline"]] * 3, "what could be trained was trained before waiting"
    assert report["trained"] == ["baseline", "teacher-none", "student-none"]
    assert capsys.readouterr().err.count("waiting for other processes, which train teacher-none\n") == 1


def test_a_model_that_another_process_finished_is_used(make: Make, monkeypatch: pytest.MonkeyPatch, fitted: list[str]) -> None:
    options = make(rows=("baseline",))
    locks = options.run / train.models.model_folder.LOCKS
    locks.mkdir(parents=True)
    with (locks / "baseline.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)

        def other(_: float) -> None:
            fcntl.flock(held, fcntl.LOCK_UN)
            train.models.commands.baseline(BaselineOptions(**flags(Path(options.dataset), options.run)))

        monkeypatch.setattr(train.evidence.schedule, "time", SimpleNamespace(sleep=other))
        assert tables(options)["trained"] == []
    assert fitted == ["baseline"]


def test_a_lock_is_released_however_its_block_ends(tmp_path: Path) -> None:
    with (
        train.models.model_folder.model_lock(tmp_path, "m") as first,
        train.models.model_folder.model_lock(tmp_path, "m") as second,
        train.models.model_folder.model_lock(tmp_path, "n") as other,
    ):
        assert (first, second, other) == (True, False, True)
    with pytest.raises(ZeroDivisionError), train.models.model_folder.model_lock(tmp_path, "m"):
        raise ZeroDivisionError
    with train.models.model_folder.model_lock(tmp_path, "m") as again:
        assert again


def test_a_file_system_without_locks_is_warned_of_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import errno

    def refuses(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuses)
    with train.models.model_folder.model_lock(tmp_path, "m") as ours:
        assert ours
    assert "without locks: run one command on it at a time" in capsys.readouterr().err


def test_a_diverging_model_fails_with_its_students_alone(
    make: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fit = train.models.train_model.fit

    def diverges(training: Any) -> Any:
        if training.folder.name == "teacher-none":
            raise loop.NotFinite(got="a loss that is not finite, of epoch 0", expected="finite ones", do="lower --learning-rate")
        return fit(training)

    monkeypatch.setattr(train.models.train_model, "fit", diverges)
    options = make()
    arguments = [*words(flags(Path(options.dataset), options.run)), "--rows", *TEXT_ROWS, "--seeds", "1"]
    assert main(["tables", *arguments]) == 1
    printed = capsys.readouterr()
    report = json.loads(printed.out.splitlines()[-1])
    assert report["trained"] == ["baseline"]
    assert report["failed"] == {"teacher-none": "a loss that is not finite, of epoch 0", "student-none": "teacher-none failed"}
    assert report["missing"] == ["teacher-none", "student-none"]
    assert "warning: teacher-none failed" in printed.err
    assert "note: student-none is missing: teacher-none failed" in printed.out
    monkeypatch.setattr(train.models.train_model, "fit", fit)
    assert tables(options)["trained"] == ["teacher-none", "student-none"]


def test_if_nothing_can_be_trained_the_reason_is_the_error(make: Make) -> None:
    with pytest.raises(InputError, match=r"not finite.*lower --learning-rate"):
        tables(make(rows=("baseline",), learning_rate=1e30))


def test_a_stopped_command_resumes_to_the_same_predictions(
    make: Make, finished: Copy, monkeypatch: pytest.MonkeyPatch, straight: dict[str, bytes]
) -> None:
    finished("baseline")
    step = loop.Learner.one_step

    def stops(learner: Any, *given: Any) -> float:
        if learner.training.folder.name == "teacher-none" and learner.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(learner, *given)

    monkeypatch.setattr(loop.Learner, "one_step", stops)
    with pytest.raises(Stopped):
        tables(make())
    assert list(make().run.glob("teacher-none/checkpoints/step-*"))
    assert tables(make())["trained"] == ["teacher-none", "student-none"]
    assert predictions(make().run) == {name: straight[name] for name in TEXT_ROWS}


def test_compare_is_the_same_experiment_in_python(small_csv: Path, straight_run: Path, fitted: list[str]) -> None:
    corpus = load_corpus(small_csv, CorpusSettings(split_column="split"))
    optimization, placement = Optimization(epochs=1, optimizer="adamw", learning_rate=1e-3), Placement(device="cpu")
    arguments = {"text_model": "demo", "optimization": optimization, "placement": placement}
    result = compare(corpus, straight_run, rows=TEXT_ROWS, seeds=2, **arguments)
    assert (fitted, result.trained, result.missing) == ([], (), ())
    assert result.to_json() == json.loads((straight_run / "tables.json").read_text()) | {"trained": []}
    assert {(one.row, one.reference) for one in result.findings} == {("teacher-none", "baseline"), ("student-none", "baseline")}
    frame = result.to_frame()
    assert frame[["table", "row", "seeds"]].values.tolist() == [[table.name, row, 2] for table in result.tables for row in table.rows]
    assert frame["test_accuracy_mean"].tolist() == [result.rows[row].test.accuracy.mean for row in frame["row"]]
    assert compare(corpus, straight_run, rows=TEXT_ROWS, seeds=(0, 1), train=False) == result
    assert compare(corpus, straight_run, rows=("baseline",), seeds=[1], train=False).rows["baseline"].seeds == (1,)
    assert compare(corpus, straight_run, rows=("baseline",), seeds=np.arange(2), train=False).seeds == (0, 1)  # type: ignore[arg-type]


@pytest.mark.parametrize("seeds", [0, -1, [], [0, 0], [-1], "2", ["2"], True, [True], 1.5, [0.0], 2**31 + 1, [2**31], None])
def test_seeds_that_are_none_are_refused(small_csv: Path, straight_run: Path, seeds: Any) -> None:
    corpus = load_corpus(small_csv, CorpusSettings(split_column="split"))
    with pytest.raises(InputError, match="seed"):
        compare(corpus, straight_run, rows=("baseline",), seeds=seeds, train=False)


@pytest.mark.parametrize("arguments", [{"rows": "baseline"}, {"columns": "clip-demo"}])
def test_a_name_outside_a_list_is_refused(small_csv: Path, straight_run: Path, arguments: Any) -> None:
    corpus = load_corpus(small_csv, CorpusSettings(split_column="split"))
    with pytest.raises(InputError, match=f"={next(iter(arguments.values()))!r}; expected a list of names"):
        compare(corpus, straight_run, train=False, **arguments)


def test_models_of_another_corpus_do_not_count(
    small_csv: Path, straight_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other_csv = tmp_path / "other.csv"
    other_csv.write_text(small_csv.read_text().replace("\n", "\nindeed ", 5))
    other = load_corpus(other_csv, CorpusSettings(split_column="split"))
    edited = replace(other, name=small_csv.stem)
    before = (straight_run / "tables.md").read_bytes()
    with pytest.raises(InputError, match=rf"trained on {small_csv.stem}; expected models of other as it is loaded now"):
        compare(other, straight_run, rows=["baseline"], seeds=1, train=False)
    with pytest.raises(InputError, match=rf"trained on {small_csv.stem} with other texts, labels or splits"):
        compare(edited, straight_run, rows=["baseline"], seeds=1, train=False)
    capsys.readouterr()
    words = ["--dataset", str(other_csv), "--run-dir", str(straight_run)]
    for command in (["tables", *words, "--no-train"], ["report", *words, "--split-column", "split"]):
        assert main(command) == 2
        assert f"trained on {small_csv.stem}; expected models of other" in capsys.readouterr().err
    assert (straight_run / "tables.md").read_bytes() == before
    assert not (straight_run / "report.html").exists()


def test_models_of_two_corpora_in_one_run_are_told_apart(small_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake_model(tmp_path, "ours", scores(300), command="baseline", dataset="other")
    fake_model(tmp_path, "theirs", scores(200), command="baseline", dataset="topics")
    report = tables(TablesOptions(dataset="other.csv", run_dir=tmp_path, train=False, seeds=1))
    assert [model["folder"] for model in report["rows"]["baseline"]["models"]] == ["ours"]
    assert report["others"] == []
    assert "not counted, because trained on topics: theirs" in capsys.readouterr().err


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak resident set cannot be reset here")
def test_each_models_peak_memory_is_its_own(make: Make) -> None:
    options = make(rows=("baseline",))
    ballast = bytearray(os.urandom(1 << 20)) * 1000  # 1 GB that was in use before, and is free again
    assert len(ballast) == 1000 << 20
    del ballast
    before_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    report = tables(options)
    assert 0 < report["rows"]["baseline"]["peak_gb"] * 1e9 < before_bytes - (200 << 20)
