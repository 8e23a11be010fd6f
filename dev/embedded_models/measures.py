"""How good the models are: retrieval, CLIP scores and a linear probe, for the card.

Shapes: B texts or images, T tokens, D width, E width of the joint space.
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dev.embedded_models.augmentation import CENTRED, augment
from dev.embedded_models.captions import meanings
from dev.embedded_models.sources import Synset
from dev.embedded_models.world import World
from featurize.encode.encoders import DEMO_ENCODERS, find_encoder
from featurize.encode.image_encoder import ImageEncoder
from featurize.encode.joint_space import JointSpace
from featurize.generate.generators import find_generator
from featurize.generate.presets import EMBEDDED_GENERATORS, PRESETS
from featurize.generate.text_to_image import TextToImage
from featurize.inspect.probes import predict_linear, standardised
from lugpi_core.corpora.corpus import Split
from lugpi_core.corpora.demo import load_demo
from lugpi_core.fingerprint import digest
from lugpi_core.runtime.device import resolve_compute

_BATCH = 64


class ImageGenerator:
    """An assembled generator, run as ``python -m featurize --generator demo`` runs it, or ``demo-flow``."""

    def __init__(self, folder: Path, preset: str = "demo", **overrides: Any) -> None:
        self._compute = resolve_compute("cpu", "auto", half="float16")
        settings = replace(PRESETS[preset], **overrides)
        self._model = TextToImage(find_generator(f"{preset}={folder / EMBEDDED_GENERATORS[preset]}", settings, half=False), self._compute)

    def images(self, texts: Sequence[str]) -> torch.Tensor:
        """Return images [B, 3, 64, 64] in [0, 1]."""
        images = []
        for start in range(0, len(texts), _BATCH):
            part = texts[start : start + _BATCH]
            seeds = [int(digest(text)[:8], 16) for text in part]
            with self._model.text_encoder_on_device():
                embeddings = self._model.encode_prompts(part)
            images.append(self._model.decode(self._model.denoise(embeddings, seeds)))
        return torch.cat(images)


class Clip:
    """The assembled CLIP: texts and images as unit vectors in its joint space."""

    def __init__(self, folder: Path) -> None:
        files, compute = find_encoder(str(folder / "clip-demo")), resolve_compute("cpu", "auto", half="float16")
        self._space, self._encoder = JointSpace(files, compute), ImageEncoder(files, compute)

    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Return [B, E]."""
        return torch.cat([self._space.embed_texts(texts[start : start + 256]) for start in range(0, len(texts), 256)])

    def images(self, images_B3HW: torch.Tensor) -> torch.Tensor:
        """Return [B, E] of images in [0, 1]."""
        parts = [self._space.images(self._encoder.encode(part)[:, 0]) for part in torch.split(images_B3HW, 256)]
        return torch.cat(parts)


def centred_images(pictures: NDArray[np.uint8]) -> torch.Tensor:
    """Return images RGBA [N, P, P, 4] centred on white: [N, 3, 64, 64] in [0, 1]."""
    return augment(torch.from_numpy(pictures).permute(0, 3, 1, 2), CENTRED, torch.Generator().manual_seed(0))


def retrieval(world: World, clip: Clip) -> dict[str, float]:
    """Return how often the right image is retrieved among all: by its name (first, and among five), by a keyword (one that has it among
    five), and by an unseen gloss (one of the gloss's topic first; ``by_chance`` for comparison)."""
    pictures_NE = clip.images(centred_images(world.pictures))
    ranks_NN = (clip.texts([one.name for one in world.emoji]) @ pictures_NE.T).argsort(dim=1, descending=True)
    right = ranks_NN == torch.arange(len(world.emoji))[:, None]
    keywords = sorted({word for one in world.emoji for word in one.keywords})
    found = (clip.texts(keywords) @ pictures_NE.T).topk(5, dim=1).indices
    by_keyword = [any(word in world.emoji[n].keywords for n in five) for word, five in zip(keywords, found.tolist(), strict=True)]
    topics = [_topic(world, number) for number in range(len(world.emoji))]
    glosses = list(world.held.dev.values())
    first = (clip.texts([text for text, _ in glosses]) @ pictures_NE.T).argmax(dim=1).tolist()
    of_topic = [topics[number] == topic for number, (_, topic) in zip(first, glosses, strict=True)]
    chance = [topics.count(topic) / len(topics) for _, topic in glosses]
    return {
        "name_first": _share(right[:, 0].tolist()),
        "name_among_five": _share(right[:, :5].any(dim=1).tolist()),
        "keyword_among_five": _share(by_keyword),
        "unseen_gloss_topic": _share(of_topic),
        "unseen_gloss_topic_by_chance": round(float(np.mean(chance)), 4),
    }


