"""A search for a student's settings: train one student after another, score each on the validation split, propose the next one from these.

``<run>/sweep/<name>/`` contains ``space.json`` (what is searched, and everything else that decides a trial), ``study.journal`` (Optuna's
journal, for its tools) and ``trial-007/`` for each trial, with its ``trial.json``.

A sweep can be interrupted at any moment. The same command then resumes: no finished trial is trained again, and the running one continues
from its checkpoint. In an object store ``space.json`` and the records of trials are there as soon as they are written, so that another
machine resumes, too; checkpoints are not. A trial's parameters follow only from the space, ``--sampler-seed``, its number and the finished
trials before it; each has a new sampler (TPE, Bergstra et al. 2011) with its own seed, and a trial is added to the study only when it is
finished. On a cluster of Ray k trials are trained at once, and proposed from those before the k; a sweep keeps its k, also without a
cluster. So an interrupted sweep proposes the same settings as an uninterrupted one wherever training is reproducible (on the CPU: bit for
bit).

The test split is not scored: a trial ends with its last epoch, and ``python -m train student`` trains and scores the best settings once.
"""

import importlib.util
import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lugpi_core.cluster.connection import actors_for, connected, require_cluster, threads_of_actor
from lugpi_core.cluster.crew import ActorWork, RayCrew
from lugpi_core.command_line import resolved_flags, say
from lugpi_core.corpora.corpus import Corpus
from lugpi_core.corpora.load import load_corpus
from lugpi_core.corpora.user_corpus import load_unlabelled
from lugpi_core.errors import InputError
from lugpi_core.fields import part_of
from lugpi_core.files import make_folder, read_json, write_bytes, write_json
from lugpi_core.files import sweep as sweep_partials
from lugpi_core.fingerprint import differences
from lugpi_core.remote.results import share_record, share_records
from lugpi_core.runtime.libraries import prepare_libraries
from lugpi_core.runtime.stopping import terminated_like_interrupted
from train.data.outline import stated_layers
from train.data.text_model import TextModel, find_text_model, layers_not_listed
from train.file_names import TRAINING
from train.learning.checkpoint import load_checkpoint, remove_checkpoints
from train.learning.compile import forget_last_model
from train.learning.distributed import Processes
from train.learning.frozen_layers import require_layers
from train.learning.launch import find_launch
from train.learning.loop import NotFinite, best_epoch, deciding_metric, fit, validation_score
from train.learning.losses import distillation
from train.learning.progress import LOG, require_trackers, without_bars
from train.learning.task_rules import METRIC_NAMES
from train.models.kinds import DistillationSource, student_kind
from train.models.loading import head_history, load_model, training_of_plan
from train.models.markdown import markdown_table
from train.models.model_folder import finished_metrics, folder_lock, model_lock
from train.models.on_ray import share_of_model
from train.models.plan import ModelPlan, compute_on
from train.models.shared import SharedInputs
from train.models.teachers import with_separator_of
from train.options.distillation import ANCHOR_WEIGHT, StudentOptions
from train.options.ray import RaySettings
from train.options.settings import KD_EXTRA_WEIGHT, DistillationSettings, Optimization, Placement
from train.options.sweep import SWEPT, SweepOptions
from train.options.tools import flags_of

SPACE, JOURNAL, LOCK, TRIAL = "space.json", "study.journal", ".lock", "trial.json"
AT_ONCE = "trials_at_once"  # in space.json, if it is not 1
SHOWN = 5
LOOK_EVERY_S = 1.0
_WEIGHTS = ("hard", "alpha", "beta")
_LATER = (("predict_image", 0), ("anchor_weight", ANCHOR_WEIGHT), ("kd_extra", "none"), ("kd_extra_weight", KD_EXTRA_WEIGHT))


