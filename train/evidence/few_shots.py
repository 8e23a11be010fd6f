"""Accuracy over the number of train texts of each class, from the tables of each number, and how many episodes its intervals need.

An episode is a draw of texts; its number is the seed of the draw, of the weights and of the batches. All episodes are scored on the same
test texts. The mean of E episodes on N test texts has the variance (Dorfman, Berbaum & Metz 1992, as for other intervals over seeds)

    σ²_texts / N + (σ²_episodes + σ²_rest / N) / E

More episodes make the second part smaller, never the first.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lugpi_core.files import write_json, write_text
from lugpi_core.fingerprint import hash_file
from train.evidence.records import difference_text
from train.evidence.row_figures import scored
from train.evidence.statistics import LEVEL
from train.evidence.table_report import TableReport
from train.file_names import PREDICTIONS, SHOTS_FIGURES
from train.models.markdown import markdown_table

# Half of the width of the interval whose number of episodes is said, and the most that is looked for.
HALF_WIDTH, _MOST_EPISODES = 0.01, 100_000
_NORMAL = 1.959964
SHOTS_HEADER = (
    "row",
    "shots",
    "episodes",
    "test",
    "± of episodes",
    "± of test texts",
    "episodes for ± 1 point",
    "- baseline",
    "- text only",
)
SHOTS_CAPTION = (
    "Mean test accuracy and its standard deviation over episodes. ± of episodes: half of the 95 % interval of the mean, for these test "
    "texts; ± of test texts: half of that over draws of as many test texts, which no number of episodes makes smaller. Episodes for ± 1 "
    "point: as many make the former that small, by the standard deviation found here. Differences in points, over episodes and test texts."
)


@dataclass(frozen=True, kw_only=True)
class ShotsFigure:
    """One row with one number of shots.

    Attributes:
        row: its name.
        shots: train texts of each class.
        episodes: how many are finished, on the test texts of the first.
        mean: test accuracy.
        sd: over the episodes; None of one.
        of_episodes: half of the 95 % interval of the mean over draws of episodes; None of one.
        of_texts: half of the 95 % interval over draws of test texts.
        needed: episodes that make ``of_episodes`` 0.01 or less if the standard deviation is ``sd``; None of one.
        less_baseline: difference from the baseline's mean and its 95 % interval, or None.
        less_control: difference from the text-only control's and its interval, or None.
    """

    row: str
    shots: int
    episodes: int
    mean: float
    sd: float | None
    of_episodes: float | None
    of_texts: float
    needed: int | None
    less_baseline: tuple[float, float, float] | None
    less_control: tuple[float, float, float] | None


@dataclass(frozen=True, kw_only=True)
class FewShotReport:
    """The rows of tables over numbers of shots.

    Attributes:
        run: its folder.
        reports: the tables of each number of shots.
    """

    run: Path
    reports: Mapping[int, TableReport]

    @cached_property
    def figures(self) -> list[ShotsFigure]:
        """Of each row with models, by row and shots. A number of shots may lack rows that another has."""
        names = dict.fromkeys(name for report in self.reports.values() for table in report.tables for name in table.rows)
        each = [(report, name, shots) for name in names for shots, report in sorted(self.reports.items()) if name in report.rows]
        return [figure for one in each if (figure := _figure(*one)) is not None]

    @property
    def notes(self) -> list[str]:
        """Which figures are not of all models of their row."""
        counts = [(one, len(self.reports[one.shots].rows[one.row].models)) for one in self.figures]
        return [
            f"{one.row} with {one.shots} shots leaves out {count - one.episodes} of {count} models: their test texts are not the first's"
            for one, count in counts
            if one.episodes < count
        ]

    @property
    def _predictions(self) -> list[Path]:
        """The answers that the figures are of."""
        rows = [(report.run, row) for report in self.reports.values() for row in report.rows.values()]
        return sorted(run / model.folder / PREDICTIONS for run, row in rows for model in row.models)

    def to_markdown(self) -> str:
        """Return the table with its caption."""
        first = next(iter(self.reports.values()))
        lines = [shots_cells(figure) for figure in self.figures]
        places = ", ".join(str(report.run / "tables.md") for _, report in sorted(self.reports.items()))
        parts = [f"# {first.dataset}: few shots", markdown_table(SHOTS_HEADER, lines), SHOTS_CAPTION, f"All tables: {places}"]
        return "\n\n".join([*parts, *(f"note: {note}" for note in self.notes)]) + "\n"

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON value: the content of ``shots.json``."""
        first = next(iter(self.reports.values()))
        return {
            "command": "tables",
            "dataset": first.dataset,
            "run": str(self.run),
            "shots": sorted(self.reports),
            "episodes": list(first.seeds),
            "figures": [asdict(figure) for figure in self.figures],
            "models": {str(path.relative_to(self.run)): hash_file(path) for path in self._predictions},
            "missing": {str(shots): list(report.missing) for shots, report in sorted(self.reports.items()) if report.missing},
            "failed": {str(shots): dict(report.failed) for shots, report in sorted(self.reports.items()) if report.failed},
            "notes": self.notes,
            "written": [str(self.run / name) for name in ("shots.md", SHOTS_FIGURES)],
            "complete": not any(report.failed for report in self.reports.values()),
        }

    def write(self) -> None:
        """Write ``shots.md`` and ``shots.json`` into the run, and the tables of each number of shots into its folder."""
        for report in self.reports.values():
            report.write()
        write_text(self.run / "shots.md", self.to_markdown())
        write_json(self.run / SHOTS_FIGURES, self.to_json())


