"""What a run tells while it fills a store and when it has. Imports nothing heavy."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lugpi_core.store.candidates import CandidateFigures
    from lugpi_core.store.manifest import ColumnSpec
    from lugpi_core.store.prompt_figures import PromptFigures


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run is, after each block of images.

    Attributes:
        done, total: images of the shards that were unfinished when the run began.
        kept: those of ``done`` that an earlier run computed.
        failed: rows of this run that are flagged, in any column.
        seconds: by stage, so far.
    """

    done: int
    total: int
    kept: int
    failed: int
    seconds: Mapping[str, float]


# Share of the values that int8 loses above which it is told. Of normal numbers it is .01; where some dimensions are 30 times as large as
# the rest, .09, with little change to what a teacher says (docs/benchmarks.md).
MOST_LOST = 0.1
ProgressCallback = Callable[[Progress], None]


@dataclass(frozen=True, kw_only=True)
class ColumnResult:
    """One column of a store: its shape (rows first), its size on disk, and how many of its rows failed."""

    shape: tuple[int, ...]
    size_bytes: int
    failed_rows: int


@dataclass(frozen=True, kw_only=True)
class FeaturizeResult:
    """A store that was filled, and what this run did for it.

    Attributes:
        store_dir: the store's folder.
        already_done: whether nothing was missing.
        examples: by split.
        images: distinct images of the store.
        images_saved: how many more there would be if examples with the same prompt did not share theirs.
        prompts_cut_share: share of the texts of which a prompt is longer than the generator reads.
        columns: by name.
        rows: computed by this run, by stage.
        batches: batch size by stage, and every halving after an out-of-memory.
        seconds: by stage.
        peak_memory: bytes on the host and, with CUDA, on the device.
        compute: device, dtype, attention kernels and what was compiled.
        notice: what to know about the generator, or None.
        is_generated: False: the images are the user's own.
        prompt_figures: what of the texts the generator reads; None if an earlier version wrote the store, or it has own images.
        int8_lost: by column in int8, the share of this run's values that are stored as 0 though they are not.
        best_of: what the candidates scored of which the images were chosen; None without candidates, or while a shard is missing.
        subset: which texts were chosen to have images, and how many have none; None if all have.
        part: of several, that this run filled; None if it was alone.
        missing_shards: those that were not final when it ended: of other parts, or taken back by another process.
        part_complete: whether no row failed in this part's own shards, nor in those that this run filled.
    """

    store_dir: Path
    already_done: bool
    examples: dict[str, int]
    images: int
    images_saved: int
    prompts_cut_share: float
    columns: dict[str, ColumnResult]
    rows: dict[str, int]
    batches: dict[str, Any]
    seconds: dict[str, float]
    peak_memory: dict[str, int]
    compute: dict[str, Any]
    notice: str | None
    is_generated: bool = True
    prompt_figures: "PromptFigures | None" = None
    int8_lost: Mapping[str, float] = field(default_factory=dict)
    best_of: "CandidateFigures | None" = None
    subset: Mapping[str, Any] | None = None
    part: str | None = None
    missing_shards: int = 0
    part_complete: bool = True

    @property
    def failed_rows(self) -> dict[str, int]:
        """How many rows failed, by column."""
        return {name: column.failed_rows for name, column in self.columns.items()}

    @property
    def complete(self) -> bool:
        """Whether no shard is missing and no row failed."""
        return not self.missing_shards and not any(self.failed_rows.values())

    def record(self) -> dict[str, Any]:
        """Return the figures as a JSON value, under the names of the command's last line."""
        return {
            "command": "featurize",
            "complete": self.complete,
            "already_done": self.already_done,
            "store": str(self.store_dir),
            "examples": self.examples,
            "drawings": self.images,
            "drawings_spared": self.images_saved,
            "prompts_cut_share": round(self.prompts_cut_share, 4),
            **({} if self.prompt_figures is None else {"prompt_figures": self.prompt_figures.to_json()}),
            "columns": {name: list(column.shape) for name, column in self.columns.items()},
            "bytes": {name: column.size_bytes for name, column in self.columns.items()},
            "failed_rows": self.failed_rows,
            "missing_shards": self.missing_shards,
            **({"int8_lost": {name: round(share, 4) for name, share in self.int8_lost.items()}} if self.int8_lost else {}),
            **({} if self.best_of is None else {"best_of": self.best_of.to_json()}),
            **({} if self.subset is None else {"subset": dict(self.subset)}),
            **({} if self.part is None else {"part": self.part, "part_complete": self.part_complete}),
            "rows": self.rows,
            "batches": self.batches,
            "times": self.seconds,
            "peak_memory": self.peak_memory,
            "notice": self.notice,
            "compute": self.compute,
        }


def column_results(store: Path, columns: "Sequence[ColumnSpec]") -> dict[str, ColumnResult]:
    """Return what is on the disk of some columns of a store, by name."""
    from lugpi_core.store.manifest import load_manifest

    return {
        spec.name: ColumnResult(
            shape=(spec.rows, *spec.row_shape),
            size_bytes=sum(record["bytes"] for record in records.values()),
            failed_rows=sum(len(record["flagged"]) for record in records.values()),
        )
        for spec, records in (load_manifest(store / column.name) for column in columns)
    }


@contextmanager
def progress_bar() -> Iterator[ProgressCallback]:
    """A progress bar on stderr, which appears with the first block; it shows what failed and where the time goes."""
    from tqdm import tqdm

    bar: Any = None

    def show(progress: Progress) -> None:
        nonlocal bar
        if bar is None:
            # In a log file a line every ten seconds is enough.
            interval_s = 0.1 if sys.stderr.isatty() else 10
            bar = tqdm(total=progress.total, initial=progress.kept, unit="image", desc="featurize", mininterval=interval_s)
        seconds = {name: spent for name, spent in progress.seconds.items() if name not in ("load", "compile", "fill_wall")}
        total_s = sum(seconds.values()) or 1.0
        shares = " ".join(f"{name} {spent / total_s:.0%}" for name, spent in seconds.items() if spent / total_s >= 0.005)
        bar.set_postfix_str(f"flagged {progress.failed}, {shares}", refresh=False)
        bar.update(progress.done - bar.n)

    try:
        yield show
    finally:
        if bar is not None:
            bar.close()
