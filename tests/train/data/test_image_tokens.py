"""Image tokens during training: the same values from every place, the fastest place with room, and refused stores."""

import dataclasses
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from transformers import AutoConfig, DistilBertConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from featurize.options import FeaturizeOptions
from featurize.run import featurize_command
from lugpi_core.corpora.corpus import Corpus
from lugpi_core.corpora.load import load_corpus
from lugpi_core.corpora.options import CorpusSettings
from lugpi_core.errors import InputError
from lugpi_core.store.layout import CANDIDATES
from tests.support.planted_store import plant, plant_column
from tests.support.small_column import SPEC, filled
from train.data import image_tokens as module
from train.data.batching import epoch_batches
from train.data.image_tokens import (
    ImageTokens,
    TokensOn,
    TokenSource,
    choose_place,
    open_image_tokens,
    open_text_vectors,
    place_tokens,
    training_bytes,
)
from train.data.privileged import PrivilegedImages
from train.data.training_data import TrainingData
from train.evidence.found_models import columns_of_rows

CPU = torch.device("cpu")
PLACES: tuple[TokensOn, ...] = ("disk", "device", "pinned")


def corpus_of(small_csv: Path, limit: int | None = None) -> Corpus:
    return load_corpus(small_csv, CorpusSettings(split_column="split", limit=limit))


@pytest.fixture
def tokens(small_run: Path, small_csv: Path) -> ImageTokens:
    return open_image_tokens(small_run / "tokens", "clip-demo", corpus_of(small_csv))


