"""Models of tables trained on actors of Ray, each loading the experiment once; which is next is said by ``side_by_side``."""

from collections.abc import Callable, Sequence

import torch

from lugpi_core.cluster.connection import actors_for, connected, threads_of_actor
from lugpi_core.cluster.crew import ActorWork, RayCrew
from lugpi_core.command_line import say
from lugpi_core.runtime.libraries import prepare_libraries
from lugpi_core.runtime.stopping import terminated_like_interrupted
from train.evidence.outcome import FinishedModel, Outcome
from train.evidence.rows import PlannedModel
from train.evidence.schedule import Experiment, finish_model
from train.evidence.side_by_side import train_with
from train.evidence.worker import Answer, Job, Start
from train.learning.progress import without_bars
from train.models.on_ray import share_of_model
from train.options.ray import RaySettings


def train_on_ray(experiment: Experiment, models: Sequence[PlannedModel], settings: RaySettings, most: int | None) -> Outcome:
    """Return when every model is finished or has failed, as ``train_models`` does, with as many in training at once as the cluster has room
    for, ``most`` at most. A model whose actors have ended three times has failed.

    Raises:
        InputError: as ``train_models``; or there is no such cluster, or a node does not see the run or has other versions. The others stop
            with a checkpoint.
        Stopped: a signal asked for it; finished models and checkpoints are kept.
    """
    assert settings.ray is not None
    with connected(settings.ray) as cluster:
        share = share_of_model(cluster, settings, experiment.placement.device, most)
        count = min(actors_for(cluster, share, most, flag="--gpus-per-model"), len(models))
        say(f"Ray: {cluster}; {count} at a time, each with {share}")
        work = ActorWork(
            load=_load_experiment,
            inputs=Start(experiment=experiment, threads=threads_of_actor()),
            share=share,
            most=count,
            grows=most is None,
            name_of=_name_of,
            shared=experiment.run,
        )
        with terminated_like_interrupted(), RayCrew(work) as crew:
            return train_with(_Models(crew), experiment, models)


def _name_of(job: Job) -> str:
    return job.model.name


def _load_experiment(start: Start) -> Callable[[Job], FinishedModel | None]:
    prepare_libraries()
    torch.set_num_threads(start.threads)

    def train(job: Job) -> FinishedModel | None:
        with without_bars():
            return finish_model(start.experiment, job.model, job.folders)

    return train


class _Models:
    """The face of ``side_by_side`` on actors."""

    def __init__(self, crew: RayCrew[Job]) -> None:
        self._crew = crew

    @property
    def is_working(self) -> bool:
        return self._crew.is_working

    @property
    def has_room(self) -> bool:
        return self._crew.has_room

    def trains(self, model: PlannedModel) -> bool:
        return any(job.model == model for job in self._crew.tasks)

    def give(self, job: Job) -> None:
        self._crew.give(job)

    def answers(self) -> list[tuple[PlannedModel, Answer]]:
        return [
            (each.task.model, Answer(finished=FinishedModel(folder=None, failure=each.failure) if each.failure else each.value))
            for each in self._crew.results()
        ]
