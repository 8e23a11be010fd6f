"""The report of a run's tables: computed from its finished models, and written as Markdown, LaTeX, CSV, JSON or a data frame."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lugpi_core.corpora.options import Task
from lugpi_core.errors import InputError
from lugpi_core.files import write_json, write_text
from train.evidence.diversity import Attend, diversity_table, record_attention
from train.evidence.ensembles import joint
from train.evidence.fidelity import FIDELITY, fidelity_figures
from train.evidence.found_models import FoundModels, differing_settings
from train.evidence.outcome import Outcome
from train.evidence.records import (
    PLAIN_NUMBERS,
    DiversityTable,
    FidelityTable,
    Finding,
    ModelResult,
    ResultTable,
    RowResult,
    Verdict,
    WhyRow,
    WhyTable,
    json_of,
)
from train.evidence.render import (
    class_line,
    diversity_cells,
    diversity_header,
    fidelity_cells,
    fidelity_header,
    header,
    latex_table,
    model_cells,
    others_header,
    row_cells,
    why_cells,
    why_header,
)
from train.evidence.resampling import SWAPS
from train.evidence.row_figures import ScoredModel, findings_of, row_result
from train.evidence.rows import BASELINE, Group, PlannedModel, Row, model_name
from train.evidence.verdicts import LEGEND, verdicts
from train.evidence.why import needed_rows, why_table
from train.learning.task_rules import METRIC_NAMES, rules_of
from train.models.markdown import markdown_table

if TYPE_CHECKING:
    import pandas

TITLES: Mapping[Group, str] = {
    "table1": "Table 1: baseline, images alone, teachers and students",
    "table2": "Table 2: students without one of the loss's soft terms (ce: without the embeddings' distance, l2: without the soft labels)",
    "controls": "Controls: teachers that see no images, images of other texts or blank images; and a student of each",
    "folds": "Folds: students of teachers that had not seen the train text of which they read (cross-fitting)",
    "ensemble": "Ensembles: students of several teachers of one kind together, which differ in their seeds alone",
    "unlabelled": "More texts: students that were distilled on unlabelled texts too",
}
_CONTROLS_WITH_VECTORS = (
    "Controls: teachers that see no images, images of other texts, blank images, or the generator's text vectors (text); and a student of "
    "each"
)
_FILES = ("md", "tex", "csv", "json")


@dataclass(frozen=True, kw_only=True)
class TablePlan:
    """What a report shows.

    Attributes:
        rows: every row there is.
        tables: the tables to show, each with its rows.
        seeds: the requested ones.
        paper_dataset: corpus of the paper whose published accuracies are shown too, or None.
        attend: computes how the attention of teachers to the same images overlaps; None if that is not shown.
    """

    rows: Sequence[Row]
    tables: Mapping[Group, Sequence[Row]]
    seeds: Sequence[int]
    paper_dataset: str | None = None
    attend: Attend | None = None

    @property
    def shown(self) -> dict[str, Row]:
        """The rows of all tables by name, each once."""
        return {row.name: row for of_table in self.tables.values() for row in of_table}

    @property
    def references(self) -> set[str]:
        """Names of the rows that those of the tables are compared with."""
        found = {name for row in self.shown.values() for name in (row.control, row.vectors if self.has_vectors else None)}
        return {BASELINE, *(name for name in found if name is not None)}

    @property
    def has_vectors(self) -> bool:
        """Whether there are rows of models that read the generator's text vectors."""
        return any(row.privileged == "text" for row in self.rows)


