"""``python -m train tables``: the paper's experiment from the first model to the printed tables."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from lugpi_core.command_line import say
from lugpi_core.corpora.corpus import Corpus
from lugpi_core.corpora.options import dataset_name, store_folder
from lugpi_core.errors import InputError, nearest
from lugpi_core.files import write_json, write_text
from lugpi_core.runtime.device import half_for_training, resolve_compute
from lugpi_core.runtime.libraries import prepare_libraries
from lugpi_core.store.reader import token_columns_of
from train.evidence.fidelity import CAPTION, TITLE, fidelity_figures
from train.evidence.found_models import Recorded, has_more, recorded_columns, recorded_models, unlike_settings
from train.evidence.paper_figures import paper_dataset
from train.evidence.render import comma_separated, latex, markdown
from train.evidence.row_figures import TITLES, Adjusted, Scored, adjusted_comparisons, model_record, row_record, scored
from train.evidence.rows import ALL, BASELINE, GROUPS, Group, Model, Row, Terms, chosen_tables, clip_first, model_name, models_of, rows_of
from train.evidence.schedule import Made, find_models, make_models, refuse_launchers
from train.evidence.verdicts import verdicts
from train.learning.losses import Distillation
from train.learning.progress import require_trackers
from train.models.inputs import Sources
from train.models.kinds import distillation_of, unlabelled_texts
from train.models.model_folder import finished_folders
from train.options.training import TablesOptions

Shown = Mapping[Group, Sequence[Row]]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is to be shown: every row there is, the tables with theirs, and the seeds."""

    rows: Sequence[Row]
    shown: Shown
    seeds: Sequence[int]


def tables(options: TablesOptions) -> dict[str, Any]:
    """Train what the tables lack, print them, write them to ``tables.md``, ``.tex``, ``.csv`` and ``.json`` in the run; return all figures.

    Raises:
        InputError: an unknown row or column, no store where rows need images, nothing to show, or what a model is to be made from does not
            hold.
        Stopped: a signal asked for it; what is done is kept.
    """
    prepare_libraries()
    sources = Sources()
    if options.train:  # first: of a corpus that is not there, nothing else is worth telling
        sources.corpus(options)
    columns = columns_of_rows(options)
    weights = distillation_of(options)
    recorded = None if options.train else recorded_models(options.run, columns)
    rows = rows_of(
        columns,
        ablations=("ce", "l2") if recorded is not None else ablations_of(weights),
        has_more=options.unlabelled is not None or (recorded is not None and has_more(recorded)),
    )
    shown = chosen_tables(options.rows, rows)
    made = _made(options, rows, shown, columns, sources) if recorded is None else Made()
    found = recorded or Recorded(folders=made.folders, others=())
    report = table_report(options, Wanted(rows=rows, shown=shown, seeds=options.each_seed), found, made, cache(scored))
    _write(options.run, report)
    print(markdown(report))
    return report


def ablations_of(weights: Distillation) -> tuple[Terms, ...]:
    """Return which parts of a loss may stand alone: the distance of the embeddings teaches no answer, and needs the labels beside."""
    if not (weights.alpha and weights.beta):
        return ()
    return ("ce", "l2") if weights.hard else ("ce",)


def columns_of_rows(options: TablesOptions) -> tuple[str, ...]:
    """Return the image tokens that get rows: those asked for, or all that are there."""
    store = options.run / "tokens"
    there = set(token_columns_of(store))
    if not options.train:
        there |= recorded_columns(finished_folders(options.run))
    for column in options.columns:
        if column not in there:
            expected = f"one of {', '.join(clip_first(there))}" if there else "tokens that featurize made"
            do = nearest(column, there) if there else "run python -m featurize first"
            raise InputError(got=f"--columns {column}, which {store} does not have", expected=expected, do=do)
    needs_images = any(name in (ALL, *GROUPS) for name in options.rows)
    if options.train and needs_images and not there:
        raise InputError(
            got=f"no image tokens in {store}",
            expected="those that featurize makes",
            do="run python -m featurize first, or train the rows without images: --rows baseline teacher-none student-none",
        )
    return options.columns or clip_first(there)


