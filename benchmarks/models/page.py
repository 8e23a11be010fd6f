"""docs/models.md: the record of all architectures as a page."""

from collections.abc import Mapping
from typing import Any

from benchmarks.harness import RESULTS
from lugpi_core.files import write_text

PAGE = RESULTS.parents[1] / "docs" / "models.md"
_EQUAL = 1e-6
_HEAD = """# Which text models work

`python -m benchmarks models --record` wrote this page{when}, from [this record](../benchmarks/results/{recorded}).
It builds a tiny random model of every architecture in transformers' sequence-classification mapping, with that architecture's own kind of
tokenizer, and takes it through `train baseline`, `teacher`, `student`, `evaluate` and `onnx`, each in two steps of training. Then a plain
`transformers.pipeline` reads the same texts: each alone, in batches of four, and one that is longer than the model reads.

* **works**: `train evaluate` and the pipeline that reads each text alone give the same probabilities to 1e-6, and onnxruntime the
  same logits as torch to 1e-4, for one text and for several, of any length. Where the library's own answers in a batch move by rounding,
  by 1e-5 at most, `evaluate`, which reads batches, may differ by twice that.
* **refused**: a command ends with that one line; nothing else happens.
* *in a batch*: how far the library's own answers move when it reads four texts at once; "equal" is below 1e-6.

Of {architectures} architectures {works} work and {refused} are refused. Versions: {packages}.

| architecture | tokenizer | result | in a batch | ONNX |
|---|---|---|---|---|
"""


def write_page(result: Mapping[str, Any]) -> None:
    """Write docs/models.md from a record."""
    write_text(PAGE, page_of(result))


def page_of(result: Mapping[str, Any]) -> str:
    """Return the page of a record.

    Args:
        result: what ``finish`` returned, with the name of the record as ``recorded``.
    """
    figures = result["figures"]
    head = _HEAD.format(
        when=f" on {result['provenance']['made_at'][:10]}",
        recorded=result["recorded"],
        architectures=figures["architectures"],
        works=figures.get("works", 0),
        refused=figures.get("refused", 0),
        packages=", ".join(f"{name} {version}" for name, version in figures["packages"].items() if version),
    )
    return head + "".join(f"{_line(row)}\n" for row in figures["rows"])


def _line(row: Mapping[str, Any]) -> str:
    if row["fault"]:
        cells = (f"**fault**: {row['fault']}", "", "")
    elif row["refused"]:
        cells = (f"refused by {row['refused']}", "", "")
    else:
        batched = "equal" if row["batched"] <= _EQUAL else f"{row['batched']:g}"
        cells = ("works", batched, "works" if row["export_refused"] is None else f"refused: {row['export_refused']}")
    return " | ".join(("", f"`{row['architecture']}`", row["tokenizer"], *map(_escaped, cells), "")).strip()


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|").replace("<", "&lt;")
