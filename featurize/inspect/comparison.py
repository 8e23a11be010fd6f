"""Several stores of one corpus side by side: the answers about each as records, as JSON and as one table in plain text."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from featurize.inspect.diversity import Diversity
from featurize.inspect.inspection import ColumnInspection
from featurize.inspect.probes import ProbeScore
from featurize.inspect.records import LeftOut, Record, decimal, percent
from featurize.inspect.sample import PromptsCut
from featurize.inspect.verdict import Level, best_guess
from lugpi_core.store.layout import OWN_IMAGES

_WIDEST = 30
_LEVELS: Mapping[Level, str] = {"knows": "yes", "little": "slightly", "chance": "no", "unknown": "cannot tell"}
_SIGNIFICANT = 0.05


@dataclass(frozen=True, kw_only=True)
class Work(Record):
    """What an image costs: 10^12 floating-point operations of the denoiser (all its steps), of the text encoders (a prompt's share) and of
    the decoder."""

    denoise_tflop: float
    prompt_tflop: float
    decode_tflop: float

    @property
    def tflop(self) -> float:
        """Of the whole image."""
        return self.denoise_tflop + self.prompt_tflop + self.decode_tflop


@dataclass(frozen=True, kw_only=True)
class ComparedStore(Record):
    """What is known of one store.

    Attributes:
        label: its name in the table and on the sheet.
        store: its folder.
        generator: its name.
        settings: how it generates, in words.
        seed: of the images; None if the store does not say.
        images: in the store.
        images_per_text: K; 0 if the store has text vectors and no images.
        side_px: of an image; None if the store does not say.
        license: as the store states it.
        generator_bytes: of the generator's weights.
        store_bytes: of the store's columns.
        work: of one image.
        prompts_cut: texts of which a prompt was longer than the generator reads.
        columns: the answers about each column of tokens.
        notice: what a reader must know about the generator, or None.
        unfinished: by name of a column that lacks rows, how many it has and of how many.
    """

    label: str
    store: Path
    generator: str
    settings: str
    seed: int | None
    images: int
    images_per_text: int
    side_px: int | None
    license: str
    generator_bytes: int | LeftOut
    store_bytes: int
    work: Work | LeftOut
    prompts_cut: PromptsCut
    columns: Mapping[str, ColumnInspection | LeftOut]
    notice: str | None
    unfinished: Mapping[str, tuple[int, int]]

    @property
    def has_images(self) -> bool:
        """Whether the store has more than text vectors of its generator."""
        return self.images_per_text > 0

    @property
    def is_generated(self) -> bool:
        """Whether its images are a generator's, and not the user's own."""
        return self.has_images and self.generator != OWN_IMAGES

    def column(self, name: str) -> ColumnInspection | None:
        """Return the answers about a column, or None if it is not there or could not be read."""
        column = self.columns.get(name)
        return column if isinstance(column, ColumnInspection) else None


@dataclass(frozen=True, kw_only=True)
class BetweenSeeds(Record):
    """How different the images of a text are in two stores that differ in the seed only.

    Attributes:
        stores: their labels.
        seeds: of both.
        column: the tokens that were compared.
        diversity: of the pairs of images.
    """

    stores: tuple[str, str]
    seeds: tuple[int, int]
    column: str
    diversity: Diversity

    def sentence(self) -> str:
        """Return the answer in one sentence."""
        what = f"the images of one text with seeds {self.seeds[0]} and {self.seeds[1]}"
        return f"{self.stores[0]} and {self.stores[1]}, {self.column}: {self.diversity.sentence(what)}"


@dataclass(frozen=True, kw_only=True)
class ProbeDifference(Record):
    """The linear probe's accuracy in the best store less that in another, on the examples that both scored.

    Attributes:
        column: the tokens.
        stores: the labels of the best and of the other.
        examples: scored in both.
        difference: of the accuracies on them.
        p: of the paired test, see ``paired_p_value``.
    """

    column: str
    stores: tuple[str, str]
    examples: int
    difference: float
    p: float

    def sentence(self) -> str:
        """Return the answer in one sentence."""
        significant = "" if self.p <= _SIGNIFICANT else ", no significant difference"
        return (
            f"{self.column}: linear probe of {self.stores[0]} minus that of {self.stores[1]}: {100 * self.difference:+.1f} points "
            f"(p = {decimal(self.p)} on {self.examples:,} examples{significant})"
        )


@dataclass(frozen=True, kw_only=True)
class PictureSheet(Record):
    """The PNG with the same texts in rows and stores in columns.

    Attributes:
        path: of the PNG.
        texts: rows.
        stores: the labels of the stores that have images on it.
        left_out: by label, why the others have none.
    """

    path: Path
    texts: int
    stores: tuple[str, ...]
    left_out: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Comparison(Record):
    """Stores of one corpus side by side.

    Attributes:
        corpus: its fingerprint.
        no_classes: why no question about classes could be asked, or None.
        stores: in the order that was asked for.
        probe_differences: of the best store of each column and the others.
        between_seeds: pairs of stores that differ in the seed only.
        sheet: images of both, or why none.
        notes: what makes figures incomparable or surprising, a sentence each.
        compute, times, peak_memory, provenance: as of an inspection.
    """

    corpus: str
    no_classes: str | None
    stores: tuple[ComparedStore, ...]
    probe_differences: tuple[ProbeDifference, ...]
    between_seeds: tuple[BetweenSeeds, ...]
    sheet: PictureSheet | LeftOut
    notes: tuple[str, ...]
    compute: Mapping[str, Any] = field(repr=False)
    times: Mapping[str, float] = field(repr=False)
    peak_memory: Mapping[str, int] = field(repr=False)
    provenance: Mapping[str, Any] = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values, with what the report of a run shows of them: the table, the figures of its charts, and the
        sentences below the table."""
        labels = [store.label for store in self.stores]
        table = {"header": ["", *labels], "rows": [[name, *cells] for name, cells in self._rows()]}
        chart = [{"name": name, "probes": self._probes(name), "agreements": self._agreements(name)} for name in self._columns]
        return {**super().to_json(), "table": table, "chart": chart, "sentences": self._sentences}

    @property
    def _columns(self) -> list[str]:
        return list(dict.fromkeys(name for store in self.stores for name in store.columns))

    @property
    def _sentences(self) -> list[str]:
        return [*(one.sentence() for one in self.probe_differences), *(pair.sentence() for pair in self.between_seeds), *self.notes]

    def _probes(self, name: str) -> list[dict[str, Any]]:
        return [
            {
                "label": store.label,
                "accuracy": column.classes.probe.accuracy,
                "interval": list(column.classes.probe.interval),
                "best_guess": best_guess(column.classes.probe, column.classes.chance),
            }
            for store in self.stores
            if (column := store.column(name)) is not None and not isinstance(column.classes, LeftOut)
        ]

    def _agreements(self, name: str) -> list[dict[str, Any]]:
        return [
            {
                "label": store.label,
                "texts": column.agreement.texts,
                "own_is_nearer": column.agreement.own_is_nearer,
                "standard_error": column.agreement.standard_error,
            }
            for store in self.stores
            if (column := store.column(name)) is not None and not isinstance(column.agreement, LeftOut)
        ]

    def summary(self) -> str:
        """Return the table for a person, with notes and licences below it."""
        lines = [*table_lines(self._rows(), [store.label for store in self.stores])]
        lines += self._sentences
        lines += [f"{store.label}: {store.license}" for store in self.stores]
        if isinstance(self.sheet, LeftOut):
            lines.append(f"picture sheet left out: {self.sheet.left_out}")
        else:
            lines.append(f"picture sheet of {self.sheet.texts} texts: {self.sheet.path}")
            lines += [f"  without {label}: {reason}" for label, reason in self.sheet.left_out.items()]
        return "\n".join(lines)

    def _rows(self) -> list[tuple[str, list[str]]]:
        rows = [(name, [cell(store) for store in self.stores]) for name, cell in _ABOUT_STORES]
        for name in self._columns:
            rows.append((name, ["" if name in store.columns else "no such column" for store in self.stores]))
            rows += [(f"  {question}", [cell(store.column(name)) for store in self.stores]) for question, cell in _ABOUT_COLUMNS]
        return [(name, cells) for name, cells in rows if not name.startswith("  ") or any(cell != "-" for cell in cells)]


def table_lines(rows: Sequence[tuple[str, Sequence[str]]], labels: Sequence[str]) -> list[str]:
    """Return a table of a line for each row and a column for each label; long cells take several lines."""
    cells = [("", list(labels)), *((name, list(row)) for name, row in rows)]
    wrapped = [(name, [textwrap.wrap(cell, _WIDEST) or [""] for cell in row]) for name, row in cells]
    first = max(len(name) for name, _ in wrapped)
    widths = [max(len(line) for _, row in wrapped for line in row[place]) for place in range(len(labels))]
    lines = []
    for name, row in wrapped:
        for number in range(max(map(len, row))):
            parts = [part[number] if number < len(part) else "" for part in row]
            padded = [part.ljust(width) for part, width in zip(parts, widths, strict=True)]
            lines.append("  ".join([(name if number == 0 else "").ljust(first), *padded]).rstrip())
    return lines


def _megabytes(size: int | LeftOut) -> str:
    return "unknown" if isinstance(size, LeftOut) else f"{size / 1e6:,.1f} MB"


def _of_generated(store: ComparedStore, words: str) -> str:
    return words if store.is_generated else "-"


_ABOUT_STORES: tuple[tuple[str, Callable[[ComparedStore], str]], ...] = (
    ("generator", lambda store: store.generator),
    ("settings", lambda store: store.settings),
    ("seed", lambda store: _of_generated(store, "unknown" if store.seed is None else str(store.seed))),
    ("images", lambda store: f"{store.images:,}"),
    ("images of a text", lambda store: str(store.images_per_text)),
    ("texts with a cut prompt", lambda store: "-" if store.generator == OWN_IMAGES else percent(store.prompts_cut.share)),
    ("TFLOP an image", lambda store: _of_generated(store, "unknown" if isinstance(store.work, LeftOut) else f"{store.work.tflop:.3g}")),
    ("weights", lambda store: _of_generated(store, _megabytes(store.generator_bytes))),
    ("store", lambda store: _megabytes(store.store_bytes)),
)


def _score(column: ColumnInspection | None, by: str) -> str:
    if column is None or isinstance(column.classes, LeftOut):
        return "-"
    score: ProbeScore = column.classes.probe if by == "probe" else column.classes.knn
    low, high = score.interval
    return f"{decimal(score.accuracy)} ({decimal(low)} to {decimal(high)})"


def _guess(column: ColumnInspection | None) -> str:
    if column is None or isinstance(column.classes, LeftOut):
        return "-"
    return decimal(best_guess(column.classes.probe, column.classes.chance))


def _predicts(column: ColumnInspection | None) -> str:
    return "-" if column is None or column.verdict is None else _LEVELS[column.verdict.level]


def _dimensions(column: ColumnInspection | None) -> str:
    shares = None if column is None or isinstance(column.classes, LeftOut) else column.classes.by_features
    return "-" if shares is None or shares.enough is None else f"{shares.enough:,} of {shares.features:,}"


def _apart(column: ColumnInspection | None) -> str:
    if column is None or isinstance(column.transport, LeftOut):
        return "-"
    return f"{decimal(column.transport.between)} / {decimal(column.transport.within)} (p = {decimal(column.transport.p)})"


def _nearer(column: ColumnInspection | None) -> str:
    return "-" if column is None or isinstance(column.agreement, LeftOut) else decimal(column.agreement.own_is_nearer)


def _clip_score(column: ColumnInspection | None) -> str:
    if column is None or isinstance(column.agreement, LeftOut):
        return "-"
    return f"{100 * column.agreement.matching:.1f} / {100 * column.agreement.others:.1f}"


def _copies(column: ColumnInspection | None) -> str:
    if column is None or isinstance(column.near_copies, LeftOut):
        return "-"
    return f"{'at least ' if column.near_copies.lower_bound else ''}{percent(column.near_copies.share)}"


def _differ(column: ColumnInspection | None) -> str:
    if column is None or not isinstance(column.diversity, Diversity):
        return "-"
    words = [*(["passages"] if column.diversity.of == "passages" else []), *(["hardly"] if column.diversity.is_little else [])]
    return percent(column.diversity.share) + (f" ({', '.join(words)})" if words else "")


_ABOUT_COLUMNS: tuple[tuple[str, Callable[[ColumnInspection | None], str]], ...] = (
    ("bytes an image", lambda column: "-" if column is None else f"{column.bytes_per_image:,}"),
    ("linear probe: accuracy", lambda column: _score(column, "probe")),
    ("dimensions for 95 % of it", _dimensions),
    ("nearest neighbours: accuracy", lambda column: _score(column, "knn")),
    ("best guess without images", _guess),
    ("predicts the class", _predicts),
    ("transport, two classes / one", _apart),
    ("own image nearer (chance .500)", _nearer),
    ("CLIP score, own / other image", _clip_score),
    ("near-duplicates", _copies),
    ("images of a text differ by", _differ),
    ("failed images", lambda column: "-" if column is None else f"{column.flagged:,}"),
)
