"""What a row's two comparisons, with the baseline and with its text-only control, say about its images."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from train.evidence.records import Finding, Verdict
from train.evidence.rows import BASELINE, Row, is_of_vectors
from train.learning.task_rules import METRIC_NAMES

LEGEND = (
    "A gain over the baseline alone is not evidence that images help: a teacher's larger head, or distillation alone, may explain it. "
    "A gain over the text-only control, which is the same model without images, is evidence, unless rows with shuffled or blank images, "
    "which are unrelated to the text, or with the generator's own text vectors gain as well."
)
_UNRELATED = ("shuffled", "blank")


@dataclass(frozen=True, kw_only=True)
class UnrelatedImages:
    """The rows of one kind, teachers or students, that see no image of their text: one unrelated to it, or the generator's text vectors.

    Attributes:
        gaining: names of those that are better than their text-only control: what helps them may be what helps other rows.
        not_compared: which of ``shuffled`` and ``blank`` no compared row has.
        vectors_gain: the row of the generator's text vectors, if it is better than its text-only control; or None.
        lacks_vectors: whether there is such a row, but it was not compared.
    """

    gaining: tuple[str, ...] = ()
    not_compared: tuple[str, ...] = ()
    vectors_gain: str | None = None
    lacks_vectors: bool = False


def unrelated_images(like: Row, rows: Iterable[Row], findings: Iterable[Finding], *, has_vectors: bool = False) -> UnrelatedImages:
    """Return what is known of the rows of a row's kind with shuffled and blank images, and of that with text vectors if there is one."""
    outcomes = {one.row: one.outcome for one in findings if one.reference != BASELINE and not is_of_vectors(one.reference)}
    of_kind = [row for row in rows if _kind(row) == _kind(like)]
    compared = {row.privileged: row.name for row in of_kind if row.name in outcomes}
    return UnrelatedImages(
        gaining=tuple(compared[kind] for kind in _UNRELATED if kind in compared and outcomes[compared[kind]] == "better"),
        not_compared=tuple(kind for kind in _UNRELATED if kind not in compared),
        vectors_gain=compared["text"] if "text" in compared and outcomes[compared["text"]] == "better" else None,
        lacks_vectors=has_vectors and "text" not in compared,
    )


def verdicts(
    rows: Sequence[Row], findings: Sequence[Finding], every_row: Sequence[Row], *, has_vectors: bool = False
) -> tuple[Verdict, ...]:
    """Return a verdict for every row of a table that was compared.

    Args:
        rows: of the table.
        findings: of all tables, their p adjusted together.
        every_row: of all tables.
        has_vectors: whether there are rows of the generator's text vectors, in these tables or not.
    """
    by_pair = {(finding.row, finding.reference): finding for finding in findings}
    return tuple(
        verdict(row, baseline, control, unrelated_images(row, every_row, findings, has_vectors=has_vectors), vectors)
        for row in rows
        for baseline, control, vectors in [[by_pair.get((row.name, str(name))) for name in (BASELINE, row.control, row.vectors)]]
        if baseline is not None or control is not None
    )


def verdict(
    row: Row,
    baseline: Finding | None,
    control: Finding | None,
    unrelated: UnrelatedImages = UnrelatedImages(),
    vectors: Finding | None = None,
) -> Verdict:
    """Return the verdict on one row.

    Args:
        row: of a model that is not the baseline.
        baseline: its comparison with the baseline; None where that is not finished.
        control: its comparison with its text-only control; None where it has none, or where that is not finished. Not both are None.
        unrelated: rows of its kind with shuffled and blank images, or with the generator's text vectors.
        vectors: its comparison with the row of these; None where there is none.
    """
    gains = baseline is not None and baseline.outcome == "better"
    parts = [_without_control(row, gains) if control is None else _with_control(row, gains, control, unrelated, vectors)]
    if baseline is None:
        parts.append("How it compares with plain fine-tuning is unknown: the baseline is not trained (--rows baseline).")
    findings = tuple(finding for finding in (baseline, control, vectors) if finding is not None)
    return Verdict(row=row.name, findings=findings, conclusion=" ".join(part for part in parts if part))


def _without_control(row: Row, gains: bool) -> str:
    """Return what a row's gain over the baseline says about its images; empty where there is no gain, or no text to compare with."""
    if row.command == "images" or not gains:
        return ""
    if row.privileged == "none":
        return f"It sees no images: the gain comes from {_other_cause(row)} alone."
    lack = f"no text-only control differs from this row in its {_seen(row)} alone"
    if row.control is not None:
        lack = f"its text-only control is not trained (--rows {'unlabelled' if row.more else _table_of_controls(row)})"
    return f"Whether the {_seen(row)} or {_other_cause(row)} alone cause the gain is unknown: {lack}."


def _with_control(row: Row, gains: bool, control: Finding, unrelated: UnrelatedImages, vectors: Finding | None) -> str:
    """Return what the findings say about the row's images; empty where the findings say it all."""
    if control.outcome == "not shown":
        return f"Not evidence that {_seen(row)} help: {_other_cause(row)} alone may explain the gain." if gains else ""
    if control.outcome == "worse":
        what = "Images that are unrelated to the text" if row.privileged in _UNRELATED else f"The {_seen(row)}"
        return f"{what} reduce {METRIC_NAMES[control.comparison.metric]}."
    if row.privileged in _UNRELATED:
        return "The gain does not come from image content: these images are unrelated to the text."
    if row.privileged == "text":
        return "The gain comes from the generator's text encoder: this row sees no image."
    return _of_gain(row, control, unrelated, vectors)


def _of_gain(row: Row, control: Finding, unrelated: UnrelatedImages, vectors: Finding | None) -> str:
    """Return what follows from a gain over the text-only control of a row with its own images."""
    evidence = "Evidence from one seed that images help" if len(control.comparison.seeds) == 1 else "Evidence that images help"
    is_above = vectors is not None and vectors.outcome == "better"
    others = [f"{kind} images" for kind in (" and ".join(unrelated.not_compared),) if kind]
    others += ["the generator's text vectors"] if unrelated.lacks_vectors else []
    if unrelated.gaining:
        rows = " and ".join(unrelated.gaining)
        return f"Not evidence that image content helps: {rows} gained too, with images unrelated to the text."
    if unrelated.vectors_gain is not None and not is_above:
        return f"Not evidence that images help: {unrelated.vectors_gain} gained too, from the generator's text encoder, without any image."
    if vectors is not None:
        evidence += f", {'and' if is_above else 'but not significantly'} more than the generator's text vectors do"
    if others:
        where = f"--rows {_table_of_controls(row)}"
        return f"{evidence}, unless {' or '.join(others)}, which are not compared here, help as much ({where})."
    return f"{evidence}."


def _kind(row: Row) -> tuple[object, ...]:
    return row.command, row.folds, row.members, row.more


def _table_of_controls(row: Row) -> str:
    if row.more:
        return "unlabelled"
    return "folds" if row.folds is not None else "ensemble" if row.members > 1 else "controls"


def _seen(row: Row) -> str:
    return "text vectors" if row.privileged == "text" else "images"


def _other_cause(row: Row) -> str:
    """Return what differs from the baseline besides images."""
    return "the larger head" if row.command == "teacher" else f"distillation{' on more texts' * row.more}"
