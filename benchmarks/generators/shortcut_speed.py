"""What does ``--fidelity`` leave of the work of real architectures, counted; and how much faster is one image of Stable Diffusion 2?"""

import dataclasses
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import torch

from benchmarks.featurize.random_models import SD2_512, GeneratorSizes, sd2_folder
from benchmarks.generators.real_configs import real_generator
from featurize.cost.stage_cost import DECODE, image_flops, stage_flops
from featurize.generate.decoders import DecoderFiles, LatentDecoder, find_decoder
from featurize.generate.deepcache import whole_steps
from featurize.generate.denoiser_rows import denoiser_rows
from featurize.generate.families.family import PromptEmbeddings
from featurize.generate.fidelity import with_shortcuts
from featurize.generate.generators import Generator, find_generator, generator_settings
from featurize.generate.guidance import copies_of_steps
from featurize.generate.text_to_image import TextToImage
from featurize.options import Fidelity
from lugpi_core.command_line import say
from lugpi_core.runtime.device import resolve_compute

PRESETS = ("fast", "pixart-sigma", "flux2-klein-base")
HIGH, FIDELITIES = "high", get_args(Fidelity)
# Those of the preset fast.
_SETTINGS = {"steps": 20, "guidance": 7.5, "scheduler": "dpm++"}
# Four steps of all kinds in turn: whole and reusing, with guidance and without.
_ALL_KINDS = {"steps": 4, "guidance_interval": "0:0.5", "deepcache": 2, "deepcache_cut": "layer"}
_KINDS = ("guided, whole", "guided, reusing", "unguided, whole", "unguided, reusing")
DECODING, HALF_DECODING = "decoding", "decoding at half the side"


def real_work(presets: Sequence[str] = PRESETS) -> dict[str, Any]:
    """Return for each preset and each ``--fidelity`` the denoiser's rows and the work of an image, counted from the real configurations,
    and the work of its decoder, whole and at half the side."""
    figures: dict[str, Any] = {}
    for preset in presets:
        with tempfile.TemporaryDirectory() as folder:
            whole = real_generator(Path(folder), preset)
            figures[preset] = {name: work(_with(whole, name)) for name in FIDELITIES}
            decoders = {DECODING: None, HALF_DECODING: find_decoder("half", whole)}
            decoding = {name: round(stage_flops(whole, (), decoder=files)[DECODE] / 1e9, 3) for name, files in decoders.items()}
        for name in FIDELITIES:
            figures[preset][name]["of_high"] = round(figures[preset][name]["gflop"] / figures[preset][HIGH]["gflop"], 4)
        figures[preset]["gflop of decoding"] = decoding
    return figures


def _with(generator: Generator, fidelity: Fidelity) -> Generator:
    settings = dataclasses.replace(generator.settings, fidelity=fidelity)
    return dataclasses.replace(generator, settings=with_shortcuts(generator.family, settings))


def work(generator: Generator, decoder: DecoderFiles | None = None) -> dict[str, Any]:
    """Return the denoiser's rows of an image, and the GFLOP of the whole image, text encoder and decoder included."""
    rows, flops = denoiser_rows(generator), stage_flops(generator, (), decoder=decoder)
    return {"rows": rows.total, "reused_rows": rows.reused, "gflop": round(image_flops(generator, flops) / 1e9, 3)}


def sd2_seconds(rounds: int, sizes: GeneratorSizes = SD2_512) -> dict[str, Any]:
    """Return the seconds of one image of 512 px by each ``--fidelity``, put together from the seconds of its steps and of its decoding.

    In each round every kind of step runs once and the latents are decoded whole and at half the side; the kinds that a preset has are
    counted from its schedule. The seconds are the processor's, of one thread: other programs are left out. Weights are random, which cost
    the same. Memory: 5.2 GB, and as much disk.
    """
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        source = str(sd2_folder(Path(folder) / "sd2", sizes, torch.float32))
        compute = resolve_compute("cpu", "float32", half="float16")
        models = TextToImage(_generator(source, sizes.px, **{**_SETTINGS, **_ALL_KINDS}), compute)
        with models.text_encoder_on_device():
            embeddings = models.encode_prompts(["a cat on a mat"])
        half = LatentDecoder(models.generator, compute, decoder=find_decoder("half", models.generator))
        for _ in range(rounds):
            moments = pairwise(_moments(models, half, embeddings))
            for name, (start, end) in zip((*_KINDS, DECODING, HALF_DECODING), moments, strict=True):
                seconds.setdefault(name, []).append(round(end - start, 3))
            say(f"shortcuts: a round of Stable Diffusion 2: { ({name: values[-1] for name, values in seconds.items()}) }")
        counts = {name: _kinds_of(_generator(source, sizes.px, fidelity=name, **_SETTINGS)) for name in FIDELITIES}
    images = {name: [_image(counts[name], seconds, number, DECODING) for number in range(rounds)] for name in FIDELITIES}
    images["balanced, half decoder"] = [_image(counts["balanced"], seconds, number, HALF_DECODING) for number in range(rounds)]
    return {
        "composition": {name: dict(kinds) for name, kinds in counts.items()},
        "processor_s": {name: statistics.median(values) for name, values in seconds.items()},
        "rounds_s": seconds,
        "image_s": {name: round(statistics.median(values), 2) for name, values in images.items()},
        "times_faster": {
            name: round(statistics.median(whole / one for whole, one in zip(images[HIGH], values, strict=True)), 3)
            for name, values in images.items()
        },
    }


def _moments(models: TextToImage, half: LatentDecoder, embeddings: PromptEmbeddings) -> list[float]:
    """Return the processor's seconds before each step, after the last, and after each decoding."""
    moments: list[float] = []

    def note() -> None:
        moments.append(time.process_time())

    latents_1Chw = models.denoise(embeddings, [0], before_step=note)
    note()
    for decoder in (models, half):
        decoder.decode(latents_1Chw)
        note()
    return moments


def _generator(source: str, px: int, **settings: Any) -> Generator:
    return find_generator(source, generator_settings(source, {**settings, "size_px": px}), half=False)


def _kinds_of(generator: Generator) -> Counter[str]:
    """Return how many steps of each kind an image takes."""
    copies = copies_of_steps(generator.family, generator.settings, generator.settings.steps)
    whole = whole_steps(copies, generator.settings.deepcache)
    return Counter(
        f"{'guided' if rows > 1 else 'unguided'}, {'whole' if is_whole else 'reusing'}"
        for rows, is_whole in zip(copies, whole, strict=True)
    )


def _image(kinds: Mapping[str, int], seconds: Mapping[str, Sequence[float]], number: int, decoding: str) -> float:
    return sum(count * seconds[kind][number] for kind, count in kinds.items()) + seconds[decoding][number]
