"""What an inspection found: typed answers, as JSON and as a summary in plain English."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from featurize.inspect.class_similarity import ClassSimilarity
from featurize.inspect.diversity import Diversity
from featurize.inspect.near_copies import NearCopies
from featurize.inspect.probes import ClassProbes
from featurize.inspect.records import LeftOut, Record
from featurize.inspect.sample import InspectedExamples, PromptsCut
from featurize.inspect.text_agreement import Agreement
from featurize.inspect.transport import ClassTransport
from featurize.inspect.verdict import UNKNOWN, ColumnVerdict, Verdict, best_column, column_verdict
from lugpi_core.store.prompt_figures import PromptFigures

# With fewer validation examples, a small effect would be missed.
_FEW = 200


@dataclass(frozen=True, kw_only=True)
class ColumnInspection(Record):
    """The answers about one column of tokens.

    Attributes:
        drawings: images in the column.
        flagged: images that failed, whose tokens are zeros.
        bytes_per_image: what a row takes on the disk.
        features: width of the pooled tokens.
        classes: do the tokens predict the class?
        near_copies: are images nearly the same although their prompts differ?
        agreement: do the images agree with their texts?
        transport: how far are the tokens of two classes apart, beside halves of one?
        diversity: how different are the images of one text? None if there is one of each.
    """

    drawings: int
    flagged: int
    bytes_per_image: int
    features: int
    classes: ClassProbes | LeftOut
    near_copies: NearCopies | LeftOut
    agreement: Agreement | LeftOut
    transport: ClassTransport | LeftOut
    diversity: Diversity | LeftOut | None = None

    @property
    def flagged_share(self) -> float:
        """Images that failed, of all."""
        return self.flagged / self.drawings

    @cached_property
    def verdict(self) -> ColumnVerdict | None:
        """Whether the tokens predict the class; None if that could not be asked."""
        return None if isinstance(self.classes, LeftOut) else column_verdict(self.classes)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values, with the share of failed images and the verdict; ``diversity`` only where it was asked for."""
        verdict = {} if self.verdict is None else {"verdict": self.verdict.to_json()}
        answers = super().to_json()
        if self.diversity is None:
            del answers["diversity"]
        return {**answers, "flagged_share": self.flagged_share, **verdict}

    def reasons(self, name: str, *, is_best: bool) -> list[str]:
        """Return the sentences about the column that bear on the verdict, apart from the best column's own verdict."""
        sentences = [] if self.verdict is None or is_best else [self.verdict.words]
        if not isinstance(self.classes, LeftOut):
            sentences += _about_examples(self.classes)
        if not isinstance(self.agreement, LeftOut):
            sentences.append(self.agreement.sentence())
        if not isinstance(self.near_copies, LeftOut) and self.near_copies.share > 0:
            sentences.append(self.near_copies.sentence())
        if isinstance(self.diversity, Diversity) and self.diversity.is_little:
            sentences.append(self.diversity.sentence())
        if self.flagged:
            sentences.append(f"{self.flagged:,} images failed; python -m featurize verify --repair generates them again")
        return [f"{name}: {sentence}" for sentence in sentences]

    def summary_lines(self, name: str, *, no_classes: str | None) -> list[str]:
        """Return a headline and a line for each answer, but none for what the whole inspection leaves out."""
        lines = [f"{name}: {self.drawings:,} images of {self.bytes_per_image:,} bytes, {self.flagged:,} failed"]
        if isinstance(self.classes, LeftOut):
            lines += [f"class prediction left out: {self.classes.left_out}"] * (self.classes.left_out != no_classes)
        else:
            lines += [self.classes.sentence("probe"), self.classes.sentence("knn"), *_about_examples(self.classes)]
            lines += [more.sentence() for more in (self.classes.prototypes, self.classes.by_size, self.classes.by_features) if more]
        if not isinstance(self.transport, LeftOut) or self.transport.left_out != no_classes:
            lines += _answer("transport between classes", self.transport)
        questions = (
            ("agreement with the texts", self.agreement),
            ("near-duplicates", self.near_copies),
            ("diversity of the images of a text", self.diversity),
        )
        for question, answer in questions:
            if answer is None:
                continue
            lines += _answer(question, answer)
            if isinstance(answer, NearCopies) and answer.by_size and answer.share > 0:
                lines.append(answer.by_size.sentence())
        return [lines[0], *(f"  {line}" for line in lines[1:])]


@dataclass(frozen=True, kw_only=True)
class Thumbnails(Record):
    """Small images of test examples, written for ``train report``.

    Attributes:
        folder: with the images.
        sheet: the PNG with the first of them in a grid.
        examples: how many.
        side_px: of each.
        bytes: of all.
    """

    folder: Path
    sheet: Path
    examples: int
    side_px: int
    bytes: int

    def sentence(self) -> str:
        """Return what was written in one sentence."""
        return f"thumbnails of {self.examples:,} test examples, {self.bytes / 1e6:.2f} MB: {self.folder}; the first in a grid: {self.sheet}"


