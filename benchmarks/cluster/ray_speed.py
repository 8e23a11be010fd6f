"""Ray beside the same work without it, and two at a time beside one, on a Ray of this machine. All ways run in turn.

``call``: a task that does nothing, from the driver and back. ``shard``: shards of images of the embedded generator by one process, and by
an actor. ``actors``: several shards by two actors and by one. ``tables``: nine models without images, two at a time and one, from the start
of actors to the last model.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import finish, interleaved, median_ratio, medians
from featurize.on_ray import load_job
from featurize.options import FeaturizeOptions
from featurize.unit import CommandJob, ShardFeaturizer
from lugpi_core.cluster.connection import Share, connected
from lugpi_core.cluster.crew import ActorWork, RayCrew
from lugpi_core.command_line import say
from lugpi_core.corpora.load import load_corpus
from lugpi_core.corpora.options import CorpusSettings
from lugpi_core.runtime.libraries import prepare_libraries
from train.evidence.compare import compare
from train.options.ray import RaySettings
from train.options.settings import Optimization, Placement

ROWS = ("baseline", "teacher-none", "student-none")
# What is promised: at most this share of a shard goes to Ray; two actors are at least so much faster than one, and so are tables.
MOST_OVERHEAD, LEAST_ACTORS, LEAST_TABLES = 0.02, 1.8, 1.7


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is measured.

    Attributes:
        calls: tasks that do nothing.
        shard_rows: images of a shard of ``shard``.
        small_rows: of a shard of ``actors``.
        shards: of ``actors``, in each round.
        epochs: of the models of ``tables``.
        texts: of their corpus; None = all.
        rounds: in which all ways run.
    """

    calls: int = 500
    shard_rows: int = 1024
    small_rows: int = 128
    shards: int = 4
    epochs: int = 20
    texts: int | None = None
    rounds: int = 5


SMALL = Sizes(calls=5, shard_rows=8, small_rows=4, shards=2, epochs=1, texts=60, rounds=1)


def measure(*, smoke: bool, record: bool) -> dict[str, Any]:
    """Return seconds of each way, and the ratios that are promised.

    Args:
        smoke: tiny sizes, one round.
        record: write the figures to benchmarks/results/.
    """
    prepare_libraries()
    torch.set_num_threads(1)
    sizes = SMALL if smoke else Sizes()
    figures: dict[str, Any] = {"sizes": sizes.__dict__}
    with tempfile.TemporaryDirectory() as folder, connected("local") as cluster:
        figures["cpus"] = cluster.cpus
        for name, measure_part in PARTS.items():
            figures[name] = measure_part(sizes, Path(folder))
            say(f"ray, {name}: {figures[name]}")
    figures["met"] = {
        "overhead": figures["shard"]["overhead"] <= MOST_OVERHEAD,
        "actors": figures["actors"]["faster"] >= LEAST_ACTORS,
        "tables": figures["tables"]["faster"] >= LEAST_TABLES,
    }
    return finish("ray", figures, record=record)


def _call(sizes: Sizes, _: Path) -> dict[str, float]:
    """Return the milliseconds of a task that does nothing."""
    with RayCrew(ActorWork(load=_load_nothing, inputs=None, share=Share(), most=1)) as crew:
        _finish(crew, [0])
        seconds = [_seconds(lambda number=number: _finish(crew, [number])) for number in range(1, 1 + sizes.calls)]  # type: ignore[misc]
    return {"ms": round(1000 * statistics.median(seconds), 3), "ms_at_most": round(1000 * max(seconds), 3)}


def _load_nothing(_: object) -> Callable[[int], int]:
    return lambda number: number


