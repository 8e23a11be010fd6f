"""The four things that can be trained, each one straight line: find, refuse or confirm, load, fit, score, write."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from lugpi_core.command_line import resolved_flags, say
from lugpi_core.corpora import load_corpus
from lugpi_core.device import Compute, resolve_compute, seed_everything
from lugpi_core.errors import InputError
from lugpi_core.examples import Corpus
from lugpi_core.meters import StageTimes, peak_memory_bytes, provenance
from lugpi_core.quiet import quiet_libraries
from train.checkpoint import load_weights, save_weights
from train.data import Batch, TrainingData
from train.export import export_classifier
from train.image_tokens import ImageTokens, TokenSource, open_image_tokens, place_tokens, training_bytes
from train.loop import Loss, Training, best_epoch, fit, predict
from train.losses import distillation, distillation_loss
from train.metrics import PREDICTIONS, scores_by_split, write_predictions
from train.model_folder import finish, finished_metrics, require_finished
from train.models import FusionHead, ImageClassifier, Output, Teacher, TextClassifier, text_width
from train.options import BaselineOptions, ImagesOptions, StudentOptions, TeacherOptions, TokensOptions, TrainOptions
from train.teacher_outputs import WEIGHTS, TeacherOutputs, has_teacher_outputs, read_teacher_outputs, write_teacher_outputs
from train.text import TextModel, find_text_model, load_text_classifier, load_text_encoder, token_ids

# The flags that decide a model by themselves; corpus, text model, tokens, teacher and loss are compared by their content.
_DECIDING = ("epochs", "batch_size", "learning_rate", "weight_decay", "optimizer", "seed")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What tells one kind of model from another.

    Attributes:
        command: baseline, images, teacher or student.
        fingerprint: what decides the result beside flags, corpus and text model.
        build: makes the model from the text model and the corpus; new weights follow the seed.
        loss: of an output and its batch.
        reads_text: whether texts are tokenised and fed.
        image_tokens: the tokens it reads, or None.
        teacher: the outputs it is distilled from, or None.
        licenses: of what the model comes from beside corpus and text model.
        notice: what a reader of the figures must know, or None.
    """

    command: str
    fingerprint: dict[str, Any]
    build: Callable[[TextModel, Corpus], nn.Module]
    loss: Loss
    reads_text: bool = True
    image_tokens: ImageTokens | None = None
    teacher: TeacherOutputs | None = None
    licenses: tuple[str, ...] = ()
    notice: str | None = None


def baseline(options: BaselineOptions) -> dict[str, Any]:
    """Fine-tune the text model alone."""
    corpus = _start(options)
    recipe = Recipe(command="baseline", fingerprint={}, build=_text_classifier, loss=_cross_entropy)
    return _train(options, corpus, recipe)


def images(options: ImagesOptions) -> dict[str, Any]:
    """Train the fusion head on image tokens alone."""
    corpus = _start(options)
    tokens = _open_tokens(options, options.image_tokens, corpus)

    def build(text_model: TextModel, corpus: Corpus) -> nn.Module:
        width = text_width(text_model.config, "--text-model")
        return ImageClassifier(FusionHead(text_width=width, image_width=tokens.width, classes=len(corpus.label_names), modalities=1))

    return _train(options, corpus, _with_tokens(tokens, command="images", build=build, reads_text=False))


def teacher(options: TeacherOptions) -> dict[str, Any]:
    """Train the multimodal teacher and write its outputs for every example."""
    corpus = _start(options)
    tokens = _open_tokens(options, options.image_tokens, corpus)

    def build(text_model: TextModel, corpus: Corpus) -> nn.Module:
        width = text_width(text_model.config, "--text-model")
        head = FusionHead(text_width=width, image_width=tokens.width, classes=len(corpus.label_names), modalities=2)
        return Teacher(load_text_encoder(text_model), head)

    return _train(options, corpus, _with_tokens(tokens, command="teacher", build=build, reads_text=True))