def episodes_for(sd: float, half_width: float = HALF_WIDTH) -> int:
    """Return the smallest number of episodes, at least 2, whose 95 % interval of the mean is ``half_width`` to each side or less, if their
    standard deviation is ``sd``: Student's t with E - 1 degrees of freedom."""
    from scipy.stats import t

    low, high = 1, max(2, math.ceil((_NORMAL * sd / half_width) ** 2))

    def is_enough(episodes: int) -> bool:
        return float(t.ppf((1 + LEVEL) / 2, episodes - 1)) * sd / math.sqrt(episodes) <= half_width

    while not is_enough(high) and high < _MOST_EPISODES:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high


def spread_of_texts(hits_EN: NDArray[np.bool_]) -> float:
    """Return half of the 95 % interval of the mean accuracy over draws of N test texts, for these E episodes: from the variance component
    of the texts in the crossed design; of one episode from the binomial variance."""
    episodes, texts = hits_EN.shape
    if episodes == 1:
        variance = float(hits_EN.mean() * (1 - hits_EN.mean()))
    else:
        by_text_N = hits_EN.mean(axis=0)
        rest_EN = hits_EN - by_text_N - hits_EN.mean(axis=1, keepdims=True) + hits_EN.mean()
        freedom = max(texts - 1, 1)
        square_texts = episodes * float(((by_text_N - hits_EN.mean()) ** 2).sum()) / freedom
        variance = max(square_texts - float((rest_EN**2).sum()) / ((episodes - 1) * freedom), 0.0) / episodes
    return _NORMAL * math.sqrt(variance / texts)


def _figure(report: TableReport, name: str, shots: int) -> ShotsFigure | None:
    from scipy.stats import t

    row = report.rows[name]
    if not row.models:
        return None
    tests = [scored(report.run / model.folder).test for model in row.models]
    hits_EN: NDArray[np.bool_] = np.stack([test.hits for test in tests if test.examples == tests[0].examples])
    accuracies = hits_EN.mean(axis=1)
    count = len(accuracies)
    sd = float(accuracies.std(ddof=1)) if count > 1 else None
    return ShotsFigure(
        row=name,
        shots=shots,
        episodes=count,
        mean=float(accuracies.mean()),
        sd=sd,
        of_episodes=None if sd is None else float(t.ppf((1 + LEVEL) / 2, count - 1)) * sd / math.sqrt(count),
        of_texts=spread_of_texts(hits_EN),
        needed=None if sd is None else episodes_for(sd),
        less_baseline=_difference(report, name, control=False),
        less_control=_difference(report, name, control=True),
    )


def _difference(report: TableReport, name: str, *, control: bool) -> tuple[float, float, float] | None:
    found = [one for table in report.tables if name in table.rows and (one := table.finding(name, control=control)) is not None]
    return (found[0].comparison.difference, *found[0].comparison.interval) if found else None


def shots_cells(figure: ShotsFigure) -> Sequence[str]:
    """Return a figure's line of the table under ``SHOTS_HEADER``."""
    return (
        figure.row,
        str(figure.shots),
        str(figure.episodes),
        f"{figure.mean:.4f}" + ("" if figure.sd is None else f" ± {figure.sd:.4f}"),
        "" if figure.of_episodes is None else f"{100 * figure.of_episodes:.1f}",
        f"{100 * figure.of_texts:.1f}",
        "" if figure.needed is None else f"{figure.needed:,}",
        *("" if one is None else _difference_text(one) for one in (figure.less_baseline, figure.less_control)),
    )


def _difference_text(difference: tuple[float, float, float]) -> str:
    middle, low, high = (difference_text(value, "accuracy") for value in difference)
    return f"{middle} [{low}, {high}]"
