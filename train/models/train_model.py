"""Train one model from its plan to its folder: check the folder, load, fit, predict, write."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lugpi_core.command_line import say
from lugpi_core.corpora.options import Task
from lugpi_core.errors import InputError
from lugpi_core.fingerprint import digest
from lugpi_core.runtime.meters import StageTimes, peak_memory_bytes, provenance
from train.data.teacher_outputs import find_teacher_outputs, outputs_path, write_teacher_outputs
from train.data.training_data import TrainingData
from train.file_names import PREDICTIONS, WEIGHTS
from train.learning.checkpoint import load_weights, save_weights
from train.learning.compile import encoder_of
from train.learning.distributed import Processes
from train.learning.loop import best_epoch, fit
from train.learning.networks import Output, Student, TextClassifier, last_linear, padding_is_read
from train.learning.predict import predict
from train.learning.task_rules import METRIC_NAMES, Metric, in_words, plain_number, rules_of
from train.models.folds import FoldOutputs, crossed, finished_without_folds, fold_outputs, require_texts
from train.models.hub_export import checked_rows, export_classifier, rehearse, require_same_answers
from train.models.loading import head_history, load_model, training_of_plan
from train.models.model_folder import exclusive, finish, finished_metrics, metrics_of
from train.models.plan import ModelPlan
from train.models.predictions import THRESHOLDS, chosen_thresholds, scores_by_split, sharpness_on, write_predictions


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A finished model.

    Attributes:
        folder: with its weights, predictions and metrics; of a baseline or student, a plain Hugging Face folder.
        metrics: its ``metrics.json``.
        already_done: whether nothing had to be done.
    """

    folder: Path
    metrics: Mapping[str, Any]
    already_done: bool

    @property
    def command(self) -> str:
        """baseline, images, teacher or student."""
        return str(self.metrics["command"])

    @property
    def task(self) -> Task:
        """single-label, multi-label or regression."""
        task: Task = self.metrics.get("task", "single-label")
        return task

    @property
    def metric(self) -> Metric:
        """The primary metric of its task, which decides the best epoch: accuracy, macro_f1 or spearman."""
        return rules_of(self.task).metrics[0]

    @property
    def score(self) -> Mapping[str, float | None]:
        """The primary metric by split: train, validation and test; None where it is undefined."""
        return self.scores[self.metric]

    @property
    def scores(self) -> Mapping[Metric, Mapping[str, float | None]]:
        """Every metric of its task by split; of a regression spearman, pearson and mse."""
        return {metric: self.metrics[metric] for metric in rules_of(self.task).metrics}

    @property
    def accuracy(self) -> Mapping[str, float]:
        """Accuracy by split. Raises InputError for another task than single-label."""
        return self._metric("accuracy")

    @property
    def macro_f1(self) -> Mapping[str, float]:
        """Macro-averaged F1 by split. Raises InputError for a regression."""
        return self._metric("macro_f1")

    @property
    def thresholds(self) -> tuple[float, ...] | None:
        """Of a multi-label model, the probability from which on each class is an answer; None for other tasks."""
        return tuple(self.metrics[THRESHOLDS]) if THRESHOLDS in self.metrics else None

    @property
    def history(self) -> list[dict[str, Any]]:
        """One record per epoch: loss, validation accuracy, padding, seconds. The head's own epochs before those (``lp-ft``) are in
        ``metrics["head_history"]``."""
        history: list[dict[str, Any]] = self.metrics["history"]
        return history

    def _metric(self, name: Metric) -> Mapping[str, float]:
        if name not in self.scores:
            known = ", ".join(self.scores)
            raise InputError(got=f"{name} of {self.folder}, a {self.task} model", expected=f"one of {known}", do="read score or scores")
        metric: Mapping[str, float] = self.metrics[name]
        return metric

    def __repr__(self) -> str:
        scores = ", ".join(f"{split} undefined" if value is None else f"{split} {value:.3f}" for split, value in self.score.items())
        return f"TrainedModel({str(self.folder)!r}, {METRIC_NAMES[self.metric]} {scores})"

    def to_json(self) -> dict[str, Any]:
        """Return the metrics without the histories, as the command prints them."""
        shown = {name: value for name, value in self.metrics.items() if name not in ("history", "head_history")}
        return shown | {"already_done": self.already_done}


