"""Baseline, teacher and student of many text models: each equals transformers' own pipeline, or is refused before the training."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lugpi_core.corpora.corpus import Corpus
from lugpi_core.errors import InputError
from lugpi_core.runtime.device import resolve_compute
from tests.support.tiny_text_models import WORDS, reread, tiny_text_model
from train.data.text_model import find_text_model, load_text_classifier
from train.learning.networks import TextClassifier
from train.models import hub_export
from train.models import train_model as training
from train.models.api import distill, train_baseline, train_teacher
from train.models.classifier import load_classifier, predicted_logits
from train.models.hub_export import REHEARSAL, escaped, rehearse
from train.options.settings import Optimization

STEPS = Optimization(epochs=1, learning_rate=1e-3, optimizer="adamw")


def texts_of_words(count: int = 24) -> list[str]:
    return [" ".join(WORDS[(n * 7 + word * 5) % len(WORDS)] for word in range(1 + n % 9)) for n in range(count)]


def corpus_of_words(labels: tuple[str, ...] = ("no", "yes")) -> Corpus:
    texts = texts_of_words()
    return Corpus.from_texts(texts, [labels[n % len(labels)] for n in range(len(texts))], name="words")


def pipeline_logits(folder: Path, texts: list[str], batch_size: int) -> torch.Tensor:
    from transformers import pipeline

    classify = pipeline("text-classification", model=str(folder), device="cpu")
    answers = classify(texts, batch_size=batch_size, top_k=None, function_to_apply="none", truncation=True)
    names = classify.model.config.id2label
    return torch.tensor([[{one["label"]: one["score"] for one in of_text}[names[k]] for k in range(len(names))] for of_text in answers])


# With the most different kinds of tokenizers, heads and padding; benchmarks/models runs all architectures.
@pytest.mark.parametrize("family", ["xlm-roberta", "funnel", "xlnet", "gpt2", "qwen2", "gemma3_text", "t5", "nomic_bert", "modernbert"])
def test_baseline_teacher_and_student_equal_the_librarys_pipeline(tmp_path: Path, family: str) -> None:
    text_model = find_text_model(str(tiny_text_model(tmp_path / "model", family)), max_length=16)
    corpus, run = corpus_of_words(), tmp_path / "run"
    baseline = train_baseline(corpus, run, text_model=text_model, optimization=STEPS)
    teacher = train_teacher(corpus, None, privileged="none", run_dir=run, text_model=text_model, optimization=STEPS)
    student = distill(corpus, teachers=[teacher], text_model=text_model, optimization=STEPS)
    texts = [*texts_of_words(6), "the red ship " * 40]
    for model in (baseline, student):
        compute = resolve_compute("cpu", "float32", half="bfloat16")
        ours = predicted_logits(load_classifier(model.folder), texts, compute, batch_size=4)
        for batch_size in (1, 4):
            torch.testing.assert_close(pipeline_logits(model.folder, texts, batch_size), ours, atol=2e-6, rtol=2e-6)
    assert not list(run.rglob(REHEARSAL))


def test_a_model_that_reads_its_padding_is_read_without(tmp_path: Path) -> None:
    text_model = find_text_model(str(tiny_text_model(tmp_path / "model", "canine")), max_length=64)
    model = train_baseline(corpus_of_words(), tmp_path / "run", text_model=text_model, optimization=STEPS)
    texts = texts_of_words(6)
    compute = resolve_compute("cpu", "float32", half="bfloat16")
    ours = predicted_logits(load_classifier(model.folder), texts, compute, batch_size=4)
    torch.testing.assert_close(pipeline_logits(model.folder, texts, 1), ours, atol=2e-6, rtol=2e-6)
    assert "batch_size=1" in (model.folder / "README.md").read_text()


def test_what_an_earlier_task_left_does_not_survive(tmp_path: Path) -> None:
    folder = tiny_text_model(tmp_path / "model", "bert")
    left = {
        "problem_type": "multi_label_classification",
        "finetuning_task": "toxicity",
        "id2label": {str(n): f"toxic {n}" for n in range(3)},
        "label2id": {f"toxic {n}": n for n in range(3)},
        "thresholds": [0.5, 0.5, 0.5],
        "function_to_apply": "sigmoid",
        "task_specific_params": {"text-classification": {"problem_type": "regression"}},
        "auto_map": {"AutoModel": "own.py--Own"},
    }
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | left))
    model = train_baseline(corpus_of_words(), tmp_path / "run", text_model=str(folder), optimization=STEPS)
    exported: dict[str, Any] = json.loads((model.folder / "config.json").read_text())
    assert exported["problem_type"] == "single_label_classification"
    assert exported["id2label"] == {"0": "no", "1": "yes"}
    assert not {"finetuning_task", "thresholds", "function_to_apply", "task_specific_params", "auto_map"} & exported.keys()


def test_an_export_that_answers_otherwise_is_refused_before_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text_model = find_text_model(str(tiny_text_model(tmp_path / "model", "bert")), max_length=16)
    corpus, saved = corpus_of_words(), hub_export.save_classifier
    monkeypatch.setattr(training, "fit", lambda _: pytest.fail("the training began"))
    monkeypatch.setattr(
        hub_export, "save_classifier", lambda folder, _, model: saved(folder, load_text_classifier(model, corpus), model)
    )  # with another head
    for train in (
        lambda: train_baseline(corpus, tmp_path / "run", text_model=text_model),
        lambda: train_teacher(corpus, None, privileged="none", run_dir=tmp_path / "run", text_model=text_model),
    ):
        with pytest.raises(InputError, match=r"whose logits differ by .* between lugpi and transformers' pipeline"):
            train()


def test_what_cannot_be_saved_is_refused_before_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text_model = find_text_model(str(tiny_text_model(tmp_path / "model", "bert")), max_length=None)
    classifier = TextClassifier(load_text_classifier(text_model, corpus_of_words()))

    def unsavable(folder: Path) -> None:
        raise ValueError("Custom PreTokenizer cannot be serialized")

    monkeypatch.setattr(text_model.tokenizer, "save_pretrained", unsavable)
    with pytest.raises(InputError, match="Custom PreTokenizer cannot be serialized"):
        rehearse(tmp_path, classifier, text_model, corpus_of_words())


def test_a_rehearsal_changes_no_weight_and_no_seed(tmp_path: Path) -> None:
    text_model = find_text_model(str(tiny_text_model(tmp_path / "model", "bert")), max_length=None)
    classifier = TextClassifier(load_text_classifier(text_model, corpus_of_words())).train()
    weights = {name: value.clone() for name, value in classifier.state_dict().items()}
    torch.manual_seed(5)
    before = torch.get_rng_state()
    rehearse(tmp_path, classifier, text_model, corpus_of_words())
    assert torch.equal(torch.get_rng_state(), before)
    assert classifier.training
    assert all(torch.equal(value, weights[name]) for name, value in classifier.state_dict().items())


def test_the_pad_token_that_was_missing_is_in_the_exported_folder(tmp_path: Path) -> None:
    folder = tiny_text_model(tmp_path / "model", "gpt2")
    assert reread(folder).pad_token is None
    model = train_baseline(corpus_of_words(), tmp_path / "run", text_model=str(folder), optimization=STEPS)
    tokenizer = reread(model.folder)
    assert tokenizer.pad_token == tokenizer.eos_token
    assert json.loads((model.folder / "config.json").read_text())["pad_token_id"] == tokenizer.pad_token_id


def test_label_names_do_not_break_the_card(tmp_path: Path) -> None:
    folder = tiny_text_model(tmp_path / "model", "bert")
    corpus = corpus_of_words(("**bold** | [a](b)\n# head", "`code`"))
    model = train_baseline(corpus, tmp_path / "run", text_model=str(folder), optimization=STEPS)
    card = (model.folder / "README.md").read_text()
    assert r"\*\*bold\*\* \| \[a\]\(b\) \# head, \`code\`" in card
    assert not any(line.startswith("# head") for line in card.splitlines())
    assert escaped("plain words") == "plain words"
