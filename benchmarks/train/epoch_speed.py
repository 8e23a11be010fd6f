"""An epoch of our student compared with one of the Hugging Face Trainer, on texts with the lengths of the real corpora."""

import itertools
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.harness import interleaved, median_ratio, medians, minilm_folder
from benchmarks.train.training_cases import SMALL, Sizes, classifier, compute_here, data_of, student_learner
from lugpi_core.command_line import say
from lugpi_core.corpora.load import load_corpus
from lugpi_core.corpora.options import CorpusSettings
from lugpi_core.errors import InputError
from lugpi_core.runtime.stopping import StopRequest
from train.data.batching import epoch_batches, padding_share
from train.data.text_model import find_text_model
from train.data.token_ids import token_ids
from train.data.training_data import TrainingData
from train.learning.loop import Learner
from train.learning.progress import Progress

CORPORA = ("20ng", "imdb", "cwi-news", "cwi-wikinews")
BATCH, EXAMPLES = 14, 112
# One of DistilBERT's six layers: the ratio of two epochs depends on their token counts, and six layers would take an hour on two cores.
ONE_LAYER = Sizes(n_layers=1)
TRAINER, OURS = "Hugging Face Trainer", "student"


def epochs(data_dir: Path, *, smoke: bool) -> dict[str, Any]:
    """Return for each corpus the counted padding of a whole epoch, and the seconds of an epoch on a sample, both ways."""
    found: dict[str, Any] = {}
    for name in CORPORA:
        try:
            lengths = train_lengths(name, data_dir, limit=60 if smoke else None)
        except InputError as error:
            found[name] = {"skipped": str(error)}
            continue
        found[name] = {"train_texts": len(lengths), "padding": counted_padding(lengths)}
        if smoke or name != "cwi-wikinews":  # it has the lengths of cwi-news
            found[name] |= _timed(lengths, smoke=smoke)
        say(f"train, epoch of {name}: {found[name]}")
    return found


def train_lengths(name: str, data_dir: Path, *, limit: int | None) -> NDArray[np.int64]:
    """Return the token count of each training text for a BERT tokenizer with a limit of 512, like that of DistilBERT.

    Raises:
        InputError: the corpus's archive or the package with the tokenizer is missing.
    """
    corpus = load_corpus(name, CorpusSettings(data_dir=data_dir, limit=limit))
    text_model = find_text_model(str(minilm_folder()), max_length=512)
    with tempfile.TemporaryDirectory() as run:
        lengths_N = token_ids(text_model, corpus, Path(run)).lengths_N
    lengths_of_train: NDArray[np.int64] = lengths_N[corpus.rows("train")]
    return lengths_of_train


def counted_padding(lengths_N: NDArray[np.int64]) -> dict[str, float]:
    """Return the share of padding among the tokens of an epoch, in our order and in a plain shuffle, and the ratio of computed tokens,
    shuffle over ours."""
    ours = epoch_batches(range(len(lengths_N)), lengths_N, BATCH, seed=0, epoch=0)
    shuffled = np.random.default_rng(0).permutation(len(lengths_N))
    theirs = [shuffled[start : start + BATCH] for start in range(0, len(shuffled), BATCH)]
    shares = padding_share(lengths_N, ours), padding_share(lengths_N, theirs)
    return {"ours": round(shares[0], 4), "shuffled": round(shares[1], 4), "tokens_ratio": round((1 - shares[0]) / (1 - shares[1]), 3)}


def _timed(lengths_N: NDArray[np.int64], *, smoke: bool) -> dict[str, Any]:
    sizes, count = (SMALL, 28) if smoke else (ONE_LAYER, EXAMPLES)
    sample = sample_of(lengths_N, count)
    data = data_of(sample, torch.device(compute_here().device), embedding_width=sizes.dim)
    ours = own_epoch(student_learner(sizes, data, BATCH))
    with tempfile.TemporaryDirectory() as folder:
        seconds = interleaved(
            {TRAINER: trainer_epoch(classifier(sizes), data, sample, Path(folder)), OURS: ours}, repeats=1 if smoke else 3
        )
    return {"examples": count, "layers": sizes.n_layers, "seconds": medians(seconds), "over": median_ratio(seconds, TRAINER, OURS)}


def sample_of(lengths_N: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return ``count`` evenly spaced quantiles of the lengths: the distribution of the corpus on a small scale."""
    ordered = np.sort(lengths_N)
    spaced: NDArray[np.int64] = ordered[np.linspace(0, len(ordered) - 1, count).round().astype(int)]
    return spaced


def own_epoch(learner: Learner) -> Callable[[], object]:
    """Return an epoch of a training that has not begun: the next one at each call."""
    learner.report, learner.stop = Progress(NoBar(), None, None), StopRequest()
    numbers = itertools.count()

    def epoch() -> None:
        learner.place = 0
        learner.learn(next(numbers), time.perf_counter())

    return epoch


class NoBar:
    """A progress bar that shows nothing."""

    def update(self, _: int) -> None:
        """Show nothing."""

    def set_postfix(self, *_: Any, **__: Any) -> None:
        """Show nothing."""


def trainer_epoch(model: nn.Module, data: TrainingData, lengths_N: NDArray[np.int64], folder: Path) -> Callable[[], object]:
    """Return an epoch of the Hugging Face Trainer with its defaults: shuffled batches, padded to their longest."""
    import transformers
    from transformers import Trainer, TrainingArguments

    transformers.logging.set_verbosity_error()
    rows = [np.array([n]) for n in range(len(lengths_N))]
    features = [{"input_ids": data.batch(row).inputs["input_ids"][0].cpu(), "labels": int(data.labels[row[0]])} for row in rows]
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=1,
        per_device_train_batch_size=BATCH,
        learning_rate=5e-5,
        weight_decay=0.01,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=compute_here().device == "cpu",
        bf16=compute_here().dtype == "bfloat16",
        dataloader_pin_memory=compute_here().device == "cuda",
        seed=0,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=features, data_collator=_collate)
    trainer.remove_callback(transformers.PrinterCallback)
    run: Callable[[], object] = trainer.train
    return run


def _collate(features: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    ids = torch.nn.utils.rnn.pad_sequence([feature["input_ids"] for feature in features], batch_first=True)
    lengths = torch.tensor([len(feature["input_ids"]) for feature in features])
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([feature["labels"] for feature in features])}
