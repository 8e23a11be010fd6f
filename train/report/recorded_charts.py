"""The charts of what other commands recorded about a run: accuracy over labels, and stores side by side.

Lengths are in units of each chart's viewBox, as in ``charts.py``.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from train.evidence.few_shots import ShotsFigure
from train.evidence.rows import BASELINE
from train.report.charts import WIDTH, Chart, Curve, Line, Rect, Text, grid, ticks
from train.report.content import ComparedColumn, StoreWork

# Lines of a chart besides the baseline: as many as the style sheet tells apart.
MOST_LINES = 6
_LEAST_GAP = 11.0
_LABEL_LETTERS = 52
_WHISKER = 3.0

Shape = Rect | Line | Curve | Text


def shots_charts(figures: Sequence[ShotsFigure]) -> tuple[Chart, ...]:
    """Return accuracy over train texts of each class, on a logarithmic axis: a chart for each kind of model, and more where it has many
    rows; the baseline is in each. A whisker is the 95 % interval of the mean over episodes."""
    rows: dict[str, list[ShotsFigure]] = {}
    for figure in figures:
        rows.setdefault(figure.row, []).append(figure)
    kinds: dict[str, list[str]] = {}
    for row in rows:
        kinds.setdefault(row.partition("-")[0], []).append(row)
    baseline = kinds.pop(BASELINE, [])
    if baseline and not kinds:
        kinds[""] = []
    charts = []
    for kind, names in kinds.items():
        for start in range(0, max(len(names), 1), MOST_LINES):
            shown = names[start : start + MOST_LINES]
            title = f"Test accuracy over train texts of each class{': ' if kind else ''}{_PLURALS.get(kind, kind)}"
            charts.append(
                replace(_shots_chart({name: rows[name] for name in (*baseline, *shown)}, title, has_baseline=bool(baseline)), kind=kind)
            )
    return tuple(charts)


_PLURALS: Mapping[str, str] = {"teacher": "teachers", "student": "students", "images": "images alone"}


def _shots_chart(rows: Mapping[str, Sequence[ShotsFigure]], title: str, *, has_baseline: bool) -> Chart:
    each = [figure for row in rows.values() for figure in row]
    ends = [end for figure in each for end in _interval(figure)]
    marks = ticks(min(ends), max(ends))
    left, top, height = 38.0, 8.0, 210.0
    width, low, high = WIDTH - 26 - left, marks[0], marks[-1]
    shots = sorted({figure.shots for figure in each})
    base, span = top + height, math.log(shots[-1] / shots[0])
    inner = width - 16  # room for whiskers that stand beside their number

    def at(number: int) -> float:
        return left + 8 + inner * (math.log(number / shots[0]) / span if span else 0.5)

    def level(value: float) -> float:
        return top + height * (high - value) / (high - low)

    shapes = list(grid(left, top, width, height, marks, lambda value: f"{100 * value:.4g}%"))
    styles = [f"of-row line{n}" for n in range(not has_baseline, len(rows) + (not has_baseline))]
    labels: list[tuple[float, str]] = []
    for n, (style, (name, figures)) in enumerate(zip(styles, rows.items(), strict=True)):
        beside = (n - (len(rows) - 1) / 2) * min(2.2, 14 / len(rows))
        points = tuple((at(figure.shots) + beside, level(figure.mean)) for figure in figures)
        for figure, (x, y) in zip(figures, points, strict=True):
            start, end = (level(value) for value in _interval(figure))
            if figure.of_episodes is not None:
                shapes.append(Line(kind=f"whisker {style}", x1=x, y1=start, x2=x, y2=end))
                shapes += [Line(kind=f"whisker {style}", x1=x - 2, y1=side, x2=x + 2, y2=side) for side in (start, end)]
            shapes.append(Rect(kind="hit", x=x - 5, y=y - 5, width=10.0, height=10.0, title=_words(figure)))
        shapes.append(Curve(kind=style, points=points, has_dots=True))
        labels.append((points[-1][1], str(n + 1)))
        legend = base + 38 + 15 * n
        shapes += [
            Curve(kind=style, points=((left, legend), (left + 26, legend)), has_dots=False),
            Text(left + 34, legend + 3.5, f"{n + 1}  {name}", "start"),
        ]
    shapes += [Text(left + width + 4, y + 3.5, number, "start") for y, number in _apart(labels, top, base)]
    shapes += [Text(at(number), base + 14, f"{number:,}", "middle") for number in _with_room(shots, at)]
    return Chart(width=WIDTH, height=base + 30 + 15 * len(rows), title=title, shapes=shapes)


def _interval(figure: ShotsFigure) -> tuple[float, float]:
    half = figure.of_episodes or 0.0
    return max(0.0, figure.mean - half), min(1.0, figure.mean + half)


def _words(figure: ShotsFigure) -> str:
    episodes = f"{figure.episodes} episode" + "s" * (figure.episodes > 1)
    low, high = _interval(figure)
    interval = "" if figure.of_episodes is None else f", 95% interval {low:.1%} to {high:.1%}"
    return f"{figure.row}, {figure.shots:,} texts of each class: {figure.mean:.1%} in {episodes}{interval}"


def _apart(labels: Sequence[tuple[float, str]], top: float, base: float) -> list[tuple[float, str]]:
    """Return labels with their places moved so that none covers another, in the order of their places."""
    placed: list[tuple[float, str]] = []
    for y, words in sorted(labels):
        placed.append((max(y, placed[-1][0] + _LEAST_GAP) if placed else max(y, top), words))
    for n in reversed(range(len(placed))):
        below = base if n == len(placed) - 1 else placed[n + 1][0] - _LEAST_GAP
        placed[n] = (min(placed[n][0], below), placed[n][1])
    return placed


def _with_room(shots: Sequence[int], at: Callable[[int], float]) -> list[int]:
    """Return the numbers that have room on the axis, the first and the last among them."""
    shown = [shots[0]]
    for number in shots[1:]:
        room = 6.2 * len(f"{number:,}") + 6
        if number == shots[-1]:
            while len(shown) > 1 and at(number) - at(shown[-1]) < room:
                shown.pop()
        if at(number) - at(shown[-1]) >= room:
            shown.append(number)
    return shown


@dataclass(frozen=True, kw_only=True)
class _Place:
    """A value on a horizontal axis with its interval."""

    label: str
    value: float
    interval: tuple[float, float]
    words: str


def probe_chart(column: ComparedColumn) -> Chart | None:
    """Return the accuracy of the linear probe on a column of each store, with its 95 % interval; dashed, the best guess without images."""
    places = [
        _Place(
            label=one.label,
            value=one.accuracy,
            interval=one.interval,
            words=f"{one.label}: {one.accuracy:.1%}, 95% interval {one.interval[0]:.1%} to {one.interval[1]:.1%}",
        )
        for one in column.probes
    ]
    if not places:
        return None
    guesses = sorted({one.best_guess for one in column.probes})
    return _places_chart(places, guesses, f"{column.name}: does the image predict the class? Accuracy of a linear probe")


def agreement_chart(column: ComparedColumn) -> Chart | None:
    """Return how often a text is nearer to its own image than to another's, in each store, with its 95 % interval; dashed, chance."""
    places = []
    for one in column.agreements:
        error = 1.96 * one.standard_error
        interval = (max(0.0, one.own_is_nearer - error), min(1.0, one.own_is_nearer + error))
        words = f"{one.label}: {one.own_is_nearer:.1%} of {one.texts:,} texts, 95% interval {interval[0]:.1%} to {interval[1]:.1%}"
        places.append(_Place(label=one.label, value=one.own_is_nearer, interval=interval, words=words))
    return _places_chart(places, [0.5], f"{column.name}: how often a text is nearer to its own image") if places else None


