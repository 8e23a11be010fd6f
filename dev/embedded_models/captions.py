"""Captions of the images, and which synsets are held out.

Every noun synset gets the nearest images in WordNet's tree, by the similarity of Wu & Palmer (1994, Verb semantics and lexical selection,
§4): twice the depth of the lowest common hypernym over the sum of both depths. So "a small nocturnal mammal" is a caption of the hedgehog
and of its neighbours.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from dev.demo_corpus import PER_TOPIC, SHORTEST, TOPICS, choose, eligible_glosses
from dev.embedded_models.sources import Emoji, Synset
from lugpi_core.corpora.corpus import Split
from lugpi_core.corpora.demo import load_demo

DEV_PER_TOPIC = 100
_MOST_PICTURES = 4
_LEAST_SIMILARITY = 0.5
_WORD = re.compile(r"[a-z]+")
_NOT_NAMES = frozenset({"and", "of", "the", "with", "in", "on", "button", "sign", "symbol", "face", "a"})


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Synsets that no model is trained on.

    Attributes:
        demo: ids of the demo corpus's validation and test examples.
        dev: as many more, on which the recipe itself was chosen: id → (gloss, topic).
        glosses: the texts of both, case-folded.
    """

    demo: frozenset[str]
    dev: Mapping[str, tuple[str, str]]
    glosses: frozenset[str]

    @property
    def ids(self) -> frozenset[str]:
        """All held-out synsets."""
        return self.demo | frozenset(self.dev)

    @cached_property
    def _by_beginning(self) -> dict[str, list[str]]:
        glosses = defaultdict(list)
        for gloss in self.glosses:
            glosses[gloss[:SHORTEST]].append(gloss)
        return dict(glosses)

    def occur_in(self, text: str) -> bool:
        """Whether a text contains a held-out gloss; none is shorter than the demo's shortest."""
        folded = text.casefold()
        return any(
            gloss in folded
            for start in range(len(folded) - SHORTEST + 1)
            for gloss in self._by_beginning.get(folded[start : start + SHORTEST], ())
        )


def held_out(synset_lines: Iterable[str], *, dev_per_topic: int = DEV_PER_TOPIC) -> HeldOut:
    """Return what is held out: the validation and test splits of the demo corpus, and ``dev_per_topic`` more synsets of each topic, sampled
    from those not in the demo.

    Raises:
        InputError: the lines are not synsets, or too few.
    """
    corpus = load_demo()
    splits: tuple[Split, ...] = ("validation", "test")
    rows = [row for split in splits for row in corpus.rows(split)]
    in_demo = {example.id for example in corpus.examples}
    left = [gloss for gloss in eligible_glosses(synset_lines, TOPICS) if gloss.id not in in_demo]
    chosen = choose(left, topics=TOPICS, per_topic={**dict.fromkeys(PER_TOPIC, 0), "train": dev_per_topic}, seed=1)
    dev = {gloss.id: (gloss.text, gloss.topic) for gloss, _ in chosen}
    texts = [corpus.examples[row].text for row in rows] + [text for text, _ in dev.values()]
    return HeldOut(demo=frozenset(corpus.examples[row].id for row in rows), dev=dev, glosses=frozenset(text.casefold() for text in texts))