@dataclass(frozen=True, kw_only=True)
class TableReport:
    """A run's results over seeds, with every row's comparison with the baseline and with its text-only control.

    Attributes:
        dataset: name of the corpus.
        run: folder of the run.
        seeds: the requested ones.
        rows: results by the names of the rows.
        tables: each with the names of its rows, findings, verdicts and caption.
        fidelity: the table of fidelity and calibration; its figures are the rows'.
        diversity: teachers of one kind: their ensemble, and how alike they are.
        why: what students read of their teachers, and what of the teachers' gains arrives.
        others: finished models that belong to no row.
        missing: names of the models that are not there.
        failed: why models could not be trained, by their names.
        trained: names of the models that were trained for this report.
        notes: what a reader must know besides.
        task: of the models.
    """

    dataset: str
    run: Path
    seeds: tuple[int, ...]
    rows: Mapping[str, RowResult]
    tables: tuple[ResultTable, ...]
    fidelity: FidelityTable
    diversity: DiversityTable
    why: WhyTable
    others: tuple[ModelResult, ...]
    missing: tuple[str, ...]
    failed: Mapping[str, str]
    trained: tuple[str, ...]
    notes: tuple[str, ...]
    task: Task = "single-label"

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Every comparison, each once."""
        return tuple({(one.row, one.reference): one for table in self.tables for one in table.findings}.values())

    @property
    def verdicts(self) -> dict[str, Verdict]:
        """What the findings say about the images of each row, by its name."""
        return {verdict.row: verdict for table in self.tables for verdict in table.verdicts}

    @property
    def model_count(self) -> int:
        """How many finished models the rows have."""
        return sum(len(row.seeds) for row in self.rows.values())

    def to_markdown(self) -> str:
        """Return the whole report as Markdown: every table with its verdicts, fidelity and calibration, other models, notes."""
        models = "1 model" if self.model_count == 1 else f"{self.model_count} models"
        missing = sum(len(row.missing_seeds) for row in self.rows.values())
        parts = [f"# {self.dataset}: {models}" + (f", {missing} missing" if missing else "")]
        for table in self.tables:
            parts += [f"## {table.title}", markdown_table(header(self.task), self.cells(table))]
            parts += ["\n".join(f"* {verdict}" for verdict in table.verdicts)] if table.verdicts else []
            parts += [table.caption] if table.caption not in parts else []  # one legend for all tables that share it
        if self.fidelity.rows:
            parts += [f"## {self.fidelity.title}", markdown_table(fidelity_header(self.task), self.fidelity_cells()), self.fidelity.caption]
        if self.diversity.rows:
            parts += [f"## {self.diversity.title}", markdown_table(self.diversity_header(), self.diversity_cells()), self.diversity.caption]
        if self.why.rows:
            parts += [f"## {self.why.title}", markdown_table(why_header(self.task), self.why_cells())]
            parts += ["\n".join(f"* {line}" for line in lines)] if (lines := self.class_lines()) else []
            parts.append(self.why.caption)
        if self.others:
            parts += ["## Other models of the run", markdown_table(others_header(self.task), [model_cells(model) for model in self.others])]
        parts += [f"note: {note}" for note in self.notes]
        return "\n\n".join(parts) + "\n"

    def to_latex(self) -> str:
        """Return every table as a LaTeX ``table`` of the booktabs package, with its verdicts beneath as comments for the author."""
        parts = ["% \\usepackage{booktabs}"]
        for table in self.tables:
            caption = f"{self.dataset}. {table.title}. {table.caption}"
            parts.append(latex_table(caption, header(self.task), self.cells(table), (*map(str, table.verdicts), *self.notes)))
        if self.fidelity.rows:
            caption = f"{self.dataset}. {self.fidelity.title}. {self.fidelity.caption}"
            parts.append(latex_table(caption, fidelity_header(self.task), self.fidelity_cells(), self.notes))
        if self.diversity.rows:
            caption = f"{self.dataset}. {self.diversity.title}. {self.diversity.caption}"
            parts.append(latex_table(caption, self.diversity_header(), self.diversity_cells(), ()))
        if self.why.rows:
            caption = f"{self.dataset}. {self.why.title}. {self.why.caption}"
            parts.append(latex_table(caption, why_header(self.task), self.why_cells(), self.class_lines()))
        return "\n\n".join(parts) + "\n"

    def to_frame(self) -> "pandas.DataFrame":
        """Return a line for every row of every table, in plain numbers: accuracies and differences as shares, None where there is none."""
        import pandas

        return pandas.DataFrame([_frame_line(self.rows[name], table, self.task) for table in self.tables for name in table.rows])

    def to_csv(self) -> str:
        """Return ``to_frame`` as CSV, empty where there is no figure."""
        return str(self.to_frame().to_csv(index=False, lineterminator="\n"))

    def to_json(self) -> dict[str, Any]:
        """Return everything as one JSON value: the content of ``tables.json``."""
        return {
            "command": "tables",
            "dataset": self.dataset,
            **({} if self.task == "single-label" else {"task": self.task}),
            "run": str(self.run),
            "seeds": list(self.seeds),
            "rows": {name: json_of(row) for name, row in self.rows.items()},
            "tables": [table.to_json() for table in self.tables],
            "fidelity": json_of(self.fidelity),
            "diversity": {**json_of(self.diversity), "rows": [json_of(row) for row in self.diversity.rows]},
            "why": {**json_of(self.why), "rows": [_why_json(row) for row in self.why.rows]},
            "others": [json_of(model) for model in self.others],
            "missing": list(self.missing),
            "failed": dict(self.failed),
            "trained": list(self.trained),
            "notes": list(self.notes),
            "written": [str(self.run / f"tables.{kind}") for kind in _FILES],
            "complete": not self.failed,
        }

    def write(self) -> None:
        """Write ``tables.md``, ``.tex``, ``.csv`` and ``.json`` into the run, and ``attention.json`` where attention was compared."""
        write_text(self.run / "tables.md", self.to_markdown())
        write_text(self.run / "tables.tex", self.to_latex())
        write_text(self.run / "tables.csv", self.to_csv())
        write_json(self.run / "tables.json", self.to_json())
        record_attention(self.run, self.diversity.rows)

    def cells(self, table: ResultTable) -> list[tuple[str, ...]]:
        """Return the cells of a table's rows, under ``render.header``."""
        return [row_cells(self.rows[name], table, self.task) for name in table.rows]

    def fidelity_cells(self) -> list[tuple[str, ...]]:
        """Return the cells of fidelity and calibration, under ``render.fidelity_header``."""
        return [fidelity_cells(self.rows[name], self.task) for name in self.fidelity.rows]

    def diversity_header(self) -> tuple[str, ...]:
        """Return the header of the table of teachers of one kind."""
        return diversity_header(self.task, has_attention=any(row.attention for row in self.diversity.rows))

    def diversity_cells(self) -> list[tuple[str, ...]]:
        """Return the cells of teachers of one kind, under ``diversity_header``."""
        has_attention = any(row.attention for row in self.diversity.rows)
        return [diversity_cells(row, self.task, has_attention=has_attention) for row in self.diversity.rows]

    def why_cells(self) -> list[tuple[str, ...]]:
        """Return the cells of what students read and keep, under ``render.why_header``."""
        return [why_cells(row, self.task) for row in self.why.rows]

    def class_lines(self) -> list[str]:
        """Return for each row in which classes its teachers gain and lose most over their control; none for rows without one."""
        return [line for row in self.why.rows if (line := class_line(row))]


