"""A corpus through featurize: what is generated, what is kept, what an encoder added later finds. Faults: test_fill_faults.py."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from featurize.encode.encoders import find_encoder
from featurize.encode.image_encoder import ImageEncoder
from featurize.generate.text_to_image import TextToImage
from featurize.options import FeaturizeSettings
from featurize.run import Progress, featurize, featurize_command, plan_command
from lugpi_core.corpora.corpus import Corpus
from lugpi_core.errors import InputError
from lugpi_core.store.quantize import dequantize, quantize
from lugpi_core.store.reader import ColumnReader
from tests.support.small_corpus import DRAWINGS, ROWS, load_no_model, options, shard_bytes, small_table, state_of

ALWAYS = {f"{name}_s" for name in ("load", "prompt", "denoise", "decode", "encode", "copy", "write", "commit", "fill_wall", "publish")}
NOW_AND_THEN = {f"{name}_s" for name in ("compile", "redo", "stall", "finish", "wait")}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_table(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def undisturbed(table: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    run_dir = tmp_path_factory.mktemp("undisturbed")
    return run_dir, featurize_command(options(table, run_dir))


def test_a_corpus_becomes_a_store_that_h5py_alone_reads(undisturbed: tuple[Path, dict[str, Any]], table: Path) -> None:
    run_dir, figures = undisturbed
    assert figures["columns"] == {"latents": [12, 8, 8, 8], "clip-demo": [12, 17, 128], "vit-demo": [12, 17, 128]}
    assert figures["rows"] == {"prompts": 12, "drawn": 12, "decoded": 12, "encoded": 24, "redone": 0}
    assert (figures["drawings"], figures["drawings_spared"], sum(figures["examples"].values())) == (DRAWINGS, 2, ROWS)
    assert (figures["complete"], figures["already_done"]) == (True, False)
    assert figures["failed_rows"] == {"latents": 0, "clip-demo": 0, "vit-demo": 0}
    assert figures["prompts_cut_share"] == round(1 / 14, 4)
    with h5py.File(run_dir / "tokens" / "tokens.h5") as file:
        assert {name: list(file[name]) for name in ("latents", "clip-demo")} == {
            "latents": ["flags", "latents"],
            "clip-demo": ["flags", "tokens"],
        }
        assert file["vit-demo/tokens"].shape == (12, 17, 128)
        assert np.isfinite(file["vit-demo/tokens"][:]).all()
        assert not file["clip-demo/flags"][:].any()
        assert file["examples/drawing"][:].tolist() == [0, *range(11), 0, 11]
        assert "drawings" not in file["examples"]
        assert file["examples/prompt_cut"][:].tolist() == [0] * 13 + [1]
        assert len(np.unique(file["clip-demo/tokens"][:].reshape(12, -1), axis=0)) == 12


def test_the_figures_are_json_and_say_how_they_were_made(undisturbed: tuple[Path, dict[str, Any]]) -> None:
    figures = json.loads(json.dumps(undisturbed[1], allow_nan=False))
    assert figures["times"].keys() >= ALWAYS
    assert figures["times"].keys() <= ALWAYS | NOW_AND_THEN
    assert figures["config"]["batch_size"] == 4
    assert figures["batches"] == {"rows": {"prompt": 32, "denoise": 4, "decode": 4, "encode": 4}, "halvings": []}
    assert figures["compute"] == {
        "device": "cpu",
        "device_name": "CPU",
        "dtype": "float32",
        "threads": 1,
        "attention": "AttnProcessor2_0",
        "compiled": "off",
        "cuda_graphs": False,
        "memory_format": "contiguous_format",
    }
    assert figures["bytes"]["clip-demo"] == sum(len(data) for name, data in shard_bytes(undisturbed[0]).items() if "clip-demo" in name)


def test_the_demo_notice_is_said_and_recorded_in_every_column(
    table: Path, tmp_path: Path, undisturbed: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    featurize_command(options(table, undisturbed[0]))
    assert "note: the embedded generator draws emoji" in capsys.readouterr().err
    assert "draws emoji" in undisturbed[1]["notice"]
    for column in ("latents", "clip-demo", "vit-demo"):
        manifest = json.loads((undisturbed[0] / "tokens" / column / "manifest.json").read_text())
        assert manifest["notice"] == undisturbed[1]["notice"]
        assert "drawn by demo: Apache-2.0" in manifest["license"]


def test_a_column_names_whoever_made_its_images(table: Path, tmp_path: Path) -> None:
    _, job = plan_command(options(table, tmp_path, decoder="tiny"))
    licenses = {column.name: column.license for column in job.columns}
    assert licenses["latents"] == "drawn by demo: Apache-2.0"
    assert (
        licenses["clip-demo-tiny"] == "images drawn by demo: Apache-2.0, decoded by taesd-demo: Apache-2.0; tokens by clip-demo: Apache-2.0"
    )


def test_the_store_holds_what_the_models_say_of_each_prompt(undisturbed: tuple[Path, dict[str, Any]], table: Path) -> None:
    _, job = plan_command(options(table, undisturbed[0]))
    drawer = TextToImage(job.generator, job.compute, attention="auto")
    with drawer.text_encoder_on_device():
        embeddings = drawer.encode_prompts([job.plan.prompts[5]])
    latents = drawer.denoise(embeddings, [int(job.plan.seeds[5])]).half()
    tokens = ImageEncoder(job.encoders["clip-demo"], job.compute).encode(drawer.decode(latents))
    assert np.abs(ColumnReader(undisturbed[0] / "tokens", "latents").gather([5]) - latents.numpy()).max() <= 1e-2
    assert np.abs(ColumnReader(undisturbed[0] / "tokens", "clip-demo").gather([5]) - tokens.numpy()).max() <= 1e-2


def test_the_same_command_again_loads_no_model_and_touches_no_file(
    table: Path, undisturbed: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = state_of(undisturbed[0])
    load_no_model(monkeypatch)
    figures = featurize_command(options(table, undisturbed[0]))
    assert figures["already_done"]
    assert figures["rows"] == dict.fromkeys(("prompts", "drawn", "decoded", "encoded", "redone"), 0)
    assert figures["columns"] == undisturbed[1]["columns"]
    assert state_of(undisturbed[0]) == before


def test_batch_and_shard_borders_do_not_matter_to_a_picture(table: Path, tmp_path: Path, undisturbed: tuple[Path, dict[str, Any]]) -> None:
    featurize_command(options(table, tmp_path, batch_size=5, shard_rows=12))
    for column, bound in (("latents", 0.02), ("clip-demo", 0.02), ("vit-demo", 0.02)):
        stores = [ColumnReader(run / "tokens", column).gather(range(DRAWINGS)).astype(float) for run in (tmp_path, undisturbed[0])]
        assert np.abs(stores[0] - stores[1]).max() <= bound


def test_an_encoder_added_later_gets_the_bytes_of_one_pass(
    table: Path, tmp_path: Path, undisturbed: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    featurize_command(options(table, tmp_path, encoders=("clip-demo",)))
    before = state_of(tmp_path / "tokens" / "clip-demo")
    monkeypatch.delattr(TextToImage, "denoise")
    figures = featurize_command(options(table, tmp_path, encoders=("vit-demo",)))
    assert figures["rows"] == {"prompts": 0, "drawn": 0, "decoded": 12, "encoded": 12, "redone": 0}
    assert not figures["already_done"]
    assert shard_bytes(tmp_path) == shard_bytes(undisturbed[0])
    assert state_of(tmp_path / "tokens" / "clip-demo") == before
    with h5py.File(tmp_path / "tokens" / "tokens.h5") as file:
        assert file.keys() == {"clip-demo", "vit-demo", "latents", "examples"}


def test_without_latents_an_encoder_added_later_generates_again(
    table: Path, tmp_path: Path, undisturbed: tuple[Path, dict[str, Any]]
) -> None:
    featurize_command(options(table, tmp_path, encoders=("clip-demo",), latents=False))
    assert not (tmp_path / "tokens" / "latents").exists()
    figures = featurize_command(options(table, tmp_path, encoders=("vit-demo",), latents=False))
    assert figures["rows"] == {"prompts": 12, "drawn": 12, "decoded": 12, "encoded": 12, "redone": 0}
    assert shard_bytes(tmp_path) == {name: data for name, data in shard_bytes(undisturbed[0]).items() if "latents" not in name}


def test_tokens_in_eight_bits_are_those_of_float16_quantized(table: Path, tmp_path: Path, undisturbed: tuple[Path, dict[str, Any]]) -> None:
    figures = featurize_command(options(table, tmp_path, token_dtype="int8"))
    assert figures["bytes"]["vit-demo"] < 0.65 * undisturbed[1]["bytes"]["vit-demo"]
    for column in ("clip-demo", "vit-demo"):
        exact = ColumnReader(undisturbed[0] / "tokens", column).gather(range(DRAWINGS))
        values, scales = quantize(torch.from_numpy(exact))
        reader = ColumnReader(tmp_path / "tokens", column)
        stored = reader.gather_stored(range(DRAWINGS))
        assert np.array_equal(stored["tokens"], values)
        assert np.array_equal(stored["scale"], scales)
        assert np.array_equal(reader.gather(range(DRAWINGS)), dequantize(values, scales))
    assert featurize_command(options(table, tmp_path, token_dtype="int8"))["already_done"]


def test_new_splits_of_a_corpus_only_renew_the_table(table: Path, tmp_path: Path) -> None:
    featurize_command(options(table, tmp_path))
    shards = shard_bytes(tmp_path)
    before = (tmp_path / "tokens" / "examples.h5").read_bytes()
    figures = featurize_command(options(table, tmp_path, split_seed=1))
    assert figures["rows"]["drawn"] == 0
    assert shard_bytes(tmp_path) == shards
    assert (tmp_path / "tokens" / "examples.h5").read_bytes() != before


def test_two_columns_of_one_name_are_refused(table: Path, tmp_path: Path) -> None:
    (tmp_path / "latents").symlink_to(find_encoder("vit-demo").folder, target_is_directory=True)
    (tmp_path / "a" / "latents").mkdir(parents=True)
    for path in find_encoder("vit-demo").folder.iterdir():
        (tmp_path / "a" / "latents" / path.name).write_bytes(path.read_bytes())
    with pytest.raises(
        InputError, match="column named as another part of a store, latents; expected one name a column; rename the encoder's folder"
    ):
        featurize_command(options(table, tmp_path / "run", encoders=(str(tmp_path / "a" / "latents"),)))
    assert not list((tmp_path / "run" / "tokens").iterdir())


@pytest.mark.parametrize("encoders", [["vit-demo", "prompt-text"], ["prompt-text"]])
def test_progress_counts_an_image_and_its_text_vectors_once(encoders: list[str], tmp_path: Path) -> None:
    seen: list[Progress] = []
    corpus = Corpus.from_texts([f"text {number}" for number in range(7)])
    settings = FeaturizeSettings(images_per_text=2, batch_size=4, shard_rows=8)
    featurize(corpus, tmp_path, generator="demo", encoders=encoders, settings=settings, progress=seen.append)
    assert {progress.total for progress in seen} == {14}
    assert [progress.done for progress in seen] == sorted({progress.done for progress in seen})
    assert seen[-1].done == 14


def test_progress_counts_what_an_earlier_run_computed(tmp_path: Path) -> None:
    corpus = Corpus.from_texts([f"text {n}" for n in range(14)], ["a", "b"] * 7)
    settings = FeaturizeSettings(steps=1, guidance=1.0, batch_size=4, shard_rows=8)
    seen: list[Progress] = []

    def stop(progress: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        featurize(corpus, tmp_path, generator="demo", encoders=["vit-demo"], settings=settings, progress=stop)
    featurize(corpus, tmp_path, generator="demo", encoders=["vit-demo"], settings=settings, progress=seen.append)
    assert [(progress.kept, progress.done, progress.total) for progress in seen] == [(4, 8, 14), (4, 12, 14), (4, 14, 14)]
