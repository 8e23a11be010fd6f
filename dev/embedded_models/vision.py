"""The image encoders: a CLIP of images and captions, and a ViT that classifies the groups of emoji.

Shapes: B images, E width of the joint space.
"""

from typing import Any

import torch
from torch import nn

from dev.embedded_models.augmentation import SIDE_PX, STRONG, augment
from dev.embedded_models.drawing import Rows
from dev.embedded_models.words import CONTEXT, HEADS, JOINT, LAYERS, WIDTH, Tower, contrastive

PATCH_PX = 16
_WIDTH, _LAYERS, _HEAD = 128, 4, 32
MEAN, STD = (0.8, 0.75, 0.7), (0.3, 0.3, 0.35)


def clip_config(vocabulary: int) -> dict[str, Any]:
    """Return open_clip's configuration of the model, whose text tower is the one trained on words."""
    text = {"context_length": CONTEXT, "vocab_size": vocabulary, "width": WIDTH, "heads": HEADS, "layers": LAYERS}
    vision = {"image_size": SIDE_PX, "layers": _LAYERS, "width": _WIDTH, "head_width": _HEAD, "patch_size": PATCH_PX}
    return {"embed_dim": JOINT, "vision_cfg": vision, "text_cfg": {**text, "hf_tokenizer_name": "."}}


def clip(vocabulary: int) -> Any:
    """Return a new CLIP of open_clip."""
    import open_clip

    config = clip_config(vocabulary)
    return open_clip.CLIP(
        embed_dim=JOINT,
        vision_cfg=config["vision_cfg"],
        text_cfg={key: value for key, value in config["text_cfg"].items() if key != "hf_tokenizer_name"},
    )


def copy_text_tower(model: Any, tower: Tower) -> None:
    """Copy the text tower that was trained on words into an open_clip CLIP: the same computation with other parameter names."""
    source = tower.model.state_dict()
    copied = {
        "token_embedding.weight": source["embeddings.token_embedding.weight"],
        "positional_embedding": source["embeddings.position_embedding.weight"],
        "text_projection": tower.projection.weight.detach().T.contiguous(),
        "ln_final.weight": source["final_layer_norm.weight"],
        "ln_final.bias": source["final_layer_norm.bias"],
    }
    for number in range(LAYERS):
        theirs, ours = f"encoder.layers.{number}.", f"transformer.resblocks.{number}."
        for kind in ("weight", "bias"):
            parts = [source[f"{theirs}self_attn.{name}_proj.{kind}"] for name in ("q", "k", "v")]
            copied[f"{ours}attn.in_proj_{kind}"] = torch.cat(parts)
            for old, new in (
                ("self_attn.out_proj", "attn.out_proj"),
                ("layer_norm1", "ln_1"),
                ("layer_norm2", "ln_2"),
                ("mlp.fc1", "mlp.c_fc"),
                ("mlp.fc2", "mlp.c_proj"),
            ):
                copied[f"{ours}{new}.{kind}"] = source[f"{theirs}{old}.{kind}"]
    target = model.state_dict()
    unknown = [name for name in copied if name not in target]
    assert not unknown, unknown
    model.load_state_dict(target | copied)


def normalise(images_B3HW: torch.Tensor) -> torch.Tensor:
    """Return images in [0, 1] normalised for both encoders."""
    return (images_B3HW - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


class ImageTower(nn.Module):
    """CLIP's image tower with the temperature; the text tower is trained already and stays frozen."""

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual
        self.scale = nn.Parameter(torch.tensor(2.66))


class ClipLoss:
    """Contrastive loss of augmented images and their captions."""

    def __init__(self, tower: ImageTower, pictures: torch.Tensor, rows: Rows, batch: int) -> None:
        self._tower, self._pictures, self._rows, self._batch = tower, pictures, rows, batch

    def __call__(self, chance: torch.Generator) -> torch.Tensor:
        """Return the loss of one batch; ``rows`` samples captions in the joint space, [B, 1, E]."""
        numbers, joint_B1E = self._rows(self._batch, chance)
        images = normalise(augment(self._pictures[numbers], STRONG, chance))
        image_BE = nn.functional.normalize(self._tower.visual(images), dim=-1)
        return contrastive(image_BE, joint_B1E[:, 0], (numbers[:, None] == numbers[None, :]).float(), self._tower.scale)


def vit() -> Any:
    """Return a new ViTModel."""
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=_WIDTH,
        num_hidden_layers=_LAYERS,
        num_attention_heads=_WIDTH // _HEAD,
        intermediate_size=4 * _WIDTH,
        image_size=SIDE_PX,
        patch_size=PATCH_PX,
        hidden_dropout_prob=0.1,
    )
    return ViTModel(config, add_pooling_layer=False)


class GroupClassifier(nn.Module):
    """A ViT with a linear head on the class token."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.model = vit()
        self.head = nn.Linear(_WIDTH, groups)

    def forward(self, pixels_B3HW: torch.Tensor) -> torch.Tensor:
        """Return logits [B, groups]."""
        logits_BG: torch.Tensor = self.head(self.model(pixel_values=pixels_B3HW).last_hidden_state[:, 0])
        return logits_BG


class GroupLoss:
    """Cross entropy of the groups of augmented images."""

    def __init__(self, classifier: GroupClassifier, pictures: torch.Tensor, groups: torch.Tensor, batch: int) -> None:
        self._classifier, self._pictures, self._groups, self._batch = classifier, pictures, groups, batch

    def __call__(self, chance: torch.Generator) -> torch.Tensor:
        """Return the loss of one batch."""
        numbers = torch.randint(len(self._groups), (self._batch,), generator=chance)
        images = normalise(augment(self._pictures[numbers], STRONG, chance))
        return nn.functional.cross_entropy(self._classifier(images), self._groups[numbers], label_smoothing=0.1)
