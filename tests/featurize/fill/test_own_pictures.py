"""--images-from: own pictures are encoded in place of generated ones, whatever they are stored in; what cannot be read is flagged."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from featurize.cli import main
from featurize.fill import own_pictures
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
from tests.support.broken_calls import interrupt_third_call
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
    with pytest.raises(InputError, match=r"8 of 12 pictures that are missing or cannot be read, .*--max-failed"):
        featurize_command(options(table, tmp_path / "strict", max_failed=7))


def test_pipes_folders_and_other_devices_are_not_read(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe.png")
    table = write_corpus(tmp_path, [*pictures(4), "pipe.png", ".", "/dev/zero", "~nobody-here/a.png"], extra=pictures(4))
    featurize_command(options(table, tmp_path / "run"))
    assert set(ColumnReader(tmp_path / "run" / "tokens", "vit-demo").flagged) == {4, 5, 6, 7}


@pytest.mark.parametrize("cell", ["https://example.org/a.png", "s3://bucket/a.png", "file://elsewhere/a.png"])
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


@pytest.mark.parametrize("form", ["file://{}", "file://localhost{}", "FILE:{}"])
def test_addresses_of_files_on_this_machine_are_read(form: str, tmp_path: Path) -> None:
    (tmp_path / "a b").mkdir()
    cells = [form.format(str(tmp_path / name).replace(" ", "%20")) for name in ("a b/0.png", "1.png", "2.png", "3.png")]
    extra = {name: file_of(picture(seed=n)) for n, name in enumerate(("a b/0.png", "1.png", "2.png", "3.png"))}
    assert featurize_command(options(write_corpus(tmp_path, cells, extra=extra), tmp_path / "run"))["complete"]


@pytest.mark.parametrize(("column", "role"), [("text", "text"), ("label", "label"), ("split", "split")])
def test_a_column_that_is_read_as_something_else_is_one_line(column: str, role: str, tmp_path: Path) -> None:
    table = write_corpus(tmp_path, list(pictures(4)), extra=pictures(4))
    with pytest.raises(InputError, match=f"--images-from {column}, the column that is read as the {role}; .*name the column with the"):
        featurize_command(options(table, tmp_path / "run", images_from=column))


OTHERS: dict[str, tuple[dict[int, str], str]] = {
    "changed": ({2: "changed"}, "1 changed .the first pictures/2.png of row/2.; .*put the earlier files back"),
    "missing": ({1: "missing", 3: "missing"}, "2 missing .the first pictures/1.png of row/1.; .*put the earlier files back"),
    "both": ({0: "changed", 1: "missing"}, "1 changed .*, 1 missing"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_pictures_that_changed_are_told_by_name(what: str, tmp_path: Path) -> None:
    changes, message = OTHERS[what]
    table = write_corpus(tmp_path, list(pictures(4)), extra=pictures(4))
    featurize_command(options(table, tmp_path / "run"))
    before = tokens(tmp_path / "run")
    for number, change in changes.items():
        path = tmp_path / "pictures" / f"{number}.png"
        path.unlink() if change == "missing" else path.write_bytes(file_of(picture(seed=77)))
    for more in ({}, {"dry_run": True}):
        with pytest.raises(InputError, match=f"{message}.*--run-dir") as error:
            featurize_command(options(table, tmp_path / "run", **more))
        assert "settings" not in str(error.value)
    assert np.array_equal(tokens(tmp_path / "run"), before)


def test_pictures_that_were_added_are_told(tmp_path: Path) -> None:
    table = write_corpus(tmp_path, list(pictures(4)), extra=pictures(4))
    featurize_command(options(table, tmp_path / "run"))
    more = write_corpus(tmp_path, list(pictures(6)), extra=pictures(6))
    with pytest.raises(InputError, match=r"2 added \(the first pictures/4.png of row/4\); .*; encode all as they are now in another --run"):
        featurize_command(options(more, tmp_path / "run"))


def test_texts_in_another_order_keep_their_pictures(tmp_path: Path) -> None:
    files = pictures(8)
    table = write_corpus(tmp_path, [*files, "nowhere.png", "", "", ""], extra=files)
    featurize_command(options(table, tmp_path / "run"))
    head, *lines = table.read_text().splitlines()
    table.write_text("\n".join([head, *lines[4:], *lines[:4]]) + "\n")
    assert featurize_command(options(table, tmp_path / "run"))["already_done"]
    corpus = load_corpus(table, CorpusSettings(split_column="split"))
    assert drawings(tmp_path / "run", corpus) == [[row] for row in (4, 5, 6, 7, 8, 9, 10, 11, 0, 1, 2, 3)]


BLANKS = {"of the same name": "late.png", "at a name that is corrected": "lat.png", "of a cell that was empty": ""}


@pytest.mark.parametrize(
    ("blank", "late"), [*((blank, "new") for blank in BLANKS), ("of a cell that was empty", "a copy"), ("of the same name", "a copy")]
)
def test_a_picture_that_was_missing_is_filled_in_by_the_same_command(
    blank: str, late: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files, settings = pictures(8), {"batch_size": 2, "shard_rows": 4}
    cells = list(files)
    cells[5] = BLANKS[blank]
    table = write_corpus(tmp_path, cells, extra=files)
    assert not featurize_command(options(table, tmp_path / "run", **settings))["complete"]
    assert ColumnReader(tmp_path / "run" / "tokens", "vit-demo").flagged == {5: "no picture"}
    cells[5] = "late.png"
    write_corpus(tmp_path, cells, extra={"late.png": files["pictures/0.png"] if late != "new" else file_of(picture(seed=50))})
    dry = featurize_command(options(table, tmp_path / "run", dry_run=True, **settings))
    assert (dry["images"], dry["hours"]) == (1, None)
    figures = featurize_command(options(table, tmp_path / "run", **settings))
    assert "1 picture that the store lacked: filled in" in capsys.readouterr().err
    assert (figures["complete"], figures["already_done"], figures["rows"]["encoded"]) == (True, False, 2), "one block"
    assert featurize_command(options(table, tmp_path / "run", **settings))["already_done"]
    assert drawings(tmp_path / "run", load_corpus(table, CorpusSettings(split_column="split")))[5] == [5]
    found = tokens(tmp_path / "run")
    assert np.array_equal(found[5], found[0]) == (late != "new")


def test_a_file_that_was_cut_short_is_filled_in_once_it_is_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = pictures(8)
    whole = file_of(picture(400, 400), "JPEG")
    table = write_corpus(tmp_path, [*files, "cut.jpg", "cut.jpg", "", ""], extra={**files, "cut.jpg": whole[: len(whole) // 2]})
    settings: dict[str, Any] = {"encoders": ("demo",)}
    assert not featurize_command(options(table, tmp_path / "run", **settings))["complete"]
    assert "1 picture cannot be read: cut.jpg of row/8 (damaged picture" in capsys.readouterr().err, "by its name"
    assert featurize_command(options(table, tmp_path / "run", **settings))["already_done"], "it is not tried again"
    (tmp_path / "cut.jpg").write_bytes(whole)
    featurize_command(options(table, tmp_path / "run", encoders=("vit-demo",)))
    flagged = [ColumnReader(tmp_path / "run" / "tokens", name).flagged for name in ("vit-demo", "clip-demo")]
    assert [list(rows) for rows in flagged] == [[9, 10], [8, 9, 10]], "an encoder at a time"
    featurize_command(options(table, tmp_path / "run", **settings))
    assert list(ColumnReader(tmp_path / "run" / "tokens", "clip-demo").flagged) == [9, 10]


@pytest.mark.parametrize("mended", [("a.png",), ("a.png", "b.png")], ids=["one", "both"])
def test_damaged_files_of_the_same_content_are_filled_in_one_by_one(mended: tuple[str, ...], tmp_path: Path) -> None:
    files = pictures(8)
    table = write_corpus(tmp_path, [*files, "a.png", "b.png"], extra={**files, "a.png": b"", "b.png": b""})
    assert not featurize_command(options(table, tmp_path / "run"))["complete"]
    for seed, name in enumerate(mended):
        (tmp_path / name).write_bytes(file_of(picture(seed=50 + seed)))
    featurize_command(options(table, tmp_path / "run"))
    found = ColumnReader(tmp_path / "run" / "tokens", "vit-demo")
    assert list(found.flagged) == [8, 9][len(mended) :], "a damaged file has no row of another picture"
    assert drawings(tmp_path / "run", load_corpus(table, CorpusSettings(split_column="split")))[8:] == [[8], [9]]
    assert featurize_command(options(table, tmp_path / "run"))["already_done"]


def test_a_thin_picture_is_a_failed_row_of_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = pictures(6)
    thin = {"wide.png": file_of(Image.new("RGB", (40_000, 1))), "tall.png": file_of(Image.new("RGB", (1, 40_000)))}
    table = write_corpus(tmp_path, [*files, *thin], extra={**files, **thin})
    assert not featurize_command(options(table, tmp_path / "run", encoders=("demo",)))["complete"]
    told = capsys.readouterr().err
    assert "2 pictures cannot be resized: wide.png of row/6 (40000 × 1 pixels, whose resize makes 163,840,000" in told
    assert set(ColumnReader(tmp_path / "run" / "tokens", "clip-demo").flagged) == {6, 7}
    assert not ColumnReader(tmp_path / "run" / "tokens", "vit-demo").flagged, "which squashes"
    assert featurize_command(options(table, tmp_path / "run", encoders=("demo",)))["already_done"]


def test_a_store_without_its_table_of_pictures_goes_on_or_says_so(tmp_path: Path) -> None:
    table = write_corpus(tmp_path, list(pictures(4)), extra=pictures(4))
    featurize_command(options(table, tmp_path / "run"))
    (tmp_path / "run" / "tokens" / "pictures.h5").unlink()
    assert featurize_command(options(table, tmp_path / "run"))["already_done"]
    assert (tmp_path / "run" / "tokens" / "pictures.h5").is_file()
    (tmp_path / "run" / "tokens" / "pictures.h5").write_bytes(b"damaged")
    (tmp_path / "pictures" / "2.png").write_bytes(file_of(picture(seed=77)))
    with pytest.raises(InputError, match=r"pictures\.h5, which says which they are, is not there or damaged"):
        featurize_command(options(table, tmp_path / "run"))


def test_what_is_counted_are_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = pictures(2)
    cells = [*files, '["pictures/0.png", "pictures/1.png"]', "", "", "nowhere.png", "", ""]
    table = write_corpus(tmp_path, cells, extra=files)
    featurize_command(options(table, tmp_path / "run", dry_run=True))
    told = " ".join(capsys.readouterr().err.split())
    assert "3 distinct pictures, 2 of a text at most (2 saved, their content is shared)" in told
    assert "4 texts without a picture" in told
    assert "1 picture cannot be read: 1 missing file (the first nowhere.png of row/5)" in told
    assert "images 2 of your own" in told
    assert "prompts" not in told


def test_generated_and_own_pictures_do_not_mix(tmp_path: Path) -> None:
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
    encode = own_pictures._encode

    def with_one_large_dimension(*given: Any) -> torch.Tensor:
        tokens_BTD = encode(*given).clone()
        tokens_BTD[..., 3] = 300
        return tokens_BTD

    monkeypatch.setattr(own_pictures, "_encode", with_one_large_dimension)
    figures = featurize_command(options(table, tmp_path / "large", token_dtype="int8"))
    stored = tokens(tmp_path / "large")
    assert figures["int8_lost"]["vit-demo"] == round(float((stored == 0).mean()), 4) > 0.3
    assert f"int8 stores {figures['int8_lost']['vit-demo']:.0%} of the values of vit-demo as 0" in capsys.readouterr().err
    assert "int8_lost" not in featurize_command(options(table, tmp_path / "float16"))


def test_a_stopped_run_resumes_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = write_corpus(tmp_path, list(pictures(12)), extra=pictures(12))
    settings: dict[str, Any] = {"batch_size": 2, "shard_rows": 8}
    featurize_command(options(table, tmp_path / "whole", **settings))
    interrupt_third_call(monkeypatch, own_pictures, "_encode")
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


@pytest.mark.parametrize("form", ["images in a folder", "parquet in a folder", "the hub", "the hub's cache"])
def test_pictures_of_a_data_set_with_splits(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    files = list(pictures(8).values())
    folder, parts = tmp_path / "set", {"train": range(4), "validation": range(4, 6), "test": range(6, 8)}
    sets = datasets.DatasetDict()
    for split, numbers in parts.items():
        its = (folder if form == "images in a folder" else tmp_path / "images") / split
        its.mkdir(parents=True)
        folder.mkdir(exist_ok=True)
        about = [{"file_name": f"{n}.png", "text": f"text number {n}", "label": "ab"[n % 2]} for n in numbers]
        images: list[dict[str, Any]] = [{"bytes": files[n], "path": None} for n in numbers]
        if form in ("images in a folder", "the hub's cache"):
            for n in numbers:
                (its / f"{n}.png").write_bytes(files[n])
            images = [{"bytes": None, "path": str(its / f"{n}.png")} for n in numbers]
        if form == "images in a folder":
            (its / "metadata.jsonl").write_text("\n".join(map(json.dumps, about)))
            continue
        table = datasets.Dataset.from_list(about).add_column("image", images).cast_column("image", datasets.Image())
        if form.startswith("the hub"):
            sets[split] = table
        else:
            table.with_format("arrow").to_parquet(folder / f"{split}-00000-of-00001.parquet")
    source = str(folder)
    if form.startswith("the hub"):
        source = "hf:owner/name"
        monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: sets)
        monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "images"))
    settings: dict[str, Any] = {"dataset": source, "split_column": None, "shard_rows": 4, "batch_size": 2}
    interrupt_third_call(monkeypatch, own_pictures, "_encode")
    with pytest.raises(KeyboardInterrupt):
        featurize_command(replace(options(folder, tmp_path / "run"), **settings))
    figures = featurize_command(replace(options(folder, tmp_path / "run"), **settings))
    assert (figures["complete"], figures["rows"]["encoded"]) == (True, 4)
    assert figures["examples"] == {"train": 4, "validation": 2, "test": 2}
    files_alone = write_corpus(tmp_path, list(pictures(8)), extra=pictures(8))
    featurize_command(options(files_alone, tmp_path / "plain", shard_rows=4, batch_size=2))
    assert np.array_equal(tokens(tmp_path / "run"), tokens(tmp_path / "plain"))


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