def _why_json(row: WhyRow) -> dict[str, Any]:
    return {**json_of(row), "classes": [json_of(one) for one in row.classes]}


def _frame_line(row: RowResult, table: ResultTable, task: Task) -> dict[str, Any]:
    line: dict[str, Any] = {"table": table.name, "row": row.row, "seeds": len(row.seeds), "missing": len(row.missing_seeds)}
    nothing = {"mean": None, "sd": None}
    for split, scores in (("validation", row.validation), ("test", row.test)):
        for metric in rules_of(task).metrics:
            spread = scores[metric] if scores else None
            line |= {f"{split}_{metric}_{what}": value for what, value in (asdict(spread) if spread else nothing).items()}
    line |= {"paper_test_accuracy": row.paper} if task == "single-label" else {}
    for side in ("baseline", "control"):
        finding = table.finding(row.row, control=side == "control")
        comparison = finding and finding.comparison
        low, high = (comparison and comparison.over_seeds) or (None, None)
        line |= {
            f"less_{side}": comparison and comparison.difference,
            f"less_{side}_low": comparison and comparison.low,
            f"less_{side}_high": comparison and comparison.high,
            f"less_{side}_seeds_low": low,
            f"less_{side}_seeds_high": high,
            f"p_{side}": comparison and comparison.pooled.p,
            f"holm_p_{side}": finding and finding.holm_p,
        }
    for figure in FIDELITY[task].figures:
        figures = (row.fidelity or {}).get(figure)
        line |= {f"test_{figure}_{what}": value for what, value in (asdict(figures) if figures else nothing).items()}
    return line | {"train_hours": row.train_hours, "peak_gb": row.peak_gb}


