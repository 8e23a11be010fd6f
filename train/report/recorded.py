"""What other commands recorded about a run: the audit, accuracy over few labels, attention, stores side by side, and pictures of classes.

A record is shown only if it is of the run's models as they are now, or of the corpus as it is loaded now; otherwise a note says why not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lugpi_core.corpora.corpus import Corpus
from lugpi_core.errors import InputError
from lugpi_core.files import read_json
from lugpi_core.fingerprint import hash_file
from lugpi_core.thumbnails import COMPARISON
from train.evidence.few_shots import ShotsFigure
from train.evidence.records import AttentionFigures, DiversityTable
from train.file_names import ATTENTION, AUDIT, PREDICTIONS, SEEN, SHOTS_FIGURES
from train.models.model_folder import training_of
from train.options.tables import run_of
from train.report.content import ComparedColumn, ShownAgreement, ShownAudit, ShownClasses, ShownProbe, ShownStores, StoreWork

# What reading a record raises that is not one of ours.
_DAMAGED = (InputError, KeyError, TypeError, AttributeError, ValueError)


def audit_of(run: Path, corpus: Corpus) -> tuple[ShownAudit | None, tuple[str, ...]]:
    """Return the table of an audit of the run's models as they are now, and what is not shown, and why."""
    if not (run / AUDIT).is_file():
        return None, ()
    try:
        record = read_json(run / AUDIT)
        hashes = {folder: of_answers for model in record["models"].values() for folder, of_answers in model["folders"].items()}
        table, shadows = record["table"], int(record["shadows"])
        rows = [tuple(map(str, cells)) for cells in table["rows"]]
        shown = ShownAudit(header=tuple(table["header"]), rows=_with_names(rows), legend=str(table["legend"]), shadows=shadows)
        is_of_corpus = record["corpus"] == corpus.fingerprint()
    except _DAMAGED:
        return None, (f"the audit is not shown: {run / AUDIT} is damaged; run python -m train audit again",)
    if not is_of_corpus or not _are_the_same({run / folder / PREDICTIONS: of_answers for folder, of_answers in hashes.items()}):
        return None, (f"the audit is not shown: {run / AUDIT} is of other models than the run's; run python -m train audit again",)
    return shown, ()


def _with_names(rows: Sequence[tuple[str, ...]]) -> tuple[tuple[str, ...], ...]:
    """Return the lines of a table in which a name stands in the first of its lines alone, with the name in each."""
    named: list[tuple[str, ...]] = []
    for name, *cells in rows:
        named.append((name or named[-1][0], *cells))
    return tuple(named)


def few_shots_of(run: Path, corpus: Corpus) -> tuple[tuple[ShotsFigure, ...], tuple[str, ...]]:
    """Return the figures of ``tables --shots`` of the run's models as they are now, and what is not shown, and why. The models of a few
    shots are runs of their own in a run; to these belong the figures of that run."""
    run = run_of(run)
    path = run / SHOTS_FIGURES
    if not path.is_file():
        return (), ()
    again = "run python -m train tables --shots again (with --no-train, nothing is trained)"
    try:
        record = read_json(path)
        figures = tuple(ShotsFigure(**figure) for figure in record["figures"])
        predictions = {run / str(name): of_answers for name, of_answers in record["models"].items()}
    except _DAMAGED:
        return (), (f"the learning curves are not shown: {path} is damaged, or of an earlier version; {again}",)
    if not _are_the_same(predictions) or any(training_of(name.parent).get("corpus") != corpus.fingerprint() for name in predictions):
        return (), (f"the learning curves are not shown: {path} is of other models than the run's, or of another corpus; {again}",)
    return figures, ()


