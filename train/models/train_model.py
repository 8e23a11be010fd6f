"""The four things that can be trained, in one straight line: find, refuse or confirm, load, fit, score, write."""

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lugpi_core.command_line import resolved_flags, say
from lugpi_core.corpora.corpus import Corpus
from lugpi_core.errors import InputError
from lugpi_core.runtime.device import Compute, half_for_training, resolve_compute, seed_everything
from lugpi_core.runtime.libraries import prepare_libraries
from lugpi_core.runtime.meters import StageTimes, peak_memory_bytes, provenance
from train.data.image_tokens import place_tokens, training_bytes
from train.data.privileged import Pictures
from train.data.teacher_outputs import WEIGHTS, has_teacher_outputs, outputs_path, write_teacher_outputs
from train.data.text_model import TextModel
from train.data.token_ids import TokenIds, token_ids
from train.data.training_data import TrainingData
from train.evidence.rows import Terms
from train.learning.checkpoint import load_weights, save_weights
from train.learning.compile import encoder_of
from train.learning.distributed import Processes, joined
from train.learning.loop import Training, best_epoch, fit
from train.learning.networks import Output, Student, TextClassifier
from train.learning.optimizer import optimizer_on
from train.learning.predict import predict
from train.learning.progress import require_trackers
from train.models.hub_export import export_classifier
from train.models.inputs import Sources
from train.models.kinds import Recipe, recipe_of
from train.models.locks import alone
from train.models.model_folder import finish, finished_metrics
from train.models.predictions import PREDICTIONS, scores_by_split, write_predictions
from train.models.teachers import shown_pictures
from train.options.training import BaselineOptions, ImagesOptions, StudentOptions, TeacherOptions, TokensOptions, TrainOptions

# The flags that decide a model by themselves; corpus, text model, tokens, teachers and loss are compared by their content.
_DECIDING = (
    "epochs",
    "batch_size",
    "learning_rate",
    "weight_decay",
    "max_grad_norm",
    "gradient_accumulation_steps",
    "patience",
    "seed",
)


def baseline(options: BaselineOptions) -> dict[str, Any]:
    """Fine-tune the text model alone."""
    return _train(options, "baseline")


def images(options: ImagesOptions) -> dict[str, Any]:
    """Train the fusion head on image tokens alone."""
    return _train(options, "images")


def teacher(options: TeacherOptions) -> dict[str, Any]:
    """Train the multimodal teacher and write its outputs for every example."""
    name = "teacher" if options.privileged == "images" else f"teacher-{options.privileged}"
    return _train(options, name)


