"""LoRA files, fused into a generator's weights before the first image (Hu et al. 2022, arXiv 2106.09685): W + scale · (α / r) · B A.

diffusers reads the file's form (its own, kohya's, others) and peft fuses it, as ``pipeline.load_lora_weights(FILE)``,
``pipeline.fuse_lora(lora_scale=SCALE)`` and ``pipeline.unload_lora_weights()`` do. What neither says aloud is checked here: both leave out
weights for layers that the model does not have.
"""

import importlib.util
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lugpi_core.errors import InputError
from lugpi_core.fingerprint import hash_model_files
from lugpi_core.runtime.pretrained import loading, reason

_SCALED = re.compile(r"(?P<file>.+):(?P<scale>[^:/\\]+)")
# The first of the two matrices of a layer, in the forms that diffusers knows.
_FIRST_MATRIX = re.compile(r"lora_A\.|lora_down\.|lora\.down\.|_lora\.down|lora_linear_layer\.down")
# Of other adapters, which diffusers drops or takes for something else (DoRA's magnitude, LoHa, LoKr, OFT).
_OTHER_ADAPTERS = {"dora_scale": "DoRA", "lora_magnitude_vector": "DoRA", "hada_w": "LoHa", "lokr_w": "LoKr", "oft_": "OFT"}
_ADAPTER = "lugpi"


@dataclass(frozen=True, kw_only=True)
class LoraFile:
    """A LoRA whose file is found; nothing is loaded yet."""

    path: Path
    scale: float
    weights_hash: str

    def fingerprint(self) -> dict[str, Any]:
        """Return what it changes in the weights of a generator."""
        return {"weights": self.weights_hash, "scale": self.scale}


@dataclass(frozen=True, kw_only=True)
class Fused:
    """What LoRAs are fused into.

    Attributes:
        folder: of the generator.
        pipeline_class: of diffusers, which knows the forms of files for its models.
        denoiser: name of its part.
        denoiser_config: its configuration.
        parts: names of all parts that a LoRA may change.
        layers: of the text encoders that are not loaded whole, by part.
    """

    folder: Path
    pipeline_class: str
    denoiser: str
    denoiser_config: Mapping[str, Any]
    parts: tuple[str, ...]
    layers: Mapping[str, int]


def find_loras(given: Sequence[str]) -> tuple[LoraFile, ...]:
    """Return the LoRAs of ``--lora``, ``FILE`` or ``FILE:SCALE``, in the order in which they are fused.

    Raises:
        InputError: a file is missing, is no LoRA that can be fused, or peft is not installed.
    """
    loras = tuple(_find_lora(text) for text in given)
    if loras and importlib.util.find_spec("peft") is None:
        raise InputError(got=f"--lora {given[0]} without the package peft", expected="peft, which fuses it", do="install lugpi[lora]")
    return loras


def _find_lora(given: str) -> LoraFile:
    match = None if Path(given).exists() else _SCALED.fullmatch(given)
    path, scale = (Path(match["file"]), match["scale"]) if match else (Path(given), "1")
    try:
        factor = float(scale)
    except ValueError:
        factor = math.nan
    if not math.isfinite(factor):
        raise InputError(got=f"--lora {given}", expected="FILE or FILE:SCALE with a finite number", do=f"give for instance {path}:0.8")
    if not path.is_file() or path.suffix != ".safetensors":
        what = "which is no file" if not path.exists() else "a folder" if path.is_dir() else "which is not .safetensors"
        inside = sorted(path.glob("*.safetensors")) if path.is_dir() else []
        raise InputError(
            got=f"--lora {given}, {what}",
            expected="a .safetensors file",
            do=f"give {inside[0]}" if inside else "check the path; pickled weights are not read",
        )
    with loading(path, expected="a whole .safetensors file", do="get it again from where it comes from"):
        names = tensor_names(path)
    kinds = sorted({kind for name in names for sign, kind in _OTHER_ADAPTERS.items() if sign in name})
    if kinds or not any(_FIRST_MATRIX.search(name) for name in names):
        raise InputError(
            got=f"--lora {given}, {f'a {kinds[0]}' if kinds else 'which has no LoRA weights'}",
            expected="a LoRA, two matrices for each layer",
            do="fuse it with the program that trained it, and give the whole model" if kinds else "check the path",
        )
    return LoraFile(path=path, scale=factor, weights_hash=hash_model_files({"lora.safetensors": path}))


def require_reader(loras: Sequence[LoraFile], pipeline_class: str) -> None:
    """Raise InputError for LoRAs of a pipeline of diffusers that reads none."""
    if not loras:
        return
    import diffusers
    from diffusers.loaders.lora_base import LoraBaseMixin

    if not issubclass(getattr(diffusers, pipeline_class), LoraBaseMixin):
        raise InputError(
            got=f"--lora {loras[0].path} for a {pipeline_class}, for which diffusers reads no LoRA",
            expected="a generator with LoRAs",
            do="leave out --lora, or fuse it with the program that trained it and give the whole denoiser with --unet",
        )