def sweep(options: SweepOptions) -> dict[str, Any]:
    """Train until there are ``trials`` finished trials; print the best five and the command that trains and scores the best one.

    A trial whose loss is not finite, or whose score is undefined, counts as finished and failed.

    Raises:
        InputError: a teacher is missing, the space contains settings that cannot be trained, the folder is another sweep's or in use by
            another command, or every trial failed.
        Stopped: a signal asked for it; finished trials and the checkpoint are kept.
    """
    prepare_libraries()
    _require_possible(options)
    _require_losses(options)
    if options.ray is not None:
        require_cluster(options.ray)
    folder = make_folder(options.folder)
    with folder_lock(folder / LOCK, folder=folder) as is_ours:
        if not is_ours:
            raise InputError(
                got=f"{folder}, which another command is searching",
                expected="one command per sweep",
                do="wait for it, or give another --name",
            )
        sweep_partials(folder)
        share_record(options.run, _name_in_run(options, folder / SPACE))
        if share_records(options.run, _name_in_run(options, folder), TRIAL):
            (folder / JOURNAL).unlink(missing_ok=True)  # it is rebuilt from the records
        inputs = _load_inputs(options)
        with _trainer(options, inputs) as (at_once, train):
            _require_same_sweep(options, inputs, at_once)
            study = open_study(folder)
            done = len(study.trials)
            for first in range(done - done % at_once, options.trials, at_once):
                before, numbers = study.trials[:first], range(max(first, done), min(first + at_once, options.trials))
                train([Trial(number=number, parameters=propose(options, number, before)) for number in numbers])
                for number in numbers:
                    study.add_trial(_optuna_trial(options, read_json(_folder(options, number) / TRIAL)))
        return _report(options, study, _score_name(options, inputs), already_done=done >= options.trials)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A student to be trained, with the values of what is searched."""

    number: int
    parameters: Mapping[str, Any]


@contextmanager
def _trainer(options: SweepOptions, inputs: "_Inputs") -> Iterator[tuple[int, Callable[[Sequence[Trial]], None]]]:
    """Yield how many trials are proposed at once, from those before them, and what trains these, or resumes their training."""
    path = options.folder / SPACE
    recorded = read_json(path).get(AT_ONCE, 1) if path.is_file() else None
    if options.ray is None:
        yield recorded or 1, partial(_train_here, options, inputs)
        return
    with connected(options.ray) as cluster:
        given = options.trials_at_once or recorded
        share = share_of_model(cluster, part_of(options, RaySettings), options.device, given)
        most = given or actors_for(cluster, share, None, flag="--gpus-per-model")
        say(f"Ray: {cluster}; {most} at a time, each with {share}")
        work = ActorWork(
            load=_load_trainer, inputs=(options, threads_of_actor()), share=share, most=most, name_of=_name_of, shared=options.folder
        )
        with terminated_like_interrupted(), RayCrew(work) as crew:
            yield most, partial(_train_in, crew)


def _name_in_run(options: SweepOptions, path: Path) -> str:
    return path.relative_to(options.run).as_posix()


def _name_of(trial: Trial) -> str:
    return f"trial {trial.number}"


def _load_trainer(given: tuple[SweepOptions, int]) -> Callable[[Trial], None]:
    options, threads = given
    prepare_libraries()
    torch.set_num_threads(threads)
    inputs = _load_inputs(options)

    def train(trial: Trial) -> None:
        with without_bars():
            _train_alone(options, trial, inputs)

    return train


def _train_alone(options: SweepOptions, trial: Trial, inputs: "_Inputs") -> None:
    """Train a trial as soon as no other process does: actors outlive a killed driver, and a node that Ray has lost, for a while."""
    while True:
        with model_lock(options.folder, _folder(options, trial.number).name) as is_ours:
            if is_ours:
                _train_trial(options, trial, inputs)
                return
        time.sleep(LOOK_EVERY_S)


def _train_here(options: SweepOptions, inputs: "_Inputs", trials: Sequence[Trial]) -> None:
    for trial in trials:
        _train_trial(options, trial, inputs)


def _train_in(crew: RayCrew[Trial], trials: Sequence[Trial]) -> None:
    for result in crew.do(trials):
        if result.failure:
            raise InputError(
                got=f"{_name_of(result.task)}, which failed {result.failure}",
                expected="a finished student",
                do="see the lines above; the same command continues from the last checkpoints",
            )


@dataclass(frozen=True, kw_only=True)
class _Inputs:
    """What every trial reads."""

    corpus: Corpus
    text_model: TextModel
    unlabelled: Corpus | None
    shared: SharedInputs = field(default_factory=SharedInputs)


def _load_inputs(options: SweepOptions) -> _Inputs:
    corpus = load_corpus(options.dataset, options)
    unlabelled = None if options.unlabelled is None else with_separator_of(load_unlabelled(options.unlabelled, options), corpus)
    text_model = find_text_model(options.text_model, max_length=options.max_length)
    return _Inputs(corpus=corpus, text_model=text_model, unlabelled=unlabelled)


def propose(options: SweepOptions, number: int, before: Sequence[Any]) -> dict[str, Any]:
    """Return the parameters of trial ``number``: a function of the space, the sampler's seed, the number and the trials before it."""
    import optuna

    seed = int(np.random.SeedSequence([options.sampler_seed, number]).generate_state(1)[0])
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # A throw-away study: ``ask()`` on the stored one would leave a RUNNING trial behind if this process is killed.
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    study.add_trials(before[:number])
    parameters: dict[str, Any] = study.ask(_distributions(options)).params
    return parameters


