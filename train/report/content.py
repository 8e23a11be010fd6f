"""What the page of a report shows, gathered: the page adds only words and layout."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lugpi_core.corpora.corpus import Corpus
from train.evidence.few_shots import ShotsFigure
from train.evidence.table_report import TableReport
from train.learning.task_rules import Metric
from train.report.cases import Case, Role, ShownModel
from train.report.sources import Source


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What a report shows of a run besides its tables.

    Attributes:
        student: folder of the student whose answers are shown; None for the first of the tables.
        examples: how many test examples are shown with their texts.
        seed: of the choice among them.
    """

    student: str | None = None
    examples: int = 200
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One model's training: a value per epoch. ``role`` is that of a shown model, None for a model in the background.

    Attributes:
        losses: mean training losses.
        scores: of the validation examples, in the metric that decided which epoch was the best; None where it was undefined.
    """

    name: str
    role: Role | None
    losses: tuple[float, ...]
    scores: Mapping[Metric, tuple[float | None, ...]]


@dataclass(frozen=True, kw_only=True)
class ShownAnswer:
    """A shown model's answer to one example.

    Attributes:
        role: of the model.
        answer: the class, the classes with their probabilities, or the number, in words.
        confidence: the probability of a single class; else None.
        is_right: None of a number.
        note: the error of a number; else empty.
    """

    role: Role
    answer: str
    confidence: float | None
    is_right: bool | None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class ShownExample:
    """One test example.

    Attributes:
        row: of the corpus.
        id: in the corpus.
        classes: its class or classes; empty of a regression.
        label: its class, classes or number, in words.
        text: its beginning; of a pair, both texts.
        text_letters: length of the whole text.
        prompt: the beginning of the prompt, or None where that is the text.
        image: WebP bytes, or None.
        flags: what went wrong with its image.
        cases: keys of the cases it belongs to.
        answers: of the shown models.
    """

    row: int
    id: str
    classes: tuple[int, ...]
    label: str
    text: str
    text_letters: int
    prompt: str | None
    image: bytes | None
    flags: tuple[str, ...]
    cases: tuple[str, ...]
    answers: tuple[ShownAnswer, ...]


@dataclass(frozen=True, kw_only=True)
class ShownAudit:
    """The table that ``train audit`` wrote.

    Attributes:
        header: of the columns.
        rows: a line for each attack on each model.
        legend: what the figures mean.
        shadows: of each model.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    legend: str
    shadows: int


@dataclass(frozen=True, kw_only=True)
class ShownProbe:
    """The linear probe on one column of one store.

    Attributes:
        label: of the store.
        accuracy: of the probe.
        interval: 95 %, of the accuracy.
        best_guess: the accuracy of the best guess without images.
    """

    label: str
    accuracy: float
    interval: tuple[float, float]
    best_guess: float


@dataclass(frozen=True, kw_only=True)
class ShownAgreement:
    """How much nearer the texts of a store are to their own images.

    Attributes:
        label: of the store.
        texts: how many were compared.
        own_is_nearer: share of the other images that are farther than the own; .5 by chance.
        standard_error: over texts.
    """

    label: str
    texts: int
    own_is_nearer: float
    standard_error: float


@dataclass(frozen=True, kw_only=True)
class ComparedColumn:
    """One column of the compared stores, as far as its questions could be answered."""

    name: str
    probes: tuple[ShownProbe, ...]
    agreements: tuple[ShownAgreement, ...]


@dataclass(frozen=True, kw_only=True)
class StoreWork:
    """What an image of a store costs, in 10^12 floating-point operations."""

    label: str
    denoise_tflop: float
    prompt_tflop: float
    decode_tflop: float

    @property
    def tflop(self) -> float:
        """Of the whole image."""
        return self.denoise_tflop + self.prompt_tflop + self.decode_tflop


@dataclass(frozen=True, kw_only=True)
class ShownStores:
    """What ``featurize inspect --stores`` wrote of stores of this corpus.

    Attributes:
        header: of the table: nothing, and the labels of the stores.
        rows: a line for each question.
        columns: of tokens.
        works: of the stores whose work is known.
        sentences: paired tests of the probes, answers to the seed, and notes.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    columns: tuple[ComparedColumn, ...]
    works: tuple[StoreWork, ...]
    sentences: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ShownClasses:
    """The pictures of classes that ``python -m lugpi see`` wrote: table, what its figures mean, and the sheet as PNG bytes."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    legend: str
    sheet: bytes


@dataclass(frozen=True, kw_only=True)
class ReportContent:
    """Everything that the page shows.

    Attributes:
        corpus: with the names of its classes.
        tables: over every seed of the run.
        sources: of the scores of rows with images.
        models: baseline, teacher and student, as far as they are finished.
        curves: of every model.
        cases: of the test examples, by the answers of the shown models.
        examples: those that are shown with their texts.
        notes: what a reader must know.
        metrics: the record of the last of the shown models, or of any.
        seed: of the choice of examples.
        is_blurred: whether images are blurred until the reader asks for them.
        audit: of these models, or None.
        shots: accuracy over the number of train texts of each class, by row and number; empty where ``tables --shots`` did not run.
        stores: compared stores, or None.
        seen: pictures of classes, or None.
    """

    corpus: Corpus
    tables: TableReport
    sources: tuple[Source, ...]
    models: tuple[ShownModel, ...]
    curves: tuple[Curve, ...]
    cases: tuple[Case, ...]
    examples: tuple[ShownExample, ...]
    notes: tuple[str, ...]
    metrics: Mapping[str, Any]
    seed: int
    is_blurred: bool
    audit: ShownAudit | None = None
    shots: tuple[ShotsFigure, ...] = ()
    stores: ShownStores | None = None
    seen: ShownClasses | None = None

    def model(self, role: Role) -> ShownModel | None:
        """Return the shown model of that role, or None."""
        return next((model for model in self.models if model.role == role), None)
