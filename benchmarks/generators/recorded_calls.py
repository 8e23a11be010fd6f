"""The forward passes of a generator that one image needs, recorded from our own run: the lower bound of anything that runs them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from featurize.generate.text_to_image import TextToImage


@dataclass(frozen=True)
class Call:
    """One call of a model: the name of its folder, the method, and what it was given."""

    part: str
    method: str
    arguments: tuple[Any, ...]
    named: Mapping[str, Any]


def recorded_calls(models: TextToImage, prompt: str, seed: int) -> list[Call]:
    """Generate one image; return every call of text encoders, denoiser and decoder, in order."""
    calls: list[Call] = []
    with _recording(models, calls):
        with models.text_encoder_on_device():
            embeddings = models.encode_prompts([prompt])
        models.decode(models.denoise(embeddings, [seed]))
    return calls


@torch.inference_mode()
def replay(models: TextToImage, calls: list[Call]) -> None:
    """Make the calls again."""
    parts = _parts(models)
    for call in calls:
        getattr(parts[call.part], call.method)(*call.arguments, **call.named)


def _parts(models: TextToImage) -> dict[str, Any]:
    return {**models.parts.text_encoders, models.family.denoiser: models.parts.denoiser, "vae": models.parts.vae}


@contextmanager
def _recording(models: TextToImage, calls: list[Call]) -> Iterator[None]:
    hooks, vae = [], models.parts.vae
    decode = vae.decode

    def note(name: str) -> Any:
        return lambda _, arguments, named: calls.append(Call(name, "__call__", arguments, named))

    def noted_decode(*arguments: Any, **named: Any) -> Any:
        calls.append(Call("vae", "decode", arguments, named))
        return decode(*arguments, **named)

    for name, part in _parts(models).items():
        if name != "vae":
            hooks.append(part.register_forward_pre_hook(note(name), with_kwargs=True))
    vae.decode = noted_decode
    try:
        yield
    finally:
        del vae.decode
        for hook in hooks:
            hook.remove()
