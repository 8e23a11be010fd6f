"""Teachers from a student's point of view: finished folders of the run, and their outputs for labelled and unlabelled texts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lugpi_core.command_line import say
from lugpi_core.corpora.corpus import UNLABELLED, Corpus
from lugpi_core.errors import InputError, number_of
from lugpi_core.files import is_writable
from lugpi_core.fingerprint import agree, differences, digest, digest_of_lists, flat
from lugpi_core.runtime.device import Compute
from lugpi_core.store.clip_scores import best_image, content_of, read_clip_scores
from lugpi_core.store.example_table import read_example_table
from lugpi_core.store.layout import PROMPT_TEXT
from lugpi_core.store.manifest import load_manifest
from lugpi_core.store.reader import columns_of
from train.data.image_tokens import DiskTokens, ImageTokens, TokenSource, open_image_tokens, open_text_vectors
from train.data.privileged import (
    BlankTokens,
    PrivilegedImages,
    WeightedImages,
    agreement_weights,
    mean_weights,
    order_of_others,
    usable_images,
)
from train.data.teacher_outputs import TeacherOutputs, find_teacher_outputs, outputs_path, read_teacher_outputs, write_teacher_outputs
from train.data.text_model import TextModel, find_text_model, load_text_encoder
from train.data.token_ids import TokenIds, token_ids
from train.data.training_data import TrainingData
from train.file_names import TRAINING, WEIGHTS
from train.learning.checkpoint import load_weights
from train.learning.classifier_head import require_readable
from train.learning.distributed import Processes
from train.learning.networks import FusionHead, Output, Teacher, text_dropout, text_width
from train.learning.predict import predict
from train.models.model_folder import require_finished, training_of
from train.options.settings import READS_SCORES, Privileged, SeveralImages

# The field of a teacher's fingerprint that says how many tokens it learns in place of an image, and how many texts have none.
NO_IMAGE_TOKENS = "no_image"


@dataclass(frozen=True, kw_only=True)
class FoundTeacher:
    """A finished teacher of the run.

    Attributes:
        folder: of the model.
        metrics: its ``metrics.json``.
        fingerprint: its ``training.json``: everything that decided it.
    """

    folder: Path
    metrics: dict[str, Any]
    fingerprint: dict[str, Any]

    @property
    def run(self) -> Path:
        """The run, whose stores it reads: the models of a few shots are in a folder of it."""
        return self.folder.parent.parent if "shots" in self.fingerprint else self.folder.parent


def find_teacher(folder: Path) -> FoundTeacher:
    """Return a finished teacher.

    Raises:
        InputError: the folder is missing or unfinished, or holds another kind of model.
    """
    metrics = require_finished(folder, what="teacher", command="python -m train teacher")
    if metrics["command"] != "teacher":
        raise InputError(got=f"{folder}, a {metrics['command']}", expected="a teacher", do="name one that python -m train teacher trained")
    return FoundTeacher(folder=folder, metrics=metrics, fingerprint=training_of(folder))


def require_task(teacher: FoundTeacher, corpus: Corpus) -> None:
    """Raise InputError unless the teacher was trained for the corpus's task."""
    theirs = teacher.metrics.get("task", "single-label")
    if theirs != corpus.task:
        raise InputError(
            got=f"{teacher.folder}, a {theirs} teacher, for {corpus.name}, a {corpus.task} corpus",
            expected="one task",
            do=f"give --task {theirs}, or train a teacher with --task {corpus.task} under another name (--name)",
        )


def require_same_folds(teachers: Sequence[FoundTeacher]) -> int | None:
    """Return on how many folds the outputs of all teachers are cross-fitted; None if on none. Raises InputError where they differ in it."""
    counts: list[int | None] = [teacher.fingerprint.get("folds", {}).get("count") for teacher in teachers]
    if len(set(counts)) > 1:
        each = [f"{teacher.folder.name} ({count or 'no'} folds)" for teacher, count in zip(teachers, counts, strict=True)]
        raise InputError(
            got=f"teachers {', '.join(each)}",
            expected="the same number of folds, so that none of them has seen the text of its soft label, or all have",
            do="train all of them with the same --folds",
        )
    return counts[0]


