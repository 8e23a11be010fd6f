"""Cross-fitting: a teacher's outputs for each train text come from a teacher of the same settings that was trained without it.

A teacher that was trained on a text is right on it, and its soft label there says what the label says. K teachers are each trained without
one fold of the train texts, and one on all of them for every other text (Dao, Kamath, Syrgkanis & Mackey 2021, *Knowledge distillation as
semiparametric inference*, arXiv 2104.09732). The outputs of a fold's teacher are kept in the model's folder, its weights are not.

Shapes: N examples of the corpus, H of a fold, V of the validation split, K classes, D embedding width.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lugpi_core.amounts import duration
from lugpi_core.command_line import say
from lugpi_core.corpora.folds import fold_of_each, require_texts_for_folds
from lugpi_core.errors import number_of
from lugpi_core.files import make_folder, whole_file
from lugpi_core.fingerprint import digest
from train.data.teacher_outputs import BOUND, content_hash
from train.file_names import FOLDS, OUTPUTS
from train.learning.checkpoint import remove_checkpoints
from train.learning.compile import forget_last_model
from train.learning.distributed import Processes
from train.learning.loop import best_epoch, fit, validation_score
from train.learning.networks import Output, last_linear
from train.learning.predict import predict
from train.learning.procrustes import align
from train.models.loading import head_history, load_model, training_of_plan
from train.models.model_folder import find_finished
from train.models.plan import ModelPlan


@dataclass(frozen=True, kw_only=True)
class FoldOutputs:
    """What the teacher of one fold computed.

    Attributes:
        rows: of the fold, ascending.
        logits: float32 [H, K], for these rows.
        embeddings: float32 [H, D].
        validation: float32 [V, D], its embeddings of the validation texts.
        record: how many texts were held out, its best epoch, that epoch's validation score, and the seconds of its epochs, those of
            the head alone included.
    """

    rows: tuple[int, ...]
    logits: torch.Tensor
    embeddings: torch.Tensor
    validation: torch.Tensor
    record: dict[str, Any]


def require_texts(plan: ModelPlan) -> None:
    """Raise InputError if a plan has more folds than different texts of a class."""
    if plan.kind.folds is not None:
        require_texts_for_folds(plan.kind.corpus, plan.kind.folds, plan.learnt_rows)


def fold_outputs(plan: ModelPlan, processes: Processes) -> list[FoldOutputs]:
    """Return the outputs of the teacher of each fold of a plan, trained where they are missing; a training that was interrupted is resumed.
    None of a plan without folds. The caller holds the model's lock.

    Raises:
        InputError: as ``fold_of_each``, ``load_model`` and ``fit``.
        Stopped: a signal asked for it; finished folds are kept, and a checkpoint of the one in hand is written.
    """
    if plan.kind.folds is None:
        return []
    count = plan.kind.folds
    # A shadow's half of a class may have fewer texts than there are folds.
    has_each_class = not plan.left_out
    fold_N = fold_of_each(plan.kind.corpus, count, seed=plan.texts_seed, rows=plan.learnt_rows, has_each_class=has_each_class)
    plans = [
        replace(
            plan,
            folder=plan.folder / FOLDS / f"fold-{fold + 1}",
            left_out=tuple(sorted({*plan.left_out, *np.flatnonzero(fold_N == fold).tolist()})),
        )
        for fold in range(count)
    ]
    name, parts = plan.folder.name, [_read(of_fold) for of_fold in plans]
    texts = number_of(len(plan.learnt_rows), "train text{s}")
    done = f"; {count - parts.count(None)} of the folds are done" if parts.count(None) < count else ""
    say(f"{name}: {texts} in {count} folds, {count + 1} trainings, {count} times the work of one{done}")
    for fold, of_fold in enumerate(plans):
        if parts[fold] is None:
            parts[fold] = trained = _train(of_fold, processes)
            seconds, left = trained.record["seconds"], parts.count(None)
            then = f"; the other {left} in about {duration(left * seconds)}" if left else ""
            say(f"{name}: fold {fold + 1} of {count} in {duration(seconds)}{then}")
    return [part for part in parts if part is not None]


def crossed(output: Output, parts: Sequence[FoldOutputs], validation: Sequence[int]) -> Output:
    """Return a teacher's outputs for all examples, those of each fold replaced by what its own teacher computed. Its embeddings are brought
    into the space of the teacher on all by a rotation that fits the validation texts.

    Args:
        output: of the teacher on all: logits [N, K] and embeddings [N, D].
        parts: of each fold.
        validation: rows of the validation split.
    """
    logits, embeddings = output.logits.clone(), output.embeddings.clone()
    for part in parts:
        rows = torch.tensor(part.rows)
        logits[rows] = part.logits
        embeddings[rows] = align(part.embeddings, part.validation, output.embeddings[torch.as_tensor(validation)])
    return Output(logits, embeddings)


def finished_without_folds(plan: ModelPlan) -> Path | None:
    """Return the finished teacher on all texts of the same settings in the run, which need not be trained again; None if there is none, or
    for a plan without folds."""
    if plan.kind.folds is None:
        return None
    return find_finished(plan.folder, replace(plan, kind=replace(plan.kind, folds=None)).fingerprint())


def _train(plan: ModelPlan, processes: Processes) -> FoldOutputs:
    """Train the teacher of one fold, and write what it computes for the fold and the validation texts."""
    if processes.is_first:
        make_folder(plan.folder)
    processes.wait()
    forget_last_model(plan.placement.compile, device=plan.compute.device)
    model, data = load_model(plan, processes)
    history = fit(training_of_plan(plan, model, data, processes))
    if plan.kind.corpus.task == "regression":
        data.unit.undo(last_linear(model))
    held_out = len(plan.left_out)
    rows = [*plan.left_out, *plan.kind.corpus.rows("validation")]
    output = predict(model, data, rows, plan.compute, processes, precise=True)
    best = best_epoch(history)
    part = FoldOutputs(
        rows=plan.left_out,
        logits=output.logits[:held_out],
        embeddings=output.embeddings[:held_out],
        validation=output.embeddings[held_out:],
        record={
            "held_out": held_out,
            "epochs": len(history),
            "best_epoch": best,
            "validation": validation_score(history[best]),
            "seconds": round(sum(record["seconds"] for record in (*head_history(plan.folder), *history)), 3),
        },
    )
    if processes.is_first:
        _write(plan, part)
        remove_checkpoints(plan.folder)
    processes.wait()
    return part


def _decided_by(plan: ModelPlan) -> str:
    return digest([plan.fingerprint(), list(plan.left_out)])


def _write(plan: ModelPlan, part: FoldOutputs) -> None:
    from safetensors.torch import save_file

    tensors = {name: getattr(part, name).contiguous() for name in ("logits", "embeddings", "validation")}
    bound = {"plan": _decided_by(plan), "xxh3": content_hash(*tensors.values()), "record": part.record}
    with whole_file(plan.folder / OUTPUTS) as partial:
        save_file(tensors, partial, metadata={BOUND: json.dumps(bound)})


def _read(plan: ModelPlan) -> FoldOutputs | None:
    """Return what was written of a fold; None if there is nothing, or what there is, is damaged or another plan's."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(plan.folder / OUTPUTS, framework="pt") as file:
            bound = json.loads((file.metadata() or {})[BOUND])
            tensors = {name: file.get_tensor(name) for name in ("logits", "embeddings", "validation")}
            is_whole = (bound["plan"], bound["xxh3"]) == (_decided_by(plan), content_hash(*tensors.values()))
            return FoldOutputs(rows=plan.left_out, record=bound["record"], **tensors) if is_whole else None
    except (OSError, SafetensorError, KeyError, json.JSONDecodeError):
        return None