def train_model(plan: ModelPlan, processes: Processes) -> TrainedModel:
    """Train the model of a plan, resume its training, or confirm that it is finished.

    Raises:
        InputError: the folder contains a model with other settings, or another command is training it; or as ``require_negatives``,
            ``require_texts`` and ``fit_model`` do.
        Stopped: a signal asked for it; a checkpoint is written.
    """
    plan.require_negatives(processes.count)
    require_texts(plan)
    with ExitStack() as lock:
        with processes.first_before_others():
            if processes.is_first:
                lock.enter_context(exclusive(plan.folder.parent, plan.folder.name))
            if plan.kind.notice:
                say(f"note: {plan.kind.notice}")
            metrics = finished_metrics(plan.folder, plan.fingerprint())
        do = "give all of them the same command, files and versions"
        processes.require_same("other texts, text model, tokens or settings", digest(plan.fingerprint()), do=do)
        model = fit_model(plan, processes) if metrics is None else confirm_model(plan, metrics, processes)
        processes.wait()
    return model


def confirm_model(plan: ModelPlan, metrics: Mapping[str, Any], processes: Processes, *, any_outputs_dtype: bool = False) -> TrainedModel:
    """Return the finished model of a plan. A teacher's outputs are rewritten if they are missing or damaged or, unless any precision will
    do, stored in another one."""
    if plan.kind.command != "teacher" or _has_outputs(plan, any_dtype=any_outputs_dtype):
        say(f"already done: {plan.folder}")
        return TrainedModel(folder=plan.folder, metrics=metrics, already_done=True)
    with _enough_memory(plan):
        parts = fold_outputs(plan, processes)
        model, data = load_model(plan, processes)
        load_weights(plan.folder / WEIGHTS, model)
        output = predict(model, data, range(len(plan.kind.corpus.examples)), plan.compute, processes, precise=True)
        output = crossed(output, parts, plan.kind.corpus.rows("validation"))
    if processes.is_first:
        _write_teacher_outputs(plan, output, data)
    return TrainedModel(folder=plan.folder, metrics=metrics, already_done=False)


def _has_outputs(plan: ModelPlan, *, any_dtype: bool) -> bool:
    outputs = find_teacher_outputs(outputs_path(plan.folder), corpus_fingerprint=plan.kind.corpus.fingerprint(), with_images=True)
    return outputs is not None and (any_dtype or outputs.embeddings.dtype == getattr(torch, plan.kind.outputs_dtype))


