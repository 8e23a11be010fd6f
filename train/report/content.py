"""What a report's page shows, gathered and ready: the page adds only words and forms."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lugpi_core.corpora.corpus import Corpus
from train.evidence.table_report import TableReport
from train.report.cases import Case, Role, Voice


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One model's training: a value an epoch. ``role`` is that of a voice, None for a model in the background."""

    name: str
    role: Role | None
    losses: tuple[float, ...]
    accuracies: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class ShownAnswer:
    """What one voice says of one example: a class, and the probability that it gives it."""

    role: Role
    answer: int
    confidence: float
    is_right: bool


@dataclass(frozen=True, kw_only=True)
class ShownExample:
    """One test example.

    Attributes:
        row: of the corpus.
        id: in the corpus.
        label: its class.
        text: its beginning.
        text_letters: how many it has in all.
        prompt: the beginning of what was drawn, or None where that is the text.
        picture: WebP bytes, or None.
        flags: what went wrong with its drawing.
        cases: keys of those that it is one of.
        answers: of the voices.
    """

    row: int
    id: str
    label: int
    text: str
    text_letters: int
    prompt: str | None
    picture: bytes | None
    flags: tuple[str, ...]
    cases: tuple[str, ...]
    answers: tuple[ShownAnswer, ...]


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that the page shows.

    Attributes:
        corpus: with its names.
        tables: as in ``tables.json``, of every seed of the run.
        voices: baseline, teacher and student, as far as they are there.
        curves: of every model.
        cases: that voices make of the test examples.
        examples: those that are shown with their texts.
        notes: what a reader must know.
        metrics: the record of the model that the page is most about.
        seed: of the choice of examples.
        is_blurred: whether pictures are blurred until they are asked for.
    """

    corpus: Corpus
    tables: TableReport
    voices: tuple[Voice, ...]
    curves: tuple[Curve, ...]
    cases: tuple[Case, ...]
    examples: tuple[ShownExample, ...]
    notes: tuple[str, ...]
    metrics: Mapping[str, Any]
    seed: int
    is_blurred: bool

    def voice(self, role: Role) -> Voice | None:
        """Return the voice of that role, or None."""
        return next((one for one in self.voices if one.role == role), None)
