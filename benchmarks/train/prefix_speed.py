"""An epoch above frozen layers, whose hidden states are kept, compared with one of all layers and with the Hugging Face Trainer's.

DistilBERT's architecture with random weights, texts with the lengths of the real corpora, hidden states in a column on disk with a warm
page cache. All ways of a corpus run in turn.
"""

import gc
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.harness import finish, interleaved, median_ratio, medians, promise
from benchmarks.train.epoch_speed import BATCH, counted_padding, own_epoch, train_lengths, trainer_epoch
from benchmarks.train.training_cases import ENCODERS, SMALL, Sizes, classifier, compute_here, data_of, distilled, learner_of, teacher
from lugpi_core.command_line import say
from lugpi_core.errors import InputError
from lugpi_core.runtime.libraries import prepare_libraries
from lugpi_core.runtime.stopping import StopRequest
from train.data.batching import epoch_batches
from train.data.prefix import PrefixColumn, PrefixStates, fill_prefix
from train.data.token_ids import Token
from train.data.training_data import TrainingData
from train.learning.first_token import FirstTokenOnly
from train.learning.frozen_layers import FrozenLayers
from train.learning.loop import Learner, Loss
from train.learning.networks import Student, TextClassifier
from train.models.kinds import label_loss
from train.models.prefix import states_of_texts

# Batches that are timed. Of texts of hundreds of tokens more would take hours.
BATCHES: Mapping[str, int] = {"20ng": 3, "imdb": 3, "cwi-news": 8}
TRAINER = "Hugging Face Trainer, 3 layers frozen"
# The slower and the faster way, and by which factor at least.
PROMISES = (
    ("baseline, 0 frozen", "baseline, 3 frozen", 2.0),
    ("student, 0 frozen", "student, 3 frozen", 2.0),
    ("baseline, 0 frozen", "baseline, 5 frozen", 5.0),
    ("student, 0 frozen", "student, 5 frozen", 5.0),
    ("baseline, 0 frozen", "baseline, head", 50.0),
    ("student, 0 frozen", "student, head", 50.0),
    (TRAINER, "baseline, 3 frozen", 2.5),
    ("teacher, 0 frozen", "teacher, 3 frozen", 1.6),
)


def measure(*, smoke: bool, record: bool, data_dir: Path) -> dict[str, Any]:
    """Return the seconds of an epoch in each way, the ratios that are promised, and what gradients and optimizer hold.

    Args:
        smoke: tiny sizes, one round.
        record: write the figures to benchmarks/results/.
        data_dir: folder with the archives of the corpora, whose text lengths the epochs use; missing ones are reported as skipped.
    """
    prepare_libraries()
    torch.manual_seed(0)
    figures: dict[str, Any] = {}
    for name, count in BATCHES.items():
        try:
            lengths_N = train_lengths(name, data_dir, limit=60 if smoke else None)
        except InputError as error:
            figures[name] = {"skipped": str(error)}
            continue
        figures[name] = {"padding_of_epoch": counted_padding(lengths_N)}
        figures[name] |= _time_epochs(texts_of_batches(lengths_N, 2 if smoke else count), smoke=smoke)
        say(f"prefix, {name}: {figures[name]}")
    return finish("prefix", figures, record=record)