def require_images(teacher: FoundTeacher) -> None:
    """Raise InputError unless a teacher reads something of each text that a student can predict."""
    if (privileged := teacher.fingerprint["privileged"]) in ("none", "blank"):
        raise InputError(
            got=f"--predict-image with {teacher.folder}, which reads {'no' if privileged == 'none' else 'blank'} images",
            expected="a teacher with image vectors that differ from text to text",
            do="leave --predict-image out for this control, or take the one with other texts' images (train teacher --privileged shuffled)",
        )
    if without := teacher.fingerprint.get(NO_IMAGE_TOKENS, {}).get("texts"):
        raise _no_vectors(str(teacher.folder), without)


def last_layer(teacher: FoundTeacher) -> torch.Tensor:
    """Return the weight of the Linear that makes a teacher's logits, float32 [K, D]."""
    from safetensors import safe_open

    with safe_open(teacher.folder / WEIGHTS, framework="pt") as file:
        weight_KD: torch.Tensor = file.get_tensor("head.classify.weight")
    return weight_KD.float()


def build_teacher(text_model: TextModel, classes: int, image_width: int | None, no_image_tokens: int | None = None) -> Teacher:
    """Return a teacher with the pretrained text encoder and a new head; ``image_width`` is None for one that reads no images,
    ``no_image_tokens`` the tokens that it learns in place of an image, if some texts have none."""
    config = text_model.config
    width = text_width(config, "--text-model")
    head = FusionHead(
        text_width=width, image_width=image_width, classes=classes, dropout=text_dropout(config), no_image_tokens=no_image_tokens
    )
    return Teacher(load_text_encoder(text_model), head, reads_last_token=text_model.reads_last_token)


def privileged_images(
    tokens: ImageTokens,
    privileged: Privileged,
    place: Callable[[ImageTokens], TokenSource],
    *,
    seed: int,
    device: torch.device,
    several_images: SeveralImages = "drawn",
) -> PrivilegedImages | None:
    """Return the image tokens that a model reads for each example.

    Args:
        tokens: the examples' own image tokens.
        privileged: whether these, other examples', blank ones or none are read; text vectors are read as images are.
        place: where the tokens are read from.
        seed: decides whose images a shuffled control reads, and which of K images an epoch reads.
        device: where the model is trained.
        several_images: which of K images it reads.

    Raises:
        InputError: there are no scores of the images, which decide weights and the best one.
    """
    if privileged == "none":
        return None
    source = BlankTokens(tokens.reader.spec.row_shape, device) if privileged == "blank" else place(tokens)
    # A control reads K images of another example together, each with the score that it has there.
    order = order_of_others(tokens.drawings, seed) if privileged == "shuffled" else np.arange(len(tokens.drawings))
    drawings = np.maximum(tokens.drawings[order], 0)
    has_image_N = torch.from_numpy(tokens.has_image).to(device) if tokens.is_subset else None
    if several_images == "drawn":
        return PrivilegedImages(source=source, drawings=drawings, seed=seed, has_image_N=has_image_N)
    usable_NK = usable_images(tokens.drawings[order], list(tokens.reader.flagged))
    if several_images == "mean":
        return WeightedImages(source=source, drawings=drawings, weights_NK=mean_weights(usable_NK), has_image_N=has_image_N)
    scores_NK = tokens.scores.scores_NK[order]
    usable_NK &= np.isfinite(scores_NK)
    if several_images == "best":
        best_N1 = best_image(scores_NK, usable_NK)[:, None]
        best = np.take_along_axis(drawings, best_N1, axis=1)
        return PrivilegedImages(source=source, drawings=best, seed=seed, has_image_N=has_image_N)
    weights_NK = agreement_weights(scores_NK, usable_NK, tokens.scores.logit_scale)
    return WeightedImages(source=source, drawings=drawings, weights_NK=weights_NK, has_image_N=has_image_N)


def open_privileged(store: Path, column: str | None, privileged: Privileged, corpus: Corpus) -> ImageTokens:
    """Open what a teacher reads in addition to the text: a column of image tokens, or the generator's text vectors.

    Raises:
        InputError: as ``open_image_tokens`` and ``open_text_vectors``; or another column is named for the text vectors.
    """
    if privileged != "text":
        return open_image_tokens(store, column, corpus)
    if column not in (None, PROMPT_TEXT):
        raise InputError(
            got=f"--image-tokens {column} with --privileged text",
            expected=f"the generator's text vectors, {PROMPT_TEXT}",
            do="leave --image-tokens out",
        )
    return open_text_vectors(store, corpus)


