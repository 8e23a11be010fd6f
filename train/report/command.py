"""``python -m train report``: everything of a run on one page that needs no server and no network. Here it is gathered;
``train.report.page`` makes the page.

Shapes: N test examples.
"""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lugpi_core.command_line import say
from lugpi_core.corpora.corpus import Corpus
from lugpi_core.corpora.load import load_corpus
from lugpi_core.corpora.options import CorpusOptions, dataset_name
from lugpi_core.errors import InputError
from lugpi_core.fields import part_of
from lugpi_core.files import write_text
from lugpi_core.fingerprint import digest
from lugpi_core.runtime.libraries import prepare_libraries
from lugpi_core.store.example_table import read_example_table
from lugpi_core.store.reader import ColumnReader, columns_of
from lugpi_core.thumbnails import FOLDER, read_thumbnails
from train.evidence.fidelity import teachers_of
from train.evidence.found_models import found_models
from train.evidence.row_figures import ScoredModel, scored
from train.evidence.rows import Row, chosen_tables, rows_of
from train.evidence.schedule import Outcome
from train.evidence.table_report import TablePlan, TableReport, table_report
from train.evidence.tables import columns_of_rows, paper_dataset
from train.models.model_folder import finished_folders
from train.options.tools import ReportOptions, flags_of
from train.options.training import TablesOptions
from train.report.cases import Bools, Case, Role, Voice, cases_of, chosen_examples, pattern_of, voice, voice_of_teachers
from train.report.content import Curve, Report, ShownAnswer, ShownExample
from train.report.page import page

# What the page holds of an example at most, so that 200 of them stay below 10 MB whatever they are.
TEXT_LETTERS, PROMPT_LETTERS, PICTURE_BYTES = 3000, 300, 20_000

Read = Callable[[Path], ScoredModel]


def report(options: ReportOptions) -> dict[str, Any]:
    """Write ``report.html`` into the run; return where it is and what it shows.

    Raises:
        InputError: no finished model, models of another corpus, no such student, or damaged predictions.
    """
    prepare_libraries()
    if not finished_folders(options.run):
        raise InputError(
            got=f"no finished model in {options.run}",
            expected="one at least",
            do="train them first (python -m train tables, with the same --dataset and its flags), or name the run's folder with --run-dir",
        )
    found = gathered(options)
    text = page(found)
    write_text(options.written, text)
    for note in found.notes:
        say(f"note: {note}")
    return {
        "command": "report",
        "report": str(options.written),
        "bytes": len(text.encode()),
        "models": sorted(model.folder for row in found.tables.rows.values() for model in row.models),
        "shown": {one.role: one.name for one in found.voices},
        "examples": len(found.examples),
        "pictures": sum(one.picture is not None for one in found.examples),
        "notes": list(found.notes),
    }


def gathered(options: ReportOptions) -> Report:
    """Return everything that the page shows. Memory: the corpus, the predictions of every model, and the pictures.

    Raises:
        InputError: as for ``report``.
    """
    read = cache(scored)
    corpus = load_corpus(options.dataset, options)
    tables, models, rows = _tables(options, read)
    voices = _voices(options, rows, models, read)
    _require_corpus(corpus, voices, options)
    marks = _marks(options, corpus)
    cases = cases_of(voices)
    shown = _chosen(options, corpus, voices, marks)
    examples = tuple(_example(corpus, row, n, voices, cases, marks) for row, n in shown)
    trained = {folder.name: read(folder) for folder in finished_folders(options.run)}
    notes = [*tables.notes, *marks.notes, *_notes_of_pictures(options, examples)]
    return Report(
        corpus=corpus,
        tables=tables,
        voices=tuple(voices),
        curves=_curves(trained, voices),
        cases=tuple(cases),
        examples=examples,
        notes=tuple(notes),
        metrics=_metrics_of(trained, voices),
        seed=options.seed,
        is_blurred=options.dataset != "demo",
    )


