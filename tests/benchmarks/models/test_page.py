"""docs/models.md is its record, and the record has every architecture of its version of transformers."""

import json
from importlib.metadata import version
from typing import Any

import pytest

from benchmarks.harness import RESULTS
from benchmarks.models.page import PAGE, page_of
from benchmarks.models.tiny_models import architectures

RECORDS = sorted(RESULTS.glob("models_*.json"), key=lambda path: path.stem.rpartition("_")[2])


def row(name: str, **more: Any) -> dict[str, Any]:
    named = {"architecture": name, "classifier": f"{name}ForSequenceClassification", "tokenizer": "Tokenizer, BPE"}
    return named | dict.fromkeys(("refused", "evaluated", "batched", "exported", "export_refused", "fault")) | more


def test_a_row_says_works_or_refused_why() -> None:
    rows = [
        row("bert", evaluated=1e-7, batched=2e-7, exported=1e-6),
        row("fnet", evaluated=1e-7, batched=0.4, export_refused="got a|b; expected c; do d"),
        row("tapas", refused="baseline: got a <table>; expected texts; do e"),
        row("broken", fault="IndexError: index"),
    ]
    figures = {"architectures": 4, "works": 2, "refused": 1, "fault": 1, "packages": {"torch": "2.13.0", "rjieba": None}, "rows": rows}
    page = page_of({"figures": figures, "recorded": "models.json", "provenance": {"made_at": "2026-11-29T10:00:00Z"}})
    assert "2026-11-29" in page
    assert "torch 2.13.0." in page
    assert page.splitlines()[-4:] == [
        "| `bert` | Tokenizer, BPE | works | equal | works |",
        "| `fnet` | Tokenizer, BPE | works | 0.4 | refused: got a\\|b; expected c; do d |",
        "| `tapas` | Tokenizer, BPE | refused by baseline: got a &lt;table>; expected texts; do e |  |  |",
        "| `broken` | Tokenizer, BPE | **fault**: IndexError: index |  |  |",
    ]


def test_the_page_is_there_if_there_is_a_record() -> None:
    assert PAGE.is_file() == bool(RECORDS)


@pytest.mark.parametrize("path", RECORDS[-1:], ids=lambda path: path.name)
def test_the_page_is_its_newest_record(path: Any) -> None:
    record = json.loads(path.read_text(encoding="utf-8"))
    assert PAGE.read_text(encoding="utf-8") == page_of(record | {"recorded": path.name})
    rows = record["figures"]["rows"]
    assert [one["architecture"] for one in rows if one["fault"]] == []
    if record["figures"]["packages"]["transformers"] == version("transformers"):
        assert [one["architecture"] for one in rows] == sorted(architectures())
