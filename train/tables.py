"""The models of a run side by side, from their recorded metrics and predictions."""

from pathlib import Path
from typing import Any

from lugpi_core.errors import InputError
from lugpi_core.files import read_json
from train.metrics import PREDICTIONS, markdown_table, mcnemar, read_hits
from train.model_folder import METRICS
from train.options import TablesOptions

_ORDER = ("baseline", "images", "teacher", "student")
HEADER = ("model", "validation", "test", "macro-F1", "test - baseline", "p (McNemar)", "train s")


def tables(options: TablesOptions) -> dict[str, Any]:
    """Print a Markdown table of every finished model in the run; return its rows.

    Raises:
        InputError: the run has no finished model.
    """
    folders = sorted((path.parent for path in options.run.glob(f"*/{METRICS}")), key=_place)
    if not folders:
        raise InputError(
            got=f"no finished model in {options.run}",
            expected="at least one",
            do=f"run python -m train baseline --dataset {options.dataset}",
        )
    rows = [_row(folder, options.run / "baseline") for folder in folders]
    print(markdown_table(HEADER, [_shown(row) for row in rows]))
    notices = sorted({row["notice"] for row in rows if row["notice"]})
    for notice in notices:
        print(f"\nnote: {notice}")
    return {"command": "tables", "dataset": read_json(folders[0] / METRICS)["dataset"], "run": str(options.run), "rows": rows}


def _place(folder: Path) -> tuple[int, str]:
    kind = read_json(folder / METRICS)["command"]
    return _ORDER.index(kind), folder.name


def _row(folder: Path, baseline: Path) -> dict[str, Any]:
    metrics = read_json(folder / METRICS)
    row = {
        "model": folder.name,
        "validation": metrics["accuracy"]["validation"],
        "test": metrics["accuracy"]["test"],
        "macro_f1": metrics["macro_f1"]["test"],
        "train_s": round(sum(record["seconds"] for record in metrics["history"]), 3),
        "notice": metrics["notice"],
        "against_baseline": None,
    }
    if folder != baseline and (baseline / METRICS).is_file():
        row["against_baseline"] = _against(folder, baseline)
    return row


def _against(folder: Path, baseline: Path) -> dict[str, Any] | None:
    (ids, hits), (baseline_ids, baseline_hits) = (read_hits(path / PREDICTIONS, "test") for path in (folder, baseline))
    if ids != baseline_ids:
        return None  # the two were trained on different examples: there is nothing to pair
    return mcnemar(hits, baseline_hits)


def _shown(row: dict[str, Any]) -> tuple[str, ...]:
    against = row["against_baseline"]
    gain = p = ""
    if against is not None:
        gain = f"{against['only_first'] - against['only_second']:+d} texts"
        p = f"{against['p']:.3g}"
    return (row["model"], f"{row['validation']:.4f}", f"{row['test']:.4f}", f"{row['macro_f1']:.4f}", gain, p, f"{row['train_s']:.0f}")
