"""``python -m train onnx --int8``: the file is the written formula, no text moves another's answer, and what is told is so."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx as onnx_library
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import train.tools.onnx_figures as figures_module
from lugpi_core.command_line import run
from lugpi_core.errors import InputError
from train.models.classifier import load_classifier
from train.models.commands import baseline
from train.options.tools import OnnxOptions
from train.options.training import BaselineOptions
from train.tools.onnx_export import check_batches, onnx
from train.tools.onnx_figures import export_int8
from train.tools.onnx_int8 import write_int8
from train.tools.onnx_session import OnnxSession

PAIRS = (("fox", "river"), ("soup", "fox"))
MULTI = "text,label\n" + "".join(f"a {a} and a {b} of day {n},{a}|{b}\n" for n in range(12) for a, b in PAIRS)
NUMBERS = "text,label\n" + "".join(f"{'very ' * (n % 5)}good soup {n},{n % 5}.5\n" for n in range(30))


def trained(folder: Path, text: str, *flags: str) -> Path:
    """A baseline of the demo's text model on a small corpus of that text."""
    folder.mkdir(parents=True)
    table = folder / "own.csv"
    table.write_text(text)
    training = ("--text-model", "demo", "--epochs", "2", "--learning-rate", "1e-3", "--device", "cpu", "--run-dir", str(folder))
    assert run(baseline, BaselineOptions, ["--dataset", str(table), *training, *flags], prog="baseline") == 0
    return folder / "baseline"


