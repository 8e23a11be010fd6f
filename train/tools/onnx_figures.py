"""The int8 form of an exported classifier, and how it compares with float32 on the validation split.

Shapes: N texts, K classes.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lugpi_core.command_line import say
from lugpi_core.corpora.corpus import Corpus
from lugpi_core.corpora.load import load_corpus
from lugpi_core.corpora.options import CorpusSettings
from lugpi_core.errors import InputError, number_of
from lugpi_core.files import read_json, whole_file
from train.data.text_model import TextModel
from train.data.token_ids import TokenIds, Tokens, texts_of, token_ids, tokenize
from train.file_names import METRICS
from train.learning.task_rules import METRIC_NAMES, rules_of
from train.models.classifier import Classifier
from train.models.model_folder import training_of
from train.models.predictions import rounded
from train.tools.onnx_int8 import write_int8
from train.tools.onnx_session import OnnxSession

# How far padding may move a logit of the int8 file: beyond that its answers would depend on the texts next to a text.
LARGEST_PADDING = 1e-2
_BATCH = 32
# Texts that are read alone and in a batch.
_MOST_ALONE = 256
# Parts into which the texts are cut for those that are read beside one as long as the model reads.
_BESIDE_LONGEST = 7
_MOST_DEMO = 200


def export_int8(folder: Path, classifier: Classifier, float32: Path, written: Path) -> dict[str, Any]:
    """Write the int8 form of an ONNX file and compare both on the texts of the validation split.

    Returns:
        path, bytes; ``texts`` they were compared on; ``agreement``, the share of texts with equal answers (of a regression: Spearman's
        correlation of the numbers); the task's scores of both; and ``padding``: the largest change of a logit between a text alone and in
        a padded batch, of both, also beside a text as long as the model reads.

    Raises:
        InputError: padding moves a logit of the int8 file by more than 0.01, and more than twice as far as in float32; it is not written.
    """
    corpus, split = _texts_of(folder, classifier)
    rows = np.array(corpus.rows(split)[: None if split == "validation" else _MOST_DEMO], np.int64)
    with tempfile.TemporaryDirectory() as temporary:
        tokens = token_ids(classifier.text_model, corpus, Path(temporary)).followed_by(_longest(classifier.text_model, corpus))
    ids = TokenIds.of(classifier.text_model, tokens, torch.device("cpu"))
    with whole_file(written) as partial:
        write_int8(float32, partial, classes=len(classifier.label_names))
        sessions = {"float32": OnnxSession(float32), "int8": OnnxSession(partial)}
        batches = [rows[start : start + _BATCH] for start in range(0, len(rows), _BATCH)]
        alone = [rows[n : n + 1] for n in range(min(len(rows), _MOST_ALONE))]
        logits = {name: session.logits_of(classifier.text_model, ids, batches) for name, session in sessions.items()}
        some = [rows[n] for n in sorted({n * (len(rows) - 1) // _BESIDE_LONGEST for n in range(_BESIDE_LONGEST + 1)})]
        padding = {
            name: _largest(
                torch.cat(
                    [
                        session.logits_of(classifier.text_model, ids, alone) - logits[name][: len(alone)],
                        _moved_by_longest(session, classifier.text_model, ids, some),
                    ]
                )
            )
            for name, session in sessions.items()
        }
        if padding["int8"] > max(LARGEST_PADDING, 2 * padding["float32"]):
            raise InputError(
                got=f"int8 logits that padding moves by {padding['int8']:.2g} (float32: {padding['float32']:.2g})",
                expected=f"at most {LARGEST_PADDING:g}",
                do="use the float32 file, which is written",
            )
    if padding["float32"] > LARGEST_PADDING:
        say(
            f"warning: padding moves a logit of this model by {padding['float32']:.2g}, in float32 too: read texts of equal length together"
        )
    figures = {
        "path": str(written),
        "bytes": written.stat().st_size,
        "texts": len(rows),
        "split": split if split == "validation" else "the demo's texts",
        "agreement": _agreement(classifier, logits["float32"], logits["int8"]),
        "max_logit_difference": _largest(logits["int8"] - logits["float32"]),
        "padding": padding,
    }
    if split == "validation":
        rules, targets = rules_of(classifier.task), corpus.targets()[rows]
        scores = {name: rounded(rules.scores(targets, values.numpy(), classifier.thresholds)) for name, values in logits.items()}
        figures["scores"] = scores
        metric = rules.metrics[0]
        say(f"validation {METRIC_NAMES[metric]}: float32 {scores['float32'][metric]}, int8 {scores['int8'][metric]}")
    if classifier.task == "regression":
        agree = f"its numbers and float32's have Spearman {figures['agreement']:.4f} on {number_of(len(rows), 'text{s}')}"
    else:
        share = "all" if figures["agreement"] == 1 else f"{figures['agreement']:.2%}"
        agree = f"answers agree with float32 for {share} of {number_of(len(rows), 'text{s}')}"
    say(f"done: {written}; {agree}; padding moves a logit by {padding['int8']:.2g} at most (float32 {padding['float32']:.2g})")
    return figures


def _longest(text_model: TextModel, corpus: Corpus) -> Tokens:
    """Return the tokens of one text as long as the model reads, made of the corpus's."""
    texts, pairs = texts_of(text_model, corpus)
    letters = 16 * text_model.max_length
    return tokenize(text_model, [" ".join(texts)[:letters]], None if pairs is None else [" ".join(pairs)[:letters]])


