"""What makes the same arithmetic faster on a card: attention kernels, memory layout, compilation. None of it is in a fingerprint."""

import statistics
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch

from featurize.options import AttentionChoice, CompileChoice
from lugpi_core.command_line import say
from lugpi_core.errors import InputError
from lugpi_core.runtime.pretrained import reason

CompiledPart = Literal["off", "regional", "whole"]

_TRIALS = 5


@dataclass(frozen=True, kw_only=True)
class _Gain:
    """What a way of compiling costs once, and how many times faster UNet and decoder then are."""

    cost_s: float
    times_faster: float


# Rounded from what diffusers' own documentation reports for Stable Diffusion class UNets on recent cards; not measured here yet.
_GAINS: dict[CompiledPart, _Gain] = {
    "off": _Gain(cost_s=0, times_faster=1),
    "regional": _Gain(cost_s=15, times_faster=1.1),
    "whole": _Gain(cost_s=90, times_faster=1.25),
}
# Up to so many latent cells a forward, launching the kernels takes as long as running them: 4 rows at 512 px.
_CELLS_OF_A_GRAPH = 4 * 64 * 64


def memory_format(device_type: str) -> str:
    """Return how convolution weights are laid out: channels last where tensor cores read them so; on the CPU it changes nothing worth
    having (measured with the embedded models: UNet 1.08 times, decoder 1.00 times as fast)."""
    return "channels_last" if device_type == "cuda" else "contiguous_format"


def set_attention(unet: Any, wanted: AttentionChoice, device: torch.device, latent_shape: tuple[int, int, int]) -> str:
    """Choose the attention kernels; return the class of the UNet's processors, looked up afterwards, for the record.

    ``auto`` times one forward with PyTorch's kernels and one with xformers on the device, and keeps the faster.

    Args:
        unet: on the device.
        wanted: the user's choice.
        device: where it computes.
        latent_shape: (C, h, w) of the run.

    Raises:
        InputError: xformers is asked for and does not run here.
    """
    from diffusers.utils import is_xformers_available

    can = device.type == "cuda" and is_xformers_available()
    if wanted == "xformers" and not can:
        raise InputError(
            got=f"--attention xformers on {device.type}",
            expected="a CUDA device and an xformers that fits the installed torch",
            do="use --attention sdpa",
        )
    if can and wanted == "xformers":
        _switch_to_xformers(unet, must=True)
    elif can and wanted == "auto":
        own, own_s = unet.attn_processors, _forward_s(unet, device, latent_shape)
        if _switch_to_xformers(unet, must=False):
            try:
                theirs_s = _forward_s(unet, device, latent_shape)
            except (NotImplementedError, ValueError, RuntimeError) as error:  # it runs, but not at these shapes
                unet.set_attn_processor(own)
                say(f"attention: xformers does not run here ({reason(error)})")
            else:
                if own_s < theirs_s:
                    unet.set_attn_processor(own)
                say(f"attention: a UNet forward takes {own_s * 1e3:.1f} ms with PyTorch's kernels, {theirs_s * 1e3:.1f} ms with xformers")
    processors = {type(one).__name__ for one in unet.attn_processors.values()}
    assert len(processors) == 1, processors
    return processors.pop()


def _switch_to_xformers(unet: Any, *, must: bool) -> bool:
    """Switch the UNet to xformers, which diffusers tries out on the device first; without ``must``, leave PyTorch's kernels if it fails."""
    try:
        unet.enable_xformers_memory_efficient_attention()
    except (NotImplementedError, ImportError, ValueError, RuntimeError) as error:
        if must:
            raise InputError(
                got=f"--attention xformers, which does not run here ({reason(error)})",
                expected="an xformers that fits the installed torch and the device",
                do="use --attention sdpa",
            ) from None
        return False
    return True


@torch.inference_mode()
def _forward_s(unet: Any, device: torch.device, latent_shape: tuple[int, int, int]) -> float:
    """Return the median seconds of a UNet forward of two rows of zeros, the first of them not counted."""
    config, like = unet.config, {"device": device, "dtype": unet.dtype}
    conditions: dict[str, Any] = {"encoder_hidden_states": torch.zeros((2, 77, config.cross_attention_dim), **like)}
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        conditions["added_cond_kwargs"] = {"text_embeds": torch.zeros((2, pooled), **like), "time_ids": torch.zeros((2, 6), **like)}
    latents, step = torch.zeros((2, *latent_shape), **like), torch.ones((), device=device)
    seconds = []
    for _ in range(_TRIALS + 1):
        start_s = time.perf_counter()
        unet(latents, step, **conditions, return_dict=False)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start_s)
    return statistics.median(seconds[1:])


def choose_compilation(wanted: CompileChoice, device_type: str, seconds: float | None, *, branching: bool) -> CompiledPart:
    """Return what to compile of the UNet and the decoder.

    Args:
        wanted: the user's choice; ``on`` takes whichever of the two ways ends sooner, ``auto`` also takes none when that does.
        device_type: on the CPU ``auto`` compiles nothing, for the bytes of a resumed run are then those of a straight one.
        seconds: what drawing is expected to take uncompiled; None = unknown.
        branching: whether the UNet's forward differs from step to step (DeepCache); then only its blocks can be compiled.
    """
    if wanted == "off" or (wanted == "auto" and (device_type == "cpu" or seconds is None)):
        return "off"
    ways: list[CompiledPart] = ["regional"] if branching else ["regional", "whole"]
    if wanted == "auto":
        ways.append("off")
    expected_s = seconds or 0.0
    return min(ways, key=lambda way: _GAINS[way].cost_s + expected_s / _GAINS[way].times_faster)


class Compilation:
    """The compiled state of a UNet and a decoder.

    Another number of rows than the usual one would be compiled anew, for minutes: sizes that come for the first time, but for the very
    first, run uncompiled.
    """

    def __init__(self, unet: Any, vae: Any) -> None:
        self.part: CompiledPart = "off"
        self.graphs = False
        self._unet, self._vae = unet, vae
        self._seen: dict[str, Counter[int]] = {}
        self._paused = False

    def switch_on(self, part: CompiledPart, *, rows: int, latent_shape: tuple[int, int, int]) -> None:
        """Compile at the next forward; small forwards as CUDA graphs.

        Args:
            part: ``regional`` = the repeated transformer blocks of the UNet; ``whole`` = UNet and decoder.
            rows: of a UNet forward.
            latent_shape: (C, h, w).
        """
        self.part, self._seen = part, {}
        if part == "regional":
            self._unet.compile_repeated_blocks()
        elif part == "whole":
            self.graphs = self._unet.device.type == "cuda" and rows * latent_shape[1] * latent_shape[2] <= _CELLS_OF_A_GRAPH
            self._unet.compile(mode="reduce-overhead" if self.graphs else None)
            self._vae.decoder.compile()

    def switch_off(self) -> None:
        """Run uncompiled from now on."""
        self.part, self.graphs = "off", False
        for module in (*self._unet.modules(), *self._vae.modules()):
            module._compiled_call_impl = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Run the block uncompiled."""
        if self.part == "off":  # spares the import of what compiles, 100 MB
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
        """Run the block compiled when its size is a usual one."""
        if self.part == "off" or self._paused:
            yield
            return
        seen = self._seen.setdefault(stage, Counter())
        usual = not seen or seen[rows] > 0
        seen[rows] += 1
        with torch.compiler.set_stance("default" if usual else "force_eager"):
            yield
