"""All parts of a generator, loaded: models, tokenizers, sampler."""

from typing import Any

import torch

from featurize.generate.decoders import DecoderFiles, load_decoder
from featurize.generate.families.family import Parts
from featurize.generate.generators import Generator
from featurize.generate.load_part import load_part
from featurize.generate.schedulers import load_scheduler
from featurize.generate.tokenizers import load_tokenizers


def load_parts(generator: Generator, dtype: torch.dtype, decoder: DecoderFiles | None, device: torch.device) -> Parts:
    """Return the parts of a generator, on the CPU, in eval mode, without gradients.

    Args:
        generator: the files.
        dtype: that was asked for; some families keep parts in another.
        decoder: replaces the generator's own.
        device: where they will compute.

    Raises:
        InputError: a part does not load, or weights are missing.
    """
    family = generator.family
    # First, because it is quick, and may not take the steps.
    scheduler = load_scheduler(generator)
    tokenizers = load_tokenizers(generator)
    text_encoders = _text_encoders(generator, dtype)
    denoiser = load_part(generator, family.denoiser, dtype)
    vae = load_decoder(generator, decoder, dtype)
    denoiser.eval().requires_grad_(False)
    return Parts(denoiser=denoiser, vae=vae, scheduler=scheduler, tokenizers=tokenizers, text_encoders=text_encoders, device=device)


def load_text_parts(generator: Generator, dtype: torch.dtype, device: torch.device) -> Parts:
    """Return the tokenizers and text encoders of a generator alone, on the CPU, in eval mode, without gradients.

    Raises:
        InputError: a part does not load, or weights are missing.
    """
    tokenizers, text_encoders = load_tokenizers(generator), _text_encoders(generator, dtype)
    return Parts(denoiser=None, vae=None, scheduler=None, tokenizers=tokenizers, text_encoders=text_encoders, device=device)


def _text_encoders(generator: Generator, dtype: torch.dtype) -> dict[str, Any]:
    encoders = {encoder: load_part(generator, encoder, dtype) for _, encoder in generator.family.text_parts}
    for encoder in encoders.values():
        without_cache(encoder.eval().requires_grad_(False))
    return encoders


def without_cache(encoder: Any) -> None:
    """Let a text encoder keep no keys and values for a next token, which nobody asks for: 73 MB a prompt in Qwen 3 of 4 billion."""
    encoder.config.get_text_config().use_cache = False
