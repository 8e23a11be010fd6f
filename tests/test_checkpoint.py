"""Checkpoints come back as they were, with the random generators; damaged ones are refused in one line."""

from pathlib import Path

import pytest
import torch
from torch import nn

from lugpi_core.errors import InputError
from train.checkpoint import (
    CHECKPOINT,
    best_name,
    load_checkpoint,
    load_weights,
    remove_other_best,
    save_checkpoint,
    save_weights,
)


def test_a_checkpoint_brings_back_its_state_and_the_random_numbers(tmp_path: Path) -> None:
    torch.manual_seed(5)
    save_checkpoint(tmp_path, {"history": [{"epoch": 0, "loss": 1.5}], "weights": torch.arange(3.0)})
    expected = torch.rand(4)
    torch.rand(100)
    state = load_checkpoint(tmp_path)
    assert state is not None
    assert state["history"] == [{"epoch": 0, "loss": 1.5}]
    assert state["weights"].tolist() == [0, 1, 2]
    assert torch.equal(torch.rand(4), expected)


def test_no_checkpoint_is_no_state(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path) is None


@pytest.mark.parametrize("keep", [0, 10, 200, 0.5])
def test_a_cut_checkpoint_is_refused(tmp_path: Path, keep: float) -> None:
    save_checkpoint(tmp_path, {"weights": torch.arange(1000.0)})
    data = (tmp_path / CHECKPOINT).read_bytes()
    (tmp_path / CHECKPOINT).write_bytes(data[: int(keep if keep >= 1 else keep * len(data))])
    with pytest.raises(InputError, match="whole checkpoint"):
        load_checkpoint(tmp_path)


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    import pickle

    class Harm:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (str(tmp_path / "harmed"),))

    (tmp_path / CHECKPOINT).write_bytes(pickle.dumps(Harm(), protocol=2))
    with pytest.raises(InputError, match="whole checkpoint"):
        load_checkpoint(tmp_path)
    assert not (tmp_path / "harmed").exists()


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


def test_only_the_best_epochs_weights_are_kept(tmp_path: Path) -> None:
    for epoch in (1, 12, 123):
        (tmp_path / best_name(epoch)).write_bytes(b"x")
    remove_other_best(tmp_path, 12)
    assert [path.name for path in tmp_path.iterdir()] == ["best-012.safetensors"]
    remove_other_best(tmp_path, None)
    assert not list(tmp_path.iterdir())