def open_study(folder: Path) -> Any:
    """Return the Optuna study of a sweep's folder, a new one if there is none. Only one process may have it open.

    Raises:
        InputError: the journal is damaged; it can be rebuilt from the trials' records.
    """
    import optuna
    from optuna.storages.journal import JournalFileBackend

    path = folder / JOURNAL
    (folder / f"{JOURNAL}.lock").unlink(missing_ok=True)  # left by a killed process; the folder has a lock of its own
    _cut_torn_line(path)
    try:
        storage = optuna.storages.JournalStorage(JournalFileBackend(str(path)))
        return optuna.create_study(study_name=folder.name, storage=storage, direction="maximize", load_if_exists=True)
    except (ValueError, KeyError) as error:
        raise InputError(
            got=f"{path}, which Optuna cannot read ({type(error).__name__})",
            expected="its journal",
            do="remove it and run the same command again: it is rebuilt from the finished trials",
        ) from None


def _cut_torn_line(path: Path) -> None:
    """Remove an incomplete record, whose writer was killed; the trial's record is in its folder."""
    journal = path.read_bytes() if path.is_file() else b""
    if journal and not journal.endswith(b"\n"):
        write_bytes(path, journal[: journal.rfind(b"\n") + 1])


def _require_possible(options: SweepOptions) -> None:
    if importlib.util.find_spec("optuna") is None:
        raise InputError(got="no package optuna", expected="it, for python -m train sweep", do="pip install 'lugpi[sweep]'")
    if os.environ.get("WORLD_SIZE", "1") not in ("", "1") or find_launch(os.environ) is not None:
        raise InputError(got="a sweep in several processes", expected="one", do="run it without torchrun, mpirun or several tasks of srun")
    require_trackers(options.track)


def _require_losses(options: SweepOptions) -> None:
    """Raise InputError if a corner of the space has no loss to train on, before anything is trained."""
    corners = {dimension.name: dimension.corners for dimension in options.space}
    lowest = {name: min(corners[name], default=None) if name in corners else getattr(options, name) for name in _WEIGHTS}
    for preset in corners.get("kd_preset", (options.kd_preset,)):
        distillation(str(preset), **lowest)


def _require_same_sweep(options: SweepOptions, inputs: _Inputs, at_once: int) -> None:
    """Write ``space.json``, or raise InputError if another space was searched in this folder."""
    require_swept_layers(options, inputs.text_model)
    plan = _plan(options, 0, {**propose(options, 0, []), **_hardest(options)}, inputs)
    if plan.kind.notice:
        say(f"note: {plan.kind.notice}")
    decided = plan.fingerprint()
    swept = {dimension.name for dimension in options.space}
    given = {name: getattr(options, name) for name in SWEPT}
    space = {
        **{name: value for name, value in decided.items() if name not in ("distillation", "layers", "anchor")},
        "command": "sweep",
        **({"anchor": decided["anchor"]["model"]} if "anchor" in decided else {}),
        # Options that came later count where they are not the default, so that older sweeps are continued.
        "flags": {
            name: value for name, value in {**decided["flags"], **given}.items() if name not in swept and (name, value) not in _LATER
        },
        "over": {dimension.name: dimension.record() for dimension in options.space},
        "sampler_seed": options.sampler_seed,
        **({AT_ONCE: at_once} if at_once > 1 else {}),
    }
    path = options.folder / SPACE
    if not path.is_file():
        write_json(path, space)
        share_record(options.run, _name_in_run(options, path))
    if unlike := differences(read_json(path), space):
        raise InputError(
            got=f"{options.folder}, another sweep: {'; '.join(unlike)}",
            expected="the same space and settings as that sweep's",
            do="repeat them, or give another --name",
        )


