"""A finished classifier as a plain Hugging Face folder: weights, tokenizer, label names and a model card. It needs no lugpi."""

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lugpi_core.corpora.corpus import SPLITS, Corpus
from lugpi_core.errors import InputError
from lugpi_core.files import make_folder, write_text
from lugpi_core.runtime.pretrained import loading
from train.data.text_model import TextModel, load_text_classifier
from train.data.token_ids import TokenIds, texts_of, tokenize
from train.file_names import WEIGHTS
from train.learning.checkpoint import load_weights, save_weights
from train.learning.classifier_head import examining
from train.learning.networks import Student, TextClassifier
from train.learning.task_rules import METRIC_NAMES, in_words, rules_of
from train.models.predictions import THRESHOLDS

# Of logits, as a part of the largest: other batches are added up in another order, on CUDA by other kernels.
LARGEST_DIFFERENCE = {"cpu": 1e-4, "cuda": 1e-3}
_CHECKED_TEXTS = 4
REHEARSAL = ".rehearsal"


def export_classifier(folder: Path, classifier: Any, text_model: TextModel, corpus: Corpus, metrics: Mapping[str, Any]) -> None:
    """Write what ``transformers.pipeline("text-classification", model=folder)`` loads, with a model card.

    A multi-label classifier's ``config.json`` states as ``thresholds`` the probability from which on each class is an answer.
    """
    if THRESHOLDS in metrics:
        classifier.config.thresholds = list(metrics[THRESHOLDS])
    save_classifier(folder, classifier, text_model)
    write_text(folder / "README.md", model_card(text_model, corpus, metrics))


def save_classifier(folder: Path, classifier: Any, text_model: TextModel) -> None:
    """Write a classifier's weights, configuration and tokenizer."""
    classifier.eval()
    classifier.save_pretrained(folder)
    # A pipeline truncates to this length; the model was trained with it.
    text_model.tokenizer.model_max_length = text_model.max_length
    text_model.tokenizer.save_pretrained(folder)


