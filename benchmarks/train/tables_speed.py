"""How long do whole tables of the demo take, beside another checkout of lugpi? Wall and CPU seconds, and whether the accuracies agree.

Both train every row from the same token store, each time in a run of its own. The other checkout is for instance a worktree of git.
"""

import compileall
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import finish, median_ratio, medians, promise
from benchmarks.options import TablesOptions
from lugpi_core.command_line import say
from lugpi_core.errors import InputError
from lugpi_core.files import make_folder, read_json

TODAY, OTHER = "this checkout", "the other checkout"
CHECKOUT = Path(__file__).resolve().parents[2]
LEAST_FASTER = 1.5
_PACKAGES = ("lugpi_core", "train")
_TRAINING = ("--text-model", "demo", "--epochs", "10", "--learning-rate", "5e-4")
_SMOKE = ("--rows", "baseline", "--epochs", "1", "--max-length", "16")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One command: its wall and CPU seconds, those of its processes included, and the accuracy on the test split of each row."""

    wall_s: float
    cpu_s: float
    accuracies: Mapping[str, float]


def measure(options: TablesOptions) -> dict[str, Any]:
    """Return the seconds of both checkouts in every round, their ratio, and how far their accuracies differ.

    Raises:
        InputError: the other folder is no checkout, or a command failed.
    """
    other = options.against.resolve()
    if not (other / "train" / "__main__.py").is_file():
        do = "give a folder made by: git worktree add --detach FOLDER COMMIT"
        raise InputError(got=f"--against {options.against}", expected="another checkout of lugpi", do=do)
    checkouts = {TODAY: CHECKOUT, OTHER: other}
    for checkout in checkouts.values():
        for package in _PACKAGES:
            compileall.compile_dir(checkout / package, quiet=1)
    small = ("--limit", "60") if options.smoke else ()
    store = make_folder(options.runs.resolve()) / ("smoke" if options.smoke else "demo")
    drawing = ("--dataset", "demo", *small, "--generator", "demo", "--encoders", "demo", "--run-dir", str(store))
    run_from(CHECKOUT, ["featurize", *drawing])
    training = (*_TRAINING, *(_SMOKE if options.smoke else ()), "--seeds", str(1 if options.smoke else options.seeds))
    processes = () if options.processes is None else ("--processes", str(options.processes))
    found: dict[str, list[Measured]] = {name: [] for name in checkouts}
    for number in range(1 if options.smoke else options.rounds):
        for name, checkout in list(checkouts.items())[:: -1 if number % 2 else 1]:
            own = processes if name == TODAY else ()  # earlier commits have no such flag
            found[name].append(tables_of(checkout, store, ["--dataset", "demo", *small, *training, *own]))
            say(f"tables, round {number}, {name}: {found[name][-1].wall_s:.1f} s, CPU {found[name][-1].cpu_s:.1f} s")
    return finish("tables", figures_of(found) | {"settings": " ".join((*training, *processes))}, record=options.record)


def figures_of(found: Mapping[str, Sequence[Measured]]) -> dict[str, Any]:
    """Return what goes into the record: medians, ratios within a round, and the accuracies' differences."""
    wall = {name: [each.wall_s for each in rounds] for name, rounds in found.items()}
    cpu = {name: [each.cpu_s for each in rounds] for name, rounds in found.items()}
    ours, theirs = found[TODAY][0].accuracies, found[OTHER][0].accuracies
    both = sorted(ours.keys() & theirs.keys())
    difference = max((abs(ours[row] - theirs[row]) for row in both), default=0.0)
    faster = median_ratio(wall, OTHER, TODAY)
    figures: dict[str, Any] = {
        "seconds": medians(wall),
        "cpu_s": medians(cpu),
        "over": {"seconds": faster, "cpu_s": median_ratio(cpu, OTHER, TODAY)},
        "rows": len(both),
        "rows_of_one_checkout": sorted(ours.keys() ^ theirs.keys()),
        "rows_that_differ": [row for row in both if ours[row] != theirs[row]],
        "largest_difference": round(difference, 6),
        "promises": [
            promise(f"tables by {OTHER} over {TODAY}", faster, at_least=LEAST_FASTER),
            promise("difference of a row's accuracy", round(difference, 6), at_most=0.0),
        ],
    }
    say(f"tables: {figures['promises']}")
    return figures


def tables_of(checkout: Path, store: Path, arguments: Sequence[str]) -> Measured:
    """Train all tables from a copy of a run with a token store, by the code of a checkout; the copy is removed."""
    run = store.with_name(f"{store.name}-tables")
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(store, run)
    before, start_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    run_from(checkout, ["train", "tables", *arguments, "--run-dir", str(run.resolve())])
    wall_s, after = time.perf_counter() - start_s, resource.getrusage(resource.RUSAGE_CHILDREN)
    rows: dict[str, Any] = read_json(run / "tables.json")["rows"]
    shutil.rmtree(run)
    return Measured(
        wall_s=wall_s,
        cpu_s=after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime,
        accuracies={name: float(row["test"]["accuracy"]["mean"]) for name, row in rows.items()},
    )


def run_from(checkout: Path, arguments: Sequence[str]) -> None:
    """Run ``python -m`` with the packages of a checkout. Raises InputError if it failed."""
    paths = os.pathsep.join((str(checkout), *filter(None, sys.path)))
    command, environment = [sys.executable, "-m", *arguments], {**os.environ, "PYTHONPATH": paths}
    # ``python -m`` looks in the working folder first.
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(got=f"exit status {done.returncode}", expected="a command that succeeds", do=f"see: {done.stderr[-300:]}")
