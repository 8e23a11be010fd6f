"""``python -m train tables``: from its flags to ``compare``, and what it prints and writes."""

from dataclasses import fields
from typing import Any

from lugpi_core.command_line import resolved_flags, say
from lugpi_core.corpora.load import load_corpus
from lugpi_core.corpora.options import CorpusOptions, CorpusSettings, dataset_name
from lugpi_core.corpora.user_corpus import load_unlabelled
from lugpi_core.fields import part_of
from lugpi_core.runtime.libraries import prepare_libraries
from train.data.text_model import find_text_model
from train.evidence.compare import TableRequest, compare, finished_tables
from train.evidence.few_shots import FewShotReport
from train.evidence.row_figures import paper_dataset
from train.evidence.table_report import TableReport
from train.options.ray import RaySettings
from train.options.settings import DevicePlacement, DistillationSettings, Optimization, Placement
from train.options.tables import TablesOptions, shots_folder

# What --no-train reads: which models of the run are shown.
_READ_OF_FINISHED = frozenset(
    {
        "dataset",
        "run_dir",
        "scratch",
        "rows",
        "columns",
        "seeds",
        "seed",
        "folds",
        "ensemble",
        "attention",
        "shots",
        "episodes",
        "unlabelled",
        "train",
        "limit",
    }
)


def tables(options: TablesOptions) -> dict[str, Any]:
    """Train what the tables lack, print them, write them to ``tables.md``, ``.tex``, ``.csv`` and ``.json`` in the run; return all figures.
    With ``shots`` the tables of each number are in its folder, and accuracy over shots in ``shots.md`` and ``.json``.

    Raises:
        InputError: as ``compare`` does.
        Stopped: a signal asked for it; finished models and checkpoints are kept.
    """
    prepare_libraries()
    if not options.train:
        _say_what_is_not_compared(options)
    report: TableReport | FewShotReport
    if options.shots:
        # The most first: if the corpus has too few texts, that is said before anything is trained.
        report = FewShotReport(run=options.run, reports={shots: _report(options, shots) for shots in sorted(options.shots, reverse=True)})
    else:
        report = _report(options, None)
    print(report.to_markdown())  # first: it can be read even where the files cannot be written
    report.write()
    return report.to_json()


def _report(options: TablesOptions, shots: int | None) -> TableReport:
    return _compared(options, shots) if options.train else _finished(options, shots)


def _given(options: TablesOptions) -> set[str]:
    """Return the names of the settings that are not the default."""
    return {field.name for field in fields(options) if getattr(options, field.name) != field.default}


def _compared(options: TablesOptions, shots: int | None) -> TableReport:
    settings = part_of(options, CorpusSettings)
    return compare(
        load_corpus(options.dataset, settings),  # first, so that a missing corpus is reported before anything else
        options.run,
        rows=options.rows,
        seeds=options.each_seed,
        columns=options.columns,
        distillation=part_of(options, DistillationSettings),
        unlabelled=None if options.unlabelled is None else load_unlabelled(options.unlabelled, settings),
        folds=options.folds,
        ensemble=options.ensemble,
        attention=options.attention,
        shots=shots,
        text_model=find_text_model(options.text_model, max_length=options.max_length),
        optimization=part_of(options, Optimization),
        placement=part_of(options, Placement),
        config=resolved_flags(part_of(options, CorpusOptions)),
        paper_dataset=paper_dataset(options.dataset, settings),
        processes=options.processes,
        ray=part_of(options, RaySettings),
    )


def _say_what_is_not_compared(options: TablesOptions) -> None:
    read = set(_READ_OF_FINISHED)
    if options.attention:  # teachers are computed on the corpus
        read |= {field.name for kind in (CorpusSettings, DevicePlacement) for field in fields(kind)}
    if ignored := [f"--{name.replace('_', '-')}" for name in sorted(_given(options) - read)]:
        say(f"note: --no-train shows what the run holds, whatever it was trained with; not compared: {', '.join(ignored)}")


def _finished(options: TablesOptions, shots: int | None) -> TableReport:
    request = TableRequest(
        rows=options.rows,
        columns=options.columns,
        seeds=options.each_seed,
        has_unlabelled=options.unlabelled is not None,
        folds=options.folds,
        ensemble=options.ensemble,
        attend_on=part_of(options, DevicePlacement) if options.attention else None,
        paper_dataset=paper_dataset(options.dataset, part_of(options, CorpusSettings)),
    )
    settings = part_of(options, CorpusSettings)
    corpus = load_corpus(options.dataset, settings) if options.attention else dataset_name(options.dataset)
    return finished_tables(options.run if shots is None else options.run / shots_folder(shots), corpus, request)
