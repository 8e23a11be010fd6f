"""The captions of images, and that no held-out text is among them."""

import gzip
import random
from pathlib import Path

import pytest

from dev.embedded_models.captions import Tree, held_out, meanings, nearest_pictures, own_captions
from dev.embedded_models.recipe import Recipe
from dev.embedded_models.sources import CLDR, FONT, Emoji, Synset
from dev.embedded_models.world import World, load_world
from lugpi_core.corpora.demo import load_demo
from tests.support.checkout import DATA
from tests.support.small_world import small_synsets, small_world, synset

WORDNET = DATA / "wordnet-synsets.jsonl.gz"


@pytest.fixture(scope="module")
def real_world() -> World:
    for path in (WORDNET, FONT, CLDR):
        if not path.exists():
            pytest.skip(f"no {path}")
    return load_world(WORDNET)


@pytest.fixture(scope="module")
def real_texts(real_world: World, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    return training_texts(real_world, tmp_path_factory.mktemp("recipe"))


def training_texts(world: World, folder: Path) -> set[str]:
    """Return all training texts of all models, case-folded."""
    return {text.casefold() for text in [*world.texts(), *Recipe(world, folder).glosses()]}


@pytest.mark.soak
def test_no_validation_or_test_text_of_the_demo_is_trained_on(real_world: World, real_texts: set[str]) -> None:
    corpus = load_demo()
    unseen = [example for example in corpus.examples if example.split != "train"]
    assert len(unseen) == 12 * 220
    assert not {example.id for example in unseen} & set(real_world.synsets)
    assert len(real_texts) > 200_000
    assert not {example.text.casefold() for example in unseen} & real_texts
    whole = "\n".join(real_texts)
    assert not [example.text for example in unseen if example.text.casefold() in whole]


@pytest.mark.soak
def test_the_dev_synsets_are_held_out_too(real_world: World, real_texts: set[str]) -> None:
    dev = real_world.held.dev
    assert len(dev) == 12 * 100
    assert not set(dev) & {example.id for example in load_demo().examples}
    assert not set(dev) & set(real_world.synsets)
    assert not {text.casefold() for text, _ in dev.values()} & real_texts


def test_a_held_out_synset_is_no_caption_gloss_or_hypernym(tmp_path: Path) -> None:
    world = small_world(held=("animal", "fruita", "fruitb.1"))
    texts = training_texts(world, tmp_path)
    glosses = [small_synsets()[identity].gloss for identity in ("animal", "fruita", "fruitb.1")]
    assert not [gloss for gloss in glosses for text in texts if gloss in text]
    assert not [text for text in texts if "common fruita" in text]
    assert "a animala that is 1 times as large" in texts


def test_a_held_out_text_is_removed_from_other_synsets_too() -> None:
    held = small_synsets()["fruitb.1"].gloss
    synsets = {"a": synset("a", ("one",), held.upper()), "b": synset("b", ("two",), "another text")}
    from dev.embedded_models.world import make_world

    world = small_world(held=("fruitb.1",))
    other = make_world(world.emoji, world.pictures, synsets, world.held)
    assert list(other.synsets) == ["b"]


def test_the_demo_is_held_out_by_identity_and_by_text() -> None:
    if not WORDNET.exists():
        pytest.skip(f"no {WORDNET}")
    held = held_out(gzip.decompress(WORDNET.read_bytes()).decode().splitlines(), dev_per_topic=2)
    assert len(held.demo) == 2640
    assert len(held.dev) == 24
    assert len(held.glosses) == 2664


def tree_of(*synsets: Synset) -> Tree:
    return Tree({one.id: one for one in synsets})


def test_a_word_means_the_synset_that_shares_most_words_with_it() -> None:
    tree = tree_of(
        synset("tool", ("tool",), "used to do work"),
        synset("mouse1", ("mouse",), "a small rodent with a tail"),
        synset("mouse2", ("mouse",), "a device that moves the cursor", "tool"),
    )
    assert tree.meaning("mouse", ["mouse", "animal", "rodent"]) == "mouse1"
    assert tree.meaning("mouse", ["computer", "device"]) == "mouse2"
    assert tree.meaning("cat", []) is None
    emoji = Emoji(characters="x", name="computer mouse", keywords=("device", "tool"))
    assert meanings(emoji, tree) == ("mouse2", ["tool"])


def test_captions_are_name_keywords_gloss_and_hypernyms() -> None:
    tree = tree_of(
        synset("animal", ("animal",), "what lives and moves"), synset("hedgehog", ("hedgehog",), "a small nocturnal mammal", "animal")
    )
    captions = own_captions(Emoji(characters="x", name="hedgehog", keywords=("hedgehog", "spiny")), "hedgehog", tree)
    assert captions[0] == "hedgehog"
    assert {"spiny", "a small nocturnal mammal", "hedgehog: a small nocturnal mammal", "hedgehog: animal"} <= set(captions)
    assert "hedgehog: a small nocturnal mammal: animal" in captions
    assert len(set(captions)) == len(captions)
    assert own_captions(Emoji(characters="x", name="Aries", keywords=()), None, tree) == ["Aries"]


def test_the_nearest_images_are_those_of_a_full_search() -> None:
    chance = random.Random(3)
    for _ in range(30):
        synsets = {"0": synset("0", ("w0",), "g0", topic="noun.x")}
        for n in range(1, 40):
            synsets[str(n)] = synset(str(n), (f"w{n}",), f"g{n}", str(chance.randrange(n)), topic="noun.x")
        tree = Tree(synsets)
        with_picture = {identity: [number] for number, identity in enumerate(chance.sample(sorted(synsets), 5))}
        found = nearest_pictures(with_picture, tree)
        depth = {identity: len(chain) + 1 for identity, chain in tree.chains.items()}
        for identity in synsets:
            own = {identity, *tree.chains[identity]}
            similar = {
                number: 2 * max(depth[node] for node in own & {other, *tree.chains[other]}) / (depth[identity] + depth[other])
                for other, (number,) in with_picture.items()
            }
            best = max(similar.values())
            if best < 0.5:
                assert identity not in found
            else:
                similarity, pictures = found[identity]
                assert similarity == pytest.approx(best)
                assert set(pictures) <= {number for number, value in similar.items() if value == pytest.approx(best)}
