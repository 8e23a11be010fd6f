"""FLOPs of one row in each stage, counted by torch's ``FlopCounterMode`` on the meta device: no weight is read, no number is computed.

A stage is a module of diffusers, transformers or open_clip, built from its configuration as the run will load it, and called once.

Shapes: B rows, h × w latent cells, S the encoder's side, T tokens, D width.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from featurize.encode.encoders import EncoderFiles
from featurize.encode.image_encoder import skeleton
from featurize.generate.decoders import DecoderFiles, dtype_of
from featurize.generate.deepcache import DeepReuse
from featurize.generate.denoiser_rows import denoiser_rows
from featurize.generate.families.family import LENGTHS, Family, Parts, PromptEmbeddings, Sampling, Step
from featurize.generate.generators import Generator
from featurize.generate.half_decoder import halve
from featurize.generate.load_part import model_class, text_config
from featurize.generate.schedulers import own_scheduler
from lugpi_core.errors import InputError
from lugpi_core.runtime.pretrained import read_config, reason

PROMPT, DENOISE, REUSE, DECODE = "prompt", "denoise", "denoise, reusing", "decode"


def stage_flops(generator: Generator, encoders: Sequence[EncoderFiles], *, decoder: DecoderFiles | None = None) -> dict[str, float]:
    """Return the FLOPs of one row in each stage: ``prompt`` (one prompt through the text encoders), ``denoise`` (one row of the
    denoiser; guidance doubles the rows), ``denoise, reusing`` (the same of a step that reuses deep features), ``decode`` (one
    image) and ``encode <name>`` (one image) for each encoder.

    A multiply-add of matrix products, convolutions and attention is 2 FLOPs; element-wise operations are not counted.

    Args:
        generator: the generator's folder and settings.
        encoders: the image encoders of the run.
        decoder: replaces the generator's own.

    Raises:
        InputError: a configuration is missing, or no model can be built from it.
    """
    try:
        return {
            PROMPT: _prompt_flops(generator),
            **_denoise_flops(generator),
            DECODE: _decode_flops(generator, decoder),
            **{f"encode {files.name}": encode_flops(files) for files in encoders},
        }
    except (OSError, KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise InputError(
            got=f"{generator.folder if decoder is None else decoder.folder}, whose configurations define no model ({reason(error)})",
            expected="a whole diffusers folder",
            do="restore its configurations, as save_pretrained() writes them",
        ) from None


def decode_flops(generator: Generator, *, decoder: DecoderFiles | None = None) -> float:
    """Return the FLOPs of decoding one image; arguments and errors are those of ``stage_flops``."""
    return stage_flops(generator, (), decoder=decoder)[DECODE]


def _count(build: Callable[[], Any], call: Callable[[Any], Any]) -> float:
    with torch.inference_mode():
        with torch.device("meta"):
            module = build().eval().requires_grad_(False)
        # Not on that device by default: what a model keeps from a call, as BEiT does its index of positions, would be of no use later.
        with FlopCounterMode(display=False) as counter:
            call(module)
    return float(counter.get_total_flops())


class WholePrompts(TorchFunctionMode):
    """Answers what a model asks of a mask without numbers: how many tokens each prompt has, and whether there is no padding."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self._tokens = tokens

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func is torch.Tensor.tolist and args[0].is_meta:
            return [self._tokens] * args[0].numel()
        if func is torch.Tensor.__getitem__ and isinstance(args[1], torch.Tensor) and args[1].is_meta and args[1].dtype == torch.bool:
            return args[0]
        if func is torch.Tensor.__bool__ and args[0].is_meta:
            return True
        return func(*args, **(kwargs or {}))


@contextmanager
def _without_autocast() -> Iterator[None]:
    """Let models switch autocast off on the meta device too, which has none: torch raises an error (ERNIE-Image's transformer does so)."""
    name, own = "autocast", torch.autocast
    setattr(torch, name, lambda device_type, **how: nullcontext() if device_type == "meta" else own(device_type, **how))
    try:
        yield
    finally:
        setattr(torch, name, own)


def _call_on(*inputs: Any) -> Callable[[Any], Any]:
    return lambda module: module(*inputs)


def _prompt_flops(generator: Generator) -> float:
    family, flops = generator.family, 0.0
    for _, name in family.text_parts:
        ids_BT = torch.zeros(1, family.text_length(name), dtype=torch.long, device="meta")
        with WholePrompts(family.text_length(name)):
            flops += _count(partial(model_class(family, name), text_config(family, name)), _call_on(ids_BT))
    return flops