def _shard(sizes: Sizes, folder: Path) -> dict[str, Any]:
    """Compare shards of one process with those of an actor."""
    options = [_options(folder, name, rows=sizes.shard_rows, shards=2 + sizes.rounds) for name in ("process", "actor")]
    with ShardFeaturizer(CommandJob(options[0])) as featurizer, _crew(options[1], actors=1) as crew:
        here, there = count(), count()
        seconds = interleaved(
            {"process": lambda: featurizer.fill(next(here)), "actor": lambda: _finish(crew, [next(there)])}, repeats=sizes.rounds
        )
    return {**medians(seconds), "rounds": seconds, "overhead": round(median_ratio(seconds, "actor", "process") - 1, 4)}


def _actors(sizes: Sizes, folder: Path) -> dict[str, Any]:
    """Compare two actors with one; each has its models loaded."""
    numbers = {1: count(), 2: count()}
    with ExitStack() as stack:
        crews = {
            actors: stack.enter_context(
                _crew(
                    _options(folder, f"by-{actors}", rows=sizes.small_rows, shards=2 + (1 + sizes.rounds) * sizes.shards),
                    actors=actors,
                    cpus=0.5,
                )
            )
            for actors in numbers
        }

        def fill(actors: int, shards: int) -> None:
            _finish(crews[actors], [next(numbers[actors]) for _ in range(shards)])

        for actors in numbers:
            fill(actors, actors)
        seconds = interleaved({"one": lambda: fill(1, sizes.shards), "two": lambda: fill(2, sizes.shards)}, repeats=sizes.rounds)
    return {**medians(seconds), "rounds": seconds, "faster": median_ratio(seconds, "one", "two")}


def _tables(sizes: Sizes, folder: Path) -> dict[str, Any]:
    """Compare nine models two at a time with one at a time."""
    corpus, runs = load_corpus("demo", CorpusSettings(limit=sizes.texts)), count()

    def train(at_once: int) -> None:
        compare(
            corpus,
            folder / f"tables-{next(runs)}",
            rows=ROWS,
            seeds=3,
            text_model="demo",
            optimization=Optimization(epochs=sizes.epochs, learning_rate=5e-4),
            placement=Placement(device="cpu"),
            processes=at_once,
            ray=RaySettings(ray="local"),
        )

    # Each run starts its actors anew: there is nothing to warm up.
    seconds: dict[str, list[float]] = {"one": [], "two": []}
    for _ in range(max(1, sizes.rounds // 2)):
        seconds["one"].append(_seconds(lambda: train(1)))
        seconds["two"].append(_seconds(lambda: train(2)))
    return {**medians(seconds), "rounds": seconds, "faster": median_ratio(seconds, "one", "two")}


def _options(folder: Path, name: str, *, rows: int, shards: int) -> FeaturizeOptions:
    """Return the options of a run of so many shards, each text with an image of its own."""
    texts = folder / f"{name}.txt"
    texts.write_text("".join(f"a red fish and {number} small birds\n" for number in range(rows * shards)))
    return FeaturizeOptions(
        dataset="demo",
        unlabelled=texts,
        run_dir=folder / name,
        generator="demo",
        encoders=("clip-demo",),
        shard_rows=rows,
        device="cpu",
        batch_size=16,
    )


@contextmanager
def _crew(options: FeaturizeOptions, *, actors: int, cpus: float = 1.0) -> Iterator[RayCrew[Any]]:
    assert options.run_dir is not None
    options.run_dir.mkdir()
    with RayCrew(ActorWork(load=load_job, inputs=(options, 1), share=Share(cpus=cpus), most=actors, shared=options.run_dir)) as crew:
        yield crew


def _finish(crew: RayCrew[Any], tasks: Sequence[Any]) -> None:
    for result in crew.do(tasks):
        assert not result.failure, result.failure


def _seconds(act: Callable[[], object]) -> float:
    start_s = time.perf_counter()
    act()
    return time.perf_counter() - start_s


PARTS: dict[str, Callable[[Sizes, Path], dict[str, Any]]] = {"call": _call, "shard": _shard, "actors": _actors, "tables": _tables}
