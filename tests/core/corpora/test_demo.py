"""The shipped corpus: its splits, labels and size, and its unlabelled texts."""

from collections import Counter

from lugpi_core.corpora.demo import DEMO_CSV, DEMO_MORE, load_demo
from lugpi_core.corpora.load import load_corpus

TOPICS = ("act", "animal", "artifact", "body", "event", "food", "group", "location", "object", "person", "plant", "substance")


def test_the_demo_has_few_labels_and_a_large_test_part() -> None:
    corpus = load_corpus("demo")
    assert corpus == load_demo()
    counted = Counter((corpus.label_names[example.label], example.split) for example in corpus.examples)
    assert counted == {(topic, split): count for topic in TOPICS for split, count in (("train", 40), ("validation", 20), ("test", 200))}
    assert (corpus.name, corpus.label_names) == ("demo", TOPICS)
    assert DEMO_CSV.stat().st_size <= 1_000_000
    assert "CC BY 4.0" in corpus.license


def test_the_unlabelled_texts_are_in_no_split() -> None:
    texts = DEMO_MORE.read_text().splitlines()
    assert len(texts) == len({text.casefold() for text in texts}) == 8_000
    assert not {text.casefold() for text in texts} & {example.text.casefold() for example in load_demo().examples}
    assert DEMO_MORE.stat().st_size <= 600_000