def _denoise_flops(generator: Generator) -> dict[str, float]:
    flops, settings = dict[str, float](), generator.settings
    with torch.inference_mode():
        denoiser = denoiser_of(generator.family)
        if settings.deepcache > 1:
            DeepReuse(denoiser, settings.deepcache, settings.deepcache_cut).start()
        for stage in (DENOISE, REUSE) if settings.deepcache > 1 else (DENOISE,):  # the first is whole
            with FlopCounterMode(display=False) as counter:
                first_prediction(generator, denoiser, images=1, copies=1)
            flops[stage] = float(counter.get_total_flops())
    return flops


def denoising_flops(generator: Generator, row_flops: Mapping[str, float]) -> float:
    """Return the FLOPs of denoising one image, from those of a row as ``stage_flops`` counts them."""
    rows = denoiser_rows(generator)
    return rows.whole * row_flops[DENOISE] + rows.reused * row_flops.get(REUSE, 0.0)


def image_flops(generator: Generator, row_flops: Mapping[str, float]) -> float:
    """Return the FLOPs of one image from its prompt to its pixels, from those of a row as ``stage_flops`` counts them."""
    return row_flops[PROMPT] + denoising_flops(generator, row_flops) + row_flops[DECODE]


def first_prediction(generator: Generator, denoiser: Any, *, images: int, copies: int) -> torch.Tensor:
    """Return the denoiser's prediction in the first step, on the meta device, for prompts as long as it reads.

    Args:
        generator: the folder and settings.
        denoiser: on the meta device, in its dtype.
        images: generated at once.
        copies: rows of the denoiser for each: 2 with classifier-free guidance.
    """
    family, settings, dtype = generator.family, generator.settings, dtype_of(denoiser)
    sampling = Sampling(images=images, size_px=generator.size_px, steps=settings.steps, guidance=settings.guidance)
    scheduler = own_scheduler(family)
    family.set_timesteps(scheduler, sampling)
    time = family.times(scheduler)[0]
    step = Step(number=0, last=0, on_host=time, on_device=time.to("meta"))
    latents = family.first_latents(scheduler, torch.zeros(images, *generator.latent_shape, device="meta"), dtype)
    parts = Parts(denoiser=denoiser, vae=None, scheduler=scheduler, tokenizers={}, text_encoders={}, device=torch.device("meta"))
    embeddings, tokens = _longest_prompts(family, images, dtype)
    negative = embeddings if copies == 2 else None
    with WholePrompts(tokens), _without_autocast():
        predicted: torch.Tensor = family.predict(parts, latents, step, family.conditions(parts, embeddings, negative, sampling), copies)
    return predicted


def _longest_prompts(family: Family, prompts: int, dtype: torch.dtype) -> tuple[PromptEmbeddings, int]:
    shapes = family.embedding_shapes()
    tokens = next(shape[0] for shape, _ in shapes.values() if len(shape) == 2)
    tensors = {
        name: torch.full((prompts,), tokens)
        if name == LENGTHS
        else torch.zeros((prompts, *shape), dtype=dtype if own.is_floating_point else own, device="meta")
        for name, (shape, own) in shapes.items()
    }
    return PromptEmbeddings(tensors), tokens


def denoiser_of(family: Family) -> Any:
    """Return the denoiser on the meta device, in float32."""
    with torch.device("meta"):
        return model_class(family, family.denoiser).from_config(family.configs[family.denoiser]).eval().requires_grad_(False)


def decoder_of(family: Family, decoder: DecoderFiles | None) -> Any:
    """Return the generator's own decoder, or the one in its place, on the meta device, in float32."""
    from diffusers import AutoencoderTiny

    with torch.device("meta"):
        if decoder is not None and not decoder.halves:
            return AutoencoderTiny.from_config(read_config(decoder.folder / "config.json")).eval().requires_grad_(False)
        vae = model_class(family, "vae").from_config(family.configs["vae"]).eval().requires_grad_(False)
        return vae if decoder is None else halve(vae)


def _decode_flops(generator: Generator, decoder: DecoderFiles | None) -> float:
    latents_BChw = torch.zeros(1, *generator.latent_shape, device="meta")
    return _count(partial(decoder_of, generator.family, decoder), lambda vae: generator.family.decode(vae, latents_BChw))


def encode_flops(files: EncoderFiles) -> float:
    """Return the FLOPs of encoding one image."""
    pixels_B3SS = torch.zeros(1, 3, files.preprocessing.size_px, files.preprocessing.size_px, device="meta")
    return _count(partial(skeleton, files), _call_on(pixels_B3SS))
