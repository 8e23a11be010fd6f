"""inspect of a store of own pictures: thumbnails are these pictures, found again by the column that featurize recorded."""

import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featurize.cli import main
from featurize.inspect import compare_stores as module
from featurize.inspect.compare_stores import compare_stores
from featurize.inspect.inspect_store import inspect
from featurize.inspect.records import LeftOut
from featurize.options import InspectSettings
from lugpi_core.corpora.load import load_corpus
from lugpi_core.corpora.options import CorpusSettings
from lugpi_core.thumbnails import FOLDER, read_thumbnails, thumbnail_generator
from tests.support.own_pictures import file_of, picture, write_corpus

SPLITS_OF_ROWS = ("train", "train", "validation", "test")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    files = {f"{n}.png": file_of(picture(60, 40, seed=n)) for n in range(16)}
    cells = [*list(files)[:15], '["missing.png", "0.png"]']
    table = write_corpus(folder, cells, extra=files)
    flags = ("--dataset", str(table), "--split-column", "split", "--device", "cpu", "--run-dir", str(folder / "run"))
    assert main([*flags, "--images-from", "image", "--encoders", "vit-demo"]) == 1, "one picture is missing"
    return folder


def test_thumbnails_are_the_pictures(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--dataset", str(run / "own.csv"), "--split-column", "split", "--device", "cpu", "--run-dir", str(run / "run"))
    assert main(["inspect", *flags]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["columns"]["vit-demo"]["flagged"] == 1
    corpus = load_corpus(run / "own.csv", CorpusSettings(split_column="split"))
    found = read_thumbnails(run / "run" / FOLDER, corpus.fingerprint())
    assert sorted(found) == [3, 7, 11], "the first picture of the fourth test text is missing"
    assert thumbnail_generator(run / "run" / FOLDER) == "own images"
    shown = np.asarray(Image.open(io.BytesIO(found[3])).convert("RGB")).astype(float)
    centre = picture(60, 40, seed=3).crop((10, 0, 50, 40)).resize(shown.shape[:2], Image.Resampling.BICUBIC)
    assert np.abs(shown - np.asarray(centre)).mean() < 8, "up to WebP's loss"


def test_a_corpus_without_its_pictures_is_told(run: Path) -> None:
    corpus = load_corpus(run / "own.csv", CorpusSettings(split_column="split"))
    inspection = inspect(run / "run" / "tokens", corpus, settings=InspectSettings(device="cpu"), run_dir=run / "other")
    assert isinstance(inspection.thumbnails, LeftOut)
    assert "--images-from" in inspection.thumbnails.left_out


def test_own_pictures_have_a_column_on_the_sheet(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command finds their column again; the generated images of the same texts stand beside them."""
    common = ("--dataset", str(run / "own.csv"), "--split-column", "split", "--device", "cpu")
    drawn = ("--generator", "demo", "--steps", "1", "--encoders", "vit-demo", "--run-dir", str(tmp_path / "drawn"))
    assert main([*common, *drawn]) == 0
    capsys.readouterr()
    assert main(["inspect", *common, "--run-dir", str(tmp_path), "--stores", str(run / "run"), str(tmp_path / "drawn")]) == 0
    captured = capsys.readouterr()
    figures = json.loads(captured.out.splitlines()[-1])
    sheet = figures["sheet"]
    assert (sheet["stores"], sheet["left_out"]) == (["run", "drawn"], {})
    assert not [note for note in figures["notes"] if "encoders" in note or "unknown" in note], "the encoder is the same"
    cells = [re.split(r"\s{2,}", line) for line in captured.err.splitlines()]
    for name in ("seed", "texts with a cut prompt", "TFLOP an image", "weights"):
        assert [row[1] for row in cells if row[0] == name] == ["-"]
    with Image.open(tmp_path / "comparison.png") as png:
        shown = np.asarray(png.convert("RGB").crop((220, 46, 348, 174))).astype(float)
        missing = np.asarray(png.convert("L").crop((220, 46 + 3 * 134, 348, 174 + 3 * 134)))
    assert missing.min() < 128, "its place says that there is no image"
    assert missing.mean() > 240
    centre = picture(60, 40, seed=3).crop((10, 0, 50, 40)).resize((128, 128), Image.Resampling.BICUBIC)
    assert np.abs(shown - np.asarray(centre)).mean() < 8


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        (
            [(f"thing {n}", "ab"[n % 2], SPLITS_OF_ROWS[n % 4]) for n in range(16)],
            "tokens, a store of 'own' with other examples, prompts, labels or splits",
        ),
        ([(f"text number {n}", "ab"[n % 2], SPLITS_OF_ROWS[n % 4]) for n in range(16)], "no column 'image'"),
    ],
    ids=["another corpus", "the same texts without their pictures"],
)
def test_the_pictures_column_of_a_store_is_not_asked_of_another_corpus(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: list[tuple[str, ...]], why: str
) -> None:
    table = tmp_path / "things.csv"
    table.write_text("text,label,split\n" + "".join(",".join(row) + "\n" for row in rows))
    shutil.copytree(run / "run", tmp_path / "copy")
    flags = ("--dataset", str(table), "--split-column", "split", "--device", "cpu", "--run-dir", str(tmp_path))
    capsys.readouterr()
    assert main(["inspect", *flags, "--stores", str(run / "run"), str(tmp_path / "copy")]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert why in line


def test_pictures_of_several_columns_are_not_shown_as_those_of_one(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = Path(shutil.copytree(run / "run", tmp_path / "other"))
    columns = {run / "run" / "tokens": "image", copy / "tokens": "portrait"}
    monkeypatch.setattr(module, "images_from", columns.__getitem__)
    corpus = load_corpus(run / "own.csv", CorpusSettings(split_column="split", images_from="image"))
    stores = [run / "run" / "tokens", copy / "tokens"]
    found = compare_stores(stores, corpus, settings=InspectSettings(device="cpu"), run_dir=tmp_path)
    assert isinstance(found.sheet, LeftOut)
    assert "the pictures of these stores are of several columns, image, portrait" in found.sheet.left_out
