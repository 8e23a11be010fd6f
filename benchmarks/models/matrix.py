"""Does every architecture that transformers can classify texts with work as its library means it, or is it refused in one true line?

Each architecture is a process of its own, forked from one that has imported the libraries; its finished row is a file, so that a run that
was stopped continues.
"""

import multiprocessing
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from benchmarks.harness import finish
from benchmarks.models.page import write_page
from benchmarks.models.tiny_models import architectures
from lugpi_core.command_line import say
from lugpi_core.errors import InputError, nearest
from lugpi_core.files import make_folder, read_json, write_json
from lugpi_core.runtime.libraries import prepare_libraries

# One of each kind: encoder, encoder with a head of its own, decoder with and without padding token, encoder-decoder, characters.
SHORT = ("bert", "xlm-roberta", "qwen2", "gpt2", "t5", "canine")
PACKAGES = ("transformers", "tokenizers", "torch", "onnxruntime", "sentencepiece", "sacremoses", "rjieba")
# A tiny model takes seconds, on a busy machine minutes; one that hangs is a fault.
LONGEST_S = 1200
ROW, LOG = "row.json", "log.txt"


def measure(*, smoke: bool, record: bool, only: Sequence[str] = (), processes: int = 2, runs: Path | None = None) -> dict[str, Any]:
    """Return a row for each architecture, and how many work, are refused and are faults. A record also writes docs/models.md.

    Raises:
        InputError: ``only`` names what is no architecture, or a record would lack some.
    """
    prepare_libraries()
    known = architectures()
    for name in only:
        if name not in known:
            raise InputError(got=f"--only {name}", expected="a model type of transformers' sequence classifiers", do=nearest(name, known))
    if record and (smoke or only):
        raise InputError(got="--record with --smoke or --only", expected="a record of every architecture", do="leave one of them out")
    names = tuple(only) or (SHORT if smoke else tuple(known))
    with tempfile.TemporaryDirectory() as temporary:
        rows = [row | {"architecture": name} for name, row in _rows(names, known, runs or Path(temporary), processes)]
    rows.sort(key=lambda row: row["architecture"])
    faults = [row["architecture"] for row in rows if row["fault"] is not None]
    states = Counter("fault" if row["fault"] else "refused" if row["refused"] else "works" for row in rows)
    figures = {"architectures": len(rows), **states, "packages": _packages(), "rows": rows}
    result = finish("models", figures, record=record)
    if record:
        write_page(result)
    return result | {"complete": not faults}


def _rows(names: Sequence[str], known: dict[str, str], runs: Path, processes: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each architecture's row when it is finished."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.models.preload"])
    waiting, running = list(names), dict[str, tuple[BaseProcess, float]]()
    while waiting or running:
        while waiting and len(running) < processes:
            name = waiting.pop(0)
            folder = runs / name
            if (folder / ROW).is_file():
                yield name, read_json(folder / ROW)
                continue
            shutil.rmtree(folder, ignore_errors=True)
            make_folder(folder)
            process: BaseProcess = context.Process(target=travel_alone, args=(name, known[name], folder))
            process.start()
            running[name] = (process, time.monotonic())
        for name, (process, start_s) in list(running.items()):
            process.join(0.05)
            if process.is_alive() and time.monotonic() - start_s > LONGEST_S:
                process.kill()
                process.join()
                with (runs / name / LOG).open("a", encoding="utf-8") as log:
                    log.write(f"\nno answer within {LONGEST_S} s\n")
            if not process.is_alive():
                del running[name]
                yield name, _finished(name, known[name], runs / name)


def travel_alone(architecture: str, classifier: str, folder: Path) -> None:
    """Write an architecture's row to its folder; what is printed, a traceback too, goes to its log."""
    log = os.open(folder / LOG, os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    from benchmarks.models.journey import travel

    write_json(folder / ROW, asdict(travel(architecture, classifier, folder)))


def _finished(architecture: str, classifier: str, folder: Path) -> dict[str, Any]:
    """Return the row of a process that has ended. A fault's row is not kept, so that the next run tries again."""
    from benchmarks.models.journey import Row

    for name in ("model", "run"):
        shutil.rmtree(folder / name, ignore_errors=True)
    if (folder / ROW).is_file():
        row: dict[str, Any] = read_json(folder / ROW)
    else:
        lines = (folder / LOG).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        last = lines[-1] if lines else "a process that ended without a word"
        row = asdict(Row(architecture=architecture, classifier=classifier, fault=last[:300]))
    if row["fault"]:
        (folder / ROW).unlink(missing_ok=True)
    say(f"{architecture}: {row['fault'] or row['refused'] or row['export_refused'] or 'works'}")
    return row


def _packages() -> dict[str, str | None]:
    """Return the versions that decide the rows; None for an optional package that is missing."""
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return versions
