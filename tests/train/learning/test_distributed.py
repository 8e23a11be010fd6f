"""Several processes that train one model: the same result as one process, and one report."""

import json
import os
import shutil
import signal
import socket
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lugpi_core.errors import InputError
from lugpi_core.runtime.stopping import Stopped, terminated_like_interrupted
from tests.support.checkout import Command
from tests.support.several_processes import Group, free_port
from tests.support.small_training import without_dropout
from train.cli import main
from train.learning import distributed
from train.learning.distributed import Processes, joined, meet
from train.learning.launch import Launch

# Every launcher finds itself a free port.
TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "train")
ACCELERATE = (
    *("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--main_process_port", "0"),
    *("--mixed_precision", "no", "--dynamo_backend", "no", "-m", "train"),
)
TEACHER = ("--image-tokens", "clip-demo", "--batch-size", "14", "--gradient-accumulation-steps", "2", "--track", "tensorboard")
# With batches of 7, the last one has one row, so that the second process has none.
KINDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "teacher": (TORCHRUN, TEACHER),
    "student": (ACCELERATE, ("--batch-size", "7")),
}


@pytest.fixture(scope="module")
def flags(small_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    model = without_dropout(tmp_path_factory.mktemp("model") / "without-dropout")
    corpus = ("--dataset", str(small_csv), "--split-column", "split", "--text-model", str(model), "--device", "cpu")
    return (*corpus, "--epochs", "2", "--learning-rate", "2e-4", "--optimizer", "adamw")


@pytest.fixture(scope="module")
def alone(small_run: Path, flags: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose models were trained by one process."""
    run = tmp_path_factory.mktemp("alone") / "topics"
    shutil.copytree(small_run / "tokens", run / "tokens")
    for kind, (_, more) in KINDS.items():
        assert main([kind, *flags, *more, "--run-dir", str(run)]) == 0
    return run


def logits_of(folder: Path) -> Any:
    return np.loadtxt(folder / "predictions.csv", delimiter=",", skiprows=1, usecols=(3, 4, 5))


@pytest.mark.parametrize(
    ("kind", "count"),
    [("teacher", 2), pytest.param("teacher", 4, marks=pytest.mark.soak), pytest.param("student", 2, marks=pytest.mark.soak)],
)
def test_several_processes_train_the_same_model_as_one(
    alone: Path, flags: tuple[str, ...], tmp_path: Path, new_command: Command, kind: str, count: int
) -> None:
    launcher, more = KINDS[kind]
    launcher = tuple(str(count) if word == "2" else word for word in launcher)
    run = tmp_path / "topics"
    for folder in {"teacher": ("tokens",), "student": ("teacher",)}.get(kind, ()):
        shutil.copytree(alone / folder, run / folder)
    done = new_command("-m", *launcher, kind, *flags, *more, "--run-dir", str(run))
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert json.loads(line)["compute"]["processes"] == count
    assert done.stderr.count("done: ") == 1
    one, two = (json.loads((folder / kind / "metrics.json").read_text()) for folder in (alone, run))
    assert [record["loss"] for record in two["history"]] == pytest.approx([record["loss"] for record in one["history"]], abs=1e-5)
    for figure in ("accuracy", "macro_f1"):
        assert two[figure] == pytest.approx(one[figure], abs=1e-5)
    assert [record["validation_accuracy"] for record in two["history"]] == [record["validation_accuracy"] for record in one["history"]]
    np.testing.assert_allclose(logits_of(run / kind), logits_of(alone / kind), rtol=0, atol=2e-4)
    assert one["history"][-1]["loss"] < one["history"][0]["loss"] - 1e-3, "the training changes the model"


def test_a_single_process_joins_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined("cpu") as processes:
        assert (processes.rank, processes.count, processes.is_first) == (0, 1, True)
        assert not torch.distributed.is_initialized()
        model, tensor = torch.nn.Linear(2, 2), torch.ones(3)
        assert processes.averaged(model, torch.device("cpu"), reaches_all=True) is model
        assert processes.sum(tensor) is tensor
        assert [processes.any(here) for here in (True, False)] == [True, False]
        with processes.first_before_others():
            processes.wait()


def test_only_process_0_is_the_first() -> None:
    assert [Processes(rank=rank, count=3).is_first for rank in range(3)] == [True, False, False]


def through_the_block(rank: int, *, breaks: bool = False) -> None:
    with Processes(rank=rank, count=2).first_before_others():
        print(f"{rank} works")
        if breaks:
            raise InputError(got="this", expected="that", do="fix it")


@pytest.fixture
def failed(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What the first process reported to the others."""
    reported: list[bool] = []

    def agree(who: Processes, here: bool) -> bool:
        print(f"{who.rank} meets the others")
        reported.append(here)
        return any(reported)

    monkeypatch.setattr(Processes, "any", agree)
    return reported


def test_the_others_wait_for_the_first(failed: list[bool], capsys: pytest.CaptureFixture[str]) -> None:
    through_the_block(0)
    through_the_block(1)
    assert capsys.readouterr().out.splitlines() == ["0 works", "0 meets the others", "1 meets the others", "1 works"]


def test_if_the_first_fails_the_others_exit_silently(failed: list[bool], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError):
        through_the_block(0, breaks=True)
    with pytest.raises(SystemExit) as ended:
        through_the_block(1)
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert captured.out.splitlines() == ["0 works", "0 meets the others", "1 meets the others"]
    assert captured.err == ""


def test_bad_input_to_several_processes_is_reported_once(flags: tuple[str, ...], tmp_path: Path) -> None:
    ended = Group(2, lambda rank: main(["teacher", *flags, "--run-dir", str(tmp_path / "empty")]), tmp_path / "said").wait()
    assert [(one.status, one.stdout) for one in ended] == [(2, ""), (2, "")]
    (error,) = ended[0].stderr.splitlines()
    assert "run python -m featurize first" in error
    assert ended[1].stderr == ""


def test_more_processes_than_cuda_devices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "64", "RANK": "63", "LOCAL_RANK": "63", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="a device for each process"), joined("cuda"):
        pass


def _launch(rank: int, port: int) -> Launch:
    return Launch(by="a test", rank=rank, count=3, local_rank=rank, address="127.0.0.1", port=port)


def test_who_does_not_come_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(distributed, "_SAY_AFTER_S", 0.0)
    port = free_port()
    with pytest.raises(InputError, match=rf"no sign of processes 1, 2 of 3 at 127\.0\.0\.1:{port}"):
        meet(_launch(0, port), patience_s=0.5)
    assert capsys.readouterr().err == f"process 0 is waiting for processes 1, 2 of 3 at 127.0.0.1:{port}\n"


def test_without_process_0_the_others_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "_ATTEMPT_S", 0.1)
    with pytest.raises(InputError, match="no sign of process 0 of 3"):
        meet(_launch(1, free_port()), patience_s=0.3)


