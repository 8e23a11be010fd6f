"""Gets the parts that were shipped whole back into a work folder, so that later parts can be trained without training these again."""

from pathlib import Path
from typing import Any

import torch

from dev.embedded_models import drawing
from dev.embedded_models.sight import SightTower
from dev.embedded_models.words import LAYERS, Tower
from lugpi_core.files import make_folder, read_json, write_json


def restore(folder: Path, work_dir: Path) -> None:
    """Write checkpoints and records of the tokenizer, both text towers and the autoencoder into a work folder, from half precision. The
    linear map with which the sight tower was trained is not shipped: nothing reads it afterwards.

    Args:
        folder: with the embedded models and ``record.json``.
        work_dir: of a recipe, without these parts.
    """
    from diffusers import AutoencoderKL
    from transformers import CLIPTextModel, CLIPTokenizer

    records = read_json(folder / "record.json")["trained"]
    tokenizer = CLIPTokenizer.from_pretrained(folder / "clip-demo", local_files_only=True)
    tokenizer.save_pretrained(make_folder(work_dir) / "clip-tokenizer")
    words = Tower(tokenizer)
    words.load_state_dict(text_tower_weights(folder, words))
    vae = drawing.autoencoder()
    vae.load_state_dict(AutoencoderKL.from_pretrained(folder / "generator", subfolder="vae", local_files_only=True).state_dict())
    sight = SightTower(Tower(tokenizer), drawing.CHANNELS * drawing.SIDE**2)
    sight.model.load_state_dict(
        CLIPTextModel.from_pretrained(folder / "generator", subfolder="text_encoder", local_files_only=True).state_dict()
    )
    for name, model in (("words", words), ("autoencoder", vae), ("sight", sight)):
        torch.save({"model": model.float().state_dict()}, work_dir / f"{name}.pt")
        write_json(work_dir / f"{name}.json", records[name])


def text_tower_weights(folder: Path, tower: Tower) -> dict[str, Any]:
    """Return the weights of CLIP's text tower under the names of transformers: the reverse of ``vision.copy_text_tower``."""
    from safetensors.torch import load_file

    clip = {name: value.float() for name, value in load_file(folder / "clip-demo" / "open_clip_model.safetensors").items()}
    found = {
        "model.embeddings.token_embedding.weight": clip["token_embedding.weight"],
        "model.embeddings.position_embedding.weight": clip["positional_embedding"],
        "projection.weight": clip["text_projection"].T.contiguous(),
        "model.final_layer_norm.weight": clip["ln_final.weight"],
        "model.final_layer_norm.bias": clip["ln_final.bias"],
    }
    for number in range(LAYERS):
        ours, theirs = f"model.encoder.layers.{number}.", f"transformer.resblocks.{number}."
        for kind in ("weight", "bias"):
            for name, part in zip("qkv", clip[f"{theirs}attn.in_proj_{kind}"].chunk(3), strict=True):
                found[f"{ours}self_attn.{name}_proj.{kind}"] = part
            for new, old in (
                ("self_attn.out_proj", "attn.out_proj"),
                ("layer_norm1", "ln_1"),
                ("layer_norm2", "ln_2"),
                ("mlp.fc1", "mlp.c_fc"),
                ("mlp.fc2", "mlp.c_proj"),
            ):
                found[f"{ours}{new}.{kind}"] = clip[f"{theirs}{old}.{kind}"]
    return tower.state_dict() | found
