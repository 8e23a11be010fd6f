"""Checkpoints are atomic, restore their state, and a damaged one is replaced by the one before it."""

import errno
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lugpi_core.errors import InputError
from train.learning.checkpoint import (
    CHECKPOINTS,
    COMPLETE,
    STATE,
    has_checkpoint,
    load_checkpoint,
    load_weights,
    remove_checkpoints,
    save_checkpoint,
    save_weights,
)


def save(folder: Path, *steps: int) -> None:
    for step in steps:
        save_checkpoint(folder, step, {"step": step, "weights": torch.arange(1000.0) + step})


def names(folder: Path) -> list[str]:
    """Everything in the folder of the checkpoints, what is hidden too."""
    return sorted(os.listdir(folder / CHECKPOINTS))


def newest(folder: Path) -> Path:
    return folder / CHECKPOINTS / names(folder)[-1]


def step_of(folder: Path) -> int:
    state = load_checkpoint(folder)
    assert state is not None
    assert torch.equal(state["weights"], torch.arange(1000.0) + state["step"])
    return int(state["step"])


def test_a_checkpoint_restores_its_state(tmp_path: Path) -> None:
    state = {"history": [{"epoch": 0, "loss": 1.5}], "best": {}, "nested": [{"state1": torch.arange(3, dtype=torch.uint8)}], "step": 7}
    save_checkpoint(tmp_path, 7, state)
    found = load_checkpoint(tmp_path)
    assert found is not None
    assert found["nested"][0]["state1"].tolist() == [0, 1, 2]
    assert found["nested"][0]["state1"].dtype == torch.uint8
    assert {name: found[name] for name in ("history", "best", "step")} == {name: state[name] for name in ("history", "best", "step")}
    assert sorted(os.listdir(newest(tmp_path))) == [COMPLETE, STATE]


def test_no_checkpoint_is_no_state(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path) is None
    assert not has_checkpoint(tmp_path)


def test_the_newest_two_are_kept_and_the_newest_is_loaded(tmp_path: Path) -> None:
    save(tmp_path, 1, 9, 10, 1_000_000)
    assert names(tmp_path) == ["step-000000010", "step-001000000"]
    assert step_of(tmp_path) == 1_000_000
    remove_checkpoints(tmp_path)
    assert not has_checkpoint(tmp_path)
    assert os.listdir(tmp_path) == []


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


