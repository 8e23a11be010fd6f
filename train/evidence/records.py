"""The parts of a report of tables as plain data, with their JSON in ``tables.json``."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal

from train.evidence.rows import BASELINE, Group, is_of_vectors
from train.evidence.statistics import Comparison
from train.learning.task_rules import Metric

SIGNIFICANCE = 0.05  # a finding needs an adjusted p below this

# Metrics whose values are no shares.
PLAIN_NUMBERS = frozenset({"spearman", "pearson", "mse"})

# In place of a metric that has no value, such as the correlation of answers that are all equal.
UNDEFINED = "undefined"

Outcome = Literal["better", "worse", "not shown"]
Fidelity = Mapping[str, float | None]  # by the names in fidelity.FIDELITY; None where a model has nothing to be compared with


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Mean and sample standard deviation over seeds; a single value has no standard deviation."""

    mean: float
    sd: float | None


class Scores(dict[Metric, float | None]):
    """One model's scores on one split: every metric of the task, the primary one first; None where a metric is undefined."""

    @property
    def accuracy(self) -> float | None:
        """Of a single-label task."""
        return self["accuracy"]

    @property
    def macro_f1(self) -> float | None:
        """Of a single-label or multi-label task."""
        return self["macro_f1"]


class ScoreSpreads(dict[Metric, Spread | None]):
    """A row's scores on one split, over its seeds: every metric of the task, the primary one first; None where no seed has a score."""

    @property
    def accuracy(self) -> Spread | None:
        """Of a single-label task."""
        return self["accuracy"]

    @property
    def macro_f1(self) -> Spread | None:
        """Of a single-label or multi-label task."""
        return self["macro_f1"]


@dataclass(frozen=True, kw_only=True)
class ModelResult:
    """One finished model.

    Attributes:
        seed: it was trained with.
        folder: name of its folder in the run.
        validation: scores on the validation split.
        test: scores on the test split.
        fidelity: fidelity and calibration on the test split.
        train_s: seconds that its epochs took, including those of interrupted trainings.
        peak_bytes: most memory in use: of the GPU where there was one, else of the host.
    """

    seed: int
    folder: str
    validation: Scores
    test: Scores
    fidelity: Fidelity
    train_s: float
    peak_bytes: int


