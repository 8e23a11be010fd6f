"""What a finished classifier says of the texts of a file: labels, probabilities and, where the file has labels, scores.

Shapes: N texts, K classes, B texts in a batch, L tokens of the longest in it, S tokens of all.
"""

import csv
import sys
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
from lugpi_core.corpora.user_corpus import ID_COLUMN, checked_texts
from lugpi_core.corpora.user_files import Table, file_table, text_table
from lugpi_core.errors import InputError, nearest
from lugpi_core.files import read_json, whole_file
from lugpi_core.runtime.device import Compute, half_for_training, resolve_compute
from lugpi_core.runtime.libraries import prepare_libraries
from lugpi_core.runtime.pretrained import reason
from lugpi_core.runtime.stopping import raise_wrapped_stop
from train.data.text_model import TextModel, find_text_model
from train.data.token_ids import TokenIds
from train.file_names import METRICS
from train.learning.predict import autocast
from train.options.tools import TEXT_SUFFIX, EvaluateOptions

LABEL_COLUMN = "label"
_TOKENISED_AT_ONCE = 4096
_NAMED_ROWS = 5


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """A finished Hugging Face sequence classifier on the CPU, in float32, without dropout.

    Attributes:
        model: takes ``input_ids`` and ``attention_mask`` [B, L]; gives ``logits`` [B, K].
        text_model: its tokenizer, and how many tokens it reads.
        label_names: of the K classes.
    """

    model: Any
    text_model: TextModel
    label_names: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Texts:
    """The texts of a file, in its order.

    Attributes:
        ids: the ``id`` column where every text has one of its own, else row numbers from 0.
        texts: as they stand there.
        labels: the values of the label column, or None.
        label_where: names that column, for errors.
    """

    ids: list[str]
    texts: list[str]
    labels: list[object] | None
    label_where: str


