"""The benchmark of whole tables: which checkout runs, from which store, and what is compared."""

from collections.abc import Sequence
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.options import TablesOptions
from benchmarks.train import tables_speed
from benchmarks.train.tables_speed import CHECKOUT, OTHER, TODAY, Measured, figures_of, measure
from lugpi_core.errors import InputError
from lugpi_core.files import write_json


def test_the_accuracies_of_both_checkouts_are_compared() -> None:
    ours = [Measured(wall_s=seconds, cpu_s=2.0, accuracies={"baseline": 0.5, "new": 0.1}) for seconds in (1.0, 2.0, 3.0)]
    theirs = [Measured(wall_s=seconds, cpu_s=3.0, accuracies={"baseline": 0.25}) for seconds in (2.0, 3.0, 9.0)]
    figures = figures_of({TODAY: ours, OTHER: theirs})
    assert figures["over"] == {"seconds": 2.0, "cpu_s": 1.5}
    assert (figures["rows"], figures["rows_that_differ"], figures["rows_of_one_checkout"]) == (1, ["baseline"], ["new"])
    assert [promise["met"] for promise in figures["promises"]] == [True, False]


def test_each_round_starts_from_the_same_store_in_alternating_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other" / "train").mkdir(parents=True)
    (tmp_path / "other" / "train" / "__main__.py").touch()
    ran: list[tuple[bool, str, bool]] = []

    def run_from(checkout: Path, arguments: Sequence[str]) -> None:
        run = Path(arguments[arguments.index("--run-dir") + 1])
        if arguments[0] == "featurize":
            (run / "tokens").mkdir(parents=True)
            return
        ran.append((checkout == CHECKOUT, " ".join(arguments[:2]), "--processes" in arguments))
        assert [path.name for path in run.iterdir()] == ["tokens"], "no model of an earlier round"
        write_json(run / "tables.json", {"rows": {"baseline": {"test": {"accuracy": {"mean": 0.5}}}}})

    clock = count()
    monkeypatch.setattr(tables_speed.resource, "getrusage", lambda _: SimpleNamespace(ru_utime=next(clock), ru_stime=0))
    monkeypatch.setattr(tables_speed, "run_from", run_from)
    monkeypatch.setattr(tables_speed.compileall, "compile_dir", lambda *_, **__: True)
    figures = measure(TablesOptions(against=tmp_path / "other", rounds=2, processes=2, runs=tmp_path / "runs"))["figures"]
    ours, theirs = (True, "train tables", True), (False, "train tables", False)
    assert ran == [ours, theirs, theirs, ours]
    assert figures["largest_difference"] == 0.0


def test_a_folder_that_is_no_checkout_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected another checkout of lugpi; give a folder made by: git worktree add"):
        measure(TablesOptions(against=tmp_path))


def test_each_checkout_runs_its_own_code(tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "train").mkdir(parents=True)
    (other / "train" / "__init__.py").touch()
    (other / "train" / "__main__.py").write_text("import sys; sys.exit('the code of the other checkout')")
    with pytest.raises(InputError, match="the code of the other checkout"):
        tables_speed.run_from(other, ["train"])
