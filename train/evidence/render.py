"""The cells of a report's tables, and tables as LaTeX."""

import re
from collections.abc import Sequence

from lugpi_core.corpora.options import Task
from train.evidence.fidelity import FIDELITY, OF_ANY_SIZE
from train.evidence.records import (
    UNDEFINED,
    ClassGain,
    DiversityRow,
    Finding,
    ModelResult,
    ResultTable,
    RowResult,
    Spread,
    WhyRow,
    difference_text,
    p_text,
)
from train.learning.task_rules import METRIC_NAMES, plain_number, rules_of

SHOWN_CLASSES = 3
_ESCAPES = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
}
# The hyphen that stands for a minus sign, not one of a name or an exponent.
MINUS = re.compile(r"(?<![\w-])-(?=[\d ])")


def header(task: Task) -> tuple[str, ...]:
    """Return the header of the tables: the primary metric of both splits, and the others of the test split."""
    paper = ("paper",) if task == "single-label" else ()
    return ("row", "seeds", *_score_header(task), *paper, "- baseline", "p", "- text only", "p", "hours", "GB")


def others_header(task: Task) -> tuple[str, ...]:
    """Return the header of the table of models that belong to no row."""
    return ("model", "seed", *_score_header(task), "hours", "GB")


def fidelity_header(task: Task) -> tuple[str, ...]:
    """Return the header of the table of fidelity and calibration."""
    return ("row", *FIDELITY[task].headings)


def _score_header(task: Task) -> tuple[str, ...]:
    primary, *others = (METRIC_NAMES[metric] for metric in rules_of(task).metrics)
    of = "" if task == "single-label" else f" {primary}"  # the captions name accuracy
    return (f"validation{of}", f"test{of}", *others)


def row_cells(row: RowResult, table: ResultTable, task: Task) -> tuple[str, ...]:
    """Return the cells of a row in a table, under ``header``."""
    finished, missing = len(row.seeds), len(row.missing_seeds)
    seeds = f"{finished} of {finished + missing}" if missing else str(finished)
    paper = (_number(row.paper, 3),) if task == "single-label" else ()
    if row.validation is None or row.test is None:
        return (row.row, seeds, *(len(_score_header(task)) * ["missing"]), *paper, "", "", "", "", "", "")
    primary, *others = rules_of(task).metrics
    scores = [(row.validation, primary), (row.test, primary), *((row.test, metric) for metric in others)]
    cells = [UNDEFINED if (spread := of_split[metric]) is None else _with_sd(spread, metric) for of_split, metric in scores]
    differences = [cell for control in (False, True) for cell in _finding_cells(table.finding(row.row, control=control))]
    return (row.row, seeds, *cells, *paper, *differences, _number(row.train_hours, 3), _number(row.peak_gb, 2))


def fidelity_cells(row: RowResult, task: Task) -> tuple[str, ...]:
    """Return the cells of a row with models under ``fidelity_header``: empty where there is no figure."""
    fidelity = row.fidelity or {}
    return (row.row, *(_with_sd(spread, figure) if (spread := fidelity[figure]) else "" for figure in FIDELITY[task].figures))


def model_cells(model: ModelResult) -> tuple[str, ...]:
    """Return the cells of one model under ``others_header``."""
    (primary, test), *others = model.test.items()
    scores = [(primary, model.validation[primary]), (primary, test), *others]
    cells = (UNDEFINED if score is None else _score(score, metric) for metric, score in scores)
    return (model.folder, str(model.seed), *cells, f"{model.train_s / 3600:.3f}", f"{model.peak_bytes / 1e9:.2f}")


def why_header(task: Task) -> tuple[str, ...]:
    """Return the header of the table of what students read of their teachers and keep of their gains."""
    metric = METRIC_NAMES[rules_of(task).metrics[0]]
    sure = () if task == "regression" else ("sure",)
    train, test = (tuple(f"{what} on {split}" for what in (f"teachers' {metric}", *sure)) for split in ("train", "test"))
    return ("students", *train, *test, "teachers' gain", "students' gain", "carried")


