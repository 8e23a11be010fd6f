"""What a row's two comparisons, with the baseline and with its text-only control, say about its images."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from train.evidence.records import Finding, Verdict
from train.evidence.rows import BASELINE, Row
from train.learning.task_rules import METRIC_NAMES

LEGEND = (
    "A gain over the baseline alone is not evidence that images help: a teacher's larger head, or distillation alone, may explain it. "
    "A gain over the text-only control, which is the same model without images, is evidence, unless rows with shuffled or blank images, "
    "which are unrelated to the text, gain as well."
)
_UNRELATED = ("shuffled", "blank")


@dataclass(frozen=True, kw_only=True)
class UnrelatedImages:
    """The rows of one kind, teachers or students, whose images are unrelated to the text.

    Attributes:
        gaining: names of those that are better than their text-only control: what helps them may be what helps other rows.
        not_compared: which of ``shuffled`` and ``blank`` no compared row has.
    """

    gaining: tuple[str, ...] = ()
    not_compared: tuple[str, ...] = ()


def unrelated_images(command: str, rows: Iterable[Row], findings: Iterable[Finding]) -> UnrelatedImages:
    """Return what is known of the rows of a command with shuffled and blank images."""
    outcomes = {finding.row: finding.outcome for finding in findings if finding.reference != BASELINE}
    compared = {row.privileged: row.name for row in rows if row.command == command and row.name in outcomes}
    return UnrelatedImages(
        gaining=tuple(compared[kind] for kind in _UNRELATED if kind in compared and outcomes[compared[kind]] == "better"),
        not_compared=tuple(kind for kind in _UNRELATED if kind not in compared),
    )


def verdicts(rows: Sequence[Row], findings: Sequence[Finding], every_row: Sequence[Row]) -> tuple[Verdict, ...]:
    """Return a verdict for every row of a table that was compared.

    Args:
        rows: of the table.
        findings: of all tables, their p adjusted together.
        every_row: of all tables.
    """
    by_pair = {(finding.row, finding.reference): finding for finding in findings}
    pairs = [(row, by_pair.get((row.name, BASELINE)), by_pair.get((row.name, str(row.control)))) for row in rows]
    return tuple(
        verdict(row, baseline, control, unrelated_images(row.command, every_row, findings))
        for row, baseline, control in pairs
        if baseline is not None or control is not None
    )


def verdict(row: Row, baseline: Finding | None, control: Finding | None, unrelated: UnrelatedImages = UnrelatedImages()) -> Verdict:
    """Return the verdict on one row.

    Args:
        row: of a model that is not the baseline.
        baseline: its comparison with the baseline; None where that is not finished.
        control: its comparison with its text-only control; None where it has none, or where that is not finished. Not both are None.
        unrelated: rows of its kind with shuffled and blank images.
    """
    gains = baseline is not None and baseline.outcome == "better"
    parts = [_without_control(row, gains) if control is None else _with_control(row, gains, control, unrelated)]
    if baseline is None:
        parts.append("How it compares with plain fine-tuning is unknown: the baseline is not trained (--rows baseline).")
    findings = tuple(finding for finding in (baseline, control) if finding is not None)
    return Verdict(row=row.name, findings=findings, conclusion=" ".join(part for part in parts if part))


def _without_control(row: Row, gains: bool) -> str:
    """Return what a row's gain over the baseline says about its images; empty where there is no gain, or no text to compare with."""
    if row.command == "images" or not gains:
        return ""
    if row.privileged == "none":
        return f"It sees no images: the gain comes from {_other_cause(row)} alone."
    lack = "no text-only control differs from this row in its images alone"
    if row.control is not None:
        lack = f"its text-only control is not trained (--rows {'unlabelled' if row.more else 'controls'})"
    return f"Whether the images or {_other_cause(row)} alone cause the gain is unknown: {lack}."


def _with_control(row: Row, gains: bool, control: Finding, unrelated: UnrelatedImages) -> str:
    """Return what both findings say about the row's images; empty where the findings say it all."""
    has_own_images = row.privileged == "images"
    if control.outcome == "not shown":
        return f"Not evidence that images help: {_other_cause(row)} alone may explain the gain." if gains else ""
    if control.outcome == "worse":
        metric = METRIC_NAMES[control.comparison.metric]
        return f"The images reduce {metric}." if has_own_images else f"Images that are unrelated to the text reduce {metric}."
    if not has_own_images:
        return "The gain does not come from image content: these images are unrelated to the text."
    evidence = "Evidence from one seed that images help" if len(control.comparison.seeds) == 1 else "Evidence that images help"
    if unrelated.gaining:
        rows = " and ".join(unrelated.gaining)
        return f"Not evidence that image content helps: {rows} gained too, with images unrelated to the text."
    if unrelated.not_compared:
        kinds = " and ".join(unrelated.not_compared)
        return f"{evidence}, unless {kinds} images, which are not compared here, help as much (--rows controls)."
    return f"{evidence}."


def _other_cause(row: Row) -> str:
    """Return what differs from the baseline besides images."""
    return "the larger head" if row.command == "teacher" else f"distillation{' on more texts' * row.more}"
