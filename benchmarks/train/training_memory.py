"""How much memory does training take, and how much does the 8-bit optimizer save? Each case runs in its own process.

DistilBERT's architecture with random weights. On CUDA the peak of the allocator is measured, on the CPU the growth of the resident set.
"""

import gc
import multiprocessing
import statistics
import tempfile
from typing import Any

import numpy as np
import torch

from benchmarks.harness import finish
from benchmarks.train.train_speed import step_of
from benchmarks.train.training_cases import (
    ENCODERS,
    SMALL,
    Sizes,
    baseline_learner,
    compute_here,
    data_of,
    student_learner,
    teacher_learner,
)
from lugpi_core.command_line import say
from lugpi_core.corpora.load import load_corpus
from lugpi_core.corpora.options import CorpusSettings
from lugpi_core.runtime.libraries import prepare_libraries
from lugpi_core.runtime.meters import peak_memory_bytes
from train.learning.loop import Learner
from train.options.settings import Optimization, OptimizerChoice

BATCH = 14
MODELS = ("baseline", "student", "teacher")
OPTIMIZERS: tuple[OptimizerChoice, ...] = ("adamw", "adamw8bit")
SEEDS = (0, 1, 2)


def measure(*, smoke: bool, record: bool) -> dict[str, Any]:
    """Return the peak memory of every model, with both optimizers, and the accuracy of both on the embedded corpus."""
    prepare_libraries()
    length = 16 if smoke else (512 if torch.cuda.is_available() else 256)
    cases = {
        f"{model}, {optimizer}": _in_a_process(model, optimizer, length, smoke=smoke)
        for model in (MODELS[:1] if smoke else MODELS)
        for optimizer in (OPTIMIZERS[1:] if smoke else OPTIMIZERS)
    }
    for name, case in cases.items():
        say(f"memory, {name}: {case}")
    figures = {"batch": BATCH, "tokens": length, "cases": cases, "reached": reached(smoke=smoke)}
    say(f"memory: {figures['reached']}")
    return finish("memory", figures, record=record)


def _in_a_process(model: str, optimizer: OptimizerChoice, length: int, *, smoke: bool) -> dict[str, Any]:
    """Return the figures of a case measured in a fresh process, because a peak never goes down."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        figures: dict[str, Any] = pool.apply(case, (model, optimizer, length, smoke))
        return figures


def case(model: str, optimizer: OptimizerChoice, length: int, smoke: bool) -> dict[str, Any]:
    """Return the bytes of the weights, of the optimizer's state and of the peak of two steps."""
    prepare_libraries()
    rows = np.arange(BATCH)
    step_of(_learner(model, optimizer, 16, smoke=True), rows)()  # first, so that the memory of the libraries is not counted
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    before_bytes = peak_memory_bytes()["host_bytes"]
    learner = _learner(model, optimizer, length, smoke=smoke)
    weights = sum(parameter.numel() for parameter in learner.learning)
    for _ in range(2):
        step_of(learner, rows)()
    gc.collect()
    peak = peak_memory_bytes()
    return {
        "weights_bytes": 4 * weights,
        "optimizer_bytes": _state_bytes(learner.optimizer),
        "peak_bytes": peak.get("device_bytes", peak["host_bytes"] - before_bytes),
        "measured": "allocator" if "device_bytes" in peak else "growth of the resident set",
    }


def _learner(model: str, optimizer: OptimizerChoice, length: int, *, smoke: bool) -> Learner:
    sizes = SMALL if smoke else Sizes()
    device = torch.device(compute_here().device)
    encoder = ENCODERS[0] if model == "teacher" else None
    data = data_of(np.full(BATCH, length), device, encoder=encoder, embedding_width=sizes.dim if model == "student" else None)
    if model == "teacher":
        return teacher_learner(sizes, ENCODERS[0], data, BATCH, optimizer)
    return (student_learner if model == "student" else baseline_learner)(sizes, data, BATCH, optimizer)


def _state_bytes(optimizer: torch.optim.Optimizer) -> int:
    states = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)]
    return sum(one.numel() * one.element_size() for one in {one.data_ptr(): one for one in states}.values())


def reached(*, smoke: bool) -> dict[str, Any]:
    """Return the loss of the last epoch and the best validation accuracy of the embedded corpus's baseline with both optimizers, medians
    over seeds."""
    from train.models.api import train_baseline

    corpus = load_corpus("demo", CorpusSettings(limit=60 if smoke else None))
    found: dict[str, Any] = {}
    for optimizer in OPTIMIZERS:
        losses, accuracies = [], []
        for seed in SEEDS[:1] if smoke else SEEDS:
            with tempfile.TemporaryDirectory() as run:
                optimization = Optimization(epochs=1 if smoke else 10, learning_rate=5e-4, optimizer=optimizer, seed=seed)
                model = train_baseline(corpus, run, text_model="demo", optimization=optimization)
            losses.append(model.history[-1]["loss"])
            accuracies.append(model.accuracy["validation"])
        found[optimizer] = {"last_loss": round(statistics.median(losses), 4), "validation": round(statistics.median(accuracies), 4)}
    return found
