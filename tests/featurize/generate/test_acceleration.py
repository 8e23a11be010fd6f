"""What is compiled, when, and that it computes the same. The tests of attention kernels are in a file of their own."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from torch import nn

from featurize.generate.acceleration import COMPILE_FROM_IMAGES, Compilation, CompiledPart, choose_compilation
from featurize.generate.generators import find_generator, generator_settings
from featurize.generate.text_to_image import TextToImage
from featurize.options import CompileChoice
from lugpi_core.runtime.device import resolve_compute
from tests.support.checkout import Command

# torch's own compiler meets torch's own deprecations when it is imported.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
LATENT_SHAPE = (4, 64, 64)


@pytest.mark.parametrize(
    ("choice", "device", "images", "branching", "expected"),
    [
        ("off", "cuda", 10**6, False, "off"),
        ("auto", "cpu", 10**6, False, "off"),
        ("auto", "cuda", COMPILE_FROM_IMAGES - 1, False, "off"),
        ("auto", "cuda", COMPILE_FROM_IMAGES, False, "whole"),
        ("auto", "cuda", COMPILE_FROM_IMAGES, True, "regional"),
        ("on", "cpu", 1, False, "regional"),
        ("on", "cuda", 1, False, "regional"),
        ("on", "cuda", COMPILE_FROM_IMAGES, False, "whole"),
        ("on", "cuda", COMPILE_FROM_IMAGES, True, "regional"),
    ],
)
def test_what_is_compiled_follows_from_the_number_of_images(
    choice: CompileChoice, device: str, images: int, branching: bool, expected: CompiledPart
) -> None:
    assert choose_compilation(choice, device, images, branching=branching) == expected


class _Inner(nn.Module):
    """Torch compiles no module of its own alone, so this one is ours."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values * 2 + 1


class _Part(nn.Module):
    """A module with one part in it, that tells how it was asked to compile."""

    _repeated_blocks = ("_Inner",)

    def __init__(self, device: str = "cpu") -> None:
        super().__init__()
        self.decoder = _Inner()
        self.device = torch.device(device)
        self.asked: list[Any] = []

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.decoder(values)
        return result

    def compile(self, mode: str | None = None) -> None:
        self.asked.append(mode)
        super().compile()

    def compile_repeated_blocks(self) -> None:
        self.decoder.compile()


class _Counting:
    """A compiler that only counts: how often it compiled, and how often what it compiled ran."""

    def __init__(self) -> None:
        self.compiled = self.ran = 0

    def __call__(self, graph: Any, _: Any) -> Callable[..., Any]:
        self.compiled += 1

        def run(*inputs: Any) -> Any:
            self.ran += 1
            return graph.forward(*inputs)

        return run


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Counting]:
    """Let every module compile with a compiler that counts."""
    compiler = _Counting()

    def compile_module(module: Any, mode: str | None = None) -> None:
        module._compiled_call_impl = torch.compile(module._call_impl, backend=compiler)

    monkeypatch.setattr(nn.Module, "compile", compile_module)
    torch._dynamo.reset()
    yield compiler
    torch._dynamo.reset()


def _forward(compilation: Compilation, unet: nn.Module, rows: int) -> None:
    with torch.inference_mode(), compilation.for_rows("denoise", rows):
        unet(torch.zeros(rows, 3))


def test_nothing_is_compiled_until_it_is_switched_on(counting: _Counting) -> None:
    unet = _Part()
    compilation = Compilation(unet, _Part())
    for rows in (4, 4):
        _forward(compilation, unet, rows)
    assert (compilation.part, compilation.graphs) == ("off", False)
    assert (counting.compiled, counting.ran) == (0, 0)


@pytest.mark.parametrize("part", ["regional", "whole"])
def test_only_usual_sizes_run_compiled(counting: _Counting, part: CompiledPart) -> None:
    unet = _Part()
    compilation = Compilation(unet, _Part())
    compilation.switch_on(part, rows=4, latent_shape=LATENT_SHAPE)
    counts = []
    for rows in (4, 4, 2, 4, 1, 3, 4):  # the last block of a shard, and halves after a lack of memory, come for the first time
        _forward(compilation, unet, rows)
        counts.append((counting.compiled, counting.ran))
    assert counts == [(1, 1), (1, 2), (1, 2), (1, 3), (1, 3), (1, 3), (1, 4)]
    _forward(compilation, unet, 2)
    assert counting.compiled == 2, "what comes again is usual"