def work_chart(works: Sequence[StoreWork]) -> Chart | None:
    """Return the floating-point operations of one image of each store."""
    if not works:
        return None
    left, top, line, bars = 2.0, 4.0, 30.0, WIDTH - 66
    most = max(one.tflop for one in works) or 1.0
    shapes: list[Shape] = []
    for n, one in enumerate(works):
        y, length = top + n * line, max(bars * one.tflop / most, 0.8)
        parts = f"denoiser {one.denoise_tflop:.3g}, text encoders {one.prompt_tflop:.3g}, decoder {one.decode_tflop:.3g}"
        shapes += [
            Text(left, y + 10, _cut(one.label), "start"),
            Rect(kind="bar", x=left, y=y + 15, width=length, height=9.0),
            Text(left + length + 6, y + 23, f"{one.tflop:.3g}", "start"),
            Rect(kind="hit", x=0.0, y=y, width=WIDTH, height=line, title=f"{one.label}: {one.tflop:.3g} TFLOP an image ({parts})"),
        ]
    return Chart(width=WIDTH, height=top + len(works) * line + 2, title="Work of an image, in TFLOP", shapes=shapes)


def _places_chart(places: Sequence[_Place], references: Sequence[float], title: str) -> Chart:
    left, top, line = 14.0, 4.0, 30.0
    ends = [*references, *(end for place in places for end in place.interval)]
    marks = ticks(min(ends), max(ends))
    width, base = WIDTH - 2 * left - 36, top + line * len(places)

    def at(value: float) -> float:
        return left + width * (value - marks[0]) / (marks[-1] - marks[0])

    shapes: list[Shape] = [Text(at(mark), base + 14, f"{100 * mark:.4g}%", "middle") for mark in marks]
    for n, place in enumerate(places):
        y = top + n * line
        middle, (low, high) = y + 20, (at(end) for end in place.interval)
        shapes += [  # lines across end below the label
            *(Line(kind="grid", x1=at(mark), y1=y + 13, x2=at(mark), y2=y + 27) for mark in marks),
            *(Line(kind="diagonal", x1=at(one), y1=y + 13, x2=at(one), y2=y + 27) for one in references),
            Text(2.0, y + 10, _cut(place.label), "start"),
            Line(kind="axis", x1=low, y1=middle, x2=high, y2=middle),
            *(Line(kind="axis", x1=end, y1=middle - _WHISKER, x2=end, y2=middle + _WHISKER) for end in (low, high)),
            Curve(kind="place", points=((at(place.value), middle),), has_dots=True),
            Text(WIDTH - 2, middle + 3.5, f"{place.value:.1%}", "end"),
            Rect(kind="hit", x=0.0, y=y, width=WIDTH, height=line, title=place.words),
        ]
    return Chart(width=WIDTH, height=base + 20, title=title, shapes=shapes)


def _cut(label: str) -> str:
    """Return the end of a long label: that of a path tells stores apart."""
    return label if len(label) <= _LABEL_LETTERS else f"…{label[-_LABEL_LETTERS + 1 :]}"
