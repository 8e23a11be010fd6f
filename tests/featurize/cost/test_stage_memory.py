"""Counted memory: by hand, against what torch allocates, and for a tiny family; no scores of attention, the copies of cuDNN."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from featurize.cost.stage_cost import stage_flops
from featurize.cost.stage_memory import decoder_part, denoiser_part, peak_bytes, text_parts
from featurize.generate.decoders import DecoderFiles
from featurize.generate.generators import Generator, find_generator, generator_settings
from featurize.generate.tokenizers import load_tokenizers
from tests.support.tiny_pipelines import tiny_pipeline

F = nn.functional


class Layer(nn.Module):
    """A layer of a transformer, with fused attention."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.read = nn.LayerNorm(64), nn.Linear(64, 192)
        self.widen, self.narrow = nn.Linear(64, 256), nn.Linear(256, 64)

    def forward(self, tokens_BTD: torch.Tensor) -> torch.Tensor:
        rows, tokens, width = tokens_BTD.shape
        query, key, value = (part.view(rows, tokens, 4, 16).transpose(1, 2) for part in self.read(self.norm(tokens_BTD)).chunk(3, -1))
        tokens_BTD = tokens_BTD + F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(rows, tokens, width)
        wide: torch.Tensor = tokens_BTD + self.narrow(F.gelu(self.widen(self.norm(tokens_BTD))))
        return wide


def _allocated_peak(call: nn.Module, tokens: torch.Tensor) -> int:
    """Return the most bytes that the CPU's allocator held for a call, by torch's profiler."""
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        call(tokens)
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def test_the_count_is_what_torch_allocates() -> None:
    layer, tokens_BTD = Layer().eval(), torch.zeros(4, 10, 64)
    allocated = _allocated_peak(layer, tokens_BTD)
    # Queries, keys and values, whose views live on; the tokens after attention; the wide values before and after their nonlinearity.
    assert allocated == 4 * 10 * 4 * (192 + 64 + 256 + 256)
    layer, tokens_BTD = layer.to("meta"), tokens_BTD.to("meta")
    assert peak_bytes(lambda: layer(tokens_BTD)) == allocated


def test_views_and_weights_take_nothing_and_what_is_freed_is_given_back() -> None:
    weight_DK = torch.zeros(8, 32, device="meta")

    def call() -> torch.Tensor:
        for _ in range(5):
            wide_BK = torch.zeros(2, 8, device="meta") @ weight_DK.view(8, 32)
            wide_BK.mul_(2)
            narrow_BD = wide_BK.view(2, 32)[:, :4]
        return narrow_BD.T

    assert peak_bytes(call) == (2 * 8 + 2 * 32 + 2 * 32) * 4  # the second round begins before the first one's result is let go


@pytest.mark.parametrize(("mask_dtype", "mask_bytes"), [(None, 0), (torch.bool, 2 * 100 * 50 * 2), (torch.float16, 2 * 100 * 50 * 2)])
def test_attention_holds_no_scores(mask_dtype: torch.dtype | None, mask_bytes: int) -> None:
    query, key, value = (torch.zeros(2, 4, length, 16, device="meta", dtype=torch.float16) for length in (100, 50, 50))
    mask = None if mask_dtype is None else torch.ones(2, 1, 100, 50, device="meta", dtype=mask_dtype)
    counted = peak_bytes(lambda: F.scaled_dot_product_attention(query, key, value, attn_mask=mask))
    assert counted == 2 * 4 * 100 * 16 * 2 + 2 * 4 * 100 * 4 + mask_bytes


def test_channels_last_convolutions_copy_an_input_of_another_layout() -> None:
    convolution = nn.Conv2d(3, 8, 3, padding=1, device="meta")
    pixels = torch.zeros(1, 3, 16, 16, device="meta")
    plain = peak_bytes(lambda: convolution(pixels))
    assert plain == 8 * 256 * 4
    convolution = convolution.to(memory_format=torch.channels_last)
    assert peak_bytes(lambda: convolution(pixels)) == plain + 3 * 256 * 4
    assert peak_bytes(lambda: convolution(pixels.to(memory_format=torch.channels_last))) == plain + 3 * 256 * 4  # the copy is our own
    # Its output is channels last, which the norm on a GPU copies.
    norm = nn.GroupNorm(2, 8, device="meta")
    assert peak_bytes(lambda: norm(convolution(pixels))) >= 3 * plain


@pytest.fixture(scope="module")
def ernie(tmp_path_factory: pytest.TempPathFactory) -> Generator:
    """Of the families, the one whose transformer asks most of the meta device."""
    folder = tiny_pipeline("ernie", tmp_path_factory.mktemp("ernie") / "generator")
    return find_generator(str(folder), generator_settings(str(folder), {"size_px": 64, "steps": 2}), half=False)


def test_a_family_is_counted_row_by_row(ernie: Generator) -> None:
    assert all(stage_flops(ernie, ()).values())
    for part in (denoiser_part(ernie, torch.bfloat16, "cuda"), decoder_part(ernie, torch.bfloat16, "cuda")):
        one, two, five = (part.peak_bytes(rows) for rows in (1, 2, 5))
        assert one > 0
        assert five - two == pytest.approx(3 * (two - one), rel=0.001)
        assert part.weight_bytes == pytest.approx(2 * sum(weight.numel() for weight in part.model.parameters()), rel=0.01)
    (text,) = text_parts(ernie, torch.bfloat16, load_tokenizers(ernie))
    assert text.peak_bytes(4) > text.peak_bytes(1) > 0


def test_float32_takes_twice_as_much(ernie: Generator) -> None:
    half, full = (decoder_part(ernie, dtype, "cpu") for dtype in (torch.bfloat16, torch.float32))
    assert full.weight_bytes == pytest.approx(2 * half.weight_bytes, rel=0.01)
    assert full.peak_bytes(2) == pytest.approx(2 * half.peak_bytes(2), rel=0.5)


def test_a_tiny_decoder_is_counted_instead_of_the_generators_own(ernie: Generator, tmp_path: Path) -> None:
    from diffusers import AutoencoderTiny

    AutoencoderTiny(
        latent_channels=ernie.latent_shape[0], encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4
    ).save_config(tmp_path)
    own = decoder_part(ernie, torch.float32, "cpu")
    tiny = decoder_part(
        ernie,
        torch.float32,
        "cpu",
        decoder=DecoderFiles(name="tiny", folder=tmp_path, revision=None, weights_hash="", license=""),
    )
    assert 0 < tiny.weight_bytes < own.weight_bytes
