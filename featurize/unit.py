"""The unit of a distributed run: one shard. Any engine that hands out numbers can fill a store with it.

What a shard contains depends on the job and the shard's number alone, not on how many processes there are or which of them computes it. A
shard that is final is returned as it is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from featurize.options import FeaturizeOptions, FeaturizeSettings
from featurize.run import memory_in_one_line, plan_call, plan_command
from lugpi_core.errors import InputError

if TYPE_CHECKING:
    from featurize.fill.shards import ShardFiller
    from featurize.plan.job import Job
    from featurize.plan.own_pictures import OwnJob
    from lugpi_core.corpora.corpus import Corpus


class ShardJob(Protocol):
    """What every process of a run is told. It can be pickled; each process makes its own plan of it."""

    def plan(self) -> "tuple[Corpus, Job | OwnJob]":
        """Return the corpus and everything that is known before a model is loaded."""


@dataclass(frozen=True, kw_only=True)
class FeaturizeJob:
    """The arguments of ``featurize``, for ``featurize_shard``.

    Attributes:
        corpus: ``load_corpus(…)`` or ``Corpus.from_texts(…)``.
        run_dir: the run's folder, which all processes see.
        generator, encoders, settings: as for ``featurize``.
    """

    corpus: "Corpus"
    run_dir: str | Path
    generator: str = "fast"
    encoders: Sequence[str] = ("clip-vit-b32",)
    settings: FeaturizeSettings | None = None

    def plan(self) -> "tuple[Corpus, Job | OwnJob]":
        """Return the corpus and everything that is known before a model is loaded.

        Raises:
            InputError: a setting, a prompt or a model's files are not as they must be.
        """
        job = plan_call(self.corpus, self.run_dir, generator=self.generator, encoders=self.encoders, settings=self.settings)
        return self.corpus, job


@dataclass(frozen=True)
class CommandJob:
    """The flags of ``python -m featurize``, for ``featurize_shard``."""

    options: FeaturizeOptions

    def plan(self) -> "tuple[Corpus, Job | OwnJob]":
        """Return the corpus and everything that is known before a model is loaded.

        Raises:
            InputError: a flag, the corpus or a model's files are not as they must be.
        """
        return plan_command(self.options)


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """A final shard.

    Attributes:
        shard: its number.
        rows: images in it.
        columns: the record of the shard in each column: file, bytes, hashes, fingerprint, flagged rows, versions.
        computed: whether this call computed something; does not count when records are compared.
    """

    shard: int
    rows: int
    columns: Mapping[str, Mapping[str, Any]] = field(repr=False)
    computed: bool = field(default=True, compare=False)


class ShardFeaturizer:
    """Fills shards of a run one by one. A context manager; holds the models, from the first shard that lacks something on.

    Args:
        job: the run.

    Attributes:
        corpus, job: the run's, as planned.
        shards: how many there are.
        state: what was done so far; its ``stop`` may ask to stop.

    Raises:
        InputError: the job cannot be planned, or the store is another run's.
    """

    def __init__(self, job: ShardJob) -> None:
        from featurize.fill.fillers import begin_run

        self.corpus, self.job = job.plan()
        self._writers, self.state = begin_run(self.corpus, self.job, is_shared=True, checked=())
        self._spec = self.job.every_column[0]
        self._filler: ShardFiller | None = None
        self._loaded: set[str] = set()
        self.shards = self._spec.shards

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *stopped_by: Any) -> None:
        self._close(*stopped_by)

    @property
    def compute(self) -> Mapping[str, Any] | None:
        """How was computed: attention kernels, and what was compiled; None if nothing has been."""
        return None if self._filler is None else self._filler.compute

    def missing(self) -> list[int]:
        """Return the shards that are not final in every column, as of now."""
        from featurize.fill.shards import open_shards

        for writer in self._writers.values():
            writer.refresh()
        return open_shards(self._writers)

    def fill(self, shard: int) -> ShardRecord:
        """Compute what a shard lacks in any column and make it final; damaged rows are computed again. Return its record.

        Raises:
            InputError: no such shard; too little memory or disk; too many failed rows in this process.
            ShardBusy: another process is writing it.
            Stopped: the process was asked to stop; what is written is kept.
        """
        if shard not in range(self.shards):
            raise InputError(got=f"shard {shard}", expected=f"a number from 0 to {self.shards - 1}", do="choose one of them")
        lacking = {name for name, writer in self._writers.items() if not writer.is_intact(shard)}
        computed = False
        if lacking:
            with memory_in_one_line("see --dry-run for what is needed, and free memory; what is written is kept"):
                computed = self._fill(shard, lacking)
        return ShardRecord(
            shard=shard,
            rows=self._spec.layout(shard).rows,
            columns={name: writer.records[shard] for name, writer in self._writers.items()},
            computed=computed,
        )

    def finish(self) -> bool:
        """Write the manifests and ``tokens.h5`` if no shard is missing; return whether that is so. Any number of processes may do so."""
        from featurize.fill.fillers import finish_run

        return finish_run(self.job, self._writers)

    def _fill(self, shard: int, lacking: set[str]) -> bool:
        from featurize.fill.fillers import incomplete, open_filler

        if self._filler is None or not lacking <= self._loaded:
            self._close(None, None, None)
            self._loaded = incomplete(self._writers)
            self._filler = open_filler(self.job, self._writers, self.state)
        try:
            files = self._filler.claim(shard)
            for _ in self._filler.fill_shard(shard, files) if files else ():
                pass
            self._filler.drain()
        except BaseException as error:
            self._close(type(error), error, error.__traceback__)
            raise
        return bool(files)

    def _close(self, *stopped_by: Any) -> None:
        filler, self._filler = self._filler, None
        if filler is not None:
            filler.__exit__(*stopped_by)


def featurize_shard(job: ShardJob, shard: int) -> ShardRecord:
    """Fill one shard of a run and return its record; whoever fills the last one completes the store.

    The result depends on the job and the number alone. A second call computes nothing and returns the same. Models are loaded at each call
    that computes something; ``ShardFeaturizer`` keeps them.

    Args:
        job: the run, such as ``FeaturizeJob(corpus=…, run_dir=…)``.
        shard: from 0 on.

    Raises:
        InputError: as ``featurize``; or no such shard.
        ShardBusy: another process is writing it.
        Stopped: the process was asked to stop; what is written is kept.
    """
    with ShardFeaturizer(job) as featurizer:
        record = featurizer.fill(shard)
        featurizer.finish()
    return record