@dataclass(frozen=True, kw_only=True)
class RowResult:
    """One row of the tables over its seeds. What is computed over seeds is None where no model is finished.

    Attributes:
        row: its name.
        seeds: of the finished models.
        missing_seeds: requested seeds without a finished model.
        validation: scores on the validation split.
        test: scores on the test split.
        fidelity: fidelity and calibration on the test split, by the names in ``fidelity.FIDELITY``; None for a figure that no model has.
        paper: test accuracy that the paper reports for this row, or None.
        train_hours: mean training time of one model.
        peak_gb: most memory in use by any of the models, in GB (1e9 bytes).
        models: the finished models, by seed.
    """

    row: str
    seeds: tuple[int, ...]
    missing_seeds: tuple[int, ...]
    validation: ScoreSpreads | None
    test: ScoreSpreads | None
    fidelity: Mapping[str, Spread | None] | None
    paper: float | None
    train_hours: float | None
    peak_gb: float | None
    models: tuple[ModelResult, ...]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One row compared with the baseline or with its text-only control on the test split.

    Attributes:
        row: its name.
        reference: name of the row it is compared with.
        comparison: difference, intervals and tests.
        holm_p: p of the pooled test, adjusted for all comparisons of the report (Holm 1979).
    """

    row: str
    reference: str
    comparison: Comparison
    holm_p: float

    @property
    def outcome(self) -> Outcome:
        """Better or worse if the adjusted p is below 0.05 and no interval contains 0, neither over texts nor, with several seeds, over
        seeds and texts; else ``not shown``: no significant difference."""
        intervals = ((self.comparison.low, self.comparison.high), self.comparison.interval)
        if self.holm_p < SIGNIFICANCE and min(low for low, _ in intervals) > 0:
            return "better"
        return "worse" if self.holm_p < SIGNIFICANCE and max(high for _, high in intervals) < 0 else "not shown"

    @property
    def sentence(self) -> str:
        """The finding in words, without the row's name."""
        reference = "the baseline" if self.reference == BASELINE else f"its text-only control {self.reference}"
        if is_of_vectors(self.reference):
            reference = f"{self.reference}, which reads the generator's text vectors in place of images"
        metric = self.comparison.metric
        by = f"by {difference_text(abs(self.comparison.difference), metric).removeprefix('+')}{unit(metric)}"
        outcome = {
            "better": f"better than {reference} {by}",
            "worse": f"worse than {reference} {by}",
            "not shown": f"no significant difference from {reference}",
        }[self.outcome]
        p = p_text(self.holm_p)
        low, high = (difference_text(end, metric) for end in self.comparison.interval)
        one_seed = ", one seed" if len(self.comparison.seeds) == 1 else ""
        return f"{outcome} (p {p if p.startswith('<') else f'= {p}'}, 95 % CI {low} to {high}{unit(metric)}{one_seed})"

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON value."""
        names = {"row": self.row, "reference": self.reference}
        return {**names, **self.comparison.record(), "holm_p": self.holm_p, "finding": self.outcome}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a row's findings say about its images.

    Attributes:
        row: its name.
        findings: one to three: against the baseline, against the text-only control, against the generator's text vectors.
        conclusion: what follows from them in a sentence, or empty.
    """

    row: str
    findings: tuple[Finding, ...]
    conclusion: str

    def __str__(self) -> str:
        words = self.findings[0].sentence
        for before, finding in pairwise(self.findings):
            is_like_before = (before.outcome == "better") is (finding.outcome == "better")
            words += (", and " if is_like_before else ", but ") + finding.sentence
        return f"{self.row}: {words}. {self.conclusion}".rstrip()


