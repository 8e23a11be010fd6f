"""Is our loop slower than diffusers' own pipelines, and featurize slower than its bare forward passes, with generators of today?

Loops are compared over a tiny model of every family, from four prompts to latents: what differs is what each does besides the models. The
bare forward passes are those of one image by PRX with random weights, recorded from our own run and made again.
"""

import gc
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.featurize.featurize_speed import one_prompt, own_seconds, run_featurize
from benchmarks.featurize.plain_diffusers import load_tower, parts_may_lack_labels
from benchmarks.featurize.random_models import encoder_folder
from benchmarks.generators.prx_folder import PRX_256, SMALL_PRX, PrxSizes, prx_folder
from benchmarks.generators.recorded_calls import Call, recorded_calls, replay
from benchmarks.generators.tiny_pipelines import library_pipeline, tiny_pipeline
from benchmarks.harness import finish, interleaved, median_ratio, medians, promise
from featurize.encode.encoders import find_encoder
from featurize.generate.generators import find_generator, generator_settings
from featurize.generate.text_to_image import TextToImage
from lugpi_core.command_line import say
from lugpi_core.errors import InputError, nearest
from lugpi_core.runtime.device import resolve_compute
from lugpi_core.runtime.libraries import prepare_libraries

OURS, LIBRARY, FORWARDS = "lugpi", "diffusers", "bare forwards"
FEATURIZE, REAL = "featurize", "PRX, one image of 256 px"
PROMPTS = ("a red dog", "a text about ships, the sea and the sky", "snow on an old town", "three cats")
AT_MOST_LOOP, AT_MOST_FEATURIZE = 1.00, 1.03


def _true_guidance(scale: float) -> Mapping[str, Any]:
    return {"true_cfg_scale": scale, "negative_prompt": [""] * len(PROMPTS)}


def _guidance(scale: float) -> Mapping[str, Any]:
    return {"guidance_scale": scale}


@dataclass(frozen=True, kw_only=True)
class Way:
    """How a family is drawn by both.

    Attributes:
        px, steps: of the images.
        guidance: scale; None = the family's own.
        scale_name: gives the library's pipeline the scale.
        how: what it is told besides, so that it does what we do.
    """

    px: int = 64
    steps: int = 8
    guidance: float | None = None
    scale_name: Callable[[float], Mapping[str, Any]] = _guidance
    how: Mapping[str, Any] = field(default_factory=dict)


_OWN_SIZE: Mapping[str, Any] = {"use_resolution_binning": False}
WAYS: Mapping[str, Way] = {
    "stable-diffusion": Way(),
    "sdxl": Way(),
    "lcm": Way(),
    "flux2-klein": Way(),
    "flux2-klein-base": Way(),
    "prx": Way(guidance=1.0, how=_OWN_SIZE),  # with guidance, the library's pipeline takes one prompt a call (diffusers 0.42.1)
    "sana": Way(px=128, how=_OWN_SIZE),
    "sana-sprint": Way(px=128, steps=2, how=_OWN_SIZE),
    "z-image": Way(),
    "pixart-sigma": Way(how={**_OWN_SIZE, "clean_caption": False}),
    "sd3": Way(),
    "flux-schnell": Way(scale_name=_true_guidance),
    "flux-dev": Way(),
    "qwen-image": Way(scale_name=_true_guidance),
    "lumina2": Way(),
    "auraflow": Way(),
    "hunyuan-dit": Way(how=_OWN_SIZE),
    "chroma": Way(),
    "ovis": Way(),
    "longcat": Way(how={"enable_prompt_rewrite": False}),
    "ernie": Way(),
}


