"""One model of a generator from its files: a folder, a checkpoint of one file, a denoiser from elsewhere; LoRAs fused into it.

diffusers and transformers only log what does not fit: weights that are missing stay uninitialised or without data, weights that no layer
takes are dropped. Here every part is whole and takes all of its file, or is refused.
"""

import re
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from featurize.generate.families.family import Family
from featurize.generate.generators import Generator
from featurize.generate.lora import Fused, fuse_loras
from featurize.generate.single_file import has_part, load_from_file
from lugpi_core.errors import InputError, first_of
from lugpi_core.runtime.pretrained import loading

# As PRXPipeline saves its text encoder; diffusers 0.42.1 reads such a folder as one of 2 billion parameters, whatever its size.
_T5GEMMA_ALONE = "t5_gemma_module"
_OF_A_LAYER = re.compile(r"\.(layers?|block|blocks|h)\.\d+\.(?!.*(position_ids|inv_freq))")
# As peft names the layers of a model that was saved with a LoRA inside.
_OF_AN_ADAPTER = re.compile(r"\.base_layer\.|\.lora_[AB]\.|\.lora_magnitude_vector\.")


def load_part(generator: Generator, name: str, dtype: torch.dtype) -> Any:
    """Return one model of a generator on the CPU, of the class that its family runs, in the dtype that its family keeps it in.

    Args:
        generator: the files.
        name: of the model's folder.
        dtype: that was asked for.

    Raises:
        InputError: its weights do not load, some are missing, or some fit no layer.
    """
    family = generator.family
    kind, own = model_class(family, name), family.dtypes(dtype).get(name, dtype)
    is_denoiser = name == family.denoiser
    encoders = [encoder for _, encoder in family.text_parts]
    layers = family.layers_read(name) if name in encoders else None
    file = generator.denoiser_path if is_denoiser and generator.denoiser_path is not None else generator.single_file
    if file is not None and file.is_file() and (is_denoiser or has_part(file, name)):
        part = load_from_file(file, generator.folder, part=name, kind=kind, pipeline_class=generator.pipeline_class, dtype=own)
        _require_data(part, file, f"the {name} of this file, whole")
        if layers is not None:
            _drop_layers(part, layers)
    else:
        part = _load_folder(generator, name, kind, own)
    if layers is not None:
        part.set_submodule(family.final_norm(name), torch.nn.Identity())
    if generator.loras and name != "vae":
        fused = Fused(
            folder=generator.folder,
            pipeline_class=generator.pipeline_class,
            denoiser=family.denoiser,
            denoiser_config=family.configs[family.denoiser],
            parts=(family.denoiser, *encoders),
            layers={encoder: count for encoder in encoders if (count := family.layers_read(encoder)) is not None},
        )
        fuse_loras(generator.loras, part, part=name, generator=fused)
    return part


def model_class(family: Family, name: str) -> Any:
    """Return the class of diffusers or transformers that a model of a family is loaded as.

    Raises:
        InputError: the installed library has no such class.
    """
    library, kind = family.library_of(name), family.load_class(name)
    try:
        return getattr(import_module(library), kind)
    except (ImportError, AttributeError):
        raise InputError(
            got=f"{family.folder / name} of the class {library}.{kind}",
            expected=f"a model of the installed {library}",
            do=f"install a version of {library} that has it, or choose another generator",
        ) from None


def text_config(family: Family, encoder: str) -> Any:
    """Return the configuration of a text encoder of transformers, with as many layers as are read."""
    config_class, saved = model_class(family, encoder).config_class, family.configs[encoder]
    if saved.get("model_type") == _T5GEMMA_ALONE:
        import transformers

        config = transformers.T5GemmaModuleConfig.from_dict(saved)
    elif isinstance(saved.get("encoder"), dict):  # T5Gemma's encoder comes with the configuration of encoder and decoder
        config = config_class.from_dict(saved["encoder"])
    else:
        config = config_class.from_pretrained(family.folder / encoder)
    layers = family.layers_read(encoder)
    if layers is not None:
        stack = config.get_text_config()
        stack.num_hidden_layers = layers
        if kinds := stack.to_dict().get("layer_types"):
            stack.layer_types = kinds[:layers]
    return config


def _drop_layers(encoder: Any, layers: int) -> None:
    """Keep the first layers of a text encoder that was loaded whole."""
    whole = encoder.config.num_hidden_layers
    for module in encoder.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == whole:
            del module[layers:]
    encoder.config.num_hidden_layers = layers


def _load_folder(generator: Generator, name: str, kind: Any, dtype: torch.dtype) -> Any:
    family = generator.family
    replaced = generator.denoiser_path if name == family.denoiser else None
    folder = generator.folder / name if replaced is None else replaced
    is_encoder = any(name == encoder for _, encoder in family.text_pairs)
    layers = family.layers_read(name) if is_encoder else None
    is_own = is_encoder and family.configs[name].get("model_type") == _T5GEMMA_ALONE
    stack = {"config": text_config(family, name)} if layers is not None or is_own else {}
    with loading(folder, expected=f"a whole {kind.__name__} with safetensors weights", do="restore its files from where it comes from"):
        part, report = kind.from_pretrained(
            folder,
            dtype=dtype,
            variant=generator.variants.get(name, generator.variant),
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **stack,
        )
        missing, unexpected = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
        if any(map(_OF_AN_ADAPTER.search, unexpected)):
            raise InputError(
                got=f"{folder}, which was saved with a LoRA inside ({unexpected[0]})",
                expected="a whole model",
                do="save it in Python after fuse_lora() and unload_lora_weights(), or give the model without it and the LoRA with --lora",
            )
        if missing:
            raise ValueError(f"no weights for {first_of(missing)}")
        # Heads and old buffers of a text encoder may stay unread, layers only where the family reads fewer.
        if is_encoder:
            unexpected = [] if layers is not None else [key for key in unexpected if _OF_A_LAYER.search(key)]
        if unexpected:
            raise ValueError(f"its configuration has no place for {first_of(unexpected)}")
    _require_data(part, folder, f"a whole {kind.__name__}")
    return part


def _require_data(part: Any, path: Path, expected: str) -> None:
    """Raise InputError for weights that were never read: diffusers leaves them on the meta device."""
    tensors: Iterable[tuple[str, torch.Tensor]] = (*part.named_parameters(), *part.named_buffers())
    if empty := sorted(name for name, tensor in tensors if tensor.is_meta):
        raise InputError(
            got=f"{path}, which has no weights for {first_of(empty)}",
            expected=expected,
            do="restore its files from where it comes from, or give the configuration of this model",
        )
