"""The training loop: one for every model, whose loss is a function of its output and a batch, in one process or several.

Nothing random depends on the past: dropout follows from the seed, the step's number and the process, the order of the rows from the seed
and the epoch. So a resumed training restores weights, optimizer and position, and no generator's state.

Shapes: R rows.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lugpi_core.corpora.options import Task
from lugpi_core.errors import InputError
from lugpi_core.runtime.device import Compute
from lugpi_core.runtime.stopping import Stopped, StopRequest, stop_on_signals
from train.data.batching import Part, epoch_batches, padding_share, parts_of
from train.data.training_data import Batch, TrainingData
from train.learning.checkpoint import CHECKPOINTS, has_checkpoint, learnt_state, load_checkpoint, load_learnt_state, save_checkpoint
from train.learning.compile import compile_encoder
from train.learning.distributed import Processes
from train.learning.networks import Output
from train.learning.optimizer import make_optimizer, optimizer_on, rate_at
from train.learning.predict import predict
from train.learning.progress import Progress, Trackers, progress
from train.learning.task_rules import Metric, rules_of
from train.options.settings import ClassWeights, DevicePlacement, Optimization

Loss = Callable[[Output, Batch], torch.Tensor]
# Several processes agree on whether to stop or to write a checkpoint after so many seconds, and so many steps at most; a single process
# checks after every step. torchrun kills a process 30 seconds after it has passed on a signal.
AGREE_EVERY_S, AGREE_EVERY = 5.0, 50


class NotFinite(InputError):
    """A loss or a weight is infinite or NaN: the training diverged with these settings; others may not."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """The training of one model: the model, its data and loss, the settings, and its folder.

    Attributes:
        learnt: the rows of the data to train on.
        validation: the rows whose score (see ``deciding_metric``) decides which epoch is the best.
        loss: of the model's output and its batch, a scalar.
        placement: whether to compile, and which trackers.
        compute: the resolved device and precision.
        config: what the trackers record about the run.
        rate_flag: the option that sets the learning rate.
    """

    model: nn.Module
    data: TrainingData
    learnt: Sequence[int]
    validation: Sequence[int]
    loss: Loss
    optimization: Optimization
    placement: DevicePlacement
    compute: Compute
    folder: Path
    processes: Processes
    config: Mapping[str, Any] = field(default_factory=dict)
    rate_flag: str = "--learning-rate"


def fit(training: Training) -> list[dict[str, Any]]:
    """Train to the last epoch or until patience ends, resuming from a checkpoint if there is one; leave the best epoch's weights in the
    model.

    Returns one record per epoch: epoch, mean training loss, validation score (``validation_accuracy``, or another primary metric's name),
    share of padding among the computed tokens, seconds. The best epoch is the first with the highest score.

    Raises:
        InputError: the loss or a weight is not finite, or every checkpoint is damaged.
        Stopped: a signal asked for it; a checkpoint is written.
    """
    epochs, patience = training.optimization.epochs, training.optimization.patience
    learner = Learner(training)
    with training.processes.first_before_others():
        learner.resume()
    training.processes.require_same(
        "another last checkpoint", str(learner.step), do="give a --run-dir on a file system that all machines share"
    )
    examples = learner.examples_done(), epochs * len(training.learnt)
    trackers = Trackers(names=training.placement.track, config=training.config)
    with (
        stop_on_signals(echo_s=training.processes.echo_s) as stop,
        progress(training.folder, training.processes, examples=examples, step=learner.step, trackers=trackers) as report,
    ):
        learner.report, learner.stop = report, stop
        while len(learner.history) < epochs and not has_lost_patience(learner.history, patience):
            learner.one_epoch(len(learner.history))
    load_learnt_state(training.model, learner.best)
    return learner.history


def deciding_metric(task: Task, class_weights: ClassWeights) -> Metric:
    """Return the metric by which the best epoch is chosen: the task's primary one, but with balanced classes not accuracy, which a model
    that never answers a rare class can win; then macro-F1."""
    return "macro_f1" if class_weights == "balanced" else rules_of(task).metrics[0]


def validation_score(record: Mapping[str, Any]) -> float | None:
    """Return the validation score in an epoch's record, of whichever metric; None where it is undefined."""
    score: float | None = next(value for name, value in record.items() if name.startswith("validation_"))
    return score


def best_epoch(history: Sequence[dict[str, Any]]) -> int:
    """Return the number of the first epoch with the highest validation score; of the last one if none has a score."""
    scores = [validation_score(record) for record in history]
    defined = [score for score in scores if score is not None]
    return scores.index(max(defined)) if defined else len(scores) - 1


def has_lost_patience(history: Sequence[dict[str, Any]], patience: int | None) -> bool:
    """Whether the last ``patience`` epochs were all no better than one before them; never without any score."""
    return patience is not None and len(history) > 0 and len(history) - 1 - best_epoch(history) >= patience


def seed_of_step(seed: int, step: int, rank: int) -> int:
    """Return the seed of a step's dropout, a different one for every step and process."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1)


def unreached_weights(training: Training) -> list[nn.Parameter]:
    """Return the weights that are trained, but on which the loss does not depend, such as XLNet's embedding of masked words."""
    batch = next(iter(training.data.batches([np.asarray(training.learnt[:1], np.int64)], 0)))
    learning = [parameter for parameter in training.model.parameters() if parameter.requires_grad]
    with training.compute.autocast():
        loss = training.loss(training.model(batch.inputs), batch)
    gradients = torch.autograd.grad(loss, learning, allow_unused=True)
    return [weight for weight, gradient in zip(learning, gradients, strict=True) if gradient is None]


class Learner:
    """The state of a training: weights, optimizer and position.

    ``report`` and ``stop`` are set before the first epoch; both are open only while the loop runs.
    """

    report: Progress
    stop: StopRequest

    def __init__(self, training: Training) -> None:
        optimization, model = training.optimization, training.model
        self.training = training
        reaches_all = training.processes.count == 1 or not unreached_weights(training)
        self.wrapped = training.processes.averaged(model, training.data.device, reaches_all=reaches_all)
        self.optimizer = make_optimizer(
            model,
            optimizer_on(training.compute.device, optimization.optimizer),
            learning_rate=optimization.learning_rate,
            weight_decay=optimization.weight_decay,
        )
        self.learning = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        self.scaler = torch.amp.GradScaler(training.compute.device, enabled=training.compute.dtype == "float16")
        self.metric = deciding_metric(training.data.task, optimization.class_weights)
        self.steps = optimization.epochs * -(-len(training.learnt) // optimization.batch_size)
        self.step = 0
        self.place = 0  # steps of the current epoch that are done
        self.loss_sum = torch.zeros((), device=training.data.device)
        self.spent_s = 0.0  # on the current epoch, in earlier processes
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, torch.Tensor] = {}
        self.saved_step = -1
        self.saved_at_s = time.monotonic()
        self.agreed_step, self.agreed_at_s = 0, time.monotonic()
        self.next_agreed_step = 0
        compile_encoder(model, training.placement.compile, device=training.data.device, steps=self.steps)

    def resume(self) -> None:
        """Load the newest undamaged checkpoint, if there is one."""
        state = load_checkpoint(self.training.folder)
        if state is None:
            return
        load_learnt_state(self.training.model, state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.loss_sum.copy_(state["loss_sum"] / self.training.processes.count)
        self.history, self.best = state["history"], state["best"]
        self.step, self.place, self.spent_s = state["step"], state["place"], state["spent_s"]
        self.saved_step = self.step

    def examples_done(self) -> int:
        """Return the number of examples trained on so far, over all epochs."""
        return len(self.history) * len(self.training.learnt) + sum(map(len, self._batches(len(self.history))[: self.place]))

    def _batches(self, epoch: int) -> list[NDArray[np.int64]]:
        training, optimization = self.training, self.training.optimization
        return epoch_batches(training.learnt, training.data.lengths, optimization.batch_size, seed=optimization.seed, epoch=epoch)

    def one_epoch(self, epoch: int) -> None:
        """Train on the remaining rows of the epoch, score the validation rows, and keep the weights if they are the best so far."""
        training = self.training
        start_s = time.perf_counter() - self.spent_s
        batches = self.learn(epoch, start_s)
        record = {
            "epoch": epoch,
            "loss": self._mean_loss(epoch),
            f"validation_{self.metric}": self._validation_score(),
            "padding": round(padding_share(training.data.lengths, batches), 4),
            "seconds": round(time.perf_counter() - start_s, 3),
        }
        self.history.append(record)
        if best_epoch(self.history) == epoch:
            self.best = {name: tensor.detach().to("cpu", copy=True) for name, tensor in learnt_state(training.model).items()}
        self.place, self.spent_s = 0, 0.0
        self.loss_sum.zero_()
        self.report.epoch(record, self.step, len(training.learnt))
        self.save_or_stop(0.0)

    def learn(self, epoch: int, start_s: float) -> list[NDArray[np.int64]]:
        """Train on the remaining rows of the epoch, which began at ``start_s``; return all its batches."""
        training = self.training
        self.wrapped.train()
        batches = self._batches(epoch)
        done = sum(map(len, batches[: self.place]))
        self.report.begin_epoch(done, float(self.loss_sum) * training.processes.count)
        for batch, parts, fed in self._fed(batches[self.place :], epoch):
            rate = self.one_step(batch, parts, fed)
            done += len(batch)
            self.report.step(self.step, done, rate, self.loss_sum * training.processes.count)
            if self.place < len(batches):
                self.save_or_stop(time.perf_counter() - start_s)
        return batches

    def _fed(self, batches: list[NDArray[np.int64]], epoch: int) -> Iterator[tuple[NDArray[np.int64], list[Part], Iterator[Batch]]]:
        """Yield every batch with this process's parts of it and their tensors, which are prefetched across steps."""
        who, passes = self.training.processes, self.training.optimization.gradient_accumulation_steps
        steps = [parts_of(batch, rank=who.rank, processes=who.count, passes=passes) for batch in batches]
        fed = self.training.data.batches([part.rows for parts in steps for part in parts], epoch)
        for batch, parts in zip(batches, steps, strict=True):
            yield batch, parts, fed

    def one_step(self, batch: NDArray[np.int64], parts: list[Part], fed: Iterator[Batch]) -> float:
        """Take one optimizer step; return the learning rate. Nothing here synchronizes with the device."""
        training, optimization, who = self.training, self.training.optimization, self.training.processes
        torch.manual_seed(seed_of_step(optimization.seed, self.step, who.rank))
        for n, part in enumerate(parts):
            tensors = next(fed)
            with self._gradient_sync(n + 1 == len(parts)):
                with training.compute.autocast():
                    loss = training.loss(self.wrapped(tensors.inputs), tensors) * part.weight
                torch.autograd.backward(self.scaler.scale(loss))
            self.loss_sum += loss.detach() * (len(batch) / who.count)
        if optimization.max_grad_norm:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.learning, optimization.max_grad_norm)
        rate = rate_at(self.step, self.steps, optimization.learning_rate)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.place += 1
        return rate

    def _gradient_sync(self, is_last_pass: bool) -> contextlib.AbstractContextManager[None]:
        """Average the gradients over the processes in the last forward pass of a step only."""
        if is_last_pass or self.training.processes.count == 1:
            return contextlib.nullcontext()
        unsynced: contextlib.AbstractContextManager[None] = self.wrapped.no_sync()  # type: ignore[operator]
        return unsynced

    def _mean_loss(self, epoch: int) -> float:
        self._require_finite(f"of epoch {epoch}")
        return round(float(self.training.processes.sum(self.loss_sum.clone())) / len(self.training.learnt), 6)

    def _validation_score(self) -> float | None:
        """Return ``metric`` of the validation rows; of a multi-label task with the thresholds that are best for them."""
        training, rules = self.training, rules_of(self.training.data.task)
        rows = training.validation
        logits_NK = predict(training.model, training.data, rows, training.compute, training.processes).logits.numpy()
        labels_N = training.data.labels.cpu()[torch.as_tensor(rows)].numpy()
        if not np.isfinite(logits_NK).all():
            raise self._not_finite("a prediction for the validation texts", f"after epoch {len(self.history)}")
        score = rules.scores(labels_N, logits_NK, rules.thresholds(labels_N, logits_NK))[self.metric]
        return None if score is None else round(score, 6)

    def save_or_stop(self, spent_s: float) -> None:
        """Write a checkpoint if one is due, and stop if a signal asked for it. ``spent_s`` is how long the epoch has taken so far."""
        if self.place and self.step < self.next_agreed_step:
            return
        who, now_s = self.training.processes, time.monotonic()
        due_s = self.training.optimization.checkpoint_minutes * 60
        is_due = who.is_first and now_s - self.saved_at_s >= due_s
        step_us = int(1e6 * (now_s - self.agreed_at_s) / max(self.step - self.agreed_step, 1))
        signals, due, steps_us = zip(*who.gathered([self.stop.signal_number or 0, is_due, step_us]), strict=True)
        if any(signals) or any(due):
            self.save(spent_s)
        if any(signals):
            raise Stopped(max(signals))  # also in processes that got no signal
        self.agreed_step, self.agreed_at_s = self.step, time.monotonic()
        if who.count > 1 and due_s:
            self.next_agreed_step = self.step + min(max(int(AGREE_EVERY_S * 1e6 / max(*steps_us, 1)), 1), AGREE_EVERY)

    def save(self, spent_s: float) -> None:
        """Write a checkpoint, unless this step already has one."""
        if self.step == self.saved_step:
            return
        self._require_finite(f"before step {self.step}")
        loss_sum = self.training.processes.sum(self.loss_sum.clone())
        state = {
            "model": learnt_state(self.training.model),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "best": self.best,
            "history": self.history,
            "step": self.step,
            "place": self.place,
            "loss_sum": loss_sum.cpu(),
            "spent_s": spent_s,
        }
        with self.training.processes.first_before_others():
            if self.training.processes.is_first:
                save_checkpoint(self.training.folder, self.step, state)
        self.saved_step, self.saved_at_s = self.step, time.monotonic()

    def _require_finite(self, when: str) -> None:
        """Raise InputError unless losses and weights are finite: no others may reach a checkpoint."""
        loss = float(self.training.processes.sum(self.loss_sum.clone()))
        if math.isfinite(loss) and all(bool(parameter.isfinite().all()) for parameter in self.learning):
            return
        raise self._not_finite("a training loss or a weight", when)

    def _not_finite(self, what: str, when: str) -> NotFinite:
        folder = self.training.folder
        kept = f"; the last good checkpoint stays in {folder / CHECKPOINTS}" if has_checkpoint(folder) else ""
        return NotFinite(
            got=f"{what} that is not finite, {when}",
            expected="finite ones",
            do=f"lower {self.training.rate_flag} and give another name (--name){kept}",
        )