def _share(hits: Sequence[bool]) -> float:
    return round(sum(hits) / len(hits), 4)


def _topic(world: World, number: int) -> str:
    own, others = meanings(world.emoji[number], world.tree)
    synset: Synset | None = world.synsets.get(own or (others[0] if others else ""))
    return synset.topic.removeprefix("noun.") if synset else ""


def sample_captions(world: World, count: int, *, seed: int = 0) -> list[str]:
    """Return captions, half of them names of emoji and half unseen glosses."""
    chance = random.Random(seed)
    names = chance.sample([one.name for one in world.emoji], min(count // 2, len(world.emoji)))
    glosses = chance.sample([text for text, _ in world.held.dev.values()], min(count // 2, len(world.held.dev)))
    return [*names, *glosses]


def clip_scores(world: World, clip: Clip, generator: ImageGenerator, *, count: int = 256) -> dict[str, float]:
    """Return 100 × the mean cosine of generated images with their own captions, and with others'."""
    captions = sample_captions(world, count)
    cosine_BB = 100 * clip.texts(captions) @ clip.images(generator.images(captions)).T
    half = len(captions) // 2
    shuffled = cosine_BB.roll(1, dims=1)
    return {
        "names": round(float(cosine_BB.diag()[:half].mean()), 2),
        "names_shuffled": round(float(shuffled.diag()[1:half].mean()), 2),
        "unseen_glosses": round(float(cosine_BB.diag()[half:].mean()), 2),
        "unseen_glosses_shuffled": round(float(shuffled.diag()[half + 1 :].mean()), 2),
    }


def name_recognition(world: World, clip: Clip, generator: ImageGenerator, *, count: int = 256) -> dict[str, float]:
    """Return how often the image generated for an emoji's name retrieves that emoji in CLIP's joint space: first, and among five."""
    numbers = sorted(random.Random(0).sample(range(len(world.emoji)), min(count, len(world.emoji))))
    generated_BE = clip.images(generator.images([world.emoji[number].name for number in numbers]))
    five = (generated_BE @ clip.images(centred_images(world.pictures)).T).topk(5, dim=1).indices.tolist()
    return {
        "first": _share([found[0] == number for number, found in zip(numbers, five, strict=True)]),
        "among_five": _share([number in found for number, found in zip(numbers, five, strict=True)]),
    }


def pooled_tokens(encoder: ImageEncoder, images_B3HW: torch.Tensor) -> NDArray[np.float32]:
    """Return the class token followed by the mean of the patch tokens: [B, 2D]."""
    tokens = torch.cat([encoder.encode(part).float() for part in torch.split(images_B3HW, _BATCH)])
    joined: NDArray[np.float32] = torch.cat([tokens[:, 0], tokens[:, 1:].mean(dim=1)], dim=1).numpy()
    return joined


def demo_glosses(split: Split) -> list[tuple[str, str]]:
    """Return text and topic of the demo's examples of a split."""
    corpus = load_demo()
    examples = [corpus.examples[row] for row in corpus.rows(split)]
    return [(example.text, corpus.label_names[example.label]) for example in examples]


def probe(train_NF: NDArray[np.float32], labels: Sequence[str], other_VF: NDArray[np.float32], wanted: Sequence[str]) -> float:
    """Return the accuracy of the linear probe of ``python -m featurize inspect``."""
    names = sorted(set(labels))
    train, other = standardised(train_NF, other_VF)
    predicted = predict_linear(train, np.array([names.index(label) for label in labels]), other)
    return _share([names[number] == label for number, label in zip(predicted.tolist(), wanted, strict=True)])


def probes(
    fitted: Sequence[tuple[str, str]], unseen: Sequence[tuple[str, str]], clip: Clip, generator: ImageGenerator, folder: Path
) -> dict[str, float]:
    """Return the accuracy of linear probes for the topics of unseen glosses: on CLIP's text embeddings, which bound what an image can
    show, and on both encoders' tokens of generated images.

    Args:
        fitted: texts and topics to fit.
        unseen: texts and topics to score.
        clip: for the text embeddings.
        generator: of the images.
        folder: with the encoders.
    """
    (texts, labels), (glosses, wanted) = zip(*fitted, strict=True), zip(*unseen, strict=True)
    found = {"text": probe(clip.texts(texts).numpy(), labels, clip.texts(glosses).numpy(), wanted)}
    fitted_images, unseen_images = generator.images(texts), generator.images(glosses)
    for name in DEMO_ENCODERS:
        encoder = ImageEncoder(find_encoder(str(folder / name)), resolve_compute("cpu", "auto", half="float16"))
        found[name] = probe(pooled_tokens(encoder, fitted_images), labels, pooled_tokens(encoder, unseen_images), wanted)
    return found