def table_report(
    run: Path, dataset: str, plan: TablePlan, found: FoundModels, outcome: Outcome, read: Callable[[Path], ScoredModel]
) -> TableReport:
    """Return the report of the finished models of a run; nothing is trained or written.

    Args:
        run: its folder.
        dataset: name of the corpus.
        plan: rows, tables and seeds.
        found: the finished models.
        outcome: what was trained for this report, and what failed.
        read: returns the finished model of a folder.

    Raises:
        InputError: there is no model to show, or the predictions of one are missing or damaged.
    """
    shown, seeds = plan.shown, plan.seeds
    every_row = {row.name: row for row in plan.rows}
    students = [row for row in shown.values() if row.command == "student"]
    compared = dict.fromkeys([*shown, *sorted(plan.references)])
    folders = found.every_folder
    models = {name: _models(name, folders, seeds, read) for name in (*compared, *needed_rows(students, every_row))}
    ensembles = [row for row in plan.rows if row.members > 1 and row.name in models]
    models |= {row.taught_by: _joint_teachers(row, folders, seeds, read) for row in ensembles}
    others = [read(folder) for folder in _others(plan, found)]
    if not others and not any(models[name] for name in shown):
        raise InputError(
            got=next(iter(outcome.failed.values()), f"no finished model of these rows in {run}"),
            expected="one at least",
            do="lower --learning-rate" if outcome.failed else "train them: leave --no-train out",
        )
    every_model = [*others, *(model for name in models for model in models[name].values())]
    task = _task(every_model, run)
    # The paper's models learn every train text.
    paper_dataset = None if any("shots" in model.metrics for model in every_model) else plan.paper_dataset
    # A row may stand in several tables: its findings are the same in all.
    findings = findings_of(list(shown.values()), models, seeds)
    fidelity = {
        model.folder: fidelity_figures(model, models[BASELINE].get(model.metrics["seed"]), read)
        for model in [*(model for name in shown for model in models[name].values()), *others]
    }
    return TableReport(
        dataset=dataset,
        run=run,
        seeds=tuple(seeds),
        rows={name: row_result(row, models[name], seeds, paper_dataset, fidelity) for name, row in shown.items()},
        tables=tuple(_table(group, plan, findings, task) for group in plan.tables),
        fidelity=FidelityTable(
            title=FIDELITY[task].title, caption=FIDELITY[task].caption, rows=tuple(name for name in shown if models[name])
        ),
        diversity=diversity_table(_of_one_kind(plan, found, read), plan.attend),
        why=why_table(students, every_row, models),
        others=tuple(model.result(fidelity[model.folder]) for model in others),
        missing=tuple(model_name(name, seed) for name in shown for seed in seeds if seed not in models[name]),
        failed=outcome.failed,
        trained=tuple(outcome.trained),
        notes=tuple(_notes({name: list(models[name].values()) for name in compared}, findings, outcome)),
        task=task,
    )


def _task(models: Sequence[ScoredModel], run: Path) -> Task:
    """Return the task of the models. Raises InputError if they have several, whose scores cannot stand in one table."""
    folders = {model.test.task: model.folder.name for model in models}
    if len(folders) > 1:
        several = ", ".join(f"{task} ({folder})" for task, folder in sorted(folders.items()))
        raise InputError(
            got=f"models of several tasks in {run}: {several}",
            expected="models of one task",
            do="leave --no-train out, or move those of one task to a run of their own (--run-dir)",
        )
    return next(iter(folders))


def _of_one_kind(plan: TablePlan, found: FoundModels, read: Callable[[Path], ScoredModel]) -> dict[str, list[list[ScoredModel]]]:
    """Return teachers that differ in their seeds alone: by row those over its seeds, by ensemble those of each of its students."""
    folders, groups = found.every_folder, {}
    for row in plan.shown.values():
        if row.command == "teacher":
            groups[row.name] = [list(_models(row.name, folders, plan.seeds, read).values())]
    for row in plan.shown.values():
        if row.members > 1:
            each = [PlannedModel(row=row, seed=seed).needs for seed in plan.seeds]
            groups[row.taught_by] = [[read(folders[name]) for name in names if name in folders] for names in each]
    return groups


def _models(row: str, folders: Mapping[str, Path], seeds: Sequence[int], read: Callable[[Path], ScoredModel]) -> dict[int, ScoredModel]:
    return {seed: read(folders[name]) for seed in seeds if (name := model_name(row, seed)) in folders}


