"""A CLIP of open_clip that is small enough for tests, and class tokens that it projects to given vectors."""

import json
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file
from transformers import CLIPTokenizer

from featurize.encode.joint_space import JointSpace
from featurize.generate.generators import find_generator, generator_settings
from lugpi_core.runtime.device import Compute

CPU = Compute(device="cpu", device_name="CPU", dtype="float32", threads=1)
WIDTH, JOINT = 48, 24


def clip_folder(folder: Path, *, own_tokenizer: bool = True) -> Path:
    """Write a CLIP with random weights and the tokenizer of the embedded generator; return its folder."""
    source = find_generator("demo", generator_settings("demo", {}), half=False).folder / "tokenizer"
    tokenizer = CLIPTokenizer.from_pretrained(source)
    text = {"context_length": 32, "vocab_size": len(tokenizer), "width": 32, "heads": 2, "layers": 1}
    vision = {"image_size": 32, "layers": 2, "width": WIDTH, "head_width": 16, "patch_size": 16}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.CLIP(embed_dim=JOINT, vision_cfg=dict(vision), text_cfg=dict(text))
    folder.mkdir()
    save_file(model.state_dict(), folder / "open_clip_model.safetensors", metadata={"format": "pt"})
    if own_tokenizer:
        tokenizer.save_pretrained(folder)
    config = {"embed_dim": JOINT, "vision_cfg": vision, "text_cfg": {**text, **({"hf_tokenizer_name": "."} if own_tokenizer else {})}}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    return folder


def class_tokens_like(space: JointSpace, vectors_nE: torch.Tensor) -> torch.Tensor:
    """Return class tokens that the vision tower projects to the vectors."""
    projection_DE = space._model.visual.proj
    return vectors_nE @ torch.linalg.pinv(projection_DE)