def checked_rows(corpus: Corpus) -> list[int]:
    """Return the rows of a few texts of unequal length, the longest among them."""
    by_length = np.argsort([len(text) for text in corpus.columns.texts], kind="stable").tolist()
    return sorted({by_length[n * (len(by_length) - 1) // (_CHECKED_TEXTS - 1)] for n in range(_CHECKED_TEXTS)})


def require_same_answers(folder: Path, text_model: TextModel, corpus: Corpus, logits_RK: torch.Tensor, *, alone: bool) -> None:
    """Raise InputError unless plain transformers computes the same from an exported folder as this training did.

    Args:
        folder: what ``export_classifier`` wrote.
        text_model: that the classifier was trained from.
        corpus: whose texts are read, one by one and in one batch.
        logits_RK: what the model answered for the texts of ``checked_rows``, float32.
        alone: whether they are read one by one only.
    """
    from transformers import pipeline

    texts, pairs = texts_of(text_model, corpus)
    rows = checked_rows(corpus)
    given = [texts[row] if pairs is None else {"text": texts[row], "text_pair": pairs[row]} for row in rows]
    what = f"--text-model {text_model.name}"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    largest = float(logits_RK.abs().max()) * LARGEST_DIFFERENCE[device] + 1e-6
    with loading(what, expected="a classifier that transformers reads back", do="choose for instance distilbert-base-uncased"):
        classify = pipeline("text-classification", model=str(folder), device=device, dtype=torch.float32)
        number_of = {str(name): number for number, name in classify.model.config.id2label.items()}
        for size in (1,) if alone else (1, len(given)):
            with examining(classify.model):
                theirs_RK, again_RK = (
                    torch.tensor([_scores(answers, number_of) for answers in classify(given, batch_size=size, **_PIPELINE)])
                    for _ in range(2)
                )
            if float((again_RK - theirs_RK).abs().max()) > largest:
                raise InputError(
                    got=f"{what}, whose answers to the same texts change from call to call in transformers itself",
                    expected="a classifier that answers the same each time",
                    do="choose another text model, for instance distilbert-base-uncased",
                )
            if not (difference := float((theirs_RK - logits_RK).abs().max())) <= largest:
                raise InputError(
                    got=f"{what}, whose logits differ by {difference:.2g} between lugpi and transformers' pipeline in batches of {size}",
                    expected="the same",
                    do="choose another text model, for instance distilbert-base-uncased",
                )


_PIPELINE: dict[str, Any] = {"top_k": None, "function_to_apply": "none", "truncation": True}


def _scores(answers: list[dict[str, Any]], number_of: Mapping[str, int]) -> list[float]:
    by_number = {number_of[answer["label"]]: float(answer["score"]) for answer in answers}
    return [by_number[number] for number in range(len(by_number))]


def rehearse(folder: Path, model: nn.Module, text_model: TextModel, corpus: Corpus) -> None:
    """Save an untrained model into a folder that is removed again, read it back and compare: whatever can fail at the end of a training
    fails before its first step.

    Of a teacher, the classifier of its text model is exported too, so that a text model is refused for all kinds of models alike.

    Args:
        folder: of the model; the caller holds its lock.
        model: a baseline, image classifier, teacher or student.
        text_model: that it was built from.
        corpus: whose texts are read.

    Raises:
        InputError: as ``require_same_answers``, or the model cannot be saved.
    """
    was_training = model.training
    with torch.random.fork_rng(), _removed_again(folder / REHEARSAL) as scratch:
        match model:
            case TextClassifier():
                _rehearse_export(scratch, model, text_model, corpus)
            case Student():
                _rehearse_export(scratch, model.classifier, text_model, corpus)
            case _:
                save_weights(scratch / WEIGHTS, model)
                load_weights(scratch / WEIGHTS, model)
                if "text_encoder" in dict(model.named_children()):
                    classifier = TextClassifier(load_text_classifier(text_model, corpus))
                    _rehearse_export(scratch / "classifier", classifier, text_model, corpus)
    model.train(was_training)


def _rehearse_export(folder: Path, classifier: TextClassifier, text_model: TextModel, corpus: Corpus) -> None:
    device = next(classifier.parameters()).device
    rows = np.arange(len(numbers := checked_rows(corpus)))
    sample = replace(corpus, examples=tuple(corpus.examples[number] for number in numbers))
    alone = classifier.padding_is_read
    texts = TokenIds.of(text_model, tokenize(text_model, *texts_of(text_model, sample)), device)
    classifier.eval()
    with examining(classifier.model):
        batches = [texts.padded(batch, torch.from_numpy(batch).to(device)) for batch in (np.split(rows, len(rows)) if alone else [rows])]
        logits_RK = torch.cat([classifier(batch).logits.float().cpu() for batch in batches])
        save_classifier(folder, classifier.model, text_model)
    require_same_answers(folder, text_model, corpus, logits_RK, alone=alone)


@contextmanager
def _removed_again(folder: Path) -> Iterator[Path]:
    shutil.rmtree(folder, ignore_errors=True)  # of a training that was killed in it
    try:
        yield make_folder(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# The privileged information of a teacher, as a model card describes it.
_TEACHERS = {
    "images": "a teacher that also read generated images (LUGPI, arXiv 2309.15238)",
    "text": "a control: a teacher that also read the vectors of an image generator's text encoder, and no image",
    "shuffled": "a control: a teacher that read the generated images of other texts",
    "blank": "a control: a teacher that read blank images",
    "none": "a control: a teacher that read text alone",
}


_READ_ALONE = (
    "**Let a pipeline read texts one by one (`batch_size=1`, as it does unless told otherwise):** the answers of this architecture change "
    "with the padding of a batch. The figures above are of texts without padding."
)


def escaped(text: str) -> str:
    """Return a text as Markdown that shows it, on one line."""
    return re.sub(r"([\\`*_{}\[\]<>()#|~!&-])", r"\\\1", " ".join(text.split()))


def _origin(teachers: Sequence[Mapping[str, Any]]) -> str:
    if not teachers:
        return "fine-tuned on text alone"
    return "distilled from " + " and ".join(dict.fromkeys(map(_teacher_in_words, teachers)))


def _teacher_in_words(teacher: Mapping[str, Any]) -> str:
    words = _TEACHERS[teacher["privileged"]]
    if teacher.get("own_images"):
        words = words.replace("generated images (LUGPI, arXiv 2309.15238)", "the pictures that belong to the texts")
        words = words.replace("generated images of other texts", "pictures of other texts")
    return words


def _what(corpus: Corpus, origin: str) -> str:
    names = f"{len(corpus.label_names)} classes ({', '.join(map(escaped, corpus.label_names))})"
    match corpus.task:
        case "single-label":
            return f"A text classifier for {names}, {origin}."
        case "multi-label":
            return (
                f"A text classifier for any number of {names}, {origin}. A class is an answer if its probability reaches its threshold, in "
                f"`{THRESHOLDS}` of `config.json`; the thresholds were chosen on the validation split for F1."
            )
        case "regression":
            return f"A text regression: its one output is the number {escaped(corpus.label_names[0])}, {origin}."


def _calls(corpus: Corpus) -> list[str]:
    """Return the lines that call a pipeline; ``top_k=None`` shows every class."""
    given = '{"text": "a text of any length", "text_pair": "another"}' if corpus.has_pairs else '"a text of any length"'
    return [f"classify({given}, truncation=True{', top_k=None' if corpus.task == 'multi-label' else ''})"]


def model_card(text_model: TextModel, corpus: Corpus, metrics: Mapping[str, Any]) -> str:
    """Return the model card: the task, accuracies, how the model was trained, and the licences of what it derives from."""
    config, origin, shown = metrics["config"], _origin(metrics.get("teachers", ())), rules_of(corpus.task).metrics
    if "anchor" in metrics:
        origin += ", and held near to the answers of an earlier model (arXiv 2106.02654)"
    separator = text_model.tokenizer.sep_token if corpus.separator else None
    rows = "\n".join(f"| {' | '.join([split, *(in_words(metric, metrics[metric][split]) for metric in shown)])} |" for split in SPLITS)
    licences = "\n".join(f"* {line}" for line in metrics["licenses"])
    parts = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-classification",
        *([] if Path(text_model.name).is_dir() or text_model.name == "demo" else [f"base_model: {text_model.name}"]),
        "tags: [lugpi, knowledge-distillation, privileged-information]",
        "---",
        "",
        f"# {escaped(corpus.name)}: {metrics['command']}",
        "",
        _what(corpus, origin),
        "It reads pairs of texts only." if corpus.has_pairs else "It reads text only.",
        "",
        "```python",
        "from transformers import pipeline",
        'classify = pipeline("text-classification", model="path/to/this/folder")',
        *_calls(corpus),
        "```",
        "",
        *([f"The target inside a text is marked `{separator} target {separator}`.", ""] if separator else []),
        f"| split | {' | '.join(METRIC_NAMES[metric] for metric in shown)} |",
        "|---" * (1 + len(shown)) + "|",
        rows,
        "",
        f"Trained for {config['epochs']} epochs (best: {metrics['best_epoch'] + 1}), batch {config['batch_size']}, learning rate "
        f"{config['learning_rate']}, seed {config['seed']}; one run. All settings are in `metrics.json`.",
        "",
        *([f"**{metrics['notice']}**", ""] if metrics.get("notice") else []),
        *([_READ_ALONE, ""] if metrics.get("padding_is_read") else []),
        "## Sources and licences",
        "",
        licences,
        "",
    ]
    return "\n".join(parts)
