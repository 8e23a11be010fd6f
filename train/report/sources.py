"""Where a model's score comes from: the text alone, a larger head or distillation, and the images."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from train.evidence.rows import BASELINE, Row
from train.evidence.table_report import TableReport
from train.learning.task_rules import rules_of


@dataclass(frozen=True, kw_only=True)
class Source:
    """A row's test score in the primary metric as a sum: ``baseline + without_images + images``, means over the seeds that the row shares
    with its control.

    Attributes:
        row: its name.
        method: what its control has and the baseline lacks: a larger head, or distillation.
        baseline: the baseline's score.
        without_images: what the text-only control gains on the baseline.
        images: what the row gains on its control.
        interval: of ``images``, 95 %, over seeds and texts where there are several seeds.
        is_shown: whether ``images`` is significant.
    """

    row: str
    method: str
    baseline: float
    without_images: float
    images: float
    interval: tuple[float, float]
    is_shown: bool

    @property
    def score(self) -> float:
        """The row's score."""
        return self.baseline + self.without_images + self.images


def sources_of(tables: TableReport, rows: Sequence[Row]) -> tuple[tuple[Source, ...], tuple[str, ...]]:
    """Return the sums of the rows that read images, or are distilled from such a row, and were compared with the baseline and a control;
    and a note if the baseline lacks seeds of some."""
    metric = rules_of(tables.task).metrics[0]
    found = {(one.row, one.reference): one for one in tables.findings}
    scores = {name: {model.seed: model.test[metric] for model in row.models} for name, row in tables.rows.items()}
    sources, left_out = [], []
    for row in rows:
        total, of_images = found.get((row.name, BASELINE)), found.get((row.name, row.control or ""))
        if row.privileged != "images" or not {row.name, BASELINE} <= scores.keys() or total is None or of_images is None:
            continue
        # Every summand is of the seeds over which the images' part and its interval are.
        seeds, images = of_images.comparison.seeds, of_images.comparison.difference
        if not set(seeds) <= set(total.comparison.seeds):
            left_out.append(row.name)
            continue
        score, baseline = (fmean(score for seed in seeds if (score := scores[name][seed]) is not None) for name in (row.name, BASELINE))
        sources.append(
            Source(
                row=row.name,
                method="larger head" if row.command == "teacher" else "distillation",
                baseline=baseline,
                without_images=score - baseline - images,
                images=images,
                interval=of_images.comparison.interval,
                is_shown=of_images.outcome != "not shown",
            )
        )
    why = f"{', '.join(left_out)}: the baseline lacks seeds that it shares with its control, so its score is not drawn as a sum"
    return tuple(sources), (why,) if left_out else ()
