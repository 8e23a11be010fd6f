"""What options from related work do on the demo: accuracy beside what they save. docs/related-work.md names their sources.

Three questions: of how many texts are images needed, and of which (``featurize --subset``)? How small may the tokens of an image be
(``--pool``, ``reduce --pca``)? What do two terms of a student's loss change (``--kd-extra bss``, ``--anchor``)?
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.experiments import DEMO, run_commands
from benchmarks.harness import finish
from benchmarks.options import IdeasOptions
from lugpi_core.command_line import say
from lugpi_core.files import make_folder, read_json
from train.file_names import PREDICTIONS
from train.models.predictions import read_predictions

_CLIP = "clip-demo"
_GENERATION = ("--generator", "demo", "--encoders", _CLIP)
_RULES = ("k-centre", "herding", "random")
_SUBSETS = (60, 240)
_POOLS = ("2x2", "1", "cls")
_PCA = 32
_SMALL = ("--limit", "60")
_SHORT = ("--epochs", "1", "--max-length", "16")
# The new version of a model differs from the old one in its seed.
_NEW_SEEDS = 100


@dataclass(frozen=True, kw_only=True)
class Idea:
    """Models that differ in their seeds alone.

    Attributes:
        name: of the row.
        run: their run's folder.
        command: teacher or student.
        flags: theirs; ``{number}`` is the model's place.
        first_seed: the first one's seed.
    """

    name: str
    run: Path
    command: str
    flags: tuple[str, ...]
    first_seed: int = 0

    def model(self, number: int) -> Path:
        """Return the folder of one of the models."""
        return self.run / f"{self.name}-{number}"


def measure(options: IdeasOptions) -> dict[str, Any]:
    """Generate and train what is missing and return the rows.

    Raises:
        InputError: one of the commands failed.
    """
    run = make_folder(options.runs / ("ideas-smoke" if options.smoke else "ideas"))
    corpus = (*DEMO.corpus, *(_SMALL if options.smoke else ()))
    whole = run / "whole"
    run_commands([("featurize", *corpus, "--run-dir", str(whole), *_GENERATION)])
    for pool in _POOLS:
        run_commands([("featurize", *corpus, "--run-dir", str(whole), *_GENERATION, "--pool", pool)])
    run_commands([("featurize", "reduce", *corpus, "--run-dir", str(whole), "--column", _CLIP, "--pca", str(_PCA))])
    columns = (_CLIP, *(f"{_CLIP}-pool-{pool}" for pool in _POOLS), f"{_CLIP}-pca{_PCA}")
    ideas = [Idea(name="none", run=whole, command="teacher", flags=("--privileged", "none"))]
    ideas += [Idea(name=column, run=whole, command="teacher", flags=("--image-tokens", column)) for column in columns]
    rows = {idea.name: _trained(idea, corpus, options) for idea in ideas}
    for column in columns:
        rows[column]["bytes"] = sum(path.stat().st_size for path in (whole / "tokens" / column).rglob("*") if path.is_file())
    rows |= {idea.name: _trained(idea, corpus, options) for idea in _subsets(run, corpus, options)}
    rows |= _students(whole, corpus, options)
    for name, row in rows.items():
        say(f"{name}: {row}")
    return finish("ideas", {"settings": " ".join((*DEMO.corpus, *_GENERATION, *DEMO.training)), "rows": rows}, record=options.record)


def _subsets(run: Path, corpus: Sequence[str], options: IdeasOptions) -> list[Idea]:
    """Return teachers of images of some train texts, whose images are drawn. Each number of texts has a run of its own: a run that had
    grown would refuse the smaller number, and with it all further seeds."""
    ideas = []
    for rule in _RULES:
        for count in (2, 4) if options.smoke else _SUBSETS:
            idea = Idea(name=f"{rule}-{count}", run=run / f"{rule}-{count}", command="teacher", flags=())
            chosen = ("--subset", str(count), "--subset-by", rule)
            run_commands([("featurize", *corpus, "--run-dir", str(idea.run), *_GENERATION, *chosen)])
            ideas.append(idea)
    return ideas


def _students(run: Path, corpus: Sequence[str], options: IdeasOptions) -> dict[str, dict[str, Any]]:
    """Return rows of students of the teachers of whole images, and of new versions of them: with the anchor, and, its control, without."""
    of = ("--teachers", f"{_CLIP}-{{number}}")
    old = Idea(name="student", run=run, command="student", flags=of)
    ideas = [
        old,
        Idea(name="student-bss", run=run, command="student", flags=(*of, "--kd-extra", "bss")),
        Idea(name="student-new", run=run, command="student", flags=of, first_seed=_NEW_SEEDS),
    ]
    anchor = ("--anchor", str(run / "student-{number}"))
    ideas.append(replace(ideas[-1], name="student-anchored", flags=(*of, *anchor)))
    rows = {idea.name: _trained(idea, corpus, options) for idea in ideas}
    for idea in ideas[2:]:
        churn = [_churn(old.model(number), idea.model(number)) for number in _numbers(options)]
        rows[idea.name]["churn"] = round(statistics.mean(churn), 4)
    return rows


def _numbers(options: IdeasOptions) -> range:
    return range(1 if options.smoke else options.seeds)


def _trained(idea: Idea, corpus: Sequence[str], options: IdeasOptions) -> dict[str, Any]:
    """Train what is missing of an idea's models; return the mean accuracy on the test split, its standard deviation, and each."""
    common = (*corpus, "--run-dir", str(idea.run), *DEMO.training, *(_SHORT if options.smoke else ()))
    commands = [
        (
            *("train", idea.command, *common, "--name", idea.model(number).name, "--seed", str(idea.first_seed + number)),
            *(flag.format(number=number) for flag in idea.flags),
        )
        for number in _numbers(options)
        if not (idea.model(number) / "metrics.json").is_file()
    ]
    for first in range(0, len(commands), options.processes):
        run_commands(commands[first : first + options.processes])
    accuracy = [read_json(idea.model(number) / "metrics.json")["accuracy"]["test"] for number in _numbers(options)]
    sd = round(statistics.stdev(accuracy), 4) if len(accuracy) > 1 else None
    return {"accuracy": round(statistics.mean(accuracy), 4), "sd": sd, "each": accuracy}


def _churn(old: Path, new: Path) -> float:
    """Return the share of test texts that two models answer otherwise."""
    one, other = (read_predictions(folder / PREDICTIONS)["test"].predicted for folder in (old, new))
    return float(np.mean(one != other))
