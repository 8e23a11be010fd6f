"""``python -m train sweep``: proposals, records, and interruptions that do not change the result."""

import fcntl
import json
import os
import shlex
import signal
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Gemma3Config, PerceiverConfig

import train.tools.sweep as sweeping
from lugpi_core.command_line import parse, run
from lugpi_core.errors import InputError
from lugpi_core.runtime.stopping import Stopped
from tests.support.checkout import Start
from tests.support.topics import topic_texts
from train.data.text_model import TextModel
from train.learning import loop
from train.learning.task_rules import METRIC_NAMES
from train.models.commands import student, teacher
from train.options.distillation import StudentOptions
from train.options.sweep import Dimension, SweepOptions, dimension_of
from train.options.training import TeacherOptions
from train.tools.sweep import open_study, propose, require_swept_layers, sweep

OVER = ("learning_rate=1e-4:1e-2", "temperature=1:10", "student_layers=1:2", "kd_preset=paper,hinton")
TRIALS = 4
Make = Callable[..., SweepOptions]


@pytest.fixture(scope="module")
def run_dir(small_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a finished teacher that reads text alone."""
    folder = tmp_path_factory.mktemp("sweep") / "topics"
    teacher(TeacherOptions(privileged="none", name="teacher", **flags(small_csv, folder)))
    return folder


def flags(small_csv: Path, folder: Path) -> dict[str, Any]:
    return {
        "dataset": str(small_csv),
        "split_column": "split",
        "run_dir": folder,
        "text_model": "demo",
        "epochs": 2,
        "optimizer": "adamw",
        "device": "cpu",
    }


@pytest.fixture
def make(small_csv: Path, run_dir: Path, request: pytest.FixtureRequest) -> Make:
    """Return the options of a sweep, in a folder for this test unless a name is given."""

    def options(**more: Any) -> SweepOptions:
        own = {"name": request.node.name.replace("[", "-").replace("]", ""), "over": OVER, "trials": TRIALS}
        return SweepOptions(**{**flags(small_csv, run_dir), **own, **more})

    return options


@pytest.fixture(scope="module")
def straight(small_csv: Path, run_dir: Path) -> tuple[SweepOptions, dict[str, Any]]:
    """An uninterrupted sweep, and its figures."""
    options = SweepOptions(**flags(small_csv, run_dir), name="straight", over=OVER, trials=TRIALS)
    return options, sweep(options)


def records(options: SweepOptions) -> list[dict[str, Any]]:
    """The trials' records, without their durations."""
    found = [json.loads((options.folder / f"trial-{number:03d}" / "trial.json").read_text()) for number in range(options.trials)]
    for record in found:
        del record["seconds"]
        for epoch in record["history"]:
            del epoch["seconds"]
    return found


def study_of(options: SweepOptions) -> list[tuple[Any, Any, Any]]:
    return [(trial.number, trial.params, trial.value) for trial in open_study(options.folder).trials]


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("temperature=1:10", Dimension(name="temperature", low=1.0, high=10.0)),
        ("alpha=0.1:5", Dimension(name="alpha", low=0.1, high=5.0)),
        ("alpha=0.1:5:log", Dimension(name="alpha", low=0.1, high=5.0, log=True)),
        ("learning_rate=1e-5:1e-3", Dimension(name="learning_rate", low=1e-5, high=1e-3, log=True)),
        ("beta=0:500", Dimension(name="beta", low=0.0, high=500.0)),
        ("student_layers=2:6", Dimension(name="student_layers", low=2, high=6)),
        ("batch_size=8,16,32", Dimension(name="batch_size", choices=(8, 16, 32))),
        ("predict_image=0,1", Dimension(name="predict_image", choices=(0.0, 1.0))),
        ("embedding_loss=mse,infonce", Dimension(name="embedding_loss", choices=("mse", "infonce"))),
        ("hard=0,1", Dimension(name="hard", choices=(0.0, 1.0))),
        ("kd_preset=paper,hinton", Dimension(name="kd_preset", choices=("paper", "hinton"))),
    ],
)
def test_ranges_and_choices_are_read(written: str, read: Dimension) -> None:
    found = dimension_of(written)
    assert found == read
    assert [type(value) for value in found.corners] == [type(value) for value in read.corners]


