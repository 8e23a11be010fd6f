"""The report's charts as inline SVG: no colour and no font stands here, both are the page's style sheet's, in light and dark.

Lengths are in the units of each chart's own viewBox, about a CSS pixel on a phone. Shapes: M bins, K classes.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from train.evidence.calibration import Reliability
from train.report.cases import ClassChange
from train.report.html import Html, tag, together

_WIDTH = 340.0
_LABEL_LETTERS = 18
# Of the largest value: curves that differ by less are drawn as the one level that they are.
_LEAST_SPAN = 0.01


def reliability_chart(found: Reliability, title: str) -> Html:
    """Return a reliability diagram: accuracy over confidence, a bar a bin, the diagonal of perfect calibration, and below it how many
    examples each bin holds."""
    left, top, side, strip = 34.0, 8.0, 296.0, 36.0
    bins = len(found.counts)
    step = side / bins
    parts: list[Html] = [_grid(left, top, side, side, [0, 0.25, 0.5, 0.75, 1], lambda share: f"{share:.0%}")]
    for m, (count, confidence, accuracy) in enumerate(zip(found.counts, found.confidence, found.accuracy, strict=True)):
        if not count:
            continue
        x, height = left + m * step, side * float(accuracy)
        words = f"{count:,} answers, {accuracy:.1%} of them right, at a mean confidence of {confidence:.1%}"
        most = side * float(confidence)
        parts.append(tag("rect", x=x + 1, y=top + side - height, width=step - 2, height=max(height, 1.0), class_="bar"))
        parts.append(tag("rect", x=x + 1, y=top + side - max(most, height), width=step - 2, height=abs(most - height), class_="gap"))
        share = strip * int(count) / int(found.counts.max())
        parts.append(tag("rect", x=x + 1, y=top + side + 22 + strip - share, width=step - 2, height=max(share, 0.6), class_="count"))
        parts.append(tag("rect", tag("title", words), x=x, y=top, width=step, height=side + 22 + strip, class_="hit"))
    parts.append(tag("line", x1=left, y1=top + side, x2=left + side, y2=top, class_="diagonal"))
    parts += [
        _text(left + part * side, top + side + 14, f"{part:.0%}", anchor) for part, anchor in ((0, "start"), (0.5, "middle"), (1, "end"))
    ]
    parts.append(_text(left + side / 2, top + side + 22 + strip + 14, "confidence, and how many answers have it", "middle"))
    return _svg(_WIDTH, top + side + 22 + strip + 20, title, parts)


def curves_chart(lines: Sequence[tuple[str | None, Sequence[float]]], title: str, *, is_share: bool) -> Html:
    """Return values by epoch as lines.

    Args:
        lines: each with its role, which is its colour, None for one in the background; and a value an epoch.
        title: what is shown, for those who do not see it.
        is_share: whether values are written in percent.
    """
    left, top, width, height = 38.0, 8.0, 292.0, 190.0
    values = [value for _, line in lines for value in line]
    most = max(values)
    marks = ticks(min(*values, most - _LEAST_SPAN * max(abs(most), 1e-6)), most)
    low, high = marks[0], marks[-1]
    longest = max(len(line) for _, line in lines)
    parts = [_grid(left, top, width, height, marks, lambda value: f"{value:.4g}" if not is_share else f"{100 * value:.4g}%")]
    for role, line in lines:
        points = [
            (left + width * (n / (longest - 1) if longest > 1 else 0.5), top + height * (1 - (value - low) / (high - low)))
            for n, value in enumerate(line)
        ]
        shown = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(tag("polyline", points=shown, class_=f"curve {role or 'other'}"))
        if len(points) == 1 or role is not None:
            parts += [tag("circle", cx=x, cy=y, r=2.2, class_=f"dot {role or 'other'}") for x, y in points]
    parts += [_text(left, top + height + 16, "epoch 1", "start"), _text(left + width, top + height + 16, str(longest), "end")]
    return _svg(_WIDTH, top + height + 22, title, parts)


def confusion_chart(counts_KK: NDArray[np.int64], names: Sequence[str], title: str) -> Html:
    """Return a confusion matrix: a row a class, its share in each answer as shade; the diagonal is what was right."""
    classes = len(names)
    top = left = _margin(names)
    cell = min(28.0, (_WIDTH - left - 4) / classes) if classes <= 14 else 17.0
    shares_KK = counts_KK / np.maximum(counts_KK.sum(axis=1, keepdims=True), 1)
    parts: list[Html] = []
    for row, name in enumerate(names):
        middle = top + (row + 0.5) * cell
        parts.append(_text(left - 6, middle + 3.5, shortened(name), "end"))
        x = left + (row + 0.5) * cell
        parts.append(
            tag(
                "text",
                shortened(name),
                x=x + 3.5,
                y=top - 6,
                transform=f"rotate(-90 {x + 3.5:.1f} {top - 6:.1f})",
                class_="tick",
                text_anchor="start",
            )
        )
        for column, other in enumerate(names):
            count, share = int(counts_KK[row, column]), float(shares_KK[row, column])
            words = f"{name} answered as {other}: {count:,} ({share:.0%} of the class)"
            shade = "right" if row == column else "wrong"
            place = {"x": left + column * cell, "y": top + row * cell, "width": cell - 1, "height": cell - 1}
            parts.append(tag("rect", class_="cell", **place))
            parts.append(tag("rect", tag("title", words), class_=f"cell {shade}", fill_opacity=share, **place))
    side = left + classes * cell + 4
    return _svg(side, side, title, parts)


def changes_chart(changes: Sequence[ClassChange], names: Sequence[str], title: str) -> Html:
    """Return what a student repairs (to the right) and breaks (to the left) of each class's test examples."""
    left, row_height, top = _margin([names[one.label] for one in changes]), 22.0, 20.0
    half = (_WIDTH - left - 44) / 2
    middle = left + half + 6
    most = max((max(one.repaired, one.broken) for one in changes), default=0) or 1
    parts = [_text(middle - 6, 12, "← broken", "end"), _text(middle + 6, 12, "repaired →", "start")]
    for n, one in enumerate(changes):
        y = top + n * row_height
        net = one.repaired - one.broken
        words = f"{names[one.label]}: {one.repaired} repaired and {one.broken} broken of {one.examples} test examples"
        lost, won = half * one.broken / most, half * one.repaired / most
        parts += [
            _text(left - 6, y + 14, shortened(names[one.label]), "end"),
            tag("rect", x=middle - lost, y=y + 3, width=lost, height=row_height - 8, class_="broken"),
            tag("rect", x=middle, y=y + 3, width=won, height=row_height - 8, class_="repaired"),
            _text(_WIDTH - 2, y + 14, f"{net:+d}".replace("-", "−") if net else "0", "end"),
            tag("rect", tag("title", words), x=0.0, y=y, width=_WIDTH, height=row_height, class_="hit"),
        ]
    height = top + len(changes) * row_height
    parts.append(tag("line", x1=middle, y1=top - 2, x2=middle, y2=height, class_="axis"))
    return _svg(_WIDTH, height + 2, title, parts)


