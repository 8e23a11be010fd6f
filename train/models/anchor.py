"""The anchor of a student: its own earlier version, near to whose answers it is held, so that an update changes fewer of them (Jiang et al.
2022, *Churn reduction via distillation*, arXiv 2106.02654).

Shapes: N texts, K logits of each.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lugpi_core.command_line import say
from lugpi_core.corpora.corpus import SPLITS, Corpus
from lugpi_core.errors import InputError
from lugpi_core.files import make_folder, read_json, whole_file
from lugpi_core.fingerprint import digest, hash_model_folder
from lugpi_core.runtime.device import Compute
from train.data.teacher_outputs import BOUND, content_hash
from train.data.token_ids import texts_of
from train.learning.predict import PREDICTION_BATCH
from train.learning.task_rules import rules_of
from train.models.classifier import load_classifier, predicted_logits
from train.models.model_folder import model_at, require_finished
from train.models.predictions import THRESHOLDS
from train.options.training import ANCHORS

_LOGITS = "logits"


@dataclass(frozen=True, kw_only=True)
class Anchor:
    """A finished baseline or student, and the weight of its answers.

    Attributes:
        folder: of the model.
        metrics: its ``metrics.json``.
        order: which of its outputs is that of each class of the corpus.
        weight: λ, its share of the loss.
    """

    folder: Path
    metrics: Mapping[str, Any]
    order: tuple[int, ...]
    weight: float

    @cached_property
    def model(self) -> str:
        """Hash of the files that decide its answers."""
        return hash_model_folder(self.folder)

    def logits(self, corpora: Sequence[Corpus], run: Path, compute: Compute) -> torch.Tensor:
        """Return its logits for the texts of some corpora after each other, float32 [N, K], by the classes of the student; computed in
        float32 once, and kept in the folder ``anchors`` of the run.

        Raises:
            InputError: as ``load_classifier``; or they are not finite.
        """
        decided = digest([self.model, list(self.order), [[corpus.fingerprint(), corpus.separator] for corpus in corpora]])
        path = run / ANCHORS / f"{decided}.safetensors"
        if (kept := _read(path)) is not None:
            return kept
        say(f"the anchor {self.folder.name} reads {sum(len(corpus.examples) for corpus in corpora):,} texts")
        classifier = load_classifier(self.folder, flag="--anchor")
        parts: list[torch.Tensor] = []
        for corpus in corpora:
            texts, pairs = texts_of(classifier.text_model, corpus)
            precise = replace(compute, dtype="float32")
            parts.append(predicted_logits(classifier, texts, precise, batch_size=PREDICTION_BATCH, pairs=pairs))
        logits_NK = torch.cat(parts)[:, list(self.order)].contiguous()
        if not bool(logits_NK.isfinite().all()):
            raise InputError(got=f"logits of {self.folder} that are not finite", expected="numbers", do="give another --anchor")
        _write(path, logits_NK)
        return logits_NK

    def record(self, corpus: Corpus, logits_NK: torch.Tensor, new_NK: torch.Tensor, thresholds: Sequence[float] | None) -> dict[str, Any]:
        """Return the anchor and, by split, the churn: the share of the texts that a model answers otherwise; of a regression the mean
        absolute difference of the numbers.

        Args:
            corpus: of the student.
            logits_NK: of the anchor for its examples.
            new_NK: of the student.
            thresholds: of the student, if it is a multi-label one.
        """
        rules, theirs = rules_of(corpus.task), self.metrics.get(THRESHOLDS)
        old = rules.answers(logits_NK.numpy(), None if theirs is None else [theirs[number] for number in self.order])
        new = rules.answers(new_NK.numpy(), thresholds)
        if corpus.task == "regression":
            name, differ_N = "difference", np.abs(old - new)
        else:
            name, differ_N = "churn", (old != new).reshape(len(new), -1).any(axis=1)
        by_split = {split: round(float(differ_N[corpus.rows(split)].mean()), 6) for split in SPLITS}
        return {"model": str(self.folder), "hash": self.model, "weight": self.weight, name: by_split}


def find_anchor(place: Path, corpus: Corpus, weight: float) -> Anchor:
    """Return an anchor for a corpus.

    Raises:
        InputError: there is no finished model, it reads images, or it is of another task or other classes, or of pairs of texts where the
            corpus has single ones, or the other way round.
    """
    folder = model_at(place, None)
    metrics = require_finished(folder, what="model", command="python -m train student with the settings of that earlier model")
    if metrics["command"] not in ("baseline", "student"):
        raise InputError(
            got=f"--anchor {place}, a model of python -m train {metrics['command']}",
            expected="a student or a baseline, which reads text alone",
            do="name the earlier student, whose answers should stay",
        )
    theirs, ours = (metrics.get("task", "single-label"), bool(metrics.get("pairs", False))), (corpus.task, corpus.has_pairs)
    if theirs != ours:
        kinds = [f"a {task} model of {'pairs of texts' if has_pairs else 'single texts'}" for task, has_pairs in (theirs, ours)]
        raise InputError(got=f"--anchor {place}, {kinds[0]}", expected=kinds[1], do="leave it out, or name a model of this task")
    return Anchor(folder=folder, metrics=metrics, order=_order(place, folder, corpus), weight=weight)


def _order(place: Path, folder: Path, corpus: Corpus) -> tuple[int, ...]:
    """Return which output of the anchor is that of each class; of a regression the only one, whatever it is called."""
    if corpus.task == "regression":
        return (0,)
    id2label = read_json(folder / "config.json")["id2label"]
    names = [str(id2label[str(number)]) for number in range(len(id2label))]
    if sorted(names) != sorted(corpus.label_names):
        unlike = sorted(set(names) ^ set(corpus.label_names))
        raise InputError(
            got=f"--anchor {place} with other classes than {corpus.name}: only one of them has {', '.join(unlike[:5])}",
            expected="the same classes, in any order",
            do="leave it out, or name a model of these classes",
        )
    return tuple(names.index(name) for name in corpus.label_names)


def _write(path: Path, logits_NK: torch.Tensor) -> None:
    from safetensors.torch import save_file

    make_folder(path.parent)
    with whole_file(path) as partial:
        save_file({_LOGITS: logits_NK}, partial, metadata={BOUND: json.dumps({"xxh3": content_hash(logits_NK)})})


def _read(path: Path) -> torch.Tensor | None:
    """Return what was kept; None if there is nothing, or it is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            logits_NK: torch.Tensor = file.get_tensor(_LOGITS)
            bound = json.loads((file.metadata() or {})[BOUND])
            return logits_NK if bound["xxh3"] == content_hash(logits_NK) else None
    except (OSError, SafetensorError, KeyError, json.JSONDecodeError):
        return None
