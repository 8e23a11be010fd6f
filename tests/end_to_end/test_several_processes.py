"""Whole trainings in several processes: equal to those of one process, stopped and resumed by another number of them, and cut short."""

import os
import shutil
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.planted_store import Planted, plant, plant_column, telling_tokens
from tests.support.several_processes import Group, free_port
from tests.support.small_training import without_dropout
from tests.support.tiny_text_models import tiny_text_model
from tests.support.trained import assert_same_training
from train.cli import main
from train.learning import heartbeat, loop

# A 13th of the 37 texts: no number of processes divides a batch, and the last one has 11.
TEACHER = ("teacher", "--image-tokens", "one", "--freeze-layers", "1", "--batch-size", "13")
MEAN = ("teacher", "--name", "mean", "--image-tokens", "two", "--several-images", "mean", "--class-weights", "balanced")
# Batches of 9 in three passes; the last has one text, so that all processes but one have none.
STUDENT = ("student", "--teachers", "teacher", "mean", "--batch-size", "9", "--gradient-accumulation-steps", "3")
CASES: Mapping[str, tuple[str, ...]] = {"teacher": TEACHER, "mean": MEAN, "student": STUDENT}
LINE = (
    "expected all of them until the model is trained; see its own output for the reason; the same command continues from the last "
    "checkpoint"
)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """A corpus with two images of each text, and tokens of two encoders."""
    planted = plant(tmp_path_factory.mktemp("planted"), counts=(37, 11, 5), images_per_text=2)
    for seed, name in enumerate(("one", "two")):
        plant_column(planted, name, telling_tokens(planted.labels, strength=1.0, seed=seed))
    return planted


@pytest.fixture(scope="module")
def flags(planted: Planted, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    model = without_dropout(tmp_path_factory.mktemp("model") / "without-dropout")
    corpus = ("--dataset", str(planted.table), "--split-column", "split", "--prompt-column", "picture", "--device", "cpu")
    return (*corpus, "--text-model", str(model), "--epochs", "2", "--learning-rate", "5e-4", "--optimizer", "adamw")


@pytest.fixture(scope="module")
def alone(planted: Planted, flags: tuple[str, ...]) -> Path:
    """A run whose models were trained by one process."""
    for case in CASES.values():
        assert main([*case, *flags, "--run-dir", str(planted.run_dir)]) == 0
    return planted.run_dir


def at_step(step: int, do: Callable[[], object]) -> None:
    """Do something in this process before it takes that step."""
    take = loop.Learner.one_step

    def one_step(learner: loop.Learner, *given: Any) -> float:
        if learner.step == step:
            do()
        return take(learner, *given)

    loop.Learner.one_step = one_step  # type: ignore[method-assign]


def signalled(*numbers: int) -> Callable[[], None]:
    return lambda: [os.kill(os.getpid(), number) for number in numbers] and None


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.soak)])
def test_several_processes_train_the_same_model_as_one(alone: Path, flags: tuple[str, ...], tmp_path: Path, name: str, count: int) -> None:
    run = tmp_path / "run"
    for folder in ("tokens", *(("teacher", "mean") if name == "student" else ())):
        shutil.copytree(alone / folder, run / folder)
    ended = Group(count, lambda rank: main([*CASES[name], *flags, "--run-dir", str(run)]), tmp_path / "said").wait()
    assert [one.status for one in ended] == [0] * count, ended
    assert [bool(one.stdout) for one in ended] == [True] + [False] * (count - 1)
    assert "warning" not in "".join(one.stderr for one in ended)
    assert_same_training(alone, run, name)


def test_weights_that_nothing_reaches_stop_no_training(planted: Planted, flags: tuple[str, ...], tmp_path: Path) -> None:
    words = [*flags, "--text-model", str(tiny_text_model(tmp_path / "xlnet", "xlnet", dropout=0.0, summary_last_dropout=0.0))]
    assert main(["baseline", *words, "--run-dir", str(tmp_path / "alone")]) == 0
    ended = Group(2, lambda rank: main(["baseline", *words, "--run-dir", str(tmp_path / "run")]), tmp_path / "said").wait()
    assert [one.status for one in ended] == [0, 0], ended
    assert_same_training(tmp_path / "alone", tmp_path / "run", "baseline")