def test_the_sizes_of_one_stage_say_nothing_of_another(counting: _Counting) -> None:
    unet, vae = _Part(), _Part()
    compilation = Compilation(unet, vae)
    compilation.switch_on("whole", rows=4, latent_shape=LATENT_SHAPE)
    _forward(compilation, unet, 4)
    with torch.inference_mode(), compilation.for_rows("decode", 2):
        vae.decoder(torch.zeros(2, 3))
    assert (counting.compiled, counting.ran) == (2, 2)


def test_a_pause_runs_uncompiled_and_its_sizes_do_not_count(counting: _Counting) -> None:
    unet = _Part()
    compilation = Compilation(unet, _Part())
    compilation.switch_on("whole", rows=4, latent_shape=LATENT_SHAPE)
    _forward(compilation, unet, 4)
    with compilation.paused():
        for rows in (1, 1, 1, 4):
            _forward(compilation, unet, rows)
    assert (counting.compiled, counting.ran) == (1, 1)
    _forward(compilation, unet, 1)
    assert (counting.compiled, counting.ran) == (1, 1)
    _forward(compilation, unet, 4)
    assert (counting.compiled, counting.ran) == (1, 2)


def test_switched_off_all_runs_as_before(counting: _Counting) -> None:
    unet, vae = _Part(), _Part()
    compilation = Compilation(unet, vae)
    compilation.switch_on("regional", rows=4, latent_shape=LATENT_SHAPE)
    compilation.switch_on("whole", rows=4, latent_shape=LATENT_SHAPE)
    assert unet._compiled_call_impl is not None
    compilation.switch_off()
    assert not [module for module in (*unet.modules(), *vae.modules()) if module._compiled_call_impl is not None]
    for rows in (4, 4):
        _forward(compilation, unet, rows)
    assert (compilation.part, compilation.graphs, counting.compiled) == ("off", False, 0)


@pytest.mark.parametrize(("device", "rows", "graphs"), [("cuda", 4, True), ("cuda", 5, False), ("cuda", 1, True), ("cpu", 1, False)])
def test_small_forwards_on_a_card_become_graphs(counting: _Counting, device: str, rows: int, graphs: bool) -> None:
    unet = _Part(device)
    compilation = Compilation(unet, _Part(device))
    compilation.switch_on("whole", rows=rows, latent_shape=LATENT_SHAPE)
    assert compilation.graphs == graphs
    assert unet.asked == ["reduce-overhead" if graphs else None]
    assert counting.compiled == 0


@pytest.mark.parametrize("part", ["regional", "whole"])
def test_the_demo_generates_the_same_compiled_and_redoes_uncompiled(counting: _Counting, part: CompiledPart) -> None:
    generator = find_generator("demo", generator_settings("demo", {"steps": 2, "size_px": 32}), half=False)
    model = TextToImage(generator, resolve_compute("cpu", "float32", half="float16"))
    with model.text_encoder_on_device():
        two = model.encode_prompts(["a cat", "snow"])
    plain = model.denoise(two, [1, 2])
    images = model.decode(plain)
    model.compilation.switch_on(part, rows=4, latent_shape=generator.latent_shape)
    model.warm_up(two.rows([0]), 2, 2)
    compiled, ran = counting.compiled, counting.ran
    assert compiled > 0
    assert torch.equal(model.denoise(two, [1, 2]), plain)
    assert torch.equal(model.decode(plain), images)
    assert counting.compiled == compiled, "all of it was compiled beforehand"
    assert counting.ran > ran
    ran = counting.ran
    with model.in_float32():
        for seed in (1, 2, 3):
            model.decode(model.denoise(two.rows([0]), [seed]))
    model.decode(model.denoise(two.rows([0]), [4]))
    assert (counting.compiled, counting.ran) == (compiled, ran)
    model.compilation.switch_off()
    assert torch.equal(model.denoise(two, [1, 2]), plain)
    assert counting.ran == ran