def _tables(options: ReportOptions, read: Read) -> tuple[TableReport, dict[str, dict[int, ScoredModel]], Sequence[Row]]:
    """Return the report of the tables of every seed there is, the models by row and seed, and the rows."""
    shared = {field.name: getattr(options, field.name) for field in fields(CorpusOptions)}
    asked = TablesOptions(**shared, run_dir=options.run, train=False)
    columns = columns_of_rows(asked)
    found = found_models(options.run, columns)
    rows = rows_of(columns, has_more=found.has_unlabelled)
    by_row: dict[str, dict[int, ScoredModel]] = {}
    for name, folder in found.folders.items():
        model = read(folder)
        by_row.setdefault(_row_of(name, model), {})[model.metrics["seed"]] = model
    seeds = sorted({seed for row in rows for seed in by_row.get(row.name, {})}) or [0]
    plan = TablePlan(rows=rows, tables=chosen_tables(asked.rows, rows), seeds=seeds, paper_dataset=paper_dataset(options))
    return table_report(options.run, dataset_name(options.dataset), plan, found, Outcome(), read), by_row, rows


def _row_of(name: str, model: ScoredModel) -> str:
    seed = model.metrics["seed"]
    return name.removesuffix(f"-seed{seed}") if seed else name


def _voices(options: ReportOptions, rows: Sequence[Row], models: Mapping[str, Mapping[int, ScoredModel]], read: Read) -> list[Voice]:
    """Return baseline, teacher and student as far as they are there: the student that is asked for or the first of the tables, and the
    others of its seed, on the same test examples."""
    student = _student(options, rows, models, read)
    taught = None if student is None else teachers_of(student, read)
    teacher = None if student is not None else _first(rows, models, "teacher", None)
    like = student or teacher
    baseline = _first(rows, models, "baseline", None if like is None else like.metrics["seed"])
    if baseline is not None and like is not None:
        is_beside = baseline.metrics["seed"] == like.metrics["seed"] and baseline.test.examples == like.test.examples
        baseline = baseline if is_beside else None
    found = [
        None if baseline is None else voice("baseline", baseline),
        voice_of_teachers(taught) if taught is not None else None if teacher is None else voice("teacher", teacher),
        None if student is None else voice("student", student),
    ]
    return [one for one in found if one is not None]


def _student(
    options: ReportOptions, rows: Sequence[Row], models: Mapping[str, Mapping[int, ScoredModel]], read: Read
) -> ScoredModel | None:
    there = {folder.name: folder for folder in finished_folders(options.run)}
    students = sorted(name for name, folder in there.items() if read(folder).metrics["command"] == "student")
    if options.student is None:
        of_a_row = _first(rows, models, "student", None)
        return read(there[students[0]]) if of_a_row is None and students else of_a_row
    if options.student not in students:
        expected = f"one of {', '.join(students)}" if students else "a student of the run, which has none"
        raise InputError(got=f"--student {options.student}", expected=expected, do="name a finished student's folder, or leave it out")
    return read(there[options.student])


def _first(rows: Sequence[Row], models: Mapping[str, Mapping[int, ScoredModel]], command: Role, seed: int | None) -> ScoredModel | None:
    """Return the first row's model of that seed, or of its lowest; None where there is none."""
    for row in rows:
        by_seed = models.get(row.name, {})
        if row.command == command and by_seed:
            return by_seed[min(by_seed) if seed is None or seed not in by_seed else seed]
    return None


def _require_corpus(corpus: Corpus, voices: Sequence[Voice], options: ReportOptions) -> None:
    """Raise InputError where models were scored on other test examples than the corpus has now."""
    wanted = [(corpus.examples[row].id, corpus.examples[row].label) for row in corpus.rows("test")]
    for one in voices:
        if one.examples != digest(wanted):
            raise InputError(
                got=f"{options.run / one.name}, scored on other test examples than {corpus.name} has as it is loaded now",
                expected="models of this corpus",
                do="repeat the corpus flags that they were trained with, or name their run with --run-dir",
            )


@dataclass(frozen=True, kw_only=True)
class Marks:
    """What the run knows of its examples beside answers, by the corpus's rows.

    Attributes:
        pictures: WebP bytes of those that have one.
        prompt_cut: bool, whether the prompt was cut; None where there is no store.
        failed: bool, whether a drawing or its tokens failed; None where there is no store.
        notes: what is not known, and why.
    """

    pictures: Mapping[int, bytes]
    prompt_cut: Bools | None
    failed: Bools | None
    notes: tuple[str, ...]


