"""A world of eight images and forty-three synsets, to run the recipe of the embedded models in seconds."""

import numpy as np
from PIL import Image, ImageDraw

from dev.embedded_models.captions import HeldOut
from dev.embedded_models.sources import Emoji, Synset
from dev.embedded_models.world import PICTURE_PX, World, make_world

COLOURS = ("red", "green", "blue", "orange", "purple", "brown", "black", "teal")
KINDS = ("animal", "fruit")


def synset(identity: str, words: tuple[str, ...], gloss: str, *hypernyms: str, topic: str = "noun.object") -> Synset:
    """Return one synset."""
    return Synset(id=identity, topic=topic, words=words, gloss=gloss, hypernyms=hypernyms)


def small_synsets() -> dict[str, Synset]:
    """Return a root, two kinds, four things of each kind, and four kinds of each thing."""
    synsets = [synset("thing", ("thing",), "anything at all")]
    for kind in KINDS:
        synsets.append(synset(kind, (kind,), f"any {kind} at all", "thing"))
        for number in range(4):
            name = f"{kind}{'abcd'[number]}"
            synsets.append(synset(name, (name, f"common {name}"), f"the {kind} number {number} of them", kind))
            synsets += [synset(f"{name}.{n}", (f"{name} {n}",), f"a {name} that is {n} times as large", name) for n in range(4)]
    return {each.id: each for each in synsets}


def small_emoji() -> tuple[list[Emoji], np.ndarray]:
    """Return the emoji of the things, as discs and squares of eight colours."""
    emoji, pictures = [], []
    for number, colour in enumerate(COLOURS):
        kind = KINDS[number // 4]
        canvas = Image.new("RGBA", (PICTURE_PX, PICTURE_PX))
        draw = ImageDraw.Draw(canvas)
        (draw.ellipse if kind == "animal" else draw.rectangle)((16, 16, 80, 80), fill=colour)
        pictures.append(np.asarray(canvas))
        emoji.append(Emoji(characters=chr(0x1F600 + number), name=f"{kind}{'abcd'[number % 4]}", keywords=(kind, colour), group=kind))
    return emoji, np.stack(pictures)


def small_world(*, held: tuple[str, ...] = ()) -> World:
    """Return the world, with some synsets held out."""
    synsets = small_synsets()
    texts = frozenset(synsets[identity].gloss.casefold() for identity in held)
    dev = {f"dev{n}": (f"an unseen {KINDS[n % 2]} of sort {n}", ("animal", "food")[n % 2]) for n in range(8)}
    emoji, pictures = small_emoji()
    kept = {
        identity: synset(identity, each.words, each.gloss, *(up for up in each.hypernyms if up not in held), topic=each.topic)
        for identity, each in synsets.items()
        if identity not in held
    }
    return make_world(emoji, pictures, kept, HeldOut(demo=frozenset(held), dev=dev, glosses=texts))