def measure(*, smoke: bool, record: bool, families: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the time of both loops for every family, that of featurize and its bare forward passes, and which promises hold.

    Writes a model of real size to the temporary folder ($TMPDIR): 6 GB.

    Args:
        smoke: one round, few families, a small model.
        record: write the figures to benchmarks/results/.
        families: only these, and no model of real size.

    Raises:
        InputError: an unknown family.
    """
    if unknown := [name for name in families if name not in WAYS]:
        raise InputError(got=f"--families {unknown[0]}", expected=", ".join(WAYS), do=nearest(unknown[0], list(WAYS)))
    prepare_libraries()
    warnings.filterwarnings("ignore", category=FutureWarning, module="diffusers")
    names = families or (("stable-diffusion", "flux2-klein", "qwen-image") if smoke else tuple(WAYS))
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name, parts_may_lack_labels():
        folder = Path(name)
        for family in names:
            figures[family] = both_loops(folder, family, WAYS[family], repeats=1 if smoke else 15)
            say(f"families, {family}: {figures[family]}")
        if not families:
            figures[REAL] = one_image(folder, *((SMALL_PRX, "ViT-S-32", 1) if smoke else (PRX_256, "ViT-B-32", 9)))
            say(f"families, {REAL}: {figures[REAL]}")
    figures["promises"] = promises(figures)
    say(f"families: {figures['promises']}")
    return finish("families", figures, record=record)


def both_loops(folder: Path, family: str, way: Way, *, repeats: int) -> dict[str, Any]:
    """Return the seconds of four prompts to latents, by us and by diffusers' pipeline, and their ratio within a round."""
    source = tiny_pipeline(family, folder / family)
    settings = generator_settings(str(source), {"steps": way.steps, "size_px": way.px, "guidance": way.guidance})
    generator = find_generator(str(source), settings, half=False)
    models = TextToImage(generator, resolve_compute("cpu", "float32", half="float16"))
    pipeline = library_pipeline(source)
    seeds = range(len(PROMPTS))
    how = {"height": way.px, "width": way.px, "num_inference_steps": way.steps, **way.how, **way.scale_name(generator.settings.guidance)}

    def ours() -> None:
        with models.text_encoder_on_device():
            embeddings = models.encode_prompts(PROMPTS)
        models.denoise(embeddings, seeds)

    def library() -> None:
        noise = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        pipeline(prompt=list(PROMPTS), generator=noise, output_type="latent", **how)

    return _compared(interleaved({OURS: ours, LIBRARY: library}, repeats=repeats), OURS, LIBRARY)


def one_image(folder: Path, sizes: PrxSizes, encoder: str, repeats: int) -> dict[str, Any]:
    """Return the seconds of one image, two steps, decoded and encoded, by featurize and by its bare forward passes, and their ratio.

    Memory: one copy of the models at a time; the bare forward passes load theirs before each round, untimed.
    """
    source, tower_folder = prx_folder(folder / "prx", sizes), encoder_folder(folder / encoder, encoder, torch.float32)
    models_flags = {"generator": str(source), "encoders": (str(tower_folder),), "steps": 2, "guidance": 1.0}
    flags = models_flags | {"dataset": str(one_prompt(folder)), "split_column": "split", "prompt_column": "prompt", "batch_size": 1}
    settings = generator_settings(str(source), {"steps": 2, "guidance": 1.0})
    files = find_encoder(str(tower_folder))
    ours_s: list[float] = []
    loaded: list[tuple[TextToImage, torch.nn.Module]] = []
    calls: list[Call] = []

    def load(way: str) -> None:
        loaded.clear()
        gc.collect()
        if way == FORWARDS:
            generator = find_generator(str(source), settings, half=False)
            models = TextToImage(generator, resolve_compute("cpu", "float32", half="float16"))
            loaded.append((models, load_tower(files, "cpu", torch.float32)))
            if not calls:
                calls.extend(recorded_calls(models, "a cat on a mat", 0))

    side = files.preprocessing.size_px
    pixels_13SS = torch.randn(1, 3, side, side)

    def forwards() -> None:
        models, tower = loaded[0]
        replay(models, calls)
        with torch.inference_mode():
            tower(pixels_13SS)

    ways = {FORWARDS: forwards, FEATURIZE: lambda: ours_s.append(own_seconds(run_featurize(flags, folder)))}
    seconds = interleaved(ways, repeats=repeats, before=load)
    seconds[FEATURIZE] = ours_s[1:]
    return _compared(seconds, FEATURIZE, FORWARDS)


def promises(figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return each promise with the measured value."""
    limits = {name: AT_MOST_FEATURIZE if name == REAL else AT_MOST_LOOP for name, value in figures.items() if isinstance(value, dict)}
    return [promise(name, figures[name]["ratio"], at_most=limit) for name, limit in limits.items()]


def _compared(seconds: Mapping[str, list[float]], slower: str, faster: str) -> dict[str, Any]:
    rounds = {name: [round(value, 4) for value in values] for name, values in seconds.items()}
    return {"seconds": medians(seconds), "ratio": median_ratio(seconds, slower, faster), "rounds_s": rounds}
