"""A report of tables as Markdown, LaTeX and CSV. The report is
the JSON value that ``train.evidence.tables`` makes; nothing is counted here."""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

from train.evidence.fidelity import FIGURES
from train.evidence.verdicts import p_words, points
from train.models.predictions import markdown_table

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
# A sign, not the hyphen of a name or of an exponent.
MINUS = re.compile(r"(?<![\w-])-(?=[\d ])")
_SCORES = ("accuracy", "macro_f1")
_SIDES = ("baseline", "control")


def markdown(report: Mapping[str, Any]) -> str:
    """Return the whole report as Markdown: every table with its verdicts, fidelity and calibration, other models, notes."""
    parts = [f"# {report['dataset']}: {_models(report)}"]
    for table in report["tables"]:
        parts += [f"## {table['title']}", markdown_table(HEADER, table_cells(report, table)), table["caption"]]
        parts += ["\n".join(f"* {sentence}" for sentence in table["verdicts"])] if table["verdicts"] else []
    if report["fidelity"]["rows"]:
        fidelity = report["fidelity"]
        parts += [f"## {fidelity['title']}", markdown_table(FIDELITY_HEADER, fidelity_cells(report)), fidelity["caption"]]
    if report["others"]:
        parts += ["## Other models of the run", markdown_table(OTHERS_HEADER, [other_cells(one) for one in report["others"]])]
    parts += [f"note: {note}" for note in report["notes"]]
    return "\n\n".join(parts) + "\n"


def latex(report: Mapping[str, Any]) -> str:
    """Return every table as a LaTeX ``table`` of the booktabs package, with its verdicts beneath as comments for the author."""
    parts = ["% \\usepackage{booktabs}"]
    for table in report["tables"]:
        comments = (*table["verdicts"], *report["notes"])
        parts.append(
            _latex_table(f"{report['dataset']}. {table['title']}. {table['caption']}", HEADER, table_cells(report, table), comments)
        )
    if report["fidelity"]["rows"]:
        fidelity = report["fidelity"]
        caption = f"{report['dataset']}. {fidelity['title']}. {fidelity['caption']}"
        parts.append(_latex_table(caption, FIDELITY_HEADER, fidelity_cells(report), report["notes"]))
    return "\n\n".join(parts) + "\n"


def _latex_table(caption: str, header: Sequence[str], rows: Sequence[Sequence[str]], comments: Sequence[str]) -> str:
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escaped(caption)}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
        r"\toprule",
        _latex_line(header),
        r"\midrule",
        *map(_latex_line, rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
        *(f"% {sentence}" for sentence in comments),
    ]
    return "\n".join(lines)


def comma_separated(report: Mapping[str, Any]) -> str:
    """Return a CSV line for every row of every table, in plain numbers: accuracies and differences as shares, empty where there is none."""
    lines = [_flat(report, table, name) for table in report["tables"] for name in table["rows"]]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def escaped(text: str) -> str:
    """Return a text as LaTeX shows it; every letter that means something to LaTeX is written out."""
    return "".join(_ESCAPES.get(letter, letter) for letter in text)


def table_cells(report: Mapping[str, Any], table: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the cells of a table's rows as they are shown, under HEADER."""
    return [_cells(report["rows"][name], _tests_of(table, name)) for name in table["rows"]]


def fidelity_cells(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the cells of fidelity and calibration as they are shown, under FIDELITY_HEADER: empty where there is no figure."""
    rows = ((name, report["rows"][name]["fidelity"]) for name in report["fidelity"]["rows"])
    return [(name, *("" if row[figure] is None else _with_spread(row[figure]) for figure in FIGURES)) for name, row in rows]


def _cells(row: Mapping[str, Any], tests: Mapping[str, Mapping[str, Any] | None]) -> tuple[str, ...]:
    there, missing = len(row["seeds"]), len(row["missing_seeds"])
    seeds = str(there) if not missing else f"{there} of {there + missing}"
    if not there:
        return (row["row"], seeds, "missing", "missing", "missing", _figure(row["paper"], 3), "", "", "", "", "", "")
    shown = [_with_spread(row[split][score]) for split, score in (("validation", "accuracy"), ("test", "accuracy"), ("test", "macro_f1"))]
    sides = [cell for side in _SIDES for cell in _test_cells(tests[side])]
    return (row["row"], seeds, *shown, _figure(row["paper"], 3), *sides, _figure(row["train_hours"], 3), _figure(row["peak_gb"], 2))


def _test_cells(test: Mapping[str, Any] | None) -> tuple[str, str]:
    if test is None:
        return "", ""
    low, high = test["interval_over_seeds"] or test["interval"]
    return f"{points(test['difference'])} [{points(low)}, {points(high)}]", p_words(test["holm_p"])


def _tests_of(table: Mapping[str, Any], row: str) -> dict[str, Mapping[str, Any] | None]:
    found: dict[str, Mapping[str, Any] | None] = dict.fromkeys(_SIDES)
    for test in table["comparisons"]:
        if test["row"] == row:
            found["baseline" if test["reference"] == "baseline" else "control"] = test
    return found


def _flat(report: Mapping[str, Any], table: Mapping[str, Any], name: str) -> dict[str, Any]:
    row = report["rows"][name]
    flat: dict[str, Any] = {"table": table["name"], "row": name, "seeds": len(row["seeds"]), "missing": len(row["missing_seeds"])}
    for split in ("validation", "test"):
        for score in _SCORES:
            found = row[split][score] if row[split] else {"mean": None, "sd": None}
            flat |= {f"{split}_{score}_mean": found["mean"], f"{split}_{score}_sd": found["sd"]}
    flat |= {"paper_test_accuracy": row["paper"]}
    for side, test in _tests_of(table, name).items():
        low, high = test["interval"] if test else (None, None)
        flat |= {f"less_{side}": test["difference"] if test else None, f"less_{side}_low": low, f"less_{side}_high": high}
        low, high = (test and test["interval_over_seeds"]) or (None, None)
        flat |= {f"less_{side}_seeds_low": low, f"less_{side}_seeds_high": high}
        flat |= {f"p_{side}": test["pooled"]["p"] if test else None, f"holm_p_{side}": test["holm_p"] if test else None}
    for figure in FIGURES:
        found = (row["fidelity"] or {}).get(figure) or {"mean": None, "sd": None}
        flat |= {f"test_{figure}_mean": found["mean"], f"test_{figure}_sd": found["sd"]}
    return flat | {"train_hours": row["train_hours"], "peak_gb": row["peak_gb"]}


def _models(report: Mapping[str, Any]) -> str:
    count = sum(len(row["seeds"]) for row in report["rows"].values())
    missing = sum(len(row["missing_seeds"]) for row in report["rows"].values())
    return f"{count} models" + (f", {missing} missing" if missing else "")


def other_cells(one: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the cells of a model that is of no row, under OTHERS_HEADER."""
    scores = [f"{value:.4f}" for value in (one["validation"]["accuracy"], one["test"]["accuracy"], one["test"]["macro_f1"])]
    return (one["folder"], str(one["seed"]), *scores, f"{one['train_s'] / 3600:.3f}", f"{one['peak_bytes'] / 1e9:.2f}")


def _latex_line(cells: Sequence[str]) -> str:
    return " & ".join(MINUS.sub("$-$", escaped(cell)) for cell in cells) + r" \\"


def _with_spread(found: Mapping[str, float | None]) -> str:
    spread = "" if found["sd"] is None else f" ± {found['sd']:.4f}"
    return f"{found['mean']:.4f}{spread}"


def _figure(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