def test_a_port_that_is_taken_is_named() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with pytest.raises(InputError, match="on which process 0 cannot listen"):
            meet(_launch(0, int(listener.getsockname()[1])))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_ends_the_waiting(number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    wait = SimpleNamespace(monotonic=time.monotonic, sleep=lambda _: os.kill(os.getpid(), number))
    monkeypatch.setattr(distributed, "time", wait)
    with terminated_like_interrupted(), pytest.raises(Stopped, match=number.name):
        meet(_launch(0, free_port()))


class _Store:
    """A store that has what process 0 says."""

    def __init__(self, says: str) -> None:
        self._says = says

    def get(self, name: str) -> bytes:
        return self._says.encode()


def test_an_end_of_another_process_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in _launch(0, free_port()).variables().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed, "meet", lambda launch, says: _Store(says))
    monkeypatch.setattr("torch.distributed.init_process_group", lambda **options: None)
    monkeypatch.setattr("torch.distributed.destroy_process_group", lambda: None)
    with pytest.raises(InputError, match="an end of another of the 3 processes"), joined("cpu"):
        raise RuntimeError("[../gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4711")
    with pytest.raises(RuntimeError, match="another fault"), joined("cpu"):
        raise RuntimeError("another fault")


def test_processes_learn_what_each_other_has(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Processes().gathered([3, 4]) == [[3, 4]]
    Processes().require_same("other texts", "a", do="fix it")
    monkeypatch.setattr(Processes, "sum", lambda who, table: table + torch.tensor([[5], [0]]))
    assert Processes(rank=1, count=2).gathered([7]) == [[5], [7]]
    with pytest.raises(InputError, match=r"^got other texts of process 1, unlike process 0; expected the same in all 2; fix it$"):
        Processes(rank=1, count=2).require_same("other texts", "a", do="fix it")


def test_an_address_that_nobody_has_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match=r"^got no such host:\d+, on which process 0 cannot listen"):
        meet(replace(_launch(0, free_port()), address="no such host"))
    assert capfd.readouterr().err == ""