@dataclass(frozen=True, kw_only=True)
class Inspection(Record):
    """What the cached tokens say before any training.

    Attributes:
        store: the store's folder.
        corpus: the corpus's fingerprint.
        examples: by split, how many were inspected.
        capped: whether that is a sample.
        no_classes: why no question about classes could be asked, or None.
        columns: by name, the answers about each column of tokens; left out if it cannot be read.
        class_similarity: are images of one class more alike than images of two?
        thumbnails: small images that were written, or why none.
        prompts_cut: texts of which a prompt was longer than the generator reads.
        prompt_figures: the words that no prompt has, and the prompts that name their class; None if an earlier version wrote the store.
        notice: what a reader must know about the generator, or None.
        compute: device, its name, dtype and threads.
        times: seconds by stage.
        peak_memory: bytes by kind.
        provenance: versions, commit, platform, date.
        unfinished: by name of a column that lacks rows, how many it has and of how many.
        without_image: by split, how many examples have no image and were left aside (``--subset``), where any have none.
    """

    store: Path
    corpus: str
    examples: Mapping[str, InspectedExamples]
    capped: bool
    no_classes: str | None
    columns: Mapping[str, ColumnInspection | LeftOut]
    class_similarity: ClassSimilarity | LeftOut
    thumbnails: Thumbnails | LeftOut
    prompts_cut: PromptsCut
    notice: str | None
    compute: Mapping[str, Any]
    times: Mapping[str, float]
    peak_memory: Mapping[str, int]
    provenance: Mapping[str, Any]
    unfinished: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    prompt_figures: PromptFigures | None = None
    without_image: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def verdict(self) -> Verdict:
        """Whether the images predict the class, by the best column."""
        verdicts = {name: column.verdict for name, column in self.read_columns.items() if column.verdict is not None}
        if not verdicts:
            reason = self.no_classes or ("no column of tokens could be read" if self.columns else "the store has no tokens of images")
            words = f"{UNKNOWN}: {reason}"
            return Verdict(level="unknown", words=words, reasons=tuple(self._reasons(best="")))
        best = best_column(verdicts)
        return Verdict(level=verdicts[best].level, words=f"{best}: {verdicts[best].words}", reasons=tuple(self._reasons(best=best)))

    @property
    def read_columns(self) -> dict[str, ColumnInspection]:
        """The columns that could be read."""
        return {name: column for name, column in self.columns.items() if isinstance(column, ColumnInspection)}

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values, with the verdict; ``unfinished`` and ``complete`` only if a column lacks rows,
        ``prompt_figures`` only if they are known, ``without_image`` only if an example has none."""
        record = {**super().to_json(), "verdict": self.verdict.to_json()}
        unfinished = record.pop("unfinished")
        figures = record.pop("prompt_figures")
        record |= {"without_image": without} if (without := record.pop("without_image")) else {}
        record |= {} if figures is None else {"prompt_figures": figures.to_json()}
        return {**record, **({"complete": False, "unfinished": unfinished} if unfinished else {})}

    def summary(self) -> str:
        """Return the findings for a person, a line each: first the verdict, then the answers of each column, then those about images."""
        counts = ", ".join(f"{split.looked_at:,} of {split.of:,} {name}" for name, split in self.examples.items() if split.of)
        lines = [f"{self.store}: {counts} examples inspected{' (a random sample)' if self.capped else ''}", self.verdict.words]
        if self.unfinished:
            parts = ", ".join(f"{name} has {rows:,} of {of:,} images" for name, (rows, of) in self.unfinished.items())
            lines.insert(1, f"UNFINISHED: {parts}; the same featurize command again generates the rest")
        if self.without_image:
            parts = ", ".join(f"{count:,} {split}" for split, count in self.without_image.items())
            lines.insert(1, f"no image was drawn for {parts} examples (--subset), which are left aside")
        for name, column in self.columns.items():
            if isinstance(column, LeftOut):
                lines.append(f"{name}: left out: {column.left_out}")
            else:
                lines += column.summary_lines(name, no_classes=self.no_classes)
        if isinstance(self.class_similarity, LeftOut):
            left_out = self.class_similarity.left_out
            lines += [f"similarity of classes left out: {left_out}"] * (left_out != self.no_classes)
        else:
            pairs = "; ".join(f"{left} / {right} {value:.3f}" for left, right, value in self.class_similarity.most_alike[:3])
            lines += [self.class_similarity.sentence(), f"  most alike: {pairs}"]
        thumbnails = self.thumbnails
        lines.append(f"thumbnails left out: {thumbnails.left_out}" if isinstance(thumbnails, LeftOut) else thumbnails.sentence())
        lines += [self.prompts_cut.sentence()] if self.prompts_cut.count else []
        lines += self.prompt_figures.sentences() if self.prompt_figures else []
        return "\n".join([*lines, *([f"note: {self.notice}"] if self.notice else [])])

    def _reasons(self, *, best: str) -> list[str]:
        reasons = [reason for name, column in self.read_columns.items() for reason in column.reasons(name, is_best=name == best)]
        reasons += [] if isinstance(self.class_similarity, LeftOut) else [self.class_similarity.sentence()]
        reasons += [self.prompts_cut.sentence()] if self.prompts_cut.count else []
        return reasons + ([self.notice] if self.notice else [])


def _answer(question: str, answer: ClassTransport | Agreement | NearCopies | Diversity | LeftOut) -> list[str]:
    return [f"{question} left out: {answer.left_out}" if isinstance(answer, LeftOut) else answer.sentence()]


def _about_examples(classes: ClassProbes) -> list[str]:
    sentences, examples = [], classes.examples
    if examples.validation_shared and examples.validation_new:
        sentences.append(f"{examples.validation_shared:,} validation examples are not scored: a train example shares their image")
    if examples.validation < _FEW:
        sentences.append(f"with {examples.validation} validation examples a small effect would be missed")
    return sentences
