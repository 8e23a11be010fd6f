"""The shipped table of hypernyms, against WordNet's own definitions, and how a word is found in it."""

import pytest

from lugpi_core.corpora.hypernyms import TABLE, Hypernyms, load_hypernyms

SMALL = Hypernyms("entity\tentity\t-1\nwhole\t\t0\nanimal\tanimal beast beasts\t1\ndog\tdog mice mouse\t2\npolonium\tpo\t1\n")


def test_the_chain_of_a_word_goes_up_to_entity() -> None:
    assert list(SMALL.above("dog")) == ["animal", "whole", "entity"]
    assert list(SMALL.above("entity")) == list(SMALL.above("cat")) == []


@pytest.mark.parametrize("form", ["dog", "Dogs", "DOG", "mice"])
def test_inflections_and_synonyms_have_one_synset(form: str) -> None:
    assert SMALL.synset_of(form) == 3


def test_an_ending_is_not_taken_off_down_to_two_letters() -> None:
    """``pos`` of ``pos`` and ``neg`` is not the plural of polonium's sign."""
    assert SMALL.synset_of("pos") is None
    assert SMALL.synset_of("po") == 4


@pytest.mark.parametrize(
    ("word", "above"),
    [
        ("autos", "motor vehicle"),
        ("car", "motor vehicle"),
        ("guns", "weapon"),
        ("politics", "social relation"),
        ("children", "juvenile"),
        ("mideast", "geographical area"),
        ("churches", "religion"),
        ("cities", "municipality"),
        ("wives", "woman"),
        ("policemen", "lawman"),
    ],
)
def test_the_shipped_table_has_the_first_sense_of_wordnet(word: str, above: str) -> None:
    assert next(load_hypernyms().above(word)) == above


def test_the_shipped_table_is_small_and_a_tree_of_nouns() -> None:
    assert TABLE.stat().st_size < 1_000_000
    nouns = load_hypernyms()
    assert list(nouns.above("dog"))[-1] == list(nouns.above("politics"))[-1] == "entity"
    assert nouns.synset_of("car") == nouns.synset_of("automobiles") != nouns.synset_of("railcar")
    assert nouns.synset_of("misc") is nouns.synset_of("at") is None
