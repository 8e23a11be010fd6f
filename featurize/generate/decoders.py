"""Latents to images: the generator's own decoder, whole or at half the side, or a small one instead (TAESD, an AutoencoderTiny of
diffusers).

Source: Ollin Boer Bohan, Tiny AutoEncoder for Stable Diffusion, github.com/madebyollin/taesd: distilled from the decoder of Stable
Diffusion 1 and 2, of XL, of 3 or of FLUX.1, whose autoencoders many other models took over. (Those for FLUX.2, Qwen-Image and Sana are no
AutoencoderTiny of diffusers 0.42.1.) It reads the latents as the denoiser writes them, not divided by the scaling factor (its own
``config.scaling_factor`` is 1), and returns images in about [-1, 1], like every decoder of diffusers. It first bounds the latents by a
tanh, so an infinite latent gives a finite image: check the latents, not the image, for infinities.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from featurize.generate.acceleration import memory_format
from featurize.generate.generators import Generator
from featurize.generate.half_decoder import HALVED_CLASSES, can_be_halved, halve
from featurize.generate.load_part import load_part
from featurize.generate.presets import EMBEDDED_GENERATORS
from lugpi_core.errors import InputError, first_of, nearest
from lugpi_core.fingerprint import hash_model_files
from lugpi_core.runtime.device import Compute
from lugpi_core.runtime.pretrained import EMBEDDED_LICENSE, embedded_model, loading, local_model_folder, read_config
from lugpi_core.store.layout import DECODER_SUFFIXES

_FULL, _TINY, _HALF = "full", "tiny", "half"
# Channels, scaling factor and shift of an AutoencoderKL → the decoder for its latents. They tell latent spaces apart: models that share one
# took the whole autoencoder over, numbers included.
_SOURCES: Mapping[tuple[int, float, float], tuple[str, str]] = {
    (4, 0.18215, 0.0): ("madebyollin/taesd", "Stable Diffusion 1 and 2"),
    (4, 0.13025, 0.0): ("madebyollin/taesdxl", "XL"),
    (16, 1.5305, 0.0609): ("madebyollin/taesd3", "3"),
    (16, 0.3611, 0.1159): ("madebyollin/taef1", "FLUX.1"),
}
_CONFIG, _WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True, kw_only=True)
class DecoderFiles:
    """A decoder whose files are found and fit the generator; nothing is loaded yet.

    Attributes:
        revision: None = the user's folder.
        halves: it is the generator's own at half the side; ``weights_hash`` is empty, because the generator's weights have one.
    """

    name: str
    folder: Path
    revision: str | None
    weights_hash: str
    license: str
    halves: bool = False

    @property
    def origin(self) -> str:
        """Name, and the hub's commit if the files came from there."""
        return self.name if self.revision is None else f"{self.name}@{self.revision}"

    def fingerprint(self) -> dict[str, Any]:
        """Return what decides the image of a given latent, except the dtype."""
        return {"side": "half, by an averaged upsampling"} if self.halves else {"weights": self.weights_hash}

    @property
    def column_suffix(self) -> str:
        """What ends the names of columns of its images."""
        return DECODER_SUFFIXES[_HALF if self.halves else _TINY]


def image_side_px(generator: Generator, decoder: DecoderFiles | None) -> int:
    """Return the side of decoded images."""
    return generator.size_px // 2 if decoder is not None and decoder.halves else generator.size_px


def find_decoder(choice: str, generator: Generator) -> DecoderFiles | None:
    """Return the decoder of a name, its files found or downloaded; None for the generator's own.

    Args:
        choice: ``full`` = the generator's own; ``half`` = the same at half the side; ``tiny`` = the TAESD for the generator's latents (for
            the embedded generator, the embedded one); ``tiny=FOLDER`` = the AutoencoderTiny in that folder.
        generator: whose latents are decoded.

    Raises:
        InputError: unknown name, files that cannot be reached, another class of model, weights that are not safetensors, a decoder for
            latents of other channels or another size, or a generator's that cannot be halved.
    """
    check_decoder_name(choice)
    if choice == _FULL:
        return None
    if choice == _HALF:
        return _half_decoder_of(generator)
    _, is_given, folder = choice.partition("=")
    try:
        if is_given:
            return _decoder_in(_TINY, Path(folder), None, "see the model's own card", generator)
        return _decoder_in(*_tiny_decoder_for(generator), generator)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            got=f"--decoder {choice}, whose configuration lacks something ({error!r})",
            expected="a whole folder",
            do="restore its files, or use --decoder full",
        ) from None


