"""What the Python API refuses before anything is loaded or written."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lugpi_core.corpora.corpus import Corpus
from lugpi_core.corpora.load import load_corpus
from lugpi_core.corpora.options import CorpusSettings
from lugpi_core.errors import InputError
from lugpi_core.store.token_store import TokenStore
from train.models.api import distill, train_baseline, train_images, train_teacher
from train.models.arguments import column_of, teacher_folders

NOWHERE: Any = "nowhere"  # neither a run nor a store is read


@pytest.fixture(scope="module")
def corpus(small_csv: Path) -> Corpus:
    return load_corpus(small_csv, CorpusSettings(split_column="split"))


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (
            lambda corpus: train_teacher(corpus, NOWHERE, privileged="shufled"),
            r"images \| text \| shuffled \| blank \| none; did you mean 'shuffled'",
        ),
        (lambda corpus: train_teacher(corpus, NOWHERE, outputs_dtype="int8"), r"outputs_dtype='int8'; expected float32 \| float16"),
        (lambda corpus: distill(corpus, [NOWHERE], distillation="hintn"), "'hintn'; expected one of paper, hinton, lopez-paz"),
        (lambda corpus: distill(corpus, ["run/teacher", Path("run/teacher")]), "different ones of one run"),
    ],
)
def test_a_misspelt_choice_or_a_teacher_named_twice_is_refused(corpus: Corpus, train: Callable[[Corpus], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        train(corpus)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (lambda corpus: train_baseline("demo", NOWHERE), "corpus: got 'demo'; expected Corpus"),
        (lambda corpus: distill(corpus, "run/teacher"), "teachers: got 'run/teacher'; expected a list"),
        (lambda corpus: distill(corpus, Path("run/teacher")), "expected a list"),
        (lambda corpus: distill(corpus, [NOWHERE], unlabelled=["a text"]), "unlabelled: got"),
        (lambda corpus: distill(corpus, [NOWHERE], student_layers=1.5), "student_layers: got 1.5"),
        (lambda corpus: distill(corpus, [NOWHERE], distillation={}), "distillation: got {}; expected DistillationSettings or str"),
        (lambda corpus: distill(corpus, [NOWHERE], teacher_weights=1), "teacher_weights: got 1; expected a list of numbers"),
        (lambda corpus: distill(corpus, [NOWHERE], teacher_weights=["1"]), r"teacher_weights: got \['1'\]; expected a list of numbers"),
        (lambda corpus: distill(corpus, [1]), "teachers: got 1; expected TrainedModel or str or Path"),
        (lambda corpus: train_baseline(corpus, 1), "run_dir: got 1; expected str or PathLike"),
        (lambda corpus: train_images(corpus, {}), "store: got {}; expected str or PathLike"),
        (lambda corpus: train_teacher(corpus, NOWHERE, run_dir=0.5), "run_dir: got 0.5"),
        (lambda corpus: train_images(corpus, NOWHERE, text_model=None), "text_model: got None; expected str or TextModel"),
        (lambda corpus: train_images(corpus, NOWHERE, optimization={}), "optimization: got {}; expected Optimization"),
        (lambda corpus: train_teacher(corpus, NOWHERE, placement="cpu"), "placement: got 'cpu'; expected Placement"),
    ],
)
def test_an_argument_of_another_type_is_refused(corpus: Corpus, train: Callable[[Corpus], object], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        train(corpus)


def test_unlabelled_texts_are_no_training_corpus(corpus: Corpus) -> None:
    partly = replace(corpus, examples=(*corpus.examples[:-1], replace(corpus.examples[-1], label=-1)))
    for unlabelled in (Corpus.from_texts(["a", "b"]), partly):
        with pytest.raises(InputError, match="a label for each text"):
            train_baseline(unlabelled, NOWHERE)


def test_an_open_store_decides_the_column(corpus: Corpus, small_run: Path) -> None:
    tokens = small_run / "tokens"
    assert column_of(tokens, None) is None
    assert column_of(TokenStore(tokens), None) is None, "two columns: the caller has to choose"
    assert column_of(TokenStore(tokens, columns=["clip-demo"]), None) == "clip-demo"
    with pytest.raises(InputError, match="column='vit-demo' of a TokenStore with clip-demo"):
        train_teacher(corpus, TokenStore(tokens, columns=["clip-demo"]), column="vit-demo")


def test_one_image_of_several_is_refused(corpus: Corpus, small_run: Path) -> None:
    store = TokenStore(small_run / "tokens")
    store.image = 1  # as if it were opened so: this store has one image per text
    with pytest.raises(InputError, match="image=1; expected a whole store"):
        train_teacher(corpus, store, column="clip-demo", text_model="demo")


def test_relative_and_absolute_folders_are_of_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(teacher_folders([Path("run/a"), tmp_path / "run" / "b"])) == 2
    with pytest.raises(InputError, match="different ones of one run"):
        teacher_folders([Path("run/a"), tmp_path / "run" / "a"])
