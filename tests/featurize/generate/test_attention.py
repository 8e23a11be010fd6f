"""The UNet's attention kernels: the faster where both run, the one that is asked for, and in the record what the UNet really has."""

import copy
from collections.abc import Iterator
from typing import Any

import diffusers
import pytest
import torch
from diffusers.models import attention_processor

from featurize.generate import acceleration
from featurize.generate.acceleration import set_attention
from featurize.generate.generators import Generator, find_generator, generator_settings
from featurize.generate.text_to_image import TextToImage
from featurize.options import AttentionChoice
from lugpi_core.errors import InputError
from lugpi_core.runtime.device import Compute, resolve_compute

CPU, CUDA, SHAPE = torch.device("cpu"), torch.device("cuda"), (4, 8, 8)
OWN, THEIRS = attention_processor.AttnProcessor2_0, attention_processor.XFormersAttnProcessor


@pytest.fixture(scope="module")
def compute() -> Iterator[Compute]:
    """The CPU, on one thread: with models this small two threads wait for each other longer than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield resolve_compute("cpu", "float32", half="float16")
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def generator() -> Generator:
    return find_generator("demo", generator_settings("demo", {}), half=False)


@pytest.fixture(scope="module")
def loaded(generator: Generator, compute: Compute) -> Any:
    return TextToImage(generator, compute, attention="sdpa")._pipeline.unet


@pytest.fixture
def unet(loaded: Any) -> Any:
    """The demo's UNet with PyTorch's kernels."""
    return copy.deepcopy(loaded)


def _xformers_runs(unet: Any, monkeypatch: pytest.MonkeyPatch, *, own_s: float = 1.0, theirs_s: float = 1.0) -> list[Any]:
    """Let xformers be there, and forwards take so long with either's kernels; return the kinds of processors timed."""
    timed: list[Any] = []

    def forward_s(timed_unet: Any, device: torch.device, latent_shape: tuple[int, int, int]) -> float:
        assert (timed_unet, device, latent_shape) == (unet, CUDA, SHAPE)
        timed.append(next(type(one) for one in unet.attn_processors.values()))
        return theirs_s if timed[-1] is THEIRS else own_s

    monkeypatch.setattr("diffusers.utils.is_xformers_available", lambda: True)
    monkeypatch.setattr(unet, "enable_xformers_memory_efficient_attention", lambda: unet.set_attn_processor(THEIRS()))
    monkeypatch.setattr(acceleration, "_forward_s", forward_s)
    return timed


def test_xformers_on_the_cpu_is_refused(generator: Generator, compute: Compute) -> None:
    with pytest.raises(InputError, match=r"got --attention xformers on cpu; expected a CUDA device .*; use --attention sdpa"):
        TextToImage(generator, compute, attention="xformers")


@pytest.mark.parametrize("wanted", ["auto", "sdpa"])
def test_the_recorded_attention_is_what_the_unet_has(generator: Generator, compute: Compute, wanted: AttentionChoice) -> None:
    drawer = TextToImage(generator, compute, attention=wanted)
    processors = drawer._pipeline.unet.attn_processors
    assert len(processors) == 2
    assert all(type(one) is OWN for one in processors.values())
    assert drawer.attention == "AttnProcessor2_0"


@pytest.mark.parametrize("wanted", ["auto", "sdpa"])
def test_on_the_cpu_nothing_is_timed_and_xformers_is_not_tried(unet: Any, monkeypatch: pytest.MonkeyPatch, wanted: AttentionChoice) -> None:
    timed = _xformers_runs(unet, monkeypatch)
    assert set_attention(unet, wanted, CPU, SHAPE) == "AttnProcessor2_0"
    assert timed == []


@pytest.mark.parametrize(("own_s", "theirs_s", "recorded"), [(0.012, 0.010, "XFormersAttnProcessor"), (0.010, 0.012, "AttnProcessor2_0")])
def test_where_xformers_runs_both_are_timed_and_the_faster_is_kept_and_said(
    unet: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], own_s: float, theirs_s: float, recorded: str
) -> None:
    timed = _xformers_runs(unet, monkeypatch, own_s=own_s, theirs_s=theirs_s)
    assert set_attention(unet, "auto", CUDA, SHAPE) == recorded
    assert timed == [OWN, THEIRS]
    assert {type(one).__name__ for one in unet.attn_processors.values()} == {recorded}
    said = capsys.readouterr().err
    assert f"takes {own_s * 1e3:.1f} ms with PyTorch's kernels, {theirs_s * 1e3:.1f} ms with xformers" in said


@pytest.mark.parametrize(("wanted", "recorded"), [("xformers", "XFormersAttnProcessor"), ("sdpa", "AttnProcessor2_0")])
def test_what_is_asked_for_by_name_is_taken_without_timing(
    unet: Any, monkeypatch: pytest.MonkeyPatch, wanted: AttentionChoice, recorded: str
) -> None:
    timed = _xformers_runs(unet, monkeypatch)
    assert set_attention(unet, wanted, CUDA, SHAPE) == recorded
    assert timed == []


@pytest.mark.parametrize("error", [NotImplementedError, ImportError, ValueError, RuntimeError])
def test_an_xformers_that_does_not_run_leaves_auto_with_pytorchs_kernels_and_refuses_its_own_name(
    unet: Any, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    _xformers_runs(unet, monkeypatch)

    def fail() -> None:
        raise error("No operator found for `memory_efficient_attention_forward`")

    monkeypatch.setattr(unet, "enable_xformers_memory_efficient_attention", fail)
    assert set_attention(unet, "auto", CUDA, SHAPE) == "AttnProcessor2_0"
    with pytest.raises(InputError, match=r"--attention xformers, which does not run here \(No operator found"):
        set_attention(unet, "xformers", CUDA, SHAPE)


def _sdxl_unet() -> Any:
    """A UNet that wants pooled text and sizes too, as that of Stable Diffusion XL."""
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=64,
        attention_head_dim=(2, 4),
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 32,
        norm_num_groups=8,
    )


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_a_timed_forward_is_one_of_the_run(unet: Any, kind: str) -> None:
    timed, shapes = unet if kind == "sd" else _sdxl_unet(), []
    timed.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape)))
    shape = (timed.config.in_channels, 8, 8)
    assert acceleration._forward_s(timed, CPU, shape) > 0
    assert shapes == [(2, *shape)] * (acceleration._TRIALS + 1)