def tensor_names(path: Path) -> list[str]:
    """Return the names of the tensors in a safetensors file. None is read."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        names: list[str] = file.keys()
    return names


def fuse_loras(loras: Sequence[LoraFile], model: Any, *, part: str, generator: Fused) -> None:
    """Fuse the weights that LoRA files have for one loaded part of a generator, in place and in order.

    Args:
        loras: the files.
        model: the part, on the CPU.
        part: its name.
        generator: to which the part belongs.

    Raises:
        InputError: a file has weights for parts or layers that the generator does not have, or of other shapes.
    """
    from safetensors import SafetensorError

    for lora in loras:
        try:
            state = _state_of(lora, generator)
            if unknown := Counter(name.split(".")[0] for name in state.tensors if name.split(".")[0] not in generator.parts):
                name, count = unknown.most_common(1)[0]
                raise ValueError(f"{count} of its {len(state.tensors)} tensors are for {name}")
            if any(name.startswith(f"{part}.") for name in state.tensors):
                _fuse(model, state, part=part, scale=lora.scale, generator=generator)
        # peft and diffusers raise all of these at files of another model.
        except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError, SafetensorError) as error:
            raise InputError(
                got=f"--lora {lora.path}, which does not fit {generator.folder} ({reason(error)})",
                expected="a LoRA that was trained for this generator",
                do="choose another LoRA, or the generator that its card names",
            ) from None


@dataclass(frozen=True, kw_only=True)
class _State:
    """A file's tensors by part and layer, as diffusers names them, with the α of kohya's files and the metadata of peft's."""

    tensors: dict[str, Any]
    alphas: Mapping[str, Any] | None
    metadata: Mapping[str, Any] | None


def _state_of(lora: LoraFile, generator: Fused) -> _State:
    import diffusers
    from diffusers.configuration_utils import FrozenDict
    from diffusers.loaders.lora_pipeline import FluxLoraLoaderMixin, StableDiffusionXLLoraLoaderMixin

    pipeline = getattr(diffusers, generator.pipeline_class)
    how: dict[str, Any] = {"return_lora_metadata": True}
    if issubclass(pipeline, StableDiffusionXLLoraLoaderMixin):
        how["unet_config"] = FrozenDict({"layers_per_block": 2, **generator.denoiser_config})  # renumbers the blocks of kohya's files
    if issubclass(pipeline, FluxLoraLoaderMixin):
        how["return_alphas"] = True
    tensors, *alphas, metadata = pipeline.lora_state_dict(str(lora.path.parent), weight_name=lora.path.name, local_files_only=True, **how)
    return _State(tensors=tensors, alphas=alphas[0] if alphas else None, metadata=metadata)


def _fuse(model: Any, state: _State, *, part: str, scale: float, generator: Fused) -> None:
    import diffusers
    from diffusers.loaders.lora_base import fuse_text_encoder_lora
    from diffusers.utils import recurse_remove_peft_layers
    from peft.tuners.tuners_utils import BaseTunerLayer

    how: dict[str, Any] = {"network_alphas": state.alphas, "metadata": state.metadata, "adapter_name": _ADAPTER, "low_cpu_mem_usage": True}
    if part == generator.denoiser:
        model.load_lora_adapter(dict(state.tensors), prefix=part, **how)
    else:
        pipeline = getattr(diffusers, generator.pipeline_class)
        pipeline.load_lora_into_text_encoder(dict(state.tensors), text_encoder=model, prefix=part, **how)
    found = sum(isinstance(module, BaseTunerLayer) for module in model.modules())
    own = [name for name in state.tensors if name.startswith(f"{part}.") and _FIRST_MATRIX.search(name)]
    read = [name for name in own if not _is_left_out(name, part, generator)]
    if found != len(read):
        raise ValueError(f"{len(read) - found} of its {len(read)} layers of {part} are not there")
    if part == generator.denoiser:
        model.fuse_lora(lora_scale=scale, safe_fusing=True)
        model.unload_lora()
    else:
        fuse_text_encoder_lora(model, lora_scale=scale, safe_fusing=True)
        recurse_remove_peft_layers(model)
        del model.peft_config
        model._hf_peft_config_loaded = False


def _is_left_out(name: str, part: str, generator: Fused) -> bool:
    """Whether a layer of a text encoder is behind the last one that is read."""
    layer = re.search(r"\.layers\.(\d+)\.", name)
    return layer is not None and int(layer[1]) >= generator.layers.get(part, 1 << 30)