class _Stack(nn.Module):
    """A model of blocks that diffusers does not name, as Sana, PRX and PixArt in 0.42.1."""

    _repeated_blocks = ()

    def __init__(self) -> None:
        super().__init__()
        self.first, self.blocks = _Inner(), nn.ModuleList([_Inner(), _Inner()])
        self.device = torch.device("cpu")

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            values = block(values)
        return values


def test_of_a_transformer_the_blocks_in_its_lists_are_compiled(counting: _Counting) -> None:
    stack = _Stack()
    compilation = Compilation(stack, _Part())
    compilation.switch_on("regional", rows=2, latent_shape=(4, 8, 8))
    _forward(compilation, stack, 2)
    assert counting.ran == 2
    assert stack._compiled_call_impl is None
    assert stack.first._compiled_call_impl is None


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_what_is_run_beforehand_has_the_types_of_what_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of another type would be compiled again, in the middle of the first batch. DPM-Solver++ has float steps at first."""
    generator = find_generator("demo", generator_settings("demo", {"steps": 2, "size_px": 32}), half=False)
    model = TextToImage(generator, resolve_compute("cpu", "float32", half="float16"))
    scheduler = DPMSolverMultistepScheduler.from_config(model.parts.scheduler.config)
    model.parts = dataclasses.replace(model.parts, scheduler=scheduler)
    types: list[tuple[torch.dtype, ...]] = []
    forward = model.parts.denoiser.forward

    def noted(read: torch.Tensor, step: torch.Tensor, **more: Any) -> Any:
        types.append((read.dtype, step.dtype))
        return forward(read, step, **more)

    monkeypatch.setattr(model.parts.denoiser, "forward", noted)
    with model.text_encoder_on_device():
        prompts = model.encode_prompts(["a cat", "snow"])
    model.warm_up(prompts.rows([0]), 2, 2)
    model.denoise(prompts, [1, 2])
    assert len(types) == 3
    assert set(types) == {(torch.float32, torch.int64)}


# Draws compiled and uncompiled, and prints how far they are from each other.
COMPILE = """
import json, sys, torch
from lugpi_core.runtime.libraries import prepare_libraries
prepare_libraries()
from featurize.generate.generators import find_generator, generator_settings
from featurize.generate.text_to_image import TextToImage
from featurize.options import CompileChoice
from lugpi_core.runtime.device import resolve_compute
generator = find_generator("demo", generator_settings("demo", {"steps": 2, "size_px": 32}), half=False)
model = TextToImage(generator, resolve_compute("cpu", "float32", half="float16"))
with model.text_encoder_on_device():
    prompts = model.encode_prompts(["a cat", "snow"])
plain = model.denoise(prompts, [1, 2])
images = model.decode(plain)
model.compilation.switch_on(sys.argv[1], rows=4, latent_shape=generator.latent_shape)
model.warm_up(prompts.rows([0]), 2, 2)
latents = model.denoise(prompts, [1, 2])
apart = [(latents - plain).abs().max().item(), (model.decode(plain) - images).abs().max().item()]
model.compilation.switch_off()
metrics = torch._dynamo.utils.counters["stats"]["unique_graphs"]
print(json.dumps({"apart": apart, "graphs": metrics, "after": torch.equal(model.denoise(prompts, [1, 2]), plain)}))
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles for the CPU with g++, which is not here")
@pytest.mark.parametrize("part", ["regional", pytest.param("whole", marks=pytest.mark.soak)])
def test_really_compiled_latents_are_the_same_to_rounding(part: str, new_command: Command) -> None:
    """The whole denoiser takes a minute and more of g++."""
    done = new_command("-c", COMPILE, part, timeout_s=280)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr.lower(), done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert max(figures["apart"]) <= 1e-4
    assert figures["apart"][0] > 0, "the same bits would be those of the same kernels"
    assert figures["after"]
    assert figures["graphs"] >= 1
