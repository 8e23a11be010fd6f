"""What a plan's model is trained with: the model, everything it reads, and its training."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial, reduce
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lugpi_core.command_line import say
from lugpi_core.corpora.corpus import UNLABELLED
from lugpi_core.files import make_folder, read_json, write_json
from lugpi_core.runtime.device import seed_everything
from train.data.image_tokens import place_tokens
from train.data.privileged import PrivilegedImages
from train.data.target_unit import TargetUnit, unit_of
from train.data.teacher_outputs import TeacherOutputs, standardized
from train.data.token_ids import TokenIds, Tokens
from train.data.training_data import TrainingData
from train.file_names import HEAD, HISTORY
from train.learning.checkpoint import has_checkpoint
from train.learning.classifier_head import require_readable
from train.learning.distributed import Processes
from train.learning.loop import Training, fit
from train.learning.networks import last_linear, padding_is_read
from train.models.plan import ModelPlan
from train.models.prefix import bytes_of_training, with_prefix
from train.models.teachers import privileged_images


def load_model(plan: ModelPlan, processes: Processes) -> tuple[nn.Module, TrainingData]:
    """Return the model, new weights included, and everything it reads, on the plan's device."""
    kind, device = plan.kind, torch.device(plan.compute.device)
    seed_everything(plan.optimization.seed)
    model = kind.build(plan.text_model).to(device)
    texts = None
    if kind.reads_text:
        with processes.first_before_others():
            tokens = reduce(Tokens.followed_by, [plan.shared.tokens(plan.text_model, corpus, plan.run_dir) for corpus in plan.corpora])
        texts = TokenIds.of(plan.text_model, tokens, device, padding_is_read=padding_is_read(model))
        require_readable(model, texts)
    targets, unit = _targets(plan, model)
    anchor = None
    if kind.anchor is not None:
        with processes.first_before_others():
            anchor = unit.learnt(kind.anchor.logits(plan.corpora, plan.run_dir, plan.compute)).to(device)
    data = TrainingData(
        device=device,
        labels=targets.to(device),
        texts=texts,
        images=_images(plan, model, device),
        teachers=tuple(_in_units(teacher, unit, plan.learnt_rows).to(device) for teacher in kind.teachers),
        task=kind.corpus.task,
        class_weights=None if plan.class_weights is None else torch.from_numpy(plan.class_weights).to(device),
        anchor=anchor,
        unit=unit,
    )
    return model, data


def _targets(plan: ModelPlan, model: nn.Module) -> tuple[torch.Tensor, TargetUnit]:
    """Return what the model learns for every example, followed by the unlabelled texts, and the unit of a regression's numbers."""
    corpus, extra = plan.kind.corpus, plan.kind.extra
    targets = torch.from_numpy(corpus.targets())
    unit = TargetUnit()
    if corpus.task == "regression":
        unit = unit_of(corpus.targets()[plan.learnt_rows], has_bias=last_linear(model).bias is not None)
        targets = unit.learnt(targets)
    unlabelled = UNLABELLED if corpus.task == "single-label" else torch.nan
    more = targets.new_full((0 if extra is None else len(extra.examples), *targets.shape[1:]), unlabelled)
    return torch.cat([targets, more]), unit


def _in_units(teacher: TeacherOutputs, unit: TargetUnit, learnt: Sequence[int]) -> TeacherOutputs:
    """Return a teacher's outputs as a student learns them: numbers in their unit, image vectors in that of the examples learnt."""
    images = None if teacher.images is None else standardized(teacher.images, learnt)
    return replace(teacher, logits=unit.learnt(teacher.logits), images=images)


def _images(plan: ModelPlan, model: nn.Module, device: torch.device) -> PrivilegedImages | None:
    tokens = plan.kind.image_tokens
    if tokens is None:
        return None
    needed_bytes = bytes_of_training(plan, model, more_positions=tokens.reader.spec.row_shape[0])
    place = partial(place_tokens, choice=plan.placement.tokens_on, device=device, training_bytes=needed_bytes)
    if scores := plan.clip_scores:
        scale = f" at its logit scale, {scores.logit_scale:.4g}" if plan.several_images == "weighted" else ""
        say(f"--several-images {plan.several_images}: by the CLIP scores of {scores.column}{scale}")
    seed, several = plan.optimization.seed, plan.several_images
    images = privileged_images(tokens, plan.kind.privileged, place, seed=seed, device=device, several_images=several)
    return images if images is None or plan.redraw is None else images.redrawn_every(plan.redraw)


def training_of_plan(plan: ModelPlan, model: nn.Module, data: TrainingData, processes: Processes) -> Training:
    """Return the training of a plan's model: on the train examples, but those left out, and the unlabelled texts. Hidden states of frozen
    layers are computed now, unless the run has them, and the first part of ``lp-ft`` is trained.

    Raises:
        InputError: as ``with_prefix`` and ``fit``.
        Stopped: a signal asked for it; a checkpoint is written, and states that are computed are kept.
    """
    if plan.update == "lp-ft":
        _fit_head(plan, model, data, processes)
    if plan.frozen_layers != 0:
        # After a head's training the encoder is compiled already; what is tried here would use up the few variants that PyTorch compiles.
        with torch.compiler.set_stance("force_eager"):
            data = with_prefix(plan, model, data, processes, count=plan.frozen_layers).data
    return _training(plan, model, data, processes)


def _fit_head(plan: ModelPlan, model: nn.Module, data: TrainingData, processes: Processes) -> None:
    """Train the head alone, the first part of ``lp-ft`` (Kumar et al. 2022, arXiv 2202.10054), in the folder ``head`` of the model; nothing
    is done if the second part has begun."""
    if has_checkpoint(plan.folder):
        return
    prefix = with_prefix(plan, model, data, processes, count=None)
    training = _training(plan, model, prefix.data, processes)
    folder = make_folder(plan.folder / HEAD)
    optimization = replace(plan.optimization, learning_rate=plan.optimization.head_learning_rate)
    history = fit(replace(training, folder=folder, optimization=optimization, rate_flag="--head-learning-rate"))
    if processes.is_first:
        write_json(folder / HISTORY, history)
    prefix.layers.release()


def head_history(folder: Path) -> list[dict[str, Any]]:
    """Return a record of each epoch in which the head of a model in ``folder`` was trained alone, before everything was."""
    path = folder / HEAD / HISTORY
    history: list[dict[str, Any]] = read_json(path) if path.is_file() else []
    return history


def _training(plan: ModelPlan, model: nn.Module, data: TrainingData, processes: Processes) -> Training:
    corpus = plan.kind.corpus
    return Training(
        model=model,
        data=data,
        learnt=[*plan.learnt_rows, *range(len(corpus.examples), len(data.labels))],
        validation=corpus.rows("validation"),
        loss=plan.kind.loss,
        optimization=plan.optimization,
        placement=plan.placement,
        compute=plan.compute,
        folder=plan.folder,
        processes=processes,
        config=plan.config,
    )