def student(options: StudentOptions) -> dict[str, Any]:
    """Distil a text-only student from a teacher's cached outputs; neither images nor teacher are touched."""
    if options.temperature is not None and options.alpha == 0:
        say("warning: --temperature has no effect with --alpha 0")
    weights = distillation(options.kd_preset, hard=options.hard, alpha=options.alpha, beta=options.beta, temperature=options.temperature)
    corpus = _start(options)
    folder = options.run / options.teacher
    metrics = require_finished(folder, what="teacher", command=f"python -m train teacher --dataset {options.dataset}")
    outputs = read_teacher_outputs(folder, corpus_fingerprint=corpus.fingerprint())
    if metrics["config"]["text_model"] != options.text_model:
        say(f"warning: the teacher reads {metrics['config']['text_model']}, the student {options.text_model}; the paper uses one for both")

    def loss(output: Output, batch: Batch) -> torch.Tensor:
        target = (batch["teacher_logits"], batch["teacher_embeddings"])
        return distillation_loss(weights, output, target, batch["labels"])

    def build(text_model: TextModel, corpus: Corpus) -> nn.Module:
        classifier = _text_classifier(text_model, corpus)
        _refuse_widths(classifier, outputs, weights.beta)
        return classifier

    recipe = Recipe(
        command="student",
        fingerprint={"teacher": outputs.teacher, "distillation": vars(weights)},
        build=build,
        loss=loss,
        teacher=outputs,
        licenses=tuple(metrics["licenses"]),
        notice=metrics["notice"],
    )
    return _train(options, corpus, recipe)


def _start(options: TrainOptions) -> Corpus:
    quiet_libraries()
    return load_corpus(options)


def _open_tokens(options: TrainOptions, column: str | None, corpus: Corpus) -> ImageTokens:
    tokens = open_image_tokens(options.run / "tokens", column, corpus)
    if flagged := len(tokens.reader.flagged):
        say(f"warning: {flagged} drawings failed and are read as blank; python -m featurize info lists them")
    return tokens


def _with_tokens(tokens: ImageTokens, **parts: Any) -> Recipe:
    spec = tokens.reader.spec
    return Recipe(
        fingerprint={"image_tokens": spec.name, "tokens": tokens.fingerprint()},
        loss=_cross_entropy,
        image_tokens=tokens,
        licenses=(spec.license,),
        notice=spec.notice,
        **parts,
    )


def _text_classifier(text_model: TextModel, corpus: Corpus) -> nn.Module:
    return TextClassifier(load_text_classifier(text_model, corpus))


def _cross_entropy(output: Output, batch: Batch) -> torch.Tensor:
    return F.cross_entropy(output.logits.float(), batch["labels"])


def _refuse_widths(classifier: Any, outputs: TeacherOutputs, beta: float) -> None:
    ours, theirs = classifier.embedding_width, outputs.embeddings.shape[1]
    if beta and ours != theirs:
        raise InputError(
            got=f"a student with embeddings of width {ours} for a teacher of width {theirs}",
            expected="the same width, since Eq. 2 subtracts them",
            do="use the teacher's --text-model, or --beta 0",
        )


def _train(options: TrainOptions, corpus: Corpus, recipe: Recipe) -> dict[str, Any]:
    folder = options.run / (options.name or recipe.command)
    text_model = find_text_model(options.text_model, max_length=options.max_length)
    compute = resolve_compute(options.device, options.dtype, half="bfloat16")
    if recipe.notice:
        say(f"note: {recipe.notice}")
    done = finished_metrics(folder, _fingerprint(options, corpus, recipe, text_model, compute))
    if done is not None and (recipe.command != "teacher" or has_teacher_outputs(folder, corpus_fingerprint=corpus.fingerprint())):
        say(f"already done: {folder}")
        return _figures(done, already_done=True)
    times = StageTimes(compute.device)
    with times.stage("load"):
        training = _training(options, corpus, recipe, text_model, compute)
    attention = _attention(training.model)
    say(f"{recipe.command} of {corpus.name} on {compute}, attention {attention}, {options.optimizer}, text model {text_model.name}")
    if done is not None:
        load_weights(folder / WEIGHTS, training.model)
        _write_outputs(training, predict(training, range(len(corpus.examples)), precise=True))
        return _figures(done, already_done=False)
    with times.stage("fit"):
        history = fit(training)
    with times.stage("predict"):
        output = predict(training, range(len(corpus.examples)), precise=True)
    metrics = _metrics(training, recipe, text_model, output, history)
    _write_model(training, text_model, metrics, output)
    metrics |= {"times": times.record(), "peak_memory": peak_memory_bytes()}
    finish(folder, metrics)
    say(f"done: {folder}; accuracy " + ", ".join(f"{split} {value:.4f}" for split, value in metrics["accuracy"].items()))
    return _figures(metrics, already_done=False)


