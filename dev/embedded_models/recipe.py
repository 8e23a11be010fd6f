"""The parts of the recipe, each trained on the results of those before it: bag → words → clip; autoencoder → tiny; both → sight → unet →
drawings; clip and vit, then drawings, → clip-drawn and vit-drawn."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dev.embedded_models import drawing, flow, generated, vision
from dev.embedded_models.masked_words import MaskedWords, masked_model
from dev.embedded_models.sight import OWN_SHARE, SightLoss, SightTower, nearest_images, pairs
from dev.embedded_models.training import Loss, Schedule, fit
from dev.embedded_models.words import (
    Bag,
    Tower,
    WordPairs,
    clip_tokenizer,
    contrastive,
    embed_texts,
    pipeline_embeddings,
    token_ids,
    word_piece_tokenizer,
)
from dev.embedded_models.world import World
from lugpi_core.files import make_folder, whole_file, whole_folder

_VIEWS = 6
DRAWINGS = 16_000


@dataclass(frozen=True, kw_only=True)
class Step:
    """How long a model is trained, with which batch and learning rate; see ``Schedule``."""

    steps: int
    batch: int
    learning_rate: float
    averaged: float = 0.0
    weight_decay: float = 0.05
    until: int | None = None

    def shortened(self, factor: int) -> "Step":
        """Return a step with ``factor`` times fewer steps, at least one."""
        until = None if self.until is None else max(1, self.until // factor)
        return replace(self, steps=max(1, self.steps // factor), until=until)


# Each takes minutes on two CPU cores; the card says how many.
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
    "flow-sight": Step(steps=1000, batch=256, learning_rate=2e-3, weight_decay=0.01),
    "flow": Step(steps=5500, until=3614, batch=64, learning_rate=1.5e-3, averaged=0.999, weight_decay=0.01),
    "text": Step(steps=4000, batch=128, learning_rate=1e-3),
}


class Recipe:
    """The models of one world in one folder: each is trained at its first use and loaded from its files afterwards."""

    def __init__(self, world: World, folder: Path, *, seed: int = 0, steps: Mapping[str, Step] = STEPS, drawings: int = DRAWINGS) -> None:
        self.world, self.folder, self._seed, self._steps, self._drawings = world, make_folder(folder), seed, steps, drawings
        self.pictures = torch.from_numpy(world.pictures).permute(0, 3, 1, 2).contiguous()
        self.records: dict[str, Any] = {}

    def tokenizer(self) -> Any:
        """Return the tokenizer of the text tower and of CLIP."""
        return self._tokenizer("clip", clip_tokenizer)

    def text_tokenizer(self) -> Any:
        """Return the tokenizer of the text model."""
        return self._tokenizer("text", word_piece_tokenizer)

    def bag(self) -> Bag:
        """Return the bag of words that initialises the text tower."""
        bag: Bag = self._fit_once("bag", lambda: Bag(self.tokenizer()), self._contrastive_on_pairs("bag"))
        return bag

    def words(self) -> Tower:
        """Return the text tower."""

        def make() -> Tower:
            tower = Tower(self.tokenizer())
            if not (self.folder / "words.json").is_file():  # restored ones come without their bag
                tower.initialise_from(self.bag())
            return tower

        tower: Tower = self._fit_once("words", make, self._contrastive_on_pairs("words"))
        return tower

    def _contrastive_on_pairs(self, name: str) -> Callable[[Any], Loss]:
        def loss(model: Any) -> Loss:
            pairs, batch = WordPairs(self.world, self.tokenizer()), self._steps[name].batch

            def contrastive_on_pairs(chance: torch.Generator) -> torch.Tensor:
                gloss_BL, names_BL, same_BB = pairs.batch(batch, chance.initial_seed())
                return contrastive(model(gloss_BL), model(names_BL), same_BB, model.scale)

            return contrastive_on_pairs

        return loss

    def autoencoder(self) -> Any:
        """Return the autoencoder; ``latents`` sets its scaling factor."""
        batch = self._steps["autoencoder"].batch
        return self._fit_once("autoencoder", drawing.autoencoder, lambda vae: drawing.AutoencoderLoss(vae, self.pictures, batch))

    def latents(self) -> tuple[Any, torch.Tensor, torch.Tensor]:
        """Return the autoencoder with its scaling factor, the latents of several views of each image, and these views."""
        vae = self.autoencoder()
        return vae, *drawing.latents_of(vae, self.pictures, views=_VIEWS)

    def tiny(self) -> Any:
        """Return the tiny decoder."""

        def loss(tiny: Any) -> Loss:
            _, latents, images = self.latents()
            return drawing.TinyLoss(tiny, latents.flatten(0, 1), images.flatten(0, 1), self._steps["tiny"].batch)

        return self._fit_once("tiny", drawing.tiny_decoder, loss)

    def sight(self) -> SightTower:
        """Return the generator's text tower, which predicts what words look like."""

        def loss(tower: SightTower) -> Loss:
            captions, own, nearest = self._caption_pairs()
            ids, latents_NF = token_ids(self.tokenizer(), captions), self._still_latents().flatten(1)
            sight_loss = SightLoss(tower, ids, self.tokenizer().pad_token_id, latents_NF, pairs(own, nearest, own_share=OWN_SHARE))
            return sight_loss.of(self._steps["sight"].batch)

        tower: SightTower = self._fit_once("sight", lambda: SightTower(self.words(), drawing.CHANNELS * drawing.SIDE**2), loss)
        return tower

    def unet(self) -> Any:
        """Return the UNet."""

        def loss(unet: Any) -> Loss:
            captions, own, nearest = self._caption_pairs()
            embed = partial(pipeline_embeddings, self.sight().model, self.tokenizer())
            rows = drawing.caption_rows(pairs(own, nearest, own_share=OWN_SHARE), captions, embed, without_share=0.1)
            return drawing.UNetLoss(unet, self._still_latents(), rows, self._steps["unet"].batch)

        return self._fit_once("unet", drawing.unet, loss)

    def pipeline(self) -> Any:
        """Return the generator as a diffusers pipeline."""
        vae, _, _ = self.latents()
        return drawing.pipeline(vae=vae, text_encoder=self.sight().model, tokenizer=self.tokenizer(), unet=self.unet())

    def clip(self) -> vision.ImageTower:
        """Return CLIP's image tower, trained on emoji."""
        tower: vision.ImageTower = self._fit_once(
            "clip", lambda: vision.ImageTower(vision.clip(len(self.tokenizer())).visual), self._clip_loss
        )
        return tower

    def _clip_loss(self, tower: vision.ImageTower) -> Loss:
        captions, own, near = self._captions()
        rows = drawing.mean_caption_rows(own, near, embed_texts(self.words(), self.tokenizer(), captions))
        return vision.ClipLoss(tower, self.pictures, rows, self._steps["clip"].batch)

    def vit(self) -> vision.GroupClassifier:
        """Return the ViT with its head, trained on emoji."""
        classifier: vision.GroupClassifier = self._fit_once("vit", lambda: vision.GroupClassifier(len(self.world.groups)), self._group_loss)
        return classifier

    def _group_loss(self, classifier: vision.GroupClassifier) -> Loss:
        known = [number for number, one in enumerate(self.world.emoji) if one.group is not None]
        groups = torch.tensor([self.world.groups.index(group) for one in self.world.emoji if (group := one.group) is not None])
        return vision.GroupLoss(classifier, self.pictures[known], groups, self._steps["vit"].batch)

    def drawings(self) -> tuple[list[int], torch.Tensor]:
        """Return the numbers of some captions from WordNet, and a generated image of each: uint8 RGBA [N, 4, 64, 64]."""
        near = self.world.near
        numbers = generated.choose_captions(len(near), self._drawings, seed=self._seed)
        captions = [near[number][0] for number in numbers]
        return numbers, generated.generate_images(captions, self.pipeline, self.folder / "drawings.pt", seed=self._seed)

    def clip_drawn(self) -> Any:
        """Return the open_clip CLIP with both towers; the image tower is trained on generated images too."""

        def loss(tower: vision.ImageTower) -> Loss:
            numbers, drawings = self.drawings()
            joint = embed_texts(self.words(), self.tokenizer(), [self.world.near[number][0] for number in numbers])
            batch = self._steps["clip-drawn"].batch
            return generated.GeneratedClipLoss(tower, drawings, joint, self._clip_loss(tower), batch)

        model = vision.clip(len(self.tokenizer()))
        vision.copy_text_tower(model, self.words())
        tower = self._fit_once("clip-drawn", self.clip, loss)
        model.visual = tower.visual
        with torch.no_grad():
            model.logit_scale.copy_(tower.scale.clamp(max=4.6))
        return model.eval()

    def vit_drawn(self) -> vision.GroupClassifier:
        """Return the ViT with its head, trained on generated images too."""

        def loss(classifier: vision.GroupClassifier) -> Loss:
            numbers, drawings = self.drawings()
            _, _, nearest = self._caption_pairs()
            groups = [self.world.emoji[nearest[number][1]].group for number in numbers]
            known = [row for row, group in enumerate(groups) if group is not None]
            targets = torch.tensor([self.world.groups.index(group) for group in groups if group is not None])
            return generated.GeneratedGroupLoss(
                classifier, drawings[known], targets, self._group_loss(classifier), self._steps["vit-drawn"].batch
            )

        classifier: vision.GroupClassifier = self._fit_once("vit-drawn", self.vit, loss)
        return classifier

    def flow_sight(self) -> flow.FlowTower:
        """Return the second generator's text encoder, which predicts what words look like."""
        batch = self._steps["flow-sight"].batch

        def loss(tower: flow.FlowTower) -> Loss:
            captions, own, nearest = self._caption_pairs()
            ids = token_ids(self.tokenizer(), captions, longest=flow.LONGEST)
            pair, latents_NF = pairs(own, nearest, own_share=OWN_SHARE), self._still_latents().flatten(1)
            return flow.FlowSightLoss(tower, ids, self.tokenizer().pad_token_id, latents_NF, pair, batch)

        tower: flow.FlowTower = self._fit_once("flow-sight", lambda: flow.FlowTower(self.sight().model, self.tokenizer()), loss)
        return tower

    def flow(self) -> Any:
        """Return the second generator's transformer."""

        def loss(transformer: Any) -> Loss:
            captions, own, nearest = self._caption_pairs()
            states = flow.CaptionStates(self.flow_sight(), self.tokenizer(), [*captions, ""])
            pair = pairs(own, nearest, own_share=OWN_SHARE)
            return flow.FlowLoss(transformer, self._still_latents(), states, len(captions), pair, self._steps["flow"].batch)

        return self._fit_once("flow", flow.transformer, loss)

    def flow_pipeline(self) -> Any:
        """Return the second generator as a diffusers pipeline."""
        vae, _, _ = self.latents()
        return flow.pipeline(vae=vae, text_encoder=self.flow_sight().model, tokenizer=self.tokenizer(), transformer=self.flow())

    def text(self) -> Any:
        """Return the DistilBERT with its masked-language head."""
        tokenizer, batch = self.text_tokenizer(), self._steps["text"].batch
        return self._fit_once("text", lambda: masked_model(tokenizer), lambda model: MaskedWords(model, tokenizer, self.glosses(), batch))

    def glosses(self) -> list[str]:
        """Return the glosses that the text model is trained on."""
        return [one.gloss for one in self.world.synsets.values()]

    def _tokenizer(self, name: str, make: Callable[[Sequence[str]], Any]) -> Any:
        folder = self.folder / f"{name}-tokenizer"
        if not folder.is_dir():
            with whole_folder(folder) as partial:
                make(self.world.texts()).save_pretrained(partial)
        from transformers import CLIPTokenizer, DistilBertTokenizer

        return {"clip": CLIPTokenizer, "text": DistilBertTokenizer}[name].from_pretrained(folder, local_files_only=True)

    def _captions(self) -> tuple[list[str], list[list[int]], list[list[int]]]:
        """Return all captions; for each image the numbers of its own; for each caption from WordNet its number and those of its images."""
        own = [caption for captions in self.world.own for caption in captions]
        texts = list(dict.fromkeys([*own, *(caption for caption, _ in self.world.near)]))
        number = {text: place for place, text in enumerate(texts)}
        return (
            texts,
            [[number[caption] for caption in captions] for captions in self.world.own],
            [[number[caption], *pictures] for caption, pictures in self.world.near],
        )

    def _still_latents(self) -> torch.Tensor:
        """Return the targets of the UNet and of the sight tower: [N, C, h, w]."""
        vae, _, _ = self.latents()
        return drawing.still_latents(vae, self.pictures)

    def _caption_pairs(self) -> tuple[list[str], list[list[int]], list[tuple[int, int]]]:
        """Return ``_captions``, with each caption from WordNet paired with the nearest of its images, by their own captions. The pairs are
        kept in a file: to find them takes minutes."""
        captions, own, near = self._captions()
        path = self.folder / "nearest.pt"
        if not path.is_file():
            found = nearest_images(own, near, embed_texts(self.words(), self.tokenizer(), captions))
            with whole_file(path) as partial:
                torch.save(torch.tensor(found), partial)
        return captions, own, [(caption, picture) for caption, picture in torch.load(path, weights_only=True).tolist()]

    def _fit_once(self, name: str, make: Callable[[], Any], loss: Callable[[Any], Loss]) -> Any:
        step, seed = self._steps[name], random.Random(f"{self._seed}:{name}").randrange(1 << 16)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = make().to(memory_format=torch.channels_last)  # faster convolutions
            schedule = Schedule(
                steps=step.steps,
                learning_rate=step.learning_rate,
                averaged=step.averaged,
                weight_decay=step.weight_decay,
                seed=seed,
                until=step.until,
            )
            self.records[name] = fit(name, model, lambda: loss(model), schedule, self.folder)
        return model.eval()
