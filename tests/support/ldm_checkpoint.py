"""A folder of Stable Diffusion 1 or XL written as one file, with the names of the original code (CompVis' latent-diffusion, open_clip)."""

import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_DECODER_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_WHOLE = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_OPEN_CLIP = {
    "text_model.": "",
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.token_embedding": "token_embedding",
    "final_layer_norm": "ln_final",
    "encoder.layers.": "transformer.resblocks.",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def write_single_file(folder: Path, path: Path, *, layers: int) -> Path:
    """Write UNet, decoder and text encoders of a folder, whose UNet has ``layers`` a block, as one safetensors file."""
    unet = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    vae = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    text = load_file(folder / "text_encoder" / "model.safetensors")
    is_xl = (folder / "text_encoder_2").is_dir()
    blocks = 1 + max(int(match[1]) for name in vae if (match := re.match(r"decoder\.up_blocks\.(\d+)", name)))
    tensors = {f"model.diffusion_model.{unet_name(name, layers, set(unet))}": tensor for name, tensor in unet.items()}
    tensors |= {f"first_stage_model.{vae_name(name, blocks)}": _as_convolution(name, tensor) for name, tensor in vae.items()}
    prefix = "conditioner.embedders.0.transformer." if is_xl else "cond_stage_model.transformer."
    tensors |= {prefix + (name if name.startswith("text_model.") else f"text_model.{name}"): tensor for name, tensor in text.items()}
    if is_xl:
        second = load_file(folder / "text_encoder_2" / "model.safetensors")
        tensors |= {f"conditioner.embedders.1.model.{name}": tensor for name, tensor in open_clip_tensors(second).items()}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def open_clip_tensors(text: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a text encoder of transformers as open_clip has it: query, key and value in one matrix, the projection transposed."""
    tensors = {}
    for name, tensor in text.items():
        if ".self_attn.q_proj." in name:
            three = torch.cat([text[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")])
            layer, kind = name.split(".self_attn.q_proj.")
            tensors[f"{_as_open_clip(layer)}.attn.in_proj_{kind}"] = three
        elif name == "text_projection.weight":
            tensors["text_projection"] = tensor.T
        elif "k_proj" not in name and "v_proj" not in name:
            tensors[_as_open_clip(name)] = tensor
    return tensors


def _as_open_clip(name: str) -> str:
    for ours, theirs in _OPEN_CLIP.items():
        name = name.replace(ours, theirs)
    return name


def unet_name(name: str, layers: int, names: set[str]) -> str:
    """Return the original name of a tensor of the UNet."""
    for ours, theirs in _WHOLE.items():
        if name.startswith(f"{ours}."):
            return theirs + name.removeprefix(ours)
    kind, block, part, number, rest = _parts(name)
    rest = _renamed(rest, _RESNET) if part == "resnets" else rest
    if kind == "mid":
        return f"middle_block.{2 * number if part == 'resnets' else 1}.{rest}"
    if part == "downsamplers":
        return f"input_blocks.{(block + 1) * (layers + 1)}.0.op.{rest.removeprefix('conv.')}"
    if part == "upsamplers":
        has_attention = any(other.startswith(f"up_blocks.{block}.attentions.") for other in names)
        return f"output_blocks.{block * (layers + 1) + layers}.{1 + has_attention}.{rest}"
    place = 1 + block * (layers + 1) + number if kind == "down" else block * (layers + 1) + number
    return f"{'input' if kind == 'down' else 'output'}_blocks.{place}.{int(part == 'attentions')}.{rest}"


def vae_name(name: str, blocks: int) -> str:
    """Return the original name of a tensor of the decoder or encoder."""
    side, _, inner = name.partition(".")
    if "_block" not in inner:
        return name.replace("conv_norm_out", "norm_out")
    kind, block, part, number, rest = _parts(inner)
    if kind == "mid":
        inside = f"block_{number + 1}" if part == "resnets" else "attn_1"
        return f"{side}.mid.{inside}.{rest if part == 'resnets' else _renamed(rest, _DECODER_ATTENTION)}"
    place = blocks - 1 - block if kind == "up" else block
    if part == "resnets":
        return f"{side}.{kind}.{place}.block.{number}.{rest.replace('conv_shortcut', 'nin_shortcut')}"
    return f"{side}.{kind}.{place}.{part.removesuffix('rs')}.{rest}".replace("downsample.", "downsample.").replace("upsample.", "upsample.")


def _parts(name: str) -> tuple[str, int, str, int, str]:
    match = re.fullmatch(r"(down|up|mid)_blocks?\.(?:(\d+)\.)?(\w+)\.(\d+)\.(.+)", name)
    assert match is not None, name
    return match[1], int(match[2] or 0), match[3], int(match[4]), match[5]


def _renamed(rest: str, names: dict[str, str]) -> str:
    for ours, theirs in names.items():
        if rest.startswith(f"{ours}."):
            return theirs + rest.removeprefix(ours)
    return rest


def _as_convolution(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """The original attention of the decoder is of 1 × 1 convolutions."""
    return tensor[:, :, None, None] if re.search(r"\.to_\w+(\.0)?\.weight$", name) else tensor