def check_decoder_name(choice: str) -> None:
    """Raise InputError unless it is ``full``, ``half``, ``tiny``, or ``tiny=FOLDER`` with an existing folder."""
    name, is_given, folder = choice.partition("=")
    if choice not in (_FULL, _HALF) and (name != _TINY or (is_given and not (folder and Path(folder).is_dir()))):
        raise InputError(
            got=f"--decoder {choice}",
            expected="full, half, tiny, or tiny=FOLDER with an existing folder",
            do="check the folder's name" if name == _TINY else nearest(name, (_FULL, _HALF, _TINY)),
        )


def _half_decoder_of(generator: Generator) -> DecoderFiles:
    class_name = generator.family.load_class("vae")
    if not can_be_halved(class_name, generator.family.configs["vae"]):
        raise InputError(
            got=f"--decoder half for {generator.name}, whose decoder is of {class_name}",
            expected=f"one of {' or '.join(HALVED_CLASSES)} that upsamples",
            do="use --decoder full, or decode smaller images with --size-px",
        )
    return DecoderFiles(name=_HALF, folder=generator.folder / "vae", revision=None, weights_hash="", license=generator.license, halves=True)


def _tiny_decoder_for(generator: Generator) -> tuple[str, Path, str | None, str]:
    """Return name, folder, revision and licence of the tiny decoder for a generator's latents."""
    # Another folder may have the name too (demo=FOLDER); its latents do not fit this decoder.
    if generator.name in EMBEDDED_GENERATORS and generator.folder == embedded_model(EMBEDDED_GENERATORS[generator.name]):
        return "taesd-demo", embedded_model("tiny"), None, EMBEDDED_LICENSE
    space, vae = _latent_space(generator), generator.family.configs["vae"]
    if space not in _SOURCES or generator.family.load_class("vae") != "AutoencoderKL" or vae.get("latents_mean"):
        raise InputError(
            got=f"--decoder tiny for {generator.name}, of whose latents ({_in_words(generator)}) there is none",
            expected=f"latents of {', '.join(words for _, words in _SOURCES.values())}",
            do="use --decoder full, or tiny=FOLDER with an AutoencoderTiny for its latents",
        )
    source = _SOURCES[space][0]
    folder = local_model_folder(source, patterns=(_CONFIG, _WEIGHTS), flag="--decoder tiny, which is")
    revision = None if Path(source).is_dir() else folder.name  # the hub's cache keeps each commit in a folder of its name
    return source.partition("/")[2], folder, revision, "MIT"


def _latent_space(generator: Generator) -> tuple[int, float, float]:
    family = generator.family
    vae = family.configs["vae"]
    shift = vae.get("shift_factor") if family.shifts_latents else None
    # The defaults of AutoencoderKL; configurations of Stable Diffusion 1 omit the factor.
    return int(vae.get("latent_channels", 4)), float(vae.get("scaling_factor", 0.18215)), float(shift or 0.0)


def _in_words(generator: Generator) -> str:
    channels, scale, shift = _latent_space(generator)
    return f"{generator.family.load_class('vae')} of {channels} channels, scaled by {scale:g}" + (
        f", shifted by {shift:g}" if shift else ""
    )


def _decoder_in(name: str, folder: Path, revision: str | None, license: str, generator: Generator) -> DecoderFiles:
    config = read_config(folder / _CONFIG)
    if config.get("_class_name") != "AutoencoderTiny":
        raise InputError(
            got=f"{folder} ({config.get('_class_name', 'no model of diffusers')})", expected="AutoencoderTiny", do="choose another decoder"
        )
    _check_fit(folder, config, generator)
    if not (folder / _WEIGHTS).is_file():
        raise InputError(
            got=f"{folder} without {_WEIGHTS}",
            expected="weights as safetensors (pickled weights are not read)",
            do=f"get the decoder with {_WEIGHTS}, or use --decoder full",
        )
    # A copy of the hub's repository may contain other files; only these two are loaded.
    weights_hash = hash_model_files({part: folder / part for part in (_CONFIG, _WEIGHTS)})
    return DecoderFiles(name=name, folder=folder, revision=revision, weights_hash=weights_hash, license=license)