def texts_of_batches(lengths_N: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return the lengths of the texts in ``count`` batches of an epoch, evenly spaced by length.

    Trained on, they are cut into these batches again. The longest texts of the corpus are in none, so that the Trainer, which shuffles,
    computes fewer tokens beside ours than in a whole epoch, and is measured faster than it is; the record has both ratios.
    """
    batches = epoch_batches(range(len(lengths_N)), lengths_N, BATCH, seed=0, epoch=0)
    whole = sorted((lengths_N[rows] for rows in batches if len(rows) == BATCH), key=lambda lengths_B: int(lengths_B.sum()))
    chosen: NDArray[np.int64] = np.concatenate([whole[(2 * n + 1) * len(whole) // (2 * count)] for n in range(count)])
    return chosen


def _time_epochs(lengths_N: NDArray[Any], *, smoke: bool) -> dict[str, Any]:
    sizes = replace(SMALL, n_layers=6) if smoke else Sizes()
    with tempfile.TemporaryDirectory() as folder:
        learners = dict(_learners(sizes, lengths_N, Path(folder)))
        held = {name: _held_bytes(learner) for name, learner in learners.items()}
        ways = {name: own_epoch(learner) for name, learner in learners.items()}
        data = data_of(lengths_N, torch.device(compute_here().device))
        ways[TRAINER] = trainer_epoch(_freeze_three_layers(sizes), data, lengths_N, Path(folder) / "trainer")
        seconds = interleaved(ways, repeats=1 if smoke else 3)
    del learners, ways
    gc.collect()
    over = [promise(f"{slower} over {faster}", median_ratio(seconds, slower, faster), at_least=limit) for slower, faster, limit in PROMISES]
    texts = {"examples": len(lengths_N), "tokens": int(lengths_N.sum()), "padding": counted_padding(lengths_N)}
    return {**texts, "seconds": medians(seconds), "promises": over, **_memory(held)}


def _memory(held: Mapping[str, int]) -> dict[str, Any]:
    """Return what gradients and optimizer hold, as a part of what they hold if nothing is frozen."""
    shares = {name: round(held_bytes / held[f"{name.split(',')[0]}, 0 frozen"], 3) for name, held_bytes in held.items()}
    return {"gradients_and_optimizer_bytes": dict(held), "gradients_and_optimizer_share": shares}


def _learners(sizes: Sizes, lengths_N: NDArray[Any], folder: Path) -> Iterator[tuple[str, Learner]]:
    """Yield a training of each kind with each number of frozen layers."""
    device = torch.device(compute_here().device)
    labels = label_loss("single-label")
    texts = data_of(lengths_N, device, embedding_width=sizes.dim)
    images = data_of(lengths_N, device, encoder=ENCODERS[0])
    for frozen in ("0 frozen", "3 frozen", "5 frozen", "head"):
        yield f"baseline, {frozen}", _learner(TextClassifier(classifier(sizes)), texts, labels, folder, frozen)
        yield f"student, {frozen}", _learner(Student(TextClassifier(classifier(sizes)), [sizes.dim]), texts, distilled, folder, frozen)
        if frozen in ("0 frozen", "3 frozen"):
            yield f"teacher, {frozen}", _learner(teacher(sizes, ENCODERS[0]), images, labels, folder, frozen)


def _learner(model: nn.Module, data: TrainingData, loss: Loss, folder: Path, frozen: str) -> Learner:
    """Return a training whose frozen layers' states are in a new column."""
    if frozen != "0 frozen":
        assert data.texts is not None
        token: Token | None = "first" if frozen == "head" else None
        layers = FrozenLayers(model, None if frozen == "head" else int(frozen.split(maxsplit=1)[0]))
        if token is None:
            FirstTokenOnly(model, layers)
        read = data.texts if token is None else data.texts.only(token)
        column = PrefixColumn(
            store=folder,
            lengths_N=read.lengths_N,
            computed_N=data.texts.lengths_N,
            width=layers.width,
            fingerprint={"case": f"{type(model).__name__} {frozen}"},
        )
        fill_prefix(column, partial(states_of_texts, compute_here(), layers, data.texts, token, 0), StopRequest())
        data = replace(data, texts=read, prefix=PrefixStates([column], "disk", data.device))
    return learner_of(model, data, loss, batch_size=BATCH)


def _held_bytes(learner: Learner) -> int:
    """Return the bytes of gradients and of AdamW's two moments: three float32 numbers for each weight that is trained."""
    return sum(3 * 4 * weight.numel() for weight in learner.learning)


def _freeze_three_layers(sizes: Sizes) -> nn.Module:
    """Return DistilBERT with its embeddings and three layers frozen as users of the Trainer freeze them."""
    model: Any = classifier(sizes)
    model.distilbert.embeddings.requires_grad_(False)
    for layer in model.distilbert.transformer.layer[:3]:
        layer.requires_grad_(False)
    frozen: nn.Module = model
    return frozen
