"""How time and memory grow from a hundred thousand texts to a million, stage by stage."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.harness import finish, promise
from benchmarks.scale.many_texts import write_texts
from benchmarks.scale.stages import STAGES
from lugpi_core.command_line import say
from lugpi_core.errors import InputError, nearest

# Texts of the file that loads everything: more than any stage holds at once as Python objects, so that these do not count as growth.
FEW, SMOKE = 10_000, 100
REQUIRED_LINEAR = 0.15
REQUIRED_MEMORY = 2.0


def measure(*, smoke: bool, record: bool, texts: int = 1_000_000, stages: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return seconds and memory of every stage at both sizes, and which promises hold. Writes some hundred bytes a text to $TMPDIR.

    Memory is the peak of the resident set above that after the stage has been run on ten thousand texts, when everything is imported and
    loaded. Time is the processor's in the second run, because other programs may run meanwhile.
    """
    for name in stages:
        if name not in STAGES:
            raise InputError(got=f"--stages {name}", expected=f"some of {', '.join(STAGES)}", do=nearest(name, list(STAGES)))
    figures: dict[str, Any] = {"stages": {}}
    few, small, large = (SMOKE, 2 * SMOKE, 4 * SMOKE) if smoke else (FEW, texts // 10, texts)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = {rows: folder / f"texts-{rows}.csv" for rows in (few, small, large)}
        bytes_of = {rows: write_texts(path, rows) for rows, path in files.items()}
        figures["files"] = {str(rows): size for rows, size in bytes_of.items()}
        for stage in stages or (("read", "examples.h5", "token ids", "batches") if smoke else tuple(STAGES)):
            runs = {rows: _in_a_process(stage, files[few], files[rows], folder) for rows in (small, large)}
            figures["stages"][stage] = {str(rows): run | {"memory": growth(run, bytes_of[rows])} for rows, run in runs.items()}
            figures["stages"][stage]["time_ratio"] = round(runs[large]["cpu_seconds"] / runs[small]["cpu_seconds"], 2)
            say(f"scale, {stage}: {figures['stages'][stage]}")
    figures["promises"] = promises(figures["stages"], large=str(large), ratio=large / small)
    return finish("scale", figures, record=record)


def growth(run: dict[str, float], file_bytes: int) -> float:
    """Return by how many times the file's size a run's peak is above that of the run before it."""
    return round((run["peak_bytes"] - run["before_bytes"]) / file_bytes, 3)


def promises(stages: dict[str, Any], *, large: str, ratio: float) -> list[dict[str, Any]]:
    """Return for each stage whether its time is linear and its memory bounded."""
    found = []
    for stage, figures in stages.items():
        per_text, memory = round(figures["time_ratio"] / ratio, 3), figures[large]["memory"]
        found.append(promise(f"{stage}: time per text, {large} against fewer", per_text, at_most=1 + REQUIRED_LINEAR))
        found.append(promise(f"{stage}: memory over the file's size", memory, at_most=REQUIRED_MEMORY))
    return found


def _in_a_process(stage: str, few: Path, many: Path, folder: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.scale.stages", stage, str(few), str(many), str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return {name: round(value, 3) for name, value in figures.items()}