DAMAGE: dict[str, Any] = {
    **{f"byte {place} of the state flipped": lambda path, place=place: flip(path / STATE, place) for place in (0, 30, 700, 2000, -23, -1)},
    **{
        f"state cut to {size}": lambda path, size=size: (path / STATE).write_bytes((path / STATE).read_bytes()[:size])
        for size in (0, 10, 2000)
    },
    "state longer": lambda path: (path / STATE).write_bytes((path / STATE).read_bytes() + b"x"),
    "no state": lambda path: (path / STATE).unlink(),
    "not complete": lambda path: (path / COMPLETE).unlink(),
    "complete cut": lambda path: (path / COMPLETE).write_text((path / COMPLETE).read_text()[:20]),
    "complete says nothing": lambda path: (path / COMPLETE).write_text("[]"),
    "complete with another hash": lambda path: flip(path / COMPLETE, -5),
    "nothing in it": lambda path: [shutil.rmtree(path), path.mkdir()],
    "a file in its place": lambda path: [shutil.rmtree(path), path.write_text("x")],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_replaced_by_the_one_before(tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path, 3, 4)
    broken = newest(tmp_path)
    DAMAGE[damage](broken)
    assert step_of(tmp_path) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {broken} is damaged (")
    assert line.endswith("; using the one before it")
    # It is reported once, and no longer counts among those to keep.
    assert step_of(tmp_path) == 3
    assert capsys.readouterr().err == ""
    save(tmp_path, 4)
    assert [name for name in names(tmp_path) if name.startswith("step-")] == ["step-000000003", "step-000000004"]


def test_a_step_may_be_damaged_twice(tmp_path: Path) -> None:
    save(tmp_path, 3)
    for _ in range(2):
        save(tmp_path, 4)
        flip(tmp_path / CHECKPOINTS / "step-000000004" / STATE, 0)
        assert step_of(tmp_path) == 3


@pytest.mark.parametrize("damage", DAMAGE)
def test_training_does_not_restart_if_every_checkpoint_is_damaged(tmp_path: Path, damage: str) -> None:
    save(tmp_path, 3, 4)
    for path in list((tmp_path / CHECKPOINTS).iterdir()):
        DAMAGE[damage](path)
    with pytest.raises(InputError, match="every checkpoint is damaged; expected an undamaged one; remove it"):
        load_checkpoint(tmp_path)


def test_a_pickle_that_would_run_code_does_not(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return (Path.touch, (tmp_path / "harmed",))

    save(tmp_path, 1)
    (newest(tmp_path) / STATE).write_bytes(pickle.dumps(Harm(), protocol=2))
    with pytest.raises(InputError):
        load_checkpoint(tmp_path)
    # With the hash of its own bytes too: nothing but tensors and plain values is unpickled.
    save_checkpoint(tmp_path, 2, {"harm": Harm()})
    with pytest.raises(pickle.UnpicklingError):
        load_checkpoint(tmp_path)
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize("written", [0, 1, 3, 5, 8])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("recovers", [False, True])
def test_a_full_disk_leaves_the_earlier_checkpoints(
    tmp_path: Path, written: int, number: int, recovers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1, 2)
    calls, write = 0, os.pwrite

    def refuses(descriptor: int, data: Any, offset: int) -> int:
        nonlocal calls
        calls += 1
        if calls == written + 1 or (calls > written and not recovers):
            raise OSError(number, os.strerror(number))
        return write(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", refuses)
    with pytest.raises(OSError, match=os.strerror(number)) as caught:
        save(tmp_path, 3)
    monkeypatch.undo()
    assert caught.value.errno == number
    assert str(tmp_path) in str(caught.value.filename)
    assert names(tmp_path) == ["step-000000001", "step-000000002"]
    assert step_of(tmp_path) == 2
    save(tmp_path, 3)
    assert step_of(tmp_path) == 3


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_checkpoint_that_cannot_be_synced_is_not_kept(tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1, 2)

    def refuses(*_: Any, **__: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, call, refuses)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        save(tmp_path, 3)
    monkeypatch.undo()
    assert names(tmp_path) == ["step-000000001", "step-000000002"]
    assert step_of(tmp_path) == 2


def test_a_killed_processs_partial_checkpoint_is_removed(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import os, sys, torch; from pathlib import Path; from train.learning import checkpoint\n"
        "checkpoint.write_json = lambda *_: os._exit(9)\n"
        "checkpoint.save_checkpoint(Path(sys.argv[1]), 5, {'weights': torch.zeros(10)})"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=60, check=False).returncode == 9
    (left,) = names(tmp_path)
    assert left.endswith(".partial")
    assert load_checkpoint(tmp_path) is None
    save(tmp_path, 6)
    assert names(tmp_path) == ["step-000000006"]


def test_weights_come_back_bit_for_bit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    saved, loaded = nn.Linear(4, 3), nn.Linear(4, 3)
    save_weights(tmp_path / "w.safetensors", saved)
    load_weights(tmp_path / "w.safetensors", loaded)
    assert torch.equal(saved.weight, loaded.weight)
    assert list(tmp_path.iterdir()) == [tmp_path / "w.safetensors"]


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    save_weights(tmp_path / "w.safetensors", nn.Linear(4, 3))
    with pytest.raises(InputError, match="weights of this model"):
        load_weights(tmp_path / "w.safetensors", nn.Linear(5, 3))


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"not safetensors at all")
    with pytest.raises(InputError, match="weights of this model"):
        load_weights(tmp_path / "w.safetensors", nn.Linear(5, 3))