@pytest.mark.parametrize(
    ("over", "message"),
    [
        (("temperatur=1:10",), "did you mean 'temperature'"),
        (("device=cpu,cuda",), "choose one of"),
        (("temperature",), "NAME=LOW:HIGH"),
        (("temperature=3",), "LOW:HIGH"),
        (("temperature=10:1",), "LOW below HIGH"),
        (("alpha=0:1:log",), "above 0 for :log"),
        (("temperature=1:ten",), "'ten'"),
        (("temperature=1:inf",), "'inf'"),
        (("student_layers=1.5:2",), "whole numbers"),
        (("kd_preset=paper,hintn",), "did you mean 'hinton'"),
        (("kd_preset=paper:hinton",), "choices"),
        (("alpha=1,1.0",), "different choices"),
        (("alpha=1:2", "alpha=1:3"), "name each once"),
        ((), "got --over without a value"),
        (("temperature=-1:10",), "a positive temperature"),
        (("batch_size=0,8",), "--batch-size 0"),
        (("learning_rate=0:1",), "a positive rate"),
        (("epochs=1:2",), "--epochs 2 and --over epochs"),
        (("student_layers=1:9",), "at most 2, as the text model has"),
        (("hard=0,1", "alpha=0,1", "beta=0:1"), "at least one positive weight"),
    ],
)
def test_a_space_that_cannot_be_searched_is_one_line(
    small_csv: Path, run_dir: Path, capsys: pytest.CaptureFixture[str], over: tuple[str, ...], message: str
) -> None:
    more = [f"--{name.replace('_', '-')}={value}" for name, value in flags(small_csv, run_dir).items()]
    assert run(sweep, SweepOptions, [*more, "--name", "refused", "--over", *over], prog="sweep") == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert not (run_dir / "sweep" / "refused" / "space.json").exists()


@pytest.mark.parametrize(
    ("config", "over", "message"),
    [
        (Gemma3Config(), ("temperature=1:10",), None),
        (PerceiverConfig(), ("temperature=1:10",), None),
        (Gemma3Config(), ("student_layers=1:99",), "at most 26, as the text model has"),
        (PerceiverConfig(), ("student_layers=1:2",), "a text model whose layers are one list"),
    ],
)
def test_layers_are_counted_where_they_are_swept(small_csv: Path, config: Any, over: tuple[str, ...], message: str | None) -> None:
    """Gemma 3 states them in the part of its configuration that is about text, Perceiver nowhere."""
    text_model = TextModel(name="tiny", folder=Path(), config=config, tokenizer=None, max_length=8)
    options = SweepOptions(**flags(small_csv, Path("run")), over=over)
    with nullcontext() if message is None else pytest.raises(InputError, match=message):
        require_swept_layers(options, text_model)


@pytest.mark.parametrize("more", [{"over": OVER}, {"over": OVER[:2], "student_layers": 1}])
def test_a_student_with_fewer_layers_than_are_frozen_ends_the_sweep_before_its_first_trial(make: Make, more: dict[str, Any]) -> None:
    options = make(freeze_layers=2, **more)
    with pytest.raises(InputError, match="--freeze-layers 2; expected 0 to 1, as this model has"):
        sweep(options)
    assert not (options.folder / "space.json").exists()


def test_what_teachers_or_batches_refuse_ends_the_sweep_before_its_first_trial(make: Make) -> None:
    for over, message in (
        (("predict_image=0,1",), "reads no images"),
        (("embedding_loss=mse,infonce", "batch_size=1:8"), "two texts or more"),
    ):
        options = make(over=over)
        with pytest.raises(InputError, match=message):
            sweep(options)
        assert not (options.folder / "space.json").exists()


def test_a_proposal_follows_from_seed_number_and_earlier_trials(make: Make) -> None:
    import optuna

    options = make(trials=30)
    distributions = sweeping._distributions(options)
    before: list[Any] = []
    for number in range(14):
        parameters = propose(options, number, before)
        assert 1e-4 <= parameters["learning_rate"] <= 1e-2
        assert 1 <= parameters["temperature"] <= 10
        assert parameters["student_layers"] in (1, 2)
        assert type(parameters["student_layers"]) is int
        assert parameters["kd_preset"] in ("paper", "hinton")
        before.append(optuna.trial.create_trial(value=-parameters["temperature"], params=parameters, distributions=distributions))
    assert [propose(options, number, before) for number in range(14)] == [trial.params for trial in before]
    assert len({trial.params["temperature"] for trial in before}) == 14
    assert propose(make(sampler_seed=1), 3, before) != before[3].params
    # After ten random trials the search prefers what was good: low temperatures here, high ones with negated values.
    turned = [optuna.trial.create_trial(value=-one.value, params=one.params, distributions=distributions) for one in before]
    low, high = (sum(propose(options, number, trials)["temperature"] for number in range(20, 25)) for trials in (before, turned))
    assert low < high


