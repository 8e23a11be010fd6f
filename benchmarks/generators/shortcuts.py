"""What do shortcuts of drawing save, and what do they cost? Work and seconds beside tokens, probe and teacher, with embedded generators.

Every case is a run of its own in a folder that stays, so the same command continues; cases of the same latents share one. The whole path is
drawn from three seeds: how far two of them are apart, and how much the probe differs between them, is the measure for everything else.

Shapes: M images, T tokens, D width.
"""

import csv
import io
import json
import statistics
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.experiments import run_commands
from benchmarks.featurize.random_models import SD2_512, SMALL
from benchmarks.generators.shortcut_claims import claims, table
from benchmarks.generators.shortcut_speed import PRESETS, real_work, sd2_seconds, work
from benchmarks.generators.smaller_decoding import smaller_decoding
from benchmarks.harness import finish, interleaved, median_ratio, medians
from benchmarks.options import ShortcutOptions
from featurize.generate.decoders import DecoderFiles, find_decoder
from featurize.generate.fidelity import FEWEST_STEPS
from featurize.generate.generators import Generator, find_generator, generator_settings
from featurize.generate.text_to_image import TextToImage
from featurize.inspect.command import inspect_store
from featurize.options import FeaturizeOptions, InspectOptions
from featurize.plan.job import OVERRIDES
from featurize.run import featurize_command
from lugpi_core.command_line import say
from lugpi_core.corpora.demo import DEMO_CSV
from lugpi_core.files import make_folder, read_json, write_text
from lugpi_core.runtime.device import resolve_compute
from lugpi_core.runtime.libraries import prepare_libraries
from lugpi_core.store.layout import LATENTS
from lugpi_core.store.reader import ColumnReader

WHOLE, SEEDS = "whole", ("whole", "another seed", "a third seed")
BALANCED, FAST = "fidelity balanced", "fidelity fast"
# Cases with which teachers are trained.
_TAUGHT = (WHOLE, BALANCED, FAST)
_INTERVAL = {"guidance_interval": "0:0.5"}
_KEPT = {**_INTERVAL, "guidance_reuse": True}
_FINE = {"deepcache_cut": "layer"}
# The flags of featurize that each case changes.
CASES: Mapping[str, Mapping[str, Any]] = {
    WHOLE: {},
    SEEDS[1]: {"seed": 1},
    SEEDS[2]: {"seed": 2},
    BALANCED: {"fidelity": "balanced"},
    FAST: {"fidelity": "fast"},
    "guided in 0:0.5": _INTERVAL,
    "guided in 0.2:0.7": {"guidance_interval": "0.2:0.7"},
    "guided in 0:0.5, difference kept": _KEPT,
    "guided in 0:0.25, difference kept": {**_KEPT, "guidance_interval": "0:0.25"},
    "DeepCache 2": {"deepcache": 2},
    "DeepCache 3": {"deepcache": 3},
    "DeepCache 5": {"deepcache": 5},
    "DeepCache 2, last layer": {"deepcache": 2, **_FINE},
    "DeepCache 3, last layer": {"deepcache": 3, **_FINE},
    "DeepCache 5, last layer": {"deepcache": 5, **_FINE},
    "12 steps": {"steps": 12},
    "8 steps": {"steps": 8},
    "half decoder": {"decoder": "half"},
    "tiny decoder": {"decoder": "tiny"},
}
_NEEDS_UNET, _ENCODER = ("deepcache",), "clip-demo"
_TRAINING = ("--text-model", "demo", "--epochs", "10", "--learning-rate", "5e-4")
# Blocks and shards that a run which is stopped loses little of. Images that are timed, and those decoded in other ways.
_AT_ONCE, _SHARD, _TIMED, _DECODED = 32, 256, 8, 96
# Its halved images are enlarged for the encoder, which a warning says.
_WARNINGS = ("--limit leaves no train example", "--decoder half makes images of")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One case of one generator.

    Attributes:
        name: of the case.
        flags: of featurize.
        folder: of the run.
    """

    name: str
    flags: Mapping[str, Any]
    folder: Path

    @property
    def column(self) -> str:
        """Name of the tokens' column."""
        decoder = self.decoder
        return _ENCODER + ("" if decoder is None else decoder.column_suffix)

    @cached_property
    def generator(self) -> Generator:
        """The generator at the settings of this case."""
        source = str(self.flags["generator"])
        return find_generator(source, generator_settings(source, {name: self.flags.get(name) for name in OVERRIDES}), half=False)

    @property
    def decoder(self) -> DecoderFiles | None:
        """What replaces the generator's own."""
        return find_decoder(str(self.flags.get("decoder", "full")), self.generator)

    def tokens(self) -> NDArray[np.float32]:
        """Return all tokens [M, T, D]."""
        reader = ColumnReader(self.folder / "tokens", self.column)
        return reader.gather(range(len(reader))).astype(np.float32)

    def latents(self) -> torch.Tensor:
        """Return the first latents [M, C, h, w]."""
        reader = ColumnReader(self.folder / "tokens", LATENTS)
        return torch.from_numpy(reader.gather(range(min(_DECODED, len(reader)))))