def _made(options: TablesOptions, rows: Sequence[Row], shown: Shown, columns: Sequence[str], sources: Sources) -> Made:
    """Train the models that are missing; what can be refused is refused before the first."""
    refuse_launchers()
    require_trackers(options.track)
    compute = resolve_compute(options.device, options.dtype, half=half_for_training())
    wanted = models_of([row for of_table in shown.values() for row in of_table], rows, options.each_seed)
    corpus = sources.corpus(options)
    sources.text_model(options.text_model, options.max_length)
    read = {model.row.column for model in wanted}
    for column in columns:
        if column in read:
            sources.tokens(options.run / "tokens", column, corpus)
    _require_unlabelled(options, wanted, sources, corpus)
    say(f"tables of {corpus.name}: {len(wanted)} models in {options.run}")
    made = make_models(options, wanted, sources, compute)
    references = models_of([row for row in rows if row.name in _references(shown)], rows, options.each_seed)
    find_models(options, [model for model in references if model not in wanted], made, sources, compute)
    return made


def _require_unlabelled(options: TablesOptions, wanted: Sequence[Model], sources: Sources, corpus: Corpus) -> None:
    """Refuse texts without labels that have no images for the teachers that are to read them."""
    if options.unlabelled is None:
        return
    taught_by = {teacher for model in wanted if model.row.more for teacher in model.row.teachers}
    if not taught_by:
        say("warning: --unlabelled has no effect without its rows: --rows unlabelled")
        return
    extra = unlabelled_texts(options.unlabelled, options, corpus)
    for column in {model.row.column for model in wanted if model.row.name in taught_by and model.row.column is not None}:
        sources.tokens(store_folder(options.run, options.unlabelled), column, extra)


def _references(shown: Shown) -> set[str]:
    controls = {row.control for of_table in shown.values() for row in of_table if row.control is not None}
    return {BASELINE, *controls}


def table_report(options: TablesOptions, wanted: Wanted, found: Recorded, made: Made, read: Callable[[Path], Scored]) -> dict[str, Any]:
    """Return everything that is known of the tables as one JSON value.

    Args:
        options: of the tables.
        wanted: rows, tables and seeds.
        found: the finished models.
        made: what this command trained, and what failed.
        read: gives the finished model of a folder.

    Raises:
        InputError: there is no model to show, or the predictions of one are missing or damaged.
    """
    rows, shown, seeds = wanted.rows, wanted.shown, wanted.seeds
    dataset = paper_dataset(options)
    asked = {row.name: row for of_table in shown.values() for row in of_table}
    models = {name: _models(name, found.folders, seeds, read) for name in dict.fromkeys([*asked, *sorted(_references(shown))])}
    others = [read(folder) for folder in _others(rows, seeds, found)]
    if not others and not any(models[name] for name in asked):
        raise InputError(
            got=next(iter(made.failed.values()), f"no finished model of these rows in {options.run}"),
            expected="one at least",
            do="lower --learning-rate" if options.train else "train them: leave --no-train out",
        )
    # A row may stand in several tables: what is found of it is the same in all.
    tests = adjusted_comparisons(list(asked.values()), models, seeds)
    fidelity = {
        one.folder: fidelity_figures(one, models[BASELINE].get(one.metrics["seed"]), read)
        for one in [*(one for name in asked for one in models[name].values()), *others]
    }
    return {
        "command": "tables",
        "dataset": dataset_name(options.dataset),
        "run": str(options.run),
        "seeds": list(seeds),
        "rows": {name: row_record(row, models[name], seeds, dataset, fidelity) for name, row in asked.items()},
        "tables": [_table(group, list(asked.values()), shown[group], tests, len(seeds)) for group in shown],
        "fidelity": {"title": TITLE, "caption": CAPTION, "rows": [name for name in asked if models[name]]},
        "others": [model_record(one, fidelity[one.folder]) for one in others],
        "missing": [model_name(name, seed) for name in asked for seed in seeds if seed not in models[name]],
        "failed": made.failed,
        "trained": made.trained,
        "notes": _notes({name: list(by_seed.values()) for name, by_seed in models.items()}, tests, made),
        "written": [str(options.run / f"tables.{kind}") for kind in ("md", "tex", "csv", "json")],
        "complete": not made.failed,
    }