def with_separator_of(unlabelled: Corpus, corpus: Corpus) -> Corpus:
    """Return unlabelled texts with the corpus's separator; texts that a student is scored on are warned of.

    Raises:
        InputError: single texts for a corpus of pairs, or the other way round.
    """
    if unlabelled.has_pairs != corpus.has_pairs:
        kinds = ("single texts", "pairs of texts")
        raise InputError(
            got=f"{kinds[unlabelled.has_pairs]} in {unlabelled.name} for {corpus.name}, a corpus of {kinds[corpus.has_pairs]}",
            expected=kinds[corpus.has_pairs],
            do="give a file with the second text in the corpus's column (--text-pair-column), in Python Corpus.from_texts(…, pairs=…)"
            if corpus.has_pairs
            else "give single texts",
        )
    held_out = {example.text for example in corpus.examples if example.split != "train"}
    if seen := sum(example.text in held_out for example in unlabelled.examples):
        say(f"warning: {seen:,} texts of {unlabelled.name} are validation or test texts, which the student will be scored on")
    return replace(unlabelled, separator=corpus.separator)


def outputs_for(
    teacher: FoundTeacher, corpus: Corpus, extra: Corpus | None, compute: Compute, *, with_images: bool = False
) -> TeacherOutputs:
    """Return a teacher's outputs for the corpus, followed by those for the unlabelled texts, which are computed once and kept, and computed
    again if the images that it reads of these have changed.

    Earlier versions did not record which images the outputs are of. Of a store of a subset their image vectors say which texts had one: if
    others have one now, they are computed again. Otherwise they are kept, and where nothing tells whether images have changed, a note says
    so.

    Raises:
        InputError: the outputs do not belong to the teacher, to its folds or to the corpus, or there are no images for the unlabelled
            texts.
    """
    path = outputs_path(teacher.folder)
    outputs = read_teacher_outputs(path, corpus_fingerprint=corpus.fingerprint(), with_images=with_images)
    if with_images and outputs.images is None:  # an earlier version wrote the file
        outputs = replace(outputs, images=_image_vectors(teacher, corpus))
        if is_writable(teacher.folder):
            bound: dict[str, Any] = {"corpus_fingerprint": corpus.fingerprint(), "made_from": {"folds": teacher.fingerprint.get("folds")}}
            write_teacher_outputs(path, outputs.logits, outputs.embeddings, images_NI=outputs.images, **bound)
    folds = teacher.fingerprint.get("folds", {})
    if any((outputs.folds or {}).get(name) != folds.get(name) for name in ("count", "seed")):
        raise InputError(
            got=f"{path}, whose folds are not those of {teacher.folder / TRAINING}",
            expected="the outputs of that teacher",
            do=f"remove {path} and run python -m train teacher with the teacher's settings again; it only rewrites its outputs",
        )
    if extra is None:
        return outputs
    if with_images and (without := int((~read_example_table(_store_of(teacher, extra), extra).has_image).sum())):
        raise _no_vectors(str(_store_of(teacher, extra)), without)
    path = outputs_path(teacher.folder, extra.name)
    found = find_teacher_outputs(path, corpus_fingerprint=extra.fingerprint(), with_images=with_images)
    digest_now = _images_digest(teacher, extra)
    is_stale = found is not None and digest_now is not None and _is_of_other_images(path, found, teacher, extra, digest_now)
    if found is None or is_stale or (with_images and found.images is None):
        changed = ", whose images have changed since it last did" if is_stale else ""
        say(f"{teacher.folder.name} reads {len(extra.examples):,} texts of {extra.name}{changed}")
        output, images = _outputs_for_new_texts(teacher, extra, len(corpus.label_names), compute)
        of_texts: dict[str, Any] = {"corpus_fingerprint": extra.fingerprint(), "made_from": {"unlabelled_images": digest_now}}
        write_teacher_outputs(path, output.logits, output.embeddings, images_NI=images, **of_texts)
        found = read_teacher_outputs(path, corpus_fingerprint=extra.fingerprint(), with_images=with_images)
    return outputs.followed_by(found)


def _images_digest(teacher: FoundTeacher, extra: Corpus) -> str | None:
    """Return a hash of what a teacher reads of the images of unlabelled texts, from the records of their store; None if it reads none, or
    the store is gone."""
    store, column = _store_of(teacher, extra), teacher.fingerprint["image_tokens"]
    if column not in columns_of(store):
        return None
    table = read_example_table(store, extra)
    if teacher.fingerprint["privileged"] == "blank":
        return digest_of_lists(table.has_image.astype(np.int64))
    parts = [content_of(load_manifest(store / column)[1])]
    if teacher.fingerprint.get("several_images", "drawn") in READS_SCORES and table.drawings.shape[1] > 1:
        scores = read_clip_scores(store, corpus_fingerprint=table.corpus_fingerprint, shape=table.drawings.shape)
        parts.append(digest(scores.fingerprint()))
    return digest_of_lists(parts, table.drawings.ravel())


