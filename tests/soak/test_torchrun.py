"""The torchrun commands of docs/cluster.md, on a small corpus and on processes of this machine."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.checkout import Start
from tests.support.pages import code_of
from tests.support.planted_store import plant, plant_column, telling_tokens
from tests.support.several_processes import free_port
from tests.support.small_training import without_dropout
from tests.support.trained import assert_same_training
from train.cli import main

# Real launchers, each process importing everything.
pytestmark = pytest.mark.soak


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What stands for ``--dataset 20ng``."""
    folder = tmp_path_factory.mktemp("planted")
    planted = plant(folder, counts=(37, 11, 5))
    plant_column(planted, "one", telling_tokens(planted.labels, strength=1.0))
    corpus = ["--dataset", str(planted.table), "--split-column", "split", "--prompt-column", "picture", "--device", "cpu"]
    model = without_dropout(folder / "without-dropout")
    return [*corpus, "--text-model", str(model), "--epochs", "20", "--learning-rate", "5e-4", "--optimizer", "adamw", "--batch-size", "13"]


@pytest.fixture(scope="module")
def alone(flags: list[str]) -> Path:
    """A run whose teacher was trained by one process."""
    run = Path(flags[1]).parent / "run"
    assert main(["teacher", *flags, "--run-dir", str(run)]) == 0
    return run


@pytest.fixture
def run(alone: Path, tmp_path: Path) -> Path:
    shutil.copytree(alone / "tokens", tmp_path / "run" / "tokens")
    return tmp_path / "run"


def torchruns(*, option: str) -> list[str]:
    """The words of the page's one command with this option of torchrun; its last ones name the corpus."""
    (command,) = [code.words for code in code_of("docs/cluster.md") if code.words[0] == "torchrun" and option in code.words]
    assert command[-2:] == ["--dataset", "20ng"]
    return ["-m", "torch.distributed.run", *command[1:-2]]


def ends(child: "subprocess.Popen[str]") -> tuple[int, str]:
    _, said = child.communicate(timeout=300)
    return child.returncode, said


def wait_for_checkpoint(child: "subprocess.Popen[str]", run: Path) -> None:
    while not list((run / "teacher" / "checkpoints").glob("step-*")):
        assert child.poll() is None, ends(child)
        time.sleep(0.1)


def test_two_machines_train_one_model(alone: Path, run: Path, flags: list[str], start: Start) -> None:
    words = [word.replace("head:29400", f"127.0.0.1:{free_port()}") for word in torchruns(option="--nnodes")]
    words[words.index("--nproc-per-node") + 1] = "1"
    machines = [start(*words, *flags, "--run-dir", run) for _ in range(2)]
    assert [status for status, _ in map(ends, machines)] == [0, 0]
    assert_same_training(alone, run, "teacher")


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_to_torchrun_writes_a_checkpoint_and_the_same_command_continues(
    alone: Path, run: Path, flags: list[str], start: Start, number: signal.Signals, tmp_path: Path
) -> None:
    words = torchruns(option="--signals-to-handle")
    words[words.index("--nproc-per-node") + 1] = "2"
    words += [*flags, "--run-dir", str(run)]
    first = start(*words, "--checkpoint-minutes", "0")
    wait_for_checkpoint(first, run)
    os.kill(first.pid, number)
    status, said = ends(first)
    assert status != 0
    assert said.count("interrupted: what is written is kept; run the same command to continue") == 2, said
    assert not (run / "teacher" / "metrics.json").exists()
    assert ends(start(*words))[0] == 0
    assert_same_training(alone, run, "teacher")


def test_where_one_is_killed_torchrun_ends_with_a_line(
    run: Path, flags: list[str], start: Start, children_of: Callable[[int], list[int]]
) -> None:
    words = torchruns(option="--signals-to-handle")
    words[words.index("--nproc-per-node") + 1] = "2"
    child = start(*words, *flags, "--run-dir", run, "--checkpoint-minutes", "0")
    wait_for_checkpoint(child, run)
    os.kill(children_of(child.pid)[-1], signal.SIGKILL)
    status, said = ends(child)
    assert status != 0
    assert len([line for line in said.splitlines() if "error: got an end of another of the 2 processes" in line]) == 1, said
    assert ends(start(*words, *flags, "--run-dir", run))[0] == 0


def test_a_restart_by_torchrun_goes_on_from_the_last_checkpoint(
    alone: Path, run: Path, flags: list[str], start: Start, children_of: Callable[[int], list[int]]
) -> None:
    words = torchruns(option="--max-restarts")
    words[words.index("--nproc-per-node") + 1] = "2"
    child = start(*words, *flags, "--run-dir", run, "--checkpoint-minutes", "0")
    wait_for_checkpoint(child, run)
    os.kill(children_of(child.pid)[-1], signal.SIGKILL)
    status, said = ends(child)
    assert status == 0, said
    assert said.count("teacher of own on CPU, float32, 2 processes") == 2, said
    assert " 0/740 " not in said.rpartition("teacher of own on CPU")[2], "it goes on, and does not begin"
    assert_same_training(alone, run, "teacher")


@pytest.fixture
def children_of() -> Callable[[int], list[int]]:
    return lambda pid: [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
