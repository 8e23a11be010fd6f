"""Reuse of the UNet's deep features, held against the plain UNet whose deep output is put in by a hook."""

import copy
import math
import re
import weakref
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any, get_args

import diffusers
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from diffusers.models.unets.unet_2d_blocks import CrossAttnUpBlock2D
from torch.utils.flop_counter import FlopCounterMode

from featurize.generate.deepcache import DeepReuse, whole_steps
from featurize.options import DeepCacheCut
from lugpi_core.errors import InputError
from lugpi_core.runtime.pretrained import embedded_model

SD2 = {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True}
SMALL = {"attention_head_dim": 2, "cross_attention_dim": 16, "norm_num_groups": 4}
SMALL_SD2 = SD2 | SMALL | {"block_out_channels": (8, 16, 16, 16)}
SMALL_SDXL = SMALL | {
    "block_out_channels": (8, 16, 16),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "transformer_layers_per_block": (1, 1, 2),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 16,
}
KINDS = ("demo", "sd2", "sdxl")
each_kind = pytest.mark.parametrize("kind", KINDS)
each_cut = pytest.mark.parametrize("cut", get_args(DeepCacheCut))
Unet = Any
Inputs = dict[str, Any]


def _unet(kind: str) -> Unet:
    """Return a UNet of one's own, of the same weights at every call."""
    return copy.deepcopy(_made(kind))


@cache
def _made(kind: str) -> Unet:
    if kind == "demo":
        return diffusers.UNet2DConditionModel.from_pretrained(embedded_model("generator") / "unet", dtype=torch.float32).eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return diffusers.UNet2DConditionModel(**{"sd2": SMALL_SD2, "sdxl": SMALL_SDXL}[kind]).eval()


def _inputs(unet: Unet, seed: int, *, rows: int = 2, side: int = 8, device: str = "cpu") -> Inputs:
    """Return what a pipeline gives the UNet at one step; noise, text and timestep follow the seed."""
    noise = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=noise).to(device)

    config = unet.config
    inputs: Inputs = {
        "sample": random(rows, config.in_channels, side, side),
        "timestep": torch.tensor(900 - 100 * seed, device=device),
        "encoder_hidden_states": random(rows, 77, config.cross_attention_dim),
    }
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        inputs["added_cond_kwargs"] = {"text_embeds": random(rows, pooled), "time_ids": torch.full((rows, 6), float(side), device=device)}
    return inputs


@torch.inference_mode()
def _out(unet: Unet, inputs: Inputs) -> torch.Tensor:
    out: torch.Tensor = unet(**inputs, return_dict=False)[0]
    return out


def _deep_blocks(unet: Unet) -> list[Any]:
    return [*unet.down_blocks[1:], unet.mid_block, *unet.up_blocks[:-1]]


def _last_deep(unet: Unet, cut: DeepCacheCut) -> Any:
    """Return the module whose output is reused: what comes before the last up block, or before its last layer."""
    if cut == "level":
        return unet.up_blocks[-2]
    last = unet.up_blocks[-1]
    return last.attentions[-2] if isinstance(last, CrossAttnUpBlock2D) else last.resnets[-2]