def _check_fit(folder: Path, config: Mapping[str, Any], generator: Generator) -> None:
    """Compare latent channels and upsampling. The defaults are those of AutoencoderTiny, because a configuration may omit them."""
    channels, side, _ = generator.latent_shape
    factor = config.get("upsampling_scaling_factor", 2) ** (len(config.get("num_decoder_blocks", (3, 3, 3, 1))) - 1)
    found = {
        "latents of {} channels": (config.get("latent_channels", 4), channels),
        "images of {} px": (side * factor, generator.size_px),
        "images of {} colours": (config.get("out_channels", 3), 3),
    }
    for what, (got, expected) in found.items():
        if got != expected:
            raise InputError(
                got=f"{folder}, a decoder for {what.format(got)}",
                expected=f"{what.format(expected)}, as the generator {generator.name} has",
                do="choose a decoder that was trained for this generator, or --decoder full",
            )


def load_decoder(generator: Generator, files: DecoderFiles | None, dtype: torch.dtype) -> Any:
    """Return a decoder on the CPU, in eval mode, without gradients: the generator's own if ``files`` is None.

    Raises:
        InputError: the weights do not load or do not fit the configuration.
    """
    if files is not None and not files.halves:
        return load_tiny_decoder(files, dtype)
    vae = load_part(generator, "vae", dtype).eval().requires_grad_(False)
    return vae if files is None else halve(vae)


def load_tiny_decoder(files: DecoderFiles, dtype: torch.dtype) -> Any:
    """Return the AutoencoderTiny on the CPU, in eval mode, without gradients.

    ``decode(latents_BChw, return_dict=False)[0]`` is the images [B, 3, H, W] of latents in the dtype.

    Raises:
        InputError: the weights do not load or do not fit the configuration.
    """
    from diffusers import AutoencoderTiny

    with loading(
        files.folder, expected="a whole AutoencoderTiny folder with safetensors weights", do="restore its files, or use --decoder full"
    ):
        decoder, report = AutoencoderTiny.from_pretrained(
            files.folder, dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
        # diffusers only logs a warning about them and leaves them uninitialised.
        if missing := sorted(report["missing_keys"]):
            raise ValueError(f"no weights for {first_of(missing)}")
    return decoder.eval().requires_grad_(False)


class LatentDecoder:
    """Decodes stored latents to the same images as ``TextToImage`` does. Loads only the generator's decoder.

    Args:
        generator: whose latents are stored.
        compute: device and precision.
        decoder: replaces the generator's own.

    Raises:
        InputError: its weights do not load.
    """

    def __init__(self, generator: Generator, compute: Compute, *, decoder: DecoderFiles | None = None) -> None:
        self._device = torch.device(compute.device)
        # Half precision is that of the generator's family, whose decoder may overflow in another.
        dtype = getattr(torch, generator.family.half) if compute.dtype == "float16" else compute.torch_dtype
        self._family, self._vae = generator.family, on_device(load_decoder(generator, decoder, dtype), self._device)

    @torch.inference_mode()
    def decode(self, latents_BChw: torch.Tensor) -> torch.Tensor:
        """Return the images of latents [B, C, h, w]: float32 [B, 3, H, W] in [0, 1]; NaN where the decoder overflows."""
        return self.differentiable(latents_BChw)

    def differentiable(self, latents_BChw: torch.Tensor) -> torch.Tensor:
        """Return the same images with their gradients."""
        return in_unit_range(self._family.decode(self._vae, latents_BChw.to(self._device, dtype_of(self._vae))))


def on_device(model: Any, device: torch.device) -> Any:
    """Return a denoiser or decoder on a device, the weights of its convolutions in the layout that is fast there."""
    has_3d = any(weight.ndim == 5 for weight in model.parameters())
    return model.to(device) if has_3d else model.to(device, memory_format=getattr(torch, memory_format(device.type)))


def in_unit_range(images_B3HW: torch.Tensor) -> torch.Tensor:
    """Return a decoder's images, about [-1, 1], as float32 in [0, 1]; NaN where they are not finite."""
    # Clamping would turn an infinity into a white pixel; as NaN it stays visible.
    finite_B3HW: torch.Tensor = torch.where(images_B3HW.isfinite(), images_B3HW.float() / 2 + 0.5, torch.nan)
    return finite_B3HW.clamp(0, 1)


def dtype_of(module: Any) -> torch.dtype:
    """Return the dtype that a module computes in. (Its ``dtype`` property searches all of its modules, which takes milliseconds.)"""
    # Some classes keep parts in float32, such as the first of Kandinsky 5's.
    kept = getattr(type(module), "_keep_in_fp32_modules", None) or ()
    dtypes = (weight.dtype for name, weight in module.named_parameters() if not any(part in name for part in kept))
    dtype: torch.dtype = next(dtypes)
    return dtype
