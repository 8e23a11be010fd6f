"""The steps of the recipe, each from the files of those before it: bag → words → clip; autoencoder → tiny; both → sight → unet → drawings;
clip and vit, then drawings, → clip-drawn and vit-drawn."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dev.embedded_models import drawing, drawn, vision
from dev.embedded_models.masked_words import MaskedWords, masked_model
from dev.embedded_models.sight import OWN_SHARE, SeeingTower, SightLoss, nearest_in_words, pairs
from dev.embedded_models.training import Loss, Schedule, fit
from dev.embedded_models.words import (
    Bag,
    Tower,
    WordPairs,
    as_the_unet_reads,
    clip_tokenizer,
    contrastive,
    encoded,
    in_joint_space,
    word_piece_tokenizer,
)
from dev.embedded_models.world import World
from lugpi_core.files import make_folder, whole_folder

_VIEWS = 6
DRAWINGS = 16_000


@dataclass(frozen=True, kw_only=True)
class Step:
    """How long a model learns, and how much at once."""

    steps: int
    batch: int
    learning_rate: float
    averaged: float = 0.0
    weight_decay: float = 0.05


# What two CPU cores do in minutes, each; the card tells how many.
STEPS: Mapping[str, Step] = {
    "bag": Step(steps=4000, batch=384, learning_rate=3e-3, weight_decay=0.0),
    "words": Step(steps=600, batch=384, learning_rate=6e-4),
    "autoencoder": Step(steps=4000, batch=16, learning_rate=1.5e-3, averaged=0.995, weight_decay=0.0),
    "tiny": Step(steps=2000, batch=16, learning_rate=1e-3, averaged=0.995, weight_decay=0.0),
    "sight": Step(steps=3000, batch=256, learning_rate=2e-3, weight_decay=0.01),
    "unet": Step(steps=4000, batch=64, learning_rate=1e-3, averaged=0.999, weight_decay=0.01),
    "clip": Step(steps=5000, batch=128, learning_rate=1.5e-3),
    "vit": Step(steps=2500, batch=64, learning_rate=7e-4),
    "clip-drawn": Step(steps=1500, batch=128, learning_rate=6e-4),
    "vit-drawn": Step(steps=1000, batch=64, learning_rate=3e-4),
    "text": Step(steps=4000, batch=128, learning_rate=1e-3),
}


class Recipe:
    """The models of one world in one folder: each is trained at its first use and read from its files afterwards."""

    def __init__(self, world: World, folder: Path, *, seed: int = 0, steps: Mapping[str, Step] = STEPS, drawings: int = DRAWINGS) -> None:
        self.world, self.folder, self._seed, self._steps, self._drawings = world, make_folder(folder), seed, steps, drawings
        self.pictures = torch.from_numpy(world.pictures).permute(0, 3, 1, 2).contiguous()
        self.records: dict[str, Any] = {}

    def tokenizer(self) -> Any:
        """Return the tokenizer of tower and CLIP."""
        return self._tokenizer("clip", clip_tokenizer)

    def text_tokenizer(self) -> Any:
        """Return the tokenizer of the text model."""
        return self._tokenizer("text", word_piece_tokenizer)

    def bag(self) -> Bag:
        """Return the bag of words that the text tower begins with."""
        bag: Bag = self._fitted("bag", lambda: Bag(self.tokenizer()), self._of_pairs("bag"))
        return bag

    def words(self) -> Tower:
        """Return the text tower."""

        def make() -> Tower:
            tower = Tower(self.tokenizer())
            tower.begin_with(self.bag())
            return tower

        tower: Tower = self._fitted("words", make, self._of_pairs("words"))
        return tower

    def _of_pairs(self, name: str) -> Callable[[Any], Loss]:
        def loss(model: Any) -> Loss:
            pairs, batch = WordPairs(self.world, self.tokenizer()), self._steps[name].batch

            def of_pairs(chance: torch.Generator) -> torch.Tensor:
                gloss_BL, named_BL, same_BB = pairs.batch(batch, chance.initial_seed())
                return contrastive(model(gloss_BL), model(named_BL), same_BB, model.scale)

            return of_pairs

        return loss

    def autoencoder(self) -> Any:
        """Return the autoencoder; its scaling factor is set with ``latents``."""
        batch = self._steps["autoencoder"].batch
        return self._fitted("autoencoder", drawing.autoencoder, lambda vae: drawing.AutoencoderLoss(vae, self.pictures, batch))

    def latents(self) -> tuple[Any, torch.Tensor, torch.Tensor]:
        """Return the autoencoder with its scaling factor, the latents of all pictures, several views of each, and the images."""
        vae = self.autoencoder()
        return vae, *drawing.latents_of(vae, self.pictures, views=_VIEWS)

    def tiny(self) -> Any:
        """Return the tiny decoder."""

        def loss(tiny: Any) -> Loss:
            _, latents, images = self.latents()
            return drawing.TinyLoss(tiny, latents.flatten(0, 1), images.flatten(0, 1), self._steps["tiny"].batch)

        return self._fitted("tiny", drawing.tiny_decoder, loss)

    def sight(self) -> SeeingTower:
        """Return the text tower that knows what words look like: the generator's."""

        def loss(tower: SeeingTower) -> Loss:
            captions, own, nearest = self._pairs()
            read, latents_NF = encoded(self.tokenizer(), captions), self._still_latents().flatten(1)
            looks = SightLoss(tower, read, self.tokenizer().pad_token_id, latents_NF, pairs(own, nearest, own_share=OWN_SHARE))
            return looks.of(self._steps["sight"].batch)

        tower: SeeingTower = self._fitted("sight", lambda: SeeingTower(self.words(), drawing.CHANNELS * drawing.SIDE**2), loss)
        return tower

    def unet(self) -> Any:
        """Return the UNet."""

        def loss(unet: Any) -> Loss:
            captions, own, nearest = self._pairs()
            read = partial(as_the_unet_reads, self.sight().model, self.tokenizer())
            rows = drawing.caption_rows(pairs(own, nearest, own_share=OWN_SHARE), captions, read, without_share=0.1)
            return drawing.UNetLoss(unet, self._still_latents(), rows, self._steps["unet"].batch)

        return self._fitted("unet", drawing.unet, loss)

    def pipeline(self) -> Any:
        """Return the generator, as diffusers runs it."""
        vae, _, _ = self.latents()
        return drawing.pipeline(vae=vae, text_encoder=self.sight().model, tokenizer=self.tokenizer(), unet=self.unet())

    def clip(self) -> vision.PictureTower:
        """Return CLIP's vision tower, taught by emoji."""
        pictures: vision.PictureTower = self._fitted(
            "clip", lambda: vision.PictureTower(vision.clip(len(self.tokenizer())).visual), self._of_pictures
        )
        return pictures

    def _of_pictures(self, pictures: vision.PictureTower) -> Loss:
        captions, own, near = self._captions()
        rows = drawing.several_captions(own, near, in_joint_space(self.words(), self.tokenizer(), captions))
        return vision.ClipLoss(pictures, self.pictures, rows, self._steps["clip"].batch)

    def vit(self) -> vision.GroupTeller:
        """Return the ViT with its head, taught by emoji."""
        teller: vision.GroupTeller = self._fitted("vit", lambda: vision.GroupTeller(len(self.world.groups)), self._of_groups)
        return teller

    def _of_groups(self, teller: vision.GroupTeller) -> Loss:
        known = [number for number, one in enumerate(self.world.emoji) if one.group is not None]
        groups = torch.tensor([self.world.groups.index(group) for one in self.world.emoji if (group := one.group) is not None])
        return vision.GroupLoss(teller, self.pictures[known], groups, self._steps["vit"].batch)

    def drawings(self) -> tuple[list[int], torch.Tensor]:
        """Return the numbers of some captions from WordNet, and a drawing of each: uint8 RGBA [N, 4, 64, 64]."""
        near = self.world.near
        numbers = drawn.chosen(len(near), self._drawings, seed=self._seed)
        captions = [near[number][0] for number in numbers]
        return numbers, drawn.drawings(captions, self.pipeline, self.folder / "drawings.pt", seed=self._seed)

    def clip_drawn(self) -> Any:
        """Return the CLIP of open_clip with both towers, the vision tower taught by drawings too."""

        def loss(pictures: vision.PictureTower) -> Loss:
            numbers, drawings = self.drawings()
            joint = in_joint_space(self.words(), self.tokenizer(), [self.world.near[number][0] for number in numbers])
            batch = self._steps["clip-drawn"].batch
            return drawn.DrawnClipLoss(pictures, drawings, joint, self._of_pictures(pictures), batch)

        model = vision.clip(len(self.tokenizer()))
        vision.take_words(model, self.words())
        pictures = self._fitted("clip-drawn", self.clip, loss)
        model.visual = pictures.visual
        with torch.no_grad():
            model.logit_scale.copy_(pictures.scale.clamp(max=4.6))
        return model.eval()

    def vit_drawn(self) -> vision.GroupTeller:
        """Return the ViT with its head, taught by drawings too."""

        def loss(teller: vision.GroupTeller) -> Loss:
            numbers, drawings = self.drawings()
            _, _, nearest = self._pairs()
            groups = [self.world.emoji[nearest[number][1]].group for number in numbers]
            known = [row for row, group in enumerate(groups) if group is not None]
            told = torch.tensor([self.world.groups.index(group) for group in groups if group is not None])
            return drawn.DrawnGroupLoss(teller, drawings[known], told, self._of_groups(teller), self._steps["vit-drawn"].batch)

        teller: vision.GroupTeller = self._fitted("vit-drawn", self.vit, loss)
        return teller

    def text(self) -> Any:
        """Return the DistilBERT with its head of masked words."""
        tokenizer, batch = self.text_tokenizer(), self._steps["text"].batch
        return self._fitted("text", lambda: masked_model(tokenizer), lambda model: MaskedWords(model, tokenizer, self.glosses(), batch))

    def glosses(self) -> list[str]:
        """Return the glosses that the text model reads."""
        return [one.gloss for one in self.world.synsets.values()]

    def _tokenizer(self, name: str, make: Callable[[Sequence[str]], Any]) -> Any:
        folder = self.folder / f"{name}-tokenizer"
        if not folder.is_dir():
            with whole_folder(folder) as partial:
                make(self.world.texts()).save_pretrained(partial)
        from transformers import CLIPTokenizer, DistilBertTokenizer

        return {"clip": CLIPTokenizer, "text": DistilBertTokenizer}[name].from_pretrained(folder, local_files_only=True)

    def _captions(self) -> tuple[list[str], list[list[int]], list[list[int]]]:
        """Return all captions, for each picture the numbers of its own, and for each caption from WordNet its number and its pictures'."""
        own = [caption for captions in self.world.own for caption in captions]
        texts = list(dict.fromkeys([*own, *(caption for caption, _ in self.world.near)]))
        number = {text: place for place, text in enumerate(texts)}
        return (
            texts,
            [[number[caption] for caption in captions] for captions in self.world.own],
            [[number[caption], *pictures] for caption, pictures in self.world.near],
        )

    def _still_latents(self) -> torch.Tensor:
        """Return what the UNet learns to draw, and the tower to tell: [N, C, h, w]."""
        vae, _, _ = self.latents()
        return drawing.still_latents(vae, self.pictures)

    def _pairs(self) -> tuple[list[str], list[list[int]], list[tuple[int, int]]]:
        """Return ``_captions`` with each caption from WordNet beside the one of its pictures that is nearest to it in words."""
        captions, own, near = self._captions()
        return captions, own, nearest_in_words(own, near, in_joint_space(self.words(), self.tokenizer(), captions))

    def _fitted(self, name: str, make: Callable[[], Any], loss: Callable[[Any], Loss]) -> Any:
        step, seed = self._steps[name], random.Random(f"{self._seed}:{name}").randrange(1 << 16)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = make().to(memory_format=torch.channels_last)  # convolutions are faster so
            schedule = Schedule(
                steps=step.steps, learning_rate=step.learning_rate, averaged=step.averaged, weight_decay=step.weight_decay, seed=seed
            )
            self.records[name] = fit(name, model, lambda: loss(model), schedule, self.folder)
        return model.eval()
