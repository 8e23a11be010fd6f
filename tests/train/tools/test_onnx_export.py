"""``python -m train onnx``: one file that onnxruntime reads, with the classifier's logits."""

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

import train.tools.onnx_export as exporting
from lugpi_core.command_line import run
from lugpi_core.runtime.pretrained import embedded_model
from train.models.classifier import load_classifier
from train.options.tools import OnnxOptions
from train.tools.onnx_export import check_batches, onnx

NAMES = {0: "animals", 1: "food", 2: "sky"}


def classifier_folder(folder: Path, kind: str) -> Path:
    """A classifier with the embedded tokenizer: the embedded DistilBERT itself, or a small BERT."""
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        BertConfig,
        BertForSequenceClassification,
    )

    torch.manual_seed(1)
    tokenizer = AutoTokenizer.from_pretrained(embedded_model("text"))
    sizes: dict[str, Any] = {"vocab_size": len(tokenizer), "max_position_embeddings": 128, "num_labels": 3, "id2label": NAMES}
    match kind:
        case "embedded":
            model = AutoModelForSequenceClassification.from_pretrained(
                embedded_model("text"), num_labels=3, id2label=NAMES, dtype=torch.float32
            )
        case _:
            narrow = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
            model = BertForSequenceClassification(BertConfig(**narrow, **sizes))
    with torch.no_grad():
        model.classifier.weight.normal_()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The embedded DistilBERT's folder with its model.onnx, and the command's figures."""
    folder = classifier_folder(tmp_path_factory.mktemp("onnx") / "embedded", "embedded")
    return folder, onnx(OnnxOptions(model=folder))


def require_same_logits(folder: Path, path: Path) -> None:
    """Hold a file against the model on random ids and masks of shapes that the command did not try."""
    model = load_classifier(folder).model
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [(one.name, one.type) for one in session.get_inputs()] == [("input_ids", "tensor(int64)"), ("attention_mask", "tensor(int64)")]
    assert [one.name for one in session.get_outputs()] == ["logits"]
    assert json.loads(session.get_modelmeta().custom_metadata_map["id2label"]) == {str(number): name for number, name in NAMES.items()}
    random = np.random.default_rng(0)
    for texts, length in ((1, 3), (1, 128), (2, 2), (9, 17), (16, 64)):
        ids = random.integers(5, 200, (texts, length))
        mask = (np.arange(length) < random.integers(1, length + 1, (texts, 1))).astype(np.int64)
        with torch.inference_mode():
            ours = model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).logits.numpy()
        (theirs,) = session.run(["logits"], {"input_ids": ids, "attention_mask": mask})
        assert theirs.shape == (texts, 3)
        np.testing.assert_allclose(theirs, ours, atol=1e-4, rtol=0)


def refused(capsys: pytest.CaptureFixture[str], folder: Path, *more: str) -> str:
    capsys.readouterr()
    assert run(onnx, OnnxOptions, ["--model", str(folder), *more], prog="onnx") == 2
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, captured.err
    assert captured.out == ""
    return errors[0]


def unexported(exported: tuple[Path, dict[str, Any]], folder: Path) -> Path:
    """A copy of the model's folder without the file."""
    shutil.copytree(exported[0], folder, ignore=shutil.ignore_patterns("*.onnx"))
    return folder


def test_the_file_has_the_models_logits(exported: tuple[Path, dict[str, Any]]) -> None:
    folder, figures = exported
    path = folder / "model.onnx"
    assert figures["path"] == str(path)
    assert figures["bytes"] == path.stat().st_size
    assert figures["opset"] >= 18
    assert 0 <= figures["max_logit_difference"] <= 1e-4
    assert not [one for one in folder.iterdir() if one.name.endswith((".data", ".partial"))]
    require_same_logits(folder, path)


def test_bert_is_exported_to_the_given_file(tmp_path: Path) -> None:
    folder = classifier_folder(tmp_path / "bert", "bert")
    figures = onnx(OnnxOptions(model=folder, output=tmp_path / "other.onnx"))
    assert figures["max_logit_difference"] <= 1e-4
    assert not (folder / "model.onnx").exists()
    require_same_logits(folder, tmp_path / "other.onnx")


def test_the_check_covers_single_equal_and_padded_texts(exported: tuple[Path, dict[str, Any]]) -> None:
    batches = check_batches(load_classifier(exported[0]).text_model)
    shapes = [tuple(batch["input_ids"].shape) for batch in batches]
    assert {rows for rows, _ in shapes} >= {1, 2, 3, 5, 7}
    assert max(length for _, length in shapes) == 128
    assert min(length for _, length in shapes) <= 4
    padded = [batch for batch in batches if not batch["attention_mask"].all()]
    assert len(padded) >= 3
    assert len({int(row.sum()) for batch in padded for row in batch["attention_mask"]}) >= 5
    assert len({tuple(row) for row in batches[-1]["input_ids"].tolist()}) == 6


@pytest.mark.parametrize("weight", [0.01, float("nan")])
def test_a_file_with_other_logits_is_not_kept(
    exported: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    weight: float,
) -> None:
    from safetensors.torch import load_file, save_file

    folder = unexported(exported, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["classifier.bias"][1] += weight
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    def write_other_onnx(path: Path, *_: Any) -> int:
        path.write_bytes((exported[0] / "model.onnx").read_bytes())
        return 20

    monkeypatch.setattr(exporting, "write_onnx", write_other_onnx)
    assert "logits of onnxruntime that differ by" in refused(capsys, folder)
    assert not list(folder.glob("*.onnx"))
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named_with_its_extra(
    exported: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], missing: str
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == missing else find(name, *more))
    captured = refused(capsys, exported[0])
    assert f"no package {missing};" in captured
    assert "pip install 'lugpi[onnx]'" in captured


def test_a_model_above_2_gb_is_refused(
    exported: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = unexported(exported, tmp_path / "model")
    monkeypatch.setattr(exporting, "LARGEST_BYTES", 1000)
    assert "below 2 GB" in refused(capsys, folder)
    assert not list(folder.glob("*.onnx"))


def test_a_failed_export_is_one_line_and_leaves_no_file(
    exported: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = unexported(exported, tmp_path / "model")

    def cannot(*_: Any, **__: Any) -> None:
        raise torch.onnx.errors.OnnxExporterError("a branch on data\nand a long story")

    monkeypatch.setattr(torch.onnx, "export", cannot)
    assert "DistilBertForSequenceClassification, which torch" in refused(capsys, folder)
    assert not list(folder.glob("*.onnx"))
    assert not list(folder.glob(".*"))


def test_a_folder_that_is_no_classifier_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no folder" in refused(capsys, tmp_path / "nowhere")
    assert "without config.json" in refused(capsys, tmp_path)


def test_an_output_that_is_a_folder_is_refused(
    exported: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "a folder" in refused(capsys, exported[0], "--output", str(tmp_path))