def fit_model(plan: ModelPlan, processes: Processes) -> TrainedModel:
    """Train the model of a plan, or resume from its checkpoint, and write its folder. The caller holds the model's lock.

    Raises:
        InputError: a loss or a weight is not finite, every checkpoint is damaged, or the device has too little memory.
        Stopped: a signal asked for it; a checkpoint is written.
    """
    kind, times = plan.kind, StageTimes(plan.compute.device)
    with _enough_memory(plan):
        with times.stage("load"):
            model, data = load_model(plan, processes)
            if processes.is_first and plan.keeps_weights and (export := _export_of(plan)) not in plan.shared.rehearsed:
                rehearse(plan.folder, model, plan.text_model, kind.corpus)
                plan.shared.rehearsed.add(export)
        several = f", {processes.count} processes" if processes.count > 1 else ""
        say(
            f"{kind.command} of {kind.corpus.name} on {plan.compute}{several}, attention {_attention(model)}, {plan.optimizer}, "
            f"text model {plan.text_model.name}"
        )
        parts: list[FoldOutputs] = []
        if kind.folds is not None:
            del model, data  # the teachers of the folds take their place
            with times.stage("folds"):
                parts = fold_outputs(plan, processes)
            with times.stage("load"):
                model, data = load_model(plan, processes)
        learnt_from, histories = _learn(plan, model, data, times, processes)
        with times.stage("predict"):
            output = predict(model, data, range(len(kind.corpus.examples)), plan.compute, processes, precise=True)
    seen = sharpness_on(kind.corpus, output.logits, plan.learnt_rows) if parts else {}
    output = crossed(output, parts, kind.corpus.rows("validation"))
    metrics = _metrics(plan, model, output, histories["history"]) | histories
    metrics["compute"] = _compute_record(plan, model, learnt_from, processes)
    if parts:
        metrics["folds"] = {"count": len(parts), "seed": metrics["seed"], "each": [part.record for part in parts], "seen": seen}
    if kind.anchor is not None:
        anchor_NK = kind.anchor.logits(plan.corpora, plan.run_dir, plan.compute)[: len(kind.corpus.examples)]
        metrics["anchor"] = kind.anchor.record(kind.corpus, anchor_NK, output.logits, metrics.get(THRESHOLDS))
    if processes.is_first:
        write_predictions(plan.folder / PREDICTIONS, kind.corpus, output.logits)
        if plan.keeps_weights or kind.command == "teacher":
            _write_model(plan, model, output, metrics)
        if kind.command == "teacher":
            _write_teacher_outputs(plan, output, data)
        metrics |= {"times": times.record(), "peak_memory": peak_memory_bytes()}
        finish(plan.folder, metrics)
    trained = TrainedModel(folder=plan.folder, metrics=metrics, already_done=False)
    scores = ", ".join(f"{split} {in_words(trained.metric, value)}" for split, value in trained.score.items())
    say(f"done: {plan.folder}; {METRIC_NAMES[trained.metric]} {scores}{_churn_in_words(plan, metrics)}")
    return trained


def _churn_in_words(plan: ModelPlan, metrics: Mapping[str, Any]) -> str:
    """Return how far a model's answers are from its anchor's; nothing without one."""
    if plan.kind.anchor is None:
        return ""
    what = "churn" if "churn" in metrics["anchor"] else "difference"
    by_split = ", ".join(f"{split} {plain_number(value)}" for split, value in metrics["anchor"][what].items())
    return f"; {what} against {plan.kind.anchor.folder.name} {by_split}"


def _write_model(plan: ModelPlan, model: nn.Module, output: Output, metrics: Mapping[str, Any]) -> None:
    """Write the weights; of a baseline or student a plain Hugging Face folder, which is read back."""
    corpus, classifier = plan.kind.corpus, model.classifier if isinstance(model, Student) else model
    if isinstance(classifier, TextClassifier):
        export_classifier(plan.folder, classifier.model, plan.text_model, corpus, metrics)
        logits = output.logits[checked_rows(corpus)]
        require_same_answers(plan.folder, plan.text_model, corpus, logits, alone=padding_is_read(model))
    else:
        save_weights(plan.folder / WEIGHTS, model)


def _learn(
    plan: ModelPlan, model: nn.Module, data: TrainingData, times: StageTimes, processes: Processes
) -> tuple[TrainingData, dict[str, Any]]:
    """Train the model, or take the weights of a finished one that differs in its folds alone; return what it read and its histories, by
    their names in ``metrics.json``."""
    with processes.first_before_others():
        finished = finished_without_folds(plan)
    if finished is not None:
        say(f"the teacher on all texts is {finished.name}, which is finished already")
        load_weights(finished / WEIGHTS, model)
        metrics = metrics_of(finished)
        return data, {name: metrics[name] for name in ("history", "head_history") if name in metrics}
    with times.stage("load" if plan.trains_all else "prefix"):
        training = training_of_plan(plan, model, data, processes)
    with times.stage("fit"):
        history = fit(training)
    if plan.kind.corpus.task == "regression":
        data.unit.undo(last_linear(model))
    head = head_history(plan.folder)
    return training.data, {"history": history, **({"head_history": head} if head else {})}


