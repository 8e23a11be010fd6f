"""Predictions of a model: in the order of the rows, independent of the batch and of the number of processes."""

from pathlib import Path

import pytest
import torch

from lugpi_core.runtime.device import Compute
from tests.support.small_training import training_of
from train.learning.distributed import Processes
from train.learning.loop import Training
from train.learning.predict import predict


@pytest.fixture
def training(small_csv: Path, tmp_path: Path) -> Training:
    return training_of(small_csv, tmp_path)


def test_predictions_come_in_the_order_of_the_rows(training: Training) -> None:
    rows = [59, 0, 17, 3, 42]
    together = predict(training.model, training.data, rows, training.compute, Processes())
    assert (together.logits.shape, together.embeddings.shape) == ((5, 3), (5, 128))
    assert together.logits.dtype == torch.float32
    for n, row in enumerate(rows):
        alone = predict(training.model, training.data, [row], training.compute, Processes())
        torch.testing.assert_close(together.logits[n], alone.logits[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(together.embeddings[n], alone.embeddings[0], atol=1e-5, rtol=1e-5)


def test_predicting_uses_no_dropout_and_changes_no_weight(training: Training) -> None:
    training.model.train()
    before = {name: value.clone() for name, value in training.model.state_dict().items()}
    first, second = (predict(training.model, training.data, range(60), training.compute, Processes()) for _ in range(2))
    assert torch.equal(first.logits, second.logits)
    assert not first.logits.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in training.model.state_dict().items())


@pytest.mark.parametrize("rows", [[7], [59, 0, 17, 3, 42], list(range(60))])
@pytest.mark.parametrize("count", [2, 3, 8])
def test_the_parts_of_several_processes_add_up(training: Training, monkeypatch: pytest.MonkeyPatch, rows: list[int], count: int) -> None:
    whole = predict(training.model, training.data, rows, training.compute, Processes())
    parts: list[torch.Tensor] = []

    def kept(_: Processes, tensor: torch.Tensor) -> torch.Tensor:
        parts.append(tensor)
        return tensor

    monkeypatch.setattr(Processes, "sum", kept)
    for rank in range(count):
        predict(training.model, training.data, rows, training.compute, Processes(rank=rank, count=count))
    # Each process contributes its rows, and zero for those of others, in the order of the lengths.
    order = torch.from_numpy(training.data.by_length(rows))
    back = torch.tensor([order.tolist().index(row) for row in rows])
    for summed, expected in ((sum(parts[0::2]), whole.logits), (sum(parts[1::2]), whole.embeddings)):
        assert isinstance(summed, torch.Tensor)
        torch.testing.assert_close(summed[back], expected, atol=1e-5, rtol=1e-5)


def test_precise_predictions_are_always_in_float32(training: Training) -> None:
    half = Compute(device="cpu", device_name="CPU", dtype="bfloat16", threads=1)
    full = predict(training.model, training.data, range(60), training.compute, Processes())
    precise = predict(training.model, training.data, range(60), half, Processes(), precise=True)
    rough = predict(training.model, training.data, range(60), half, Processes())
    assert torch.equal(precise.logits, full.logits)
    assert not torch.equal(rough.logits, full.logits)
    assert rough.logits.dtype == torch.float32
