"""--images-from: own pictures are encoded in place of generated ones, whatever they are stored in; what cannot be read is flagged."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from featurize.cli import main
from featurize.fill import own_images
from featurize.generate.text_to_image import TextToImage
from featurize.maintain import repair_store, verify_store
from featurize.options import FeaturizeOptions, FeaturizeSettings
from featurize.run import featurize, featurize_command
from lugpi_core.corpora.corpus import Corpus
from lugpi_core.corpora.load import load_corpus
from lugpi_core.corpora.options import CorpusSettings
from lugpi_core.errors import InputError
from lugpi_core.runtime.pretrained import embedded_model
from lugpi_core.store.reader import ColumnReader, columns_of
from tests.support.own_pictures import file_of, hostile_files, picture, unusual_pictures, write_corpus


def options(table: Path, run: Path, **more: Any) -> FeaturizeOptions:
    given: dict[str, Any] = {"encoders": ("vit-demo",), "split_column": "split", "images_from": "image", "device": "cpu", **more}
    return FeaturizeOptions(dataset=str(table), run_dir=run, **given)


def pictures(count: int) -> dict[str, bytes]:
    return {f"pictures/{n}.png": file_of(picture(30 + n, 20, seed=n)) for n in range(count)}


def tokens(run: Path, column: str = "vit-demo") -> np.ndarray:
    reader = ColumnReader(run / "tokens", column)
    return reader.gather(np.arange(len(reader)))


def drawings(run: Path, corpus: Corpus) -> list[list[int]]:
    from lugpi_core.store.example_table import read_example_table

    found: list[list[int]] = read_example_table(run / "tokens", corpus).drawings.tolist()
    return found


def test_tokens_are_those_of_the_library(tmp_path: Path) -> None:
    import transformers

    files = unusual_pictures()
    table = write_corpus(tmp_path, list(files), extra=files)
    figures = featurize_command(options(table, tmp_path / "run"))
    assert figures["complete"]
    folder = embedded_model("vit-demo")
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    images = [transformers.image_utils.load_image(Image.open(io.BytesIO(data))) for data in files.values()]
    with torch.inference_mode():
        theirs = model(**processor(images, return_tensors="pt")).last_hidden_state.to(torch.float16).numpy()
    assert np.allclose(tokens(tmp_path / "run").astype(float), theirs.astype(float), rtol=1e-3, atol=1e-4), "but for float16's rounding"


def test_no_generator_is_loaded_and_no_latents_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TextToImage, "__init__", lambda *_, **__: pytest.fail("a generator was loaded"))
    table = write_corpus(tmp_path, list(pictures(8)), extra=pictures(8))
    figures = featurize_command(options(table, tmp_path / "run", encoders=("demo",)))
    assert figures["rows"] == {"prompts": 0, "drawn": 0, "decoded": 8, "encoded": 16, "redone": 0}
    assert columns_of(tmp_path / "run" / "tokens") == ["clip-demo", "vit-demo"]
    manifest = json.loads((tmp_path / "run" / "tokens" / "clip-demo" / "manifest.json").read_text())
    assert manifest["fingerprint"]["generation"]["generator"] == "own images"
    assert "generator" not in manifest["made_by"]
    assert featurize_command(options(table, tmp_path / "run", encoders=("demo",)))["already_done"]


def test_several_pictures_of_a_text_are_its_images(tmp_path: Path) -> None:
    cells = [
        '["pictures/0.png", "pictures/1.png", "pictures/2.png"]',
        "pictures/1.png",
        '["pictures/3.png", "pictures/4.png"]',
        "pictures/5.png",
    ]
    table = write_corpus(tmp_path, [*cells, *cells], extra=pictures(6))
    figures = featurize_command(options(table, tmp_path / "run"))
    assert figures["columns"] == {"vit-demo": [6, 17, 128]}, "each distinct picture once"
    corpus = load_corpus(table, CorpusSettings(split_column="split", images_from="image"))
    assert drawings(tmp_path / "run", corpus)[:4] == [[0, 1, 2], [1, 1, 1], [3, 4, 3], [5, 5, 5]]
    plain = load_corpus(table, CorpusSettings(split_column="split"))
    assert drawings(tmp_path / "run", plain) == drawings(tmp_path / "run", corpus), "trainings need no pictures"


def test_equal_pictures_of_other_names_share_a_row(tmp_path: Path) -> None:
    same = file_of(picture())
    table = write_corpus(
        tmp_path, ["a.png", "b.png", "a.png", "c.png"], extra={"a.png": same, "b.png": same, "c.png": file_of(picture(seed=1))}
    )
    figures = featurize_command(options(table, tmp_path / "run"))
    assert (figures["drawings"], figures["drawings_spared"]) == (2, 2)


def test_what_cannot_be_read_is_flagged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = [*pictures(4), *hostile_files(), "nowhere.png", ""]
    table = write_corpus(tmp_path, cells, extra={**pictures(4), **hostile_files()})
    figures = featurize_command(options(table, tmp_path / "run"))
    assert not figures["complete"]
    reader = ColumnReader(tmp_path / "run" / "tokens", "vit-demo")
    assert reader.flagged == {**dict.fromkeys(range(4, 10), "unreadable picture"), 10: "no picture", 11: "no picture"}
    assert not tokens(tmp_path / "run")[4:].any()
    assert "cannot be read" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"8 of 12 pictures that cannot be read, .*--max-failed"):
        featurize_command(options(table, tmp_path / "strict", max_failed=7))


def test_pipes_folders_and_other_devices_are_not_read(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe.png")
    table = write_corpus(tmp_path, [*pictures(4), "pipe.png", ".", "/dev/zero", "nul\0.png"[:3]], extra=pictures(4))
    featurize_command(options(table, tmp_path / "run"))
    assert set(ColumnReader(tmp_path / "run" / "tokens", "vit-demo").flagged) == {4, 5, 6, 7}


@pytest.mark.parametrize("cell", ["https://example.org/a.png", "s3://bucket/a.png"])
def test_addresses_are_told(cell: str, tmp_path: Path) -> None:
    table = write_corpus(tmp_path, [*pictures(3), cell], extra=pictures(3))
    with pytest.raises(InputError, match="download them"):
        featurize_command(options(table, tmp_path / "run"))


def test_a_column_of_numbers_is_no_column_of_pictures(tmp_path: Path) -> None:
    table = tmp_path / "own.jsonl"
    lines = [
        {"text": f"text {n}", "label": "ab"[n % 2], "image": n, "split": ["train", "train", "validation", "test"][n % 4]} for n in range(8)
    ]
    table.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(InputError, match="name the column with the pictures"):
        featurize_command(options(table, tmp_path / "run"))


def test_changed_pictures_are_another_store(tmp_path: Path) -> None:
    table = write_corpus(tmp_path, list(pictures(4)), extra=pictures(4))
    featurize_command(options(table, tmp_path / "run"))
    (tmp_path / "pictures" / "2.png").write_bytes(file_of(picture(seed=77)))
    with pytest.raises(InputError, match=r"generation\.pictures: found"):
        featurize_command(options(table, tmp_path / "run"))


def test_generated_and_own_images_do_not_mix(tmp_path: Path) -> None:
    table = write_corpus(tmp_path, list(pictures(4)), extra=pictures(4))
    featurize_command(options(table, tmp_path / "run"))
    with pytest.raises(InputError, match=r"generation\.generator: found own images|generation"):
        featurize_command(options(table, tmp_path / "run", images_from=None, generator="demo"))


@pytest.mark.parametrize(
    "setting", [{"generator": "demo"}, {"steps": 3}, {"images_per_text": 2}, {"encoders": ("vit-demo", "prompt-text")}, {"decoder": "tiny"}]
)
def test_settings_of_generating_are_refused(setting: dict[str, Any], tmp_path: Path) -> None:
    table = write_corpus(tmp_path, list(pictures(4)), extra=pictures(4))
    with pytest.raises(InputError, match="no generator is loaded"):
        featurize_command(options(table, tmp_path / "run", **setting))


@pytest.mark.parametrize("name", ["prompt-text", "latents", "tokens.h5"])
def test_an_encoder_named_as_another_part_of_a_store_is_refused(name: str, tmp_path: Path) -> None:
    table = write_corpus(tmp_path, list(pictures(4)), extra=pictures(4))
    shutil.copytree(embedded_model("vit-demo"), tmp_path / name)
    with pytest.raises(InputError, match=f"column named as another part of a store, {name}; .*rename the encoder's folder"):
        featurize_command(options(table, tmp_path / "run", encoders=(str(tmp_path / name),)))


def test_tokens_of_which_int8_loses_many_values_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = write_corpus(tmp_path, list(pictures(4)), extra=pictures(4))
    figures = featurize_command(options(table, tmp_path / "plain", token_dtype="int8"))
    assert 0 < figures["int8_lost"]["vit-demo"] < 0.05
    assert "int8 stores" not in capsys.readouterr().err
    encode = own_images._encode

    def with_one_large_dimension(*given: Any) -> torch.Tensor:
        tokens_BTD = encode(*given).clone()
        tokens_BTD[..., 3] = 300
        return tokens_BTD

    monkeypatch.setattr(own_images, "_encode", with_one_large_dimension)
    figures = featurize_command(options(table, tmp_path / "large", token_dtype="int8"))
    stored = tokens(tmp_path / "large")
    assert figures["int8_lost"]["vit-demo"] == round(float((stored == 0).mean()), 4) > 0.3
    assert f"int8 stores {figures['int8_lost']['vit-demo']:.0%} of the values of vit-demo as 0" in capsys.readouterr().err
    assert "int8_lost" not in featurize_command(options(table, tmp_path / "float16"))


def test_a_stopped_run_resumes_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = write_corpus(tmp_path, list(pictures(12)), extra=pictures(12))
    settings: dict[str, Any] = {"batch_size": 2, "shard_rows": 8}
    featurize_command(options(table, tmp_path / "whole", **settings))
    encode, calls = own_images._encode, 0

    def stop_at_third(*given: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return encode(*given)

    monkeypatch.setattr(own_images, "_encode", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        featurize_command(options(table, tmp_path / "stopped", **settings))
    figures = featurize_command(options(table, tmp_path / "stopped", **settings))
    assert figures["rows"]["encoded"] == 8, "four of 12 were written"
    assert np.array_equal(tokens(tmp_path / "stopped"), tokens(tmp_path / "whole"))


def test_damaged_rows_are_encoded_again_and_no_others(tmp_path: Path) -> None:
    table = write_corpus(tmp_path, list(pictures(8)), extra=pictures(8))
    featurize_command(options(table, tmp_path / "run", batch_size=2))
    whole = tokens(tmp_path / "run")
    (shard,) = (tmp_path / "run" / "tokens" / "vit-demo").glob("shard-*.h5")
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    assert not verify_store(tmp_path / "run" / "tokens", deep=True).complete
    flags = ["--dataset", str(table), "--run-dir", str(tmp_path / "run")]
    assert main(["verify", *flags, "--repair"]) == 0
    assert np.array_equal(tokens(tmp_path / "run"), whole)
    assert main(["info", *flags]) == 0


@pytest.mark.parametrize("form", ["parquet", "paths in parquet", "save_to_disk"])
def test_pictures_of_the_library_datasets(form: str, tmp_path: Path) -> None:
    import datasets

    files = pictures(8)
    table = write_corpus(tmp_path, list(files), extra=files)
    featurize_command(options(table, tmp_path / "run"))
    columns: dict[str, Any] = {
        "text": [f"text number {n}" for n in range(8)],
        "label": ["ab"[n % 2] for n in range(8)],
        "split": [["train", "train", "validation", "test"][n % 4] for n in range(8)],
        "image": [[{"bytes": data, "path": None}] for data in files.values()],
    }
    given = datasets.Dataset.from_dict(columns, features=None).cast_column("image", datasets.List(datasets.Image()))
    if form == "save_to_disk":
        other = tmp_path / "saved"
        given.save_to_disk(other)
    else:
        other = tmp_path / "own.parquet"
        if form == "paths in parquet":
            given = given.remove_columns("image").add_column("image", list(files))
        given.to_parquet(other)
    featurize_command(options(other, tmp_path / "other"))
    assert np.array_equal(tokens(tmp_path / "other"), tokens(tmp_path / "run"))


def test_pictures_in_memory(tmp_path: Path) -> None:
    files = pictures(8)
    write_corpus(tmp_path, list(files), extra=files)
    texts, labels = [f"text number {n}" for n in range(8)], ["ab"[n % 2] for n in range(8)]
    splits = [["train", "train", "validation", "test"][n % 4] for n in range(8)]
    settings = FeaturizeSettings(device="cpu")
    stores = []
    for name, images in {
        "paths": [tmp_path / name for name in files],
        "bytes": list(files.values()),
        "pil": [Image.open(io.BytesIO(data)) for data in files.values()],
        "lists": [[data] for data in files.values()],
    }.items():
        corpus = Corpus.from_texts(texts, labels, splits=splits, images=images)
        assert corpus.fingerprint() == Corpus.from_texts(texts, labels, splits=splits).fingerprint()
        stores.append(featurize(corpus, tmp_path / name, encoders=["vit-demo"], settings=settings, progress=False))
        assert repair_store(stores[-1].path, corpus).complete
    for store in stores[1:]:
        assert np.array_equal(store["vit-demo"][:], stores[0]["vit-demo"][:])


def test_own_pictures_of_a_paper_corpus_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="which has no pictures"):
        load_corpus("demo", CorpusSettings(images_from="image"))
    table = write_corpus(tmp_path, list(pictures(4)), extra=pictures(4))
    with pytest.raises(InputError, match="set images_from"):
        load_corpus(table, CorpusSettings(images_from="img"))
