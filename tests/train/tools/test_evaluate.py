"""``python -m train evaluate``: predictions for a file, compared with those of transformers for one text at a time."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import train.tools.evaluate as module
from lugpi_core.command_line import run
from lugpi_core.errors import InputError
from lugpi_core.runtime.device import resolve_compute
from lugpi_core.runtime.pretrained import embedded_model
from tests.support.checkout import ROOT
from tests.support.read_only import make_read_only
from train.models.classifier import load_classifier, predicted_logits
from train.options.tools import EvaluateOptions
from train.tools.evaluate import class_columns, evaluate, label_numbers

TEXTS = ["a dog", "the cat is a small animal with fur and a tail that hunts at night", "bread", "a blue, cloudy sky", "x " * 300]
NAMES = ("animals", "food", "sky")


def classifier_folder(folder: Path, *names: str) -> Path:
    """A DistilBERT classifier of the embedded model with a seeded head whose answers differ from text to text."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(3)
    labels = dict(enumerate(names))
    model = AutoModelForSequenceClassification.from_pretrained(
        embedded_model("text"), num_labels=len(names), id2label=labels, dtype=torch.float32
    )
    tokenizer = AutoTokenizer.from_pretrained(embedded_model("text"))
    with torch.no_grad():
        model.classifier.weight.normal_()
        model.pre_classifier.weight.normal_(std=0.3)
        read = tokenizer(TEXTS, truncation=True, padding=True, return_tensors="pt")
        model.classifier.bias -= model.eval()(**read).logits.mean(dim=0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return classifier_folder(tmp_path_factory.mktemp("model") / "student", *NAMES)


@pytest.fixture(scope="module")
def expected(model: Path) -> list[list[float]]:
    """The probabilities of TEXTS by the library alone, one text in a batch."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    classifier, tokenizer = AutoModelForSequenceClassification.from_pretrained(model).eval(), AutoTokenizer.from_pretrained(model)
    with torch.inference_mode():
        logits = [classifier(**tokenizer(text, truncation=True, return_tensors="pt")).logits[0] for text in TEXTS]
    probabilities: list[list[float]] = [one.softmax(dim=0).tolist() for one in logits]
    assert len({max(range(3), key=row.__getitem__) for row in probabilities}) > 1, "a reference that tells texts apart"
    return probabilities


def file_of(folder: Path, suffix: str, columns: dict[str, list[Any]]) -> Path:
    path = folder / f"texts{suffix}"
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    match suffix:
        case ".txt":
            path.write_text("\n".join(columns["text"]) + "\n")
        case ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        case ".parquet":
            import pyarrow
            import pyarrow.parquet

            pyarrow.parquet.write_table(pyarrow.table(columns), path)
        case _:
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, list(columns))
                writer.writeheader()
                writer.writerows(rows)
    return path


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    capsys.readouterr()
    assert run(evaluate, EvaluateOptions, [str(argument) for argument in arguments], prog="evaluate") == 2
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, captured.err
    assert captured.out == ""
    return errors[0]


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_probabilities_match_transformers_in_the_files_order(
    model: Path, expected: list[list[float]], tmp_path: Path, suffix: str, batch_size: int
) -> None:
    figures = evaluate(EvaluateOptions(model=model, input=file_of(tmp_path, suffix, {"text": TEXTS}), batch_size=batch_size, device="cpu"))
    assert figures["output"] == str(tmp_path / "texts.predictions.csv")
    rows = rows_of(tmp_path / "texts.predictions.csv")
    assert list(rows[0]) == ["id", "label", *NAMES]
    assert [row["id"] for row in rows] == ["0", "1", "2", "3", "4"]
    for row, probabilities in zip(rows, expected, strict=True):
        assert [float(row[name]) for name in NAMES] == pytest.approx(probabilities, abs=1e-5)
        assert row["label"] == NAMES[max(range(3), key=probabilities.__getitem__)]
    assert figures["texts"] == sum(figures["labels"].values()) == 5
    assert "accuracy" not in figures


def test_scores_use_the_labels_of_the_file(model: Path, expected: list[list[float]], tmp_path: Path) -> None:
    from sklearn.metrics import accuracy_score, f1_score

    captured = [NAMES[max(range(3), key=row.__getitem__)] for row in expected]
    labels = [*captured[:3], *(next(name for name in NAMES if name != one) for one in captured[3:])]
    path = file_of(tmp_path, ".csv", {"kind": labels, "text": TEXTS})
    figures = evaluate(EvaluateOptions(model=model, input=path, label_column="kind", device="cpu"))
    assert figures["accuracy"] == accuracy_score(labels, captured) == 0.6
    assert figures["macro_f1"] == pytest.approx(f1_score(labels, captured, average="macro", zero_division=0.0), abs=1e-6)


def test_a_baselines_scores_match_its_metrics(small_csv: Path, tmp_path: Path) -> None:
    from train.models.commands import baseline
    from train.options.training import BaselineOptions

    trained = baseline(
        BaselineOptions(
            dataset=str(small_csv),
            split_column="split",
            run_dir=tmp_path / "run",
            text_model="demo",
            epochs=2,
            learning_rate=1e-3,
            optimizer="adamw",
            device="cpu",
        )
    )
    figures = evaluate(EvaluateOptions(model=tmp_path / "run" / "baseline", input=small_csv, output=tmp_path / "o.csv", device="cpu"))
    hits = sum(trained["accuracy"][split] * count for split, count in trained["examples"].items())
    assert figures["accuracy"] == pytest.approx(hits / 60, abs=1e-6)
    logits = rows_of(tmp_path / "run" / "baseline" / "predictions.csv")
    for ours, theirs in zip(rows_of(tmp_path / "o.csv"), logits, strict=True):
        expected = torch.tensor([float(theirs[f"logit_{k}"]) for k in range(3)]).softmax(dim=0).tolist()
        assert [float(ours[name]) for name in NAMES] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("ids", "shown"), [(["b", "a", "c", "7", "e"], ["b", "a", "c", "7", "e"]), (["a"] * 5, ["0", "1", "2", "3", "4"])])
def test_unique_ids_of_the_file_are_kept(model: Path, tmp_path: Path, ids: list[str], shown: list[str]) -> None:
    evaluate(EvaluateOptions(model=model, input=file_of(tmp_path, ".jsonl", {"text": TEXTS, "id": ids}), device="cpu"))
    assert [row["id"] for row in rows_of(tmp_path / "texts.predictions.csv")] == shown


def test_an_id_that_no_file_can_take_is_told(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "a dog", "id": "x"}\n{"text": "a cat", "id": "\\ud800"}\n')
    assert "got 1 id with half a surrogate pair in id of" in refused(capsys, "--model", model, "--input", path)


@pytest.mark.parametrize(
    ("names", "columns"),
    [
        (("yes", "no"), ["yes", "no"]),
        (("id", "label", "x"), ["class_id", "class_label", "x"]),
        (("class_id", "id"), ["class_id", "class_class_id"]),
        (("x", "x"), ["x", "class_x"]),
    ],
)
def test_every_class_has_its_own_column(names: tuple[str, ...], columns: list[str]) -> None:
    assert class_columns(names) == columns


def test_a_class_named_label_keeps_its_name(tmp_path: Path) -> None:
    folder = classifier_folder(tmp_path / "model", "id", "label")
    evaluate(EvaluateOptions(model=folder, input=file_of(tmp_path, ".txt", {"text": TEXTS}), device="cpu"))
    rows = rows_of(tmp_path / "texts.predictions.csv")
    assert list(rows[0]) == ["id", "label", "class_id", "class_label"]
    assert {row["label"] for row in rows} <= {"id", "label"}


def test_batches_have_texts_of_similar_length_and_the_given_size(model: Path) -> None:
    classifier = load_classifier(model)
    shapes: list[tuple[int, int]] = []
    classifier.model.register_forward_pre_hook(lambda _, __, given: shapes.append(tuple(given["input_ids"].shape)), with_kwargs=True)
    texts = [" ".join("d" * (1 + n % 10)) for n in range(100)]
    predicted_logits(classifier, texts, resolve_compute("cpu", "auto", half="bfloat16"), batch_size=10)
    shapes = shapes[-10:]  # before them, the model is examined
    assert [rows for rows, _ in shapes] == [10] * 10
    assert [length for _, length in shapes] == [length + 2 for length in range(10, 0, -1)]  # two special tokens; no padding at all


def test_few_texts_of_mixed_lengths_are_not_filled_up_to_the_longest(model: Path) -> None:
    classifier = load_classifier(model)
    computed: list[int] = []
    classifier.model.register_forward_pre_hook(lambda _, __, given: computed.append(given["input_ids"].numel()), with_kwargs=True)
    texts = [" ".join("d" * length) for length in (100, 60, 58, 7, 6, 5, 5, 4, 3, 2)]
    predicted_logits(classifier, texts, resolve_compute("cpu", "auto", half="bfloat16"), batch_size=64)
    assert computed[-3:] == [102, 2 * 62, 7 * 9]
    assert "weights_hash" not in vars(classifier.text_model), "the weights are not hashed"


def test_texts_are_cut_to_max_length(model: Path) -> None:
    compute = resolve_compute("cpu", "auto", half="bfloat16")
    long, short = ["d " * 50], ["d " * 6]
    assert torch.equal(*(predicted_logits(load_classifier(model, max_length=8), texts, compute, batch_size=4) for texts in (long, short)))
    assert not torch.equal(*(predicted_logits(load_classifier(model), texts, compute, batch_size=4) for texts in (long, short)))


def test_labels_are_read_as_numbers_and_as_words() -> None:
    assert label_numbers([1, 0.0, " 2 "], ["0", "1", "2"], where="y").tolist() == [1, 0, 2]
    with pytest.raises(InputError, match=r"2 labels in y .* first 1\.5: rows, counted from 0, 1, 2"):
        label_numbers(["0", 1.5, None], ["0", "1"], where="y")


@pytest.mark.parametrize(
    ("values", "names", "numbers"),
    [
        (["1.0", " 2 ", 2.0], ("1", "2"), [0, 1, 1]),
        ([1, 2], ("2", "1"), [1, 0]),
        ([True, "true", "FALSE", 0], ("False", "True"), [1, 1, 0, 0]),
        ([" a ", "b"], ("a", " b "), [0, 1]),
        ([0, "1", 1.0], ("no", "yes"), [0, 1, 1]),
    ],
)
def test_labels_are_read_as_those_of_a_corpus(values: list[object], names: tuple[str, ...], numbers: list[int]) -> None:
    assert label_numbers(values, names, where="y").tolist() == numbers


def test_numbers_of_a_file_with_class_names_are_places_among_them() -> None:
    assert label_numbers([0, 1, "no"], ("no", "yes"), where="y", file_classes=("yes", "no")).tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("content", "flags", "message"),
    [
        ("text\n", (), "no texts in"),
        ("", (), "no texts in"),
        ("texts\na dog\n", (), "no column 'text'"),
        ("text\na dog\n", ("--label-column", "kind"), "no column 'kind'"),
        ("text,label\na dog,anmals\n", (), "'anmals'"),
        ("text,label\na dog,animals\n,food\n", (), "1 empty text in text"),
        ("text\na dog\n", ("--max-length", "4000"), "--max-length 4000"),
        ("text\na dog\n", ("--batch-size", "0"), "--batch-size 0"),
        ("text\na dog\n", ("--label-column", "text"), "two columns"),
        ("text\na dog\n", ("--dtype", "float16", "--device", "cpu"), "--dtype float16"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_output(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, flags: tuple[str, ...], message: str
) -> None:
    path = tmp_path / "texts.csv"
    path.write_text(content)
    assert message in refused(capsys, "--model", model, "--input", path, *flags)
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_written_is_refused_before_any_text(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = file_of(tmp_path, ".txt", {"text": TEXTS})
    no_text_is_computed(monkeypatch)
    for output in (tmp_path / "fixed" / "a.csv", path / "a.csv"):  # the second is below a file
        with monkeypatch.context() as patch:
            make_read_only(patch, tmp_path / "fixed")
            assert "expected a folder that can be written" in refused(capsys, "--model", model, "--input", path, "--output", output)


def test_the_input_is_never_overwritten(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = file_of(tmp_path, ".csv", {"text": TEXTS})
    before = path.read_bytes()
    (tmp_path / "link").symlink_to(tmp_path)
    for output in (path, tmp_path / "link" / path.name):
        assert "which is the input" in refused(capsys, "--model", model, "--input", path, "--output", output)
    assert "a folder" in refused(capsys, "--model", model, "--input", path, "--output", tmp_path)
    assert path.read_bytes() == before


def test_a_folder_without_a_whole_classifier_is_refused(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    path = file_of(tmp_path, ".txt", {"text": TEXTS})

    def spoiled(name: str) -> Path:
        return Path(shutil.copytree(model, tmp_path / name))

    def captured(folder: Path) -> str:
        return refused(capsys, "--model", folder, "--input", path)

    assert "no folder" in captured(tmp_path / "nowhere")
    (spoiled("no-config") / "config.json").unlink()
    assert "without config.json" in captured(tmp_path / "no-config")
    (spoiled("no-weights") / "model.safetensors").unlink()
    assert "without config.json or without weights" in captured(tmp_path / "no-weights")
    weights = spoiled("damaged") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    assert "does not load" in captured(tmp_path / "damaged")
    (spoiled("teacher") / "metrics.json").write_text('{"command": "teacher"}')
    (tmp_path / "teacher" / "config.json").unlink()
    assert "python -m train teacher, which reads image tokens and is no Hugging Face classifier" in captured(tmp_path / "teacher")
    assert "a model of DistilBertModel" in captured(embedded_model("text"))


def test_missing_weights_are_not_replaced_by_random_ones(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(model, tmp_path / "headless"))
    weights = load_file(folder / "model.safetensors")
    del weights["classifier.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    path = file_of(tmp_path, ".txt", {"text": TEXTS})
    assert "without the weights classifier.weight" in refused(capsys, "--model", folder, "--input", path)


def test_infinite_logits_are_not_written(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(model, tmp_path / "nan"))
    weights = load_file(folder / "model.safetensors")
    weights["classifier.bias"][0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    path = file_of(tmp_path, ".txt", {"text": TEXTS})
    assert "not finite" in refused(capsys, "--model", folder, "--input", path)
    assert not (tmp_path / "texts.predictions.csv").exists()


@pytest.mark.parametrize(
    ("module", "needless"),
    [
        ("train.options.tools", {"torch", "transformers", "numpy", "optuna", "onnx", "onnxruntime", "sklearn"}),
        ("train.tools.evaluate", {"lugpi_core.store", "lugpi_core.corpora.hub", "train.data.training_data", "h5py", "pandas", "pyarrow"}),
    ],
)
def test_only_what_is_needed_is_imported(module: str, needless: set[str]) -> None:
    code = f"import sys, {module}\nfound = {needless} & set(sys.modules)\nsys.exit(f'imported {{found}}' if found else 0)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def with_config(model: Path, folder: Path, **config: Any) -> Path:
    """A copy of the classifier whose configuration says something else."""
    import shutil

    shutil.copytree(model, folder)
    written = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(written))
    return folder


def evaluated(folder: Path, path: Path, **options: Any) -> tuple[dict[str, Any], list[dict[str, str]]]:
    figures = evaluate(EvaluateOptions(model=folder, input=path, device="cpu", **options))
    return figures, rows_of(path.with_name(f"{path.stem}.predictions.csv"))


@pytest.mark.parametrize("thresholds", [None, [0.3, 0.7, 0.0]])
def test_a_multi_label_classifier_of_others_names_several_classes(model: Path, tmp_path: Path, thresholds: list[float] | None) -> None:
    from transformers import pipeline

    more = {} if thresholds is None else {"thresholds": thresholds}
    folder = with_config(model, tmp_path / "multi", problem_type="multi_label_classification", **more)
    path = file_of(tmp_path, ".jsonl", {"text": TEXTS, "label": [["sky"], [], ["food", "sky"], ["animals"], []]})
    figures, rows = evaluated(folder, path)
    found = pipeline("text-classification", model=str(folder), device="cpu")(TEXTS, top_k=None, truncation=True)
    for row, answers in zip(rows, found, strict=True):
        scores = {answer["label"]: answer["score"] for answer in answers}
        assert {name: float(row[name]) for name in NAMES} == pytest.approx(scores, abs=1e-6)
        limits = dict(zip(NAMES, thresholds or [0.5] * 3, strict=True))
        assert row["label"].split("|") == ([name for name in NAMES if scores[name] >= limits[name]] or [""])
    assert set(figures) >= {"macro_f1", "micro_f1", "subset_accuracy", "labels"}
    assert figures["task"] == "multi-label"
    if thresholds is not None:
        assert figures["labels"]["sky"] == 5, "a threshold of 0"


def test_a_column_for_each_class_is_scored_as_lists_are(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``--label-column sky,food,animals``, as training takes it, in any order."""
    folder = with_config(model, tmp_path / "multi", problem_type="multi_label_classification")
    lists = [["sky"], [], ["food", "sky"], ["animals"], []]
    columns = {name: [str(int(name in row)) for row in lists] for name in NAMES}
    path = file_of(tmp_path, ".csv", {"text": TEXTS, **columns})
    figures, _ = evaluated(folder, path, label_column="sky, food,animals")
    of_lists, _ = evaluated(folder, file_of(tmp_path, ".jsonl", {"text": TEXTS, "label": lists}))
    for metric in ("macro_f1", "micro_f1", "subset_accuracy"):
        assert figures[metric] == of_lists[metric]
    arguments = ("--input", path, "--label-column")
    assert "no column of the class 'animals'" in refused(capsys, "--model", folder, *arguments, "sky,food")
    assert "no column 'sea'" in refused(capsys, "--model", folder, *arguments, "sky,sea")
    assert "where text is the column of a text" in refused(capsys, "--model", folder, *arguments, "sky,text")
    assert "3 label columns for a single-label model" in refused(capsys, "--model", model, *arguments, "sky,food,animals")


@pytest.mark.parametrize("separator", [None, ";"])
def test_labels_of_a_cell_are_separated(model: Path, tmp_path: Path, separator: str | None) -> None:
    folder = with_config(model, tmp_path / "multi", problem_type="multi_label_classification")
    cells = [(separator or "|").join(names) for names in (["sky"], [], ["food", "sky"], ["animals"], [])]
    table, lists = (tmp_path / name for name in ("table", "lists"))
    table.mkdir()
    lists.mkdir()
    figures, rows = evaluated(folder, file_of(table, ".csv", {"text": TEXTS, "label": cells}), label_separator=separator)
    of_lists, _ = evaluated(folder, file_of(lists, ".jsonl", {"text": TEXTS, "label": [["sky"], [], ["food", "sky"], ["animals"], []]}))
    for metric in ("macro_f1", "micro_f1", "subset_accuracy"):
        assert figures[metric] == of_lists[metric]
    # What evaluate writes, evaluate reads: all its own answers are right.
    again, _ = evaluated(
        folder, file_of(table, ".csv", {"text": TEXTS, "label": [row["label"] for row in rows]}), label_separator=separator
    )
    assert again["subset_accuracy"] == 1


def no_text_is_computed(patch: pytest.MonkeyPatch) -> None:
    def computed(*_: Any, **__: Any) -> Any:
        pytest.fail("a text was computed")

    patch.setattr(module, "predicted_logits", computed)


def test_a_class_with_the_separator_in_its_name_is_refused_before_any_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = with_config(classifier_folder(tmp_path / "m", "a|b", "c"), tmp_path / "multi", problem_type="multi_label_classification")
    path = file_of(tmp_path, ".txt", {"text": TEXTS})
    with monkeypatch.context() as patch:
        no_text_is_computed(patch)
        assert "--label-separator" in refused(capsys, "--model", folder, "--input", path)
    assert evaluated(folder, path, label_separator=";")[0]["texts"] == 5


@pytest.mark.parametrize("problem_type", [None, "regression"])
def test_a_single_output_is_a_number(tmp_path: Path, capsys: pytest.CaptureFixture[str], problem_type: str | None) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = with_config(classifier_folder(tmp_path / "m", "score"), tmp_path / "number", problem_type=problem_type)
    path = file_of(tmp_path, ".csv", {"text": TEXTS, "label": ["1", "2.5", "-3e-1", " 4 ", "0"]})
    figures, rows = evaluated(folder, path)
    classifier, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        numbers = [classifier(**tokenizer(text, truncation=True, return_tensors="pt")).logits.item() for text in TEXTS]
    assert list(rows[0]) == ["id", "label"]
    assert [float(row["label"]) for row in rows] == pytest.approx(numbers, rel=1e-4)
    right = [1, 2.5, -0.3, 4, 0]
    assert figures["mse"] == pytest.approx(sum((a - b) ** 2 for a, b in zip(numbers, right, strict=True)) / 5, rel=1e-4)
    assert set(figures) >= {"spearman", "pearson", "mse", "task"}
    assert not {"labels", "accuracy"} & set(figures)
    assert ("names no problem_type" in capsys.readouterr().err) == (problem_type is None)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"problem_type": "regression"}, "regression of 3 labels"),
        ({"problem_type": "multi_label_classification", "thresholds": [0.5]}, "a list of 3 numbers"),
        ({"problem_type": "multi_label_classification", "thresholds": "0.5"}, "a list of 3 numbers"),
        ({"problem_type": "multi_label_classification", "thresholds": [0.5, None, 0.5]}, "a list of 3 numbers"),
    ],
)
def test_a_configuration_that_contradicts_itself_is_told(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], config: dict[str, Any], told: str
) -> None:
    folder = with_config(model, tmp_path / "odd", **config)
    assert told in refused(capsys, "--model", folder, "--input", file_of(tmp_path, ".txt", {"text": TEXTS}))


