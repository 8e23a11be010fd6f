"""What a report shows of a run, gathered from its models, its corpus and the images that inspect kept.

Shapes: N test examples.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from lugpi_core.corpora.corpus import Corpus
from lugpi_core.errors import InputError
from lugpi_core.store.example_table import read_example_table
from lugpi_core.store.reader import ColumnReader, columns_of
from lugpi_core.thumbnails import FOLDER, read_thumbnails, thumbnail_generator
from train.evidence.diversity import Attend
from train.evidence.fidelity import teachers_of
from train.evidence.found_models import columns_of_rows, folders_of_corpus, found_models, rows_of_found
from train.evidence.outcome import Outcome
from train.evidence.row_figures import ScoredModel, scored
from train.evidence.rows import ALL, Row, chosen_tables
from train.evidence.table_report import TablePlan, TableReport, table_report
from train.learning.task_rules import Metric, plain_number
from train.options.tables import run_of
from train.report.cases import Bools, Case, Role, ShownModel, cases_of, chosen_examples, pattern_of, shown_model, shown_teachers
from train.report.content import Curve, ReportContent, Selection, ShownAnswer, ShownExample
from train.report.recorded import attention_of, audit_of, few_shots_of, seen_of, stores_of
from train.report.sources import sources_of

# The most that the page shows of an example, so that 200 of them stay below 10 MB.
TEXT_LETTERS, PROMPT_LETTERS, IMAGE_BYTES = 3000, 300, 20_000
# What stands between the texts of a pair, and for the classes of an example that has none of them.
PAIR, NO_CLASS = " ⏎ ", "no class"
# The generator whose images are emoji: no reader minds these.
_HARMLESS_GENERATORS = ("demo", "demo-flow")

Read = Callable[[Path], ScoredModel]
Models = Mapping[str, Mapping[int, ScoredModel]]  # by row and seed


def gather(corpus: Corpus, run: Path, selection: Selection, *, paper_dataset: str | None = None) -> ReportContent:
    """Return everything that the page shows. Memory: the corpus, the predictions of every model, and the images.

    Args:
        corpus: that the run's models were trained on.
        run: its folder.
        selection: student and examples to show.
        paper_dataset: the corpus of the paper that this is, or None.

    Raises:
        InputError: models of another corpus, no such student, or damaged predictions.
    """
    read = cache(scored)
    finished = {folder.name: read(folder) for folder in folders_of_corpus(run, corpus)}
    attention = attention_of(run)
    tables, by_row, rows = _tables(run, corpus.name, paper_dataset, list(finished.values()), read, attention.attend)
    models = _shown_models(finished, selection, rows, by_row, read)
    marks = _marks(run_of(run), corpus)
    cases = cases_of(models)
    audit, audit_notes = audit_of(run, corpus)
    shots, shots_notes = few_shots_of(run, corpus)
    stores, stores_notes = stores_of(run, corpus)
    seen, seen_notes = seen_of(run, corpus)
    sources, sources_notes = sources_of(tables, rows)
    examples = tuple(_example(corpus, row, n, models, cases, marks) for row, n in _chosen(corpus, selection, models, marks))
    return ReportContent(
        corpus=corpus,
        tables=tables,
        sources=sources,
        models=tuple(models),
        curves=_curves(finished, models),
        cases=tuple(cases),
        examples=examples,
        notes=(
            *tables.notes,
            *sources_notes,
            *marks.notes,
            *audit_notes,
            *shots_notes,
            *attention.notes(tables.diversity),
            *stores_notes,
            *seen_notes,
        ),
        metrics=_metrics_of(finished, models),
        seed=selection.seed,
        is_blurred=marks.is_blurred,
        audit=audit,
        shots=shots,
        stores=stores,
        seen=seen,
    )


def _tables(
    run: Path, dataset: str, paper_dataset: str | None, finished: Sequence[ScoredModel], read: Read, attend: Attend
) -> tuple[TableReport, Models, Sequence[Row]]:
    """Return the report of the tables over every seed there is, the models by row and seed, and the rows."""
    folders = [model.folder for model in finished]
    columns = columns_of_rows(run, finished=folders)
    found = found_models(folders, columns)
    rows = rows_of_found(run, columns, found)
    by_row: dict[str, dict[int, ScoredModel]] = {}
    for name, folder in found.folders.items():
        model = read(folder)
        seed = model.metrics["seed"]
        by_row.setdefault(name.removesuffix(f"-seed{seed}") if seed else name, {})[seed] = model
    seeds = sorted({seed for row in rows for seed in by_row.get(row.name, {})}) or [0]
    plan = TablePlan(rows=rows, tables=chosen_tables((ALL,), rows), seeds=seeds, paper_dataset=paper_dataset, attend=attend)
    return table_report(run, dataset, plan, found, Outcome(), read), by_row, rows


def _shown_models(
    finished: Mapping[str, ScoredModel], selection: Selection, rows: Sequence[Row], by_row: Models, read: Read
) -> list[ShownModel]:
    """Return baseline, teacher and student as far as they are finished: the selected student or the first of the tables, and the others of
    its seed, on the same test examples."""
    student = _student(finished, selection.student, rows, by_row)
    teachers = None if student is None else teachers_of(student, read)
    teacher = None if student is not None else _first(rows, by_row, "teacher", None)
    main = student or teacher
    baseline = _first(rows, by_row, "baseline", None if main is None else main.metrics["seed"])
    if baseline is not None and main is not None:
        is_comparable = baseline.metrics["seed"] == main.metrics["seed"] and baseline.test.examples == main.test.examples
        baseline = baseline if is_comparable else None
    models = [
        None if baseline is None else shown_model("baseline", baseline),
        shown_teachers(teachers) if teachers is not None else None if teacher is None else shown_model("teacher", teacher),
        None if student is None else shown_model("student", student),
    ]
    return [model for model in models if model is not None]


def _student(finished: Mapping[str, ScoredModel], name: str | None, rows: Sequence[Row], by_row: Models) -> ScoredModel | None:
    students = sorted(name for name, model in finished.items() if model.metrics["command"] == "student")
    if name is None:
        of_a_row = _first(rows, by_row, "student", None)
        return finished[students[0]] if of_a_row is None and students else of_a_row
    if name not in students:
        expected = f"one of {', '.join(students)}" if students else "a student of the run, which has none"
        raise InputError(got=f"--student {name}", expected=expected, do="name a finished student's folder, or leave it out")
    return finished[name]


def _first(rows: Sequence[Row], by_row: Models, command: Role, seed: int | None) -> ScoredModel | None:
    """Return the first row's model of that seed, or of its lowest; None where there is none."""
    for row in rows:
        by_seed = by_row.get(row.name, {})
        if row.command == command and by_seed:
            return by_seed[min(by_seed) if seed is None or seed not in by_seed else seed]
    return None


