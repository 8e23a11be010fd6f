"""Teachers as a student sees them: finished folders of the run, and what they say of texts, labelled or not."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lugpi_core.command_line import say
from lugpi_core.corpora.corpus import Corpus
from lugpi_core.corpora.options import store_folder
from lugpi_core.errors import InputError
from lugpi_core.fingerprint import differences, flat
from lugpi_core.runtime.device import Compute
from train.data.image_tokens import DiskTokens, ImageTokens, open_image_tokens
from train.data.privileged import BlankTokens, Pictures, Privileged, of_others
from train.data.teacher_outputs import (
    WEIGHTS,
    TeacherOutputs,
    has_teacher_outputs,
    outputs_path,
    read_teacher_outputs,
    write_teacher_outputs,
)
from train.data.text_model import TextModel, find_text_model, load_text_encoder
from train.data.token_ids import TokenIds, token_ids
from train.data.training_data import TrainingData
from train.learning.checkpoint import load_weights
from train.learning.distributed import Processes
from train.learning.networks import FusionHead, Output, Teacher, text_dropout, text_width
from train.learning.predict import predict
from train.models.model_folder import require_finished, training_of
from train.options.training import StudentOptions


@dataclass(frozen=True, kw_only=True)
class FoundTeacher:
    """A finished teacher of the run.

    Attributes:
        folder: of the model.
        metrics: its ``metrics.json``.
        made_from: its ``training.json``: all that decided it.
    """

    folder: Path
    metrics: dict[str, Any]
    made_from: dict[str, Any]


def find_teacher(options: StudentOptions, name: str) -> FoundTeacher:
    """Return a finished teacher of the run.

    Raises:
        InputError: it is not there, not finished, or is no teacher.
    """
    folder = options.run / name
    metrics = require_finished(folder, what="teacher", command=f"python -m train teacher --dataset {options.dataset}")
    if metrics["command"] != "teacher":
        raise InputError(got=f"{folder}, a {metrics['command']}", expected="a teacher", do="name one that python -m train teacher made")
    return FoundTeacher(folder=folder, metrics=metrics, made_from=training_of(folder))


def build_teacher(text_model: TextModel, classes: int, image_width: int | None) -> Teacher:
    """Return a teacher with the pretrained text encoder and a new head; ``image_width`` is None for one that sees no images."""
    config = text_model.config
    width = text_width(config, "--text-model")
    head = FusionHead(text_width=width, image_width=image_width, classes=classes, dropout=text_dropout(config))
    return Teacher(load_text_encoder(text_model), head)


def shown_pictures(source_of: ImageTokens, privileged: Privileged, place: Any, *, seed: int, device: torch.device) -> Pictures | None:
    """Return what a model sees beside the text.

    Args:
        source_of: the examples' own image tokens.
        privileged: whether these, others', blank ones or none are shown.
        place: puts tokens where they are to be read from.
        seed: decides whose others' are shown, and which of K an epoch shows.
        device: where the model trains.
    """
    if privileged == "none":
        return None
    if privileged == "blank":
        blank = BlankTokens(source_of.reader.spec.row_shape, device)
        return Pictures(source=blank, drawings=source_of.drawings, seed=seed)
    drawings = of_others(source_of.drawings, seed) if privileged == "shuffled" else source_of.drawings
    return Pictures(source=place(source_of), drawings=drawings, seed=seed)


def outputs_for(options: StudentOptions, teacher: FoundTeacher, corpus: Corpus, extra: Corpus | None, compute: Compute) -> TeacherOutputs:
    """Return a teacher's outputs for the corpus and, behind them, for texts without labels; the latter are computed where they are not
    kept yet.

    Raises:
        InputError: the outputs do not belong to the teacher or the corpus, or there are no images for the other texts.
    """
    outputs = read_teacher_outputs(outputs_path(teacher.folder), corpus_fingerprint=corpus.fingerprint())
    if extra is None:
        return outputs
    path = outputs_path(teacher.folder, extra.name)
    if not has_teacher_outputs(path, corpus_fingerprint=extra.fingerprint()):
        say(f"{teacher.folder.name} reads {len(extra.examples):,} texts of {extra.name}")
        output = _asked(options, teacher, extra, len(corpus.label_names), compute)
        write_teacher_outputs(path, output, corpus_fingerprint=extra.fingerprint())
    return outputs.followed_by(read_teacher_outputs(path, corpus_fingerprint=extra.fingerprint()))


def _asked(options: StudentOptions, teacher: FoundTeacher, extra: Corpus, classes: int, compute: Compute) -> Output:
    """Return what a teacher says of texts that it was not trained on."""
    made_from, device = teacher.made_from, torch.device(compute.device)
    text_model = find_text_model(teacher.metrics["config"]["text_model"], max_length=made_from["max_length"])
    if text_model.weights_hash != made_from["text_model"]:
        raise InputError(
            got=f"another {text_model.name} than {teacher.folder} was trained from",
            expected="the same files",
            do="bring them back, or train the teacher again under another --name",
        )
    pictures, width = None, None
    if made_from["privileged"] != "none":
        tokens = open_image_tokens(store_folder(options.run, options.unlabelled), made_from["image_tokens"], extra)
        _refuse_other_tokens(teacher, tokens)
        width = tokens.width
        pictures = shown_pictures(
            tokens, made_from["privileged"], lambda found: DiskTokens(found, device), seed=made_from["flags"]["seed"], device=device
        )
    model = build_teacher(text_model, classes, width).to(device)
    load_weights(teacher.folder / WEIGHTS, model)
    texts = TokenIds(*token_ids(text_model, extra, options.run), pad=text_model.pad_id, device=device)
    labels = torch.tensor([example.label for example in extra.examples], device=device)
    data = TrainingData(device=device, labels=labels, texts=texts, pictures=pictures)
    return predict(model, data, range(len(labels)), compute, Processes(), precise=True)


# What a store's tokens are of, and which of them failed: theirs alone, and no way of drawing or encoding.
_OF_ONE_STORE = ("generation.drawings", "failed_rows")


def _refuse_other_tokens(teacher: FoundTeacher, tokens: ImageTokens) -> None:
    """Refuse images that were drawn or encoded otherwise than those that the teacher has learnt to read; the texts are others anyway."""
    theirs, ours = (
        {name: value for name, value in flat(found) if name not in _OF_ONE_STORE}
        for found in (teacher.made_from["tokens"], tokens.fingerprint())
    )
    if unlike := differences(theirs, ours):
        raise InputError(
            got=f"images of {tokens.reader.spec.name} for --unlabelled made otherwise than the teacher's: {'; '.join(unlike)}",
            expected="the same generator and encoder",
            do="run featurize --unlabelled with the settings of the corpus's own images",
        )