@pytest.mark.parametrize("count", [1, pytest.param(4, marks=pytest.mark.soak)])
def test_a_signal_to_one_process_stops_all_and_another_number_of_them_continues(
    alone: Path, flags: tuple[str, ...], tmp_path: Path, count: int
) -> None:
    run = tmp_path / "run"
    shutil.copytree(alone / "tokens", run / "tokens")
    words = [*TEACHER, *flags, "--run-dir", str(run)]

    def stopped(rank: int) -> int:
        if rank == 1:  # twice, as by SLURM and by torchrun
            at_step(4, signalled(signal.SIGUSR1, signal.SIGUSR1))
        return main([*words, "--checkpoint-minutes", "0"])  # so that they agree after every step

    ended = Group(2, stopped, tmp_path / "said").wait()
    assert [one.status for one in ended] == [128 + signal.SIGUSR1] * 2, ended
    assert all("interrupted: what is written is kept; run the same command to continue" in one.stderr for one in ended)
    assert max(path.name for path in (run / "teacher" / "checkpoints").iterdir()) == "step-000000005"
    if count == 1:
        assert main(words) == 0
    else:
        assert [one.status for one in Group(count, lambda rank: main(words), tmp_path / "said").wait()] == [0] * count
    assert_same_training(alone, run, "teacher")


@pytest.mark.parametrize("killed", [0, 1])
def test_where_one_is_killed_the_other_ends_with_a_line(flags: tuple[str, ...], tmp_path: Path, killed: int) -> None:
    def work(rank: int) -> int:
        if rank == killed:
            at_step(3, signalled(signal.SIGKILL))
        return main(["baseline", *flags, "--run-dir", str(tmp_path / "run")])

    ended = Group(2, work, tmp_path / "said").wait()
    other = ended[1 - killed]
    assert (ended[killed].status, other.status) == (-signal.SIGKILL, 2), ended
    assert [line for line in other.stderr.splitlines() if "error" in line] == [
        f"error: got an end of another of the 2 processes, seen by process {1 - killed}; {LINE}"
    ]


def test_where_one_hangs_the_other_ends_with_a_line(flags: tuple[str, ...], tmp_path: Path) -> None:
    def work(rank: int) -> int:
        heartbeat._EVERY_S, heartbeat._GRACE_S = 0.3, 0.5
        if rank == 1:
            at_step(3, signalled(signal.SIGSTOP))
        return main(["baseline", *flags, "--run-dir", str(tmp_path / "run")])

    group = Group(2, work, tmp_path / "said")
    (first,) = group.wait(ranks=[0])
    os.kill(group.pids[1], signal.SIGKILL)
    group.wait(ranks=[1])
    assert first.status == 2
    assert f"error: got no sign of process 1 of 2 for 4 seconds, seen by process 0; {LINE}" in first.stderr


@pytest.mark.parametrize("differs", ["settings", "checkpoint"])
def test_processes_that_do_not_train_the_same_model_say_so(flags: tuple[str, ...], tmp_path: Path, differs: str) -> None:
    port = str(free_port())

    def work(rank: int) -> int:
        if differs == "settings":
            return main(["baseline", *flags, "--seed", str(rank), "--run-dir", str(tmp_path / "run")])
        at_step(4, signalled(signal.SIGUSR1))
        main(["baseline", *flags, "--run-dir", str(tmp_path / "run")])
        os.environ["MASTER_PORT"] = port  # at the first one, the store of the first group may still answer
        return main(["baseline", *flags, "--run-dir", str(tmp_path / ("run", "elsewhere")[rank])])

    ended = Group(2, work, tmp_path / "said").wait()
    assert [one.status for one in ended] == [2, 2], ended
    got, do = {
        "settings": ("other texts, text model, tokens or settings", "give all of them the same command, files and versions"),
        "checkpoint": ("another last checkpoint", "give a --run-dir on a file system that all machines share"),
    }[differs]
    for one in ended:
        assert f"error: got {got} of process 1, unlike process 0; expected the same in all 2; {do}\n" in one.stderr