@dataclass(frozen=True, kw_only=True)
class Marks:
    """What the run knows about its examples besides answers, by the corpus's rows.

    Attributes:
        images: WebP bytes of those that have one.
        is_blurred: whether the images are blurred at first.
        prompt_cut: bool, whether the prompt was cut; None where there is no store.
        failed: bool, whether an image or its tokens failed; None where there is no store.
        notes: what is not known, and why.
    """

    images: Mapping[int, bytes]
    is_blurred: bool
    prompt_cut: Bools | None
    failed: Bools | None
    notes: tuple[str, ...]


def _marks(run: Path, corpus: Corpus) -> Marks:
    notes: list[str] = []
    images: dict[int, bytes] = {}
    is_blurred = True
    prompt_cut = failed = None
    try:
        thumbnails = read_thumbnails(run / FOLDER, corpus.fingerprint())
        images = {row: data for row, data in thumbnails.items() if len(data) <= IMAGE_BYTES}
        is_blurred = bool(images) and thumbnail_generator(run / FOLDER) not in _HARMLESS_GENERATORS
    except InputError as error:
        notes.append(f"no images: {error}")
    try:
        store = run / "tokens"
        table = read_example_table(store, corpus)
        flagged = {row for name in columns_of(store) for row in ColumnReader(store, name, check_content=False).flagged}
        prompt_cut, failed = table.prompt_cut, np.asarray(np.isin(table.drawings, list(flagged)).any(axis=1))
    except InputError as error:
        notes.append(f"which prompts were cut and which images failed is not known: {error}")
    return Marks(images=images, is_blurred=is_blurred, prompt_cut=prompt_cut, failed=failed, notes=tuple(notes))


