"""All training data of the models: images, synsets, captions, and what is held out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dev.demo_corpus import synset_lines
from dev.embedded_models.captions import HeldOut, Tree, held_out, meanings, nearest_pictures, own_captions
from dev.embedded_models.sources import CLDR, FONT, Emoji, Synset, load_emoji, read_synsets, render

PICTURE_PX = 96  # larger than what the models see, for augmentation


@dataclass(frozen=True, kw_only=True)
class World:
    """The training data, without what is held out.

    Attributes:
        emoji: N of them.
        pictures: uint8 RGBA [N, 96, 96, 4].
        synsets: by id.
        tree: of the synsets.
        own: for each emoji, its captions.
        near: captions from WordNet, each with the numbers of the nearest images.
        held: what is held out.
    """

    emoji: Sequence[Emoji]
    pictures: NDArray[np.uint8]
    synsets: dict[str, Synset]
    tree: Tree
    own: Sequence[Sequence[str]]
    near: Sequence[tuple[str, Sequence[int]]]
    held: HeldOut

    @property
    def groups(self) -> list[str]:
        """The names of the emoji's groups, sorted."""
        return sorted({one.group for one in self.emoji if one.group is not None})

    def texts(self) -> list[str]:
        """Return every training text of all models: captions, glosses, and words with their hypernyms."""
        own = [caption for captions in self.own for caption in captions]
        near = [caption for caption, _ in self.near]
        words = [text for synset in self.synsets.values() for text in (synset.gloss, *synset.words)]
        return list(dict.fromkeys([*own, *near, *words]))


def load_world(wordnet: Path, *, font: Path = FONT, cldr: Path = CLDR) -> World:
    """Return the world of the sources.

    Raises:
        InputError: a source is missing or malformed.
    """
    lines = synset_lines(wordnet)
    held = held_out(lines)
    synsets = read_synsets(lines, held_out=held.ids)
    emoji, pictures = render(load_emoji(cldr), font=font, side_px=PICTURE_PX)
    return make_world(emoji, pictures, synsets, held)


def make_world(emoji: Sequence[Emoji], pictures: NDArray[np.uint8], synsets: dict[str, Synset], held: HeldOut) -> World:
    """Return the world of some emoji and synsets; see ``World``."""
    # A text that is held out may occur in another synset too, alone or in a longer text.
    kept = {
        identity: synset for identity, synset in synsets.items() if not any(held.occur_in(text) for text in (synset.gloss, *synset.words))
    }
    tree = Tree(kept)
    synsets_of = [meanings(one, tree) for one in emoji]
    with_picture: dict[str, list[int]] = {}
    for number, (own, others) in enumerate(synsets_of):
        for identity in ([own] if own else []) + others:
            with_picture.setdefault(identity, []).append(number)
    near = []
    for identity, (_, numbers) in nearest_pictures(with_picture, tree).items():
        one = kept[identity]
        kind = tree.chains[identity][:1]
        named = ", ".join(one.words[:3]) + "".join(f": {kept[up].words[0]}" for up in kind)
        near += [(one.gloss, numbers), (named, numbers)]
    captions = [own_captions(one, synset, tree) for one, (synset, _) in zip(emoji, synsets_of, strict=True)]
    return World(emoji=emoji, pictures=pictures, synsets=kept, tree=tree, own=captions, near=near, held=held)