def _hardest(options: SweepOptions) -> dict[str, Any]:
    """Return the values that teachers or batches cannot have, if the space has them: what they refuse is refused before the first trial."""
    corners = {dimension.name: dimension.corners for dimension in options.space}
    hardest: dict[str, Any] = {
        name: choose(corners[name]) for name, choose in (("predict_image", max), ("batch_size", min)) if name in corners
    }
    refused = {"embedding_loss": "infonce", "kd_extra": "bss"}
    return hardest | {name: choice for name, choice in refused.items() if choice in corners.get(name, ())}


def require_swept_layers(options: SweepOptions, text_model: TextModel) -> None:
    """Raise InputError if a student of the space has more layers than the text model, or fewer than are frozen."""
    kept = options.student_layers
    for dimension in options.space:
        if dimension.name != "student_layers":
            continue
        kept, most = min(map(int, dimension.corners)), max(map(int, dimension.corners))
        layers = stated_layers(text_model.config)
        if layers is None:
            raise layers_not_listed("--over student_layers=…", f"--text-model {text_model.name}")
        if most > layers:
            raise InputError(got=f"--over student_layers={most}", expected=f"at most {layers}, as the text model has", do="lower it")
    if options.freeze_layers:
        require_layers(text_model, options.freeze_layers, kept=kept)


def _plan(options: SweepOptions, number: int, parameters: dict[str, Any], inputs: _Inputs) -> ModelPlan:
    student = options.student(parameters)
    source = DistillationSource(
        teachers=[options.run / name for name in options.teachers],
        loss=part_of(student, DistillationSettings),
        shares=options.shares,
        unlabelled=inputs.unlabelled,
        layers=student.student_layers,
        anchor=options.anchor_folder,
        anchor_weight=student.anchor_weight,
    )
    placement = part_of(options, Placement)
    return ModelPlan(
        kind=student_kind(inputs.corpus, source, compute_on(placement)),
        run_dir=options.run,
        folder=_folder(options, number),
        text_model=inputs.text_model,
        optimization=part_of(student, Optimization),
        placement=placement,
        config=resolved_flags(student),
        shared=inputs.shared,
    )


def _folder(options: SweepOptions, number: int) -> Path:
    return options.folder / f"trial-{number:03d}"


def _train_trial(options: SweepOptions, trial: Trial, inputs: _Inputs) -> None:
    """Write a trial's record; train it, or resume its training, unless it is finished."""
    number, parameters = trial.number, dict(trial.parameters)
    folder = make_folder(_folder(options, number))
    sweep_partials(folder)
    if not (folder / TRIAL).is_file():
        say(f"trial {number} (of 0 to {options.trials - 1}): " + ", ".join(f"{name} {_short(value)}" for name, value in parameters.items()))
        trained = _train(_plan(options, number, parameters, inputs), _score_name(options, inputs))
        write_json(folder / TRIAL, {"trial": number, "parameters": parameters, **trained})
        share_record(options.run, _name_in_run(options, folder / TRIAL))
    record: dict[str, Any] = read_json(folder / TRIAL)
    remove_checkpoints(folder)
    for name in (LOG, TRAINING):
        (folder / name).unlink(missing_ok=True)
    metric = deciding_metric(inputs.corpus.task, options.class_weights)
    say(f"trial {number}: " + (record["failed"] or f"validation {METRIC_NAMES[metric]} {validation_score(record):.4f}"))