def _chosen(corpus: Corpus, selection: Selection, models: Sequence[ShownModel], marks: Marks) -> list[tuple[int, int]]:
    """Return the examples to show: the corpus's row of each, and its number in the test split."""
    if not models:
        return []
    rows: NDArray[np.int64] = np.array(corpus.rows("test"), np.int64)
    has_image = np.isin(rows, list(marks.images))
    chosen = chosen_examples(pattern_of(models, len(rows)), has_image, selection.examples, selection.seed)
    return [(int(rows[n]), int(n)) for n in chosen]


def _example(corpus: Corpus, row: int, n: int, models: Sequence[ShownModel], cases: Sequence[Case], marks: Marks) -> ShownExample:
    example = corpus.examples[row]
    text = example.text if example.pair is None else f"{example.text} {example.pair}"  # as the generator reads a pair
    shown = example.text if example.pair is None else f"{example.text}{PAIR}{example.pair}"
    flags = {"prompt cut": marks.prompt_cut, "failed image": marks.failed}
    is_number = corpus.task == "regression"
    classes = () if is_number else example.target if isinstance(example.target, tuple) else (example.label,)
    return ShownExample(
        row=row,
        id=example.id,
        classes=classes,
        label=plain_number(example.target, 6) if isinstance(example.target, float) else _names(corpus, classes),
        text=shown[:TEXT_LETTERS],
        text_letters=len(shown),
        prompt=None if example.prompt == text else example.prompt[:PROMPT_LETTERS],
        image=marks.images.get(row),
        flags=tuple(name for name, has_flag in flags.items() if has_flag is not None and has_flag[row]),
        cases=tuple(case.key for case in cases if case.holds[n]),
        answers=tuple(_answer(corpus, model, n) for model in models),
    )


def _answer(corpus: Corpus, model: ShownModel, n: int) -> ShownAnswer:
    match model.task:
        case "single-label":
            name = corpus.label_names[int(model.answers[n])]
            return ShownAnswer(role=model.role, answer=name, confidence=float(model.confidence[n]), is_right=bool(model.hits[n]))
        case "multi-label":
            given = [f"{corpus.label_names[k]} {model.outputs[n, k]:.0%}" for k in np.flatnonzero(model.answers[n])]
            return ShownAnswer(role=model.role, answer=", ".join(given) or NO_CLASS, confidence=None, is_right=bool(model.hits[n]))
        case "regression":
            number, error = float(model.answers[n]), float(model.answers[n] - model.labels[n])
            return ShownAnswer(
                role=model.role,
                answer=plain_number(number, 6),
                confidence=None,
                is_right=None,
                note=f"error {'+' * (error > 0)}{plain_number(error)}",
            )


def _names(corpus: Corpus, classes: Sequence[int]) -> str:
    """Return the names of an example's classes; of none, that it has none."""
    return ", ".join(corpus.label_names[k] for k in classes) or NO_CLASS


def _curves(finished: Mapping[str, ScoredModel], models: Sequence[ShownModel]) -> tuple[Curve, ...]:
    """Return the training of every model; the shown models last, so that their curves are above the others."""
    role_of = {name: model.role for model in models for name in model.name.split(" + ")}
    curves = [
        Curve(
            name=name,
            role=role_of.get(name),
            losses=tuple(record["loss"] for record in model.metrics["history"] if "loss" in record),
            scores={
                metric: tuple(record[recorded] for record in model.metrics["history"])
                for metric in get_args(Metric)
                if (recorded := f"validation_{metric}") in model.metrics["history"][0]
            },
        )
        for name, model in finished.items()
    ]
    return tuple(sorted(curves, key=lambda curve: (curve.role is not None, curve.name)))


def _metrics_of(finished: Mapping[str, ScoredModel], models: Sequence[ShownModel]) -> Mapping[str, Any]:
    """Return the record of the last shown model, or of any."""
    names = [model.name for model in reversed(models) if model.name in finished]
    return finished[next(iter(names), min(finished))].metrics