@pytest.fixture(scope="module")
def exported(small_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A baseline of three classes with both files, and the command's figures."""
    folder = trained(tmp_path_factory.mktemp("int8") / "run", small_csv.read_text(), "--split-column", "split")
    return folder, onnx(OnnxOptions(model=folder, int8=True))


def logits_of(path: Path, batch: dict[str, Any]) -> Any:
    return OnnxSession(path).logits(batch).numpy()


def padding_of(path: Path, folder: Path) -> float:
    """The largest change of a logit between a text alone and in a batch with longer ones."""
    batch = check_batches(load_classifier(folder).text_model)[-1]
    together = logits_of(path, batch)
    alone = [
        logits_of(path, {name: values[n : n + 1, : int(batch["attention_mask"][n].sum())] for name, values in batch.items()})[0]
        for n in range(len(together))
    ]
    return float(np.abs(together - np.stack(alone)).max())


def test_the_int8_file_is_small_and_near_float32(exported: tuple[Path, dict[str, Any]]) -> None:
    folder, figures = exported
    int8 = figures["int8"]
    assert int8["path"] == str(folder / "model.int8.onnx")
    assert int8["bytes"] == (folder / "model.int8.onnx").stat().st_size < 0.35 * figures["bytes"]
    assert 0 < int8["max_logit_difference"] < 0.2
    assert not list(folder.glob(".*"))


def test_padding_and_neighbours_move_no_int8_answer(exported: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    folder, figures = exported
    assert padding_of(folder / "model.int8.onnx", folder) < 1e-4
    assert figures["int8"]["padding"]["int8"] < 1e-4
    usual = onnx_library.load(folder / "model.onnx")
    del usual.graph.value_info[:]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantize_dynamic(usual, tmp_path / "usual.onnx")
    assert padding_of(tmp_path / "usual.onnx", folder) > 5e-4


def test_scores_and_agreement_are_those_of_the_validation_split(exported: tuple[Path, dict[str, Any]], small_csv: Path) -> None:
    folder, figures = exported
    int8 = figures["int8"]
    assert (int8["split"], int8["texts"]) == ("validation", 12)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert int8["scores"]["float32"]["accuracy"] == pytest.approx(metrics["accuracy"]["validation"])
    assert 0 <= int8["agreement"] <= 1
    assert set(int8["scores"]["int8"]) == {"accuracy", "macro_f1"}


@pytest.mark.parametrize(
    ("text", "flags", "metric", "problem_type"),
    [
        (MULTI, ("--task", "multi-label", "--label-separator", "|"), "macro_f1", "multi_label_classification"),
        (NUMBERS, ("--task", "regression"), "spearman", "regression"),
    ],
)
def test_other_tasks_have_their_scores_and_metadata(
    tmp_path: Path, text: str, flags: tuple[str, ...], metric: str, problem_type: str
) -> None:
    folder = trained(tmp_path / "run", text, *flags)
    figures = onnx(OnnxOptions(model=folder, int8=True))
    assert metric in figures["int8"]["scores"]["int8"]
    config = json.loads((folder / "config.json").read_text())
    for name in ("model.onnx", "model.int8.onnx"):
        about = onnxruntime.InferenceSession(str(folder / name), providers=["CPUExecutionProvider"]).get_modelmeta().custom_metadata_map
        assert about["problem_type"] == config["problem_type"] == problem_type
        assert json.loads(about.get("thresholds", "null")) == config.get("thresholds")


def test_without_its_corpus_texts_of_the_demo_are_compared_and_that_is_told(
    exported: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = exported[0]
    figures = export_int8(tmp_path, load_classifier(folder), folder / "model.onnx", tmp_path / "int8.onnx")
    assert figures["split"] == "the demo's texts"
    assert "scores" not in figures
    assert "note: compared on texts of the demo" in capsys.readouterr().err


def test_padding_is_also_that_beside_the_longest_text(
    exported: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = exported[0]
    classifier = load_classifier(folder)
    whole = OnnxSession.logits_of

    def logits_of(self: Any, text_model: Any, ids: Any, batches: Any) -> Any:
        logits = whole(self, text_model, ids, batches)
        longest = max(int(ids.lengths_N[rows].max()) for rows in batches)
        return logits + 0.5 * (longest == classifier.text_model.max_length)

    monkeypatch.setattr(OnnxSession, "logits_of", logits_of)
    figures = export_int8(folder, classifier, folder / "model.onnx", tmp_path / "int8.onnx")
    assert figures["padding"] == pytest.approx({"float32": 0.5, "int8": 0.5}, abs=1e-3)
    assert "warning: padding moves a logit of this model by 0.5" in capsys.readouterr().err


def test_an_int8_file_that_padding_moves_is_not_written(
    exported: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures_module, "LARGEST_PADDING", -1.0)
    monkeypatch.setattr(figures_module, "_largest", lambda difference: next(moved))
    moved = iter([0.1, 0.3])
    folder = exported[0]
    with pytest.raises(InputError, match=r"int8 logits that padding moves by 0\.3"):
        export_int8(folder, load_classifier(folder), folder / "model.onnx", tmp_path / "int8.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("turned", [False, True])
def test_a_product_is_the_written_formula(tmp_path: Path, turned: bool) -> None:
    rng = np.random.default_rng(0)
    weight_IO, bias_O = rng.normal(size=(8, 5)).astype(np.float32), rng.normal(size=5).astype(np.float32)
    weight_IO[:, 2] = 0  # a column without a scale of its own
    tokens_LI = rng.normal(size=(3, 8)).astype(np.float32) * np.array([[1], [100], [0]], np.float32)
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=int(turned))
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["L", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["L", 5])],
        [numpy_helper.from_array(weight_IO.T.copy() if turned else weight_IO, "w"), numpy_helper.from_array(bias_O, "b")],
    )
    source = tmp_path / "source.onnx"
    onnx_library.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), source)
    assert write_int8(source, tmp_path / "int8.onnx", classes=3) == 1
    (result_LO,) = onnxruntime.InferenceSession(str(tmp_path / "int8.onnx"), providers=["CPUExecutionProvider"]).run(None, {"x": tokens_LI})

    s_L1 = np.maximum(np.abs(tokens_LI).max(1, keepdims=True), np.float32(1e-30)) * np.float32(1 / 127)
    t_O = np.abs(weight_IO).max(0) / 63
    t_O[2] = 1
    whole_LI, whole_IO = np.rint(tokens_LI / s_L1), np.rint(weight_IO / t_O)
    np.testing.assert_allclose(result_LO, s_L1 * t_O * (whole_LI @ whole_IO) + bias_O, rtol=1e-5, atol=1e-5)
    assert write_int8(source, tmp_path / "none.onnx", classes=5) == 0, "the matrix to the classes stays in float32"
