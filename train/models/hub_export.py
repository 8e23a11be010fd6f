"""A finished classifier as a plain Hugging Face folder: weights, tokenizer, label names and a model card. It needs no lugpi."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lugpi_core.corpora.corpus import SPLITS, Corpus
from lugpi_core.files import write_text
from train.data.text_model import TextModel
from train.learning.task_rules import METRIC_NAMES, in_words, rules_of
from train.models.predictions import THRESHOLDS


def export_classifier(folder: Path, classifier: Any, text_model: TextModel, corpus: Corpus, metrics: Mapping[str, Any]) -> None:
    """Write what ``transformers.pipeline("text-classification", model=folder)`` loads, with a model card."""
    classifier.eval()
    classifier.config.problem_type = rules_of(corpus.task).problem_type
    if THRESHOLDS in metrics:
        classifier.config.update({THRESHOLDS: metrics[THRESHOLDS]})
    classifier.save_pretrained(folder)
    # A pipeline truncates to this length; the model was trained with it.
    text_model.tokenizer.model_max_length = text_model.max_length
    text_model.tokenizer.save_pretrained(folder)
    write_text(folder / "README.md", model_card(text_model, corpus, metrics))


# The privileged information of a teacher, as a model card describes it.
_TEACHERS = {
    "images": "a teacher that also read generated images (LUGPI, arXiv 2309.15238)",
    "shuffled": "a control: a teacher that read the generated images of other texts",
    "blank": "a control: a teacher that read blank images",
    "none": "a control: a teacher that read text alone",
}


def _origin(teachers: Sequence[Mapping[str, Any]]) -> str:
    if not teachers:
        return "fine-tuned on text alone"
    return "distilled from " + " and ".join(dict.fromkeys(_TEACHERS[teacher["privileged"]] for teacher in teachers))


def _what(corpus: Corpus, origin: str) -> str:
    names = f"{len(corpus.label_names)} classes ({', '.join(corpus.label_names)})"
    match corpus.task:
        case "single-label":
            return f"A text classifier for {names}, {origin}."
        case "multi-label":
            return (
                f"A text classifier for any number of {names}, {origin}. A class is an answer if its probability reaches its threshold, in "
                f"`{THRESHOLDS}` of `config.json`; the thresholds were chosen on the validation split for F1."
            )
        case "regression":
            return f"A text regression: its one output is the number {corpus.label_names[0]}, {origin}."


def _calls(corpus: Corpus) -> list[str]:
    """Return the lines that call a pipeline; ``top_k=None`` shows every class."""
    given = '{"text": "a text of any length", "text_pair": "another"}' if corpus.has_pairs else '"a text of any length"'
    return [f"classify({given}, truncation=True{', top_k=None' if corpus.task == 'multi-label' else ''})"]


def model_card(text_model: TextModel, corpus: Corpus, metrics: Mapping[str, Any]) -> str:
    """Return the model card: the task, accuracies, how the model was trained, and the licences of what it derives from."""
    config, origin, shown = metrics["config"], _origin(metrics.get("teachers", ())), rules_of(corpus.task).metrics
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
        f"# {corpus.name}: {metrics['command']}",
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
        "## Sources and licences",
        "",
        licences,
        "",
    ]
    return "\n".join(parts)
