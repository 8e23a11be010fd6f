"""What makes the same arithmetic faster on a GPU: attention kernels, memory layout, compilation. None of it is in a fingerprint."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch

from featurize.options import AttentionChoice, CompileChoice
from lugpi_core.errors import InputError
from lugpi_core.runtime.pretrained import reason

CompiledPart = Literal["off", "regional", "whole"]

# Compiling takes about a minute and a half and makes UNet and decoder about a fifth faster, by the documentation of diffusers for recent
# GPUs: from this many images on it pays. Not measured here yet.
COMPILE_FROM_IMAGES = 2000
# Up to this many latent cells a forward, launching the kernels takes as long as running them: 4 rows at 512 px.
_CELLS_OF_A_GRAPH = 4 * 64 * 64


def memory_format(device_type: str) -> str:
    """Return the layout of convolution weights: channels last on CUDA, for the tensor cores. On the CPU that makes little difference
    (measured with the embedded models: UNet 1.08 times, decoder 1.00 times as fast)."""
    return "channels_last" if device_type == "cuda" else "contiguous_format"


def set_attention(denoiser: Any, choice: AttentionChoice, device: torch.device) -> str:
    """Choose the attention kernels; return the class of the denoiser's processors, looked up afterwards, for the record.

    Args:
        denoiser: on the device.
        choice: ``auto`` and ``sdpa`` are PyTorch's own fused kernels.
        device: where it computes.

    Raises:
        InputError: xformers is asked for and does not run here.
    """
    from diffusers import UNet2DConditionModel
    from diffusers.models.attention import AttentionMixin

    is_unet = isinstance(denoiser, UNet2DConditionModel)
    if choice == "xformers" and not is_unet:
        raise InputError(
            got=f"--attention xformers for a {type(denoiser).__name__}", expected="a generator with a UNet", do="use --attention sdpa"
        )
    if choice == "xformers":
        _switch_to_xformers(denoiser, device)
    if not (is_unet or isinstance(denoiser, AttentionMixin)):
        return "sdpa"
    return " ".join(sorted({type(processor).__name__ for processor in denoiser.attn_processors.values()}))


def _switch_to_xformers(unet: Any, device: torch.device) -> None:
    from diffusers.utils import is_xformers_available

    if device.type != "cuda" or not is_xformers_available():
        raise InputError(
            got=f"--attention xformers on {device.type}",
            expected="a CUDA device and an xformers that fits the installed torch",
            do="use --attention sdpa",
        )
    try:
        unet.enable_xformers_memory_efficient_attention()  # tries the kernels out on the device first
    except (NotImplementedError, ImportError, ValueError, RuntimeError) as error:
        raise InputError(
            got=f"--attention xformers, which does not run here ({reason(error)})",
            expected="an xformers that fits the installed torch and the device",
            do="use --attention sdpa",
        ) from None


def choose_compilation(choice: CompileChoice, device_type: str, images: int, *, branching: bool) -> CompiledPart:
    """Return what to compile of the denoiser and the decoder.

    Args:
        choice: the user's; ``on`` compiles the repeated blocks alone below ``COMPILE_FROM_IMAGES`` images, which takes some seconds;
            ``auto`` compiles nothing there, and nothing on the CPU, so that a resumed run computes the same bytes as a straight one.
        device_type: ``cuda`` or ``cpu``.
        images: to be generated.
        branching: whether the forward of a UNet differs from step to step (DeepCache), or the denoiser is a transformer; then its repeated
            blocks alone are compiled.
    """
    if choice == "off" or (choice == "auto" and (device_type == "cpu" or images < COMPILE_FROM_IMAGES)):
        return "off"
    return "regional" if branching or images < COMPILE_FROM_IMAGES else "whole"


class Compilation:
    """The compiled state of a denoiser and a decoder.

    A new number of rows would be compiled again, which takes minutes. So only the first size of a stage is compiled; another size runs
    uncompiled the first time it occurs.
    """

    def __init__(self, denoiser: Any, vae: Any) -> None:
        self.part: CompiledPart = "off"
        self.graphs = False
        self._denoiser, self._vae = denoiser, vae
        self._seen: dict[str, Counter[int]] = {}
        self._paused = False

    def switch_on(self, part: CompiledPart, *, rows: int, latent_shape: tuple[int, int, int]) -> None:
        """Compile at the next forward; small forwards become CUDA graphs.

        Args:
            part: ``regional`` = the repeated transformer blocks of the denoiser; ``whole`` = denoiser and decoder.
            rows: of a forward of the denoiser.
            latent_shape: (C, h, w).
        """
        self.part, self._seen = part, {}
        if part == "regional":
            _compile_repeated_blocks(self._denoiser)
        elif part == "whole":
            self.graphs = self._denoiser.device.type == "cuda" and rows * latent_shape[1] * latent_shape[2] <= _CELLS_OF_A_GRAPH
            self._denoiser.compile(mode="reduce-overhead" if self.graphs else None)
            self._vae.decoder.compile()

    def switch_off(self) -> None:
        """Run uncompiled from now on."""
        self.part, self.graphs = "off", False
        for module in (*self._denoiser.modules(), *self._vae.modules()):
            module._compiled_call_impl = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Run the block uncompiled."""
        if self.part == "off":  # avoids importing the compiler, 100 MB
            yield
            return
        self._paused = True
        try:
            with torch.compiler.set_stance("force_eager"):
                yield
        finally:
            self._paused = False

    @contextmanager
    def for_rows(self, stage: str, rows: int) -> Iterator[None]:
        """Run the block compiled if its number of rows is the first one of the stage, or has occurred before."""
        if self.part == "off" or self._paused:
            yield
            return
        seen = self._seen.setdefault(stage, Counter())
        usual = not seen or seen[rows] > 0
        seen[rows] += 1
        with torch.compiler.set_stance("default" if usual else "force_eager"):
            yield


def _compile_repeated_blocks(denoiser: Any) -> None:
    """Compile the blocks that diffusers names; of a model where it names none (Sana, PixArt, PRX and others in 0.42.1), its lists."""
    if denoiser._repeated_blocks:
        denoiser.compile_repeated_blocks()
        return
    for blocks in denoiser.children():
        if isinstance(blocks, torch.nn.ModuleList):
            for block in blocks:
                block.compile()