def student(options: StudentOptions) -> dict[str, Any]:
    """Distil a text-only student from teachers' cached outputs."""
    return _train(options, "student")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One model that is wanted: everything is found, nothing is loaded."""

    options: TrainOptions
    recipe: Recipe
    text_model: TextModel
    compute: Compute
    processes: Processes
    folder: Path
    terms: Terms | None = None  # a student's soft terms, where it is trained as a row of tables

    @property
    def optimizer(self) -> str:
        """The optimizer that ``--optimizer`` comes to here."""
        return optimizer_on(self.compute.device, self.options.optimizer)

    def fingerprint(self) -> dict[str, Any]:
        """Return all that decides the model."""
        return {
            "command": self.recipe.command,
            "flags": {name: getattr(self.options, name) for name in _DECIDING} | {"optimizer": self.optimizer},
            "max_length": self.text_model.max_length,
            "corpus": self.recipe.corpus.fingerprint(),
            "separator": self.recipe.corpus.separator,
            "text_model": self.text_model.weights_hash,
            "dtype": self.compute.dtype,
            **self.recipe.fingerprint,
        }


def _train(options: TrainOptions, name: str) -> dict[str, Any]:
    prepare_libraries()
    require_trackers(options.track)
    compute = resolve_compute(options.device, options.dtype, half=half_for_training())
    folder = options.run / (options.name or name)
    with joined(compute.device) as processes, ExitStack() as held:
        with processes.first_before_others():
            run = find_run(options, folder, Sources(), compute, processes)
            if processes.is_first:
                held.enter_context(alone(options.run, folder.name))
            if run.recipe.notice:
                say(f"note: {run.recipe.notice}")
            done = finished_metrics(run.folder, run.fingerprint())
        figures = trained(run) if done is None else confirmed(run, done)
        processes.wait()
    return figures


def find_run(options: TrainOptions, folder: Path, sources: Sources, compute: Compute, processes: Processes) -> Run:
    """Return the model that is wanted, its fingerprint known.

    Raises:
        InputError: what it is to be made from is not there, or not as it must be.
    """
    recipe = recipe_of(options, sources, compute)
    text_model = sources.text_model(options.text_model, options.max_length)
    return Run(options=options, recipe=recipe, text_model=text_model, compute=compute, processes=processes, folder=folder)


def confirmed(run: Run, done: dict[str, Any], *, any_precision: bool = False) -> dict[str, Any]:
    """Return the figures of a finished model, and say that it is; a teacher's outputs are written anew where they are gone or damaged, or
    wanted in another precision, unless any will do."""
    path, corpus = outputs_path(run.folder), run.recipe.corpus.fingerprint()
    dtype = None if any_precision else run.recipe.outputs_dtype
    if run.recipe.command != "teacher" or has_teacher_outputs(path, corpus_fingerprint=corpus, dtype=dtype):
        say(f"already done: {run.folder}")
        return _figures(done, already_done=True)
    training = load_training(run)
    load_weights(run.folder / WEIGHTS, training.model)
    _write_outputs(run, _predicted(run, training))
    return _figures(done, already_done=False)


def trained(run: Run) -> dict[str, Any]:
    """Train a model, or go on with it where there is a checkpoint; write its folder and return its figures.

    Raises:
        InputError: a loss or a weight is not finite, every checkpoint is damaged, or the device has too little memory.
        Stopped: a signal asked for it; a checkpoint is written.
    """
    try:
        return _trained(run)
    except torch.OutOfMemoryError as error:
        raise InputError(
            got=f"too little memory on the device ({str(error)[:120]})",
            expected=f"room for {run.options.batch_size} texts at once",
            do="give --gradient-accumulation-steps 2 or more, or a shorter --max-length; the last checkpoint is kept",
        ) from None


def _trained(run: Run) -> dict[str, Any]:
    times = StageTimes(run.compute.device)
    with times.stage("load"):
        training = load_training(run)
    attention = _attention(training.model)
    several = f", {run.processes.count} processes" if run.processes.count > 1 else ""
    say(
        f"{run.recipe.command} of {run.recipe.corpus.name} on {run.compute}{several}, attention {attention}, {run.optimizer}, "
        f"text model {run.text_model.name}"
    )
    with times.stage("fit"):
        history = fit(training)
    with times.stage("predict"):
        output = _predicted(run, training)
    metrics = _metrics(run, training, output, history)
    if run.processes.is_first:
        _write_model(run, training.model, metrics, output)
        metrics |= {"times": times.record(), "peak_memory": peak_memory_bytes()}
        finish(run.folder, metrics)
    say(f"done: {run.folder}; accuracy " + ", ".join(f"{split} {value:.4f}" for split, value in metrics["accuracy"].items()))
    return _figures(metrics, already_done=False)


def load_training(run: Run) -> Training:
    """Load models and data of a run, everything that is read while it trains on its device."""
    options, recipe, device = run.options, run.recipe, torch.device(run.compute.device)
    seed_everything(options.seed)
    model = recipe.build(run.text_model).to(device)
    everything = [recipe.corpus] + ([] if recipe.extra is None else [recipe.extra])
    labels = [example.label for corpus in everything for example in corpus.examples]
    labelled = len(recipe.corpus.examples)
    data = TrainingData(
        device=device,
        labels=torch.tensor(labels, device=device),
        texts=_texts(run, everything, device) if recipe.reads_text else None,
        pictures=_pictures(run, model, device),
        teachers=tuple(teacher.to(device) for teacher in recipe.teachers),
    )
    return Training(
        model=model,
        data=data,
        learnt=[*recipe.corpus.rows("train"), *range(labelled, len(labels))],
        validation=recipe.corpus.rows("validation"),
        loss=recipe.loss,
        options=options,
        compute=run.compute,
        folder=run.folder,
        processes=run.processes,
    )


def _texts(run: Run, everything: list[Corpus], device: torch.device) -> TokenIds:
    with run.processes.first_before_others():
        parts = [token_ids(run.text_model, corpus, run.options.run) for corpus in everything]
    flat, lengths = torch.cat([ids for ids, _ in parts]), np.concatenate([count for _, count in parts])
    return TokenIds(flat, lengths, pad=run.text_model.pad_id, device=device)


def _pictures(run: Run, model: nn.Module, device: torch.device) -> Pictures | None:
    options, tokens = run.options, run.recipe.image_tokens
    if tokens is None or not isinstance(options, TokensOptions):
        return None
    needed = training_bytes(
        run.text_model.config,
        weights=sum(parameter.numel() for parameter in model.parameters()),
        batch_size=options.batch_size,
        positions=run.text_model.max_length + tokens.reader.spec.row_shape[0],
        state_bytes=2 if run.optimizer == "adamw8bit" else 8,
    )
    place = partial(place_tokens, choice=options.tokens_on, device=device, training_bytes=needed)
    return shown_pictures(tokens, run.recipe.privileged, place, seed=options.seed, device=device)


def _predicted(run: Run, training: Training) -> Output:
    rows = range(len(run.recipe.corpus.examples))
    return predict(training.model, training.data, rows, run.compute, run.processes, precise=True)


def _metrics(run: Run, training: Training, output: Output, history: list[dict[str, Any]]) -> dict[str, Any]:
    corpus, text_model = run.recipe.corpus, run.text_model
    licenses = [
        f"texts of {corpus.name}: {corpus.license}",
        f"text model {text_model.shown_name}: {text_model.license}",
        *run.recipe.licenses,
    ]
    pictures = training.data.pictures
    return {
        "command": run.recipe.command,
        "dataset": corpus.name,
        "model": str(run.folder),
        **scores_by_split(corpus, output.logits),
        "examples": corpus.counts() | ({} if run.recipe.extra is None else {"unlabelled": len(run.recipe.extra.examples)}),
        "teachers": list(run.recipe.taught_by),
        **({} if run.terms is None else {"terms": run.terms}),
        "seed": run.options.seed,
        "best_epoch": best_epoch(history),
        "history": history,
        "notice": run.recipe.notice,
        "licenses": list(dict.fromkeys(licenses)),
        "parameters": sum(parameter.numel() for parameter in training.model.parameters()),
        "compute": {
            **run.compute.record(),
            "attention": _attention(training.model),
            "optimizer": run.optimizer,
            "processes": run.processes.count,
            **({} if pictures is None else {"tokens_on": pictures.source.place}),
        },
        "config": resolved_flags(run.options),
        "provenance": provenance(),
    }


def _attention(model: nn.Module) -> str:
    """Return the attention kernels of the Hugging Face part of a model; the fusion block uses PyTorch's own."""
    encoder = encoder_of(model)
    return "sdpa" if encoder is None else str(encoder.config._attn_implementation)


def _write_model(run: Run, model: nn.Module, metrics: dict[str, Any], output: Output) -> None:
    write_predictions(run.folder / PREDICTIONS, run.recipe.corpus, output.logits)
    classifier = model.classifier if isinstance(model, Student) else model
    if isinstance(classifier, TextClassifier):
        export_classifier(run.folder, classifier.model, run.text_model, run.recipe.corpus, metrics)
        return
    save_weights(run.folder / WEIGHTS, model)
    if run.recipe.command == "teacher":
        _write_outputs(run, output)


def _write_outputs(run: Run, output: Output) -> None:
    if run.processes.is_first:
        path, corpus = outputs_path(run.folder), run.recipe.corpus.fingerprint()
        write_teacher_outputs(path, output, corpus_fingerprint=corpus, dtype=run.recipe.outputs_dtype)


def _figures(metrics: dict[str, Any], *, already_done: bool) -> dict[str, Any]:
    return {**{name: value for name, value in metrics.items() if name != "history"}, "already_done": already_done}
