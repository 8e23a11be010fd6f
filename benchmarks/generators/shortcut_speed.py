"""What does ``--fidelity`` leave of the work of real architectures, counted; and how much faster is one image of Stable Diffusion 2?"""

import dataclasses
import gc
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch

from benchmarks.featurize.random_models import SD2_512, sd2_folder
from benchmarks.generators.real_configs import real_generator
from benchmarks.harness import median_ratio, medians
from featurize.cost.stage_cost import DECODE, PROMPT, image_flops, stage_flops
from featurize.generate.denoiser_rows import denoiser_rows
from featurize.generate.fidelity import with_shortcuts
from featurize.generate.generators import Generator, find_generator, generator_settings
from featurize.generate.text_to_image import TextToImage
from featurize.options import Fidelity
from lugpi_core.runtime.device import resolve_compute

PRESETS = ("fast", "pixart-sigma", "flux2-klein-base")
_HIGH, _FIDELITIES = "high", get_args(Fidelity)
# Those of the preset fast.
_SETTINGS = {"steps": 20, "guidance": 7.5, "scheduler": "dpm++"}


def real_work(presets: Sequence[str] = PRESETS) -> dict[str, Any]:
    """Return for each preset and each ``--fidelity`` the denoiser's rows and the work of an image, counted from the real configurations."""
    figures: dict[str, Any] = {}
    for preset in presets:
        with tempfile.TemporaryDirectory() as folder:
            whole = real_generator(Path(folder), preset)
            figures[preset] = {name: work(_with(whole, name)) for name in _FIDELITIES}
        for each in figures[preset].values():
            each["of_high"] = round(each["gflop"] / figures[preset][_HIGH]["gflop"], 4)
    return figures


def _with(generator: Generator, fidelity: Fidelity) -> Generator:
    settings = dataclasses.replace(generator.settings, fidelity=fidelity)
    return dataclasses.replace(generator, settings=with_shortcuts(generator.family, settings))


def work(generator: Generator, decoder_folder: Path | None = None) -> dict[str, Any]:
    """Return the denoiser's rows of an image, and the GFLOP of the whole image, text encoder and decoder included."""
    rows, flops = denoiser_rows(generator), stage_flops(generator, (), decoder_folder=decoder_folder)
    image = image_flops(generator, flops) + flops[PROMPT] + flops[DECODE]
    return {"rows": rows.total, "reused_rows": rows.reused, "gflop": round(image / 1e9, 3)}


def sd2_seconds(rounds: int) -> dict[str, Any]:
    """Return the seconds from prompt embeddings to one image of 512 px by each ``--fidelity``, with random weights, which cost the same.

    Memory: one copy of the models at a time, 5.2 GB, and as much disk.
    """
    seconds: dict[str, list[float]] = {name: [] for name in _FIDELITIES}
    with tempfile.TemporaryDirectory() as folder:
        source = str(sd2_folder(Path(folder) / "sd2", SD2_512, torch.float32))
        for number in range(rounds):
            for name in _FIDELITIES[:: -1 if number % 2 else 1]:
                settings = generator_settings(source, {**_SETTINGS, "size_px": SD2_512.px, "fidelity": name})
                seconds[name].append(_one_image(find_generator(source, settings, half=False)))
    faster = {name: median_ratio(seconds, _HIGH, name) for name in _FIDELITIES}
    return {"seconds": medians(seconds), "times_faster": faster, "rounds_s": seconds}


def _one_image(generator: Generator) -> float:
    """Return the seconds of an image, without loading; one step on zeros goes before."""
    models = TextToImage(generator, resolve_compute("cpu", "float32", half="float16"))
    with models.text_encoder_on_device():
        embeddings = models.encode_prompts(["a cat on a mat"])
    models.warm_up(embeddings, 1, 1)
    start_s = time.perf_counter()
    models.decode(models.denoise(embeddings, [0]))
    seconds = time.perf_counter() - start_s
    del models
    gc.collect()
    return seconds
