"""The geometry of the report's charts. ``templates/charts.svg.j2`` writes them as inline SVG; colours and fonts are the style sheet's.

Lengths are in units of each chart's viewBox, about a CSS pixel on a phone. Shapes: M bins, K classes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from train.evidence.calibration import Reliability
from train.evidence.records import difference_text
from train.learning.task_rules import Metric, plain_number
from train.report.cases import ClassChange
from train.report.sources import Source

WIDTH = 340.0
_LABEL_LETTERS = 18
# Share of the largest value; curves whose values differ by less become a level line.
_LEAST_SPAN = 0.01
_MOST_POINTS = 1500


@dataclass(frozen=True, kw_only=True)
class Rect:
    """A rectangle; ``title`` is shown by the browser when it is pointed at."""

    element: ClassVar[str] = "rect"
    kind: str
    x: float
    y: float
    width: float
    height: float
    title: str | None = None
    opacity: float | None = None


@dataclass(frozen=True, kw_only=True)
class Line:
    """A straight line."""

    element: ClassVar[str] = "line"
    kind: str
    x1: float
    y1: float
    x2: float
    y2: float


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A line through points; with ``has_dots`` they are marked."""

    element: ClassVar[str] = "curve"
    kind: str
    points: tuple[tuple[float, float], ...]
    has_dots: bool


