"""``--prompts wordnet``: which words name a class, what stands in their place, and how many prompts named a class before and after."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featurize.inspect.columns import first_prompts, open_subject
from featurize.inspect.command import inspect_store
from featurize.options import FeaturizeOptions, FeaturizeSettings, InspectOptions, InspectSettings
from featurize.plan.wordnet_prompts import ClassNames, class_leak, class_names_of, wordnet_prompts
from featurize.run import featurize_command, plan_command
from featurize.unit import FeaturizeJob, ShardFeaturizer
from lugpi_core.corpora.corpus import Corpus, Example
from lugpi_core.corpora.demo import load_demo
from lugpi_core.corpora.hypernyms import Hypernyms, load_hypernyms
from lugpi_core.errors import InputError
from lugpi_core.runtime.device import resolve_compute
from lugpi_core.store.manifest import load_manifest
from lugpi_core.store.prompt_figures import ClassLeak, figures_in
from tests.support.checkout import ROOT
from tests.support.small_corpus import shard_bytes
from tests.support.small_tasks import multi_label_corpus, regression_corpus

GROUPS = ("rec.autos", "talk.politics.guns", "comp.sys.ibm")
NAMES = ClassNames(GROUPS, load_hypernyms())


def corpus_of(texts: list[str], labels: list[str]) -> Corpus:
    names = tuple(dict.fromkeys(labels))
    examples = [
        Example(id=str(n), text=text, prompt=text, label=names.index(label), split="train")
        for n, (text, label) in enumerate(zip(texts, labels, strict=True))
    ]
    return Corpus(name="own", label_names=names, examples=examples, license="none")


@pytest.mark.parametrize(
    ("text", "relaxed"),
    [
        ("the cars, a CAR and an automobile's door", "the motor vehicle, a motor vehicle and an motor vehicle door"),
        ("THE AUTOMOBILE'S DOOR, an Automobile'S", "THE motor vehicle DOOR, an motor vehicle"),
        ("two guns; he talked", "two weapon; he conversation"),
        ("carpets, careers, shotguns and autopsies", "carpets, careers, shotguns and autopsies"),
        ("an IBM machine", "an machine"),
        ("run IBM\n  sys", "run "),
        ("ibm, sys!", "something"),
        ("... 12", "... 12"),
        ("the naïve gun—ibm", "the naïve weapon—"),
    ],
)
def test_words_that_name_a_class_give_way_to_their_hypernym(text: str, relaxed: str) -> None:
    assert NAMES.relaxed(text) == relaxed


def test_a_hypernym_that_names_a_class_is_passed_over() -> None:
    """Of food WordNet says that it is a substance, which is matter: a class of the corpus is no cover for another."""
    nouns = load_hypernyms()
    assert ClassNames(["food", "car"], nouns).relaxed("cold food") == "cold substance"
    assert ClassNames(["food", "substance"], nouns).relaxed("cold food") == "cold matter"
    assert ClassNames(["food", "substance", "matter", "physical", "entity"], nouns).relaxed("cold food now") == "cold now"


def test_classes_that_are_each_others_kind_do_not_go_round_in_circles() -> None:
    """Names are looked up by their first sense, which need not be the sense on the way up."""
    nouns = Hypernyms("entity\t\t-1\nwrit\tact\t3\nact\t\t0\ncommunication\t\t0\nact\tcommunication\t2\n")
    names = ClassNames(["act", "communication"], nouns)
    assert names.relaxed("an act of communication") == "an entity of entity"


def test_words_of_any_class_are_replaced_in_every_text() -> None:
    """What is replaced in a text must not depend on its own class: that would show it."""
    texts = ["a fast car", "a gun in a car"]
    for labels in (["autos", "guns"], ["guns", "autos"]):
        assert list(wordnet_prompts(corpus_of(texts, labels))) == ["a fast motor vehicle", "a weapon in a motor vehicle"]


def test_names_written_as_one_word_are_taken_apart_and_letters_and_small_words_are_none() -> None:
    names = ClassNames(["TalkGuns", "x_in_the_box"], load_hypernyms())
    assert set(names.in_text("gun talk in the x box, talkguns")) == {"gun", "talk", "box", "talkguns"}
    assert names.unknown == ["talkguns"]


def test_negations_and_possessives_of_names_do_not_take_common_words_out_of_texts() -> None:
    names = ClassNames(["not spam", "Women's health", "none of these"], load_hypernyms())
    text = "it is not spam that a woman, or women's friends, have of these others"
    assert set(names.in_text(text)) == {"spam", "woman", "women's"}
    assert names.relaxed("no spam for women") == "no canned meat for female"
    assert names.unknown == []


def test_the_leak_is_counted_before_and_after() -> None:
    corpus = corpus_of(["a car, a car and a gun", "guns", "rain", "the IBM"], ["rec.autos", "rec.autos", "guns", "sys.ibm"])
    prompts = list(wordnet_prompts(corpus))
    assert prompts == ["a motor vehicle, a motor vehicle and a weapon", "weapon", "rain", "the "]
    leak = class_leak(corpus, prompts)
    assert leak == ClassLeak(
        texts=4,
        before=3,
        after=0,
        own_before=2,
        own_after=0,
        words_before={"car": 1, "gun": 1, "guns": 1, "ibm": 1},
        words_after={},
        unknown=("rec", "sys", "ibm"),
    )
    assert leak.sentence() == (
        "leak: 3 of 4 prompts named a class before (car 1, gun 1, guns 1, ibm 1), 0 do now; 2 and 0 of them a class of their own text; "
        "not in WordNet, so left out: rec, sys, ibm"
    )
    assert class_leak(corpus_of(["an AUTOMOBILE'S door"], ["autos"]), ["AUTOMOBILE'S"]).after == 1
    # What another strategy leaves is counted in the same way.
    assert (
        class_leak(corpus, ["cars", "b", "c", "d"])
        .sentence()
        .startswith("leak: 3 of 4 prompts named a class before (car 1, gun 1, guns 1, ibm 1), 1 do now (cars 1); 2 and 1 of them")
    )


def test_a_leak_is_read_again_from_a_store() -> None:
    figures = {"strategy": "wordnet", "tokens_read": 4, "prompts": 1, "prompts_cut": 0, "words": 1, "words_lost": 0, "class_words": None}
    corpus = corpus_of(["a car", "rain"], ["autos", "guns"])
    leak = class_leak(corpus, wordnet_prompts(corpus))
    read = figures_in({**figures, "leak": {**vars(leak), "unknown": list(leak.unknown)}})
    assert read is not None
    assert (read.leak, read.to_json()["leak"]["before"], read.sentences()[-1]) == (leak, 1, leak.sentence())
    without = figures_in(figures)
    assert without is not None
    assert without.to_json() == figures


@pytest.mark.parametrize(
    ("corpus", "message"),
    [
        (regression_corpus, "a corpus whose labels are numbers; expected classes, whose names are kept out of the prompts; use --prompts"),
        (lambda: Corpus.from_texts(["a", "b"], name="more"), "got --prompts wordnet for more, a corpus of texts without labels"),
        (lambda: corpus_of(["a", "b"], ["0", "1"]), "got --prompts wordnet for the classes 0, 1; expected English names, one of which"),
        (lambda: corpus_of(["a", "b"], ["体育 sport", "car"]), "give the classes English names, or use --prompts whole or keywords"),
    ],
)
def test_classes_without_english_names_are_refused(corpus: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        wordnet_prompts(corpus())
    assert "\n" not in str(caught.value)


def test_unlabelled_texts_are_relaxed_by_the_classes_of_their_corpus() -> None:
    corpus = corpus_of(["a", "b"], ["autos", "guns"])
    more = replace(Corpus.from_texts(["my car"], name="more"), labelled=corpus)
    assert list(wordnet_prompts(more)) == ["my motor vehicle"]
    assert class_names_of(more).names == ("autos", "guns")
    assert class_leak(more, wordnet_prompts(more)).own_before == 0
    assert class_names_of(multi_label_corpus()).is_known


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[FeaturizeOptions, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("wordnet")
    texts = [f"{['a car', 'a gun', 'rain'][n % 3]} number {'abcdefghijklmno'[n]}" for n in range(15)]
    lines = [f"{text},{['autos', 'guns'][n % 2]}" for n, text in enumerate(texts)]
    (folder / "own.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    chosen: dict[str, Any] = {"generator": "demo", "encoders": ("clip-demo",), "steps": 1, "shard_rows": 4, "prompts": "wordnet"}
    options = FeaturizeOptions(dataset=str(folder / "own.csv"), run_dir=folder / "run", **chosen)
    return options, featurize_command(options)


def test_the_leak_is_in_the_plan_the_result_and_the_inspection(
    run: tuple[FeaturizeOptions, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options, result = run
    dry = featurize_command(replace(options, run_dir=tmp_path, dry_run=True))
    said = "leak: 10 of 15 prompts named a class before (car 5, gun 5), 0 do now; 6 and 0 of them a class of their own text"
    assert said in capsys.readouterr().err.splitlines()
    inspected = inspect_store(InspectOptions(dataset=options.dataset, run_dir=options.run_dir, thumbnails=0))
    leaks = [record["prompt_figures"]["leak"] for record in (dry, result, inspected)]
    assert [(leak["before"], leak["after"], leak["own_before"]) for leak in leaks] == [(10, 0, 6)] * 3
    assert said in capsys.readouterr().err
    # Texts are compared with images by the prompts that the images have.
    assert "left_out" not in inspected["columns"]["clip-demo"]["agreement"]
    corpus, _ = plan_command(options)
    assert options.run_dir is not None
    compute = resolve_compute("cpu", "auto", half="float16")
    subject = open_subject(options.run_dir / "tokens", corpus, settings=InspectSettings(device="cpu"), compute=compute)
    spec, _ = load_manifest(subject.store / "clip-demo")
    assert first_prompts(subject, np.array([0, 2]), spec) == ["a motor vehicle number a", "rain number c"]


def test_the_demo_leaks_what_the_documentation_says() -> None:
    corpus = load_demo()
    leak = class_leak(corpus, wordnet_prompts(corpus))
    assert (leak.texts, leak.before, leak.own_before, leak.after) == (3_120, 257, 32, 0)
    assert "of the demo's 3,120\n  glosses 257 (32)" in (ROOT / "docs" / "method.md").read_text(encoding="utf-8")


def test_a_store_of_relaxed_prompts_is_its_own_and_has_the_same_bytes_by_two_workers(
    run: tuple[FeaturizeOptions, dict[str, Any]], tmp_path: Path
) -> None:
    options, _ = run
    with pytest.raises(InputError, match="was made with other settings: --prompts: wordnet then, whole now"):
        featurize_command(replace(options, prompts="whole"))
    corpus, _ = plan_command(options)
    settings = FeaturizeSettings(steps=1, shard_rows=4, prompts="wordnet")
    job = FeaturizeJob(corpus=corpus, run_dir=tmp_path, generator="demo", encoders=["clip-demo"], settings=settings)
    for shards in ((3, 0), (1, 2)):
        with ShardFeaturizer(job) as worker:
            for shard in shards:
                worker.fill(shard)
    assert options.run_dir is not None
    assert shard_bytes(tmp_path) == shard_bytes(options.run_dir)


def test_unlabelled_texts_of_the_command_are_relaxed_too(run: tuple[FeaturizeOptions, dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "more.txt").write_text("the cars of my town\n")
    _, job = plan_command(replace(run[0], unlabelled=tmp_path / "more.txt", run_dir=tmp_path))
    assert list(job.plan.prompts) == ["the motor vehicle of my town"]
