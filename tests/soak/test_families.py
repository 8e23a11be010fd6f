"""The fault campaigns over the families of generators: one of them in the suite, all of them in ``make soak``.

A run that breaks off or is killed ends with the same bytes; rows that fail are redone or flagged; a batch that does not fit is halved; the
noise of an image depends on nothing but its prompt and number; and the denoiser reads exactly the rows that it must.
"""

import csv
import multiprocessing
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from featurize.encode.image_encoder import ImageEncoder
from featurize.fill import load_models
from featurize.generate.families.family import Parts
from featurize.generate.text_to_image import TextToImage
from featurize.options import FeaturizeOptions
from featurize.run import featurize_command
from lugpi_core.store.reader import ColumnReader
from tests.support.small_corpus import shard_bytes
from tests.support.tiny_pipelines import PIPELINES, tiny_pipeline

# The pipelines of diffusers, from which the folders are saved, and schedulers where they meet NumPy 2.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.* is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
# Prompts of their own lengths, in the suite's family: its rows are padded, and so are the windows of their embeddings.
SUITE = "z-image"
# Rows of the denoiser for an image in two steps, with the guidance that the library's pipeline takes where none is given.
_UNGUIDED = ("sana-sprint", "lcm", "flux-schnell", "flux-dev", "flux2-klein", "flux2")
# The sampler of Stable Diffusion 1, PNDM, evaluates one time twice.
ROWS: Mapping[str, int] = {**dict.fromkeys(PIPELINES, 4), **dict.fromkeys(_UNGUIDED, 2), "stable-diffusion": 6}
STEPS, IMAGES, SHARD, BATCH = 2, 13, 8, 4
COLUMNS = ("latents", "vit-demo")
TEXTS = [f"{'snow ' * (n % 5)}on number {n}" for n in range(IMAGES)]
# Columns are float16; a batch of another size rounds otherwise before.
_SAME = 0.02


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give tests the families: all in ``make soak``."""
    if "family" in metafunc.fixturenames:
        families = list(PIPELINES) if metafunc.config.getoption("--soak") else [SUITE]
        metafunc.parametrize("family", families, scope="module")


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipeline(family, tmp_path_factory.mktemp("family") / "generator")  # a name that says nothing


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _table(tmp_path_factory.mktemp("data") / "own.csv", TEXTS)


@pytest.fixture(scope="module")
def undisturbed(folder: Path, table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed")
    featurize_command(_options(folder, table, run))
    return run


def _table(path: Path, texts: Sequence[str]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *((text, "ab"[n % 2]) for n, text in enumerate(texts))])
    return path


def _options(folder: Path, table: Path, run: Path, **flags: Any) -> FeaturizeOptions:
    small: dict[str, Any] = {"encoders": ("vit-demo",), "steps": STEPS, "size_px": 64, "batch_size": BATCH, "shard_rows": SHARD}
    return FeaturizeOptions(dataset=str(table), run_dir=run, generator=str(folder), **{**small, **flags})


def _values(run: Path, column: str, rows: Sequence[int]) -> NDArray[np.float64]:
    return ColumnReader(run / "tokens", column).gather(rows).astype(np.float64)


def _assert_same(run: Path, other: Path, rows: Sequence[int], others: Sequence[int]) -> None:
    for column in COLUMNS:
        values, expected = _values(run, column, rows), _values(other, column, others)
        assert np.isfinite(values).all()
        assert np.abs(values - expected).max() <= _SAME * max(1.0, np.abs(expected).max()), column


@contextmanager
def _denoiser_rows() -> Iterator[Counter[str]]:
    """Count rows of the denoiser and of the text encoder, but for the trial of the models before the first image."""
    counts: Counter[str] = Counter()
    load, encode = load_models.TextToImage.__init__, TextToImage.encode_prompts

    def loaded(self: TextToImage, *given: Any, **named: Any) -> None:
        load(self, *given, **named)
        forward = self.parts.denoiser.forward

        def counted(*inputs: Any, **how: Any) -> Any:
            counts["denoiser"] += len(inputs[0] if inputs else next(iter(how.values())))
            return forward(*inputs, **how)

        self.parts.denoiser.forward = counted

    def encoded(self: TextToImage, prompts: Sequence[str]) -> Any:
        counts["prompts"] += len(prompts)
        return encode(self, prompts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load_models, "_try_models", lambda *_: None)
        patch.setattr(TextToImage, "__init__", loaded)
        patch.setattr(TextToImage, "encode_prompts", encoded)
        yield counts


def test_the_denoiser_reads_each_row_once(family: str, folder: Path, table: Path, undisturbed: Path, tmp_path: Path) -> None:
    with _denoiser_rows() as counts:
        figures = featurize_command(_options(folder, table, tmp_path))
    assert figures["complete"]
    assert counts == {"denoiser": IMAGES * ROWS[family], "prompts": IMAGES}
    assert shard_bytes(tmp_path) == shard_bytes(undisturbed)


def test_a_run_that_breaks_off_ends_with_the_same_bytes(folder: Path, table: Path, undisturbed: Path, tmp_path: Path) -> None:
    whole, calls = TextToImage.decode, Counter[str]()

    def breaking(self: TextToImage, latents: torch.Tensor) -> torch.Tensor:
        calls["decode"] += 1
        if calls["decode"] == 2:
            raise KeyboardInterrupt
        return whole(self, latents)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TextToImage, "decode", breaking)
        with pytest.raises(KeyboardInterrupt):
            featurize_command(_options(folder, table, tmp_path))
    figures = featurize_command(_options(folder, table, tmp_path))
    assert figures["rows"]["drawn"] == IMAGES - BATCH
    assert shard_bytes(tmp_path) == shard_bytes(undisturbed)


def test_a_run_that_is_killed_ends_with_the_same_bytes(
    folder: Path, table: Path, undisturbed: Path, tmp_path: Path, campaign: Callable[[int, int], int]
) -> None:
    encode, delays, killed = ImageEncoder.encode, random.Random(0), 0

    def slowly(self: ImageEncoder, images: torch.Tensor) -> torch.Tensor:
        time.sleep(0.3)
        return encode(self, images)

    for _ in range(campaign(2, 5)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ImageEncoder, "encode", slowly)
            child = multiprocessing.get_context("fork").Process(target=featurize_command, args=(_options(folder, table, tmp_path),))
            child.start()
        child.join(delays.uniform(0.3, 1.5))
        killed += child.is_alive()
        child.kill()
        child.join()
    assert killed
    assert featurize_command(_options(folder, table, tmp_path))["complete"]
    assert shard_bytes(tmp_path) == shard_bytes(undisturbed)


def test_rows_that_are_not_finite_are_redone_or_flagged(folder: Path, table: Path, undisturbed: Path, tmp_path: Path) -> None:
    once, lasting = 1, 6
    denoise, seeds_now, struck = TextToImage.denoise, list[int](), Counter[int]()

    def remembered(self: TextToImage, embeddings: Any, seeds: Sequence[int], **how: Any) -> torch.Tensor:
        seeds_now[:] = map(int, seeds)
        struck.update(seeds_now)
        family = type(self.family)
        predict = family.predict

        def failing(self_: Any, parts: Parts, *given: Any) -> torch.Tensor:
            predicted = predict(self_, parts, *given).clone()
            for n, seed in enumerate(seeds_now):
                if seed == numbers[lasting] or (seed == numbers[once] and struck[seed] == 1):
                    predicted[n :: len(seeds_now)] = torch.nan
            return predicted

        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(family, "predict", failing)
            return denoise(self, embeddings, seeds, **how)

    numbers = _seeds(table)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TextToImage, "denoise", remembered)
        figures = featurize_command(_options(folder, table, tmp_path))
    assert figures["failed_rows"] == dict.fromkeys(COLUMNS, 1)
    assert figures["rows"]["redone"] == 2
    for column in COLUMNS:
        assert ColumnReader(tmp_path / "tokens", column).flagged == {lasting: "not finite"}
        assert not _values(tmp_path, column, [lasting]).any()
    sound = [row for row in range(IMAGES) if row != lasting]
    _assert_same(tmp_path, undisturbed, sound, sound)


def _seeds(table: Path) -> list[int]:
    from featurize.plan.images import plan_images
    from lugpi_core.corpora.load import load_corpus

    return [int(seed) for seed in plan_images(load_corpus(table), seed=0).seeds]


def test_a_batch_that_does_not_fit_is_halved(family: str, folder: Path, table: Path, undisturbed: Path, tmp_path: Path) -> None:
    most = {"encode_prompts": 3, "denoise": 2, "decode": 1}
    with _denoiser_rows() as counts, pytest.MonkeyPatch.context() as patch:
        for name, rows in most.items():
            patch.setattr(TextToImage, name, _limited(getattr(TextToImage, name), rows))
        figures = featurize_command(_options(folder, table, tmp_path))
    assert {halving["stage"] for halving in figures["batches"]["halvings"]} == {"prompt", "denoise", "decode"}
    assert counts["denoiser"] == IMAGES * ROWS[family]
    _assert_same(tmp_path, undisturbed, range(IMAGES), range(IMAGES))


def _limited(whole: Callable[..., Any], most: int) -> Callable[..., Any]:
    def call(self: Any, *given: Any, **named: Any) -> Any:
        if len(given[-1]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return whole(self, *given, **named)

    return call


def test_several_images_of_a_text_have_noise_of_their_own(
    family: str, folder: Path, table: Path, undisturbed: Path, tmp_path: Path
) -> None:
    with _denoiser_rows() as counts:
        figures = featurize_command(_options(folder, table, tmp_path, images_per_text=3, shard_rows=24))
    assert counts == {"denoiser": 3 * IMAGES * ROWS[family], "prompts": IMAGES}
    assert figures["rows"]["drawn"] == 3 * IMAGES
    _assert_same(tmp_path, undisturbed, range(0, 3 * IMAGES, 3), range(IMAGES))
    latents = _values(tmp_path, "latents", range(3 * IMAGES)).reshape(3 * IMAGES, -1)
    assert len(np.unique(latents, axis=0)) == 3 * IMAGES


def test_an_image_depends_on_no_other(folder: Path, undisturbed: Path, tmp_path: Path) -> None:
    backwards = _table(tmp_path / "own.csv", TEXTS[::-1])
    featurize_command(_options(folder, backwards, tmp_path / "run", batch_size=3, shard_rows=5))
    _assert_same(tmp_path / "run", undisturbed, range(IMAGES), range(IMAGES)[::-1])