@dataclass(frozen=True, kw_only=True)
class ResultTable:
    """One of the report's tables.

    Attributes:
        name: table1, table2, controls, folds or unlabelled.
        title: heading.
        rows: names of its rows, in order.
        findings: of its rows.
        verdicts: of its rows that were compared.
        caption: what a reader must know about the figures.
    """

    name: Group
    title: str
    rows: tuple[str, ...]
    findings: tuple[Finding, ...]
    verdicts: tuple[Verdict, ...]
    caption: str

    def finding(self, row: str, *, control: bool) -> Finding | None:
        """Return the comparison of a row with its text-only control, or with the baseline; None where there is none."""
        found = [one for one in self.findings if one.row == row and not is_of_vectors(one.reference)]
        return next((one for one in found if (one.reference != BASELINE) is control), None)

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON value."""
        return {
            "name": self.name,
            "title": self.title,
            "rows": list(self.rows),
            "comparisons": [finding.to_json() for finding in self.findings],
            "verdicts": [str(verdict) for verdict in self.verdicts],
            "caption": self.caption,
        }


@dataclass(frozen=True, kw_only=True)
class Sharpness:
    """How right and how sure answers are.

    Attributes:
        score: in the primary metric; None where it is undefined.
        confidence: mean probability of the answers; None of a regression.
    """

    score: float | None
    confidence: float | None


@dataclass(frozen=True, kw_only=True)
class ClassGain:
    """What a teacher gains on the test texts of one class over its control, and its student over its own.

    Attributes:
        name: of the class.
        texts: how many there are.
        teacher: difference of the shares of right answers; of several labels, of right answers to whether a text has the class.
        student: the same of the student.
    """

    name: str
    texts: int
    teacher: float
    student: float


@dataclass(frozen=True, kw_only=True)
class WhyRow:
    """What the students of one row read of their teachers, and what of the teachers' gain over their control they keep; means over seeds.

    Attributes:
        row: of the students.
        train: what the teachers say of train texts: with folds, of texts that the teacher in question has not seen.
        test: what they say of test texts.
        teacher_gain: in the primary metric, teachers less those of the control; None where there is no control.
        student_gain: students less those of the control.
        carried: ``student_gain / teacher_gain``; None where the teachers' gain is not distinguishable from 0.
        interval: of ``carried``, 95 %; None where that is None or not known.
        classes: gains by class, the teachers' largest first; empty of a regression.
    """

    row: str
    train: Sharpness | None
    test: Sharpness
    teacher_gain: float | None = None
    student_gain: float | None = None
    carried: float | None = None
    interval: tuple[float, float] | None = None
    classes: tuple[ClassGain, ...] = ()


@dataclass(frozen=True, kw_only=True)
class WhyTable:
    """The table of what students read of their teachers and keep of their gains; no rows where there are no students."""

    title: str
    caption: str
    rows: tuple[WhyRow, ...] = ()


@dataclass(frozen=True, kw_only=True)
class AttentionFigures:
    """How much the top image tokens of teachers overlap, by their attention.

    Attributes:
        iou: intersection over union of the top tokens, mean over texts and pairs of teachers.
        chance: of tokens that are drawn at random.
        on_images: the share of the attention that image tokens get, mean over texts and teachers; text tokens get the rest.
        top: n.
        tokens: T, without the image's class token.
        texts: R.
    """

    iou: float
    chance: float
    on_images: float
    top: int
    tokens: int
    texts: int


@dataclass(frozen=True, kw_only=True)
class DiversityRow:
    """Teachers of one kind that differ in their seeds alone.

    Attributes:
        row: of the teachers; of an ensemble its name.
        teachers: how many there are together, at least two.
        groups: of so many teachers each; figures are means over them.
        folders: names of the teachers of the first group, whose attention is compared.
        score: in the primary metric on the test split, mean of the single teachers.
        together: that of their mean probabilities, or numbers; None where it is undefined.
        agreement: how far the answers of two of them agree, mean over pairs; None where it is undefined.
        with_all: how far those of one agree with those of all together, mean; None where it is undefined.
        attention: how their attention to image tokens overlaps; None if it was not computed.
    """

    row: str
    teachers: int
    groups: int
    folders: tuple[str, ...]
    score: float | None
    together: float | None
    agreement: float | None
    with_all: float | None
    attention: AttentionFigures | None = None


@dataclass(frozen=True, kw_only=True)
class DiversityTable:
    """The table of teachers of one kind; no rows where no kind has two."""

    title: str
    caption: str
    rows: tuple[DiversityRow, ...] = ()


@dataclass(frozen=True, kw_only=True)
class FidelityTable:
    """The table of fidelity and calibration: its heading, its caption and the names of its rows, which all have models."""

    title: str
    caption: str
    rows: tuple[str, ...]


def json_of(record: Any) -> dict[str, Any]:
    """Return a record whose fields have the names and values of its JSON: tuples become lists."""
    return {name: _listed(value) for name, value in asdict(record).items()}


def _listed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _listed(part) for name, part in value.items()}
    return [_listed(part) for part in value] if isinstance(value, Sequence) and not isinstance(value, str) else value


def p_text(p: float) -> str:
    """Return a p with two significant digits; one that is too small for a float as ``< 1e-300``."""
    if p < 1e-300:
        return "< 1e-300"
    return f"{p:.2g}" if p >= 1e-4 else f"{p:.0e}"


def difference_text(difference: float, metric: Metric) -> str:
    """Return a difference with its sign: of accuracies and F1 in percentage points, of correlations as it is."""
    return f"{difference:+.4f}" if metric in PLAIN_NUMBERS else f"{100 * difference:+.2f}"


def unit(metric: Metric) -> str:
    """Return what follows the number of a difference."""
    return "" if metric in PLAIN_NUMBERS else " points"
