"""``inspect --stores``: one table and one sheet for several stores, and which stores do not compare."""

import contextlib
import io
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from featurize.cli import main
from featurize.cost.stage_cost import DECODE, DENOISE, PROMPT, stage_flops
from featurize.generate.generators import find_generator, generator_settings
from featurize.inspect.columns import Subject
from featurize.inspect.compare_stores import compare_stores
from featurize.inspect.comparison import Comparison, Work, table_lines
from featurize.inspect.diversity import Diversity
from featurize.inspect.info import store_info
from featurize.inspect.records import LeftOut
from featurize.options import InspectSettings
from lugpi_core.corpora.load import load_corpus
from lugpi_core.errors import InputError
from lugpi_core.runtime.pretrained import embedded_model
from lugpi_core.store.layout import PROMPT_TEXT
from tests.support.planted_store import Planted, plant, plant_column, plant_latents, telling_tokens
from train.report.recorded import stores_of

CPU = InspectSettings(device="cpu")


def compare(*planted: Planted, settings: InspectSettings = CPU) -> Comparison:
    """Compare planted stores of one corpus; the sheet is written to the folder of the first."""
    stores = [each.run_dir / "tokens" for each in planted]
    return compare_stores(stores, planted[0].corpus, settings=settings, run_dir=planted[0].run_dir.parent)


def planted_with(folder: Path, strength: float, *, encoder: Mapping[str, Any] | None = None, **about: Any) -> Planted:
    """Return a store whose column ``seen`` predicts the class as ``strength`` says."""
    planted = plant(folder, **about)
    fingerprint = None if encoder is None else {"generation": {"seed": 0}, "encoder": encoder, "decoder": "the generator's"}
    plant_column(planted, "seen", telling_tokens(planted.labels, strength=strength), fingerprint=fingerprint)
    return planted


# ---- stores of the embedded generator ----


