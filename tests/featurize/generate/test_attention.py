"""The UNet's attention kernels: the ones that are asked for, and in the record what the UNet really has."""

import copy
from typing import Any

import pytest
import torch
from diffusers.models import attention_processor

from featurize.generate.acceleration import set_attention
from featurize.generate.generators import Generator, find_generator, generator_settings
from featurize.generate.text_to_image import TextToImage
from featurize.options import AttentionChoice
from lugpi_core.errors import InputError
from lugpi_core.runtime.device import Compute, resolve_compute

CUDA = torch.device("cuda")
OWN, THEIRS = attention_processor.AttnProcessor2_0, attention_processor.XFormersAttnProcessor


@pytest.fixture(scope="module")
def compute() -> Compute:
    return resolve_compute("cpu", "float32", half="float16")


@pytest.fixture(scope="module")
def generator() -> Generator:
    return find_generator("demo", generator_settings("demo", {}), half=False)


@pytest.fixture(scope="module")
def loaded(generator: Generator, compute: Compute) -> Any:
    return TextToImage(generator, compute, attention="sdpa").parts.denoiser


@pytest.fixture
def unet(loaded: Any) -> Any:
    """The demo's UNet with PyTorch's kernels."""
    return copy.deepcopy(loaded)


def _install_xformers(unet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffusers.utils.is_xformers_available", lambda: True)
    monkeypatch.setattr(unet, "enable_xformers_memory_efficient_attention", lambda: unet.set_attn_processor(THEIRS()))


def test_xformers_on_the_cpu_is_refused(generator: Generator, compute: Compute) -> None:
    with pytest.raises(InputError, match=r"got --attention xformers on cpu; expected a CUDA device .*; use --attention sdpa"):
        TextToImage(generator, compute, attention="xformers")


@pytest.mark.parametrize("choice", ["auto", "sdpa"])
def test_the_recorded_attention_is_what_the_unet_has(generator: Generator, compute: Compute, choice: AttentionChoice) -> None:
    model = TextToImage(generator, compute, attention=choice)
    processors = model.parts.denoiser.attn_processors
    assert len(processors) == 2
    assert all(type(one) is OWN for one in processors.values())
    assert model.attention == "AttnProcessor2_0"


@pytest.mark.parametrize(
    ("choice", "recorded"), [("auto", "AttnProcessor2_0"), ("sdpa", "AttnProcessor2_0"), ("xformers", "XFormersAttnProcessor")]
)
def test_xformers_is_taken_only_if_it_is_asked_for(
    unet: Any, monkeypatch: pytest.MonkeyPatch, choice: AttentionChoice, recorded: str
) -> None:
    _install_xformers(unet, monkeypatch)
    assert set_attention(unet, choice, CUDA) == recorded
    assert {type(processor).__name__ for processor in unet.attn_processors.values()} == {recorded}


@pytest.mark.parametrize("error", [NotImplementedError, ImportError, ValueError, RuntimeError])
def test_an_xformers_that_does_not_run_is_refused(unet: Any, monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    _install_xformers(unet, monkeypatch)

    def fail() -> None:
        raise error("No operator found for `memory_efficient_attention_forward`")

    monkeypatch.setattr(unet, "enable_xformers_memory_efficient_attention", fail)
    with pytest.raises(InputError, match=r"--attention xformers, which does not run here \(No operator found"):
        set_attention(unet, "xformers", CUDA)
