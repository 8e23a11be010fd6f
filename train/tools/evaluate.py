"""Predictions of a finished classifier for the texts of a file: labels, probabilities and, if the file has labels, scores.

The classifier's ``config.json`` says what it answers: one class, any number of classes, or a number.

Shapes: N texts, K logits of each (one per class; 1 of a regression), B texts in a batch, L tokens of the longest in it.
"""

import csv
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lugpi_core.command_line import say
from lugpi_core.corpora.columns import NumberedNames
from lugpi_core.corpora.labels import class_of_model, label_columns, label_name, read_labels
from lugpi_core.corpora.options import suffix_of
from lugpi_core.corpora.tables import ID_COLUMN, Table, own_ids
from lugpi_core.corpora.texts import checked_texts
from lugpi_core.corpora.user_files import file_table, text_table
from lugpi_core.errors import InputError, nearest
from lugpi_core.files import make_folder, whole_file
from lugpi_core.runtime.device import half_for_training, resolve_compute
from lugpi_core.runtime.libraries import prepare_libraries, start_up
from train.learning.task_rules import METRIC_NAMES, in_words, rules_of
from train.models.classifier import Classifier, load_classifier, predicted_logits
from train.models.predictions import rounded
from train.options.tools import TEXT_SUFFIX, EvaluateOptions

LABEL_COLUMN = "label"
_NO_LABELS = "none"
_ROWS_AT_ONCE = 4096
_NAMED_ROWS = 5


@dataclass(frozen=True, kw_only=True)
class Texts:
    """The texts of a file, in its order.

    Attributes:
        ids: the ``id`` column if the ids are unique, else row numbers from 0.
        texts: unchanged.
        pairs: the second texts, or None.
        table: the file's columns.
        label_column: the one with the labels, the several of a multi-label file between commas, or None.
    """

    ids: Sequence[str]
    texts: Sequence[str]
    pairs: Sequence[str] | None
    table: Table
    label_column: str | None

    @property
    def label_columns(self) -> tuple[str, ...]:
        """The columns with the labels: several where ``label_column`` has commas between their names."""
        return () if self.label_column is None else label_columns(self.label_column, self.table.names, "multi-label")


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
    with start_up():
        classifier = load_classifier(options.model, max_length=options.max_length)
    _require_pairs(options, classifier)
    if options.label_separator is not None and classifier.task != "multi-label":
        say(f"warning: --label-separator has no effect on a {classifier.task} model")
    if classifier.model.config.problem_type is None and classifier.task == "regression":
        say("note: the model has one output and names no problem_type: its number is written as it is; a pipeline shows its sigmoid")
    targets = None if texts.label_column is None else targets_of(texts, classifier, separator=options.separator)
    _require_separable(classifier, options.separator)
    make_folder(options.written.parent)  # before all texts are read in vain
    say(f"{options.model} reads {len(texts.texts):,} texts of {options.input} on {compute}")
    start_s = time.perf_counter()
    logits_NK = predicted_logits(classifier, texts.texts, compute, batch_size=options.batch_size, pairs=texts.pairs)
    seconds = time.perf_counter() - start_s
    if not bool(logits_NK.isfinite().all()):
        do = "give another --model" if compute.dtype == "float32" else "use --dtype float32"
        raise InputError(got=f"logits of {options.model} in {compute.dtype} that are not finite", expected="finite ones", do=do)
    write_answers(options.written, texts.ids, logits_NK, classifier, separator=options.separator)
    scores = {} if targets is None else _scores(classifier, targets, logits_NK)
    say("; ".join([f"done: {options.written}", *(f"{METRIC_NAMES[name]} {in_words(name, value)}" for name, value in scores.items())]))
    return {
        "command": "evaluate",
        "model": str(options.model),
        "input": str(options.input),
        "output": str(options.written),
        "texts": len(texts.texts),
        **({} if classifier.task == "single-label" else {"task": classifier.task}),
        **({} if classifier.task == "regression" else {"labels": _counts(classifier, logits_NK)}),
        "seconds": round(seconds, 3),
        "texts_per_s": round(len(texts.texts) / max(seconds, 1e-9), 2),
        **scores,
        "compute": compute.record(),
    }


