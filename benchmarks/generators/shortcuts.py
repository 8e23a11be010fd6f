"""What do shortcuts of drawing save, and what do they cost? Work and seconds beside tokens, probe and teacher, with embedded generators.

Every case is a run of its own in a folder that stays, so the same command continues. The whole path is drawn from three seeds: how far two
of them are apart, and how much the probe differs between them, is the measure for everything else.

Shapes: M images, T tokens, D width.
"""

import statistics
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.experiments import run_commands
from benchmarks.generators.shortcut_speed import PRESETS, real_work, sd2_seconds, work
from benchmarks.harness import finish, interleaved, medians
from benchmarks.options import ShortcutOptions
from featurize.generate.decoders import find_decoder
from featurize.generate.fidelity import FEWEST_STEPS
from featurize.generate.generators import Generator, find_generator, generator_settings
from featurize.generate.text_to_image import TextToImage
from featurize.inspect.command import inspect_store
from featurize.options import FeaturizeOptions, InspectOptions
from featurize.plan.job import OVERRIDES
from featurize.run import featurize_command
from lugpi_core.command_line import say
from lugpi_core.files import make_folder, read_json
from lugpi_core.runtime.device import resolve_compute
from lugpi_core.runtime.libraries import prepare_libraries
from lugpi_core.store.reader import ColumnReader

WHOLE, SEEDS = "whole", ("whole", "another seed", "a third seed")
_INTERVAL = {"guidance_interval": "0:0.5"}
_KEPT = {**_INTERVAL, "guidance_reuse": True}
_FINE = {"deepcache_cut": "layer"}
# The flags of featurize that each case changes.
CASES: Mapping[str, Mapping[str, Any]] = {
    WHOLE: {},
    SEEDS[1]: {"seed": 1},
    SEEDS[2]: {"seed": 2},
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
    "tiny decoder": {"decoder": "tiny"},
    "fidelity balanced": {"fidelity": "balanced"},
    "fidelity fast": {"fidelity": "fast"},
}
_NEEDS_UNET, _ENCODER = ("deepcache",), "clip-demo"
_TRAINING = ("--text-model", "demo", "--epochs", "10", "--learning-rate", "5e-4")
# Images that are timed at once.
_TIMED = 8


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
        return _ENCODER + ("-tiny" if self.flags.get("decoder") == "tiny" else "")

    def tokens(self) -> NDArray[np.float32]:
        """Return all tokens [M, T, D]."""
        reader = ColumnReader(self.folder / "tokens", self.column)
        return reader.gather(range(len(reader))).astype(np.float32)

    def generator(self) -> Generator:
        """Return the generator at the settings of this case."""
        source = str(self.flags["generator"])
        return find_generator(source, generator_settings(source, {name: self.flags.get(name) for name in OVERRIDES}), half=False)


def measure(options: ShortcutOptions) -> dict[str, Any]:
    """Return the figures of every case by generator, and of ``--fidelity`` in the architecture of Stable Diffusion 2."""
    prepare_libraries()
    if not options.smoke:
        return _measure(options)
    small: dict[str, Any] = {"generators": ("demo",), "steps": FEWEST_STEPS, "limit": 24, "cases": ("balanced",), "seeds": 0, "rounds": 1}
    with tempfile.TemporaryDirectory() as folder:
        return _measure(replace(options, **small, runs=Path(folder)))


def _measure(options: ShortcutOptions) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for generator in options.generators:
        runs = _runs(options, generator)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="--limit leaves no train example")
            for run in runs:
                _complete(run, options)
        figures[generator] = _compare(runs, options)
    counted = real_work(("fast",) if options.smoke else PRESETS)
    say(f"shortcuts, counted: {counted}")
    timed = {"Stable Diffusion 2, one image of 512 px": sd2_seconds(options.rounds)} if options.real and not options.smoke else {}
    about = {"encoder": _ENCODER, "steps": options.steps, "texts": options.limit, "training": " ".join(_TRAINING)}
    return finish("shortcuts", {**about, "generators": figures, "fidelity of presets, counted": counted, **timed}, record=options.record)


def _runs(options: ShortcutOptions, generator: str) -> list[Run]:
    common: dict[str, Any] = {"dataset": "demo", "generator": generator, "encoders": (_ENCODER,), "steps": options.steps}
    if options.limit is not None:
        common["limit"] = options.limit
    has_unet = find_generator(generator, generator_settings(generator, {}), half=False).family.denoiser == "unet"
    names = [name for name, flags in CASES.items() if has_unet or not any(flag in flags for flag in _NEEDS_UNET)]
    if options.cases:
        names = [name for name in names if name in SEEDS or any(word in name for word in options.cases)]
    return [
        Run(name=name, flags={**common, **CASES[name]}, folder=options.runs / generator / name.replace(" ", "-").replace(",", ""))
        for name in names
    ]


def _complete(run: Run, options: ShortcutOptions) -> None:
    """Draw, inspect and train what is missing of a run."""
    make_folder(run.folder)
    featurize_command(FeaturizeOptions(**run.flags, run_dir=run.folder))
    corpus = {name: run.flags[name] for name in ("dataset", "limit") if name in run.flags}
    if not (run.folder / "inspection.json").is_file():
        inspect_store(InspectOptions(**corpus, run_dir=run.folder, thumbnails=0))
    if options.seeds and run.name not in SEEDS[1:]:
        words = [word for name, value in corpus.items() for word in (f"--{name}", str(value))]
        row = ("--rows", f"teacher-{run.column}", "--seeds", str(options.seeds))
        run_commands([("train", "tables", *words, "--run-dir", str(run.folder), *_TRAINING, *row)])
    say(f"shortcuts: {run.flags['generator']}, {run.name}: complete")


def _compare(runs: Sequence[Run], options: ShortcutOptions) -> dict[str, Any]:
    by_name = {run.name: run for run in runs}
    whole = by_name[WHOLE].tokens()
    probes = {run.name: _probe(run) for run in runs}
    drawn = [probe for name in SEEDS if (probe := probes[name]) is not None]
    seconds = medians(_seconds(runs, options.rounds))
    figures: dict[str, Any] = {"probe_sd_between_seeds": round(statistics.stdev(drawn), 4) if len(drawn) > 1 else None}
    for run in runs:
        figures[run.name] = {
            **_work(run),
            "seconds": round(seconds[run.name] / _TIMED, 5),
            **({} if run.name == WHOLE else compare(whole, run.tokens())),
            "probe": probes[run.name],
            **_teacher(run),
        }
        say(f"shortcuts: {run.flags['generator']}, {run.name}: {figures[run.name]}")
    return figures


def _work(run: Run) -> dict[str, Any]:
    generator = run.generator()
    files = find_decoder(str(run.flags.get("decoder", "full")), generator)
    return work(generator, None if files is None else files.folder)


def _seconds(runs: Sequence[Run], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of denoising and decoding a batch, all cases in every round."""
    return interleaved({run.name: _batch(run) for run in runs}, repeats=rounds)


def _batch(run: Run) -> Any:
    generator = run.generator()
    decoder = find_decoder(str(run.flags.get("decoder", "full")), generator)
    models = TextToImage(generator, resolve_compute("cpu", "float32", half="float16"), decoder=decoder)
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
    if not path.is_file():
        return {}
    row = read_json(path)["rows"][f"teacher-{run.column}"]
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
