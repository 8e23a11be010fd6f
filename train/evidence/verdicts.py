"""What a table's tests allow to say, in words: one sentence a row, and no more than was shown."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from train.evidence.row_figures import SIGNIFICANCE, Adjusted
from train.evidence.rows import BASELINE, Row

# What a row does beside looking at images, which may be what helps.
_OTHERWISE = {"teacher": "the larger head", "student": "distillation"}
_NO_MEANING = ("shuffled", "blank")
_NOT = "not shown"
_BETTER, _WORSE = "better", "worse"
_NO_GAIN = "no gain is shown"

# By the findings against the baseline and against the text-only control; {otherwise} is what the row does beside images.
_CONCLUSIONS: Mapping[tuple[str, str], str] = {
    (_BETTER, _BETTER): "the images help",
    (_BETTER, _NOT): "{otherwise} alone may explain the gain; that the images add to it is not shown",
    (_BETTER, _WORSE): "{otherwise} alone gains more, and the images cost some of it",
    (_NOT, _BETTER): "the images help, but are not shown to help beyond plain fine-tuning",
    (_NOT, _NOT): _NO_GAIN,
    (_NOT, _WORSE): "the images do harm",
    (_WORSE, _BETTER): "the images help, but less than {otherwise} costs",
    (_WORSE, _NOT): "{otherwise} or the images cost accuracy; that the images help is not shown",
    (_WORSE, _WORSE): "the images do harm",
}
# Of rows whose images say nothing of the text, where they are not like the text-only control.
_WITHOUT_MEANING = {
    _BETTER: "what helps here is not what the images show, for they say nothing of the text",
    _WORSE: "images that say nothing of the text do harm",
}
_TEXT_ONLY = {
    _BETTER: "{otherwise} alone helps, without any image",
    _NOT: "{otherwise} alone is not shown to help",
    _WORSE: "{otherwise} alone does harm",
}
_IMAGES_ONLY = {
    _BETTER: "the images alone serve better than fine-tuning on the text does here",
    _NOT: "the images alone are not shown to say less than the text",
    _WORSE: "the images alone do not replace the text",
}
# Where the baseline is not there.
_BESIDE_CONTROL = {
    _BETTER: "the images help; whether the whole beats plain fine-tuning is not known without the baseline (--rows baseline)",
    _NOT: "that the images help is not shown",
    _WORSE: "the images do harm",
}
_NO_CONTROL = "whether the images help or {otherwise} alone does is not known without the text-only control (--rows {group})"
_NEVER_A_CONTROL = "whether the images help or {otherwise} alone does is not known: no row is the same but for its images"
_UNCHECKED = "; whether {unknown} images, which say nothing of the text, help as much is not known (--rows controls)"
_GAINS_WITHOUT_MEANING = "that the images help is not shown, for {rivals} gains too, whose images say nothing of the text"


@dataclass(frozen=True, kw_only=True)
class Meaningless:
    """What is known of the rows of one kind, teachers or students, whose images say nothing of the text.

    Attributes:
        gaining: those that beat their text-only control: what helps them may be what helps others.
        unknown: which images, ``shuffled`` and ``blank``, no compared row has.
    """

    gaining: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


def meaningless(command: str, rows: Iterable[Row], tests: Iterable[Adjusted]) -> Meaningless:
    """Return what the rows of a command with shuffled and blank images came to against their text-only control."""
    findings = {one.row: one.finding for one in tests if one.reference != BASELINE}
    compared = {row.privileged: row.name for row in rows if row.command == command and row.name in findings}
    return Meaningless(
        gaining=tuple(compared[kind] for kind in _NO_MEANING if kind in compared and findings[compared[kind]] == _BETTER),
        unknown=tuple(kind for kind in _NO_MEANING if kind not in compared),
    )


def verdicts(rows: Sequence[Row], tests: Sequence[Adjusted], every_row: Sequence[Row]) -> list[str]:
    """Return a sentence for every row of a table that was compared.

    Args:
        rows: of the table.
        tests: the comparisons of all tables, their p adjusted together.
        every_row: of all tables.
    """
    against = {(one.row, one.reference): one for one in tests}
    said = []
    for row in rows:
        baseline, control = against.get((row.name, BASELINE)), against.get((row.name, str(row.control)))
        if baseline is not None or control is not None:
            said.append(verdict(row, baseline, control, meaningless(row.command, every_row, tests)))
    return said


def verdict(row: Row, baseline: Adjusted | None, control: Adjusted | None, beside: Meaningless = Meaningless()) -> str:
    """Return the sentence of one row.

    Args:
        row: of a model that is not the baseline.
        baseline: its comparison with the baseline; None where that is not there.
        control: its comparison with its text-only control; None where it has none, or where that is not there. One of both is.
        beside: rows of its kind with images without meaning.
    """
    otherwise = "distillation of more texts" if row.more else _OTHERWISE.get(row.command, "")
    there = [(one, words) for one, words in ((baseline, "the baseline"), (control, _control_words(row))) if one is not None]
    joint = " and " if len({one.finding == _BETTER for one, _ in there}) == 1 else " but "
    told = f"{row.name} is " + f",{joint}".join(_words(one, words) for one, words in there)
    findings = None if baseline is None else baseline.finding, None if control is None else control.finding
    conclusion = _conclusion(row, *findings)
    if row.privileged == "images" and findings[1] == _BETTER:
        conclusion = _GAINS_WITHOUT_MEANING if beside.gaining else conclusion + (_UNCHECKED if beside.unknown else "")
    group = "unlabelled" if row.more else "controls"
    one_seed = "" if all(len(one.comparison.seeds) > 1 for one, _ in there) else " (of one seed: another may say otherwise)"
    names = {"rivals": " and ".join(beside.gaining), "unknown": " and ".join(beside.unknown)}
    return f"{told}: {conclusion.format(otherwise=otherwise, group=group, **names)}{one_seed}."


def _conclusion(row: Row, baseline: str | None, control: str | None) -> str:
    if baseline is None:
        return _WITHOUT_MEANING.get(str(control), _NO_GAIN) if row.privileged != "images" else _BESIDE_CONTROL[str(control)]
    if row.command == "images":
        return _IMAGES_ONLY[baseline]
    if row.privileged == "none":
        return _TEXT_ONLY[baseline]
    if control is None:
        unknown = _NEVER_A_CONTROL if row.control is None else _NO_CONTROL
        return unknown if baseline == _BETTER else _NO_GAIN
    if row.privileged != "images" and control in _WITHOUT_MEANING:
        return _WITHOUT_MEANING[control]
    return _CONCLUSIONS[baseline, control]


def _control_words(row: Row) -> str:
    told_more = " of the same texts" if row.more else ""
    return "the text-only teacher" if row.command == "teacher" else f"the student of a text-only teacher{told_more}"


def _words(test: Adjusted, reference: str) -> str:
    found = "not shown to be better than" if test.finding == _NOT else f"{test.finding} than"
    low, high = test.comparison.shown
    p = p_words(test.holm_p)
    but = "but " if test.finding == _NOT and test.holm_p < SIGNIFICANCE else ""  # it is the interval that does not show it
    return f"{found} {reference} (p {p if p.startswith('<') else f'= {p}'}, {but}95 % interval {points(low)} to {points(high)} points)"


def p_words(p: float) -> str:
    """Return a p with two digits; one that is too small for a float as ``< 1e-300``."""
    if p < 1e-300:
        return "< 1e-300"
    return f"{p:.2g}" if p >= 1e-4 else f"{p:.0e}"


def points(share: float) -> str:
    """Return a difference of accuracies in percentage points, with its sign."""
    return f"{100 * share:+.2f}"
