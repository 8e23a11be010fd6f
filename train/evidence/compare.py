"""``compare``: the paper's models and their controls on one corpus, trained where they are missing, with significance tests."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from numbers import Integral
from os import PathLike
from pathlib import Path
from types import NoneType
from typing import Any, TypedDict, Unpack

from lugpi_core.cluster.connection import require_cluster
from lugpi_core.command_line import say
from lugpi_core.corpora.corpus import Corpus
from lugpi_core.corpora.options import CorpusSettings, Task, require_folds
from lugpi_core.corpora.shots import shots_of
from lugpi_core.corpora.user_corpus import load_unlabelled
from lugpi_core.errors import InputError
from lugpi_core.fields import require_choice, require_known_arguments, require_names, require_type
from lugpi_core.files import make_folder
from lugpi_core.files import sweep as sweep_partials
from lugpi_core.remote.run import remote_of
from lugpi_core.runtime.device import require_seed
from lugpi_core.runtime.libraries import prepare_libraries
from train.data.text_model import TextModel, find_text_model
from train.evidence.attention import attention_overlap
from train.evidence.diversity import Attend
from train.evidence.found_models import columns_of_rows, folders_of_corpus, found_models, has_text_vectors, models_of_rows, rows_of_found
from train.evidence.on_ray import train_on_ray
from train.evidence.outcome import Outcome
from train.evidence.row_figures import PAPER_DATASETS, scored
from train.evidence.rows import ALL, GROUPS, LEARNT_ENDING, PlannedModel, chosen_tables, models_of, rows_of
from train.evidence.schedule import Experiment, add_finished, refuse_launchers, train_models
from train.evidence.side_by_side import processes_for, train_side_by_side
from train.evidence.table_report import TablePlan, TableReport, table_report
from train.learning.losses import Distillation, Terms
from train.learning.progress import require_trackers
from train.models.api import warn_of_idle_settings
from train.models.arguments import require_trainable
from train.models.kinds import loss_weights, require_boundary
from train.models.plan import compute_on
from train.models.teachers import with_separator_of
from train.options.ray import RaySettings
from train.options.settings import TEXT_MODEL, DevicePlacement, DistillationSettings, Optimization, Placement, Preset
from train.options.tables import require_ensemble, require_processes, require_seeds, require_shots, shots_folder


@dataclass(frozen=True, kw_only=True)
class TableRequest:
    """Which results to report.

    Attributes:
        rows: names of tables or rows, or ``all``.
        columns: image tokens that get rows of their own (default: all, CLIP's first); shuffled and blank images are the first's.
        seeds: of the models.
        has_unlabelled: whether there are rows for students that were distilled on unlabelled texts too, though none is finished.
        paper_dataset: the corpus of the paper that this is, whose published accuracies are reported too; or None.
        folds: whether there are rows for students of teachers with that many folds, though none is finished.
        ensemble: the same for students of so many teachers of a kind.
        attend_on: where the attention of teachers to their images is computed, to be compared; None = it is not.
    """

    rows: Sequence[str] = (ALL,)
    columns: Sequence[str] = ()
    seeds: Sequence[int] = (0, 1, 2)
    has_unlabelled: bool = False
    paper_dataset: str | None = None
    folds: int | None = None
    ensemble: int | None = None
    attend_on: DevicePlacement | None = None


class ComparisonArguments(TypedDict, total=False):
    """How ``compare`` trains, and what else it takes.

    Attributes:
        columns: as in ``TableRequest``.
        distillation: the students' loss: a preset or its settings.
        unlabelled: texts to distil on as well, or a file of them; adds the rows named ``…-more``. Their images are in the store
            ``tokens-<name>`` of the run.
        folds: adds the rows named ``…-folds5``: students of teachers whose outputs for train texts are cross-fitted on so many folds.
        ensemble: adds the rows named ``…-ensemble3``: students of so many teachers of a kind, which differ in their seeds alone.
        attention: computes how far teachers of one kind attend to the same image tokens, which takes a pass of each over test texts.
        shots: every model learns that many train texts of each class, drawn with its seed; None = all.
        text_model: name on the Hugging Face hub, folder, or "demo"; or a found one, with its ``max_length``.
        optimization: epochs, batch size, learning rate, …; its seed is the first one.
        placement: device, precision, compilation, trackers.
        config: settings to record in each model's ``metrics.json`` besides its own.
        paper_dataset: as in ``TableRequest``.
        processes: how many models are trained at once, each in a process of its own (default: on the CPU as many as torch has threads, as
            far as memory reaches; one on CUDA; on Ray as many as the cluster has room for).
        ray: ``RaySettings(ray="auto")`` trains on a cluster of Ray.
    """

    columns: Sequence[str]
    distillation: DistillationSettings | Preset
    unlabelled: Corpus | str | Path | None
    folds: int | None
    ensemble: int | None
    attention: bool
    shots: int | None
    text_model: str | TextModel
    optimization: Optimization
    placement: Placement
    config: Mapping[str, Any]
    paper_dataset: str | None
    processes: int | None
    ray: RaySettings


def compare(
    corpus: Corpus,
    run_dir: str | Path,
    *,
    rows: Sequence[str] = (ALL,),
    seeds: int | Sequence[int] = 3,
    train: bool = True,
    **arguments: Unpack[ComparisonArguments],
) -> TableReport:
    """Return the results of the paper's models and their controls in a run, each compared with the baseline and its text-only control.

    Models that are finished in the run are found whatever their folders are named, interrupted ones are resumed, the rest is trained. The
    same call may run in several processes at once, for instance one per GPU.

    Args:
        corpus: what they are trained and scored on.
        run_dir: folder of the run; rows with images need its token store, ``tokens``.
        rows: ``table1``, ``table2``, ``controls``, ``folds``, ``ensemble``, ``unlabelled``, ``all``, or rows; what these need is trained.
        seeds: the seeds, or how many of them.
        train: whether missing models are trained. If not, settings are ignored: models of the corpus count whatever they were trained
            with.
        columns: image tokens that get rows of their own (default: all, CLIP's first); shuffled and blank images are the first's.
        distillation: the students' loss: "paper", "hinton" or "lopez-paz", or ``DistillationSettings``.
        unlabelled: texts to distil on as well, or a file of them; adds the rows named ``…-more``. Their images are in the store
            ``tokens-<name>`` of the run.
        folds: adds the rows named ``…-folds5``: students of teachers whose outputs for train texts are cross-fitted on so many folds.
        ensemble: adds the rows named ``…-ensemble3``: students of so many teachers of a kind, which differ in their seeds alone.
        attention: computes how far teachers of one kind attend to the same image tokens, which takes a pass of each over test texts.
        shots: every model learns that many train texts of each class, drawn with its seed (default: all). Models and tables are in the
            folder ``shots-<number>`` of the run.
        text_model: name on the Hugging Face hub, folder, or "demo"; or ``find_text_model(name, max_length=…)`` (default:
            distilbert-base-uncased).
        optimization: ``Optimization``: epochs, batch size, learning rate, …; its seed is the first one.
        placement: ``Placement``: device, precision, compilation, trackers, where image tokens are.
        config: settings to record in each model's ``metrics.json`` besides its own.
        paper_dataset: the corpus of the paper that this is, whose published accuracies are reported too; or None.
        processes: how many models are trained at once, each in a process of its own (default: on the CPU as many as torch has threads, as
            far as memory reaches; one on CUDA; on Ray as many as the cluster has room for).
        ray: ``RaySettings(ray="auto")`` trains on a cluster of Ray, whose nodes must all see the run.

    Raises:
        InputError: an unknown row or column, bad seeds, no store where rows need images, models of another corpus, nothing to show, or a
            damaged or missing input of a model.
        Stopped: a signal asked for it; finished models and checkpoints are kept.
    """
    require_known_arguments(arguments, ComparisonArguments)
    require_type("run_dir", run_dir, str, PathLike)
    require_type("distillation", arguments.get("distillation", "paper"), DistillationSettings, str)
    if (paper := arguments.get("paper_dataset")) is not None:
        require_choice("paper_dataset", paper, PAPER_DATASETS)
    require_trainable(corpus, arguments)
    _require_counts(arguments)
    require_type("ray", arguments.get("ray", RaySettings()), RaySettings)
    prepare_libraries()
    optimization, placement = arguments.get("optimization", Optimization()), arguments.get("placement", Placement())
    request = _request(rows, seeds, arguments)
    run, loss, shots = Path(run_dir), arguments.get("distillation", "paper"), arguments.get("shots")
    if not train:
        return finished_tables(run if shots is None else run / shots_folder(shots), corpus, request)
    if shots is not None:
        _require_shots_there(corpus, run, shots, request.seeds)
    loss = DistillationSettings(kd_preset=loss) if isinstance(loss, str) else loss
    ray = arguments.get("ray", RaySettings())
    if ray.ray is not None:
        require_cluster(ray.ray)
    plan = _plan(run, request, loss, corpus.task)
    warn_of_idle_settings(optimization)
    refuse_launchers()
    require_trackers(placement.track)
    experiment = _experiment(corpus, run, loss, arguments)
    outcome = _train_missing(experiment, plan, arguments.get("processes"), ray)
    plan = replace(plan, attend=_attend(corpus, request.attend_on))
    report = table_report(experiment.models, corpus.name, plan, models_of_rows(outcome.folders), outcome, cache(scored))
    _warn_of_idle_attention(report, request)
    return report


def _request(rows: Sequence[str], seeds: int | Sequence[int], arguments: ComparisonArguments) -> TableRequest:
    """Return which results to report. Raises InputError for names, seeds or ensembles that are none."""
    optimization, placement = arguments.get("optimization", Optimization()), arguments.get("placement", Placement())
    request = TableRequest(
        rows=require_names("rows", rows),
        columns=require_names("columns", arguments.get("columns", ())),
        seeds=_each_seed(seeds, optimization.seed),
        has_unlabelled=arguments.get("unlabelled") is not None,
        paper_dataset=arguments.get("paper_dataset"),
        folds=arguments.get("folds"),
        ensemble=arguments.get("ensemble"),
        attend_on=placement if arguments.get("attention") else None,
    )
    require_ensemble(request.ensemble, request.seeds)
    return request


def _require_counts(arguments: ComparisonArguments) -> None:
    """Raise TypeError or InputError unless folds, shots and processes are numbers that they can be."""
    require_processes(arguments.get("processes"))
    require_type("folds", arguments.get("folds"), int, NoneType)
    require_folds(arguments.get("folds"))
    require_type("attention", arguments.get("attention", False), bool)
    require_type("shots", arguments.get("shots"), int, NoneType)
    require_shots(arguments.get("shots"), arguments.get("folds"))


def _experiment(corpus: Corpus, run: Path, loss: DistillationSettings, arguments: ComparisonArguments) -> Experiment:
    """Return what every model is trained from; texts without labels and the text model are loaded."""
    unlabelled, text_model = arguments.get("unlabelled"), arguments.get("text_model", TEXT_MODEL)
    unlabelled = load_unlabelled(Path(unlabelled), CorpusSettings()) if isinstance(unlabelled, str | Path) else unlabelled
    return Experiment(
        corpus=corpus,
        run=run,
        text_model=find_text_model(text_model, max_length=None) if isinstance(text_model, str) else text_model,
        optimization=arguments.get("optimization", Optimization()),
        placement=arguments.get("placement", Placement()),
        distillation=loss,
        unlabelled=None if unlabelled is None else with_separator_of(unlabelled, corpus),
        config=arguments.get("config", {}),
        shots=arguments.get("shots"),
    )


def _require_shots_there(corpus: Corpus, run: Path, shots: int, seeds: Sequence[int]) -> None:
    """Raise InputError where the corpus has too few texts, or the run is in an object store, which has the models of its first level."""
    shots_of(corpus, shots, episode=seeds[0])
    if remote_of(run) is not None:
        raise InputError(got="--shots in an object store", expected="a run in a folder", do="give --run-dir a local folder")


def _each_seed(seeds: object, first: int) -> tuple[int, ...]:
    """Return the seeds that ``compare`` was given: themselves, or how many from the first one on. NumPy's integers count as integers."""
    given = list(seeds) if isinstance(seeds, Iterable) else [seeds]
    each = [int(number) for number in given if isinstance(number, Integral) and not isinstance(number, bool)]
    if len(each) == len(given) and not isinstance(seeds, Iterable) and each[0] > 0:
        require_seeds(range(first, first + each[0]))
        return tuple(range(first, first + each[0]))
    if len(each) == len(given) > 0 and isinstance(seeds, Iterable) and len(set(each)) == len(each):
        require_seed(min(each))
        require_seed(max(each))
        return tuple(each)
    raise InputError(got=f"seeds={seeds!r}", expected="how many seeds, 1 or more, or a list of different seeds", do="give for instance 3")


def finished_tables(run: Path, corpus: Corpus | str, request: TableRequest) -> TableReport:
    """Return the results of a run's finished models on a corpus, whatever else they were trained with; nothing is trained.

    Args:
        run: folder of the run.
        corpus: the corpus, or only its name, which is enough but for ``attend_on``.
        request: rows, columns and seeds.

    Raises:
        InputError: models of another corpus, an unknown row or column, nothing to show, or damaged predictions.
    """
    dataset, finished = corpus if isinstance(corpus, str) else corpus.name, folders_of_corpus(run, corpus)
    columns = columns_of_rows(run, request.columns, finished)
    found = found_models(finished, columns)
    rows = rows_of_found(run, columns, found, has_more=request.has_unlabelled, folds=request.folds, ensemble=request.ensemble)
    plan = TablePlan(
        rows=rows,
        tables=chosen_tables(request.rows, rows),
        seeds=request.seeds,
        paper_dataset=request.paper_dataset,
        attend=None if isinstance(corpus, str) else _attend(corpus, request.attend_on),
    )
    report = table_report(run, dataset, plan, found, Outcome(), cache(scored))
    _warn_of_idle_attention(report, request)
    return report


def _attend(corpus: Corpus, placement: DevicePlacement | None) -> Attend | None:
    """Return what computes how the attention of teachers overlaps; None if that is not wanted."""
    return None if placement is None else partial(attention_overlap, corpus=corpus, compute=compute_on(placement))


def _warn_of_idle_attention(report: TableReport, request: TableRequest) -> None:
    if request.attend_on is not None and not any(row.attention for row in report.diversity.rows):
        say(
            "warning: --attention has no effect: no row that is shown has two teachers that read the same images (--seeds 2, --rows table1)"
        )


def _plan(run: Path, request: TableRequest, loss: DistillationSettings, task: Task) -> TablePlan:
    """Return what to train and show."""
    is_mixed = any(name.endswith(LEARNT_ENDING) for name in request.rows)
    require_boundary(loss, task, has_folds=request.folds is not None, is_mixed=is_mixed)
    columns = columns_of_rows(run, request.columns)
    if not columns and any(name in (ALL, *GROUPS) for name in request.rows):
        raise InputError(
            got=f"no image tokens in {run / 'tokens'}",
            expected="those that featurize writes",
            do="run python -m featurize first, or train the rows without images: --rows baseline teacher-none student-none",
        )
    ablations = ablations_of(loss_weights(loss))
    folds = () if request.folds is None else (request.folds,)
    rows = rows_of(
        columns,
        ablations=ablations,
        has_more=request.has_unlabelled,
        has_vectors=has_text_vectors(run),
        folds=folds,
        ensembles=() if request.ensemble is None else (request.ensemble,),
    )
    return TablePlan(rows=rows, tables=chosen_tables(request.rows, rows), seeds=request.seeds, paper_dataset=request.paper_dataset)


def ablations_of(weights: Distillation) -> tuple[Terms, ...]:
    """Return which soft terms of a loss get students of their own; the distance of the embeddings says nothing about the classes, and needs
    the labels as well."""
    if not (weights.alpha and weights.beta):
        return ()
    return ("ce", "l2") if weights.hard else ("ce",)


def _train_missing(experiment: Experiment, plan: TablePlan, processes: int | None, ray: RaySettings) -> Outcome:
    """Train the missing models; the tokens that they read are checked before the first."""
    models = models_of(plan.shown.values(), plan.rows, plan.seeds)
    for column in dict.fromkeys(model.row.column for model in models if model.row.column is not None):
        experiment.tokens(column)
    _check_redraw(experiment, models)
    _check_unlabelled(experiment, models)
    experiment.require_trainable(models)
    sweep_partials(make_folder(experiment.models))
    count = 1 if ray.ray is not None else min(processes_for(experiment, processes), len(models))
    at_once = f", {count} at a time" if count > 1 else ""
    say(f"tables of {experiment.corpus.name}: {len(models)} {'model' if len(models) == 1 else 'models'} in {experiment.models}{at_once}")
    if ray.ray is not None:
        outcome = train_on_ray(experiment, models, ray, processes)
    else:
        outcome = train_models(experiment, models) if count == 1 else train_side_by_side(experiment, models, count)
    references = models_of([row for row in plan.rows if row.name in plan.references], plan.rows, plan.seeds)
    add_finished(experiment, [model for model in references if model not in models], outcome)
    return outcome


def _check_redraw(experiment: Experiment, models: Sequence[PlannedModel]) -> None:
    """Raise InputError if images are to be redrawn, and none of the models reads one of several."""
    columns = [model.row.column for model in models if model.row.column is not None and model.row.privileged != "blank"]
    if experiment.optimization.redraw is not None and not any(experiment.tokens(column).drawings.shape[1] > 1 for column in columns):
        raise InputError(
            got=f"--redraw {experiment.optimization.redraw} for models of which none reads one of several images of a text",
            expected="rows with images of a store with several of each text",
            do="leave it out, or draw several: featurize --images-per-text 4",
        )


def _check_unlabelled(experiment: Experiment, models: Sequence[PlannedModel]) -> None:
    """Warn of unlabelled texts that no row is distilled on."""
    if experiment.unlabelled is not None and not any(model.row.more for model in models):
        say("warning: --unlabelled has no effect without its rows: --rows unlabelled")