def _moved_by_longest(session: OnnxSession, text_model: TextModel, ids: TokenIds, rows: Sequence[int]) -> torch.Tensor:
    """Return how far each text's logits move beside the last text of all, which is the longest: float32 [R, K]."""
    last = len(ids.lengths_N) - 1
    alone_RK = session.logits_of(text_model, ids, [np.array([row], np.int64) for row in rows])
    beside_RK = session.logits_of(text_model, ids, [np.array([row, last], np.int64) for row in rows])[::2]
    return beside_RK - alone_RK


def _largest(differences_NK: torch.Tensor) -> float:
    return float(f"{float(differences_NK.abs().max()):.3g}")


def _agreement(classifier: Classifier, float32_NK: torch.Tensor, int8_NK: torch.Tensor) -> float:
    rules = rules_of(classifier.task)
    if classifier.task == "regression":
        spearman = rules.scores(float32_NK[:, 0].numpy(), int8_NK.numpy())["spearman"]
        return 1.0 if spearman is None else round(spearman, 6)  # undefined where all numbers are equal
    one, other = (rules.answers(logits_NK.numpy(), classifier.thresholds) for logits_NK in (float32_NK, int8_NK))
    equal = one == other
    return round(float((equal.all(axis=1) if equal.ndim > 1 else equal).mean()), 6)


def _texts_of(folder: Path, classifier: Classifier) -> tuple[Corpus, str]:
    """Return the corpus that the classifier was trained on, and its validation split; the demo's train texts if it cannot be read."""
    try:
        return _training_corpus(folder), "validation"
    except InputError as error:
        say(f"note: compared on texts of the demo, without scores: {error}")
        return load_corpus("demo"), "train"


def _training_corpus(folder: Path) -> Corpus:
    """Return the corpus that a model of lugpi was trained on, read again by the flags in its record.

    Raises:
        InputError: there is no record, the corpus was in memory or is no longer there, or it has changed.
    """
    config = read_json(folder / METRICS).get("config", {})
    if "text_column" not in config:
        raise InputError(got=f"no corpus flags in {folder / METRICS}", expected="those of a command", do="train it by a command")
    kinds = {field.name: str(field.type) for field in fields(CorpusSettings)}
    flags: dict[str, Any] = {name: value for name, value in config.items() if name in kinds}
    flags |= {name: Path(value) for name, value in flags.items() if "Path" in kinds[name] and value is not None}
    corpus = load_corpus(config["dataset"], CorpusSettings(**flags))
    if training_of(folder)["corpus"] != corpus.fingerprint():
        raise InputError(got=f"{config['dataset']}, which has changed since the training", expected="the same texts", do="restore them")
    return corpus