def _is_of_other_images(path: Path, found: TeacherOutputs, teacher: FoundTeacher, extra: Corpus, digest_now: str) -> bool:
    """Whether outputs for unlabelled texts are known to be of other images than are there now."""
    if found.unlabelled_images is not None:
        return found.unlabelled_images != digest_now
    vectors = read_teacher_outputs(path, corpus_fingerprint=extra.fingerprint(), with_images=True).images
    table = read_example_table(_store_of(teacher, extra), extra)
    if vectors is not None and table.subset is not None and teacher.fingerprint["privileged"] != "blank":
        return not np.array_equal(vectors.any(dim=1).numpy(), table.has_image)
    say(f"note: {path} is of an earlier version, which did not record its images; remove it if they have changed since")
    return False


def _store_of(teacher: FoundTeacher, extra: Corpus) -> Path:
    return teacher.run / f"tokens-{extra.name}"


def _no_vectors(where: str, without: int) -> InputError:
    return InputError(
        got=f"--predict-image with {where}, where no image was drawn for {number_of(without, 'text{s}')} (featurize --subset)",
        expected="an image vector of every text",
        do="leave --predict-image out, or draw the others: featurize with a larger --subset",
    )


def _image_vectors(teacher: FoundTeacher, corpus: Corpus) -> torch.Tensor | None:
    """Return V_CLS of the images that a teacher has read of its corpus, from the token store of its run."""
    device = torch.device("cpu")
    images, _ = _images_of(teacher, open_tokens_of(teacher, corpus, teacher.run / "tokens"), device, but=())
    return TrainingData(device=device, labels=torch.zeros(len(corpus.examples)), texts=None, images=images).image_vectors()


def open_tokens_of(teacher: FoundTeacher, corpus: Corpus, store: Path) -> ImageTokens:
    """Open what a teacher reads in addition to the texts of a corpus. Raises InputError as ``open_privileged``."""
    return open_privileged(store, teacher.fingerprint["image_tokens"], teacher.fingerprint["privileged"], corpus)


def _images_of(
    teacher: FoundTeacher, tokens: ImageTokens, device: torch.device, *, but: tuple[str, ...]
) -> tuple[PrivilegedImages | None, int]:
    """Return what a teacher reads in addition to texts, and its width, from a store that may differ from the teacher's own in the fields
    ``but``."""
    fingerprint = teacher.fingerprint
    _require_same_tokens(teacher, tokens, but)
    several_images = _several_images(teacher, tokens)
    if several_images in READS_SCORES:
        _require_same_scores(teacher, tokens, " --unlabelled" if but else "")
    images = privileged_images(
        tokens,
        fingerprint["privileged"],
        lambda opened: DiskTokens(opened, device),
        seed=fingerprint["flags"]["seed"],
        device=device,
        several_images=several_images,
    )
    return images, tokens.width


def _several_images(teacher: FoundTeacher, tokens: ImageTokens) -> SeveralImages:
    several_images: SeveralImages = teacher.fingerprint.get("several_images", "drawn")
    return several_images if tokens.drawings.shape[1] > 1 else "drawn"


def require_new_images(teacher: FoundTeacher, tokens: ImageTokens, *, with_vectors: bool) -> None:
    """Raise InputError unless a teacher can read the images of unlabelled texts; ``with_vectors`` unless each of these has one."""
    _require_same_tokens(teacher, tokens)
    if _several_images(teacher, tokens) in READS_SCORES:
        _require_same_scores(teacher, tokens, " --unlabelled")
    _require_tokens_for_none(teacher, tokens)
    if with_vectors and not tokens.has_image.all():
        raise _no_vectors(str(tokens.store), int((~tokens.has_image).sum()))


def _require_tokens_for_none(teacher: FoundTeacher, tokens: ImageTokens) -> None:
    """Raise InputError if some texts have no image, and the teacher has not learnt what stands for none."""
    if NO_IMAGE_TOKENS not in teacher.fingerprint and not tokens.has_image.all():
        raise InputError(
            got=f"--unlabelled with images of some texts only (featurize --subset) for {teacher.folder}, which learnt from images of all",
            expected="images of all, or a teacher that has learnt what stands for none",
            do="draw the others (featurize --unlabelled with --subset of all texts), or train a teacher in a run with --subset",
        )


