"""The whole experiment of the tables, on the embedded corpus and on real ones. A record contains what ``train tables`` wrote."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import finish, minilm_folder
from benchmarks.options import DemoOptions, ExperimentOptions, RealOptions
from lugpi_core.command_line import say
from lugpi_core.corpora.corpus import Corpus
from lugpi_core.corpora.demo import DEMO_MORE
from lugpi_core.corpora.load import load_corpus
from lugpi_core.corpora.options import CorpusSettings
from lugpi_core.errors import InputError
from lugpi_core.files import make_folder, read_json, write_text
from lugpi_core.store.layout import PROMPT_TEXT

_GENERATION = ("--generator", "demo", "--encoders", "demo")
_SMOKE_TEXTS = 12
_SMOKE_ROWS = ("baseline", "teacher-clip-demo", "student-none-more")


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One experiment.

    Attributes:
        corpus: flags that name the corpus.
        training: flags of all trainings.
        seeds: how many.
        unlabelled: a file of texts on which students are distilled too.
        others: of a part of a corpus, how many train texts outside it are in that file, with their prompts; else a text is its prompt.
        rows: rows of the tables.
        generation: flags of the images.
    """

    corpus: tuple[str, ...]
    training: tuple[str, ...]
    seeds: int
    unlabelled: Path | None = None
    others: int = 0
    rows: tuple[str, ...] = ("table1", "controls")
    generation: tuple[str, ...] = _GENERATION

    @property
    def has_several_images(self) -> bool:
        """Whether a text has several images, which get scores."""
        return "--images-per-text" in self.generation


DEMO = Experiment(
    corpus=("--dataset", "demo"),
    training=("--text-model", "demo", "--epochs", "10", "--learning-rate", "5e-4"),
    seeds=10,
    unlabelled=DEMO_MORE,
    rows=("table1", "controls", "student-clip-demo-more", "student-none-more"),
)
# What the folds are compared with, and what they are: of images, of none, and of other texts' images; then with unlabelled texts too.
_TEACHERS = ("baseline", "teacher-clip-demo", "teacher-none", "student-clip-demo", "student-none")
_WITH_FOLDS = ("student-clip-demo-folds{n}", "student-none-folds{n}", "student-shuffled-folds{n}")
_AND_MORE = ("student-clip-demo-folds{n}-more", "student-none-folds{n}-more")
# Teachers of several images, weighted, and what their students keep: on the demo those of this many teachers each.
_ENSEMBLE = 3
_SEVERAL = ("--several-images", "weighted", "--kd-preset", "hinton", "--temperature", "2")
_KINDS = ("clip-demo", "none", "shuffled")
_KEPT = ("baseline", *(f"teacher-{kind}" for kind in _KINDS))
# About a thousand steps on each CWI corpus. On WikiNews a rate of 3e-4 diverges, and one epoch at 5e-5 is not enough (.79).
_RATE = ("--learning-rate", "1e-4")
# Faster than float32 on processors with bfloat16 multiplication (AVX512-BF16, AMX).
_BF16 = ("--dtype", "bfloat16")
# The embedded generator reads 40 tokens of a document; the text model reads 64.
REAL = {
    "cwi-wikinews": Experiment(corpus=("--dataset", "cwi-wikinews"), training=("--epochs", "2", *_RATE), seeds=3),
    "cwi-news": Experiment(corpus=("--dataset", "cwi-news"), training=("--epochs", "1", *_BF16, *_RATE), seeds=3),
    "20ng-2000": Experiment(
        corpus=("--dataset", "20ng", "--limit", "2000"), training=("--epochs", "4", "--max-length", "64", *_BF16, *_RATE), seeds=3
    ),
}
_REAL_ROWS = ("baseline", "images-clip-demo", "teacher-clip-demo", "teacher-none", "student-clip-demo", "student-none")
# With several images, parts of the corpora. Of MiniLM's the head alone is the best on 20 Newsgroups and learns little on the others
# (docs/benchmarks.md), as does what is above frozen layers on so few texts.
_CWI_TRAINING = ("--epochs", "2", *_RATE)
REAL_SEVERAL = {
    # A teacher needs about a thousand steps here: with 300 to 600, on 1,251 train texts, it hardly learns (.57 to .63).
    "cwi-wikinews": Experiment(
        corpus=("--dataset", "cwi-wikinews", "--limit", "2500"), training=(*_CWI_TRAINING, "--batch-size", "4"), seeds=3, others=1000
    ),
    "cwi-news": Experiment(
        corpus=("--dataset", "cwi-news", "--limit", "2500"), training=(*_CWI_TRAINING, "--batch-size", "8"), seeds=3, others=1000
    ),
    "20ng-2000": Experiment(
        corpus=("--dataset", "20ng", "--limit", "2000"),
        training=("--epochs", "5", "--max-length", "64", "--update", "head", "--learning-rate", "1e-3"),
        seeds=3,
        others=2000,
    ),
}