def _reference(unet: Unet, inputs: list[Inputs], every: int, cut: DeepCacheCut = "level") -> list[torch.Tensor]:
    """Return the outputs of the plain UNet whose last deep output is replaced, between whole steps, by that of the last of them."""
    outputs, kept = [], []

    def replace(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
        if len(outputs) % every == 0:
            kept[:] = [output]
        return kept[0]

    handle = _last_deep(unet, cut).register_forward_hook(replace)
    for one in inputs:
        outputs.append(_out(unet, one))
    handle.remove()
    return outputs


@each_kind
@each_cut
def test_until_the_start_the_unet_computes_the_same_bits(kind: str, cut: DeepCacheCut) -> None:
    unet, plain = _unet(kind), _unet(kind)
    DeepReuse(unet, 2, cut)
    for seed in range(3):
        assert torch.equal(_out(unet, _inputs(unet, seed)), _out(plain, _inputs(plain, seed)))


@each_kind
@each_cut
def test_a_whole_step_is_the_plain_unets_bit_for_bit(kind: str, cut: DeepCacheCut) -> None:
    unet, plain = _unet(kind), _unet(kind)
    reuse = DeepReuse(unet, 2, cut)
    for seed in range(3):
        reuse.start()
        assert torch.equal(_out(unet, _inputs(unet, seed)), _out(plain, _inputs(plain, seed)))


@each_kind
@each_cut
def test_each_step_is_the_unets_with_the_last_whole_deep_output(kind: str, cut: DeepCacheCut) -> None:
    unet, plain = _unet(kind), _unet(kind)
    inputs = [_inputs(plain, seed) for seed in range(5)]
    expected = _reference(plain, inputs, 3, cut)
    reuse = DeepReuse(unet, 3, cut)
    reuse.start()
    for number, (one, expected_output) in enumerate(zip(inputs, expected, strict=True)):
        out = _out(unet, one)
        assert torch.equal(out, expected_output)
        same_as_plain = torch.equal(out, _out(plain, one))
        assert same_as_plain == (number % 3 == 0)


@each_kind
@each_cut
def test_reuse_is_exact_if_nothing_changed_since_the_whole_step(kind: str, cut: DeepCacheCut) -> None:
    unet, plain = _unet(kind), _unet(kind)
    reuse = DeepReuse(unet, 3, cut)
    reuse.start()
    inputs = _inputs(unet, 1)
    expected = _out(plain, inputs)
    for _ in range(3):
        assert (_out(unet, inputs) - expected).abs().max() <= 1e-6


@each_kind
@each_cut
@pytest.mark.parametrize(("every", "steps"), [(2, 5), (3, 4), (10, 3)])
def test_deep_modules_run_at_every_nth_step_only(kind: str, cut: DeepCacheCut, every: int, steps: int) -> None:
    unet = _unet(kind)
    calls: Counter[str] = Counter()

    def count(name: str) -> Callable[..., None]:
        return lambda *_: calls.update([name])

    deep, outer = _deep_blocks(unet), {"conv_in": unet.conv_in, "conv_out": unet.conv_out}
    first, last = unet.down_blocks[0], unet.up_blocks[-1]
    if cut == "level":
        outer |= {"down": first, "up": last}
    else:
        layers = [last.resnets, *([last.attentions] if isinstance(last, CrossAttnUpBlock2D) else [])]
        deep += [first, *(layer for modules in layers for layer in modules[:-1])]
        outer |= {f"last {number}": modules[-1] for number, modules in enumerate(layers)}
    for number, block in enumerate(deep):
        block.register_forward_hook(count(f"deep {number}"))
    for name, block in outer.items():
        block.register_forward_hook(count(name))
    reuse = DeepReuse(unet, every, cut)
    for _ in range(2):
        calls.clear()
        reuse.start()
        for seed in range(steps):
            _out(unet, _inputs(unet, seed))
        assert calls == {
            **{f"deep {number}": math.ceil(steps / every) for number in range(len(deep))},
            **dict.fromkeys(outer, steps),
        }


@each_cut
def test_it_fits_latents_that_do_not_halve_to_the_end(cut: DeepCacheCut) -> None:
    unet, plain = _unet("sd2"), _unet("sd2")
    inputs = [_inputs(plain, seed, side=10) for seed in range(3)]
    reuse = DeepReuse(unet, 2, cut)
    reuse.start()
    assert all(
        torch.equal(_out(unet, one), expected_output)
        for one, expected_output in zip(inputs, _reference(plain, inputs, 2, cut), strict=True)
    )


@each_kind
def test_each_batch_begins_with_a_whole_step_whatever_its_size(kind: str) -> None:
    unet, plain = _unet(kind), _unet(kind)
    reuse = DeepReuse(unet, 3)
    for rows in (2, 5, 1):
        inputs = [_inputs(plain, seed, rows=rows) for seed in range(2)]  # the batch ends between two whole steps
        reuse.start()
        assert all(
            torch.equal(_out(unet, one), expected_output) for one, expected_output in zip(inputs, _reference(plain, inputs, 3), strict=True)
        )


def test_the_two_halves_of_a_guided_batch_keep_to_themselves() -> None:
    unet = _unet("demo")
    reuse = DeepReuse(unet, 2)
    both = [_inputs(unet, seed, rows=6) for seed in range(4)]
    for one in both:
        one["sample"] = torch.cat([one["sample"][:3]] * 2)  # the same latents without and with the prompt

    def outputs(rows: slice) -> list[torch.Tensor]:
        reuse.start()
        return [_out(unet, {name: value[rows] if value.ndim else value for name, value in one.items()}) for one in both]

    doubled, without, prompted = outputs(slice(0, 6)), outputs(slice(0, 3)), outputs(slice(3, 6))
    for whole, first, second in zip(doubled, without, prompted, strict=True):
        assert (whole - torch.cat([first, second])).abs().max() <= 1e-5
        assert (first - second).abs().max() > 1e-3


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' schedulers meet NumPy 2 with it
@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "DPMSolverMultistepScheduler", "PNDMScheduler"])
def test_it_draws_with_any_scheduler_of_a_pipeline(scheduler: str) -> None:
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(embedded_model("generator"), safety_checker=None, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = getattr(diffusers, scheduler).from_config(pipeline.scheduler.config, skip_prk_steps=True)
    forwards: list[bool] = []
    pipeline.unet.mid_block.register_forward_hook(lambda *_: forwards.append(True))
    pipeline.unet.register_forward_hook(lambda *_: forwards.append(False))

    def generate() -> torch.Tensor:
        noise = torch.randn(2, 8, 8, 8, generator=torch.Generator().manual_seed(0))
        latents: torch.Tensor = pipeline(["a", "b"], latents=noise, num_inference_steps=6, guidance_scale=3.0, output_type="latent").images
        return latents

    plain, steps = generate(), forwards.count(False)
    reuse = DeepReuse(pipeline.unet, 2)
    forwards.clear()
    reuse.start()
    reused = generate()
    reuse.stop()
    assert (forwards.count(True), forwards.count(False)) == (math.ceil(steps / 2), steps)
    difference = (reused - plain).abs().max()
    assert 0 < difference < plain.abs().max() / 2
    assert torch.equal(generate(), plain)


@pytest.mark.parametrize(("cut", "channels"), [("level", 16), ("layer", 8)])
def test_a_batch_holds_one_tensor_and_after_it_nothing_is_held(cut: DeepCacheCut, channels: int) -> None:
    unet = _unet("sd2")
    outputs: list[weakref.ref[torch.Tensor]] = []

    def note(_: Any, __: Any, output: Any) -> None:
        outputs.extend(
            weakref.ref(one) for one in ([output[0], *(output[1] if len(output) > 1 else ())] if isinstance(output, tuple) else [output])
        )

    layers = (*unet.up_blocks[-1].resnets, *unet.up_blocks[-1].attentions)
    for block in (unet.conv_in, unet.down_blocks[0], *_deep_blocks(unet), unet.up_blocks[-1], unet.conv_out, *layers):
        block.register_forward_hook(note)
    reuse = DeepReuse(unet, 2, cut)

    def held_after(steps: int) -> list[tuple[int, ...]]:
        for seed in range(steps):
            _out(unet, _inputs(unet, seed, rows=3))
        assert outputs
        return list({id(one): tuple(one.shape) for ref in outputs if (one := ref()) is not None}.values())

    assert held_after(2) == []
    for _ in range(2):
        reuse.start()
        assert held_after(0) == []
        for _ in range(3):
            assert held_after(1) == [(3, channels, 8, 8)]
    reuse.stop()
    assert held_after(0) == []
    assert held_after(3) == []


@each_kind
def test_attention_processors_are_found_and_set_as_before(kind: str) -> None:
    unet, plain = _unet(kind), _unet(kind)
    reuse = DeepReuse(unet, 2)
    assert len(unet.attn_processors) == len(plain.attn_processors)
    unet.set_attn_processor(AttnProcessor())
    assert {type(one) for one in unet.attn_processors.values()} == {AttnProcessor}
    unet.set_attn_processor({name: AttnProcessor2_0() for name in unet.attn_processors})
    assert {type(one) for one in unet.attn_processors.values()} == {AttnProcessor2_0}
    reuse.start()
    assert torch.equal(_out(unet, _inputs(unet, 0)), _out(plain, _inputs(plain, 0)))


def test_the_unet_changes_its_dtype_as_before() -> None:
    unet, plain = _unet("sd2"), _unet("sd2").to(torch.bfloat16)
    reuse = DeepReuse(unet, 2)
    unet.to(torch.bfloat16)
    assert {value.dtype for value in unet.parameters()} == {torch.bfloat16}
    assert sum(value.numel() for value in unet.parameters()) == sum(value.numel() for value in plain.parameters())
    inputs = [
        {name: value.bfloat16() if value.is_floating_point() else value for name, value in _inputs(plain, seed).items()} for seed in (0, 1)
    ]
    reuse.start()
    assert all(
        torch.equal(_out(unet, one), expected_output) for one, expected_output in zip(inputs, _reference(plain, inputs, 2), strict=True)
    )


@each_cut
def test_compiled_it_gives_the_same_with_one_forward_of_each_kind(cut: DeepCacheCut) -> None:
    levels = {"block_out_channels": (8, 8), "down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    unet = diffusers.UNet2DConditionModel(**SMALL, **levels, layers_per_block=1).eval()
    eager = copy.deepcopy(unet)
    reuse, reuse_eager = DeepReuse(unet, 3, cut), DeepReuse(eager, 3, cut)
    unet.compile(backend="eager")

    def same(seeds: range) -> bool:
        return all(torch.equal(_out(unet, _inputs(unet, seed)), _out(eager, _inputs(eager, seed))) for seed in seeds)

    for steps, stance in ((2, "default"), (5, "fail_on_recompile")):
        reuse.start()
        reuse_eager.start()
        with torch.compiler.set_stance(stance):
            assert same(range(steps))
    torch.compiler.reset()


def _one_level(**changes: Any) -> Unet:
    levels = {"block_out_channels": (8,), "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    return diffusers.UNet2DConditionModel(**SMALL, **{**levels, **changes}).eval()


def test_a_unet_of_one_level_has_nothing_deeper_than_its_last_layer() -> None:
    with pytest.raises(InputError, match="got a UNet of one level; expected at least two levels; use --deepcache 1, or --deepcache-cut"):
        DeepReuse(_one_level(), 2)
    unet = _one_level()
    plain = copy.deepcopy(unet)
    inputs = [_inputs(plain, seed) for seed in range(3)]
    expected = _reference(plain, inputs, 2, "layer")
    DeepReuse(unet, 2, "layer").start()
    assert all(torch.equal(_out(unet, one), output) for one, output in zip(inputs, expected, strict=True))


def test_a_last_up_block_that_reads_its_residuals_otherwise_is_refused() -> None:
    unet = diffusers.UNet2DConditionModel(
        **SMALL,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D", "SkipUpBlock2D"),
        layers_per_block=1,
        mid_block_type=None,
    )
    with pytest.raises(
        InputError, match=r"got --deepcache-cut layer for a UNet whose last up block is a SkipUpBlock2D; .*; use --deepcache-cut l"
    ):
        DeepReuse(unet, 2, "layer")


@each_kind
@each_cut
def test_without_its_first_half_a_batch_reuses_the_second(kind: str, cut: DeepCacheCut) -> None:
    """Guidance that ends between two whole steps leaves the rows with the prompt, which are the last."""
    unet, plain = _unet(kind), _unet(kind)
    inputs = [_inputs(plain, seed, rows=4) for seed in range(3)]
    expected = [output[2:] for output in _reference(plain, inputs, 3, cut)]
    DeepReuse(unet, 3, cut).start()
    _out(unet, inputs[0])
    for one, output in zip(inputs[1:], expected[1:], strict=True):
        assert (_out(unet, _rows(one, slice(2, 4))) - output).abs().max() <= 1e-5


@each_cut
def test_rows_that_join_make_a_step_whole(cut: DeepCacheCut) -> None:
    unet, plain = _unet("sd2"), _unet("sd2")
    reuse = DeepReuse(unet, 3, cut)
    reuse.start()
    counts = (1, 1, 2, 2, 1, 1, 2)
    inputs = [_inputs(plain, seed, rows=rows) for seed, rows in enumerate(counts)]
    same = tuple(torch.equal(_out(unet, one), _out(plain, one)) for one in inputs)
    assert same == whole_steps(counts, 3) == (True, False, True, False, False, True, True)


def _rows(inputs: Inputs, rows: slice) -> Inputs:
    return {name: _rows(value, rows) if isinstance(value, dict) else value[rows] if value.ndim else value for name, value in inputs.items()}


def test_a_reuse_step_costs_the_documented_share_of_a_whole_one() -> None:
    shares = []
    for cut in get_args(DeepCacheCut):
        with torch.device("meta"):
            unet = diffusers.UNet2DConditionModel(**SD2).eval()
        reuse = DeepReuse(unet, 2, cut)
        for side in (96, 64):
            flops = []
            reuse.start()
            for _ in range(2):
                with FlopCounterMode(display=False) as counter:
                    _out(unet, _inputs(unet, 0, rows=1, side=side, device="meta"))
                flops.append(counter.get_total_flops())
            shares.append(100 * flops[1] / flops[0])
    assert [f"{share:.1f}" for share in shares] == re.findall(r"([\d.]+) %", str(DeepReuse.__doc__))
    assert shares[-1] <= 15
