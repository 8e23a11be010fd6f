"""The training loop: compared with one written by hand, interrupted and resumed, and its failures."""

import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lugpi_core.errors import InputError
from lugpi_core.runtime.stopping import Stopped, StopRequest
from tests.support.small_training import at_step, cross_entropy, interrupt, training_of, without_dropout
from train.data.batching import epoch_batches, padding_share
from train.data.training_data import Batch
from train.learning.checkpoint import CHECKPOINTS, STATE, load_checkpoint
from train.learning.distributed import Processes
from train.learning.loop import Learner, Training, best_epoch, fit, has_lost_patience, seed_of_step
from train.learning.networks import Output
from train.learning.predict import predict

STEPS_AN_EPOCH = 3  # 36 examples, 14 at once


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    unlike = [name for name in one if not torch.equal(one[name], other[name])]
    assert not unlike


def score(training: Training) -> float:
    output = predict(training.model, training.data, training.validation, training.compute, training.processes)
    return float((output.logits.argmax(dim=1) == training.data.labels[torch.tensor(training.validation)]).double().mean())


def without_times(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in record.items() if name != "seconds"} for record in history]


def by_hand(training: Training) -> tuple[list[float], list[float]]:
    """Train with plain PyTorch, keep the best weights; return each epoch's mean loss and validation accuracy."""
    model, optimization, data = training.model, training.optimization, training.data
    named = list(model.named_parameters())
    decaying, others = ([parameter for _, parameter in named if (parameter.ndim > 1) is wanted] for wanted in (True, False))
    groups = [{"params": decaying, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, fused=True)
    losses, scores, best, step = [], [], None, 0
    for epoch in range(optimization.epochs):
        model.train()
        total = torch.zeros(())
        for rows in epoch_batches(training.learnt, data.lengths, 14, seed=optimization.seed, epoch=epoch):
            torch.manual_seed(seed_of_step(optimization.seed, step, 0))
            batch = data.batch(rows)
            loss = F.cross_entropy(model(batch.inputs).logits, batch.labels)
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_([*decaying, *others], optimization.max_grad_norm)  # in the order that their norms are added in
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 * (1 - step / (optimization.epochs * STEPS_AN_EPOCH))
            optimizer.step()
            optimizer.zero_grad()
            total += loss.detach() * len(rows)
            step += 1
        losses.append(float(total) / len(training.learnt))
        scores.append(score(training))
        if best_epoch([{"validation_accuracy": value} for value in scores]) == epoch:
            best = weights_of(model)
    assert best is not None
    model.load_state_dict(best)
    return losses, scores


@pytest.mark.parametrize("max_grad_norm", [1.0, 0.05])
def test_the_loop_matches_one_written_by_hand(small_csv: Path, tmp_path: Path, max_grad_norm: float) -> None:
    flags = {"optimizer": "adamw", "max_grad_norm": max_grad_norm}
    ours, plain = (training_of(small_csv, tmp_path / name, **flags) for name in ("ours", "hand"))
    history = fit(ours)
    losses, scores = by_hand(plain)
    assert_same_weights(weights_of(ours.model), weights_of(plain.model))
    assert [record["loss"] for record in history] == pytest.approx(losses, abs=1e-6)
    assert [record["validation_accuracy"] for record in history] == pytest.approx(scores, abs=1e-6)


def test_gradients_are_not_clipped_without_a_norm(small_csv: Path, tmp_path: Path) -> None:
    flags = {"optimizer": "adamw", "epochs": 1}
    free, wide, narrow = (training_of(small_csv, tmp_path / str(norm), max_grad_norm=norm, **flags) for norm in (0, 1e9, 0.01))
    for training in (free, wide, narrow):
        fit(training)
    assert_same_weights(weights_of(free.model), weights_of(wide.model))
    assert any(not torch.equal(a, b) for a, b in zip(free.model.parameters(), narrow.model.parameters(), strict=True))


@pytest.mark.parametrize("passes", [2, 5, 20])
def test_several_passes_equal_the_whole_batch(small_csv: Path, tmp_path: Path, passes: int) -> None:
    flags = {"optimizer": "adamw", "epochs": 2, "learning_rate": 1e-4, "text_model": str(without_dropout(tmp_path / "model"))}
    whole, parts = (
        training_of(small_csv, tmp_path / str(one), **flags, gradient_accumulation_steps=one)  # type: ignore[arg-type]
        for one in (1, passes)
    )
    histories = [fit(whole), fit(parts)]
    for one, other in zip(*map(without_times, histories), strict=True):
        assert one == pytest.approx(other, abs=2e-6)
    for one, other in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-5)