def measure(options: ShortcutOptions) -> dict[str, Any]:
    """Return the figures of every case by generator, and of ``--fidelity`` in the architecture of Stable Diffusion 2."""
    prepare_libraries()
    if not options.smoke:
        return _measure(options)
    small: dict[str, Any] = {"generators": ("demo",), "steps": FEWEST_STEPS, "cases": ("balanced", "half"), "seeds": 0, "rounds": 1}
    with tempfile.TemporaryDirectory() as folder:
        return _measure(replace(options, **small, runs=Path(folder)))


def _measure(options: ShortcutOptions) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    corpus = _glosses(options)
    for generator in options.generators:
        runs = _runs(options, generator, corpus)
        with warnings.catch_warnings():
            for message in _WARNINGS:
                warnings.filterwarnings("ignore", message=message)
            _complete(runs, options)
            figures[generator] = _compare(runs, options)
        say("\n".join((f"shortcuts, {generator}:", *table(figures[generator]))))
    counted = real_work(("fast",) if options.smoke else PRESETS)
    say(f"shortcuts, counted: {counted}")
    rounds = 1 if options.smoke else options.sd2_rounds
    timed = sd2_seconds(rounds, SMALL if options.smoke else SD2_512) if rounds else None
    return finish(
        "shortcuts",
        {
            "encoder": _ENCODER,
            "steps": options.steps,
            "texts": len(_rows_of(corpus)),
            "training": " ".join(_TRAINING),
            "generators": figures,
            "fidelity of presets, counted": counted,
            "Stable Diffusion 2, one image of 512 px": timed,
            "claims": claims(figures, counted["fast"], timed),
        },
        record=options.record,
    )