def test_a_finished_trial_leaves_only_its_record(straight: tuple[SweepOptions, dict[str, Any]]) -> None:
    options, figures = straight
    assert figures["trials"] == TRIALS
    assert figures["failed"] == 0
    for number in range(TRIALS):
        folder = options.folder / f"trial-{number:03d}"
        assert [path.name for path in folder.iterdir()] == ["trial.json"]
        record = json.loads((folder / "trial.json").read_text())
        assert record["validation_accuracy"] == max(epoch["validation_accuracy"] for epoch in record["history"])
        assert len(record["history"]) == options.epochs
        assert record["seconds"] > 0
    assert study_of(options) == [(n, record["parameters"], record["validation_accuracy"]) for n, record in enumerate(records(options))]


def test_the_test_split_is_not_read(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    read: set[int] = set()
    whole = loop.TrainingData.batch

    def batch(self: loop.TrainingData, rows: Any, epoch: int | None = None) -> Any:
        read.update(rows.tolist())
        return whole(self, rows, epoch)

    monkeypatch.setattr(loop.TrainingData, "batch", batch)
    sweep(make(trials=1))
    assert read == set(range(48)), "36 train and 12 validation rows; the last 12 are the test split"


def test_the_best_five_trials_are_shown(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    options = make(trials=7)
    for number, accuracy in enumerate((0.2, 0.7, 0.5, 0.7, 0.1, 0.6, None)):
        record = {
            "trial": number,
            "parameters": {"learning_rate": 1e-3 + number * 1e-4, "temperature": 2.0, "student_layers": 1, "kd_preset": "paper"},
            "failed": None if accuracy else "not finite",
            "validation_accuracy": accuracy,
            "history": [],
            "seconds": 60.0,
        }
        folder = options.folder / f"trial-{number:03d}"
        folder.mkdir(parents=True)
        (folder / "trial.json").write_text(json.dumps(record))
    figures = sweep(options)
    assert figures["best"] == {
        "trial": 1,
        "parameters": {"learning_rate": 0.0011, "temperature": 2.0, "student_layers": 1, "kd_preset": "paper"},
        "validation_accuracy": 0.7,
    }
    assert (figures["trials"], figures["failed"]) == (7, 1)
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [row[1] for row in rows] == ["trial", "-----", "1", "3", "5", "2", "0"]
    assert "--learning-rate 0.0011" in figures["student_command"]


def test_the_best_trials_command_trains_that_student(
    straight: tuple[SweepOptions, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    options, _ = straight
    figures = sweep(options)
    captured = capsys.readouterr()
    best = max(records(options), key=lambda record: (record["validation_accuracy"], -record["trial"]))
    assert figures["already_done"] is True
    assert "already done" in captured.err
    assert captured.out.startswith("| trial | learning_rate")
    assert figures["student_command"] in captured.out
    assert figures["best"]["parameters"] == best["parameters"]
    words = shlex.split(figures["student_command"])
    assert words[:4] == ["python", "-m", "train", "student"]
    parsed = parse(StudentOptions, words[4:], prog="student")
    assert parsed == options.student({**best["parameters"], "name": "straight-best"})
    assert student(parsed)["accuracy"]["validation"] == best["validation_accuracy"]


def test_a_stopped_sweep_resumes_to_the_same_trials(
    straight: tuple[SweepOptions, dict[str, Any]], make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, validations = make(), []
    predict = loop.predict

    def stopping(*arguments: Any, **more: Any) -> Any:
        validations.append(1)
        if len(validations) in (1, 4):  # in the first epoch of trial 0, and in the second of trial 1, of which the first is not run again
            os.kill(os.getpid(), signal.SIGTERM)
        return predict(*arguments, **more)

    monkeypatch.setattr(loop, "predict", stopping)
    for trial in (0, 1):
        with pytest.raises(Stopped):
            sweep(options)
        assert (options.folder / f"trial-{trial:03d}" / "checkpoints").is_dir()
        assert len(open_study(options.folder).trials) == trial
    sweep(options)
    assert len(validations) == TRIALS * options.epochs, "no epoch was run twice"
    assert records(options) == records(straight[0])
    assert study_of(options) == study_of(straight[0])


def test_a_killed_sweep_resumes_to_the_same_trials(straight: tuple[SweepOptions, dict[str, Any]], make: Make, start: Start) -> None:
    options = make(checkpoint_minutes=0.0)
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in flags(Path(options.dataset), options.run).items()]
    arguments += ["--checkpoint-minutes", "0", "--name", options.sweep_name, "--trials", str(TRIALS), "--over", *OVER]
    code = (
        "import sys\nfrom lugpi_core.command_line import run\nfrom train.tools.sweep import sweep\n"
        "from train.options.sweep import SweepOptions\n"
        "sys.exit(run(sweep, SweepOptions, sys.argv[1:], prog='sweep'))"
    )
    child = start("-c", code, *arguments)
    deadline_s = time.monotonic() + 120
    while not list(options.folder.glob("trial-001/checkpoints/step-*")) and child.poll() is None and time.monotonic() < deadline_s:
        time.sleep(0.01)
    child.kill()
    assert child.wait() == -signal.SIGKILL
    assert not (options.folder / "trial-001" / "trial.json").exists()
    # What a kill during Optuna's own writing leaves: half a line, and its lock.
    journal = options.folder / "study.journal"
    with journal.open("a") as file:
        file.write('{"op_code": 4, "worker')
    (options.folder / "study.journal.lock").symlink_to(journal)
    figures = sweep(options)
    assert figures["trials"] == TRIALS
    assert records(options) == records(straight[0])
    assert study_of(options) == study_of(straight[0])


@pytest.mark.soak
def test_trials_at_once_on_ray_are_the_same_while_they_are_random(
    straight: tuple[SweepOptions, dict[str, Any]], make: Make, ray_address: str
) -> None:
    """The first ten have no trial before them, however many are trained at once. On a real Ray, so in ``make soak`` alone."""
    options = make(ray=ray_address, trials_at_once=2, trials=3)
    sweep(options)
    assert json.loads((options.folder / "space.json").read_text())["trials_at_once"] == 2
    options = replace(options, trials=TRIALS, ray=None, trials_at_once=None)
    assert sweep(options)["trials"] == TRIALS, "it continues without a cluster, two by two"
    assert records(options) == records(straight[0])
    assert study_of(options) == study_of(straight[0])
    with pytest.raises(InputError, match="another sweep: trials_at_once"):
        sweep(replace(options, ray=ray_address, trials_at_once=3))


def test_trials_at_once_know_those_before_them_alone(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    known: list[tuple[int, int]] = []
    original = propose
    monkeypatch.setattr(
        sweeping, "propose", lambda options, number, before: known.append((number, len(before))) or original(options, number, before)
    )
    options = make(trials=5)
    (options.folder).mkdir(parents=True)
    monkeypatch.setattr(sweeping, "_require_same_sweep", lambda *_: None)
    (options.folder / "space.json").write_text('{"trials_at_once": 2}')
    sweep(options)
    assert known == [(0, 0), (1, 0), (2, 2), (3, 2), (4, 4)]


def test_a_finished_trial_missing_from_the_journal_is_not_repeated(
    straight: tuple[SweepOptions, dict[str, Any]], make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    options = make()
    shutil.copytree(straight[0].folder, options.folder)
    journal = options.folder / "study.journal"
    lines = journal.read_text().splitlines(keepends=True)

    def never(_: Any) -> Any:
        raise AssertionError("trained again")

    monkeypatch.setattr(sweeping, "fit", never)
    for kept in (lines[:-1], [*lines[:2], lines[2][:40]], [lines[0][:20]], []):
        journal.write_text("".join(kept))
        assert sweep(options)["already_done"] is False
        assert study_of(options) == study_of(straight[0])


def test_more_trials_continue_the_sweep(straight: tuple[SweepOptions, dict[str, Any]], make: Make) -> None:
    fewer = make(trials=2)
    assert sweep(fewer)["trials"] == 2
    more = make(trials=TRIALS)
    assert sweep(more)["trials"] == TRIALS
    assert records(more) == records(straight[0])
    assert sweep(fewer)["already_done"] is True


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"over": (*OVER[:1], "temperature=1:9", *OVER[2:])}, "over.temperature.high: found 10.0, wanted 9.0"),
        ({"over": OVER[:3]}, "over.kd_preset.choices"),
        ({"sampler_seed": 1}, "sampler_seed: found 0, wanted 1"),
        ({"alpha": 2.0}, "--alpha: none then, 2.0 now"),
        ({"epochs": 3}, "--epochs: 2 then, 3 now"),
    ],
)
def test_another_sweep_in_the_same_folder_is_refused(
    straight: tuple[SweepOptions, dict[str, Any]], make: Make, more: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match="another sweep") as refused:
        sweep(make(name="straight", **more))
    assert message in str(refused.value)


def test_a_diverging_student_is_a_failed_trial(make: Make) -> None:
    options = make(over=("learning_rate=1e-3,1e30",), trials=6, epochs=1)
    figures = sweep(options)
    found = records(options)
    failed = [record for record in found if record["parameters"]["learning_rate"] == 1e30]
    assert 0 < len(failed) < 6, "the seed proposes both"
    assert figures["failed"] == len(failed)
    assert all("not finite" in record["failed"] and record["validation_accuracy"] is None for record in failed)
    assert figures["best"]["parameters"] == {"learning_rate": 1e-3}
    assert not list(options.folder.glob("trial-*/checkpoints"))
    assert sweep(options)["already_done"] is True


def test_out_of_memory_is_a_failed_trial(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    load = sweeping.load_model

    def load_or_fail(plan: Any, processes: Any) -> Any:
        if plan.optimization.batch_size == 512:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return load(plan, processes)

    monkeypatch.setattr(sweeping, "load_model", load_or_fail)
    options = make(over=("batch_size=8,512",), trials=4, epochs=1)
    figures = sweep(options)
    reasons = [record["failed"] for record in records(options) if record["parameters"]["batch_size"] == 512]
    assert reasons
    assert set(reasons) == {"too little memory on the device"}
    assert figures["failed"] == len(reasons)
    assert sweep(options)["already_done"] is True


def test_a_damaged_checkpoint_ends_the_sweep(make: Make) -> None:
    options = make()
    damaged = options.folder / "trial-000" / "checkpoints" / "step-000000001"
    damaged.mkdir(parents=True)
    (damaged / "state.pt").write_bytes(b"half a state")
    with pytest.raises(InputError, match="every checkpoint is damaged"):
        sweep(options)
    assert len(open_study(options.folder).trials) == 0


def test_two_commands_cannot_search_one_folder(straight: tuple[SweepOptions, dict[str, Any]]) -> None:
    with (straight[0].folder / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another command is searching"):
            sweep(straight[0])


def test_a_damaged_journal_is_named(straight: tuple[SweepOptions, dict[str, Any]], make: Make) -> None:
    import shutil

    options = make()
    shutil.copytree(straight[0].folder, options.folder)
    journal = options.folder / "study.journal"
    journal.write_bytes(b"\0\0\0\n" + journal.read_bytes())
    with pytest.raises(InputError, match="which Optuna cannot read"):
        sweep(options)


def test_missing_requirements_are_reported_first(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="several processes"):
        sweep(make())
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "optuna" else find(name, *more))
    with pytest.raises(InputError, match="no package optuna"):
        sweep(make())


def table_of(folder: Path, task: str) -> Path:
    """A user's corpus of another task: numbers, of which the validation ones may be equal, or several labels."""
    path = folder / "own.csv"
    with path.open("w") as file:
        file.write("text,label,split\n")
        for n, (text, topic) in enumerate(topic_texts(60)):
            split = "train" if n < 36 else "validation" if n < 48 else "test"
            number = "3" if task == "equal" and split == "validation" else str(len(topic))
            file.write(f"{text},{topic + '|even' * (n % 2) if task == 'multi-label' else number},{split}\n")
    return path


@pytest.mark.parametrize(("task", "metric"), [("multi-label", "macro_f1"), ("regression", "spearman")])
def test_other_tasks_are_searched_by_their_own_metric(tmp_path: Path, capsys: pytest.CaptureFixture[str], task: Any, metric: str) -> None:
    own = {**flags(table_of(tmp_path, task), tmp_path / "run"), "task": task, "label_separator": "|" if task == "multi-label" else None}
    teacher(TeacherOptions(privileged="none", name="teacher", **own))
    options = SweepOptions(**own, over=("learning_rate=1e-4:1e-2",), trials=2)
    figures = sweep(options)
    assert f"| validation {METRIC_NAMES[metric]} |" in capsys.readouterr().out
    scores = [record[f"validation_{metric}"] for record in records(options)]
    assert figures["best"][f"validation_{metric}"] == max(scores)
    assert [value for _, _, value in study_of(options)] == scores
    assert f"--task {task}" in figures["student_command"]
    assert sweep(options)["already_done"]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_undefined_score_is_a_failed_trial(tmp_path: Path) -> None:
    own = {**flags(table_of(tmp_path, "equal"), tmp_path / "run"), "task": "regression"}
    teacher(TeacherOptions(privileged="none", name="teacher", **own))
    options = SweepOptions(**own, over=("learning_rate=1e-4:1e-2",), trials=1)
    with pytest.raises(InputError, match="more varied validation labels"):
        sweep(options)
    assert "validation spearman is undefined" in records(options)[0]["failed"]