def _marks(options: ReportOptions, corpus: Corpus) -> Marks:
    store, notes = options.run / "tokens", []
    pictures: dict[int, bytes] = {}
    prompt_cut = failed = None
    try:
        found = read_thumbnails(options.run / FOLDER, corpus.fingerprint())
        pictures = {row: data for row, data in found.items() if len(data) <= PICTURE_BYTES}
    except InputError as error:
        notes.append(f"no pictures: {error}")
    try:
        table = read_example_table(store, corpus)
        flagged = {row for name in columns_of(store) for row in ColumnReader(store, name, check_content=False).flagged}
        prompt_cut, failed = table.prompt_cut, np.asarray(np.isin(table.drawings, list(flagged)).any(axis=1))
    except InputError as error:
        notes.append(f"which prompts were cut and which drawings failed is not known: {error}")
    return Marks(pictures=pictures, prompt_cut=prompt_cut, failed=failed, notes=tuple(notes))


def _chosen(options: ReportOptions, corpus: Corpus, voices: Sequence[Voice], marks: Marks) -> list[tuple[int, int]]:
    """Return the examples that are shown: the corpus's row of each, and its number in the test split."""
    if not voices:
        return []
    rows: NDArray[np.int64] = np.array(corpus.rows("test"), np.int64)
    has_picture = np.isin(rows, list(marks.pictures))
    chosen = chosen_examples(pattern_of(voices, len(rows)), has_picture, options.examples, options.seed)
    return [(int(rows[n]), int(n)) for n in chosen]


def _example(corpus: Corpus, row: int, n: int, voices: Sequence[Voice], cases: Sequence[Case], marks: Marks) -> ShownExample:
    example = corpus.examples[row]
    known = {"prompt cut": marks.prompt_cut, "failed drawing": marks.failed}
    return ShownExample(
        row=row,
        id=example.id,
        label=example.label,
        text=example.text[:TEXT_LETTERS],
        text_letters=len(example.text),
        prompt=None if example.prompt == example.text else example.prompt[:PROMPT_LETTERS],
        picture=marks.pictures.get(row),
        flags=tuple(name for name, is_so in known.items() if is_so is not None and is_so[row]),
        cases=tuple(case.key for case in cases if case.holds[n]),
        answers=tuple(
            ShownAnswer(role=one.role, answer=int(one.answers[n]), confidence=float(one.confidence[n]), is_right=bool(one.hits[n]))
            for one in voices
        ),
    )


def _notes_of_pictures(options: ReportOptions, examples: Sequence[ShownExample]) -> list[str]:
    """Return the note that some examples lack a picture that they could have, with the command that brings it."""
    lacking = sum(one.picture is None and "failed drawing" not in one.flags for one in examples)
    if not lacking:
        return []
    corpus = part_of(options, CorpusOptions)
    place = [] if options.run_dir is None else ["--run-dir", str(options.run_dir)]
    words = ["python", "-m", "featurize", "inspect", *flags_of(corpus), *place, "--thumbnails", str(max(200, options.examples))]
    return [f"{lacking} of {len(examples)} examples have no picture: run {shlex.join(words)}, and then this command again"]


def _curves(trained: Mapping[str, ScoredModel], voices: Sequence[Voice]) -> tuple[Curve, ...]:
    """Return the training of every model; those whose answers are shown last, so that they are drawn above others."""
    role_of = {name: one.role for one in voices for name in one.name.split(" + ")}
    curves = [
        Curve(
            name=name,
            role=role_of.get(name),
            losses=tuple(record["loss"] for record in model.metrics["history"] if "loss" in record),
            accuracies=tuple(record["validation_accuracy"] for record in model.metrics["history"] if "validation_accuracy" in record),
        )
        for name, model in trained.items()
    ]
    return tuple(sorted(curves, key=lambda one: (one.role is not None, one.name)))


def _metrics_of(trained: Mapping[str, ScoredModel], voices: Sequence[Voice]) -> Mapping[str, Any]:
    """Return the record of the model that the page is most about: the last voice, or any."""
    names = [one.name for one in reversed(voices) if one.name in trained]
    return trained[next(iter(names), min(trained))].metrics