def _models(row: str, folders: Mapping[str, Path], seeds: Sequence[int], read: Callable[[Path], Scored]) -> dict[int, Scored]:
    return {seed: read(folders[name]) for seed in seeds if (name := model_name(row, seed)) in folders}


def _others(rows: Sequence[Row], seeds: Sequence[int], found: Recorded) -> list[Path]:
    """Return the folders that no row and seed of these tables could stand for."""
    names = {model_name(row.name, seed) for row in rows for seed in seeds}
    return sorted({*found.others, *(folder for name, folder in found.folders.items() if name not in names)})


def _table(group: Group, every_row: Sequence[Row], rows: Sequence[Row], tests: Sequence[Adjusted], seeds: int) -> dict[str, Any]:
    names = {row.name for row in rows}
    own = [test for test in tests if test.row in names]
    return {
        "name": group,
        "title": TITLES[group],
        "rows": [row.name for row in rows],
        "comparisons": [test.record() for test in own],
        "verdicts": verdicts(rows, tests, every_row),
        "caption": caption(seeds, len(tests)),
    }


def caption(seeds: int, comparisons: int) -> str:
    """Return what a reader must know of a table's figures."""
    over = "Mean ± sample standard deviation over seeds" if seeds > 1 else "One seed: how much another would differ is not known"
    cost = "Hours are those of one model's training, GB the most memory in use."
    if not comparisons:
        return f"{over}. {cost}"
    counts = " of the counts of all seeds together, which share their test texts" if seeds > 1 else ""
    interval = "95 % intervals over draws of seeds and of test texts" if seeds > 1 else "95 % bootstrap intervals over test texts"
    needed = "intervals without 0, that one and the bootstrap's over test texts alone" if seeds > 1 else "an interval without 0"
    adjusted = f", Holm-Bonferroni over the {comparisons} comparisons of these tables" if comparisons > 1 else ""
    return (
        f"{over}. Differences in test accuracy are in points, with {interval}; p is McNemar's exact test{counts}{adjusted}. Better and "
        f"worse need all: p below 0.05 and {needed}. {cost}"
    )


def _notes(models: Mapping[str, Sequence[Scored]], tests: Sequence[Adjusted], made: Made) -> list[str]:
    """Return what a reader must know beside: tokens without meaning, models that were trained otherwise than others, differences over
    fewer seeds than the means beside them, failures."""
    notes = sorted({one.metrics["notice"] for of_row in models.values() for one in of_row if one.metrics["notice"]})
    for what, values in unlike_settings({name: [one.folder for one in of_row] for name, of_row in models.items()}).items():
        notes.append(f"{what}: {', '.join(str(value) for value in values)}; what they show may come of that")
    fewer = [
        f"{test.row} less {test.reference} over {', '.join(map(str, test.comparison.seeds))}"
        for test in tests
        if any(len(models[name]) > len(test.comparison.seeds) for name in (test.row, test.reference))
    ]
    if fewer:
        why = "these differences are over the seeds that both have on the same test texts, the means beside them over all"
        notes.append(f"{why}: {', '.join(fewer)}")
    return notes + [f"{name} is missing: {reason}" for name, reason in made.failed.items()]


def _write(run: Path, report: Mapping[str, Any]) -> None:
    write_text(run / "tables.md", markdown(report))
    write_text(run / "tables.tex", latex(report))
    write_text(run / "tables.csv", comma_separated(report))
    write_json(run / "tables.json", report)
