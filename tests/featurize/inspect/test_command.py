"""``python -m featurize inspect``: what is planted in a store is found and said, what cannot be asked is left out in a line."""

import json
import re
import resource
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from featurize.cli import main
from featurize.encode.encoders import find_encoder
from featurize.generate.decoders import LatentDecoder
from featurize.inspect import command as inspect_tokens
from featurize.inspect import decoded_images as stored_pictures
from featurize.inspect import sample as token_sample
from featurize.inspect.sample import take_sample
from featurize.inspect.text_agreement import JointSpace
from featurize.options import FeaturizeOptions
from featurize.run import featurize_command as featurize
from lugpi_core.errors import InputError
from lugpi_core.store.example_table import read_example_table
from lugpi_core.store.reader import ColumnReader
from lugpi_core.thumbnails import read_thumbnails
from tests.featurize.inspect.test_text_agreement import CPU, class_tokens_like, clip_folder
from tests.support.checkout import ROOT
from tests.support.planted_store import Planted, plant, plant_column, plant_latents, plant_telling, telling_tokens

Said = tuple[int, dict[str, Any], str]
Ask = Callable[..., Said]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """With models this small two threads wait for each other longer than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Ask:
    """Inspect a planted store: exit status, figures, what was said."""

    def run_command(planted: Planted, *flags: str) -> Said:
        capsys.readouterr()
        status = main(["inspect", *planted.flags, *flags])
        captured = capsys.readouterr()
        return status, json.loads(captured.out) if captured.out else {}, captured.err

    return run_command


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """A store with a column that knows the class and one that does not; no latents, so that most tests decode nothing."""
    return plant_telling(tmp_path_factory.mktemp("planted"))


@pytest.fixture
def drawn(planted: Planted) -> Planted:
    """The same with latents, of which those of a class are alike."""
    plant_latents(planted, by_class=True)
    return planted


@pytest.fixture
def planted(made: Planted, tmp_path: Path) -> Planted:
    run_dir = Path(shutil.copytree(made.run_dir, tmp_path / "run"))
    return Planted(table=made.table, run_dir=run_dir, corpus=made.corpus, drawings=made.drawings)


def test_the_column_that_knows_the_class_is_told_from_the_one_that_does_not(planted: Planted, ask: Ask) -> None:
    status, found, said = ask(planted)
    assert status == 0
    telling, silent = (found["columns"][name] for name in ("telling", "silent"))
    assert (telling["verdict"]["level"], silent["verdict"]["level"]) == ("knows", "chance")
    assert telling["classes"]["probe"]["accuracy"] > 0.9
    assert silent["classes"]["probe"]["accuracy"] < 0.6
    without_failed = {"train": 89, "validation": 59, "validation_new": 59, "validation_shared": 0}
    assert telling["classes"]["examples"] == without_failed
    assert telling["classes"]["chance"]["uniform"] == pytest.approx(1 / 3)
    assert found["verdict"]["level"] == "knows"
    assert "the pictures know the class: telling, " in said
    assert "silent: 180 drawings, 0 of them failed\n  linear probe " in said


def test_planted_copies_cut_prompts_and_failures_are_counted(planted: Planted, ask: Ask) -> None:
    _, found, said = ask(planted)
    copies = found["columns"]["telling"]["near_copies"]
    assert (copies["test_drawings"], copies["test_copies_of_train"], copies["lower_bound"]) == (30, 3, False)
    assert round(copies["share"] * copies["drawings"]) == 6
    assert copies["drawings"] == 178
    assert found["columns"]["silent"]["near_copies"]["test_copies_of_train"] == 0
    assert (found["columns"]["telling"]["flagged"], found["columns"]["silent"]["flagged"]) == (2, 0)
    assert found["columns"]["telling"]["flagged_share"] == 2 / 180
    assert found["prompts_cut"] == {
        "count": 4,
        "share": 4 / 180,
        "share_by_split": {"train": 3 / 90, "validation": 1 / 60, "test": 0.0},
    }
    assert "of 30 test drawings 3 copy a train drawing of another prompt" in said
    assert "  - 2.2% of the prompts were cut" in said
    assert ask(planted, "--near-copy", "0.1")[1]["columns"]["silent"]["near_copies"]["share"] > 0.9


def test_classes_whose_pictures_are_alike_are_found(drawn: Planted, ask: Ask, tmp_path: Path) -> None:
    likeness = ask(drawn)[1]["class_similarity"]
    assert (likeness["classes"], likeness["pictures"]) == (3, 90)
    assert likeness["p"] <= 0.01
    other = plant(tmp_path / "other")
    plant_latents(other, by_class=False)
    likeness = ask(other)[1]["class_similarity"]
    assert abs(likeness["within"] - likeness["between"]) < 0.1 * likeness["between"] + 0.01
    assert [{one, two} < set("abc") for one, two, _ in likeness["most_alike"]] == [True] * 3


def test_the_last_line_and_the_file_say_the_same(planted: Planted, ask: Ask) -> None:
    _, found, _ = ask(planted)
    assert json.loads((planted.run_dir / "inspection.json").read_text()) == found
    assert found["command"] == "inspect"
    assert found["corpus"] == planted.corpus.fingerprint()
    assert found["config"]["near_copy"] == 0.98
    assert found["examples"]["train"] == {"looked_at": 90, "of": 90}
    assert {"compute", "times", "peak_memory", "provenance", "inspection"} <= found.keys()


def _that_does_not_pass(found: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if name not in ("times", "peak_memory", "provenance")}


def test_the_same_command_again_gives_the_same_and_the_tokens_are_not_touched(drawn: Planted, ask: Ask) -> None:
    def state() -> dict[str, tuple[int, bytes]]:
        files = sorted(path for path in (drawn.run_dir / "tokens").rglob("*") if path.is_file())
        return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}

    before = state()
    _, first, _ = ask(drawn)
    pictures = {path.name: path.read_bytes() for path in (drawn.run_dir / "thumbnails").iterdir()}
    _, again, _ = ask(drawn)
    assert _that_does_not_pass(first) == _that_does_not_pass(again)
    assert {path.name: path.read_bytes() for path in (drawn.run_dir / "thumbnails").iterdir()} == pictures
    assert state() == before
    other = ask(drawn, "--seed", "1")[1]
    assert other["columns"]["silent"]["classes"]["knn"]["shuffled_mean"] != first["columns"]["silent"]["classes"]["knn"]["shuffled_mean"]


def test_thumbnails_are_of_test_examples_and_of_their_own_drawings(drawn: Planted, ask: Ask) -> None:
    _, found, said = ask(drawn, "--thumbnails", "7")
    pictures = read_thumbnails(drawn.run_dir / "thumbnails", drawn.corpus.fingerprint())
    assert len(pictures) == found["thumbnails"]["examples"] == 7
    assert set(pictures) <= set(drawn.corpus.rows("test"))
    assert found["thumbnails"]["bytes"] == sum(map(len, pictures.values()))
    assert "thumbnails of 7 test examples" in said
    index = json.loads((drawn.run_dir / "thumbnails" / "index.json").read_text())
    assert index["generator"] == "demo"
    latents = ColumnReader(drawn.run_dir / "tokens", "latents")
    _, wanted = stored_pictures.StoredPictures(drawn.run_dir / "tokens", "full", CPU).of(drawn.drawing[list(pictures)], 128)
    assert len(latents) == 180
    import io

    from PIL import Image

    for data, picture in zip(pictures.values(), wanted, strict=True):
        shown = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(float) / 255
        distances = [float(np.abs(shown - one.permute(1, 2, 0).numpy()).mean()) for one in wanted]
        assert min(distances) == pytest.approx(float(np.abs(shown - picture.permute(1, 2, 0).numpy()).mean()))


def test_the_sheet_shows_the_thumbnails_with_their_words(drawn: Planted, ask: Ask) -> None:
    from PIL import Image

    _, found, said = ask(drawn, "--thumbnails", "7")
    path = drawn.run_dir / "drawings.png"
    assert found["thumbnails"]["sheet"] == str(path)
    assert f"on one sheet: {path}" in said
    with Image.open(path) as sheet:
        assert (sheet.format, sheet.size) == ("PNG", (8 * 140, 186))  # one row of eight, of which seven are taken
        assert sheet.crop((7 * 140, 0, 8 * 140, 186)).getextrema() == ((255, 255),) * 3
        assert sheet.crop((6 * 140, 4, 7 * 140, 132)).getextrema() != ((255, 255),) * 3
        assert sheet.crop((6 * 140, 133, 7 * 140, 186)).getextrema() != ((255, 255),) * 3


def test_no_thumbnails_leaves_those_that_are_there(drawn: Planted, ask: Ask) -> None:
    ask(drawn, "--thumbnails", "3")
    _, found, said = ask(drawn, "--thumbnails", "0")
    assert found["thumbnails"] == {"left_out": "--thumbnails 0"}
    assert "thumbnails left out: --thumbnails 0" in said
    assert len(read_thumbnails(drawn.run_dir / "thumbnails", drawn.corpus.fingerprint())) == 3


def test_the_tiny_decoder_makes_other_pictures(drawn: Planted, ask: Ask) -> None:
    full = ask(drawn)[1]
    before = read_thumbnails(drawn.run_dir / "thumbnails", drawn.corpus.fingerprint())
    tiny = ask(drawn, "--decoder", "tiny")[1]
    after = read_thumbnails(drawn.run_dir / "thumbnails", drawn.corpus.fingerprint())
    assert list(before) == list(after)
    assert before != after
    assert full["class_similarity"]["within"] != tiny["class_similarity"]["within"]
    assert full["columns"] == tiny["columns"]


def test_pictures_keep_to_the_work_that_is_allowed(drawn: Planted, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    whole = LatentDecoder.decode

    def watched(self: LatentDecoder, latents: torch.Tensor) -> torch.Tensor:
        decoded.append(len(latents))
        return whole(self, latents)

    monkeypatch.setattr(LatentDecoder, "decode", watched)
    flops = stored_pictures.StoredPictures(drawn.run_dir / "tokens", "full", CPU).flops
    _, found, said = ask(drawn, "--decode-tflop", str(20.5 * flops / 1e12))
    assert (found["thumbnails"]["examples"], found["class_similarity"]["pictures"]) == (10, 9)  # three of each class
    assert sum(decoded) == 19
    assert "at most 20 pictures are decoded" in said
    _, found, said = ask(drawn, "--decode-tflop", str(0.5 * flops / 1e12))
    assert "too much work" in found["thumbnails"]["left_out"]
    assert "fewer than two classes" in found["class_similarity"]["left_out"]


def test_without_latents_the_pictures_are_left_out_in_a_line(planted: Planted, ask: Ask) -> None:
    status, found, said = ask(planted)
    assert status == 0
    assert "without latents" in found["thumbnails"]["left_out"]
    assert "without latents" in found["class_similarity"]["left_out"]
    assert len([line for line in said.splitlines() if line.startswith("pictures left out: got ")]) == 1
    assert found["verdict"]["level"] == "knows"
    assert not (planted.run_dir / "thumbnails").exists()


def test_a_store_of_latents_alone_still_has_pictures(drawn: Planted, ask: Ask) -> None:
    for name in ("telling", "silent"):
        shutil.rmtree(drawn.run_dir / "tokens" / name)
    status, found, _ = ask(drawn)
    assert (status, found["columns"], found["thumbnails"]["examples"]) == (0, {}, 30)
    assert found["verdict"]["words"] == "nothing can be said of the classes: no column of tokens could be looked at"


def test_a_column_that_cannot_be_read_is_told_and_the_others_are_looked_at(planted: Planted, ask: Ask) -> None:
    (planted.run_dir / "tokens" / "silent" / "shard-00001.h5").unlink()
    plant_column(planted, "of-others", np.ones((10, 2, 3)))
    plant_column(planted, "flat", np.ones((180, 3)))
    status, found, said = ask(planted)
    assert status == 0
    assert "shard-00001.h5" in found["columns"]["silent"]["left_out"]
    assert "got 10 rows of 2 × 3; expected tokens [T, D] of 180 drawings" in found["columns"]["of-others"]["left_out"]
    assert "got 180 rows of 3;" in found["columns"]["flat"]["left_out"]
    assert "silent: not looked at: got " in said
    assert found["verdict"]["level"] == "knows"


def test_values_that_are_not_finite_are_left_out_like_failures(planted: Planted, ask: Ask) -> None:
    tokens = telling_tokens(planted.labels, strength=1.5)
    tokens[::4] = np.nan
    plant_column(planted, "sick", tokens)
    found = ask(planted)[1]["columns"]["sick"]
    assert found["classes"]["examples"]["train"] == 67
    assert found["near_copies"]["drawings"] == 135
    assert found["verdict"]["level"] == "knows"


def test_a_column_of_failures_alone_is_left_out(planted: Planted, ask: Ask) -> None:
    plant_column(planted, "failed", np.ones((180, 2, 3)), flagged=range(180))
    found = ask(planted)[1]["columns"]["failed"]
    assert found["classes"]["left_out"] == "too few drawings did not fail"
    assert found["near_copies"]["left_out"] == "fewer than two drawings did not fail"
    assert "verdict" not in found


def test_validation_pictures_that_train_shows_are_not_scored(tmp_path: Path, ask: Ask) -> None:
    prompts = [f"picture {n % 90}" if n < 120 else f"picture {n}" for n in range(180)]  # half of validation has train's prompts
    shared = plant(tmp_path, prompts=prompts)
    plant_column(shared, "clip", telling_tokens(shared.labels, strength=0.0))
    classes = ask(shared)[1]["columns"]["clip"]["classes"]
    assert classes["examples"] == {"train": 90, "validation": 30, "validation_new": 30, "validation_shared": 30}


def test_of_several_pictures_of_a_text_the_first_is_looked_at(tmp_path: Path, ask: Ask) -> None:
    planted = plant(tmp_path, images_per_text=2)
    tokens = telling_tokens(planted.labels, strength=1.5)
    tokens[1::2] = telling_tokens(planted.labels, strength=0.0)[1::2]
    plant_column(planted, "clip", tokens)
    column = ask(planted)[1]["columns"]["clip"]
    assert column["verdict"]["level"] == "knows"
    assert (column["drawings"], column["near_copies"]["drawings"]) == (360, 180)


def test_texts_and_pictures_are_compared_where_the_text_tower_is_at_hand(
    tmp_path: Path, ask: Ask, capsys: pytest.CaptureFixture[str]
) -> None:
    files = find_encoder(str(clip_folder(tmp_path / "small-clip")))
    planted = plant(tmp_path / "corpus")
    prompts = dict(zip(planted.drawing.tolist(), (example.prompt for example in planted.corpus.examples), strict=True))
    space = JointSpace(files, CPU)
    shown = class_tokens_like(space, space.texts([prompts[drawing] for drawing in range(len(prompts))])).numpy()
    tokens = np.stack([shown, np.random.default_rng(0).normal(size=shown.shape)], axis=1)
    made_by = {"generator": "demo", "encoders": [str(files.folder)]}
    plant_column(planted, "small-clip", tokens, fingerprint={"encoder": files.fingerprint()}, made_by=made_by)
    plant_column(planted, "gone", tokens, fingerprint={"encoder": {**files.fingerprint(), "name": "gone"}}, made_by=made_by)
    status, found, said = ask(planted)
    agreement = found["columns"]["small-clip"]["agreement"]
    assert status == 0
    assert agreement["texts"] == 180
    assert agreement["own_is_nearer"] > 0.99
    assert "small-clip: the pictures show their texts" in said
    assert "the own one is nearer in " in said
    assert "no featurize command made" in found["columns"]["gone"]["agreement"]["left_out"]
    assert "  texts and pictures left out: got a column 'gone'" in said


def test_large_corpora_are_cut_to_a_stratified_part_and_that_is_said(drawn: Planted, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_sample, "MOST", {"train": 30, "validation": 21, "test": 9})
    _, found, said = ask(drawn)
    assert found["examples"] == {
        "train": {"looked_at": 30, "of": 90},
        "validation": {"looked_at": 21, "of": 60},
        "test": {"looked_at": 9, "of": 30},
    }
    assert found["capped"]
    assert "30 of 90 train, 21 of 60 validation, 9 of 30 test examples are looked at (capped; seed 0)" in said
    assert found["columns"]["telling"]["near_copies"]["lower_bound"]
    assert found["thumbnails"]["examples"] == 9
    table = read_example_table(drawn.run_dir / "tokens", drawn.corpus)
    sample = take_sample(drawn.corpus, table, 0)
    assert {split: np.bincount(labels).tolist() for split, labels in sample.labels.items()} == {
        "train": [10, 10, 10],
        "validation": [7, 7, 7],
        "test": [3, 3, 3],
    }
    for split, rows in sample.rows.items():
        assert set(rows.tolist()) <= set(drawn.corpus.rows(split))  # type: ignore[arg-type]
        assert np.array_equal(sample.drawings[sample.places[split]], table.drawing[rows])


def test_of_texts_without_labels_the_classes_are_not_asked(small_run: Path, small_csv: Path, tmp_path: Path, ask: Ask) -> None:
    run = Path(shutil.copytree(small_run, tmp_path / "run"))
    more = tmp_path / "more.txt"
    more.write_text("".join(f"another text {n}\n" for n in range(12)))
    drawn: dict[str, Any] = {"dataset": str(small_csv), "split_column": "split", "generator": "demo", "encoders": ("vit-demo",)}
    featurize(FeaturizeOptions(**drawn, steps=1, run_dir=run, unlabelled=more))
    flags = ("--dataset", str(small_csv), "--split-column", "split", "--run-dir", str(run), "--unlabelled", str(more))
    assert main(["inspect", *flags]) == 0
    found = json.loads((run / "inspection-more.json").read_text())
    column = found["columns"]["vit-demo"]
    assert column["classes"]["left_out"] == found["class_similarity"]["left_out"] == "these texts have no labels"
    assert column["near_copies"]["drawings"] == 12
    assert found["thumbnails"]["left_out"] == "there is no test example"
    assert found["verdict"]["words"] == "nothing can be said of the classes: these texts have no labels"
    assert not (run / "inspection.json").exists()
    assert not (run / "thumbnails").exists()


def test_a_store_that_featurize_made_is_looked_at_from_end_to_end(small_run: Path, small_csv: Path, tmp_path: Path, ask: Ask) -> None:
    run = Path(shutil.copytree(small_run, tmp_path / "run"))
    assert main(["inspect", "--dataset", str(small_csv), "--split-column", "split", "--run-dir", str(run)]) == 0
    found = json.loads((run / "inspection.json").read_text())
    assert sorted(found["columns"]) == ["clip-demo", "vit-demo"]
    examples = {"train": 36, "validation": 12, "validation_new": 12, "validation_shared": 0}
    assert found["columns"]["clip-demo"]["classes"]["examples"] == examples
    assert found["class_similarity"]["pictures"] == 36
    assert found["thumbnails"]["examples"] == 12
    assert found["columns"]["vit-demo"]["agreement"]["left_out"].startswith("got an encoder of the family vit;")


def test_where_there_is_no_store_it_is_one_line_and_nothing_is_made(planted: Planted, tmp_path: Path, ask: Ask) -> None:
    nowhere = Planted(table=planted.table, run_dir=tmp_path / "none", corpus=planted.corpus, drawings=planted.drawings)
    status, figures, said = ask(nowhere)
    assert (status, figures) == (2, {})
    assert re.fullmatch(r"error: got no token store in .*/none/tokens; expected .*; run python -m featurize first\n", said)
    assert not (tmp_path / "none").exists()


def test_the_store_of_another_corpus_is_refused(planted: Planted, ask: Ask) -> None:
    status, figures, said = ask(planted, "--limit", "50")
    assert (status, figures) == (2, {})
    assert "with other examples, labels or splits" in said
    assert not (planted.run_dir / "inspection.json").exists()


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--near-copy", "0"), "got --near-copy 0.0; expected above 0 and at most 1"),
        (("--near-copy", "nan"), "got --near-copy nan; expected above 0"),
        (("--thumbnails", "501"), "got --thumbnails 501; expected 0 to 500"),
        (("--thumbnails", "-1"), "got --thumbnails -1;"),
        (("--decode-tflop", "0"), "got --decode-tflop 0.0; expected a number above 0"),
        (("--decode-tflop", "inf"), "got --decode-tflop inf;"),
        (("--decoder", "tinny"), "did you mean 'tiny'?"),
        (("--decoder", "tiny=nowhere"), "check the folder's name"),
        (("--seed", "-1"), "got --seed -1;"),
        (("--near-copi", "1"), "did you mean '--near-copy'?"),
    ],
    ids=str,
)
def test_a_bad_flag_is_one_line(planted: Planted, ask: Ask, flags: tuple[str, ...], told: str) -> None:
    status, figures, said = ask(planted, *flags)
    assert (status, figures) == (2, {})
    assert told in said
    assert len(said.splitlines()) == 1
    assert not (planted.run_dir / "inspection.json").exists()


def test_a_run_that_fails_leaves_the_last_inspection_whole(planted: Planted, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    ask(planted)
    before = (planted.run_dir / "inspection.json").read_bytes()

    def fail(*_: Any) -> None:
        raise InputError(got="a full disk", expected="room", do="make room")

    monkeypatch.setattr(inspect_tokens, "write_json", fail)
    assert ask(planted)[0] == 2
    assert (planted.run_dir / "inspection.json").read_bytes() == before


def test_memory_that_does_not_suffice_is_one_line(drawn: Planted, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(LatentDecoder, "decode", full)
    status, _, said = ask(drawn)
    assert status == 2
    assert "error: got too little memory" in said.splitlines()[-1]


def test_no_model_is_downloaded(drawn: Planted, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    seen: list[bool] = []
    whole = stored_pictures.find_generator

    def watched(*arguments: Any, **how: Any) -> Any:
        seen.append(constants.HF_HUB_OFFLINE)
        return whole(*arguments, **how)

    monkeypatch.setattr(stored_pictures, "find_generator", watched)
    ask(drawn)
    assert seen == [True]
    assert constants.HF_HUB_OFFLINE is False


def _help_s() -> float:
    """Seconds of processor time that --help takes, which other processes on the machine do not lengthen much."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-m", "featurize", "inspect", "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "--thumbnails" in done.stdout
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def test_help_comes_within_half_a_second() -> None:
    assert statistics.median(_help_s() for _ in range(3)) < 0.5
