"""``python -m train baseline``, ``images``, ``teacher`` and ``student``: from their flags to the functions of ``train.models.api``."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lugpi_core.command_line import resolved_flags, say
from lugpi_core.corpora.corpus import Corpus
from lugpi_core.corpora.load import load_corpus
from lugpi_core.corpora.user_corpus import load_unlabelled
from lugpi_core.fields import part_of
from lugpi_core.runtime.libraries import prepare_libraries
from train.data.text_model import find_text_model
from train.learning.distributed import joined
from train.learning.progress import require_trackers
from train.models.api import TrainingArguments, distill, train_baseline, train_images, train_teacher
from train.models.plan import compute_on
from train.options.distillation import StudentOptions
from train.options.settings import DistillationSettings, Optimization, Placement
from train.options.training import BaselineOptions, ImagesOptions, ModelOptions, TeacherOptions


def baseline(options: BaselineOptions) -> dict[str, Any]:
    """Fine-tune the text model alone."""
    with _opened(options) as (corpus, training):
        return train_baseline(corpus, options.run, **training).to_json()


def images(options: ImagesOptions) -> dict[str, Any]:
    """Train the fusion head on image tokens alone."""
    with _opened(options) as (corpus, training):
        return train_images(corpus, options.run / "tokens", column=options.image_tokens, **training).to_json()


def teacher(options: TeacherOptions) -> dict[str, Any]:
    """Train the multimodal teacher and write its outputs for every example."""
    if options.privileged == "none" and options.image_tokens is not None:
        say("warning: --image-tokens has no effect with --privileged none")
    with _opened(options) as (corpus, training):
        return train_teacher(
            corpus,
            options.run / "tokens",
            column=options.image_tokens,
            privileged=options.privileged,
            outputs_dtype=options.outputs_dtype,
            folds=options.folds,
            run_dir=options.run,
            **training,
        ).to_json()


def student(options: StudentOptions) -> dict[str, Any]:
    """Distil a text-only student on its teachers' cached outputs."""
    with _opened(options) as (corpus, training):
        return distill(
            corpus,
            [options.run / name for name in options.teachers],
            distillation=part_of(options, DistillationSettings),
            teacher_weights=options.teacher_weights,
            unlabelled=None if options.unlabelled is None else load_unlabelled(options.unlabelled, options),
            student_layers=options.student_layers,
            anchor=options.anchor_folder,
            anchor_weight=options.anchor_weight,
            **training,
        ).to_json()


@contextmanager
def _opened(options: ModelOptions) -> Iterator[tuple[Corpus, TrainingArguments]]:
    """Yield what the flags name: the corpus, and the arguments that every kind of model is trained with. Other processes of a launcher are
    joined for the block, so that only one of them downloads."""
    prepare_libraries()
    require_trackers(options.track)
    placement = part_of(options, Placement)
    with joined(compute_on(placement).device) as processes:
        with processes.first_before_others():
            corpus = load_corpus(options.dataset, options)
            text_model = find_text_model(options.text_model, max_length=options.max_length)
        training = TrainingArguments(
            text_model=text_model,
            optimization=part_of(options, Optimization),
            placement=placement,
            config=resolved_flags(options),
        )
        if options.name is not None:
            training["name"] = options.name
        yield corpus, training