@dataclass(frozen=True)
class Text:
    """A text with its anchor: ``start``, ``middle`` or ``end``; turned by 90 degrees where ``is_upright``."""

    element: ClassVar[str] = "text"
    x: float
    y: float
    words: str
    anchor: str
    is_upright: bool = False


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart: its size, a title for readers who cannot see it, shapes from back to front, and the kind of models whose colour it has."""

    width: float
    height: float
    title: str
    shapes: Sequence[Rect | Line | Curve | Text]
    kind: str = "baseline"


def reliability_chart(reliability: Reliability, title: str, *, is_of_classes: bool = False) -> Chart:
    """Return a reliability diagram: accuracy over confidence with a bar per bin, the diagonal of perfect calibration, and below it how many
    examples each bin has. With ``is_of_classes``, of several labels: how often texts have a class over its probability."""
    left, top, side, strip = 34.0, 8.0, 296.0, 36.0
    step = side / len(reliability.counts)
    base, floor = top + side, top + side + 22 + strip
    shapes = [*grid(left, top, side, side, [0, 0.25, 0.5, 0.75, 1], lambda share: f"{share:.0%}")]
    for m, count in enumerate(reliability.counts):
        if not count:
            continue
        confidence, accuracy = float(reliability.confidence[m]), float(reliability.accuracy[m])
        x, width = left + m * step + 1, step - 2
        words = f"{count:,} answers, {accuracy:.1%} of them right, at a mean confidence of {confidence:.1%}"
        if is_of_classes:
            words = f"{count:,} times a text and a class, {accuracy:.1%} of the texts have it, at a mean probability of {confidence:.1%}"
        share = strip * int(count) / int(reliability.counts.max())
        shapes += [
            Rect(kind="bar", x=x, width=width, y=base - side * accuracy, height=max(side * accuracy, 1.0)),
            Rect(kind="gap", x=x, width=width, y=base - side * max(confidence, accuracy), height=side * abs(confidence - accuracy)),
            Rect(kind="count", x=x, width=width, y=floor - share, height=max(share, 0.6)),
            Rect(kind="hit", x=left + m * step, y=top, width=step, height=floor - top, title=words),
        ]
    shapes.append(Line(kind="diagonal", x1=left, y1=base, x2=left + side, y2=top))
    marks = ((0, "start"), (0.5, "middle"), (1, "end"))
    shapes += [Text(left + share * side, base + 14, f"{share:.0%}", anchor) for share, anchor in marks]
    below = "probability of a class, and how often it occurs" if is_of_classes else "confidence, and how many answers have it"
    shapes.append(Text(left + side / 2, floor + 14, below, "middle"))
    return Chart(width=WIDTH, height=floor + 20, title=title, shapes=shapes)


def numbers_chart(labels_N: NDArray[Any], answers_N: NDArray[Any], title: str) -> Chart:
    """Return the numbers that a model answers over the labels, with the diagonal on which they are equal; of more than 1,500 examples,
    evenly spaced ones by label."""
    shown = np.argsort(labels_N, kind="stable")[list(numbers_shown(len(labels_N)))]
    marks = ticks(float(min(labels_N.min(), answers_N.min())), float(max(labels_N.max(), answers_N.max())))
    left, top = 14 + _room(marks), 8.0
    side = WIDTH - 10 - left
    low, span, base = marks[0], marks[-1] - marks[0], top + side
    shapes = [*grid(left, top, side, side, marks, _mark), Text(10.0, top + side / 2, "answer", "middle", is_upright=True)]
    shapes.append(Line(kind="diagonal", x1=left, y1=base, x2=left + side, y2=top))
    for label, answer in zip(labels_N[shown].tolist(), answers_N[shown].tolist(), strict=True):
        x, y = left + side * (label - low) / span, base - side * (answer - low) / span
        shapes.append(
            Rect(
                kind="bar",
                x=x - 2,
                y=y - 2,
                width=4.0,
                height=4.0,
                title=f"label {plain_number(label, 6)}, answer {plain_number(answer, 6)}",
            )
        )
    shapes += [Text(left, base + 14, _mark(marks[0]), "start"), Text(left + side, base + 14, _mark(marks[-1]), "end")]
    shapes.append(Text(left + side / 2, base + 14, "label", "middle"))
    return Chart(width=WIDTH, height=base + 20, title=title, shapes=shapes)


def numbers_shown(examples: int) -> range:
    """Return which of so many examples, sorted by label, have a point in ``numbers_chart``."""
    return range(0, examples, -(-examples // _MOST_POINTS))


def curves_chart(lines: Sequence[tuple[str | None, Sequence[float | None]]], title: str, *, is_share: bool) -> Chart:
    """Return values by epoch as lines.

    Args:
        lines: each with its role, which decides its colour, None for one in the background; and a value per epoch, None where there is
            none, but not everywhere.
        title: of the chart.
        is_share: whether values are written in percent.
    """
    values = [value for _, line in lines for value in line if value is not None]
    most = max(values)
    marks = ticks(min(*values, most - _LEAST_SPAN * max(abs(most), 1e-6)), most)
    left, top, height = 38.0 if is_share else _room(marks), 8.0, 190.0
    width = WIDTH - 10 - left
    low, high = marks[0], marks[-1]
    longest = max(len(line) for _, line in lines)
    shapes = [*grid(left, top, width, height, marks, _mark if not is_share else lambda value: f"{100 * value:.4g}%")]
    for role, line in lines:
        points = tuple(
            (left + width * (n / (longest - 1) if longest > 1 else 0.5), top + height * (1 - (value - low) / (high - low)))
            for n, value in enumerate(line)
            if value is not None
        )
        shapes.append(Curve(kind=role or "other", points=points, has_dots=role is not None or len(points) == 1))
    shapes += [Text(left, top + height + 16, "epoch 1", "start"), Text(left + width, top + height + 16, str(longest), "end")]
    return Chart(width=WIDTH, height=top + height + 22, title=title, shapes=shapes)


def confusion_chart(counts_KK: NDArray[np.int64], names: Sequence[str], title: str) -> Chart:
    """Return a confusion matrix: a row per class, the share of each answer as shade; right answers are on the diagonal."""
    classes = len(names)
    top = left = _margin(names)
    cell = min(28.0, (WIDTH - left - 4) / classes) if classes <= 14 else 17.0
    shares_KK = counts_KK / np.maximum(counts_KK.sum(axis=1, keepdims=True), 1)
    shapes: list[Rect | Line | Curve | Text] = []
    for row, name in enumerate(names):
        shapes.append(Text(left - 6, top + (row + 0.5) * cell + 3.5, shortened(name), "end"))
        shapes.append(Text(left + (row + 0.5) * cell + 3.5, top - 6, shortened(name), "start", is_upright=True))
        for column, other in enumerate(names):
            count, share = int(counts_KK[row, column]), float(shares_KK[row, column])
            words = f"{name} answered as {other}: {count:,} ({share:.0%} of the class)"
            shade = "right" if row == column else "wrong"
            ground = Rect(kind="cell", x=left + column * cell, y=top + row * cell, width=cell - 1, height=cell - 1)
            shapes += [ground, replace(ground, kind=f"cell {shade}", opacity=share, title=words)]
    side = left + classes * cell + 4
    return Chart(width=side, height=side, title=title, shapes=shapes)


def changes_chart(changes: Sequence[ClassChange], names: Sequence[str], title: str) -> Chart:
    """Return how many test examples of each class a student repairs (to the right) and breaks (to the left)."""
    left, row_height, top = _margin([names[change.label] for change in changes]), 22.0, 20.0
    half = (WIDTH - left - 44) / 2
    middle = left + half + 6
    most = max((max(change.repaired, change.broken) for change in changes), default=0) or 1
    shapes: list[Rect | Line | Curve | Text] = [Text(middle - 6, 12, "← broken", "end"), Text(middle + 6, 12, "repaired →", "start")]
    for n, change in enumerate(changes):
        y, name = top + n * row_height, names[change.label]
        net = change.repaired - change.broken
        broken, repaired = half * change.broken / most, half * change.repaired / most
        words = f"{name}: {change.repaired} repaired and {change.broken} broken of {change.examples} test examples"
        shapes += [
            Text(left - 6, y + 14, shortened(name), "end"),
            Rect(kind="broken", x=middle - broken, y=y + 3, width=broken, height=row_height - 8),
            Rect(kind="repaired", x=middle, y=y + 3, width=repaired, height=row_height - 8),
            Text(WIDTH - 2, y + 14, f"{net:+d}".replace("-", "−") if net else "0", "end"),
            Rect(kind="hit", x=0.0, y=y, width=WIDTH, height=row_height, title=words),
        ]
    height = top + len(changes) * row_height
    shapes.append(Line(kind="axis", x1=middle, y1=top - 2, x2=middle, y2=height))
    return Chart(width=WIDTH, height=height + 2, title=title, shapes=shapes)


def sources_chart(sources: Sequence[Source], metric: Metric, title: str) -> Chart:
    """Return each row's steps from the text alone (the dashed line) to its score, one bar below the other: what its method adds, then what
    the images add, with a whisker over the 95 % interval."""
    left, top, line = 88.0, 8.0, 17.0
    width, group = WIDTH - left - 46, 3 * line + 8
    ends = [(one, one.baseline + one.without_images) for one in sources]
    places = [value for one, control in ends for value in (one.baseline, control, one.score, *(control + end for end in one.interval))]
    marks = ticks(min(places), max(places))
    base = top + group * len(sources)

    def at(value: float) -> float:
        return left + width * (value - marks[0]) / (marks[-1] - marks[0])

    shapes: list[Rect | Line | Curve | Text] = []
    for mark in marks:
        words = f"{100 * mark:.4g}%" if metric == "accuracy" else _mark(mark)
        shapes += [Line(kind="grid", x1=at(mark), y1=top, x2=at(mark), y2=base), Text(at(mark), base + 14, words, "middle")]
    for n, (one, control) in enumerate(ends):
        y = top + n * group
        shapes += [
            Text(0.0, y + 13, one.row, "start"),
            Line(kind="diagonal", x1=at(one.baseline), y1=y + line, x2=at(one.baseline), y2=y + 3 * line),
        ]
        steps = (
            (one.method, one.baseline, control, "gained" if control >= one.baseline else "lost"),
            ("images", control, one.score, "repaired" if one.images >= 0 else "broken"),
        )
        for m, (words, start, end, kind) in enumerate(steps, start=1):
            middle = y + (m + 0.5) * line
            label = f"{words} of {one.row}" + (", not significant" if words == "images" and not one.is_shown else "")
            bar = Rect(kind=kind, x=at(min(start, end)), y=middle - 5, width=max(abs(at(end) - at(start)), 0.8), height=10.0, title=label)
            shapes += [Text(left - 6, middle + 3.5, words, "end"), bar]
            shapes.append(Text(WIDTH - 2, middle + 3.5, difference_text(end - start, metric).replace("-", "−"), "end"))
        low, high = (at(control + end) for end in one.interval)
        shapes.append(Line(kind="axis", x1=low, y1=y + 2.5 * line, x2=high, y2=y + 2.5 * line))
        shapes += [Line(kind="axis", x1=x, y1=y + 2.5 * line - 4, x2=x, y2=y + 2.5 * line + 4) for x in (low, high)]
    return Chart(width=WIDTH, height=base + 20, title=title, shapes=shapes)


def ticks(low: float, high: float, *, steps: int = 4) -> list[float]:
    """Return round numbers at equal distances, the first at most ``low``, the last at least ``high``; about ``steps`` of them."""
    least = max(abs(low), abs(high), 1e-6) * 1e-6  # a smaller span is a single value
    span = max(high - low, least)
    size = 10 ** math.floor(math.log10(span / steps))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if span / (size * factor) <= steps)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [n * step for n in range(first, max(last, first + 1) + 1)]


def shortened(name: str) -> str:
    """Return a class's name cut to the room that a chart has for it."""
    return name if len(name) <= _LABEL_LETTERS else f"{name[: _LABEL_LETTERS - 1]}…"


def _mark(value: float) -> str:
    return plain_number(value, 6)


def _room(marks: Sequence[float]) -> float:
    """Return the width of the labels of an axis's marks."""
    return max(38.0, 10 + 6.2 * max(len(_mark(mark)) for mark in marks))


def _margin(names: Sequence[str]) -> float:
    """Return the width of the longest of these labels; the letters of most scripts are narrower than 6.4."""
    return 12.0 + 6.4 * max((len(shortened(name)) for name in names), default=0)


def grid(
    left: float, top: float, width: float, height: float, marks: Sequence[float], label: Callable[[float], str]
) -> list[Rect | Line | Curve | Text]:
    """Return horizontal lines at the marks, with their labels on the left."""
    low, high = marks[0], marks[-1]
    shapes: list[Rect | Line | Curve | Text] = []
    for mark in marks:
        y = top + height * (1 - (mark - low) / (high - low))
        shapes += [Line(kind="grid", x1=left, y1=y, x2=left + width, y2=y), Text(left - 5, y + 3.5, label(mark), "end")]
    return shapes
