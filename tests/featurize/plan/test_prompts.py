"""``--prompts``: which prompts and images each strategy plans, and a store of each."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featurize.generate.generators import Generator, find_generator, generator_settings
from featurize.options import FeaturizeSettings
from featurize.plan import prompts as module
from featurize.plan.images import ImagePlan, plan_images
from featurize.plan.prompt_reader import prompt_reader
from featurize.plan.prompts import plan_of
from featurize.run import featurize, featurize_command, plan_command
from lugpi_core.corpora.corpus import Corpus
from lugpi_core.corpora.load import load_corpus
from lugpi_core.corpora.options import CorpusSettings
from lugpi_core.errors import InputError
from lugpi_core.store.manifest import load_manifest
from tests.support.small_corpus import options, prompt_table, state_of
from tests.support.small_tasks import multi_label_corpus, pairs_corpus, regression_corpus

LONG = "One white whale swims. Two whales dive deep. Three whales sing. Four whales sleep."
# 200 different words, more than the embedded generator reads.
ENDLESS = " ".join(f"{first}{second}" for first in "abcdefghijklmnopqrst" for second in ("ale", "ine", "oat", "ust", "ing"))


@pytest.fixture(scope="module")
def generator() -> Generator:
    return find_generator("demo", generator_settings("demo", {}), half=False)


def corpus_of(*prompts: str, splits: str = "") -> Corpus:
    names = {"v": "validation", "t": "test"}
    words = [names.get(letter, "train") for letter in splits.ljust(len(prompts), "r")]
    corpus = Corpus.from_texts([f"text {n}" for n in range(len(prompts))], prompts=prompts)
    examples = [replace(example, split=split) for example, split in zip(corpus.examples, words, strict=True)]
    return replace(corpus, examples=tuple(examples))


def planned(corpus: Corpus, generator: Generator, chosen: FeaturizeSettings) -> ImagePlan:
    return plan_of(corpus, chosen, partial(prompt_reader, generator))


def settings(**given: Any) -> FeaturizeSettings:
    return FeaturizeSettings(**given)


def test_whole_is_the_plan_of_ever(generator: Generator) -> None:
    corpus = corpus_of(LONG, "sea", LONG)
    plan = planned(corpus, generator, settings(images_per_text=2, seed=3))
    assert plan.fingerprint() == plan_images(corpus, seed=3, images_per_text=2).fingerprint()


def test_chunks_give_each_passage_an_image_and_draw_none_twice(generator: Generator) -> None:
    plan = planned(corpus_of(LONG, "two words", LONG, "sea"), generator, settings(prompts="chunks", images_per_text=4))
    assert plan.prompts[:4] == ("One white whale swims.", "Two whales dive deep.", "Three whales sing.", "Four whales sleep.")
    assert plan.prompts[4:] == ("two", "words", "sea")
    assert plan.images_of_example.tolist() == [[0, 1, 2, 3], [4, 5, 4, 5], [0, 1, 2, 3], [6, 6, 6, 6]]
    assert len(set(plan.seeds.tolist())) == len(plan) == 7


def test_keywords_fit_into_what_the_generator_reads(generator: Generator) -> None:
    plan = planned(corpus_of(ENDLESS, "the sea"), generator, settings(prompts="keywords", images_per_text=2))
    reader = prompt_reader(generator)
    assert reader.tokens_of([ENDLESS])[0] > reader.tokens_read >= reader.tokens_of([plan.prompts[0]])[0] >= reader.tokens_read - 6
    assert set(plan.prompts[0].split()) < set(ENDLESS.split())
    assert plan.prompts[1] == "the sea"
    assert plan.images_of_example.tolist() == [[0, 1], [2, 3]]


def test_texts_of_other_splits_do_not_leak_into_keywords(generator: Generator) -> None:
    def train_prompts(held_out: str) -> list[str]:
        corpus = corpus_of(ENDLESS, ENDLESS[:300], held_out, held_out, splits="rrvt")
        plan = planned(corpus, generator, settings(prompts="keywords"))
        return [plan.prompts[prompt] for prompt in plan.prompts_of_example[:2, 0]]

    assert train_prompts(ENDLESS[300:]) == train_prompts("sea")


@pytest.mark.parametrize("strategy", ["chunks", "keywords"])
def test_an_empty_prompt_is_refused_with_its_example(generator: Generator, strategy: Any) -> None:
    corpus = corpus_of(LONG, "sea")
    corpus = replace(corpus, examples=(corpus.examples[0], replace(corpus.examples[1], prompt=" ")))
    with pytest.raises(InputError, match="got an empty prompt in example row/1; expected some words for the generator"):
        planned(corpus, generator, settings(prompts=strategy, images_per_text=2))


def test_chunks_need_several_images_a_text() -> None:
    with pytest.raises(
        InputError, match=r"got --prompts chunks with one passage.*; expected two passages or more; give .*--images-per-text 4"
    ):
        settings(prompts="chunks")


@pytest.fixture(scope="module")
def chunked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("chunks")
    table = prompt_table(folder / "own.csv", [LONG, "two words", *[f"picture number {letter} of fourteen" for letter in "abcdefghijkl"]])
    return table, folder / "run", featurize_command(options(table, folder / "run", prompts="chunks", images_per_text=3, steps=1))


def test_a_store_of_chunks_has_an_image_for_every_passage_and_is_found_again(chunked: tuple[Path, Path, dict[str, Any]]) -> None:
    table, run, figures = chunked
    passages = 3 + 2 + 12 * 3
    distinct = passages - 2 * 11  # "picture number" and "of fourteen" recur
    assert figures["drawings"] == distinct
    assert figures["rows"] == {**dict.fromkeys(("prompts", "drawn", "decoded"), distinct), "encoded": 2 * distinct, "redone": 0}
    before = state_of(run)
    assert featurize_command(options(table, run, prompts="chunks", images_per_text=3, steps=1))["already_done"]
    assert state_of(run) == before
    assert load_manifest(run / "tokens" / "latents")[0].made_by is not None


@pytest.mark.parametrize("strategy", ["whole", "keywords"])
def test_a_store_of_other_prompts_is_refused(chunked: tuple[Path, Path, dict[str, Any]], strategy: Any) -> None:
    table, run, _ = chunked
    with pytest.raises(InputError, match=rf"was made with other settings: --prompts: chunks then, {strategy} now; expected"):
        featurize_command(options(table, run, prompts=strategy, images_per_text=3, steps=1))


def test_a_store_of_other_texts_is_refused_though_no_flag_differs(chunked: tuple[Path, Path, dict[str, Any]]) -> None:
    table, run, _ = chunked
    before = table.read_bytes()
    table.write_bytes(before.replace(b"two words", b"two terms"))
    with pytest.raises(InputError, match="other prompts, though no flag differs: the texts are others"):
        featurize_command(options(table, run, prompts="chunks", images_per_text=3, steps=1))
    table.write_bytes(before)


def test_keywords_may_differ_though_texts_and_flags_do_not(chunked: tuple[Path, Path, dict[str, Any]], tmp_path: Path) -> None:
    """Earlier versions chose words that some generators delete."""
    table, _, _ = chunked
    featurize_command(options(table, tmp_path, prompts="keywords", steps=1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "keyword_prompts", lambda texts, *_: [f"{text} again" for text in texts])
        with pytest.raises(InputError, match="the texts are others, or the version of lugpi that began the store chose other keywords"):
            featurize_command(options(table, tmp_path, prompts="keywords", steps=1))


def unlabelled() -> Corpus:
    return Corpus.from_texts([f"whale {n} swims in the sea" for n in range(5)], name="more")


@pytest.mark.parametrize("corpus", [multi_label_corpus, regression_corpus, pairs_corpus, unlabelled], ids=lambda make: make.__name__)
@pytest.mark.parametrize("strategy", ["chunks", "keywords"])
def test_every_task_has_prompts_of_every_strategy(generator: Generator, corpus: Any, strategy: Any) -> None:
    texts = corpus()
    plan = planned(texts, generator, settings(prompts=strategy, images_per_text=2))
    assert plan.images_of_example.shape == (len(texts.examples), 2)
    assert np.unique(plan.images_of_example).tolist() == list(range(len(plan)))


def test_the_function_takes_the_strategy(tmp_path: Path) -> None:
    store = featurize(
        unlabelled(),
        tmp_path,
        generator="demo",
        encoders=["clip-demo"],
        settings=settings(prompts="chunks", images_per_text=2, steps=1),
        progress=False,
    )
    assert store.images_per_text == 2
    assert store.drawings.max() + 1 == len({drawing for row in store.drawings.tolist() for drawing in row})


def test_keywords_of_unlabelled_texts_are_weighed_by_the_corpus(tmp_path: Path) -> None:
    """``ale`` to ``oat`` are in every train text of the corpus, ``ust`` and ``ing`` in none; in the file it is the other way round."""
    halves = [" ".join(word for word in ENDLESS.split() if word.endswith(ends)) for ends in (("ale", "ine", "oat"), ("ust", "ing"))]
    table = prompt_table(tmp_path / "own.csv", [halves[0]] * 14)
    (tmp_path / "more.csv").write_text("picture,text\n" + f"{ENDLESS},text\n" + f"{halves[1]},text\n" * 20)
    flags: dict[str, Any] = {"unlabelled": tmp_path / "more.csv", "prompts": "keywords"}
    corpus, job = plan_command(options(table, tmp_path / "run", **flags))
    assert set(job.plan.prompts[0].split()) < set(halves[1].split())
    # The same from Python.
    texts = Corpus.from_texts(["text"] * 21, prompts=[ENDLESS, *[halves[1]] * 20], name="more")
    generator = find_generator("demo", generator_settings("demo", {}), half=False)
    assert set(planned(texts, generator, settings(prompts="keywords")).prompts[0].split()) < set(halves[0].split())
    weighed = replace(texts, labelled=load_corpus(table, CorpusSettings(prompt_column="picture")))
    assert list(planned(weighed, generator, settings(prompts="keywords")).prompts) == list(job.plan.prompts)
    assert corpus.fingerprint() == replace(corpus, labelled=None).fingerprint()
