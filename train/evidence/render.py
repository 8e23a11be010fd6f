"""The cells of a report's tables, and tables as LaTeX."""

import re
from collections.abc import Sequence

from train.evidence.fidelity import FIGURES
from train.evidence.records import Finding, ModelResult, ResultTable, RowResult, Spread, p_text, points

HEADER = ("row", "seeds", "validation", "test", "macro-F1", "paper", "- baseline", "p", "- text only", "p", "hours", "GB")
OTHERS_HEADER = ("model", "seed", "validation", "test", "macro-F1", "hours", "GB")
FIDELITY_HEADER = ("row", "ECE", "NLL", "agreement", "churn", "improved", "worsened")
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


def row_cells(row: RowResult, table: ResultTable) -> tuple[str, ...]:
    """Return the cells of a row in a table, under HEADER."""
    finished, missing = len(row.seeds), len(row.missing_seeds)
    seeds = f"{finished} of {finished + missing}" if missing else str(finished)
    if row.validation is None or row.test is None:
        return (row.row, seeds, "missing", "missing", "missing", _number(row.paper, 3), "", "", "", "", "", "")
    scores = (_with_sd(row.validation.accuracy), _with_sd(row.test.accuracy), _with_sd(row.test.macro_f1))
    differences = [cell for control in (False, True) for cell in _finding_cells(table.finding(row.row, control=control))]
    return (row.row, seeds, *scores, _number(row.paper, 3), *differences, _number(row.train_hours, 3), _number(row.peak_gb, 2))


def fidelity_cells(row: RowResult) -> tuple[str, ...]:
    """Return the cells of a row with models under FIDELITY_HEADER: empty where there is no figure."""
    fidelity = row.fidelity or {}
    return (row.row, *(_with_sd(spread) if (spread := fidelity[figure]) else "" for figure in FIGURES))


def model_cells(model: ModelResult) -> tuple[str, ...]:
    """Return the cells of one model under OTHERS_HEADER."""
    scores = (f"{score:.4f}" for score in (model.validation.accuracy, model.test.accuracy, model.test.macro_f1))
    return (model.folder, str(model.seed), *scores, f"{model.train_s / 3600:.3f}", f"{model.peak_bytes / 1e9:.2f}")


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
    low, high = map(points, finding.comparison.interval)
    return f"{points(finding.comparison.difference)} [{low}, {high}]", p_text(finding.holm_p)


def _with_sd(spread: Spread) -> str:
    return f"{spread.mean:.4f}" + ("" if spread.sd is None else f" ± {spread.sd:.4f}")


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
