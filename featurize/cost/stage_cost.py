"""What one row costs in each stage, counted on the meta device from the configurations: no weight is read, no number is computed.

A stage is a module of diffusers, transformers or open_clip as the run will load it. It is built without storage, called once, and what it
would compute and keep is added up: FLOPs by torch's own formulas, memory by following every storage from its birth to its death.

Shapes: B rows, C latent channels, h × w latent cells, H × W pixels, S the encoder's side, T tokens, D width.
"""

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from featurize.encode.encoders import EncoderFiles
from featurize.generate.generators import Generator
from lugpi_core.errors import InputError
from lugpi_core.files import read_json
from lugpi_core.runtime.pretrained import reason

PROMPT, DENOISE, DECODE = "prompt", "denoise", "decode"
_TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
_META = torch.device("meta")
_ATTENTION = torch.ops.aten.scaled_dot_product_attention.default
_CONVOLUTION = torch.ops.aten.convolution.default
_SDXL_TIME_IDS = 6  # original size, crop and target size, two numbers each


@dataclass(frozen=True, kw_only=True)
class StageWork:
    """What one row costs in one forward of a stage.

    Attributes:
        flops: 2 for each multiply-add of matrix products, convolutions and attention; element-wise work is not counted.
        activation_bytes: the highest sum of the bytes of tensors alive at once, beside the weights: inputs, results, and for a
            convolution a copy of its input and output, for cuDNN and oneDNN put them into a layout of their own. Attention counts as fused:
            its S × S matrix never exists.
        weight_bytes: parameters and buffers.
    """

    flops: float
    activation_bytes: int
    weight_bytes: int


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage that is not built yet.

    Attributes:
        build: makes the module, on the default device of the moment.
        inputs: makes the inputs of B rows, on the default device of the moment.
        forward: calls the module with the inputs.
        dtype: of weights and inputs.
    """

    build: Callable[[], nn.Module]
    inputs: Callable[[int], tuple[torch.Tensor, ...]]
    forward: Callable[..., object]
    dtype: torch.dtype

    def module(self, device: torch.device) -> nn.Module:
        """Return the module on ``device`` with small random weights, or without any on the meta device."""
        with _META:
            module = self.build().eval().requires_grad_(False).to(self.dtype)
        if device == _META:
            return module
        module.to_empty(device=device)
        noise = torch.randn(1 << 16, device=device, dtype=self.dtype) * 0.02
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                _tile(tensor.view(-1), noise)
            else:
                tensor.zero_()  # positions: nought is in every table
        return module


def counted_work(
    generator: Generator, encoders: Sequence[EncoderFiles], *, dtype: str, decoder_folder: Path | None = None
) -> dict[str, StageWork]:
    """Return what one row costs in each stage: ``prompt`` (one prompt through the text encoders, 77 tokens), ``denoise`` (one forward of
    the UNet; guidance doubles the rows), ``decode`` (one image) and ``encode <name>`` (one image) for each encoder.

    Args:
        generator: a Stable Diffusion 1, 2 or XL folder.
        encoders: the image encoders of the run.
        dtype: name of the torch dtype the run computes in.
        decoder_folder: an AutoencoderTiny of diffusers that decodes in the place of the generator's own VAE.

    Raises:
        InputError: a configuration is missing or makes no model.
    """
    return {name: _count(stage) for name, stage in stages(generator, encoders, dtype=dtype, decoder_folder=decoder_folder).items()}


def decode_flops(generator: Generator, *, dtype: str, decoder_folder: Path | None = None) -> float:
    """Return what decoding one image takes; arguments and errors are those of ``counted_work``."""
    return _count(stages(generator, (), dtype=dtype, decoder_folder=decoder_folder)[DECODE]).flops


def stages(generator: Generator, encoders: Sequence[EncoderFiles], *, dtype: str, decoder_folder: Path | None = None) -> dict[str, Stage]:
    """Return the stages that ``counted_work`` counts, under the same names; arguments and errors are the same."""
    computed = getattr(torch, dtype)
    try:
        return {
            PROMPT: _prompt_stage(generator, computed),
            DENOISE: _denoise_stage(generator, computed),
            DECODE: _decode_stage(generator, computed, decoder_folder),
            **{f"encode {files.name}": _encode_stage(files, generator.size_px, computed) for files in encoders},
        }
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(
            got=f"{decoder_folder or generator.folder}, whose configurations make no model ({reason(error)})",
            expected="a whole diffusers folder",
            do="download it again",
        ) from None


def _count(stage: Stage) -> StageWork:
    module = stage.module(_META)
    weights = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in (*module.parameters(), *module.buffers())}
    with torch.inference_mode(), _META, FlopCounterMode(display=False) as counter, _LiveBytes(module) as live:
        stage.forward(module, *stage.inputs(1))
    return StageWork(
        flops=float(counter.get_total_flops() + live.attention_flops), activation_bytes=live.peak_bytes, weight_bytes=sum(weights.values())
    )


def _tile(flat: torch.Tensor, noise: torch.Tensor) -> None:
    """Fill ``flat`` with ``noise``, over and over: a tenth of the time that as much noise of its own takes."""
    whole = flat.numel() // noise.numel() * noise.numel()
    flat[:whole].view(-1, noise.numel()).copy_(noise)
    flat[whole:].copy_(noise[: flat.numel() - whole])


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types there
    """Follows the storages that operators make until they die; stands in for fused attention.

    In inference mode a composite operator arrives whole. Attention is answered as such; all others are taken apart here, so that what
    they make inside counts too.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.attention_flops = 0
        self.peak_bytes = 0
        self._live_bytes = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in (*module.parameters(), *module.buffers())}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        if func is _ATTENTION:
            result = self._attention(*args[:3])
        else:
            with self:
                result = func.decompose(*args, **(kwargs or {}))
            if result is not NotImplemented:
                return result
            result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._follow(leaf.untyped_storage())
        copies_bytes = args[0].nbytes + result.nbytes if func is _CONVOLUTION else 0
        self.peak_bytes = max(self.peak_bytes, self._live_bytes + copies_bytes)
        return result

    def _attention(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        *batch, rows, width = query.shape
        self.attention_flops += 2 * query[..., 0, 0].numel() * rows * key.shape[-2] * (width + value.shape[-1])
        # The fused kernels write [B, S, heads, D], so that putting the heads side by side afterwards is no copy.
        return query.new_empty(*batch[:-1], rows, *batch[-1:], value.shape[-1]).transpose(-2, -3)

    def _follow(self, storage: torch.UntypedStorage) -> None:
        address, size_bytes = storage._cdata, storage.nbytes()
        if address not in self._known:
            self._known.add(address)
            self._live_bytes += size_bytes
            weakref.finalize(storage, self._died, address, size_bytes)

    def _died(self, address: int, size_bytes: int) -> None:
        self._known.discard(address)
        self._live_bytes -= size_bytes


def _prompt_stage(generator: Generator, dtype: torch.dtype) -> Stage:
    import transformers

    index = read_json(generator.folder / "model_index.json")
    names = [name for name in _TEXT_ENCODERS if index.get(name, [None])[0]]
    classes = [getattr(transformers, index[name][1]) for name in names]
    configs = [made.config_class.from_pretrained(generator.folder / name) for made, name in zip(classes, names, strict=True)]

    def build() -> nn.Module:
        return nn.ModuleList(made(config) for made, config in zip(classes, configs, strict=True))

    def inputs(rows: int) -> tuple[torch.Tensor, ...]:
        return tuple(torch.zeros(rows, config.max_position_embeddings, dtype=torch.long) for config in configs)

    def forward(towers: nn.ModuleList, *tokens: torch.Tensor) -> object:
        # As the pipelines do; Stable Diffusion XL keeps the hidden states.
        return [tower(ids_BT, output_hidden_states=len(towers) > 1) for tower, ids_BT in zip(towers, tokens, strict=True)]

    return Stage(build=build, inputs=inputs, forward=forward, dtype=dtype)


def _denoise_stage(generator: Generator, dtype: torch.dtype) -> Stage:
    from diffusers import UNet2DConditionModel

    config = read_json(generator.folder / "unet" / "config.json")
    prompt_tokens = read_json(generator.folder / _first_text_encoder(generator) / "config.json").get("max_position_embeddings", 77)
    width = config["cross_attention_dim"]
    # Stable Diffusion XL adds the pooled prompt and the picture's sizes to the time step.
    added = config.get("addition_embed_type") == "text_time"
    pooled = config["projection_class_embeddings_input_dim"] - _SDXL_TIME_IDS * config["addition_time_embed_dim"] if added else 0

    def inputs(rows: int) -> tuple[torch.Tensor, ...]:
        conditions = (torch.zeros(rows, pooled, dtype=dtype), torch.zeros(rows, _SDXL_TIME_IDS, dtype=dtype)) if added else ()
        prompts_BTD = torch.zeros(rows, prompt_tokens, max(width) if isinstance(width, list) else width, dtype=dtype)
        return torch.randn(rows, *generator.latent_shape, dtype=dtype), prompts_BTD, *conditions

    def forward(unet: nn.Module, latents_BChw: torch.Tensor, prompts_BTD: torch.Tensor, *added: torch.Tensor) -> object:
        conditions = dict(zip(("text_embeds", "time_ids"), added, strict=False)) or None
        return unet(latents_BChw, torch.zeros((), dtype=torch.long), prompts_BTD, added_cond_kwargs=conditions, return_dict=False)

    return Stage(build=partial(UNet2DConditionModel.from_config, config), inputs=inputs, forward=forward, dtype=dtype)


def _first_text_encoder(generator: Generator) -> str:
    return next(name for name in _TEXT_ENCODERS if (generator.folder / name).is_dir())


def _decode_stage(generator: Generator, dtype: torch.dtype, decoder_folder: Path | None) -> Stage:
    from diffusers import AutoencoderKL, AutoencoderTiny

    config = read_json((decoder_folder or generator.folder / "vae") / "config.json")
    # Stable Diffusion XL's own decoder overflows in half precision and is run in float32 there.
    is_xl = generator.pipeline_class == "StableDiffusionXLPipeline"
    if is_xl and decoder_folder is None and config.get("force_upcast", True) and dtype == torch.float16:
        dtype = torch.float32

    def inputs(rows: int) -> tuple[torch.Tensor, ...]:
        return (torch.randn(rows, *generator.latent_shape, dtype=dtype),)

    def forward(decoder: Any, latents_BChw: torch.Tensor) -> object:
        return decoder.decode(latents_BChw, return_dict=False)

    build = partial((AutoencoderTiny if decoder_folder else AutoencoderKL).from_config, config)
    return Stage(build=build, inputs=inputs, forward=forward, dtype=dtype)


def _encode_stage(files: EncoderFiles, image_px: int, dtype: torch.dtype) -> Stage:
    """Return the encoder with the resize before it, which reads images [B, 3, H, W] in float32."""
    side_px = files.preprocessing.size_px

    def inputs(rows: int) -> tuple[torch.Tensor, ...]:
        return (torch.rand(rows, 3, image_px, image_px),)

    def forward(tower: nn.Module, images_B3HW: torch.Tensor) -> object:
        pixels_B3SS = nn.functional.interpolate(
            images_B3HW, size=(side_px, side_px), mode=files.preprocessing.interpolation, antialias=True
        )
        return tower(pixels_B3SS.clamp(0, 1).to(dtype))

    build = partial(_open_clip_tower if files.family == "open_clip" else _transformers_tower, files)
    return Stage(build=build, inputs=inputs, forward=forward, dtype=dtype)


def _open_clip_tower(files: EncoderFiles) -> nn.Module:
    import open_clip

    known = read_json(files.folder / "open_clip_config.json")["model_cfg"] if files.architecture is None else None
    config = known or open_clip.get_model_config(files.architecture)
    # The text half is not loaded; a smallest one stands in for it.
    text = {"context_length": 1, "vocab_size": 1, "width": 8, "heads": 1, "layers": 1}
    quick_gelu = files.quick_gelu or bool(config.get("quick_gelu"))
    visual: nn.Module = open_clip.CLIP(config["embed_dim"], config["vision_cfg"], text, quick_gelu=quick_gelu).visual
    return visual


def _transformers_tower(files: EncoderFiles) -> nn.Module:
    import transformers

    is_clip = files.family in ("clip", "clip_vision_model")
    family = transformers.CLIPVisionModel if is_clip else transformers.AutoModel
    config = (transformers.CLIPVisionConfig if is_clip else transformers.AutoConfig).from_pretrained(files.folder)
    tower: nn.Module = family(config) if is_clip else family.from_config(config)
    return tower
