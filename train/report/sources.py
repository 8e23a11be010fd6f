"""Where a model's score comes from: the text alone, a larger head or distillation, and the images."""

from collections.abc import Sequence
from dataclasses import dataclass

from train.evidence.rows import BASELINE, Row
from train.evidence.table_report import TableReport
from train.learning.task_rules import rules_of


@dataclass(frozen=True, kw_only=True)
class Source:
    """A row's mean test score in the primary metric as a sum: ``baseline + without_images + images``.

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


def sources_of(tables: TableReport, rows: Sequence[Row]) -> tuple[Source, ...]:
    """Return the sums of the rows that read images, or are distilled from such a row, and were compared with the baseline and a control."""
    metric = rules_of(tables.task).metrics[0]
    found = {(one.row, one.reference): one for one in tables.findings}
    sources = []
    for row in rows:
        spread = tables.rows[row.name].test if row.name in tables.rows else None
        score = None if spread is None else spread[metric]
        total, of_images = found.get((row.name, BASELINE)), found.get((row.name, row.control or ""))
        if row.privileged != "images" or score is None or total is None or of_images is None:
            continue
        images = of_images.comparison.difference
        sources.append(
            Source(
                row=row.name,
                method="larger head" if row.command == "teacher" else "distillation",
                baseline=score.mean - total.comparison.difference,
                without_images=total.comparison.difference - images,
                images=images,
                interval=of_images.comparison.interval,
                is_shown=of_images.outcome != "not shown",
            )
        )
    return tuple(sources)
