"""Predictions of a finished classifier for the texts of a file: labels, probabilities and, if the file has labels, scores.

Shapes: N texts, K classes, B texts in a batch, L tokens of the longest in it.
"""

import csv
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lugpi_core.command_line import is_first_process, say
from lugpi_core.corpora.labels import label_name
from lugpi_core.corpora.texts import checked_texts
from lugpi_core.corpora.user_corpus import ID_COLUMN
from lugpi_core.corpora.user_files import Table, file_table, text_table
from lugpi_core.errors import InputError, nearest
from lugpi_core.files import read_json, whole_file
from lugpi_core.runtime.device import Compute, half_for_training, resolve_compute
from lugpi_core.runtime.libraries import prepare_libraries
from lugpi_core.runtime.pretrained import loading
from train.data.text_model import TextModel, find_text_model
from train.data.token_ids import TokenIds, tokenize
from train.file_names import METRICS
from train.learning.predict import autocast
from train.learning.progress import progress_bar
from train.learning.task_rules import rules_of
from train.options.tools import TEXT_SUFFIX, EvaluateOptions

LABEL_COLUMN = "label"
_ROWS_AT_ONCE = 4096
_NAMED_ROWS = 5


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """A finished Hugging Face sequence classifier on the CPU, in float32, without dropout.

    Attributes:
        model: takes ``input_ids`` and ``attention_mask`` [B, L]; returns ``logits`` [B, K].
        text_model: its tokenizer and maximum length.
        label_names: of the K classes.
    """

    model: Any
    text_model: TextModel
    label_names: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Texts:
    """The texts of a file, in its order.

    Attributes:
        ids: the ``id`` column if the ids are unique, else row numbers from 0.
        texts: unchanged.
        labels: the values of the label column, or None.
        label_where: the name of that column, for errors.
    """

    ids: list[str]
    texts: list[str]
    labels: list[object] | None
    label_where: str


def evaluate(options: EvaluateOptions) -> dict[str, Any]:
    """Write a line for each text: its id, its predicted label and the probability of each class.

    Keeps the texts, 4 bytes per token and 4 per logit in memory; a batch takes the same memory for any file.

    Raises:
        InputError: the folder is no finished classifier, or the file is unusable; nothing is written then.
    """
    prepare_libraries()
    if options.written.is_dir():
        raise InputError(got=f"--output {options.written}, a folder", expected="a file", do="give a name ending in .csv")
    texts = read_texts(options)
    compute = resolve_compute(options.device, options.dtype, half=half_for_training())
    classifier = load_classifier(options.model, max_length=options.max_length)
    labels_N = None if texts.labels is None else label_numbers(texts.labels, classifier.label_names, where=texts.label_where)
    say(f"{options.model} reads {len(texts.texts):,} texts of {options.input} on {compute}")
    start_s = time.perf_counter()
    logits_NK = predicted_logits(classifier, texts.texts, compute, batch_size=options.batch_size)
    seconds = time.perf_counter() - start_s
    if not bool(logits_NK.isfinite().all()):
        raise InputError(
            got=f"logits of {options.model} that are not finite", expected="finite ones", do="use --dtype float32, or train it again"
        )
    predicted_N = logits_NK.argmax(dim=1).numpy()
    write_labels(options.written, texts.ids, logits_NK, classifier.label_names)
    counts = Counter(predicted_N.tolist())
    return {
        "command": "evaluate",
        "model": str(options.model),
        "input": str(options.input),
        "output": str(options.written),
        "texts": len(texts.texts),
        "labels": {name: counts[number] for number, name in enumerate(classifier.label_names)},
        "seconds": round(seconds, 3),
        "texts_per_s": round(len(texts.texts) / max(seconds, 1e-9), 2),
        **({} if labels_N is None else _scores(labels_N, logits_NK)),
        "compute": compute.record(),
    }


def load_classifier(folder: Path, *, max_length: int | None = None) -> Classifier:
    """Load a student, a baseline or another Hugging Face sequence classifier.

    Raises:
        InputError: the folder is missing, a teacher's, unfinished or damaged, or holds no classifier of two classes or more.
    """
    _require_classifier(folder)
    text_model = find_text_model(str(folder.resolve()), max_length=max_length, flag="--model")
    if not any(name.endswith("ForSequenceClassification") for name in text_model.config.architectures or ()):
        # transformers would give it a new head, with random weights.
        architectures = ", ".join(text_model.config.architectures or ()) or "no architecture"
        raise InputError(
            got=f"{folder}, a model of {architectures}", expected="a sequence classifier", do="give a student's or baseline's folder"
        )
    if text_model.config.num_labels < 2:
        raise InputError(got=f"{folder}, a regression", expected="a classifier of two classes or more", do="give another --model")
    names = tuple(str(text_model.config.id2label[number]) for number in range(text_model.config.num_labels))
    return Classifier(model=_load(folder), text_model=text_model, label_names=names)


def _require_classifier(folder: Path) -> None:
    if not folder.is_dir():
        raise InputError(got=f"no folder {folder}", expected="that of a finished classifier", do="check --model")
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
            do="check --model, or finish its training by the same command",
        )