@pytest.mark.parametrize(
    ("config", "labels", "told"),
    [
        ({"problem_type": "multi_label_classification"}, [["sky"], ["sea"], [], [], []], "the first ['sea']"),
        ({"problem_type": "regression", "id2label": {"0": "n"}}, ["1", "much", "2", "3", "4"], "the first 'much'"),
    ],
)
def test_labels_of_another_task_are_told(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], config: dict[str, Any], labels: list[Any], told: str
) -> None:
    source = classifier_folder(tmp_path / "m", "n") if "id2label" in config else model
    folder = with_config(source, tmp_path / "task", **config)
    path = file_of(tmp_path, ".jsonl", {"text": TEXTS, "label": labels})
    assert told in refused(capsys, "--model", folder, "--input", path)
    assert not path.with_name("texts.predictions.csv").exists()


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--text-pair-column", "text"], "two columns"),
        (["--label-column", "b", "--text-pair-column", "b"], "two columns"),
        (["--text-pair-column", "b"], "no column 'b'"),
        (["--label-separator", ""], "an empty --label-separator"),
    ],
)
def test_columns_and_separators_that_cannot_be_are_told(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], told: str
) -> None:
    assert told in refused(capsys, "--model", model, "--input", file_of(tmp_path, ".csv", {"text": TEXTS}), *flags)


def test_a_separator_without_effect_is_told(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluated(model, file_of(tmp_path, ".txt", {"text": TEXTS}), label_separator=";")
    assert "--label-separator has no effect on a single-label model" in capsys.readouterr().err


def test_a_column_called_label_may_be_something_else(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = tmp_path / "given.csv"
    given.write_text("text,label\na dog,maybe\n")
    with pytest.raises(InputError, match="--label-column none if the file has no labels"):
        evaluate(EvaluateOptions(model=model, input=given, device="cpu"))
    assert "accuracy" not in evaluate(EvaluateOptions(model=model, input=given, device="cpu", label_column="none"))
    assert f"done: {given.with_name('given.predictions.csv')}" in capsys.readouterr().err
