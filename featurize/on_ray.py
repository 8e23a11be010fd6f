"""``python -m featurize --ray``: each actor is a loaded job, each task the number of a shard.

Nothing is planned in this process: an actor says which shards there are, and at the end what the store holds. So it needs no GPU, and
loads no model.
"""

import secrets
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from featurize.fill.results import Progress, ProgressCallback, progress_bar
from featurize.options import FeaturizeOptions
from lugpi_core.cluster.connection import Cluster, Share, actors_for, connected, share_of, threads_of_actor
from lugpi_core.cluster.crew import ActorWork, RayCrew
from lugpi_core.command_line import resolved_flags, say
from lugpi_core.errors import InputError, number_of
from lugpi_core.files import make_folder
from lugpi_core.remote.address import address_of
from lugpi_core.remote.run import open_run
from lugpi_core.runtime.device import DeviceChoice

AGAIN_S = 1.0  # after which a shard that another command is writing is tried again


@dataclass(frozen=True)
class FindShards:
    """The task of saying which shards there are."""


@dataclass(frozen=True)
class Finish:
    """The task of ending the run when no shard is missing; ``has_computed``: whether this command computed any."""

    has_computed: bool


Task = int | FindShards | Finish


@dataclass(frozen=True, kw_only=True)
class Shards:
    """The rows of all shards, by number; those that are missing first. The final ones are compared with their hashes."""

    rows: Mapping[int, int]


@dataclass(frozen=True, kw_only=True)
class ShardDone:
    """What an actor did for a shard.

    Attributes:
        is_busy: another command is writing it, and nothing was done.
        has_computed: whether anything of it was missing or damaged.
        actor: which one, a word of its own.
        rows, seconds: by stage, of all that the actor has done so far.
    """

    is_busy: bool = False
    has_computed: bool = False
    actor: str = ""
    rows: Mapping[str, int] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)


def featurize_on_ray(options: FeaturizeOptions) -> dict[str, Any]:
    """Fill a store on a cluster of Ray; return the figures of the command's last line.

    Raises:
        InputError: as the command without Ray; or there is no such cluster, or a node does not see the run or has other versions.
        Stopped: a signal asked for it; what is written is kept.
    """
    from lugpi_core.runtime.meters import provenance

    assert options.ray is not None
    is_remote = options.run_dir is not None and address_of(options.run_dir)
    if options.run_dir is not None and is_remote:
        open_run(options.run_dir, options.scratch)  # before anything is started; each node has a local folder of its own
    with connected(options.ray) as cluster:
        shared = None if is_remote else make_folder(options.run_of(options.dataset, options.limit).absolute())
        share = _share(cluster, options.device, options.ray_actors)
        most = actors_for(cluster, share, options.ray_actors, flag="--ray-actors")
        say(f"Ray: {cluster}; at most {number_of(most, 'actor{s}')}, each with {share}")
        inputs = replace(options, ray=None, ray_actors=None), threads_of_actor()
        grows = options.ray_actors is None
        work = ActorWork(load=load_job, inputs=inputs, share=share, most=most, grows=grows, name_of=_name_of, shared=shared)
        with RayCrew(work) as crew, progress_bar() as progress:
            figures = _fill(crew, progress)
    return figures | {"ray": {"actors": most, **asdict(share)}, "config": resolved_flags(options), "provenance": provenance()}


def _share(cluster: Cluster, device: DeviceChoice, actors: int | None) -> Share:
    gpus = float(device == "cuda" or (device == "auto" and cluster.gpus > 0))
    return share_of(cluster, gpus=gpus, actors=actors)


def _name_of(task: Task) -> str:
    return f"shard {task}" if isinstance(task, int) else "the plan" if isinstance(task, FindShards) else "the end"


def _fill(crew: RayCrew[Task], progress: ProgressCallback) -> dict[str, Any]:
    """Have every shard filled that is missing or damaged; return the figures."""
    shards: Shards = _ask(crew, FindShards())
    failed: dict[int, str] = {}
    busy: deque[int] = deque()
    actors: dict[str, ShardDone] = {}
    total, done, has_computed = sum(shards.rows.values()), 0, False
    for number in shards.rows:
        crew.give(number)
    while crew.is_working or busy:
        if not crew.is_working:
            time.sleep(AGAIN_S)
            while busy:
                crew.give(busy.popleft())
        for result in crew.results():
            assert isinstance(result.task, int)
            shard = result.task
            if result.failure:
                failed[shard] = result.failure
            elif result.value.is_busy:
                busy.append(shard)
            else:
                actors[result.value.actor] = result.value
                done, has_computed = done + shards.rows[shard], has_computed or result.value.has_computed
                progress(Progress(done=done, total=total, kept=0, failed=0, seconds=_sum(each.seconds for each in actors.values())))
        crew.release_idle(keep=1)
    sums = {
        "rows": {name: int(count) for name, count in _sum(each.rows for each in actors.values()).items()},
        "times": {f"{name}_s": round(spent, 3) for name, spent in _sum(each.seconds for each in actors.values()).items()},
    }
    if failed:
        say(f"FAILED: {number_of(len(failed), 'shard{s}')}, {', '.join(map(str, sorted(failed)))}; the same command tries them again")
        return {"command": "featurize", "complete": False, "failed_shards": sorted(failed), **sums}
    figures: dict[str, Any] = _ask(crew, Finish(has_computed))
    return figures | sums if has_computed else figures


def _ask(crew: RayCrew[Task], task: FindShards | Finish) -> Any:
    """Return an actor's answer to a task that is no shard. Raises InputError if actors end over it."""
    (result,) = crew.do([task])
    if result.failure:
        raise InputError(
            got=f"{_name_of(task)} of the run, which failed {result.failure}",
            expected="an answer",
            do="see the lines above, and try the command without --ray",
        )
    return result.value


def _sum(counts: Any) -> dict[str, float]:
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return dict(total)


def load_job(given: tuple[FeaturizeOptions, int]) -> Callable[[Task], Any]:
    """Plan, in an actor that computes with so many threads; return what does a task there. The models are loaded with the first shard."""
    import torch

    from featurize.run import announce, announce_result, result_of
    from featurize.unit import CommandJob, ShardFeaturizer
    from lugpi_core.runtime.libraries import prepare_libraries
    from lugpi_core.runtime.stopping import stop_on_signals
    from lugpi_core.store.lease import ShardBusy

    options, threads = given
    prepare_libraries()
    torch.set_num_threads(threads)
    featurizer = ShardFeaturizer(CommandJob(options))
    corpus, job = featurizer.corpus, featurizer.job
    actor = secrets.token_hex(8)

    def do(task: Task) -> Any:
        if isinstance(task, FindShards):
            announce(corpus, job)
            spec, missing = job.every_column[0], featurizer.missing()
            return Shards(rows={shard: spec.layout(shard).rows for shard in dict.fromkeys((*missing, *range(spec.shards)))})
        if isinstance(task, Finish):
            left = 0 if featurizer.finish() else len(featurizer.missing())  # taken back by another process
            result = result_of(corpus, job, featurizer.state, featurizer.compute)
            result = replace(result, already_done=not task.has_computed, missing_shards=left)
            announce_result(result)
            return result.record()
        try:
            with stop_on_signals() as featurizer.state.stop:
                record = featurizer.fill(task)
        except ShardBusy:
            return ShardDone(is_busy=True)
        return ShardDone(
            has_computed=record.computed,
            actor=actor,
            rows=featurizer.state.rows(),
            seconds={name: spent for name, spent in featurizer.state.times.seconds.items() if name != "fill_wall"},
        )

    return do