def measure_demo(options: DemoOptions) -> dict[str, Any]:
    """Run the missing parts of the demo experiment and return its tables; with folds those of the folds alone, in the same run; with
    several images those of what students keep of them, in a run of its own.

    Raises:
        InputError: one of the commands failed.
    """
    experiment, name, run = DEMO, "demo", "demo"
    if options.folds is not None:
        rows = (*_TEACHERS, *(name.format(n=options.folds) for name in (*_WITH_FOLDS, *_AND_MORE)))
        experiment = replace(DEMO, rows=rows, training=(*DEMO.training, "--folds", str(options.folds)))
        name = f"demo-folds{options.folds}"
    elif (images := options.images_per_text) is not None:
        several = replace(DEMO, training=(*DEMO.training, *_SEVERAL), generation=_several_images(images))
        run = f"demo-images{images}"
        if options.ensemble == 1:
            students = (f"student-{kind}-more" for kind in ("clip-demo", "none", "blank", "text"))
            rows = (*_KEPT, "teacher-blank", "teacher-text", *students)
            experiment = replace(several, rows=rows, generation=_several_images(images, PROMPT_TEXT))
            name = f"{run}-single"
        else:
            count = options.ensemble or _ENSEMBLE
            rows = (*_KEPT, *(f"student-{kind}-ensemble{count}-more" for kind in _KINDS))
            experiment = replace(several, rows=rows, training=(*several.training, "--ensemble", str(count)))
            name = run if count == _ENSEMBLE else f"{run}-ensemble{count}"
    if options.seeds not in (None, experiment.seeds):
        name = f"{name}-seeds{options.seeds}"
    experiment = replace(experiment, rows=options.rows or experiment.rows)
    return finish(name, _settings(experiment) | _tables(options, run, experiment), record=options.record)


def measure_real(options: RealOptions) -> dict[str, Any]:
    """Run the missing parts of the experiments on real corpora and return the tables of each; each has its own record.

    Raises:
        InputError: an unknown corpus, the package with the text model is not installed, or one of the commands failed.
    """
    if unknown := [name for name in options.corpora if name not in REAL]:
        raise InputError(got=f"--corpora {unknown[0]}", expected=f"one of {', '.join(REAL)}", do="choose among them")
    text_model = ("--text-model", str(minilm_folder()) if options.text_model == "minilm" else options.text_model)
    results = {}
    for corpus in options.corpora:
        experiment, name = replace(REAL[corpus], rows=options.rows or _REAL_ROWS), corpus
        if (images := options.images_per_text) is not None:
            name = f"{corpus}-images{images}"
            experiment = _with_several_images(REAL_SEVERAL[corpus], images, options, make_folder(options.runs / name))
        settings = _settings(experiment) | {"text_model": options.text_model}
        configured = replace(
            experiment,
            corpus=(*experiment.corpus, "--data-dir", str(options.data_dir)),
            training=(*experiment.training, *text_model),
        )
        results[corpus] = finish(f"real-{name}", settings | _tables(options, name, configured), record=options.record)
    return results


def _several_images(images: int, *columns: str) -> tuple[str, ...]:
    return ("--generator", "demo", "--encoders", "clip-demo", *columns, "--images-per-text", str(images))