def _load(folder: Path) -> Any:
    from transformers import AutoModelForSequenceClassification

    with loading(folder, expected="a whole classifier", do="train it again"):
        model, info = AutoModelForSequenceClassification.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype="float32", output_loading_info=True
        )
    if missing := sorted(info["missing_keys"]):
        got = f"{folder} without the weights {', '.join(missing[:3])}"
        raise InputError(got=got, expected="a whole classifier", do="train it again")
    return model.eval()


def read_texts(options: EvaluateOptions) -> Texts:
    """Return the texts of the input.

    Raises:
        InputError: the file is missing, malformed or empty, or a column or a text is missing.
    """
    label_column = options.label_column or LABEL_COLUMN
    if options.input.suffix.lower() == TEXT_SUFFIX:
        table = text_table(options.input, options.text_column)
    else:
        table = file_table(options.input, "train", tuple(dict.fromkeys((options.text_column, label_column, ID_COLUMN))))
    if not table.names or (not len(table) and options.text_column in table.names):
        raise InputError(got=f"no texts in {table.where}", expected="at least one", do="check --input")
    _require_column(table, options.text_column, "--text-column")
    if options.label_column is not None:
        _require_column(table, options.label_column, "--label-column")
    texts = checked_texts(table.columns[options.text_column], what=options.text_column, where=table.where)
    labels = None if label_column == options.text_column else table.columns.get(label_column)
    return Texts(ids=_ids(table), texts=texts, labels=labels, label_where=f"{label_column} of {table.where}")


def _require_column(table: Table, column: str, flag: str) -> None:
    if column not in table.names:
        raise InputError(
            got=f"no column {column!r} in {table.where}, whose columns are {', '.join(table.names)}",
            expected="the column that holds them",
            do=f"pass {flag} ({nearest(column, table.names)})",
        )


def _ids(table: Table) -> list[str]:
    given = [str(value) for value in table.columns.get(ID_COLUMN, ()) if isinstance(value, int | str) and str(value).strip()]
    return given if len(set(given)) == len(table) else [str(row) for row in range(len(table))]


def label_numbers(values: Sequence[object], names: Sequence[str], *, where: str) -> NDArray[np.int64]:
    """Return the class numbers of labels as they are in a file, int64 [N].

    Raises:
        InputError: some are not classes of the model; names the first.
    """
    number_of = {name: number for number, name in enumerate(names)}
    numbers = [number_of.get(label_name(value) or "") for value in values]
    unknown = [row for row, number in enumerate(numbers) if number is None]
    if unknown:
        rows = ", ".join(map(str, unknown[:_NAMED_ROWS])) + (" …" if len(unknown) > _NAMED_ROWS else "")
        first = values[unknown[0]]
        raise InputError(
            got=f"{len(unknown):,} labels in {where} that are no class of the model, first {first!r}: rows, counted from 0, {rows}",
            expected=f"one of {', '.join(names)}",
            do="fix them, or name another --label-column",
        )
    return np.array(numbers, np.int64)


def predicted_logits(classifier: Classifier, texts: Sequence[str], compute: Compute, *, batch_size: int) -> torch.Tensor:
    """Return the logits of the texts, float32 [N, K] on the CPU, in their order. The longest texts come first, each batch padded to its
    longest."""
    device = torch.device(compute.device)
    model = classifier.model.to(device)
    ids = TokenIds(*tokenize(classifier.text_model, texts), pad=classifier.text_model.pad_id, device=device)
    order_N = np.argsort(-ids.lengths_N, kind="stable")
    parts: list[torch.Tensor] = []
    with torch.inference_mode(), autocast(compute), progress_bar(len(texts), unit="text", disable=not is_first_process()) as bar:
        for start in range(0, len(texts), batch_size):
            rows = order_N[start : start + batch_size]
            parts.append(model(**ids.padded(rows, torch.from_numpy(rows).to(device))).logits.float())
            bar.update(len(rows))
    sorted_NK = torch.cat(parts).cpu()
    logits_NK = torch.empty_like(sorted_NK)
    logits_NK[torch.from_numpy(order_N)] = sorted_NK
    return logits_NK


def write_labels(path: Path, ids: Sequence[str], logits_NK: torch.Tensor, names: Sequence[str]) -> None:
    """Write one line per text: id, label, and the probability of each class with seven digits. A failed write leaves no file."""
    with whole_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([ID_COLUMN, LABEL_COLUMN, *class_columns(names)])
        for start in range(0, len(ids), _ROWS_AT_ONCE):
            logits_BK = logits_NK[start : start + _ROWS_AT_ONCE]
            labels = logits_BK.argmax(dim=1).tolist()
            for id_, label, row_K in zip(ids[start:], labels, logits_BK.softmax(dim=1).tolist(), strict=False):
                writer.writerow([id_, names[label], *(f"{probability:.7g}" for probability in row_K)])


def class_columns(names: Sequence[str]) -> list[str]:
    """Return a column name for each class: its own, prefixed with ``class_`` until it differs from ``id``, ``label`` and the other
    classes."""
    taken = {ID_COLUMN, LABEL_COLUMN}
    columns: list[str] = []
    for name in names:
        column = name
        while column in taken or (column != name and column in names):
            column = f"class_{column}"
        taken.add(column)
        columns.append(column)
    return columns


def _scores(labels_N: NDArray[np.int64], logits_NK: torch.Tensor) -> dict[str, float | None]:
    scores = rules_of("single-label").scores(labels_N, logits_NK.numpy())
    return {name: value if value is None else round(value, 6) for name, value in scores.items()}