class Tree:
    """WordNet's hypernym tree."""

    def __init__(self, synsets: Mapping[str, Synset]) -> None:
        self.synsets = synsets

    def above(self, identity: str) -> list[str]:
        """Return the first chain of hypernyms, from the nearest up to the root."""
        chain = [identity]
        while (more := self.synsets[chain[-1]].hypernyms) and more[0] in self.synsets and more[0] not in chain:
            chain.append(more[0])
        return chain[1:]

    @cached_property
    def chains(self) -> dict[str, list[str]]:
        """``above`` of every noun."""
        return {identity: self.above(identity) for identity, one in self.synsets.items() if one.topic.startswith("noun.")}

    @cached_property
    def by_word(self) -> dict[str, list[str]]:
        """Noun synsets by each of their words, in lower case."""
        found = defaultdict(list)
        for identity in self.chains:
            for word in self.synsets[identity].words:
                found[word.lower()].append(identity)
        return dict(found)

    @cached_property
    def below(self) -> dict[str, int]:
        """The number of nouns below each. Of two equally fitting meanings of a word, the one with more is chosen."""
        counted: dict[str, int] = defaultdict(int)
        for chain in self.chains.values():
            for identity in chain:
                counted[identity] += 1
        return counted

    def meaning(self, word: str, context: Iterable[str]) -> str | None:
        """Return the noun synset that a word means in a context: the one whose gloss, words and hypernyms share most words with it (Lesk
        1986, Automatic sense disambiguation using machine readable dictionaries)."""
        around = {part for text in context for part in _WORD.findall(text.lower())} - {word}

        def fit(identity: str) -> tuple[int, int, str]:
            one = self.synsets[identity]
            own = [one.gloss, *one.words, *(name for up in self.chains[identity][:4] for name in self.synsets[up].words)]
            return (
                len(around & {part for text in own for part in _WORD.findall(text.lower())}),
                self.below.get(identity, 0),
                identity,
            )

        return max(self.by_word.get(word, ()), key=fit, default=None)


def meanings(one: Emoji, tree: Tree) -> tuple[str | None, list[str]]:
    """Return the synset of an emoji's name (of the whole name, or else of its last word that has one), and those of its keywords."""
    context = [one.name, *one.keywords]
    name = one.name.lower()
    parts = [part for part in re.split(r"[^a-z]+", name.split(":")[0]) if part and part not in _NOT_NAMES]
    candidates = [name, " ".join(parts), *reversed(parts)]
    own = next((found for word in candidates if (found := tree.meaning(word, context))), None)
    others = [tree.meaning(word.lower(), context) for word in one.keywords]
    return own, [found for found in dict.fromkeys(others) if found is not None and found != own]


def own_captions(one: Emoji, synset: str | None, tree: Tree) -> list[str]:
    """Return the captions of an emoji: its name, its keywords, its synset's gloss and hypernyms, alone and combined."""
    captions = [one.name, *one.keywords]
    if one.keywords:
        captions += [", ".join(one.keywords), f"{one.name}: {', '.join(one.keywords)}"]
    if synset is not None:
        kinds = [tree.synsets[up].words[0] for up in tree.chains[synset][:4]]
        gloss = tree.synsets[synset].gloss
        captions += [gloss, f"{one.name}: {gloss}", *(f"{one.name}: {kind}" for kind in kinds[:2]), f"{one.name}, {', '.join(kinds)}"]
        if kinds:
            captions.append(f"{one.name}: {gloss}: {kinds[0]}")
    return list(dict.fromkeys(caption for caption in captions if caption))


def nearest_pictures(with_picture: Mapping[str, Sequence[int]], tree: Tree) -> dict[str, tuple[float, list[int]]]:
    """Return, for every noun synset near enough to one with an image, the similarity and the numbers of the nearest images.

    Args:
        with_picture: synset → numbers of its images.
        tree: all synsets.
    """
    depth = {identity: len(chain) + 1 for identity, chain in tree.chains.items()}
    # At each node, the shallowest synsets with an image at or below it: no other synset below it can be more similar to anything.
    best: dict[str, tuple[int, list[int]]] = {}
    for identity, pictures in with_picture.items():
        for node in (identity, *tree.chains[identity]):
            there = best.get(node, (depth[identity] + 1, []))
            if depth[identity] < there[0]:
                best[node] = (depth[identity], list(pictures))
            elif depth[identity] == there[0]:
                there[1].extend(pictures)
    near: dict[str, tuple[float, list[int]]] = {}
    for identity, chain in tree.chains.items():
        similar = [(2 * depth[node] / (depth[identity] + best[node][0]), best[node][1]) for node in (identity, *chain) if node in best]
        if similar and (top := max(similar, key=lambda pair: pair[0]))[0] >= _LEAST_SIMILARITY:
            near[identity] = (top[0], sorted(set(top[1]))[:_MOST_PICTURES])
    return near