def why_cells(row: WhyRow, task: Task) -> tuple[str, ...]:
    """Return the cells of a row under ``why_header``: empty where there is no figure."""
    metric = rules_of(task).metrics[0]
    cells: list[str] = [row.row]
    for one in (row.train, row.test):
        cells.append("" if one is None or one.score is None else _score(one.score, metric))
        cells += [] if task == "regression" else [_number(None if one is None else one.confidence, 4)]
    cells += ["" if gain is None else difference_text(gain, metric) for gain in (row.teacher_gain, row.student_gain)]
    between = f" [{row.interval[0]:.2f}, {row.interval[1]:.2f}]" if row.interval else ""
    return (*cells, "" if row.carried is None else f"{row.carried:.2f}{between}")


def diversity_header(task: Task, *, has_attention: bool) -> tuple[str, ...]:
    """Return the header of the table of teachers of one kind."""
    metric = METRIC_NAMES[rules_of(task).metrics[0]]
    attention = ("attention IoU", "by chance", "attention on images") if has_attention else ()
    return ("row", "teachers", f"{metric} of one", "of all together", "agreement of two", "with all", *attention)


def diversity_cells(row: DiversityRow, task: Task, *, has_attention: bool) -> tuple[str, ...]:
    """Return the cells of a row under ``diversity_header``: empty where there is no figure."""
    metric = rules_of(task).metrics[0]
    figures = ["" if value is None else _score(value, metric) for value in (row.score, row.together, row.agreement, row.with_all)]
    seen = row.attention
    attention = ["", "", ""] if seen is None else [f"{value:.4f}" for value in (seen.iou, seen.chance, seen.on_images)]
    return (row.row, str(row.teachers), *figures, *(attention if has_attention else []))


def class_line(row: WhyRow) -> str:
    """Return in words in which classes a row's teachers gain most and lose most, and what of it their students have; empty where that is
    not known."""
    if not row.classes:
        return ""

    def in_words(one: ClassGain) -> str:
        teacher, student = (difference_text(gain, "accuracy") for gain in (one.teacher, one.student))
        return f"{one.name} {teacher} (students {student})"

    gains = [in_words(one) for one in row.classes if one.teacher > 0][:SHOWN_CLASSES]
    losses = [in_words(one) for one in reversed(row.classes) if one.teacher < 0][:SHOWN_CLASSES]
    parts = [f"{what} {', '.join(of_kind)}" for what, of_kind in (("gain most in", gains), ("lose most in", losses)) if of_kind]
    return f"{row.row}: its teachers {'; '.join(parts)}; in points of each class's test texts." if parts else ""


def latex_table(caption: str, header: Sequence[str], rows: Sequence[Sequence[str]], comments: Sequence[str]) -> str:
    """Return a ``table`` of the booktabs package, with comments for the author beneath."""
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{latex_escaped(caption)}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
        r"\toprule",
        _latex_line(header),
        r"\midrule",
        *map(_latex_line, rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
        *(f"% {comment}" for comment in comments),
    ]
    return "\n".join(lines)


def latex_escaped(text: str) -> str:
    """Return a text in which every letter that means something to LaTeX is escaped."""
    return "".join(_ESCAPES.get(letter, letter) for letter in text)


def _latex_line(cells: Sequence[str]) -> str:
    return " & ".join(MINUS.sub("$-$", latex_escaped(cell)) for cell in cells) + r" \\"


def _finding_cells(finding: Finding | None) -> tuple[str, str]:
    if finding is None:
        return "", ""
    comparison = finding.comparison
    difference, low, high = (difference_text(value, comparison.metric) for value in (comparison.difference, *comparison.interval))
    return f"{difference} [{low}, {high}]", p_text(finding.holm_p)


def _with_sd(spread: Spread, name: str) -> str:
    return _score(spread.mean, name) + ("" if spread.sd is None else f" ± {_score(spread.sd, name)}")


def _score(value: float, name: str) -> str:
    """Return four decimals, or four digits of what depends on the unit of a regression's numbers."""
    return plain_number(value) if name in OF_ANY_SIZE else f"{value:.4f}"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