def _counts(classifier: Classifier, logits_NK: torch.Tensor) -> dict[str, int]:
    """Return how many texts have each label as an answer."""
    answers = rules_of(classifier.task).answers(logits_NK.numpy(), classifier.thresholds)
    counts_K = answers.sum(axis=0) if classifier.task == "multi-label" else np.bincount(answers, minlength=len(classifier.label_names))
    return {name: int(count) for name, count in zip(classifier.label_names, counts_K, strict=True)}


def _require_pairs(options: EvaluateOptions, classifier: Classifier) -> None:
    """Raise InputError if a model of pairs is to read single texts, or the other way round."""
    if classifier.reads_pairs is True and options.text_pair_column is None:
        raise InputError(
            got=f"{options.model}, which was trained on pairs of texts",
            expected="the column with the second text",
            do="give --text-pair-column",
        )
    if classifier.reads_pairs is False and options.text_pair_column is not None:
        raise InputError(
            got=f"--text-pair-column {options.text_pair_column} for {options.model}, which was trained on single texts",
            expected="a model of pairs of texts",
            do="leave it out",
        )


def read_texts(options: EvaluateOptions) -> Texts:
    """Return the texts of the input.

    Raises:
        InputError: the file is missing, malformed or empty, or a column or a text is missing.
    """
    named, pair_column = options.label_column, options.text_pair_column
    label_column = named or LABEL_COLUMN
    wanted = (options.text_column, pair_column, label_column, *label_columns(label_column, (), "multi-label"), ID_COLUMN)
    if suffix_of(options.input) == TEXT_SUFFIX:
        table = text_table(options.input, options.text_column)
    else:
        table = file_table(options.input, "train", tuple(dict.fromkeys(column for column in wanted if column)), label_column)
    if not table.names or (not len(table) and options.text_column in table.names):
        raise InputError(got=f"no texts in {table.where}", expected="at least one", do="check --input")
    _require_column(table, options.text_column, "--text-column")
    if named == _NO_LABELS and _NO_LABELS not in table.names:
        named, label_column = None, ""
    labels = label_columns(label_column, table.names, "multi-label")
    if pair_column is not None:
        _require_column(table, pair_column, "--text-pair-column")
    if named is not None:
        for column in labels:
            _require_column(table, column, "--label-column")
    clash = [column for column in labels if column in (options.text_column, pair_column)]
    if clash and len(labels) > 1:
        got = f"--label-column {named}, where {clash[0]} is the column of a text"
        raise InputError(got=got, expected="other columns", do="leave it out")
    texts = checked_texts(table.columns[options.text_column], what=options.text_column, where=table.where)
    has_labels = set(labels) <= table.columns.keys() and not clash
    return Texts(
        ids=own_ids([table]) or NumberedNames("", range(len(table))),
        texts=texts,
        pairs=None if pair_column is None else checked_texts(table.columns[pair_column], what=pair_column, where=table.where),
        table=table,
        label_column=label_column if has_labels else None,
    )


def _require_column(table: Table, column: str, flag: str) -> None:
    if column not in table.names:
        raise InputError(
            got=f"no column {column!r} in {table.where}, whose columns are {', '.join(table.names)}",
            expected="the column that holds them",
            do=f"pass {flag} ({nearest(column, table.names)})",
        )


def targets_of(texts: Texts, classifier: Classifier, *, separator: str) -> NDArray[Any]:
    """Return the labels of the file in the form of ``Corpus.targets()``.

    Raises:
        InputError: some are no classes of the model, or no numbers; names the first. Or columns of a model that is not multi-label, or
            not of every class.
    """
    column, columns, table = texts.label_column, texts.label_columns, texts.table
    assert column is not None, table.where
    where = f"{column} of {table.where}"
    if len(columns) > 1:
        _require_a_column_of_each_class(columns, classifier, where=where)
    if classifier.task == "single-label":
        return label_numbers(table.columns[column], classifier.label_names, where=where, file_classes=table.classes)
    if classifier.task == "regression":
        return np.array(read_labels([table], column, task="regression", separator=None).targets, np.float64)
    if len(columns) == 1:  # an empty cell of a CSV names no class
        cells: list[object] = [[] if isinstance(cell, str) and not cell.strip() else cell for cell in table.columns[columns[0]]]
        table = replace(table, columns={**table.columns, columns[0]: cells})
    labels = read_labels([table], column, task="multi-label", separator=separator, model_classes=classifier.label_names)
    number_K = label_numbers(labels.classes, classifier.label_names, where=f"the class names of {where}")
    targets_NK = np.zeros((len(table), len(classifier.label_names)), np.float32)
    for row, classes in enumerate(labels.targets):
        assert isinstance(classes, tuple), classes
        targets_NK[row, number_K[list(classes)]] = 1
    return targets_NK