def confidence_bar(share: float, kind: str) -> Html:
    """Return a bar that is as full as an answer is confident; what it says stands beside it in words."""
    parts = [
        tag("rect", width=100, height=6, class_="empty"),
        tag("rect", width=100 * share, height=6, class_=f"full {kind}"),
    ]
    return tag("svg", *parts, class_="confidence", viewBox="0 0 100 6", preserveAspectRatio="none", aria_hidden="true")


def ticks(low: float, high: float, *, wanted: int = 4) -> list[float]:
    """Return round numbers at equal distances, the first at most ``low``, the last at least ``high``; about ``wanted`` steps."""
    least = max(abs(low), abs(high), 1e-6) * 1e-6  # of the values themselves, below which they are one value
    span = max(high - low, least)
    size = 10 ** math.floor(math.log10(span / wanted))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if span / (size * factor) <= wanted)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [n * step for n in range(first, max(last, first + 1) + 1)]


def shortened(name: str) -> str:
    """Return a class's name as a chart has room for it."""
    return name if len(name) <= _LABEL_LETTERS else f"{name[: _LABEL_LETTERS - 1]}…"


def _margin(names: Sequence[str]) -> float:
    """Return the room that the longest of these labels takes; the letters of most scripts are narrower than 6.4."""
    return 12.0 + 6.4 * max((len(shortened(name)) for name in names), default=0)


def _grid(left: float, top: float, width: float, height: float, marks: Sequence[float], words: Callable[[float], str]) -> Html:
    """Return horizontal lines at the marks, with their words on the left."""
    low, high = marks[0], marks[-1]
    parts = []
    for mark in marks:
        y = top + height * (1 - (mark - low) / (high - low))
        parts.append(tag("line", x1=left, y1=y, x2=left + width, y2=y, class_="grid"))
        parts.append(_text(left - 5, y + 3.5, words(mark), "end"))
    return together(*parts)


def _text(x: float, y: float, words: str, anchor: str) -> Html:
    return tag("text", words, x=x, y=y, text_anchor=anchor, class_="tick")


def _svg(width: float, height: float, title: str, parts: Sequence[Html]) -> Html:
    return tag("svg", *parts, viewBox=f"0 0 {width:g} {height:g}", role="img", aria_label=title, class_="chart")