def _export_of(plan: ModelPlan) -> tuple[object, ...]:
    """Return what decides whether a model can be exported and read back: nothing that differs between the seeds of a row."""
    kind, tokens = plan.kind, plan.kind.image_tokens
    width, layers = None if tokens is None else tokens.width, kind.fingerprint.get("layers")
    text_model = plan.text_model.weights_hash, plan.text_model.max_length
    return kind.command, *text_model, kind.corpus.fingerprint(), width, layers, plan.update, plan.frozen_layers


@contextmanager
def _enough_memory(plan: ModelPlan) -> Iterator[None]:
    """Raise InputError if the device runs out of memory in the block."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise InputError(
            got=f"too little memory on the device ({str(error)[:120]})",
            expected=f"room for {plan.optimization.batch_size} texts at once",
            do="give --gradient-accumulation-steps 2 or more, or a shorter --max-length; the last checkpoint is kept",
        ) from None


def _metrics(plan: ModelPlan, model: nn.Module, output: Output, history: list[dict[str, Any]]) -> dict[str, Any]:
    kind, corpus, text_model = plan.kind, plan.kind.corpus, plan.text_model
    licenses = [
        f"texts of {corpus.name}: {corpus.license}",
        f"text model {text_model.shown_name}: {text_model.license}",
        *kind.licenses,
    ]
    thresholds = chosen_thresholds(corpus, output.logits)
    task = {} if corpus.task == "single-label" else {"task": corpus.task, "metric": rules_of(corpus.task).metrics[0]}
    return {
        "command": kind.command,
        "dataset": corpus.name,
        "model": str(plan.folder),
        **task,
        **scores_by_split(corpus, output.logits, thresholds, unread=plan.unread_rows),
        **({} if thresholds is None else {THRESHOLDS: list(thresholds)}),
        **({"pairs": True} if corpus.has_pairs else {}),
        "examples": corpus.counts() | ({} if kind.extra is None else {"unlabelled": len(kind.extra.examples)}),
        **({"without_image": int((~kind.image_tokens.has_image).sum())} if kind.image_tokens and kind.image_tokens.is_subset else {}),
        "teachers": list(kind.teacher_records),
        **({} if kind.learnt_shares is None else {"learnt_shares": kind.learnt_shares}),
        **({} if plan.terms is None else {"terms": plan.terms}),
        **({} if plan.shots is None else {"shots": plan.shots}),
        "seed": plan.optimization.seed,
        "best_epoch": best_epoch(history),
        "notice": kind.notice,
        **({"padding_is_read": True} if padding_is_read(model) else {}),
        "licenses": list(dict.fromkeys(licenses)),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "config": dict(plan.config),
        "provenance": provenance(),
    }


def _compute_record(plan: ModelPlan, model: nn.Module, data: TrainingData, processes: Processes) -> dict[str, Any]:
    return {
        **plan.compute.record(),
        "attention": _attention(model),
        "optimizer": plan.optimizer,
        "processes": processes.count,
        **({} if data.images is None else {"tokens_on": data.images.source.place}),
        **({} if data.prefix is None else {"prefix_on": data.prefix.place}),
    }


def _attention(model: nn.Module) -> str:
    """Return the attention kernels of the Hugging Face part of a model; the fusion block uses PyTorch's own."""
    encoder = encoder_of(model)
    return "sdpa" if encoder is None else str(encoder.config._attn_implementation)


def _write_teacher_outputs(plan: ModelPlan, output: Output, data: TrainingData) -> None:
    write_teacher_outputs(
        outputs_path(plan.folder),
        output.logits,
        output.embeddings.to(getattr(torch, plan.kind.outputs_dtype)),
        images_NI=data.image_vectors(),
        corpus_fingerprint=plan.kind.corpus.fingerprint(),
        made_from={"folds": plan.fingerprint().get("folds")},
    )