def _require_a_column_of_each_class(columns: Sequence[str], classifier: Classifier, *, where: str) -> None:
    """Raise InputError unless columns of 0 and 1 are those of a multi-label model's classes."""
    names = classifier.label_names
    if classifier.task != "multi-label":
        raise InputError(
            got=f"{len(columns)} label columns for a {classifier.task} model",
            expected="one column",
            do="name it with --label-column",
        )
    there = set(label_numbers(columns, names, where=f"the columns {where}").tolist())
    if missing := [name for number, name in enumerate(names) if number not in there]:
        raise InputError(
            got=f"no column of the class {missing[0]!r} in {where}",
            expected=f"a column of each class: {', '.join(names)}",
            do="name all of them with --label-column",
        )


def label_numbers(
    values: Sequence[object], names: Sequence[str], *, where: str, file_classes: tuple[str, ...] | None = None
) -> NDArray[np.int64]:
    """Return the class numbers of labels as they are in a file, int64 [N]; ``file_classes`` are those whose places its numbers are.

    Raises:
        InputError: some are not classes of the model; names the first.
    """
    stripped = tuple(name.strip() for name in names)
    number_of = {name: number for number, name in enumerate(stripped)}
    own = values if file_classes is None else [label_name(value, file_classes) for value in values]
    numbers = [number_of.get(class_of_model(value, stripped) or "") for value in own]
    unknown = [row for row, number in enumerate(numbers) if number is None]
    if unknown:
        rows = ", ".join(map(str, unknown[:_NAMED_ROWS])) + (" …" if len(unknown) > _NAMED_ROWS else "")
        first = values[unknown[0]]
        raise InputError(
            got=f"{len(unknown):,} labels in {where} that are no class of the model, first {first!r}: rows, counted from 0, {rows}",
            expected=f"one of {', '.join(names)}",
            do="fix them, or name another --label-column; --label-column none if the file has no labels",
        )
    return np.array(numbers, np.int64)


def _require_separable(classifier: Classifier, separator: str) -> None:
    """Raise InputError if a class of a multi-label model has the separator of labels in its name."""
    if classifier.task == "multi-label" and (clash := [name for name in classifier.label_names if separator in name]):
        raise InputError(
            got=f"a class {clash[0]!r}, which contains the label separator {separator!r}",
            expected="a separator that no class contains",
            do="give another --label-separator",
        )


def write_answers(path: Path, ids: Sequence[str], logits_NK: torch.Tensor, classifier: Classifier, *, separator: str) -> None:
    """Write one line per text: id, label, and the probability of each class with seven digits; several labels with the separator between
    them. Of a regression the label is the number. A failed write leaves no file."""
    rules, names = rules_of(classifier.task), classifier.label_names
    with whole_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([ID_COLUMN, LABEL_COLUMN, *([] if classifier.task == "regression" else class_columns(names))])
        for start in range(0, len(ids), _ROWS_AT_ONCE):
            logits_BK = logits_NK[start : start + _ROWS_AT_ONCE].numpy()
            answers = rules.answers(logits_BK, classifier.thresholds).tolist()
            for id_, answer, row_K in zip(ids[start : start + _ROWS_AT_ONCE], answers, rules.outputs(logits_BK).tolist(), strict=False):
                match classifier.task:
                    case "single-label":
                        label = names[answer]
                    case "multi-label":
                        label = separator.join(name for name, holds in zip(names, answer, strict=True) if holds)
                    case "regression":
                        writer.writerow([id_, np.float32(answer)])
                        continue
                writer.writerow([id_, label, *(f"{probability:.7g}" for probability in row_K)])


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


def _scores(classifier: Classifier, targets_N: NDArray[Any], logits_NK: torch.Tensor) -> dict[str, float | None]:
    return rounded(rules_of(classifier.task).scores(targets_N, logits_NK.numpy(), classifier.thresholds))
