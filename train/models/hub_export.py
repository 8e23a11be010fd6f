"""A finished classifier as a plain Hugging Face folder: weights, tokenizer, label names and a model card. It needs no lugpi."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lugpi_core.corpora.corpus import Corpus
from lugpi_core.files import write_text
from train.data.text_model import TextModel


def export_classifier(folder: Path, classifier: Any, text_model: TextModel, corpus: Corpus, metrics: Mapping[str, Any]) -> None:
    """Write what ``transformers.pipeline("text-classification", model=folder)`` loads, with a model card."""
    classifier.eval()
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


def model_card(text_model: TextModel, corpus: Corpus, metrics: Mapping[str, Any]) -> str:
    """Return the model card: the task, accuracies, how the model was trained, and the licences of what it derives from."""
    config, scores, origin = metrics["config"], metrics["accuracy"], _origin(metrics.get("teachers", ()))
    separator = text_model.tokenizer.sep_token if corpus.separator else None
    rows = "\n".join(f"| {split} | {scores[split]:.4f} | {metrics['macro_f1'][split]:.4f} |" for split in scores)
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
        f"A text classifier for {len(corpus.label_names)} classes ({', '.join(corpus.label_names)}), {origin}.",
        "It reads text only.",
        "",
        "```python",
        "from transformers import pipeline",
        'classify = pipeline("text-classification", model="path/to/this/folder")',
        'classify("a text of any length", truncation=True)',
        "```",
        "",
        *([f"The target inside a text is marked `{separator} target {separator}`.", ""] if separator else []),
        "| split | accuracy | macro-F1 |",
        "|---|---|---|",
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