Straight = Callable[[str], tuple[dict[str, torch.Tensor], list[dict[str, Any]]]]


@pytest.fixture(scope="module")
def straight(small_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> Straight:
    """``straight(optimizer)``: weights and history of three uninterrupted epochs."""

    @cache
    def trained(optimizer: str) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
        training = training_of(small_csv, tmp_path_factory.mktemp("straight"), optimizer=optimizer)
        history = fit(training)
        return weights_of(training.model), without_times(history)

    return trained


def assert_resumes_to_the_same(small_csv: Path, folder: Path, straight: Straight, optimizer: str = "adamw") -> None:
    torch.rand(7)  # the state of a random generator does not matter
    resumed = training_of(small_csv, folder, optimizer=optimizer)
    history = fit(resumed)
    assert_same_weights(weights_of(resumed.model), straight(optimizer)[0])
    assert without_times(history) == straight(optimizer)[1]


@pytest.mark.parametrize(
    ("optimizer", "minutes", "broken_step"),
    [("adamw", 0, 0), ("adamw", 0, 5), ("adamw", 1000, 5), ("adamw8bit", 0, 3), ("adamw8bit", 0, 8)],
)
def test_an_interrupted_training_ends_bit_for_bit_the_same(
    small_csv: Path, tmp_path: Path, straight: Straight, optimizer: str, minutes: float, broken_step: int
) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit(training_of(small_csv, tmp_path, at_step(broken_step, interrupt), optimizer=optimizer, checkpoint_minutes=minutes))
    state = load_checkpoint(tmp_path)
    assert (0 if state is None else state["step"]) == (broken_step if minutes == 0 else 0)
    assert_resumes_to_the_same(small_csv, tmp_path, straight, optimizer)


class Twins(Processes):
    """Two processes with the same values."""

    def averaged(self, model: nn.Module, device: torch.device, *, reaches_all: bool) -> nn.Module:
        return model

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.mul_(2)

    def any(self, here: bool) -> bool:
        return here


class Counted(Processes):
    """One of two processes, which counts how often they agree; the other has asked to stop once ``stops`` is set."""

    stops: ClassVar[int] = 0
    steps: ClassVar[list[int]] = []
    learner: ClassVar[Learner]

    def averaged(self, model: nn.Module, device: torch.device, *, reaches_all: bool) -> nn.Module:
        return model

    def gathered(self, numbers: Sequence[int]) -> list[list[int]]:
        self.steps.append(self.learner.step)
        return [list(numbers), [self.stops, 0, numbers[2]]]


@pytest.mark.parametrize(
    ("step_s", "agreed"),
    [(9.0, list(range(1, 21))), (2.0, [1, 3, 5, 7, 9, 11, 13, 15, 17, 19]), (0.001, [1])],
)
def test_processes_agree_every_five_seconds_or_fifty_steps(
    small_csv: Path, tmp_path: Path, step_s: float, agreed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 0.0
    monkeypatch.setattr("train.learning.loop.time", SimpleNamespace(monotonic=lambda: now_s))
    learner = Learner(replace(training_of(small_csv, tmp_path, checkpoint_minutes=1000), processes=Counted(count=2)))
    learner.stop = StopRequest()
    Counted.steps, Counted.stops, Counted.learner = [], 0, learner
    for step in range(1, 21):
        now_s += step_s
        learner.step = learner.place = step
        learner.save_or_stop(0.0)
    assert Counted.steps == agreed


def test_a_signal_to_another_process_stops_this_one_as_well(small_csv: Path, tmp_path: Path) -> None:
    learner = Learner(replace(training_of(small_csv, tmp_path), processes=Counted(count=2)))
    learner.stop, learner.saved_step = StopRequest(), learner.step
    Counted.steps, Counted.stops, Counted.learner = [], signal.SIGUSR1, learner
    with pytest.raises(Stopped) as stopped:
        learner.save_or_stop(0.0)
    assert stopped.value.signal_number == signal.SIGUSR1


def test_a_checkpoint_contains_the_loss_of_all_processes(small_csv: Path, tmp_path: Path) -> None:
    learner = Learner(replace(training_of(small_csv, tmp_path), processes=Twins(count=2)))
    learner.loss_sum.fill_(3.0)
    learner.step = 1
    learner.save(0.0)
    for processes, share in ((Twins(count=2), 3.0), (Processes(), 6.0)):
        resumed = Learner(replace(training_of(small_csv, tmp_path), processes=processes))
        resumed.resume()
        assert float(resumed.loss_sum) == share


def test_a_training_interrupted_at_every_step_ends_the_same(small_csv: Path, tmp_path: Path, straight: Straight) -> None:
    for step in range(1, 9):
        with pytest.raises(KeyboardInterrupt):
            fit(training_of(small_csv, tmp_path, at_step(1, interrupt), checkpoint_minutes=0))
        state = load_checkpoint(tmp_path)
        assert state is not None
        assert state["step"] == step
    assert_resumes_to_the_same(small_csv, tmp_path, straight)


def test_a_damaged_checkpoint_does_not_change_the_result(
    small_csv: Path, tmp_path: Path, straight: Straight, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit(training_of(small_csv, tmp_path, at_step(5, interrupt), checkpoint_minutes=0))
    newest = max((tmp_path / CHECKPOINTS).iterdir())
    (newest / STATE).write_bytes((newest / STATE).read_bytes()[:-1])
    assert_resumes_to_the_same(small_csv, tmp_path, straight)
    assert f"warning: {newest} is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "step"), [(signal.SIGTERM, 1), (signal.SIGTERM, 2), (signal.SIGINT, 4)])
def test_a_signal_stops_after_the_step_and_training_resumes(
    small_csv: Path, tmp_path: Path, straight: Straight, number: signal.Signals, step: int
) -> None:
    with pytest.raises(Stopped) as stopped:
        fit(training_of(small_csv, tmp_path, at_step(step, lambda: os.kill(os.getpid(), number))))
    assert stopped.value.signal_number == number
    state = load_checkpoint(tmp_path)
    assert state is not None
    assert (state["step"], len(state["history"])) == (step + 1, (step + 1) // STEPS_AN_EPOCH)
    assert_resumes_to_the_same(small_csv, tmp_path, straight)


def test_a_finished_training_is_not_repeated(small_csv: Path, tmp_path: Path) -> None:
    first = training_of(small_csv, tmp_path, checkpoint_minutes=0)
    history = fit(first)
    again = training_of(small_csv, tmp_path, at_step(0, interrupt), checkpoint_minutes=0)
    assert fit(again) == history
    assert_same_weights(weights_of(again.model), weights_of(first.model))


def test_checkpoints_are_written_when_they_are_due(small_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    monkeypatch.setattr("train.learning.loop.save_checkpoint", lambda folder, step, state: saved.append(step))
    fit(training_of(small_csv, tmp_path, checkpoint_minutes=1000))
    assert saved == []
    fit(training_of(small_csv, tmp_path, checkpoint_minutes=0))
    assert saved == list(range(1, 10))


def test_every_epoch_leaves_a_record(small_csv: Path, tmp_path: Path) -> None:
    training = training_of(small_csv, tmp_path, seed=5)
    history = fit(training)
    assert [set(record) for record in history] == [{"epoch", "loss", "validation_accuracy", "padding", "seconds"}] * 3
    assert [record["epoch"] for record in history] == [0, 1, 2]
    for record in history:
        lengths = training.data.lengths
        batches = epoch_batches(training.learnt, lengths, 14, seed=5, epoch=record["epoch"])
        assert record["padding"] == pytest.approx(padding_share(lengths, batches), abs=1e-4)
        assert record["seconds"] > 0
        assert round(record["validation_accuracy"] * 12) == pytest.approx(record["validation_accuracy"] * 12, abs=1e-4)


def test_the_kept_weights_are_those_of_the_best_epoch(small_csv: Path, tmp_path: Path) -> None:
    training = training_of(small_csv, tmp_path, epochs=4)
    history = fit(training)
    assert score(training) == pytest.approx(history[best_epoch(history)]["validation_accuracy"], abs=1e-6)
    assert max(record["validation_accuracy"] for record in history) == pytest.approx(score(training), abs=1e-6)


def records(*accuracies: float) -> list[dict[str, Any]]:
    return [{"validation_accuracy": value} for value in accuracies]


def test_the_best_epoch_is_the_first_with_the_highest_accuracy() -> None:
    assert best_epoch(records(0.5, 0.8, 0.7, 0.8)) == 1


@pytest.mark.parametrize(
    ("accuracies", "patience", "lost"),
    [
        ((), 1, False),
        ((0.5,), 1, False),
        ((0.5, 0.5), 1, True),
        ((0.5, 0.6), 1, False),
        ((0.6, 0.5), 2, False),
        ((0.6, 0.5, 0.6), 2, True),
        ((0.6, 0.5, 0.7), 2, False),
        ((0.6, 0.5, 0.4, 0.3), None, False),
    ],
)
def test_patience_counts_epochs_without_improvement(accuracies: tuple[float, ...], patience: int, lost: bool) -> None:
    assert has_lost_patience(records(*accuracies), patience) is lost


def test_training_ends_with_its_patience(small_csv: Path, tmp_path: Path) -> None:
    training = training_of(small_csv, tmp_path, epochs=50, learning_rate=1e-12, patience=3, checkpoint_minutes=0)
    assert len(fit(training)) == 4, "the best epoch, and three that are no better"
    assert len(fit(training_of(small_csv, tmp_path, at_step(0, interrupt), epochs=50, learning_rate=1e-12, patience=3))) == 4


def test_training_learns_the_topics(small_csv: Path, tmp_path: Path) -> None:
    training = training_of(small_csv, tmp_path, epochs=12, learning_rate=2e-3)
    history = fit(training)
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]
    assert score(training) > 0.8


@pytest.mark.parametrize("minutes", [0, 1000])
def test_an_infinite_loss_is_reported_and_reaches_no_checkpoint(small_csv: Path, tmp_path: Path, minutes: float) -> None:
    steps = 0

    def explodes(output: Output, batch: Batch) -> torch.Tensor:
        nonlocal steps
        steps += 1
        return cross_entropy(output, batch) * (float("nan") if steps > 4 else 1.0)

    with pytest.raises(InputError, match=r"a training loss or a weight that is not finite.*lower --learning-rate"):
        fit(training_of(small_csv, tmp_path, explodes, checkpoint_minutes=minutes))
    state = load_checkpoint(tmp_path)
    if minutes:
        assert state is None
        return
    assert state is not None
    assert (state["step"], len(state["history"])) == (4, 1)
    assert all(value.isfinite().all() for value in state["model"].values() if value.is_floating_point())
    assert len(list((tmp_path / CHECKPOINTS).iterdir())) == 2


def test_infinite_weights_reach_no_checkpoint(small_csv: Path, tmp_path: Path) -> None:
    steps = 0

    def breaks(output: Output, batch: Batch) -> torch.Tensor:
        nonlocal steps
        steps += 1
        root = (output.logits - output.logits.detach()).abs().sum().sqrt()  # zero, with a NaN gradient
        return cross_entropy(output, batch) + (root if steps == STEPS_AN_EPOCH else 0.0)

    with pytest.raises(InputError, match="a weight that is not finite"):
        fit(training_of(small_csv, tmp_path, breaks, checkpoint_minutes=0))
    state = load_checkpoint(tmp_path)
    assert state is not None
    assert state["step"] == STEPS_AN_EPOCH - 1


def test_another_seed_is_another_model(small_csv: Path, tmp_path: Path) -> None:
    one, other = (training_of(small_csv, tmp_path / f"run{seed}", epochs=1, seed=seed) for seed in (0, 1))
    fit(one)
    fit(other)
    assert any(not torch.equal(a, b) for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True))


def test_every_step_and_process_has_its_own_seed() -> None:
    seeds = {seed_of_step(seed, step, rank) for seed in range(4) for step in range(50) for rank in range(4)}
    assert len(seeds) == 4 * 50 * 4
    assert all(0 <= seed < np.iinfo(np.int64).max for seed in seeds)
