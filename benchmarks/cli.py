"""``python -m benchmarks``: which question is measured. Heavy imports are inside the functions, so that --help starts quickly."""

from collections.abc import Sequence
from typing import Any

from benchmarks.options import (
    BenchmarkOptions,
    CardOptions,
    DemoOptions,
    FamiliesOptions,
    FreezingOptions,
    GenerationOptions,
    IdeasOptions,
    ModelsOptions,
    PromptsOptions,
    RealOptions,
    ScaleOptions,
    ShortcutOptions,
    TablesOptions,
    TrainingOptions,
)
from lugpi_core.command_line import Command, run_one_of


def main(arguments: Sequence[str]) -> int:
    """Run ``python -m benchmarks`` on the arguments; return the exit status."""
    commands: dict[str, tuple[Command, type]] = {
        "store": (_store, BenchmarkOptions),
        "featurize": (_featurize, GenerationOptions),
        "families": (_families, FamiliesOptions),
        "train": (_train, TrainingOptions),
        "prefix": (_prefix, TrainingOptions),
        "memory": (_memory, BenchmarkOptions),
        "card": (_card, CardOptions),
        "evaluate": (_evaluate, BenchmarkOptions),
        "tables": (_tables, TablesOptions),
        "fidelity": (_fidelity, BenchmarkOptions),
        "shortcuts": (_shortcuts, ShortcutOptions),
        "prompts": (_prompts, PromptsOptions),
        "models": (_models, ModelsOptions),
        "scale": (_scale, ScaleOptions),
        "peers": (_peers, BenchmarkOptions),
        "manifest": (_manifest, BenchmarkOptions),
        "all": (_all, BenchmarkOptions),
        "freezing": (_freezing, FreezingOptions),
        "ideas": (_ideas, IdeasOptions),
        "ray": (_ray, BenchmarkOptions),
        "demo": (_demo, DemoOptions),
        "real": (_real, RealOptions),
    }
    about = (
        "Measure the store, featurize, training, its memory and the drift by int8 tokens; `all` runs these five. `shortcuts` measures "
        "what shortcuts of the generator save and cost; `families` our loop beside diffusers' own pipelines; `card` counts what the "
        "presets take on a GPU of 24 GB; `evaluate` measures evaluating beside transformers' pipeline, "
        "`tables` whole tables beside another checkout; `prompts` counts the words that are not read; `prefix` measures training "
        "above frozen layers; `models` tries every architecture of transformers; `scale` takes a million "
        "texts through every stage; `peers` reads the store beside other formats; `manifest` merges the records of 100,000 shards; "
        "`ray` measures work through Ray; `demo` and `real` (hours) run the experiment of the "
        "tables; `freezing` (hours) asks what frozen layers cost in accuracy, `ideas` what options from related work do "
        "on the demo."
    )
    return run_one_of(commands, arguments, prog="python -m benchmarks", about=about)


def _store(options: BenchmarkOptions) -> dict[str, Any]:
    from benchmarks.store.store_speed import measure

    return measure(smoke=options.smoke, record=options.record)


def _featurize(options: GenerationOptions) -> dict[str, Any]:
    from benchmarks.featurize.featurize_speed import measure

    return measure(smoke=options.smoke, record=options.record, cases=options.cases)


def _families(options: FamiliesOptions) -> dict[str, Any]:
    from benchmarks.generators.family_speed import measure

    return measure(smoke=options.smoke, record=options.record, families=options.families)


def _train(options: TrainingOptions) -> dict[str, Any]:
    from benchmarks.train.train_speed import measure

    return measure(smoke=options.smoke, record=options.record, data_dir=options.data_dir)


def _prefix(options: TrainingOptions) -> dict[str, Any]:
    from benchmarks.train.prefix_speed import measure

    return measure(smoke=options.smoke, record=options.record, data_dir=options.data_dir)


def _memory(options: BenchmarkOptions) -> dict[str, Any]:
    from benchmarks.train.training_memory import measure

    return measure(smoke=options.smoke, record=options.record)


def _card(options: CardOptions) -> dict[str, Any]:
    from benchmarks.generators.card_memory import measure

    return measure(smoke=options.smoke, record=options.record, presets=options.presets)


def _evaluate(options: BenchmarkOptions) -> dict[str, Any]:
    from benchmarks.train.evaluate_speed import measure

    return measure(smoke=options.smoke, record=options.record)


def _tables(options: TablesOptions) -> dict[str, Any]:
    from benchmarks.train.tables_speed import measure

    return measure(options)


def _fidelity(options: BenchmarkOptions) -> dict[str, Any]:
    from benchmarks.train.int8_drift import measure

    return measure(smoke=options.smoke, record=options.record)


def _shortcuts(options: ShortcutOptions) -> dict[str, Any]:
    from benchmarks.generators.shortcuts import measure

    return measure(options)


def _prompts(options: PromptsOptions) -> dict[str, Any]:
    from benchmarks.featurize.prompt_words import measure

    return measure(smoke=options.smoke, record=options.record, data_dir=options.data_dir, limit=options.limit)


def _models(options: ModelsOptions) -> dict[str, Any]:
    from benchmarks.models.matrix import measure

    return measure(smoke=options.smoke, record=options.record, only=options.only, processes=options.processes, runs=options.runs)


def _scale(options: ScaleOptions) -> dict[str, Any]:
    from benchmarks.scale.scale import measure

    return measure(smoke=options.smoke, record=options.record, texts=options.texts, stages=options.stages)


def _peers(options: BenchmarkOptions) -> dict[str, Any]:
    from benchmarks.store.peers import measure

    return measure(smoke=options.smoke, record=options.record)


def _manifest(options: BenchmarkOptions) -> dict[str, Any]:
    from benchmarks.store.manifest_work import measure

    return measure(smoke=options.smoke, record=options.record)


def _all(options: BenchmarkOptions) -> dict[str, Any]:
    return {
        "store": _store(options),
        "featurize": _featurize(GenerationOptions(smoke=options.smoke, record=options.record)),
        "train": _train(TrainingOptions(smoke=options.smoke, record=options.record)),
        "memory": _memory(options),
        "fidelity": _fidelity(options),
    }


def _freezing(options: FreezingOptions) -> dict[str, Any]:
    from benchmarks.freezing import measure

    return measure(options)


def _ideas(options: IdeasOptions) -> dict[str, Any]:
    from benchmarks.ideas import measure

    return measure(options)


def _ray(options: BenchmarkOptions) -> dict[str, Any]:
    from benchmarks.cluster.ray_speed import measure

    return measure(smoke=options.smoke, record=options.record)


def _demo(options: DemoOptions) -> dict[str, Any]:
    from benchmarks.experiments import measure_demo

    return measure_demo(options)


def _real(options: RealOptions) -> dict[str, Any]:
    from benchmarks.experiments import measure_real

    return measure_real(options)
