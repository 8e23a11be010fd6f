"""The one training loop: every model, its loss given as a function of what it says of a batch.

Shapes: N rows, K classes, D embedding width.
"""

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lugpi_core.device import Compute
from lugpi_core.errors import InputError
from train.checkpoint import best_name, load_checkpoint, load_weights, remove_other_best, save_checkpoint, save_weights
from train.data import Batch, TrainingData
from train.models import Output
from train.optim import make_optimizer, make_schedule
from train.options import TrainOptions

Loss = Callable[[Output, Batch], torch.Tensor]
PREDICTION_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class Training:
    """One model's training: what learns, from what, by which loss, into which folder."""

    model: nn.Module
    data: TrainingData
    loss: Loss
    options: TrainOptions
    compute: Compute
    folder: Path


def fit(training: Training) -> list[dict[str, Any]]:
    """Train to the last epoch, going on from a checkpoint where there is one; leave the best epoch's weights in the model.

    Returns one record an epoch: epoch, mean training loss, validation accuracy, seconds. The best epoch is the first of the highest
    accuracy.

    Raises:
        InputError: the loss is not finite, or a checkpoint is damaged.
    """
    options, model = training.options, training.model
    rows = training.data.corpus.rows("train")
    optimizer = make_optimizer(model, options.optimizer, learning_rate=options.learning_rate, weight_decay=options.weight_decay)
    schedule = make_schedule(optimizer, steps=options.epochs * -(-len(rows) // options.batch_size))
    history: list[dict[str, Any]] = []
    if state := load_checkpoint(training.folder):
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        history = state["history"]
    with _progress_bar(training, rows, len(history)) as bar:
        for epoch in range(len(history), options.epochs):
            history.append(_one_epoch(training, epoch, rows, optimizer, schedule, bar))
            if best_epoch(history) == epoch:
                save_weights(training.folder / best_name(epoch), model)
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
            save_checkpoint(training.folder, {"history": history, **state})
            remove_other_best(training.folder, best_epoch(history))
    load_weights(training.folder / best_name(best_epoch(history)), model)
    return history


def best_epoch(history: Sequence[dict[str, Any]]) -> int:
    """Return the number of the first epoch with the highest validation accuracy."""
    accuracies = [record["validation_accuracy"] for record in history]
    return accuracies.index(max(accuracies))


def predict(training: Training, rows: Sequence[int], *, precise: bool = False) -> Output:
    """Return logits [N, K] and embeddings [N, D] of the rows, in their order, float32 on the CPU; dropout is off.

    With ``precise`` they are computed in float32 too, as whoever loads the exported model will.
    """
    training.model.eval()
    ordered = training.data.by_length(rows)
    outputs: list[Output] = []
    with torch.inference_mode():
        for batch in training.data.batches(
            [ordered[start : start + PREDICTION_BATCH] for start in range(0, len(ordered), PREDICTION_BATCH)]
        ):
            with _autocast(training.compute, enabled=not precise):
                output = training.model(batch)
            outputs.append(Output(output.logits.float().cpu(), output.embeddings.float().cpu()))
    place = {row: n for n, row in enumerate(ordered)}
    back = torch.tensor([place[row] for row in rows])
    return Output(torch.cat([one.logits for one in outputs])[back], torch.cat([one.embeddings for one in outputs])[back])


def accuracy(logits_NK: torch.Tensor, labels_N: torch.Tensor) -> float:
    """Return the share of rows whose largest logit is the label's."""
    return float((logits_NK.argmax(dim=1) == labels_N).float().mean())


def labels_of(data: TrainingData, rows: Sequence[int]) -> torch.Tensor:
    """Return the labels of the rows, int64 [N]."""
    return torch.tensor([data.corpus.examples[row].label for row in rows])


def _one_epoch(
    training: Training,
    epoch: int,
    rows: Sequence[int],
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LambdaLR,
    bar: Any,
) -> dict[str, Any]:
    start_s = time.perf_counter()
    training.model.train()
    # The order is a function of seed and epoch alone, so that a resumed run needs no sampler state.
    order = torch.Generator().manual_seed(training.options.seed * 1_000_003 + epoch)
    total = torch.zeros((), device=training.data.device)
    for batch in training.data.epoch(rows, training.options.batch_size, order):
        with _autocast(training.compute):
            loss = training.loss(training.model(batch), batch)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
        total += loss.detach() * len(batch["rows"])  # stays on the device: no step waits for the host
        bar.update()
    validation = training.data.corpus.rows("validation")
    scored = accuracy(predict(training, validation).logits, labels_of(training.data, validation))
    record = {
        "epoch": epoch,
        "loss": _finite(float(total) / len(rows), epoch),
        "validation_accuracy": round(scored, 6),
        "seconds": round(time.perf_counter() - start_s, 3),
    }
    bar.set_postfix(epoch=epoch, loss=f"{record['loss']:.3f}", validation=f"{scored:.3f}")
    return record


def _finite(loss: float, epoch: int) -> float:
    if not math.isfinite(loss):
        raise InputError(
            got=f"a training loss of {loss} in epoch {epoch}",
            expected="a finite loss",
            do="lower --learning-rate and give another --name",
        )
    return round(loss, 6)


def _autocast(compute: Compute, *, enabled: bool = True) -> torch.autocast:
    return torch.autocast(compute.device, dtype=torch.bfloat16, enabled=enabled and compute.dtype == "bfloat16")


def _progress_bar(training: Training, rows: Sequence[int], epochs_done: int) -> Any:
    from tqdm import tqdm

    steps = -(-len(rows) // training.options.batch_size)
    return tqdm(
        total=steps * training.options.epochs,
        initial=steps * epochs_done,
        unit="step",
        desc=training.folder.name,
        mininterval=0.1 if sys.stderr.isatty() else 10,
    )