@dataclass(frozen=True, kw_only=True)
class RecordedAttention:
    """What ``tables --attention`` recorded of the run's teachers.

    Attributes:
        path: of the record.
        rows: names of all its rows.
        figures: those of teachers that are as they were, by the names of their folders.
        is_damaged: whether the record cannot be read.
    """

    path: Path
    rows: tuple[str, ...] = ()
    figures: Mapping[tuple[str, ...], AttentionFigures]
    is_damaged: bool = False

    def attend(self, folders: Sequence[Path]) -> AttentionFigures | None:
        """Return the figures of teachers; None if there are none."""
        return self.figures.get(tuple(folder.name for folder in folders))

    def notes(self, table: DiversityTable) -> tuple[str, ...]:
        """Return which recorded rows the table of teachers of one kind does not show, and why."""
        again = "run python -m train tables --attention again (with --no-train, nothing is trained)"
        if self.is_damaged:
            return (f"the attention of teachers is not shown: {self.path} is damaged; {again}",)
        shown = {row.row for row in table.rows if row.attention is not None}
        if lacking := [row for row in self.rows if row not in shown]:
            return (f"the attention of {', '.join(lacking)} is not shown: {self.path} is of other teachers than the run's; {again}",)
        return ()


def attention_of(run: Path) -> RecordedAttention:
    """Return what is recorded of the attention of the run's teachers; nothing, where nothing is."""
    path = run / ATTENTION
    if not path.is_file():
        return RecordedAttention(path=path, figures={})
    try:
        rows = read_json(path)["rows"]
        figures = {
            tuple(row["models"]): AttentionFigures(**row["figures"])
            for row in rows.values()
            if _are_the_same({run / name / PREDICTIONS: of_answers for name, of_answers in row["models"].items()})
        }
    except _DAMAGED:
        return RecordedAttention(path=path, figures={}, is_damaged=True)
    return RecordedAttention(path=path, rows=tuple(rows), figures=figures)


def stores_of(run: Path, corpus: Corpus) -> tuple[ShownStores | None, tuple[str, ...]]:
    """Return what ``inspect --stores`` recorded of stores of this corpus, and what is not shown, and why."""
    path = run / COMPARISON
    if not path.is_file():
        return None, ()
    again = "run python -m featurize inspect --stores again"
    try:
        record = read_json(path)
        shown, fingerprint = _stores(record), record["corpus"]
    except _DAMAGED:
        return None, (f"the compared stores are not shown: {path} is damaged, or of an earlier version; {again}",)
    if fingerprint != corpus.fingerprint():
        return None, (f"the compared stores are not shown: {path} is of another corpus than the run's; {again}",)
    return shown, ()


def _stores(record: Mapping[str, Any]) -> ShownStores:
    table = record["table"]
    columns = [
        ComparedColumn(
            name=str(column["name"]),
            probes=tuple(ShownProbe(**{**one, "interval": tuple(one["interval"])}) for one in column["probes"]),
            agreements=tuple(ShownAgreement(**one) for one in column["agreements"]),
        )
        for column in record["chart"]
    ]
    return ShownStores(
        header=tuple(map(str, table["header"])),
        rows=tuple(tuple(map(str, cells)) for cells in table["rows"]),
        columns=tuple(columns),
        works=tuple(StoreWork(label=store["label"], **store["work"]) for store in record["stores"] if "left_out" not in store["work"]),
        sentences=tuple(map(str, record["sentences"])),
    )


def seen_of(run: Path, corpus: Corpus) -> tuple[ShownClasses | None, tuple[str, ...]]:
    """Return the pictures of classes to a teacher as it is now, and what is not shown, and why."""
    path = run / SEEN
    if not path.is_file():
        return None, ()
    again = "run python -m lugpi see again"
    try:
        record = read_json(path)
        table, sheet = record["table"], run / Path(str(record["sheet"]["file"])).name
        of_teacher = {run / str(name) / PREDICTIONS: of_answers for name, of_answers in record["models"].items()}
        is_same = record["corpus"] == corpus.fingerprint() and _are_the_same({**of_teacher, sheet: record["sheet"]["hash"]})
        rows, legend = tuple(tuple(map(str, cells)) for cells in table["rows"]), str(record["legend"])
        shown = ShownClasses(
            header=tuple(map(str, table["header"])), rows=rows, legend=legend, sheet=sheet.read_bytes() if is_same else b""
        )
    except _DAMAGED:
        return None, (f"the pictures of classes are not shown: {path} is damaged; {again}",)
    if not is_same:
        return None, (f"the pictures of classes are not shown: {path} is of another teacher, corpus or sheet than the run's; {again}",)
    return shown, ()


def _are_the_same(predictions: Mapping[Path, str]) -> bool:
    """Whether files of answers are there, and have these hashes."""
    return all(path.is_file() and hash_file(path) == of_answers for path, of_answers in predictions.items())
