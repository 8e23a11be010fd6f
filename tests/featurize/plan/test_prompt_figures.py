"""How many words each strategy loses, how many prompts are cut, and how many name their class."""

from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featurize.inspect.info import store_info
from featurize.inspect.inspect_store import inspect
from featurize.options import FeaturizeSettings, InspectSettings
from featurize.plan.images import plan_passages
from featurize.plan.prompt_figures import prompt_figures
from featurize.plan.prompt_reader import PromptReader
from featurize.run import featurize, featurize_command
from lugpi_core.corpora.columns import TextColumn
from lugpi_core.corpora.corpus import UNLABELLED, Corpus, Example
from lugpi_core.store.example_table import read_example_table
from lugpi_core.store.prompt_figures import ClassWords, PromptFigures, figures_in
from tests.support.small_corpus import options, prompt_table
from tests.support.small_tasks import multi_label_corpus, regression_corpus

READER = PromptReader(tokens_read=4, tokens_of=lambda prompts: [1 + len(prompt.split()) for prompt in prompts])


def corpus_of(texts: list[str], labels: list[str] | None) -> Corpus:
    names = tuple(sorted(set(labels or ())))
    examples = [
        Example(id=str(n), text=text, prompt=text, label=names.index(labels[n]) if labels else UNLABELLED, split="train")
        for n, text in enumerate(texts)
    ]
    return Corpus(name="own", label_names=names, examples=tuple(examples), license="none")


def figures_of(corpus: Corpus, prompts: list[tuple[str, ...]], strategy: str = "whole") -> tuple[PromptFigures, list[bool]]:
    counts_N = np.array([len(its) for its in prompts])
    plan = plan_passages(TextColumn.of(chain.from_iterable(prompts)), counts_N, seed=0, prompts_per_text=int(counts_N.max()))
    figures, cut = prompt_figures(corpus, plan, strategy, READER)
    return figures, cut.tolist()


def test_words_that_no_prompt_has_as_it_is_read_are_lost() -> None:
    corpus = Corpus.from_texts(["The cat saw the dog, the bird", "a mouse"])
    figures, cut = figures_of(corpus, [("The cat saw the dog, the bird",), ("a mouse",)])
    # Of the, cat, saw, dog and bird three are read; a word counts once a text.
    assert (figures.words, figures.words_lost) == (5 + 2, 2)
    assert (figures.prompts, figures.prompts_cut, cut) == (2, 1, [True, False])


def test_a_word_that_another_passage_has_is_not_lost() -> None:
    corpus = Corpus.from_texts(["The cat saw the dog, the bird", "a mouse"])
    figures, cut = figures_of(corpus, [("The cat saw", "the dog, the bird"), ("a", "mouse")], "chunks")
    assert (figures.words, figures.words_lost, figures.prompts_cut, cut) == (7, 1, 1, [True, False])
    assert figures.sentences() == [
        "words lost: 14.3 % of those of the texts reach the generator in no prompt (--prompts chunks; 1 of 4 prompts are cut to 4 tokens)"
    ]


def test_second_texts_count_and_separators_do_not() -> None:
    corpus = Corpus.from_texts(["a SEP cat SEP", "a dog"], pairs=["some bird", "some fish"])
    figures, _ = figures_of(replace(corpus, separator="SEP"), [("a cat",), ("a dog",)])
    assert (figures.words, figures.words_lost) == (8, 4)


TEXTS = ["the Hockey team", "tanks and guns", "hockey with guns", "nothing at all"]


def test_prompts_that_name_their_class_are_counted_beside_other_classes() -> None:
    corpus = corpus_of(TEXTS, ["rec.sport_hockey", "talk.politicsGuns", "talk.politicsGuns", "rec.sport_hockey"])
    figures, _ = figures_of(corpus, [(text,) for text in TEXTS])
    assert figures.class_words == ClassWords(texts=4, texts_with_own=3, share_own=0.75, share_other=0.25)
    assert figures.sentences()[1] == (
        "class names: 75.0 % of the texts (3 of 4) have a word of their own class's name in a prompt, on average 25.0 % "
        "one of another class's: "
        "what the images tell of a class may be its name"
    )


def test_a_name_of_two_words_written_as_one_counts_as_it_is_written() -> None:
    texts = ["I love JavaScript", "a script", "rain", "snow"]
    figures, _ = figures_of(corpus_of(texts, ["JavaScript", "JavaScript", "weather", "weather"]), [(text,) for text in texts])
    assert figures.class_words is not None
    assert figures.class_words.texts_with_own == 2


def test_only_what_is_read_of_a_prompt_can_name_a_class() -> None:
    texts = ["one two three hockey", "one two hockey guns", "one guns", "one"]
    corpus = corpus_of(texts, ["hockey", "guns", "hockey", "guns"])
    figures, _ = figures_of(corpus, [(text,) for text in texts])
    assert figures.class_words == ClassWords(texts=4, texts_with_own=0, share_own=0.0, share_other=0.5)
    assert "may be its name" not in figures.sentences()[1]


