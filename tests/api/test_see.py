"""``python -m lugpi see``: the ascent, its score and its limits against formulas; the command on a small run; its place in the report."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

import lugpi
from featurize.generate.decoders import find_decoder
from featurize.generate.generators import find_generator, generator_settings
from featurize.inspect.latent_images import decoder_of
from lugpi.cli import main
from lugpi.options import SeeOptions
from lugpi.see import SHEET, Prior, ascend, prior_of
from lugpi_core.errors import InputError
from lugpi_core.runtime.device import resolve_compute
from lugpi_core.store.manifest import ColumnSpec
from tests.support.topics import topic_texts
from train.file_names import SEEN
from train.models.class_scores import ClassScores, log_odds, neutral_rows, require_own_images
from train.models.teachers import FoundTeacher, find_teacher, open_tokens_of
from train.report.recorded import seen_of

FAST: dict[str, Any] = {"text_model": "demo", "optimization": lugpi.Optimization(epochs=1)}
OPTIONS = SeeOptions(dataset="demo", classes=("a",), steps=150, starts=3)


def test_log_odds_are_those_of_the_softmax() -> None:
    logits = torch.tensor([[1.0, -2.0, 0.5], [0.0, 0.0, 0.0]])
    p = logits.softmax(dim=1)
    assert torch.allclose(log_odds(logits), (p / (1 - p)).log(), atol=1e-6)


def test_the_prior_is_measured_channel_by_channel() -> None:
    latents = torch.randn((64, 2, 4, 4), generator=torch.Generator().manual_seed(0)) * torch.tensor([2.0, 0.5])[:, None, None] + 3
    prior = prior_of(latents)
    assert torch.allclose(prior.mean_C11.flatten(), torch.tensor([3.0, 3.0]), atol=0.3)
    assert torch.allclose(prior.sd_C11.flatten(), torch.tensor([2.0, 0.5]), rtol=0.1)
    assert prior.radius == pytest.approx(32**0.5, rel=0.1), "of 32 numbers of variance 1"
    with pytest.raises(InputError, match="1 stored latents"):
        prior_of(latents[:1])


def test_the_ascent_ends_at_the_best_latent_within_the_radius() -> None:
    direction = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)
    path: Any = SimpleNamespace(shape=(2, 1, 1), images=lambda latents: latents, tokens=lambda images: images)
    scores: Any = SimpleNamespace(
        of=lambda tokens: torch.stack([tokens.new_zeros(len(tokens)), (tokens * direction).sum(dim=(1, 2, 3))], 1)
    )
    prior = Prior(mean_C11=torch.tensor([1.0, -1.0]).view(2, 1, 1), sd_C11=torch.ones(2, 1, 1), radius=0.5)
    latents = ascend(path, scores, 1, prior, OPTIONS)
    # Of a linear score, the best point of a ball is its edge in the direction of the gradient.
    assert torch.allclose(latents.flatten(1), torch.tensor([1.0 + 0.5 * 0.6, -1.0 + 0.5 * 0.8]).expand(3, 2), atol=0.02)
    assert torch.equal(latents, ascend(path, scores, 1, prior, OPTIONS))
    assert not torch.equal(latents, ascend(path, scores, 1, prior, replace(OPTIONS, steps=2)))


def test_starts_are_ascended_a_few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    direction, batches = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1), list[int]()

    def images(latents: torch.Tensor) -> torch.Tensor:
        batches.append(len(latents))
        return latents

    path: Any = SimpleNamespace(shape=(2, 1, 1), images=images, tokens=lambda images: images)
    scores: Any = SimpleNamespace(of=lambda tokens: (tokens.tanh() * direction).sum(dim=(1, 2, 3))[:, None])
    prior = Prior(mean_C11=torch.zeros(2, 1, 1), sd_C11=torch.ones(2, 1, 1), radius=0.5)
    options = replace(OPTIONS, starts=9, steps=3)
    latents = ascend(path, scores, 0, prior, options)
    assert sorted(set(batches)) == [1, 4]
    monkeypatch.setattr("lugpi.see._AT_ONCE", 9)
    assert torch.allclose(latents, ascend(path, scores, 0, prior, options), rtol=0, atol=1e-6)


def test_too_little_memory_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(_: SeeOptions) -> None:
        raise MemoryError("no room for 5 GB")

    monkeypatch.setattr("lugpi.see.see", fail)
    assert main(["see", "--dataset", "demo", "--classes", "a", "--device", "cpu"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "too little memory (no room for 5 GB); expected room for the models and one image; give fewer --starts" in line


def test_another_tiny_decoder_is_not_looked_through() -> None:
    generator = find_generator("demo", generator_settings("demo", {}), half=False)
    decoder = find_decoder("tiny", generator)
    assert decoder is not None
    shape: dict[str, Any] = {"name": "clip-demo-tiny", "what": "tokens", "rows": 1, "row_shape": (2, 3), "shard_rows": 1}
    tiny, other = (
        ColumnSpec(**shape, fingerprint={"decoder": stated}, made_by={"decoder": "tiny"})
        for stated in (decoder.fingerprint(), {"weights": "f00d"})
    )
    assert decoder_of(tiny, generator) is not None
    assert decoder_of(replace(tiny, fingerprint={"decoder": "the generator's"}, made_by=None), generator) is None
    with pytest.raises(InputError, match="with other weights than those that decoded the images of clip-demo-tiny"):
        decoder_of(other, generator)


@pytest.mark.parametrize(
    ("more", "message"),
    [({"classes": ()}, "--classes"), ({"classes": ("a", "a")}, "each once"), ({"steps": 0}, "--steps 0"), ({"starts": 0}, "--starts 0")],
)
def test_bad_numbers_are_refused(more: Mapping[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SeeOptions(**{"dataset": "demo", "classes": ("a",), **more})


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, lugpi.Corpus]:
    """A file of texts, and a run with a teacher on images of one step."""
    folder = tmp_path_factory.mktemp("see")
    texts, labels = zip(*topic_texts(30), strict=True)
    splits = ["train"] * 18 + ["validation"] * 6 + ["test"] * 6
    path = folder / "topics.csv"
    lines = [f'"{text}",{label},{split}' for text, label, split in zip(texts, labels, splits, strict=True)]
    path.write_text("\n".join(["text,label,split", *lines]) + "\n")
    corpus = lugpi.load_corpus(path, lugpi.CorpusSettings(split_column="split"))
    run = folder / "run"
    store = lugpi.featurize(corpus, run, generator="demo", encoders=["clip-demo"], settings=lugpi.FeaturizeSettings(steps=1))
    lugpi.train_teacher(corpus, store, column="clip-demo", **FAST)
    return path, run, corpus


def words(path: Path, run: Path, *more: str) -> list[str]:
    return ["see", "--dataset", str(path), "--split-column", "split", "--run-dir", str(run), "--device", "cpu", *more]


def test_the_command_raises_the_score_and_the_report_shows_it(
    small: tuple[Path, Path, lugpi.Corpus], capsys: pytest.CaptureFixture[str]
) -> None:
    path, run, corpus = small
    name = corpus.label_names[0]
    reached = []
    for steps in ("1", "12"):
        assert main(words(path, run, "--classes", name, "--steps", steps, "--starts", "2", "--texts", "4")) == 0
        record = json.loads(capsys.readouterr().out.splitlines()[-1])
        reached.append(record["classes"][0]["optimised"][0])
    assert reached[1] > reached[0]
    assert json.loads((run / SEEN).read_text())["classes"] == record["classes"]
    # The scores of stored images, from the tokens that the teacher has read.
    teacher = find_teacher(run / "teacher")
    tokens = open_tokens_of(teacher, corpus, teacher.run / "tokens")
    rows = [row for row in corpus.rows("train") if corpus.examples[row].label == 0]
    scores = ClassScores(teacher, corpus, neutral_rows(corpus, 4, 0), tokens, resolve_compute("cpu", "float32", half="float16"))
    stored = torch.from_numpy(tokens.reader.gather(np.unique(tokens.drawings[rows, 0]))).float()
    with torch.no_grad():
        expected = sorted(scores.of(stored)[:, 0].tolist(), reverse=True)
    assert record["classes"][0]["own"] == pytest.approx(expected, abs=1e-4)
    shown, notes = seen_of(run, corpus)
    assert notes == ()
    assert shown is not None
    assert shown.sheet == (run / SHEET).read_bytes()
    assert shown.rows[0][0] == name
    (run / SHEET).write_bytes(b"another")
    shown, notes = seen_of(run, corpus)
    assert shown is None
    assert "another teacher, corpus or sheet" in notes[0]


def test_teachers_of_no_images_and_of_numbers_are_refused() -> None:
    for metrics, privileged, message in (({}, "none", "--privileged none"), ({"task": "regression"}, "images", "a teacher of numbers")):
        with pytest.raises(InputError, match=message):
            require_own_images(FoundTeacher(folder=Path("teacher"), metrics=metrics, fingerprint={"privileged": privileged}))


def test_neutral_texts_are_of_all_classes(small: tuple[Path, Path, lugpi.Corpus]) -> None:
    corpus = small[2]
    classes = len(corpus.label_names)
    labels = [corpus.examples[row].label for row in neutral_rows(corpus, 2 * classes, 0)]
    assert sorted(cast(list[int], labels)) == sorted([*range(classes)] * 2)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--classes", "no such"), "--classes no such; expected classes of"),
        (("--classes", "{}", "--teacher", "nothing"), "no finished teacher in"),
    ],
)
def test_what_cannot_be_seen_is_one_line(
    small: tuple[Path, Path, lugpi.Corpus], more: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path, run, corpus = small
    assert main(words(path, run, *(word.format(corpus.label_names[0]) for word in more))) == 2
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert message in line


def test_a_store_without_latents_is_refused(small: tuple[Path, Path, lugpi.Corpus], capsys: pytest.CaptureFixture[str]) -> None:
    path, run, corpus = small
    hidden = (run / "tokens" / "latents").rename(run / "latents")
    try:
        assert main(words(path, run, "--classes", corpus.label_names[0])) == 2
    finally:
        hidden.rename(run / "tokens" / "latents")
    assert "which has no latents" in capsys.readouterr().err