@pytest.fixture(scope="module")
def int8_run(small_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of ``small_run`` with int8 tokens."""
    run = tmp_path_factory.mktemp("runs") / "int8"
    flags = {"dataset": str(small_csv), "split_column": "split", "generator": "demo", "run_dir": run, "shard_rows": 32}
    featurize_command(FeaturizeOptions(**flags, encoders=("clip-demo",), token_dtype="int8"))
    return run


def placed(tokens: ImageTokens, choice: TokensOn) -> TokenSource:
    return place_tokens(tokens, choice=choice, device=CPU, training_bytes=0)


def stored(run: Path, row: int) -> np.ndarray:
    with h5py.File(run / "tokens" / "tokens.h5") as file:
        drawing = int(file["examples/drawing"][row])
        values = file["clip-demo/tokens"][drawing]
        if "scale" in file["clip-demo"]:
            values = (values.astype(np.float32) * file["clip-demo/scale"][drawing][:, None]).astype(np.float16)
        return np.asarray(values)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_every_place_returns_the_same_tokens(
    small_run: Path, int8_run: Path, small_csv: Path, place: TokensOn, dtype: str, capfd: pytest.CaptureFixture[str]
) -> None:
    run = small_run if dtype == "float16" else int8_run
    tokens = open_image_tokens(run / "tokens", "clip-demo", corpus_of(small_csv))
    source = placed(tokens, place)
    rows = [59, 0, 31, 32, 0]
    got = source.gather(tokens.drawings[rows, 0])
    assert (source.place, got.dtype, tuple(got.shape)) == (place, torch.float16, (5, 17, 128))
    np.testing.assert_array_equal(got.numpy(), np.stack([stored(run, row) for row in rows]))
    assert f"read from {place}" in capfd.readouterr().err


@pytest.mark.parametrize("place", PLACES)
def test_a_batch_is_not_overwritten_by_the_next(tokens: ImageTokens, place: TokensOn) -> None:
    source = placed(tokens, place)
    first = source.gather(np.array([0, 1]))
    kept = first.clone()
    source.gather(np.array([2, 3]))
    assert torch.equal(first, kept)


@pytest.mark.parametrize("place", PLACES)
def test_an_epoch_has_the_same_batches_wherever_the_tokens_are(tokens: ImageTokens, place: TokensOn) -> None:
    images = PrivilegedImages(source=placed(tokens, place), drawings=tokens.drawings, seed=0)
    data = TrainingData(device=CPU, labels=torch.arange(60), texts=None, images=images)
    batches = list(data.batches(epoch_batches(range(36), data.lengths, 7, seed=3, epoch=0), epoch=0))
    assert sorted(torch.cat([batch.labels for batch in batches]).tolist()) == list(range(36))
    for batch in batches:
        expected = tokens.reader.gather(tokens.drawings[batch.labels.numpy(), 0])
        np.testing.assert_array_equal(batch.inputs["image_tokens"].numpy(), expected)


def test_on_disk_the_next_batches_are_prefetched(tokens: ImageTokens, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[tuple[str, list[int]]] = []
    monkeypatch.setattr(tokens.reader, "will_need", lambda rows: events.append(("requested", list(rows))))
    batches = [[0, 1], [2, 3], [4, 5]]
    for rows in placed(tokens, "disk").ahead([np.array(rows) for rows in batches]):
        events.append(("read", list(rows)))
    assert [rows for what, rows in events if what == "read"] == batches
    assert [rows for what, rows in events if what == "requested"] == batches
    assert events.index(("requested", [2, 3])) < events.index(("read", [0, 1]))


def test_pinned_without_cuda_is_warned_of(tokens: ImageTokens, capfd: pytest.CaptureFixture[str]) -> None:
    placed(tokens, "pinned")
    assert "warning: --tokens-on pinned only keeps the tokens in memory without CUDA" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("size", "device_bytes", "host_bytes", "device_type", "place"),
    [
        (10, 100, 100, "cpu", "disk"),  # the page cache is memory already
        (10, 10, 0, "cuda", "device"),
        (11, 10, 11, "cuda", "pinned"),
        (11, -5, 10, "cuda", "disk"),
    ],
)
def test_auto_takes_the_fastest_place_with_room(size: int, device_bytes: int, host_bytes: int, device_type: str, place: str) -> None:
    assert choose_place(size, device_bytes, host_bytes, device_type) == place


def test_auto_leaves_room_for_training_on_the_device(tokens: ImageTokens, monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[tuple[int, int, int, str]] = []

    def choose(*sizes: int | str) -> str:
        received.append(sizes)  # type: ignore[arg-type]
        return "disk"

    monkeypatch.setattr(module, "choose_place", choose)
    monkeypatch.setattr(module, "_free_bytes", lambda device: 24 << 30)
    monkeypatch.setattr(module, "host_available_bytes", lambda: 100)
    place_tokens(tokens, choice="auto", device=CPU, training_bytes=5 << 30)
    assert received == [(60 * 17 * 128 * 2, (24 - 5 - 2) << 30, 32, "cpu")], "page-locked memory is allocated in powers of two"


def test_on_the_cpu_auto_is_the_disk(tokens: ImageTokens) -> None:
    assert placed(tokens, "auto").place == "disk"


def test_the_memory_of_training_follows_the_formula() -> None:
    config = DistilBertConfig(n_layers=6, dim=768, n_heads=12)
    layer = 14 * 562 * (34 * 768 + 5 * 12 * 562)
    needed = training_bytes(config, weights=66_400_000, batch_size=14, positions=562, state_bytes=8)
    assert needed == 66_400_000 * 12 + 2 * 7 * layer
    assert 1e9 < needed < 9e9, "a DistilBERT teacher at 512 + 50 tokens fits a 24 GB card with room for tokens"


@pytest.mark.parametrize("family", sorted(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES))
def test_the_memory_of_training_is_estimated_for_every_text_model(family: str) -> None:
    """FNet has no heads, Perceiver other names for all, and Gemma 3 has all in the part of its configuration that is about text."""
    config = AutoConfig.for_model(family)
    assert training_bytes(config, weights=10, batch_size=2, positions=8, state_bytes=8) > 120


def test_failed_rows_are_in_the_fingerprint_until_repaired(tokens: ImageTokens) -> None:
    """Until then a model reads them as blank."""
    whole = tokens.fingerprint()
    assert whole == dict(tokens.reader.spec.fingerprint)
    tokens.reader.flagged[3] = "not finite"
    with_one = tokens.fingerprint()
    assert {name for name in with_one if with_one.get(name) != whole.get(name)} == {"failed_rows"}
    tokens.reader.flagged[4] = "not finite"
    assert tokens.fingerprint()["failed_rows"] != with_one["failed_rows"]


def test_several_columns_require_a_choice(small_run: Path, small_csv: Path) -> None:
    with pytest.raises(InputError, match=r"clip-demo, vit-demo.*--image-tokens"):
        open_image_tokens(small_run / "tokens", None, corpus_of(small_csv))


def test_an_unknown_column_is_answered_with_the_known_ones(small_run: Path, small_csv: Path) -> None:
    with pytest.raises(InputError, match=r"no column 'clip-vit-b32'.*clip-demo, vit-demo"):
        open_image_tokens(small_run / "tokens", "clip-vit-b32", corpus_of(small_csv))


def test_without_a_store_featurize_is_named(tmp_path: Path, small_csv: Path) -> None:
    with pytest.raises(InputError, match="run python -m featurize first"):
        open_image_tokens(tmp_path / "tokens", None, corpus_of(small_csv))


def test_the_store_of_another_corpus_is_refused(small_run: Path, small_csv: Path) -> None:
    with pytest.raises(InputError, match="other examples, prompts, labels or splits"):
        open_image_tokens(small_run / "tokens", "clip-demo", corpus_of(small_csv, limit=30))


def test_own_pictures_have_no_text_vectors(small_csv: Path, tmp_path: Path) -> None:
    """featurize refuses prompt-text for them: nobody is sent there."""
    filled(tmp_path, dataclasses.replace(SPEC, fingerprint={"generation": {"generator": "own images"}}))
    with pytest.raises(
        InputError, match=r"pictures of your own that no generator drew; .*; compare with --privileged none, shuffled or blank"
    ):
        open_text_vectors(tmp_path, corpus_of(small_csv))


def test_a_store_of_text_vectors_alone_is_no_store_of_images(small_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "columns_of", lambda store: ["prompt-text"])
    monkeypatch.setattr(module, "image_columns_of", lambda store: [])
    with pytest.raises(InputError, match=r"text vectors \(prompt-text\) alone; expected tokens of images; .*--privileged text or none"):
        open_image_tokens(tmp_path, None, corpus_of(small_csv))


def test_scores_of_candidates_are_no_tokens(tmp_path: Path) -> None:
    planted = plant(tmp_path, counts=(4, 2, 1))
    plant_column(planted, "telling", np.ones((7, 2, 8)))
    plant_column(planted, CANDIDATES, np.ones((7, 1, 4)))
    store = planted.run_dir / "tokens"
    assert open_image_tokens(store, None, planted.corpus).reader.spec.name == "telling"
    with pytest.raises(InputError, match="candidates, which are scores of images and no tokens; expected tokens of images: telling"):
        open_image_tokens(store, CANDIDATES, planted.corpus)
    assert columns_of_rows(planted.run_dir) == ("telling",)
    with pytest.raises(InputError, match="--columns candidates, which are scores of images and no tokens; expected one of telling"):
        columns_of_rows(planted.run_dir, (CANDIDATES,))