def test_names_in_a_script_without_spaces_are_compared_by_pairs_of_characters() -> None:
    corpus = corpus_of(["体育 新闻", "体 育", "财经 好", "经"], ["体育", "体育", "财经", "财经"])
    figures, _ = figures_of(corpus, [(example.text,) for example in corpus.examples])
    assert figures.class_words == ClassWords(texts=4, texts_with_own=2, share_own=0.5, share_other=0.0)


@pytest.mark.parametrize("labels", [["0", "1", "0", "1"], None])
def test_classes_without_words_are_not_asked_about(labels: Any) -> None:
    figures, _ = figures_of(corpus_of(TEXTS, labels), [(text,) for text in TEXTS])
    assert figures.class_words is None
    assert len(figures.sentences()) == 1


def test_share_and_count_have_one_denominator() -> None:
    """A class without words, and a text of several classes, change neither."""
    texts = ["full of joy", "some anger", "joy", "anger", "zero", "none"]
    figures, _ = figures_of(corpus_of(texts, ["joy", "anger", "joy", "anger", "0", "0"]), [(text,) for text in texts])
    assert figures.class_words == ClassWords(texts=4, texts_with_own=4, share_own=1.0, share_other=0.0)
    assert "class names: 100.0 % of the texts (4 of 4) have a word" in figures.sentences()[1]
    targets = ((0, 1), (0, 1), (0, 1), (0,), (1,), ())
    examples = tuple(
        replace(example, label=-1, target=target) for example, target in zip(corpus_of(texts, ["joy"] * 6).examples, targets, strict=True)
    )
    corpus = Corpus(name="own", label_names=("joy", "anger"), examples=examples, license="none", task="multi-label")
    figures, _ = figures_of(corpus, [(text,) for text in texts])
    assert "class names: 60.0 % of the texts (3 of 5) have a word" in figures.sentences()[1]


def test_every_class_of_a_multi_label_text_counts_and_a_number_has_none() -> None:
    corpus = multi_label_corpus()
    figures, _ = figures_of(corpus, [(example.text,) for example in corpus.examples])
    assert figures.class_words is not None
    assert figures.class_words.texts == sum(bool(example.classes) for example in corpus.examples)
    numbers = regression_corpus()
    assert figures_of(numbers, [(example.text,) for example in numbers.examples])[0].class_words is None


def test_figures_come_back_from_json_and_others_do_not() -> None:
    figures, _ = figures_of(corpus_of(TEXTS, ["hockey", "guns", "guns", "hockey"]), [(text,) for text in TEXTS])
    assert figures_in(figures.to_json()) == figures
    assert figures_in({**figures.to_json(), "words": "many"}) is None
    assert figures_in(None) is None


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[Corpus, Path]:
    texts = [f"whale number {n} swims in the sea " + "of many words " * (20 * (n == 3)) + f"end {n}" for n in range(16)]
    corpus = Corpus.from_texts(texts, [["whale", "boat"][n % 2] for n in range(16)])
    settings = FeaturizeSettings(steps=1)
    return corpus, featurize(
        corpus, tmp_path_factory.mktemp("run"), generator="demo", encoders=["clip-demo"], settings=settings, progress=False
    ).path


def test_a_store_keeps_its_figures_for_info_and_inspect(store: tuple[Corpus, Path]) -> None:
    corpus, folder = store
    figures = read_example_table(folder, corpus).prompt_figures
    assert figures is not None
    assert (figures.strategy, figures.prompts, figures.prompts_cut, figures.words_lost) == ("whole", 16, 1, 1)
    assert figures.class_words == ClassWords(texts=16, texts_with_own=8, share_own=0.5, share_other=0.5)
    content = store_info(folder)
    assert content.to_json()["examples"]["prompt_figures"] == figures.to_json()
    assert figures.sentences()[0] in content.summary().splitlines()
    inspection = inspect(folder, corpus, settings=InspectSettings(thumbnails=0))
    assert inspection.to_json()["prompt_figures"] == figures.to_json()
    assert set(figures.sentences()) <= set(inspection.summary().splitlines())


def test_a_dry_run_tells_what_each_strategy_loses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = prompt_table(tmp_path / "own.csv", [f"whale {n} " + "and many other words of the sea " * 20 for n in range(14)])

    def lost(**flags: Any) -> int:
        figures = featurize_command(options(table, tmp_path / "run", dry_run=True, **flags))["prompt_figures"]
        assert figures_in(figures).sentences()[0] in capsys.readouterr().err.splitlines()  # type: ignore[union-attr]
        return int(figures["prompts_cut"])

    assert lost() == 14
    assert lost(prompts="chunks", images_per_text=8) == 0
    assert lost(prompts="keywords") == 0