def _score_name(options: SweepOptions, inputs: _Inputs) -> str:
    """Return what a trial's score is called in its records: ``validation_accuracy``, or as another metric."""
    return f"validation_{deciding_metric(inputs.corpus.task, options.class_weights)}"


def _train(plan: ModelPlan, score_name: str) -> dict[str, Any]:
    """Train one student, or resume its training; return its history and no model."""
    finished_metrics(plan.folder, plan.fingerprint())  # refuses a checkpoint of other settings
    load_checkpoint(plan.folder)  # a damaged one must end the sweep, not fail the trial
    forget_last_model(plan.placement.compile, device=plan.compute.device)
    try:
        model, data = load_model(plan, Processes())
        history = fit(training_of_plan(plan, model, data, Processes()))
    except (NotFinite, torch.OutOfMemoryError) as error:
        reason = "too little memory on the device" if isinstance(error, torch.OutOfMemoryError) else str(error)
        return {"failed": reason, score_name: None, "history": [], "seconds": None}
    score = history[best_epoch(history)][score_name]
    return {
        "failed": None if score is not None else f"{score_name.replace('_', ' ')} is undefined: all answers or all labels are equal",
        score_name: score,
        "best_epoch": best_epoch(history),
        "history": history,
        "seconds": round(sum(record["seconds"] for record in (*head_history(plan.folder), *history)), 3),
    }


def _optuna_trial(options: SweepOptions, record: dict[str, Any]) -> Any:
    """Return a finished trial as Optuna's frozen trial."""
    import optuna

    state = optuna.trial.TrialState.FAIL if record["failed"] else optuna.trial.TrialState.COMPLETE
    return optuna.trial.create_trial(
        state=state,
        value=validation_score(record),
        params=record["parameters"],
        distributions=_distributions(options),
        user_attrs={"seconds": record["seconds"]},
    )


def _distributions(options: SweepOptions) -> dict[str, Any]:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    distributions: dict[str, Any] = {}
    for dimension in options.space:
        if dimension.choices:
            distributions[dimension.name] = CategoricalDistribution(dimension.choices)
        elif isinstance(dimension.low, int) and isinstance(dimension.high, int):
            distributions[dimension.name] = IntDistribution(dimension.low, dimension.high, log=dimension.log)
        else:
            distributions[dimension.name] = FloatDistribution(dimension.low, dimension.high, log=dimension.log)
    return distributions


def _report(options: SweepOptions, study: Any, score_name: str, *, already_done: bool) -> dict[str, Any]:
    """Print the best trials and the command of the best; return the figures."""
    if already_done:
        say(f"already done: {options.folder}")
    ranked = sorted((trial for trial in study.trials if trial.value is not None), key=lambda trial: (-trial.value, trial.number))
    if not ranked:
        raise InputError(
            got=f"{options.folder}, all of whose {len(study.trials)} trials failed",
            expected="finite losses and defined scores",
            do="search lower learning rates, or on more varied validation labels, under another --name",
        )
    names = [dimension.name for dimension in options.space]
    rows = [
        [str(trial.number), *(_short(trial.params[name]) for name in names), f"{trial.value:.4f}", f"{trial.user_attrs['seconds']:.0f}"]
        for trial in ranked[:SHOWN]
    ]
    print(markdown_table(("trial", *names, f"validation {METRIC_NAMES[score_name.removeprefix('validation_')]}", "train s"), rows))
    best = ranked[0]
    command = best_command(options.student(best.params), f"{options.sweep_name}-best")
    print(f"\ntrain the best one and score it on the test split, once:\n{command}")
    return {
        "command": "sweep",
        "dataset": options.dataset,
        "sweep": str(options.folder),
        "trials": len(study.trials),
        "failed": len(study.trials) - len(ranked),
        "best": {"trial": best.number, "parameters": best.params, score_name: best.value},
        "student_command": command,
        "already_done": already_done,
    }


def best_command(student: StudentOptions, name: str) -> str:
    """Return the command line that trains and scores a student of these options under ``name``; floats keep all their digits."""
    return shlex.join(["python", "-m", "train", "student", *flags_of(replace(student, name=name))])


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
