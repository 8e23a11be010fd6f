"""What is done with the texts of a corpus, stage by stage. Each is run in a process of its own: a peak of memory never goes down.

``python -m benchmarks.scale.stages STAGE FEW MANY FOLDER`` runs a stage on a small file first, so that everything is imported and loaded,
and then on the large one; it prints the seconds of the second run and both peaks as JSON.
"""

import json
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from transformers import DistilBertConfig, DistilBertForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutput

from benchmarks.scale.many_texts import CLASSES
from featurize.generate.generators import find_generator, generator_settings
from featurize.options import FeaturizeOptions, Generation
from featurize.plan.images import plan_images
from featurize.plan.prompt_reader import PromptReader, prompt_reader
from featurize.plan.prompts import plan_of
from featurize.run import featurize_command
from lugpi_core.corpora.corpus import Corpus
from lugpi_core.corpora.load import load_corpus
from lugpi_core.runtime.libraries import prepare_libraries
from lugpi_core.runtime.meters import peak_memory_bytes
from lugpi_core.store.example_table import ExampleTable, read_example_table, write_example_table
from train.data.batching import epoch_batches
from train.data.text_model import find_text_model
from train.data.token_ids import TokenIds, token_ids
from train.data.training_data import TrainingData
from train.models.predictions import write_predictions
from train.options.tools import EvaluateOptions
from train.tools.evaluate import evaluate

MODEL = "demo"
_PASSAGES = 4
_BATCH = 16


def _read(path: Path, _: Path) -> None:
    load_corpus(path).fingerprint()


def _dry_run(path: Path, folder: Path) -> None:
    featurize_command(
        FeaturizeOptions(dataset=str(path), generator=MODEL, encoders=("clip-demo",), run_dir=folder / path.stem, dry_run=True)
    )


def _prompts(settings: Generation, path: Path, _: Path) -> None:
    plan_of(load_corpus(path), settings, _reader).fingerprint()


def _reader() -> PromptReader:
    return prompt_reader(find_generator(MODEL, generator_settings(MODEL, {}), half=False))


def _examples(path: Path, folder: Path) -> None:
    corpus, store = load_corpus(path), folder / f"{path.stem}-store"
    store.mkdir(exist_ok=True)
    plan = plan_images(corpus, seed=0)
    cut_N = np.zeros(len(corpus.examples), np.bool_)
    write_example_table(
        store, corpus, ExampleTable(drawings=plan.images_of_example, prompt_cut=cut_N, corpus_fingerprint=corpus.fingerprint())
    )
    assert np.array_equal(read_example_table(store, corpus).drawings, plan.images_of_example)


def _tokens(path: Path, folder: Path) -> None:
    token_ids(find_text_model(MODEL, max_length=None), load_corpus(path), folder)


def _batches(path: Path, folder: Path) -> None:
    """Read every batch of an epoch; the tokens are on the disk."""
    corpus, text_model = load_corpus(path), find_text_model(MODEL, max_length=None)
    device = torch.device("cpu")
    texts = TokenIds.of(text_model, token_ids(text_model, corpus, folder), device)
    data = TrainingData(device=device, labels=torch.from_numpy(corpus.targets()), texts=texts)
    batches = epoch_batches(corpus.rows("train"), data.lengths, _BATCH, seed=0, epoch=0)
    assert sum(len(batch.labels) for batch in data.batches(batches)) == corpus.counts()["train"]


def _predictions(path: Path, folder: Path) -> None:
    corpus: Corpus = load_corpus(path)
    write_predictions(folder / f"{path.stem}.predictions.csv", corpus, torch.zeros(len(corpus.examples), len(CLASSES)))


def _evaluate(path: Path, folder: Path) -> None:
    """Evaluate with a forward pass that computes nothing: what a model takes is its own, hours for a million texts."""
    with patch.object(DistilBertForSequenceClassification, "forward", _no_forward):
        evaluate(EvaluateOptions(model=classifier(folder), input=path, output=folder / f"{path.stem}.answers.csv", device="cpu"))


def _no_forward(model: Any, input_ids: torch.Tensor, **_: Any) -> Any:
    return SequenceClassifierOutput(logits=torch.zeros(len(input_ids), model.config.num_labels))


def classifier(folder: Path) -> Path:
    """Return the folder of a tiny classifier with random weights; it is written once."""
    model = folder / "classifier"
    if not model.is_dir():
        text_model = find_text_model(MODEL, max_length=None)
        config = DistilBertConfig(
            vocab_size=len(text_model.tokenizer),
            dim=16,
            hidden_dim=16,
            n_layers=1,
            n_heads=2,
            pad_token_id=text_model.tokenizer.pad_token_id,
            id2label=dict(enumerate(CLASSES)),
            label2id={name: number for number, name in enumerate(CLASSES)},
        )
        torch.manual_seed(0)
        DistilBertForSequenceClassification(config).save_pretrained(model)
        text_model.tokenizer.save_pretrained(model)
    return model


STAGES: dict[str, Callable[[Path, Path], None]] = {
    "read": _read,
    "dry run": _dry_run,
    "prompts, chunks": partial(_prompts, Generation(prompts="chunks", images_per_text=_PASSAGES)),
    "prompts, keywords": partial(_prompts, Generation(prompts="keywords")),
    "examples.h5": _examples,
    "token ids": _tokens,
    "batches": _batches,
    "predictions": _predictions,
    "evaluate": _evaluate,
}


def main(stage: str, few: str, many: str, folder: str) -> int:
    """Run a stage on both files and print the figures."""
    prepare_libraries()
    warnings.simplefilter("ignore")
    imported_bytes = peak_memory_bytes()["host_bytes"]
    STAGES[stage](Path(few), Path(folder))
    before_bytes = peak_memory_bytes()["host_bytes"]
    start_s, cpu_s = time.perf_counter(), time.process_time()
    STAGES[stage](Path(many), Path(folder))
    seconds, cpu_seconds = time.perf_counter() - start_s, time.process_time() - cpu_s
    peak_bytes = peak_memory_bytes()["host_bytes"]
    figures = {"seconds": seconds, "cpu_seconds": cpu_seconds}
    print(json.dumps(figures | {"imported_bytes": imported_bytes, "before_bytes": before_bytes, "peak_bytes": peak_bytes}))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
