"""The tutorial runs, every other documented command parses, links resolve, and the tables of results are those of their records."""

import contextlib
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lugpi_core import command_line
from tests.support.checkout import ROOT
from tests.support.pages import PAGES, Code, anchors_of, code_of, links_of, run, text_of

TUTORIAL = "docs/tutorial.md"
COMMANDS = [code for page in PAGES for code in code_of(page) if not code.is_python]
MAKE_TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
RECORDS = ROOT / "benchmarks" / "results"


def test_the_tutorial_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    for code in code_of(TUTORIAL):
        if code.is_python:
            with contextlib.redirect_stdout(None):
                exec(compile(code.text, f"{TUTORIAL}:{code.line}", "exec"), names)
            if not (tmp_path / "runs").exists():  # a third of its texts are enough to see that every command runs
                corpus = (tmp_path / "things.csv").read_text().splitlines(keepends=True)
                (tmp_path / "things.csv").write_text("".join([corpus[0], *corpus[1::3]]))
        elif code.words[0] != "make":
            assert run(code.words) == 0, code


@pytest.mark.parametrize("code", COMMANDS, ids=lambda code: f"{code.page}:{code.line}")
def test_a_documented_command_parses(code: Code, monkeypatch: pytest.MonkeyPatch) -> None:
    if code.words[0] == "make":
        assert set(code.words[1:]) <= MAKE_TARGETS
        return

    def parse_and_stop(*arguments: Any, parse: Any = command_line.parse, **keywords: Any) -> None:
        parse(*arguments, **keywords)  # None instead of its options ends the command, as --help does

    monkeypatch.setattr(command_line, "parse", parse_and_stop)
    assert run(code.words) == 0


def test_python_blocks_compile() -> None:
    for page in PAGES:
        for code in code_of(page):
            if code.is_python:
                compile(code.text, f"{page}:{code.line}", "exec")


@pytest.mark.parametrize("page", PAGES)
def test_links_resolve(page: str) -> None:
    for target in links_of(page):
        path, _, anchor = target.partition("#")
        if not re.match(r"https?:", target):
            linked = ((ROOT / page).parent / path).resolve() if path else ROOT / page
            assert linked.exists(), target
            assert not anchor or anchor in anchors_of(linked.relative_to(ROOT).as_posix()), target


def test_every_page_and_every_record_is_linked() -> None:
    assert {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"} <= set(links_of("docs/README.md"))
    pages = "".join(map(text_of, PAGES))
    assert [path.name for path in RECORDS.glob("*.json") if f"benchmarks/results/{path.name}" not in pages] == []


def result_rows() -> Iterator[tuple[str, str, list[str]]]:
    """Yield record, model and cells of each row of the tables in docs/results.md that follow a link to a record."""
    record = ""
    for line in text_of("docs/results.md").splitlines():
        if link := re.search(r"results/([\w.-]+\.json)", line):
            record = link[1]
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if record and len(cells) == 6 and (model := re.search(r"\(`([\w-]+)`\)", cells[0])):
            yield record, model[1], cells[1:]


def test_the_tables_of_results_match_their_records() -> None:
    rows = list(result_rows())
    assert {record for record, _, _ in rows} == {path.name for path in RECORDS.glob("*.json") if path.name.startswith(("demo", "real"))}
    for record, model, (accuracy, *compared) in rows:
        figures = json.loads((RECORDS / record).read_text(encoding="utf-8"))["figures"]
        over_seeds = figures["rows"][model]["test"]["accuracy"]
        assert accuracy == f"{over_seeds['mean']:.3f} ± {over_seeds['sd']:.3f}", (record, model)
        comparisons = {one["reference"]: one for table in figures["tables"] for one in table["comparisons"] if one["row"] == model}
        baseline = comparisons.pop("baseline", None)
        for comparison, difference, p in ((baseline, *compared[:2]), (next(iter(comparisons.values()), None), *compared[2:])):
            if difference:
                values = [100 * value for value in (comparison["difference"], *comparison["interval_over_seeds"])]
                assert difference == "{:+.1f} [{:+.1f}, {:+.1f}]".format(*values), (record, model)
                assert math.isclose(float(p.strip("< ")), comparison["holm_p"], rel_tol=0.34, abs_tol=1e-300), (record, model)
