"""Trainings of a few steps: the demo's text model on the small corpus, without the commands around them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from lugpi_core.corpora.load import load_corpus
from lugpi_core.corpora.options import CorpusSettings
from lugpi_core.runtime.device import resolve_compute, seed_everything
from train.data.text_model import find_text_model, load_text_classifier
from train.data.token_ids import TokenIds, token_ids
from train.data.training_data import Batch, TrainingData
from train.learning.distributed import Processes
from train.learning.loop import Loss, Training
from train.learning.networks import Output, TextClassifier
from train.options.settings import DevicePlacement, Optimization

CPU = torch.device("cpu")


def cross_entropy(output: Output, batch: Batch) -> torch.Tensor:
    return F.cross_entropy(output.logits, batch.labels)


def training_of(small_csv: Path, folder: Path, loss: Loss = cross_entropy, *, text_model: str = "demo", **settings: Any) -> Training:
    """The training of a baseline that has not begun: three epochs of three steps, unless ``settings`` say otherwise."""
    optimization = Optimization(**{"epochs": 3, "learning_rate": 1e-3, "optimizer": "adamw", **settings})
    corpus = load_corpus(str(small_csv), CorpusSettings(split_column="split"))
    found = find_text_model(text_model, max_length=None)
    folder.mkdir(exist_ok=True, parents=True)
    seed_everything(optimization.seed)
    return Training(
        model=TextClassifier(load_text_classifier(found, corpus)),
        data=TrainingData(
            device=CPU,
            labels=torch.tensor([example.label for example in corpus.examples]),
            texts=TokenIds.of(found, token_ids(found, corpus, folder), CPU),
        ),
        learnt=corpus.rows("train"),
        validation=corpus.rows("validation"),
        loss=loss,
        optimization=optimization,
        placement=DevicePlacement(),
        compute=resolve_compute("cpu", "float32", half="bfloat16"),
        folder=folder,
        processes=Processes(),
    )


def at_step(number: int, do: Callable[[], object]) -> Loss:
    """A cross-entropy that also does something in the step of that number, counted from 0."""
    steps = 0

    def loss(output: Output, batch: Batch) -> torch.Tensor:
        nonlocal steps
        steps += 1
        if steps == number + 1:
            do()
        return cross_entropy(output, batch)

    return loss


def interrupt() -> None:
    raise KeyboardInterrupt


def without_dropout(folder: Path) -> Path:
    """The demo's text model with every dropout at zero, so that how a batch is divided changes nothing."""
    from transformers import DistilBertModel

    demo = find_text_model("demo", max_length=None)
    zero = {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0}
    DistilBertModel.from_pretrained(demo.folder, **zero).save_pretrained(folder)
    demo.tokenizer.save_pretrained(folder)
    return folder


def tiny_classifier(family: str, classes: int = 5) -> nn.Module:
    """A classifier of one layer with random weights."""
    import transformers

    torch.manual_seed(0)
    small = {"vocab_size": 100, "num_labels": classes}
    common = {**small, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    configs: dict[str, Any] = {
        "distilbert": lambda: transformers.DistilBertConfig(**small, dim=32, n_layers=1, n_heads=4, hidden_dim=64, seq_classif_dropout=0.5),
        "bert": lambda: transformers.BertConfig(**common, classifier_dropout=0.5),
        "roberta": lambda: transformers.RobertaConfig(**common, pad_token_id=1, classifier_dropout=0.5),
        "electra": lambda: transformers.ElectraConfig(**common, embedding_size=32, classifier_dropout=0.5),
        "deberta-v2": lambda: transformers.DebertaV2Config(**common, cls_dropout=0.5),
    }
    model: nn.Module = transformers.AutoModelForSequenceClassification.from_config(configs[family]())
    return model


def deep_folder(folder: Path, family: str) -> Path:
    """A text model of six small layers with random weights, and the demo's tokenizer."""
    from transformers import AlbertConfig, AlbertModel, BertConfig, BertModel, DistilBertConfig, DistilBertModel

    torch.manual_seed(2)
    demo = find_text_model("demo", max_length=None)
    words = demo.config.vocab_size
    common = {"vocab_size": words, "hidden_size": 32, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 64}
    model: Any = {
        "distilbert": lambda: DistilBertModel(DistilBertConfig(vocab_size=words, dim=32, n_layers=6, n_heads=4, hidden_dim=64)),
        "bert": lambda: BertModel(BertConfig(**common)),
        "albert": lambda: AlbertModel(AlbertConfig(**common, embedding_size=32)),
    }[family]()
    model.save_pretrained(folder)
    demo.tokenizer.save_pretrained(folder)
    return folder
