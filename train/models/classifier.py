"""A finished Hugging Face sequence classifier: loaded from its folder, and its logits for texts.

Shapes: N texts, K logits of each (one per class; 1 of a regression), B texts in a batch, L tokens of the longest in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lugpi_core.command_line import is_first_process
from lugpi_core.corpora.options import Task
from lugpi_core.errors import InputError, number_of
from lugpi_core.files import read_json
from lugpi_core.runtime.device import Compute
from lugpi_core.runtime.pretrained import loading
from train.data.batching import prediction_batches
from train.data.text_model import TextModel, find_text_model
from train.data.token_ids import TokenIds, tokenize
from train.file_names import METRICS
from train.learning.classifier_head import reads_padding, require_readable
from train.learning.progress import progress_bar
from train.learning.task_rules import task_of
from train.models.predictions import THRESHOLDS

# What a forward pass costs on the CPU besides its tokens is about that many tokens: more padding in a batch is worth another pass.
_FORWARD_TOKENS = 32


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """A finished Hugging Face sequence classifier on the CPU, in float32, without dropout.

    Attributes:
        model: takes ``input_ids`` and ``attention_mask`` [B, L]; returns ``logits`` [B, K].
        text_model: its tokenizer and maximum length.
        label_names: of the K classes, or of the number.
        task: what it answers.
        thresholds: of a multi-label classifier, the probability from which on each class is an answer; None = ½.
        reads_pairs: whether it was trained on pairs of texts; None if that is not known.
    """

    model: Any
    text_model: TextModel
    label_names: tuple[str, ...]
    task: Task = "single-label"
    thresholds: tuple[float, ...] | None = None
    reads_pairs: bool | None = None


def load_classifier(folder: Path, *, max_length: int | None = None, flag: str = "--model") -> Classifier:
    """Load a student, a baseline or another Hugging Face sequence classifier, which ``flag`` names.

    Raises:
        InputError: the folder is missing, a teacher's, unfinished or damaged, or holds no sequence classifier.
    """
    _require_classifier(folder, flag)
    text_model = find_text_model(str(folder.resolve()), max_length=max_length, flag=flag, is_trained=True)
    if not any(name.endswith("ForSequenceClassification") for name in text_model.config.architectures or ()):
        # transformers would give it a new head, with random weights.
        architectures = ", ".join(text_model.config.architectures or ()) or "no architecture"
        raise InputError(
            got=f"{folder}, a model of {architectures}", expected="a sequence classifier", do="give a student's or baseline's folder"
        )
    model = _load(folder)
    task = _task_of(folder, model.config, flag)
    names = tuple(str(model.config.id2label[number]) for number in range(model.config.num_labels))
    return Classifier(
        model=model,
        text_model=text_model,
        label_names=names,
        task=task,
        thresholds=_thresholds_of(folder, model.config) if task == "multi-label" else None,
        reads_pairs=_reads_pairs(folder),
    )


def _task_of(folder: Path, config: Any, flag: str) -> Task:
    """Return what a classifier answers, as transformers itself reads its configuration: a single output is a number.

    Raises:
        InputError: problem_type is none of transformers', or does not fit the number of labels.
    """
    if config.problem_type is None:
        return "regression" if config.num_labels == 1 else "single-label"
    task = task_of(config.problem_type)
    if task is None or ((config.num_labels == 1) != (task == "regression") and task != "multi-label"):
        raise InputError(
            got=f"{folder}, whose config.json says {config.problem_type} of {number_of(config.num_labels, 'label{s}')}",
            expected="a classifier of two classes or more, a multi-label one, or a regression to one number",
            do=f"correct problem_type, or give another {flag}",
        )
    return task


def _thresholds_of(folder: Path, config: Any) -> tuple[float, ...] | None:
    """Return the thresholds in a multi-label classifier's configuration; lugpi writes them, other libraries do not.

    Raises:
        InputError: they are not one number for each class.
    """
    thresholds = config.to_dict().get(THRESHOLDS)
    if thresholds is None:
        return None
    if not isinstance(thresholds, list) or len(thresholds) != config.num_labels or not all(isinstance(x, int | float) for x in thresholds):
        raise InputError(
            got=f"{folder}, whose config.json has thresholds {thresholds!s:.80}",
            expected=f"a list of {config.num_labels} numbers, one for each class",
            do="correct or remove them",
        )
    return tuple(map(float, thresholds))


def _reads_pairs(folder: Path) -> bool | None:
    """Return whether a model that lugpi trained reads pairs of texts; None for one of others."""
    metrics = read_json(folder / METRICS) if (folder / METRICS).is_file() else {}
    return bool(metrics.get("pairs", False)) if "command" in metrics else None


def _require_classifier(folder: Path, flag: str) -> None:
    if not folder.is_dir():
        raise InputError(got=f"no folder {folder}", expected="that of a finished classifier", do=f"check {flag}")
    command = read_json(folder / METRICS).get("command") if (folder / METRICS).is_file() else None
    if command in ("teacher", "images"):
        raise InputError(
            got=f"{folder}, a model of python -m train {command}, which reads image tokens and is no Hugging Face classifier",
            expected="a student or a baseline",
            do="give for instance the student's folder of the same run",
        )
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise InputError(
            got=f"{folder} without config.json or without weights (.safetensors)",
            expected="a finished Hugging Face classifier",
            do=f"check {flag}, or finish its training by the same command",
        )


def _load(folder: Path) -> Any:
    from transformers import AutoModelForSequenceClassification

    with loading(folder, expected="a whole classifier", do="train it again"):
        model, info = AutoModelForSequenceClassification.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            dtype="float32",
            output_loading_info=True,
            output_attentions=False,
            output_hidden_states=False,
            return_dict=True,
        )
    if missing := sorted(info["missing_keys"]):
        got = f"{folder} without the weights {', '.join(missing[:3])}"
        raise InputError(got=got, expected="a whole classifier", do="train it again")
    return model.eval()


def predicted_logits(
    classifier: Classifier, texts: Sequence[str], compute: Compute, *, batch_size: int, pairs: Sequence[str] | None = None
) -> torch.Tensor:
    """Return the logits of the texts, or pairs of texts, float32 [N, K] on the CPU, in their order. The longest come first, each batch
    padded to its longest."""
    device = torch.device(compute.device)
    model = classifier.model.to(device)
    tokens = tokenize(classifier.text_model, texts, pairs)
    ids = TokenIds.of(classifier.text_model, tokens, device, padding_is_read=reads_padding(model))
    require_readable(model, ids)
    padding_pays = _FORWARD_TOKENS if compute.device == "cpu" else None
    most_padding = 0 if ids.equal_lengths else padding_pays
    order_N = np.argsort(-ids.lengths_N, kind="stable")
    parts: list[torch.Tensor] = []
    with torch.inference_mode(), compute.autocast(), progress_bar(len(texts), unit="text", disable=not is_first_process()) as bar:
        for rows in prediction_batches(order_N, ids.lengths_N[order_N], batch_size, most_padding=most_padding):
            parts.append(model(**ids.padded(rows, torch.from_numpy(rows).to(device))).logits.float())
            bar.update(len(rows))
    sorted_NK = torch.cat(parts).cpu()
    logits_NK = torch.empty_like(sorted_NK)
    logits_NK[torch.from_numpy(order_N)] = sorted_NK
    return logits_NK
