"""How good the models are: retrieval, CLIP scores, a linear probe, and a sheet of drawings. What the card tells.

Shapes: B texts or pictures, T tokens, D width, E width of the joint space.
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dev.embedded_models.captions import meanings
from dev.embedded_models.placing import STILL, placed
from dev.embedded_models.sources import Synset
from dev.embedded_models.world import World
from featurize.encode.encoders import DEMO_ENCODERS, find_encoder
from featurize.encode.image_encoder import ImageEncoder
from featurize.generate.generators import PRESETS, find_generator
from featurize.generate.text_to_image import TextToImage
from featurize.inspect.probes import predict_linear, standardised
from featurize.inspect.text_agreement import JointSpace
from lugpi_core.corpora.corpus import Split
from lugpi_core.corpora.demo import load_demo
from lugpi_core.fingerprint import digest
from lugpi_core.runtime.device import resolve_compute

_BATCH = 64


class Artist:
    """The assembled generator: texts to pictures, as ``python -m featurize --generator demo`` draws them."""

    def __init__(self, folder: Path, **overrides: Any) -> None:
        self._compute = resolve_compute("cpu", "auto", half="float16")
        settings = replace(PRESETS["demo"], **overrides)
        self._drawer = TextToImage(find_generator(f"demo={folder / 'generator'}", settings, half=False), self._compute)

    def pictures(self, texts: Sequence[str]) -> torch.Tensor:
        """Return images [B, 3, 64, 64] in [0, 1]."""
        drawn = []
        for start in range(0, len(texts), _BATCH):
            part = texts[start : start + _BATCH]
            seeds = [int(digest(text)[:8], 16) for text in part]
            with self._drawer.text_encoder_on_device():
                embeddings = self._drawer.encode_prompts(part)
            drawn.append(self._drawer.decode(self._drawer.draw(embeddings, seeds)))
        return torch.cat(drawn)


class Clip:
    """The assembled CLIP: texts and pictures in its joint space, both of length one."""

    def __init__(self, folder: Path) -> None:
        files, compute = find_encoder(str(folder / "clip-demo")), resolve_compute("cpu", "auto", half="float16")
        self._space, self._encoder = JointSpace(files, compute), ImageEncoder(files, compute)

    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Return [B, E]."""
        return torch.cat([self._space.texts(texts[start : start + 256]) for start in range(0, len(texts), 256)])

    def pictures(self, images_B3HW: torch.Tensor) -> torch.Tensor:
        """Return [B, E] of images in [0, 1]."""
        parts = [self._space.images(self._encoder.encode(part)[:, 0]) for part in torch.split(images_B3HW, 256)]
        return torch.cat(parts)


def clean_pictures(pictures: NDArray[np.uint8]) -> torch.Tensor:
    """Return pictures RGBA [N, P, P, 4] in the middle on white: [N, 3, 64, 64] in [0, 1]."""
    return placed(torch.from_numpy(pictures).permute(0, 3, 1, 2), STILL, torch.Generator().manual_seed(0))


def retrieval(world: World, clip: Clip) -> dict[str, float]:
    """Return how often the right picture is found among all: by its name (first, and among five), by a keyword (one that has it among
    five), and by a gloss nobody has learnt from (one of the gloss's topic first; ``by_chance`` beside)."""
    pictures_NE = clip.pictures(clean_pictures(world.pictures))
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


def caption_choice(world: World, count: int, *, seed: int = 0) -> list[str]:
    """Return captions, half of them names of pictures and half glosses that nobody has learnt from."""
    chance = random.Random(seed)
    names = chance.sample([one.name for one in world.emoji], min(count // 2, len(world.emoji)))
    glosses = chance.sample([text for text, _ in world.held.dev.values()], min(count // 2, len(world.held.dev)))
    return [*names, *glosses]


def clip_scores(world: World, clip: Clip, artist: Artist, *, count: int = 256) -> dict[str, float]:
    """Return 100 × the mean cosine of drawings with their captions, and with each other's."""
    captions = caption_choice(world, count)
    cosine_BB = 100 * clip.texts(captions) @ clip.pictures(artist.pictures(captions)).T
    half = len(captions) // 2
    shuffled = cosine_BB.roll(1, dims=1)
    return {
        "names": round(float(cosine_BB.diag()[:half].mean()), 2),
        "names_shuffled": round(float(shuffled.diag()[1:half].mean()), 2),
        "unseen_glosses": round(float(cosine_BB.diag()[half:].mean()), 2),
        "unseen_glosses_shuffled": round(float(shuffled.diag()[half + 1 :].mean()), 2),
    }


def drawn_names(world: World, clip: Clip, artist: Artist, *, count: int = 256) -> dict[str, float]:
    """Return how often, in CLIP's joint space, the drawing of an emoji's name finds that emoji among all: first, and among five."""
    numbers = sorted(random.Random(0).sample(range(len(world.emoji)), min(count, len(world.emoji))))
    drawn_BE = clip.pictures(artist.pictures([world.emoji[number].name for number in numbers]))
    five = (drawn_BE @ clip.pictures(clean_pictures(world.pictures)).T).topk(5, dim=1).indices.tolist()
    return {
        "first": _share([found[0] == number for number, found in zip(numbers, five, strict=True)]),
        "among_five": _share([number in found for number, found in zip(numbers, five, strict=True)]),
    }


def pooled(encoder: ImageEncoder, images_B3HW: torch.Tensor) -> NDArray[np.float32]:
    """Return the class token beside the mean of the patches: [B, 2D]."""
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
    learnt: Sequence[tuple[str, str]], unseen: Sequence[tuple[str, str]], clip: Clip, artist: Artist, folder: Path
) -> dict[str, float]:
    """Return the accuracy on the topics of unseen glosses of probes that learn from others: of CLIP's text space, the ceiling of what a
    drawing can show, and of both encoders' tokens of drawings.

    Args:
        learnt: texts and topics.
        unseen: texts and topics.
        clip: for the text space.
        artist: draws.
        folder: with the encoders.
    """
    (texts, labels), (glosses, wanted) = zip(*learnt, strict=True), zip(*unseen, strict=True)
    found = {"text": probe(clip.texts(texts).numpy(), labels, clip.texts(glosses).numpy(), wanted)}
    drawn, seen = artist.pictures(texts), artist.pictures(glosses)
    for name in DEMO_ENCODERS:
        encoder = ImageEncoder(find_encoder(str(folder / name)), resolve_compute("cpu", "auto", half="float16"))
        found[name] = probe(pooled(encoder, drawn), labels, pooled(encoder, seen), wanted)
    return found
