"""``python -m train tables``: the paper's experiment from the first model to the printed tables."""

from collections.abc import Sequence
from functools import cache
from typing import Any

from lugpi_core.command_line import say
from lugpi_core.corpora.corpus import Corpus
from lugpi_core.corpora.options import CorpusSettings, dataset_name, store_folder
from lugpi_core.corpora.user_corpus import load_unlabelled
from lugpi_core.errors import InputError
from lugpi_core.fields import part_of
from lugpi_core.runtime.device import half_for_training, resolve_compute
from lugpi_core.runtime.libraries import prepare_libraries
from train.evidence.found_models import FoundModels, columns_of_rows, found_models
from train.evidence.row_figures import paper_dataset, scored
from train.evidence.rows import ALL, GROUPS, PlannedModel, chosen_tables, models_of, rows_of
from train.evidence.schedule import Outcome, add_finished, refuse_launchers, train_models
from train.evidence.table_report import TablePlan, table_report
from train.learning.losses import Distillation, Terms
from train.learning.progress import require_trackers
from train.models.inputs import InputCache
from train.models.kinds import loss_weights
from train.models.teachers import with_separator_of
from train.options.tables import TablesOptions


def tables(options: TablesOptions) -> dict[str, Any]:
    """Train what the tables lack, print them, write them to ``tables.md``, ``.tex``, ``.csv`` and ``.json`` in the run; return all figures.

    Raises:
        InputError: an unknown row or column, no store where rows need images, nothing to show, or a damaged or missing input of a model.
        Stopped: a signal asked for it; finished models and checkpoints are kept.
    """
    prepare_libraries()
    sources = InputCache()
    if options.train:  # first, so that a missing corpus is reported before anything else
        sources.corpus(options)
    columns = columns_of_rows(options.run, options.columns, include_finished=not options.train)
    if options.train:
        _require_images(options, columns)
    weights = loss_weights(options)
    found = None if options.train else found_models(options.run, columns)
    rows = rows_of(
        columns,
        ablations=("ce", "l2") if found is not None else ablations_of(weights),
        has_more=options.unlabelled is not None or (found is not None and found.has_unlabelled),
    )
    plan = TablePlan(
        rows=rows,
        tables=chosen_tables(options.rows, rows),
        seeds=options.each_seed,
        paper_dataset=paper_dataset(options.dataset, part_of(options, CorpusSettings)),
    )
    outcome = _trained(options, plan, columns, sources) if found is None else Outcome()
    found = found or FoundModels(folders=outcome.folders, others=())
    report = table_report(options.run, dataset_name(options.dataset), plan, found, outcome, cache(scored))
    report.write()
    print(report.to_markdown())
    return report.to_json()


def ablations_of(weights: Distillation) -> tuple[Terms, ...]:
    """Return which soft terms of a loss get students of their own; the distance of the embeddings says nothing about the classes, and needs
    the labels as well."""
    if not (weights.alpha and weights.beta):
        return ()
    return ("ce", "l2") if weights.hard else ("ce",)


def _require_images(options: TablesOptions, columns: Sequence[str]) -> None:
    """Refuse tables of rows with images where the run has no image tokens."""
    if not columns and any(name in (ALL, *GROUPS) for name in options.rows):
        raise InputError(
            got=f"no image tokens in {options.run / 'tokens'}",
            expected="those that featurize writes",
            do="run python -m featurize first, or train the rows without images: --rows baseline teacher-none student-none",
        )


def _trained(options: TablesOptions, plan: TablePlan, columns: Sequence[str], sources: InputCache) -> Outcome:
    """Train the missing models; inputs are checked before the first."""
    refuse_launchers()
    require_trackers(options.track)
    compute = resolve_compute(options.device, options.dtype, half=half_for_training())
    models = models_of(plan.shown.values(), plan.rows, plan.seeds)
    corpus = sources.corpus(options)
    sources.text_model(options.text_model, options.max_length)
    needed = {model.row.column for model in models}
    for column in columns:
        if column in needed:
            sources.tokens(options.run / "tokens", column, corpus)
    _require_unlabelled(options, models, sources, corpus)
    say(f"tables of {corpus.name}: {len(models)} models in {options.run}")
    outcome = train_models(options, models, sources, compute)
    references = models_of([row for row in plan.rows if row.name in plan.references], plan.rows, plan.seeds)
    add_finished(options, [model for model in references if model not in models], outcome, sources, compute)
    return outcome


def _require_unlabelled(options: TablesOptions, models: Sequence[PlannedModel], sources: InputCache, corpus: Corpus) -> None:
    """Refuse unlabelled texts without the images that their teachers need."""
    if options.unlabelled is None:
        return
    teachers = {teacher for model in models if model.row.more for teacher in model.row.teachers}
    if not teachers:
        say("warning: --unlabelled has no effect without its rows: --rows unlabelled")
        return
    extra = with_separator_of(load_unlabelled(options.unlabelled, options), corpus)
    for column in {model.row.column for model in models if model.row.name in teachers and model.row.column is not None}:
        sources.tokens(store_folder(options.run, options.unlabelled), column, extra)
