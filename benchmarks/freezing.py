"""The price of frozen layers: the accuracy of baselines beside the seconds of an epoch, peak memory and disk, by how many are frozen.

Every model is trained in a process of its own, so that its peak memory is its own. The hidden states of a corpus are shared by the seeds.
"""

import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.experiments import DEMO, REAL, Experiment, run_commands
from benchmarks.harness import finish, minilm_folder
from benchmarks.options import FreezingOptions
from lugpi_core.command_line import say
from lugpi_core.errors import InputError
from lugpi_core.files import read_json

EXPERIMENTS = {**REAL, "demo": DEMO}
# A head that is trained alone takes a larger rate than the whole model: the first part of lp-ft has the same.
_HEAD = ("--update", "head", "--learning-rate", "1e-3")
_SMALL = ("--limit", "60", "--epochs", "1", "--max-length", "16")


def measure(options: FreezingOptions) -> dict[str, Any]:
    """Train what is missing and return the table of each corpus.

    Raises:
        InputError: an unknown corpus, the package with MiniLM is not installed, or one of the commands failed.
    """
    if unknown := [name for name in options.corpora if name not in EXPERIMENTS]:
        raise InputError(got=f"--corpora {unknown[0]}", expected=f"one of {', '.join(EXPERIMENTS)}", do="choose among them")
    figures = {name: _price(options, name, EXPERIMENTS[name]) for name in options.corpora}
    return finish("freezing", figures, record=options.record)


def ways_of(layers: int) -> dict[str, tuple[str, ...]]:
    """Return the flags of each number of frozen layers: none, every second or, of few layers, every one, and all."""
    counts = range(1 if layers < 4 else 2, layers, 1 if layers < 4 else 2)
    return {"0": (), **{str(count): ("--freeze-layers", str(count)) for count in counts}, "all": _HEAD}


def _price(options: FreezingOptions, name: str, experiment: Experiment) -> dict[str, Any]:
    run = options.runs / f"{name}-freezing{'-smoke' if options.smoke else ''}"
    is_demo = name == "demo"
    text_model = () if is_demo else ("--text-model", str(minilm_folder()), "--data-dir", str(options.data_dir))
    common = (*experiment.corpus, "--run-dir", str(run), *experiment.training, *text_model, *(_SMALL if options.smoke else ()))
    ways = ways_of(2 if is_demo else 6)
    seeds = range(1 if options.smoke else options.seeds)
    rows = {}
    for frozen, flags in ways.items():
        models = [f"baseline-{frozen}-{seed}" for seed in seeds]
        for seed, model in enumerate(models):
            if not (run / model / "metrics.json").is_file():
                run_commands([("train", "baseline", *_without_given(common, flags), *flags, "--seed", str(seed), "--name", model)])
        rows[frozen] = _row([read_json(run / model / "metrics.json") for model in models])
    for row in rows.values():
        row["epoch_over"] = round(rows["0"]["epoch_s"] / row["epoch_s"], 2)
    say(f"freezing, {name}: {rows}")
    disk_bytes = sum(path.stat().st_size for path in (run / "prefix").rglob("shard-*"))
    return {"settings": " ".join((*experiment.corpus, *experiment.training)), "frozen": rows, "prefix_bytes": disk_bytes}


def _without_given(common: Sequence[str], flags: Sequence[str]) -> list[str]:
    """Return the common flags without those that a way sets itself."""
    own = {flag for flag in flags if flag.startswith("--")}
    kept, skipped = [], False
    for word in common:
        skipped = word in own or (skipped and not word.startswith("--"))
        if not skipped:
            kept.append(word)
    return kept


def _row(metrics: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return a row over the seeds: mean and standard deviation of the accuracy, seconds of the fastest epoch, which nothing else on the
    machine has slowed, and the largest peak."""
    accuracy = [each["accuracy"]["test"] for each in metrics]
    return {
        "accuracy": round(statistics.mean(accuracy), 4),
        "sd": round(statistics.stdev(accuracy), 4) if len(accuracy) > 1 else None,
        "epoch_s": round(min(record["seconds"] for each in metrics for record in each["history"]), 3),
        "prefix_s": max(each["times"].get("prefix_s", 0.0) for each in metrics),
        "peak_gb": round(max(each["peak_memory"]["host_bytes"] for each in metrics) / 1e9, 3),
    }