@pytest.fixture(scope="module")
def runs(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs that differ in the seed, and one with two images of each text, in half the steps."""
    folder = tmp_path_factory.mktemp("runs")
    for name, *flags in (
        ("zero", "--encoders", "demo", "--steps", "2"),
        ("one", "--encoders", "clip-demo", "--steps", "2", "--seed", "1"),
        ("pairs", "--encoders", "clip-demo", "--steps", "1", "--images-per-text", "2"),
    ):
        common = ("--dataset", str(table), "--generator", "demo", "--device", "cpu", "--run-dir", str(folder / name))
        assert main([*common, *flags]) == 0
    return folder


@pytest.fixture(scope="module")
def compared(runs: Path, table: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, Path]:
    """The figures, the printed text and the folder of a comparison of all three by the command."""
    out, line, printed = tmp_path_factory.mktemp("out"), io.StringIO(), io.StringIO()
    stores = [str(runs / name) for name in ("zero", "one", "pairs")]
    with contextlib.redirect_stdout(line), contextlib.redirect_stderr(printed):
        assert main(["inspect", "--dataset", str(table), "--device", "cpu", "--run-dir", str(out), "--stores", *stores]) == 0
    return json.loads(line.getvalue()), printed.getvalue(), out


def test_the_command_prints_one_table_and_writes_its_figures_and_a_sheet(compared: tuple[dict[str, Any], str, Path], runs: Path) -> None:
    figures, printed, out = compared
    assert json.loads((out / "comparison.json").read_text()) == figures
    assert [store["label"] for store in figures["stores"]] == ["zero", "one", "pairs"]
    lines = {line[: line.index("  ", 2)].strip(): line.split() for line in printed.splitlines() if "  " in line[2:]}
    assert lines["seed"] == ["seed", "0", "1", "0"]
    assert lines["images of a text"][-3:] == ["1", "1", "2"]
    assert lines["images"] == ["images", "13", "13", "26"]
    assert lines["bytes an image"][-3:] == ["4,352", "-", "-"], "17 tokens of 128 in float16"
    assert "no such column" in next(line for line in printed.splitlines() if line.startswith("vit-demo "))
    assert "zero: drawn by demo: Apache-2.0" in printed
    with Image.open(out / "comparison.png") as sheet:
        assert sheet.width == 220 + 3 * 134
        assert sheet.height == 46 + figures["sheet"]["texts"] * 134
    assert figures["sheet"]["stores"] == ["zero", "one", "pairs"]
    assert not list(runs.rglob("thumbnails")), "the runs stay as they are"


def test_a_comparison_records_what_the_report_of_a_run_shows(compared: tuple[dict[str, Any], str, Path], table: Path) -> None:
    figures, printed, out = compared
    shown, notes = stores_of(out, load_corpus(str(table)))
    assert notes == ()
    assert shown is not None
    assert shown.header == ("", "zero", "one", "pairs")
    assert ("images of a text", "1", "1", "2") in shown.rows
    assert all(sentence in printed for sentence in shown.sentences)
    assert [work.label for work in shown.works] == ["zero", "one", "pairs"]
    clip = next(column for column in shown.columns if column.name == "clip-demo")
    for store, agreement in zip(figures["stores"], clip.agreements, strict=True):
        recorded = store["columns"]["clip-demo"]["agreement"]
        assert (agreement.label, agreement.own_is_nearer) == (store["label"], recorded["own_is_nearer"])


def test_the_work_of_an_image_is_that_of_all_its_steps(compared: tuple[dict[str, Any], str, Path]) -> None:
    works = [Work(**store["work"]) for store in compared[0]["stores"]]
    flops = stage_flops(find_generator("demo", generator_settings("demo", {}), half=False), ())
    for work, steps, images_of_prompt in zip(works, (2, 2, 1), (1, 1, 2), strict=True):
        assert work.denoise_tflop == pytest.approx(2 * steps * flops[DENOISE] / 1e12), "with guidance an image takes two rows a step"
        assert work.prompt_tflop == pytest.approx(flops[PROMPT] / images_of_prompt / 1e12)
        assert work.decode_tflop == pytest.approx(flops[DECODE] / 1e12)
    weights = sum(path.stat().st_size for path in embedded_model("generator").rglob("*.safetensors"))
    assert {store["generator_bytes"] for store in compared[0]["stores"]} == {weights}


def test_stores_that_differ_in_the_seed_alone_tell_how_the_generator_answers_to_it(
    compared: tuple[dict[str, Any], str, Path],
) -> None:
    figures, printed, _ = compared
    (pair,) = figures["between_seeds"]
    assert (pair["stores"], pair["seeds"], pair["column"]) == (["zero", "one"], [0, 1], "clip-demo")
    assert pair["diversity"]["texts"] == 13
    assert pair["diversity"]["share"] > 0.1
    of_text = figures["stores"][2]["columns"]["clip-demo"]["diversity"]
    assert (of_text["texts"], of_text["images"]) == (13, 26)
    assert "diversity" not in figures["stores"][0]["columns"]["clip-demo"]
    assert "zero and one, clip-demo: the images of one text with seeds 0 and 1 differ by " in printed
    assert "of several images of a text, the first is compared" in printed


def test_the_sheet_shows_what_the_latents_decode_to(runs: Path, table: Path, tmp_path: Path) -> None:
    """Without latents a store has no column on the sheet; the others stay."""
    copy = Path(shutil.copytree(runs / "one", tmp_path / "copy"))
    shutil.rmtree(copy / "tokens" / "latents")
    stores = [runs / "zero" / "tokens", copy / "tokens"]
    found = compare_stores(stores, load_corpus(table), settings=InspectSettings(device="cpu", thumbnails=2), run_dir=tmp_path)
    assert not isinstance(found.sheet, LeftOut)
    assert (found.sheet.stores, found.sheet.texts) == (("zero",), 2)
    assert "without latents" in found.sheet.left_out["copy"]
    with Image.open(tmp_path / "comparison.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    assert pixels[46:174, 220:348].std() > 5
    assert f"  without copy: got {copy / 'tokens'} without latents" in found.summary()
    assert not isinstance(found.stores[1].work, LeftOut), "tokens say which generator too"


# ---- what the table says ----


def test_the_better_probe_is_told_with_a_paired_test(tmp_path: Path) -> None:
    counts = (90, 90, 6)
    knows, guesses = (planted_with(tmp_path / name, strength, counts=counts) for name, strength in (("a", 1.5), ("b", 0.0)))
    found = compare(knows, guesses)
    (difference,) = found.probe_differences
    labels = (str(knows.run_dir / "tokens"), str(guesses.run_dir / "tokens"))
    assert difference.stores == labels, "both runs are named run"
    assert difference.examples == 90
    assert difference.difference > 0.3
    assert difference.p == 0.001
    assert f"seen: linear probe of {labels[0]} minus that of {labels[1]}: +" in found.summary()
    again = compare(guesses, knows)
    assert again.probe_differences[0].stores == labels
    assert [line.split()[-2:] for line in found.summary().splitlines() if line.startswith("  predicts the class")] == [["yes", "no"]]


def test_equal_stores_do_not_differ(tmp_path: Path) -> None:
    found = compare(*(planted_with(tmp_path / name, 0.5) for name in "ab"))
    assert (found.probe_differences[0].difference, found.probe_differences[0].p) == (0.0, 1.0)
    assert "no significant difference" in found.summary()


def test_columns_of_different_encoders_are_told(tmp_path: Path) -> None:
    one, same, other = (
        planted_with(tmp_path / name, 0.5, encoder={"name": "seen", "weights": weights, "layer": -1})
        for name, weights in (("a", "0" * 32), ("b", "0" * 32), ("c", "1" * 32))
    )
    assert not [note for note in compare(one, same).notes if "encoders" in note]
    (note,) = [note for note in compare(one, same, other).notes if "encoders" in note]
    assert note.startswith(f"seen: the tokens of {one.run_dir / 'tokens'} and {other.run_dir / 'tokens'} are of different encoders")
    assert "encoder.weights" in note


def test_images_that_do_not_answer_to_the_seed_are_told(tmp_path: Path) -> None:
    one, other = (plant(tmp_path / name, images_per_text=3) for name in "ab")
    rng = np.random.default_rng(0)
    of_prompt = rng.normal(size=(len(one.labels) // 3, 5, 16))
    plant_column(one, "seen", np.repeat(of_prompt, 3, axis=0) + 0.05 * rng.normal(size=(len(one.labels), 5, 16)))
    plant_column(other, "seen", rng.normal(size=(len(one.labels), 5, 16)))
    found = compare(one, other)
    alike, free = (store.column("seen") for store in found.stores)
    assert alike is not None
    assert free is not None
    assert isinstance(alike.diversity, Diversity)
    assert isinstance(free.diversity, Diversity)
    assert alike.diversity.is_little
    assert free.diversity.share == pytest.approx(1, abs=0.05)
    (note,) = [note for note in found.notes if "hardly answers" in note]
    assert note.startswith(f"{one.run_dir / 'tokens'}: seen: the generator hardly answers to the seed: ")
    assert "(hardly)" in found.summary()


def test_what_cannot_be_asked_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Subject, "no_classes", property(lambda _: "these texts have no labels"))
    one, other = (planted_with(tmp_path / name, 0.5) for name in "ab")
    shutil.rmtree(other.run_dir / "tokens" / "seen")
    plant_latents(other, by_class=False)
    found = compare(one, other)
    assert "class prediction left out: these texts have no labels" in found.notes
    assert "linear probe" not in found.summary()
    assert isinstance(found.stores[0].work, LeftOut)
    assert any("work of an image unknown: got seen without a record of their generator" in note for note in found.notes)
    assert found.stores[1].generator == "demo"
    assert not isinstance(found.sheet, LeftOut)
    assert found.sheet.stores == (str(other.run_dir / "tokens"),)


@pytest.mark.parametrize(
    ("texts", "images", "strategies", "compared"),
    [
        ("picture {}", (2, 2), ("chunks", "chunks"), 1),
        ("one long picture {}", (2, 3), ("chunks", "chunks"), 0),
        ("picture {}", (2, 3), ("chunks", "chunks"), 1),
        ("picture {}", (1, 3), ("whole", "whole"), 1),
        ("picture {}", (2, 2), ("whole", "chunks"), 0),
        ("picture{}", (1, 2), ("whole", "chunks"), 1),
        ("picture {}", (1, 2), ("keywords", "keywords"), 1),
        ("picture {}", (2, 2), ("keywords", "chunks"), 0),
    ],
)
def test_only_stores_whose_first_images_have_the_same_prompts_tell_of_the_seed(
    texts: str, images: Sequence[int], strategies: Sequence[str], compared: int, tmp_path: Path
) -> None:
    """Passages are the same, whatever their number, where a text has no more words than passages."""
    prompts = [texts.format(n) for n in range(180)]
    stores = [plant(tmp_path / name, prompts=prompts, images_per_text=count) for name, count in zip("ab", images, strict=True)]
    for seed, (planted, strategy) in enumerate(zip(stores, strategies, strict=True)):
        generation = {"seed": seed, "drawings": str(seed), "generator": {"name": "some", "steps": 1, "guidance": 0.0, "size_px": 64}}
        tokens = telling_tokens(planted.labels, strength=1)
        plant_column(planted, "seen", tokens, fingerprint={"generation": generation}, made_by={"prompts": strategy})
    assert len(compare(*stores).between_seeds) == compared


def test_a_passage_has_a_prompt_of_its_own_and_images_of_a_whole_text_share_one(tmp_path: Path) -> None:
    generator = find_generator("demo", generator_settings("demo", {}), half=False)
    fingerprint = {"generation": {"dtype": "float32", "generator": generator.fingerprint()}}
    stores = [plant(tmp_path / name, images_per_text=2) for name in "ab"]
    for planted, strategy in zip(stores, ("chunks", "whole"), strict=True):
        tokens, made_by = telling_tokens(planted.labels, strength=1), {"generator": "demo", "prompts": strategy}
        plant_column(planted, "seen", tokens, fingerprint=fingerprint, made_by=made_by)
    passages, whole = compare(*stores).stores
    assert isinstance(passages.work, Work)
    assert isinstance(whole.work, Work)
    assert passages.work.prompt_tflop == pytest.approx(2 * whole.work.prompt_tflop)
    assert "prompts chunks" in passages.settings
    assert "prompts" not in whole.settings
    of = [column.diversity for store in (passages, whole) if (column := store.column("seen")) is not None]
    assert [one.of for one in of if isinstance(one, Diversity)] == ["passages", "seeds"]
    (line,) = [line for line in compare(*stores).summary().splitlines() if line.startswith("  images of a text differ by")]
    assert line.count("passages") == 1


def test_the_files_that_a_user_gave_to_a_generator_are_named(tmp_path: Path) -> None:
    record = {"name": "base", "steps": 1, "guidance": 0.0, "size_px": 64, "loras": [{"weights": "6a" * 16, "scale": 0.8}]}
    stores = [plant(tmp_path / name) for name in "ab"]
    flags = {"unet": "models/lightning.safetensors", "lora": ["models/sketch.safetensors:0.8"]}
    for planted, made_by in zip(stores, (flags, None), strict=True):
        tokens = telling_tokens(planted.labels, strength=1)
        plant_column(planted, "seen", tokens, fingerprint={"generation": {"generator": record}}, made_by=made_by)
    named, unnamed = (store.settings for store in compare(*stores).stores)
    assert "64 px, denoiser lightning.safetensors, LoRA sketch.safetensors × 0.8" in named
    assert "64 px, LoRA 6a6a6a6a… × 0.8" in unnamed
    printed = store_info(stores[0].run_dir / "tokens").summary()
    assert "  generated with denoiser lightning.safetensors, LoRA sketch.safetensors × 0.8\n" in printed
    assert '.loras = [{"weights": "6a' in printed


def test_a_run_of_text_vectors_alone_is_told_as_what_it_is(tmp_path: Path) -> None:
    images, text = planted_with(tmp_path / "a", 0.5), plant(tmp_path / "b")
    plant_column(text, PROMPT_TEXT, telling_tokens(text.labels, strength=1.5), fingerprint={"text_encoder": {"name": "demo"}})
    found = compare(images, text)
    label = str(text.run_dir / "tokens")
    assert (found.stores[1].images, found.stores[1].images_per_text) == (0, 0)
    assert f"{label}: no images, only text vectors of its generator" in found.notes
    assert not [note for note in found.notes if note.startswith(f"{label}: work")]
    cells = {line[: line.index("  ", 2)].strip(): line.split()[-1] for line in found.summary().splitlines() if "  " in line[2:]}
    assert [cells[name] for name in ("seed", "images", "TFLOP an image", "weights")] == ["-", "0", "-", "-"]
    assert "--no-latents" not in found.summary().split(label)[-1]
    assert "another --run-dir" not in found.summary().split(label)[-1]


def test_text_vectors_beside_images_say_nothing_of_these(tmp_path: Path) -> None:
    one, other = (planted_with(tmp_path / name, 0.5) for name in "ab")
    plant_column(other, PROMPT_TEXT, telling_tokens(other.labels, strength=1.5), fingerprint={"text_encoder": {"name": "demo"}})
    found = compare(one, other)
    assert [store.images for store in found.stores] == [180, 180]
    assert isinstance(found.stores[1].work, LeftOut)
    assert found.stores[1].work.left_out.startswith("got seen without a record")


def test_long_cells_take_several_lines() -> None:
    lines = table_lines([("settings", ["a " * 20, "b"]), ("seed", ["0", "1"])], ["left", "right"])
    assert lines == [
        "          left                           right",
        f"settings  {'a ' * 14}a  b",
        f"          {'a ' * 4}a",
        "seed      0                              1",
    ]


# ---- stores that do not compare ----


def test_stores_that_do_not_compare_are_one_line(tmp_path: Path) -> None:
    one, other = planted_with(tmp_path / "a", 0.5), planted_with(tmp_path / "b", 0.5, counts=(90, 60, 33))
    tokens = one.run_dir / "tokens"
    for stores, why in (
        ([tokens], "got 1 store to compare; expected two or more"),
        (tokens, "got 1 store to compare; expected two or more"),
        ([tokens, tmp_path / "a" / ".." / "a" / "run" / "tokens"], "tokens twice; expected different stores"),
        ([tokens, tmp_path / "nothing"], f"got no token store in {tmp_path / 'nothing'}"),
        (
            [tokens, other.run_dir / "tokens"],
            f"got {other.run_dir / 'tokens'}, a store of 'own' with other examples, prompts, labels or splits",
        ),
    ):
        with pytest.raises(InputError) as error:
            compare_stores(stores, one.corpus, settings=CPU, run_dir=tmp_path)
        assert why in str(error.value)
        assert "\n" not in str(error.value)
    for stores in (None, [tokens, 3]):
        with pytest.raises(TypeError, match="store: got"):
            compare_stores(stores, one.corpus, settings=CPU, run_dir=tmp_path)  # type: ignore[arg-type]
    assert not (tmp_path / "comparison.png").exists()


def test_a_run_without_a_store_is_one_line_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = planted_with(tmp_path / "a", 0.5)
    assert main(["inspect", *one.flags, "--stores", str(one.run_dir), str(tmp_path / "none")]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert line == (
        f"error: got no token store in {tmp_path / 'none' / 'tokens'}; expected one that featurize wrote; run python -m featurize first"
    )