def _training(options: TrainOptions, corpus: Corpus, recipe: Recipe, text_model: TextModel, compute: Compute) -> Training:
    seed_everything(options.seed)
    device = torch.device(compute.device)
    model = recipe.build(text_model, corpus).to(device)
    data = TrainingData(
        corpus=corpus,
        device=device,
        ids=token_ids(text_model, corpus) if recipe.reads_text else None,
        pad_id=text_model.tokenizer.pad_token_id or 0,
        image_tokens=_place(options, recipe.image_tokens, model, text_model, device),
        teacher=recipe.teacher,
    )
    folder = options.run / (options.name or recipe.command)
    return Training(model=model, data=data, loss=recipe.loss, options=options, compute=compute, folder=folder)


def _place(
    options: TrainOptions, tokens: ImageTokens | None, model: nn.Module, text_model: TextModel, device: torch.device
) -> TokenSource | None:
    if tokens is None or not isinstance(options, TokensOptions):
        return None
    needed = training_bytes(
        text_model.config,
        weights=sum(parameter.numel() for parameter in model.parameters()),
        batch_size=options.batch_size,
        positions=text_model.max_length + tokens.reader.spec.row_shape[0],
        state_bytes=2 if options.optimizer == "adamw8bit" else 8,
    )
    return place_tokens(tokens, options.tokens_on, device, needed)


def _fingerprint(options: TrainOptions, corpus: Corpus, recipe: Recipe, text_model: TextModel, compute: Compute) -> dict[str, Any]:
    return {
        "command": recipe.command,
        "flags": {name: getattr(options, name) for name in _DECIDING},
        "max_length": text_model.max_length,
        "corpus": corpus.fingerprint(),
        "separator": corpus.separator,
        "text_model": text_model.weights_hash,
        "dtype": compute.dtype,
        **recipe.fingerprint,
    }


def _metrics(training: Training, recipe: Recipe, text_model: TextModel, output: Output, history: list[dict[str, Any]]) -> dict[str, Any]:
    corpus = training.data.corpus
    licenses = [f"texts of {corpus.name}: {corpus.license}", f"text model {text_model.shown_name}: {text_model.license}", *recipe.licenses]
    return {
        "command": recipe.command,
        "dataset": corpus.name,
        "model": str(training.folder),
        **scores_by_split(corpus, output.logits),
        "examples": corpus.counts(),
        "seed": training.options.seed,
        "best_epoch": best_epoch(history),
        "history": history,
        "notice": recipe.notice,
        "licenses": list(dict.fromkeys(licenses)),
        "parameters": sum(parameter.numel() for parameter in training.model.parameters()),
        "compute": {**training.compute.record(), "attention": _attention(training.model), **_tokens_on(training)},
        "config": resolved_flags(training.options),
        "provenance": provenance(),
    }


def _tokens_on(training: Training) -> dict[str, str]:
    source = training.data.image_tokens
    return {} if source is None else {"tokens_on": source.place}


def _attention(model: nn.Module) -> str:
    """Return the attention kernels of the Hugging Face part of a model; the fusion block uses PyTorch's own."""
    from transformers import PreTrainedModel

    parts = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    return str(parts[0].config._attn_implementation) if parts else "sdpa"


def _write_model(training: Training, text_model: TextModel, metrics: dict[str, Any], output: Output) -> None:
    folder, corpus = training.folder, training.data.corpus
    write_predictions(folder / PREDICTIONS, corpus, output.logits)
    if isinstance(training.model, TextClassifier):
        export_classifier(folder, training.model.model, text_model, corpus, metrics)
        return
    save_weights(folder / WEIGHTS, training.model)
    if metrics["command"] == "teacher":
        _write_outputs(training, output)


def _write_outputs(training: Training, output: Output) -> None:
    write_teacher_outputs(training.folder, output, corpus_fingerprint=training.data.corpus.fingerprint())


def _figures(metrics: dict[str, Any], *, already_done: bool) -> dict[str, Any]:
    return {**{name: value for name, value in metrics.items() if name != "history"}, "already_done": already_done}