def _with_several_images(part: Experiment, images: int, options: RealOptions, run: Path) -> Experiment:
    """Return the experiment on a part of a real corpus, with train texts from outside that part in a file of the run."""
    named = dict(zip(part.corpus[::2], part.corpus[1::2], strict=True))
    dataset, settings = named["--dataset"], CorpusSettings(data_dir=options.data_dir)
    whole, limited = (load_corpus(dataset, replace(settings, limit=limit)) for limit in (None, int(named["--limit"])))
    texts = texts_outside(limited, whole, count=part.others)
    write_text(run / "more.jsonl", "".join(json.dumps(text) + "\n" for text in texts))
    rows = options.rows or (*_KEPT, *(f"student-{kind}-more" for kind in _KINDS))
    return replace(
        part,
        training=(*part.training, *_SEVERAL),
        unlabelled=run / "more.jsonl",
        rows=rows,
        generation=_several_images(images),
    )


def texts_outside(part: Corpus, whole: Corpus, *, count: int) -> list[dict[str, str]]:
    """Return that many distinct train texts of the whole corpus that the part does not have, with their prompts; fewer if it has fewer.
    They are drawn with seed 0 and in the corpus's order."""
    known = {example.text for example in part.examples} | {example.text for example in whole.examples if example.split != "train"}
    others = {example.text: example.prompt for example in whole.examples if example.text not in known}
    chosen = sorted(np.random.default_rng(0).permutation(len(others))[:count].tolist())
    texts = list(others)
    return [{"text": texts[place], "prompt": others[texts[place]]} for place in chosen]


def _settings(experiment: Experiment) -> dict[str, Any]:
    """Return the settings for the record, without the paths of this machine."""
    generation = experiment.generation if experiment.has_several_images else ()
    others = {"unlabelled_train_texts": experiment.others} if experiment.others else {}
    return {"settings": " ".join((*experiment.corpus, *generation, *experiment.training)), **others}


def _tables(options: ExperimentOptions, name: str, experiment: Experiment) -> dict[str, Any]:
    run = options.runs / (f"{name}-smoke" if options.smoke else name)
    small = ("--limit", "60") if options.smoke else ()
    common = (*experiment.corpus, *small, "--run-dir", str(run))
    more: tuple[str, ...] = ()
    if experiment.unlabelled is not None:
        texts = _first_texts(experiment.unlabelled, make_folder(run)) if options.smoke else experiment.unlabelled
        more = ("--unlabelled", str(texts))
        if experiment.others:
            more += ("--prompt-column", "prompt")
    count = options.processes
    parts = [("--part", f"{number}/{count}") for number in range(count)] if count > 1 else [()]
    for named in (more, ()) if more else ((),):
        run_commands([("featurize", *common, *experiment.generation, *named, *part) for part in parts])
        if experiment.has_several_images:
            run_commands([("featurize", "score", *common, *named)])
    rows = _SMOKE_ROWS if options.smoke else experiment.rows
    short = ("--epochs", "1", "--max-length", "16") if options.smoke else ()
    seeds = ("--seeds", str(1 if options.smoke else options.seeds or experiment.seeds))
    run_commands([("train", "tables", *common, *experiment.training, *short, *seeds, "--rows", *rows, *more)] * count)
    # Where the run was, and its files, are of this machine.
    return {key: value for key, value in read_json(run / "tables.json").items() if key not in ("run", "written")}


def _first_texts(path: Path, folder: Path) -> Path:
    few = folder / f"few-{path.name}"
    write_text(few, "".join(path.read_text().splitlines(keepends=True)[:_SMOKE_TEXTS]))
    return few


def run_commands(commands: Sequence[Sequence[str]]) -> None:
    """Run commands at the same time and wait for all of them."""
    say(f"$ python -m {' '.join(commands[0])}" + (f"  (in {len(commands)} processes)" if len(commands) > 1 else ""))
    started = [subprocess.Popen([sys.executable, "-m", *command], stdout=subprocess.DEVNULL) for command in commands]
    for status in [child.wait() for child in started]:
        if status:
            raise InputError(got=f"exit status {status}", expected="a command that succeeds", do="see its message above")