def _glosses(options: ShortcutOptions) -> Path:
    """Write the embedded corpus with a part of its test glosses, evenly spread; in a smoke run, one of each split and class."""
    rows = _rows_of(DEMO_CSV)
    tests = [row for row in rows if row["split"] == "test"]
    count = min(options.test_texts, len(tests))
    path = make_folder(options.runs) / f"glosses-{count}.csv"
    kept = {tests[number * len(tests) // count]["id"] for number in range(count)}
    rows = [row for row in rows if row["split"] != "test" or row["id"] in kept]
    if options.smoke:
        rows = list({(row["split"], row["label"]): row for row in rows}.values())
    lines = io.StringIO(newline="")
    table = csv.DictWriter(lines, fieldnames=list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_text(path, lines.getvalue())
    return path


def _rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _runs(options: ShortcutOptions, generator: str, corpus: Path) -> list[Run]:
    common: dict[str, Any] = {"dataset": str(corpus), "split_column": "split", "generator": generator, "encoders": (_ENCODER,)}
    common |= {"steps": options.steps, "batch_size": _AT_ONCE, "shard_rows": _SHARD}
    has_unet = find_generator(generator, generator_settings(generator, {}), half=False).family.denoiser == "unet"
    names = [name for name, flags in CASES.items() if has_unet or not any(flag in flags for flag in _NEEDS_UNET)]
    if options.cases:
        names = [name for name in names if name in SEEDS or any(word in name for word in options.cases)]
    runs: list[Run] = []
    folders: dict[str, Path] = {}
    for name in names:
        run = Run(name=name, flags={**common, **CASES[name]}, folder=options.runs / generator / name.replace(" ", "-").replace(",", ""))
        latents = json.dumps([run.generator.fingerprint(), run.flags.get("seed", 0)], sort_keys=True)
        runs.append(replace(run, folder=folders.setdefault(latents, run.folder)))
    return runs


def _complete(runs: Sequence[Run], options: ShortcutOptions) -> None:
    """Draw, inspect and train what is missing."""
    for run in runs:
        make_folder(run.folder)
        featurize_command(FeaturizeOptions(**run.flags, run_dir=run.folder))
    for run in runs:
        corpus = {name: run.flags[name] for name in ("dataset", "split_column")}
        path = run.folder / "inspection.json"
        if not path.is_file() or run.column not in read_json(path)["columns"]:
            inspect_store(InspectOptions(**corpus, run_dir=run.folder, thumbnails=0))
        if options.seeds and run.name in _TAUGHT:
            words = ("--dataset", corpus["dataset"], "--split-column", corpus["split_column"], "--run-dir", str(run.folder))
            row = ("--rows", f"teacher-{run.column}", "--seeds", str(options.seeds))
            run_commands([("train", "tables", *words, *_TRAINING, *row)])
        say(f"shortcuts: {run.flags['generator']}, {run.name}: complete")


def _compare(runs: Sequence[Run], options: ShortcutOptions) -> dict[str, Any]:
    by_name = {run.name: run for run in runs}
    whole = by_name[WHOLE].tokens()
    probes = {run.name: _probe(run) for run in runs}
    drawn = [probe for name in SEEDS if (probe := probes[name]) is not None]
    seconds = interleaved({run.name: _batch(run) for run in runs}, repeats=options.rounds)
    typical = medians(seconds)
    several = len(drawn) > 1
    figures: dict[str, Any] = {
        "probe_of_seeds": {"mean": round(statistics.mean(drawn), 4), "sd": round(statistics.stdev(drawn), 4)} if several else None
    }
    for run in runs:
        figures[run.name] = {
            **work(run.generator, run.decoder),
            "seconds": round(typical[run.name] / _TIMED, 5),
            "times_faster": median_ratio(seconds, WHOLE, run.name),
            **({} if run.name == WHOLE else compare(whole, run.tokens())),
            "probe": probes[run.name],
            **_teacher(run),
        }
        say(f"shortcuts: {run.flags['generator']}, {run.name}: {figures[run.name]}")
    first, other = by_name[WHOLE], by_name[SEEDS[1]]
    figures["decoding"] = smaller_decoding(first.generator, _ENCODER, first.latents(), other.latents(), compare)
    return figures


def _batch(run: Run) -> Any:
    models = TextToImage(run.generator, resolve_compute("cpu", "float32", half="float16"), decoder=run.decoder)
    with models.text_encoder_on_device():
        embeddings = models.encode_prompts(["a bird on a branch"]).rows([0] * _TIMED)
    return partial(_draw, models, embeddings)


def _draw(models: TextToImage, embeddings: Any) -> torch.Tensor:
    return models.decode(models.denoise(embeddings, range(_TIMED)))


def _probe(run: Run) -> float | None:
    """Return the probe's accuracy on texts whose image no train text has; None if there were too few."""
    answer = read_json(run.folder / "inspection.json")["columns"][run.column]["classes"]
    return float(answer["probe"]["accuracy"]) if "probe" in answer else None


def _teacher(run: Run) -> dict[str, Any]:
    path = run.folder / "tables.json"
    name = f"teacher-{run.column}"
    if run.name not in _TAUGHT or not path.is_file():
        return {}
    row = read_json(path)["rows"][name]
    return {"teacher": row["test"]["accuracy"], "teacher_seeds": len(row["seeds"])}


def compare(whole_MTD: NDArray[np.float32], other_MTD: NDArray[np.float32]) -> dict[str, float]:
    """Return the mean cosine of tokens, its minimum, and the mean after subtracting the mean over the whole path's images."""
    mean_TD = whole_MTD.mean(axis=0)
    cosines = _cosine(whole_MTD, other_MTD)
    return {
        "cosine": round(float(cosines.mean()), 5),
        "cosine_min": round(float(cosines.min()), 5),
        "centred_cosine": round(float(_cosine(whole_MTD - mean_TD, other_MTD - mean_TD).mean()), 5),
    }


def _cosine(left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float32]:
    norms = np.linalg.norm(left, axis=-1) * np.linalg.norm(right, axis=-1)
    products: NDArray[np.float32] = (left * right).sum(axis=-1) / np.maximum(norms, 1e-12)
    return products