def evaluate(options: EvaluateOptions) -> dict[str, Any]:
    """Write a line for each text: its id, the label and the probability of each class.

    Holds the texts, 4 bytes a token and 4 a logit; what a batch takes does not grow with the file.

    Raises:
        InputError: the folder is no finished classifier, or anything about the file; no output is left then.
    """
    prepare_libraries()
    if options.written.is_dir():
        raise InputError(got=f"--output {options.written}, a folder", expected="a file", do="give a name ending in .csv")
    found = read_texts(options)
    compute = resolve_compute(options.device, options.dtype, half=half_for_training())
    classifier = load_classifier(options.model, max_length=options.max_length)
    wanted = None if found.labels is None else label_numbers(found.labels, classifier.label_names, where=found.label_where)
    say(f"{options.model} reads {len(found.texts):,} texts of {options.input} on {compute}")
    start_s = time.perf_counter()
    logits_NK = predicted_logits(classifier, found.texts, compute, batch_size=options.batch_size)
    seconds = time.perf_counter() - start_s
    if not bool(logits_NK.isfinite().all()):
        raise InputError(
            got=f"logits of {options.model} that are not finite", expected="finite ones", do="use --dtype float32, or train it again"
        )
    chosen_N = logits_NK.argmax(dim=1).numpy()
    write_labels(options.written, found.ids, logits_NK, classifier.label_names)
    counted = Counter(chosen_N.tolist())
    return {
        "command": "evaluate",
        "model": str(options.model),
        "input": str(options.input),
        "output": str(options.written),
        "texts": len(found.texts),
        "labels": {name: counted[number] for number, name in enumerate(classifier.label_names)},
        "seconds": round(seconds, 3),
        "texts_per_s": round(len(found.texts) / max(seconds, 1e-9), 2),
        **({} if wanted is None else _scores(wanted, chosen_N)),
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
        made = ", ".join(text_model.config.architectures or ()) or "no architecture"
        raise InputError(got=f"{folder}, which holds {made}", expected="a sequence classifier", do="give a student's or baseline's folder")
    if text_model.config.num_labels < 2:
        raise InputError(got=f"{folder}, a regression", expected="a classifier of two classes or more", do="give another --model")
    names = tuple(str(text_model.config.id2label[number]) for number in range(text_model.config.num_labels))
    return Classifier(model=_loaded(folder), text_model=text_model, label_names=names)


def _require_classifier(folder: Path) -> None:
    if not folder.is_dir():
        raise InputError(got=f"no folder {folder}", expected="that of a finished classifier", do="check --model")
    made_by = read_json(folder / METRICS).get("command") if (folder / METRICS).is_file() else None
    if made_by in ("teacher", "images"):
        raise InputError(
            got=f"{folder}, a model of python -m train {made_by}, which reads image tokens and is no Hugging Face classifier",
            expected="a student or a baseline",
            do="give for instance the student's folder beside it",
        )
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise InputError(
            got=f"{folder} without config.json or without weights (.safetensors)",
            expected="a finished Hugging Face classifier",
            do="check --model, or finish its training by the same command",
        )


def _loaded(folder: Path) -> Any:
    from safetensors import SafetensorError
    from transformers import AutoModelForSequenceClassification

    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype="float32", output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise_wrapped_stop(error)
        raise InputError(
            got=f"{folder}, which does not load ({reason(error)})", expected="a whole classifier", do="train it again"
        ) from None
    if missing := sorted(info["missing_keys"]):
        got = f"{folder} without the weights {', '.join(missing[:3])}"
        raise InputError(got=got, expected="a whole classifier", do="train it again")
    return model.eval()


def read_texts(options: EvaluateOptions) -> Texts:
    """Return the texts of the input. Holds all of them.

    Raises:
        InputError: the file is missing, malformed or empty, a column is missing, or a text is.
    """
    label_column = options.label_column or LABEL_COLUMN
    if options.input.suffix.lower() == TEXT_SUFFIX:
        table = text_table(options.input, options.text_column)
    else:
        table = file_table(options.input, "train", tuple(dict.fromkeys((options.text_column, label_column, ID_COLUMN))))
    if not table.names or (not len(table) and options.text_column in table.names):
        raise InputError(got=f"no texts in {table.where}", expected="one text at least", do="check --input")
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
    """Return the class numbers of labels as a file has them, int64 [N].

    Raises:
        InputError: some are no class of the model; names the first.
    """
    numbers = {name: number for number, name in enumerate(names)}
    found = [numbers.get(_label_name(value)) for value in values]
    unknown = [row for row, number in enumerate(found) if number is None]
    if unknown:
        rows = ", ".join(map(str, unknown[:_NAMED_ROWS])) + (" …" if len(unknown) > _NAMED_ROWS else "")
        raise InputError(
            got=f"{len(unknown):,} labels in {where} that the model does not know, the first {values[unknown[0]]!r}: rows, from 0, {rows}",
            expected=f"one of {', '.join(names)}",
            do="mend them, or name another --label-column",
        )
    return np.array(found, np.int64)


def _label_name(value: object) -> str:
    # As lugpi_core.corpora.user_corpus names classes: a column of whole numbers may have been stored as floats.
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def predicted_logits(classifier: Classifier, texts: Sequence[str], compute: Compute, *, batch_size: int) -> torch.Tensor:
    """Return the logits of the texts, float32 [N, K] on the CPU, in their order; the longest texts are read first, each batch padded to
    its longest."""
    from tqdm import tqdm

    device = torch.device(compute.device)
    model = classifier.model.to(device)
    ids = tokenised(classifier.text_model, texts, device=device)
    order_N = np.argsort(-ids.lengths_N, kind="stable")
    parts: list[torch.Tensor] = []
    interval_s = 0.1 if sys.stderr.isatty() else 10
    with (
        torch.inference_mode(),
        autocast(compute),
        tqdm(total=len(texts), unit="text", mininterval=interval_s, disable=not is_first_process()) as bar,
    ):
        for start in range(0, len(texts), batch_size):
            rows = order_N[start : start + batch_size]
            parts.append(model(**ids.padded(rows, torch.from_numpy(rows).to(device))).logits.float())
            bar.update(len(rows))
    sorted_NK = torch.cat(parts).cpu()
    logits_NK = torch.empty_like(sorted_NK)
    logits_NK[torch.from_numpy(order_N)] = sorted_NK
    return logits_NK


def tokenised(text_model: TextModel, texts: Sequence[str], *, device: torch.device) -> TokenIds:
    """Return the token ids of the texts, cut to what the model reads."""
    parts: list[NDArray[np.int32]] = []
    for start in range(0, len(texts), _TOKENISED_AT_ONCE):
        some = list(texts[start : start + _TOKENISED_AT_ONCE])
        ids = text_model.tokenizer(some, truncation=True, max_length=text_model.max_length)["input_ids"]
        parts += [np.asarray(one, np.int32) for one in ids]
    lengths_N = np.array([len(one) for one in parts], np.int64)
    return TokenIds(torch.from_numpy(np.concatenate(parts)), lengths_N, pad=text_model.pad_id, device=device)


def write_labels(path: Path, ids: Sequence[str], logits_NK: torch.Tensor, names: Sequence[str]) -> None:
    """Write one line a text, whole or not at all: id, label, and the probability of each class, seven digits of it."""
    with whole_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([ID_COLUMN, LABEL_COLUMN, *class_columns(names)])
        for start in range(0, len(ids), _TOKENISED_AT_ONCE):
            logits_BK = logits_NK[start : start + _TOKENISED_AT_ONCE]
            labels = logits_BK.argmax(dim=1).tolist()
            for id_, label, row_K in zip(ids[start:], labels, logits_BK.softmax(dim=1).tolist(), strict=False):
                writer.writerow([id_, names[label], *(f"{probability:.7g}" for probability in row_K)])


def class_columns(names: Sequence[str]) -> list[str]:
    """Return a column name for each class: its own, with as many ``class_`` before it as tell it from ``id``, ``label`` and the other
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


def _scores(wanted_N: NDArray[np.int64], chosen_N: NDArray[np.int64]) -> dict[str, float]:
    from sklearn.metrics import f1_score

    macro_f1 = f1_score(wanted_N, chosen_N, average="macro", zero_division=0.0)
    return {"accuracy": round(float((wanted_N == chosen_N).mean()), 6), "macro_f1": round(float(macro_f1), 6)}