def _outputs_for_new_texts(teacher: FoundTeacher, extra: Corpus, classes: int, compute: Compute) -> tuple[Output, torch.Tensor | None]:
    """Return a teacher's outputs for texts that it was not trained on, and V_CLS of their images."""
    open_tokens = partial(open_tokens_of, teacher, extra, _store_of(teacher, extra))
    model, data = load_teacher(teacher, extra, classes, compute, open_tokens, but=_OF_ONE_STORE)
    output = predict(model, data, range(len(extra.examples)), compute, Processes(), precise=True)
    return output, data.image_vectors()


def load_teacher(
    teacher: FoundTeacher,
    corpus: Corpus,
    classes: int,
    compute: Compute,
    open_tokens: Callable[[], ImageTokens],
    *,
    but: tuple[str, ...] = (),
) -> tuple[Teacher, TrainingData]:
    """Return a finished teacher, and what it reads of a corpus, on the device; nothing to score it.

    Args:
        teacher: it.
        corpus: its own, or other texts.
        classes: of its own corpus.
        compute: where.
        open_tokens: opens what it reads in addition to the texts, unless that is nothing.
        but: fields of the tokens' fingerprint that may differ from those that it was trained on.

    Raises:
        InputError: its text model or its images are other ones than it was trained with; or as ``open_tokens``.
    """
    fingerprint, device = teacher.fingerprint, torch.device(compute.device)
    text_model = find_text_model(teacher.metrics["config"]["text_model"], max_length=fingerprint["max_length"])
    if not agree(fingerprint["text_model"], text_model.weights_hash):
        raise InputError(
            got=f"another {text_model.name} than {teacher.folder} was trained from",
            expected="the same files",
            do="restore them, or train the teacher again under another name (--name)",
        )
    images, width = None, None
    if fingerprint["privileged"] != "none":
        tokens = open_tokens()
        images, width = _images_of(teacher, tokens, device, but=but)
        _require_tokens_for_none(teacher, tokens)
    no_image = fingerprint.get(NO_IMAGE_TOKENS)
    model = build_teacher(text_model, classes, width, None if no_image is None else no_image["tokens"]).to(device)
    load_weights(teacher.folder / WEIGHTS, model)
    texts = TokenIds.of(text_model, token_ids(text_model, corpus, teacher.run), device, padding_is_read=model.padding_is_read)
    require_readable(model, texts)
    labels = torch.full((len(corpus.examples),), UNLABELLED, device=device)
    return model, TrainingData(device=device, labels=labels, texts=texts, images=images)


# What differs between two stores of one generator and encoder: their images, prompts or pictures, and which of these failed.
_OF_ONE_STORE = (
    "generation.drawings",
    *(f"generation.subset.{name}" for name in ("texts", "of", "by", "vectors")),
    "prompts",
    "pictures",
    "failed_rows",
)


def _require_same_tokens(teacher: FoundTeacher, tokens: ImageTokens, but: tuple[str, ...] = _OF_ONE_STORE) -> None:
    """Raise InputError unless the images are those that the teacher was trained on; they may differ from them in the fields ``but``."""
    theirs, ours = (
        {name: value for name, value in flat(fingerprint) if name not in but}
        for fingerprint in (teacher.fingerprint["tokens"], tokens.fingerprint())
    )
    unlike = differences(theirs, ours)
    if unlike and not but:
        raise InputError(
            got=f"images of {tokens.reader.spec.name} that are not those that {teacher.folder} has read: {'; '.join(unlike)}",
            expected="these",
            do="restore them, or train the teacher again under another name (--name)",
        )
    if unlike:
        raise InputError(
            got=f"images of {tokens.reader.spec.name} for --unlabelled that differ from the teacher's: {'; '.join(unlike)}",
            expected="the same generator and encoder",
            do="run featurize --unlabelled with the settings of the corpus's own images",
        )


def _require_same_scores(teacher: FoundTeacher, tokens: ImageTokens, flag: str) -> None:
    """Raise InputError unless the scores of the images are by the encoder whose scores the teacher was trained with."""
    theirs, ours = teacher.fingerprint["clip_scores"], tokens.scores.fingerprint()
    if not agree(theirs["encoder"], ours["encoder"]):
        raise InputError(
            got=f"CLIP scores in {tokens.store} by {ours['column']}, an encoder of other weights than that of the teacher's scores",
            expected=f"scores by {theirs['column']}, as of the teacher's own images",
            do=f"run python -m featurize score{flag} with --column {theirs['column']} and the same files of that encoder",
        )