def _joint_teachers(
    student: Row, folders: Mapping[str, Path], seeds: Sequence[int], read: Callable[[Path], ScoredModel]
) -> dict[int, ScoredModel]:
    """Return by seed what the teachers of an ensemble answer together, where all of them are there."""
    each = {seed: PlannedModel(row=student, seed=seed).needs for seed in seeds}
    return {seed: joint([read(folders[name]) for name in names]) for seed, names in each.items() if folders.keys() >= set(names)}


def _others(plan: TablePlan, found: FoundModels) -> list[Path]:
    """Return the folders of models that are of no row and seed of the plan."""
    hidden = {row.name for row in plan.rows if row.is_learnt} - plan.shown.keys()  # no table's name requests it
    names = {model_name(row.name, seed) for row in plan.rows if row.name not in hidden for seed in plan.seeds}
    return sorted({*found.others, *(folder for name, folder in found.folders.items() if name not in names)})


def _table(group: Group, plan: TablePlan, findings: Sequence[Finding], task: Task) -> ResultTable:
    names = tuple(row.name for row in plan.tables[group])
    has_vectors = any(row.privileged == "text" for row in plan.tables[group])
    return ResultTable(
        name=group,
        title=_CONTROLS_WITH_VECTORS if group == "controls" and has_vectors else TITLES[group],
        rows=names,
        findings=tuple(finding for finding in findings if finding.row in names),
        verdicts=verdicts(plan.tables[group], findings, list(plan.shown.values()), has_vectors=plan.has_vectors),
        caption=caption(len(plan.seeds), len(findings), task),
    )


def caption(seeds: int, comparisons: int, task: Task = "single-label") -> str:
    """Return what a reader must know about a table's figures."""
    over = "Mean ± sample standard deviation over seeds" if seeds > 1 else "One seed: how much results vary between seeds is unknown"
    cost = "Hours are the training time of one model, GB the most memory in use."
    if not comparisons:
        return f"{over}. {cost}"
    metric = rules_of(task).metrics[0]
    shown = "have a" if metric in PLAIN_NUMBERS else "are in points, with"
    interval = "95 % CI over draws of seeds and of test texts" if seeds > 1 else "95 % bootstrap CI over test texts"
    needed = "no 0 in this interval and in the bootstrap interval over test texts alone" if seeds > 1 else "no 0 in the interval"
    adjusted = f", Holm-Bonferroni adjusted for the {comparisons} comparisons of these tables" if comparisons > 1 else ""
    return (
        f"{over}. Differences in test {METRIC_NAMES[metric]} {shown} {interval}; p is "
        f"{_test_in_words(task, seeds)}{adjusted}. Better and worse need both p below 0.05 and {needed}. {LEGEND} {cost}"
    )


def _test_in_words(task: Task, seeds: int) -> str:
    if task == "single-label":
        return "McNemar's exact test" + (" of the counts of all seeds together, which share their test texts" if seeds > 1 else "")
    together = ", those of all seeds together" if seeds > 1 else ""
    return f"that of approximate randomization ({SWAPS:,} random swaps of both rows' answers to a text{together})"


def _notes(models: Mapping[str, Sequence[ScoredModel]], findings: Sequence[Finding], outcome: Outcome) -> list[str]:
    """Return what a reader must know besides: tokens without meaning, models that were trained with other settings than the rest,
    differences over fewer seeds than the means next to them, failures."""
    notes = sorted({model.metrics["notice"] for of_row in models.values() for model in of_row if model.metrics["notice"]})
    for what, values in differing_settings({name: [model.folder for model in of_row] for name, of_row in models.items()}).items():
        notes.append(f"{what}: {', '.join(map(str, values))}; this may explain differences between them")
    fewer = [
        f"{one.row} less {one.reference} over the seed{'s' * (len(one.comparison.seeds) > 1)} {', '.join(map(str, one.comparison.seeds))}"
        for one in findings
        if any(len(models[name]) > len(one.comparison.seeds) for name in (one.row, one.reference))
    ]
    if fewer:
        why = "these differences are over the seeds that both rows have on the same test texts, the means over all of a row's seeds"
        notes.append(f"{why}: {', '.join(fewer)}")
    undefined = [model.folder.name for of_row in models.values() for model in of_row if None in model.result({}).test.values()]
    if undefined:
        why = "Spearman and Pearson are undefined where all answers, or all labels, are equal, so these models are not compared"
        notes.append(f"{why}: {', '.join(undefined)}")
    return notes + [f"{name} is missing: {reason}" for name, reason in outcome.failed.items()]
