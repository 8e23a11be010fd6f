"""``python -m featurize inspect`` on planted stores: what is planted is found; what cannot be answered is left out with the reason."""

import io
import json
import re
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from featurize.cli import main
from featurize.encode.encoders import find_encoder
from featurize.generate.decoders import LatentDecoder
from featurize.inspect import command, decoded_images, inspect_store, sample
from featurize.inspect.inspect_store import inspect
from featurize.inspect.inspection import Inspection
from featurize.inspect.sample import take_sample
from featurize.inspect.text_agreement import JointSpace
from featurize.options import FeaturizeOptions, InspectSettings
from featurize.run import featurize_command
from lugpi_core.errors import InputError
from lugpi_core.store.example_table import read_example_table
from lugpi_core.store.reader import ColumnReader
from lugpi_core.store.token_store import TokenStore
from lugpi_core.thumbnails import read_thumbnails
from tests.support.checkout import ROOT
from tests.support.planted_store import Planted, plant, plant_column, plant_latents, plant_telling, telling_tokens
from tests.support.shards import shard_file
from tests.support.small_clip import CPU, class_tokens_like, clip_folder

# Exit status, figures of the last line, and what was printed for a person.
Result = tuple[int, dict[str, Any], str]
Run = Callable[..., Result]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """With models this small two threads wait for each other longer than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Inspect a planted store."""

    def run_command(planted: Planted, *flags: str) -> Result:
        capsys.readouterr()
        status = main(["inspect", *planted.flags, *flags])
        captured = capsys.readouterr()
        return status, json.loads(captured.out) if captured.out else {}, captured.err

    return run_command


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """A store with a column that predicts the class, ``telling``, and one that does not, ``silent``. It has no latents."""
    return plant_telling(tmp_path_factory.mktemp("planted"))


@pytest.fixture
def planted(original: Planted, tmp_path: Path) -> Planted:
    """A copy of it."""
    return _copy(original, tmp_path)


@pytest.fixture(scope="module")
def original_with_latents(original: Planted, tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """The same with latents that are similar within a class."""
    copy = _copy(original, tmp_path_factory.mktemp("latents"))
    plant_latents(copy, by_class=True)
    return copy


@pytest.fixture
def with_latents(original_with_latents: Planted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Planted:
    """A copy of it. Few images are decoded for the similarity of classes."""
    monkeypatch.setattr(inspect_store, "MOST_CLASS_IMAGES", 12)
    return _copy(original_with_latents, tmp_path)


def _copy(planted: Planted, folder: Path) -> Planted:
    run_dir = Path(shutil.copytree(planted.run_dir, folder / "run"))
    return Planted(table=planted.table, run_dir=run_dir, corpus=planted.corpus, drawings=planted.drawings)


@pytest.fixture(scope="module")
def found(original: Planted) -> Inspection:
    """The inspection of the store without latents."""
    return inspect(original.run_dir / "tokens", original.corpus, settings=InspectSettings(device="cpu"))


def test_a_column_that_predicts_the_class_differs_from_one_that_does_not(found: Inspection) -> None:
    telling, silent = (found.read_columns[name] for name in ("telling", "silent"))
    assert telling.verdict is not None
    assert silent.verdict is not None
    assert (telling.verdict.level, silent.verdict.level) == ("knows", "chance")
    classes = found.to_json()["columns"]["telling"]["classes"]
    assert classes["probe"]["accuracy"] > 0.9
    assert found.to_json()["columns"]["silent"]["classes"]["probe"]["accuracy"] < 0.6
    without_failed = {"train": 89, "validation": 59, "validation_new": 59, "validation_shared": 0}
    assert classes["examples"] == without_failed
    assert classes["chance"]["uniform"] == pytest.approx(1 / 3)
    assert found.verdict.level == "knows"
    assert "telling: the images predict the class (p = .001); linear probe accuracy " in found.summary()
    assert "silent: 180 images, 0 failed\n  linear probe: accuracy " in found.summary()


def test_near_duplicates_cut_prompts_and_failures_are_counted(found: Inspection, original: Planted) -> None:
    telling, silent = (found.to_json()["columns"][name] for name in ("telling", "silent"))
    copies = telling["near_copies"]
    assert (copies["test_drawings"], copies["test_copies_of_train"], copies["lower_bound"]) == (30, 3, False)
    assert round(copies["share"] * copies["drawings"]) == 6
    assert copies["drawings"] == 178
    assert silent["near_copies"]["test_copies_of_train"] == 0
    assert (telling["flagged"], silent["flagged"]) == (2, 0)
    assert telling["flagged_share"] == 2 / 180
    assert found.prompts_cut.to_json() == {
        "count": 4,
        "share": 4 / 180,
        "share_by_split": {"train": 3 / 90, "validation": 1 / 60, "test": 0.0},
    }
    assert "near-duplicates of a train image: 3 of 30 test images" in found.summary()
    assert "2.2 % of the prompts were cut" in found.summary()
    strict = inspect(original.run_dir / "tokens", original.corpus, settings=InspectSettings(device="cpu", near_copy=0.1))
    assert strict.to_json()["columns"]["silent"]["near_copies"]["share"] > 0.9


def test_the_command_prints_the_summary_and_writes_its_last_line(planted: Planted, found: Inspection, run: Run) -> None:
    status, figures, printed = run(planted)
    assert status == 0
    assert json.loads((planted.run_dir / "inspection.json").read_text()) == figures
    assert figures["command"] == "inspect"
    assert figures["corpus"] == planted.corpus.fingerprint()
    assert figures["config"]["near_copy"] == 0.98
    assert figures["examples"]["train"] == {"looked_at": 90, "of": 90}
    assert {"compute", "times", "peak_memory", "provenance", "inspection"} <= figures.keys()
    assert figures["columns"] == found.to_json()["columns"]
    assert f"{planted.run_dir / 'tokens'}: 90 of 90 train, 60 of 60 validation, 30 of 30 test examples inspected\n" in printed
    assert printed.count("\n") == found.summary().count("\n") + 1


def test_an_earlier_runs_record_has_the_same_keys_and_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store of an earlier run gives the figures under the keys of its own inspection.json; only sentences differ."""
    with tarfile.open(ROOT / "tests" / "fixtures" / "earlier-run.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    path = Path("runs/topics/inspection.json")
    old = json.loads(path.read_text())
    assert main(["inspect", "--dataset", "topics.csv", "--split-column", "split", "--thumbnails", "0"]) == 0
    new = json.loads(path.read_text())
    new["config"] = {flag: new["config"][flag] for flag in old["config"]}  # flags may be added
    assert _shape(new) == _shape(old)
    for sentence in (old, new):
        sentence["columns"]["vit-demo"]["verdict"].pop("words")
        sentence["columns"]["vit-demo"].pop("agreement")
        for words in ("words", "reasons"):
            sentence["verdict"].pop(words)
        for passing in ("times", "peak_memory", "provenance", "compute", "notice"):
            sentence.pop(passing)
    assert _rounded(new) == _rounded(old)


def _shape(value: Any) -> Any:
    """Return the keys of nested objects."""
    if isinstance(value, dict):
        return {key: _shape(item) for key, item in value.items() if key not in ("versions", "peak_memory")}
    return type(value).__name__ if not isinstance(value, float) else "number"


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(value, 4) if isinstance(value, float) else value


def _repeatable(figures: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in figures.items() if name not in ("times", "peak_memory", "provenance")}


def test_the_figures_follow_the_seed_and_the_tokens_stay_untouched(with_latents: Planted, run: Run) -> None:
    def state() -> dict[str, tuple[int, bytes]]:
        files = sorted(path for path in (with_latents.run_dir / "tokens").rglob("*") if path.is_file())
        return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}

    def thumbnails() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (with_latents.run_dir / "thumbnails").iterdir()}

    before = state()
    first = run(with_latents, "--thumbnails", "5")[1]
    images = thumbnails()
    again = run(with_latents, "--thumbnails", "5")[1]
    assert _repeatable(first) == _repeatable(again)
    assert thumbnails() == images
    assert state() == before
    other = run(with_latents, "--seed", "1", "--thumbnails", "0")[1]
    assert other["columns"]["silent"]["classes"]["knn"]["shuffled_mean"] != first["columns"]["silent"]["classes"]["knn"]["shuffled_mean"]


def test_classes_with_similar_images_are_found(original_with_latents: Planted, tmp_path: Path) -> None:
    settings = InspectSettings(device="cpu", thumbnails=0)
    alike = inspect(original_with_latents.run_dir / "tokens", original_with_latents.corpus, settings=settings).to_json()
    assert (alike["class_similarity"]["classes"], alike["class_similarity"]["pictures"]) == (3, 90)
    assert alike["class_similarity"]["p"] <= 0.01
    other = plant(tmp_path / "other", counts=(36, 6, 3))
    plant_latents(other, by_class=False)
    unlike = inspect(other.run_dir / "tokens", other.corpus, settings=settings).to_json()["class_similarity"]
    assert abs(unlike["within"] - unlike["between"]) < 0.1 * unlike["between"] + 0.01
    assert [{left, right} < set("abc") for left, right, _ in unlike["most_alike"]] == [True] * 3


def test_thumbnails_are_the_images_of_their_test_examples(with_latents: Planted, run: Run) -> None:
    from PIL import Image

    _, figures, printed = run(with_latents, "--thumbnails", "7")
    thumbnails = read_thumbnails(with_latents.run_dir / "thumbnails", with_latents.corpus.fingerprint())
    assert len(thumbnails) == figures["thumbnails"]["examples"] == 7
    assert set(thumbnails) <= set(with_latents.corpus.rows("test"))
    assert figures["thumbnails"]["bytes"] == sum(map(len, thumbnails.values()))
    path = with_latents.run_dir / "drawings.png"
    assert figures["thumbnails"]["sheet"] == str(path)
    assert f"thumbnails of 7 test examples, 0.01 MB: {with_latents.run_dir / 'thumbnails'}; the first in a grid: {path}" in printed
    index = json.loads((with_latents.run_dir / "thumbnails" / "index.json").read_text())
    assert index["generator"] == "demo"
    assert len(ColumnReader(with_latents.run_dir / "tokens", "latents")) == 180
    images = decoded_images.DecodedImages(with_latents.run_dir / "tokens", "full", CPU)
    _, expected = images.decode(with_latents.drawing[list(thumbnails)], 128)
    for data, image in zip(thumbnails.values(), expected, strict=True):
        shown = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(float) / 255
        distances = [float(np.abs(shown - other.permute(1, 2, 0).numpy()).mean()) for other in expected]
        assert min(distances) == pytest.approx(float(np.abs(shown - image.permute(1, 2, 0).numpy()).mean()))
    with Image.open(path) as grid:
        assert (grid.format, grid.size) == ("PNG", (8 * 140, 186))  # one row of eight, of which seven are used
        assert grid.crop((7 * 140, 0, 8 * 140, 186)).getextrema() == ((255, 255),) * 3
        assert grid.crop((6 * 140, 4, 7 * 140, 132)).getextrema() != ((255, 255),) * 3
        assert grid.crop((6 * 140, 133, 7 * 140, 186)).getextrema() != ((255, 255),) * 3


def test_no_thumbnails_leaves_existing_ones(with_latents: Planted, run: Run) -> None:
    _without_tokens(with_latents)
    run(with_latents, "--thumbnails", "3")
    _, figures, printed = run(with_latents, "--thumbnails", "0")
    assert figures["thumbnails"] == {"left_out": "--thumbnails 0"}
    assert "thumbnails left out: --thumbnails 0" in printed
    assert len(read_thumbnails(with_latents.run_dir / "thumbnails", with_latents.corpus.fingerprint())) == 3


def _without_tokens(planted: Planted) -> None:
    for name in ("telling", "silent"):
        shutil.rmtree(planted.run_dir / "tokens" / name)


def test_the_tiny_decoder_gives_other_images(with_latents: Planted, run: Run) -> None:
    full = run(with_latents, "--thumbnails", "3")[1]
    before = read_thumbnails(with_latents.run_dir / "thumbnails", with_latents.corpus.fingerprint())
    tiny = run(with_latents, "--thumbnails", "3", "--decoder", "tiny")[1]
    after = read_thumbnails(with_latents.run_dir / "thumbnails", with_latents.corpus.fingerprint())
    assert list(before) == list(after)
    assert before != after
    assert full["class_similarity"]["within"] != tiny["class_similarity"]["within"]
    assert full["columns"] == tiny["columns"]


@pytest.mark.filterwarnings("default:at most")
def test_decoding_keeps_to_the_work_allowed(with_latents: Planted, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspect_store, "MOST_CLASS_IMAGES", 280)
    _without_tokens(with_latents)
    decoded: list[int] = []
    decode = LatentDecoder.decode

    def watched(self: LatentDecoder, latents: torch.Tensor) -> torch.Tensor:
        decoded.append(len(latents))
        return decode(self, latents)

    monkeypatch.setattr(LatentDecoder, "decode", watched)
    flops = decoded_images.DecodedImages(with_latents.run_dir / "tokens", "full", CPU).flops
    _, figures, printed = run(with_latents, "--decode-tflop", str(20.5 * flops / 1e12))
    assert (figures["thumbnails"]["examples"], figures["class_similarity"]["pictures"]) == (10, 9)  # three of each class
    assert sum(decoded) == 19
    assert "warning: at most 20 images are decoded" in printed
    _, figures, printed = run(with_latents, "--decode-tflop", str(0.5 * flops / 1e12))
    assert "one image is more work" in figures["thumbnails"]["left_out"]
    assert "fewer than two classes" in figures["class_similarity"]["left_out"]


def test_without_latents_the_images_are_left_out(found: Inspection, original: Planted) -> None:
    figures = found.to_json()
    assert "without latents" in figures["thumbnails"]["left_out"]
    assert "without latents" in figures["class_similarity"]["left_out"]
    assert "thumbnails left out: got " in found.summary()
    assert not (original.run_dir / "thumbnails").exists()


def test_a_store_of_latents_alone_still_has_images(with_latents: Planted, run: Run) -> None:
    _without_tokens(with_latents)
    status, figures, _ = run(with_latents, "--thumbnails", "5")
    assert (status, figures["columns"], figures["thumbnails"]["examples"]) == (0, {}, 5)
    assert figures["verdict"]["words"] == "cannot tell whether the images predict the class: no column of tokens could be read"


def test_a_column_that_cannot_be_read_is_reported_and_the_others_inspected(planted: Planted, run: Run) -> None:
    shard_file(planted.run_dir / "tokens" / "silent", 1).unlink()
    plant_column(planted, "of-others", np.ones((10, 2, 3)))
    plant_column(planted, "flat", np.ones((180, 3)))
    status, figures, printed = run(planted)
    assert status == 0
    assert "shard-00001-" in figures["columns"]["silent"]["left_out"]
    assert "got 10 rows of 2 × 3; expected tokens [T, D] of 180 images" in figures["columns"]["of-others"]["left_out"]
    assert "got 180 rows of 3;" in figures["columns"]["flat"]["left_out"]
    assert "silent: left out: got " in printed
    assert figures["verdict"]["level"] == "knows"


def test_values_that_are_not_finite_count_as_failures(planted: Planted, run: Run) -> None:
    _without_tokens(planted)
    tokens = telling_tokens(planted.labels, strength=1.5)
    tokens[::4] = np.nan
    plant_column(planted, "sick", tokens)
    column = run(planted)[1]["columns"]["sick"]
    assert column["classes"]["examples"]["train"] == 67
    assert column["near_copies"]["drawings"] == 135
    assert column["verdict"]["level"] == "knows"


def test_a_column_of_failures_alone_is_left_out(planted: Planted, run: Run) -> None:
    _without_tokens(planted)
    plant_column(planted, "failed", np.ones((180, 2, 3)), flagged=range(180))
    column = run(planted)[1]["columns"]["failed"]
    assert column["classes"]["left_out"] == "too many images failed"
    assert column["near_copies"]["left_out"] == "fewer than two images are usable"
    assert "verdict" not in column


def test_validation_images_that_train_shares_are_not_scored(tmp_path: Path, run: Run) -> None:
    prompts = [f"picture {n % 90}" if n < 120 else f"picture {n}" for n in range(180)]  # half of validation has train's prompts
    shared = plant(tmp_path, prompts=prompts)
    plant_column(shared, "clip", telling_tokens(shared.labels, strength=0.0))
    classes = run(shared)[1]["columns"]["clip"]["classes"]
    assert classes["examples"] == {"train": 90, "validation": 30, "validation_new": 30, "validation_shared": 30}


def test_of_several_images_of_a_text_the_first_is_inspected(tmp_path: Path, run: Run) -> None:
    planted = plant(tmp_path, images_per_text=2)
    tokens = telling_tokens(planted.labels, strength=1.5)
    tokens[1::2] = telling_tokens(planted.labels, strength=0.0)[1::2]
    plant_column(planted, "clip", tokens)
    column = run(planted)[1]["columns"]["clip"]
    assert column["verdict"]["level"] == "knows"
    assert (column["drawings"], column["near_copies"]["drawings"]) == (360, 180)


def test_texts_and_images_are_compared_with_the_text_tower(tmp_path: Path, run: Run) -> None:
    files = find_encoder(str(clip_folder(tmp_path / "small-clip")))
    planted = plant(tmp_path / "corpus")
    prompts = dict(zip(planted.drawing.tolist(), (example.prompt for example in planted.corpus.examples), strict=True))
    space = JointSpace(files, CPU)
    class_tokens = class_tokens_like(space, space.embed_texts([prompts[drawing] for drawing in range(len(prompts))])).numpy()
    tokens = np.stack([class_tokens, np.random.default_rng(0).normal(size=class_tokens.shape)], axis=1)
    made_by = {"generator": "demo", "encoders": [str(files.folder)]}
    plant_column(planted, "small-clip", tokens, fingerprint={"encoder": files.fingerprint()}, made_by=made_by)
    plant_column(planted, "gone", tokens, fingerprint={"encoder": {**files.fingerprint(), "name": "gone"}}, made_by=made_by)
    status, figures, printed = run(planted)
    agreement = figures["columns"]["small-clip"]["agreement"]
    assert status == 0
    assert agreement["texts"] == 180
    assert agreement["own_is_nearer"] > 0.99
    assert "  the images agree with their texts: a text is nearer to its own image than to another in " in printed
    assert "no featurize command wrote" in figures["columns"]["gone"]["agreement"]["left_out"]
    assert "  agreement with the texts left out: got a column 'gone'" in printed


def test_a_large_corpus_is_sampled_by_class(with_latents: Planted, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "MOST", {"train": 30, "validation": 21, "test": 9})
    _, figures, printed = run(with_latents)
    assert figures["examples"] == {
        "train": {"looked_at": 30, "of": 90},
        "validation": {"looked_at": 21, "of": 60},
        "test": {"looked_at": 9, "of": 30},
    }
    assert figures["capped"]
    assert "30 of 90 train, 21 of 60 validation, 9 of 30 test examples inspected (a random sample)" in printed
    assert figures["columns"]["telling"]["near_copies"]["lower_bound"]
    assert figures["thumbnails"]["examples"] == 9
    table = read_example_table(with_latents.run_dir / "tokens", with_latents.corpus)
    taken = take_sample(with_latents.corpus, table, 0)
    assert {split: np.bincount(labels).tolist() for split, labels in taken.labels.items()} == {
        "train": [10, 10, 10],
        "validation": [7, 7, 7],
        "test": [3, 3, 3],
    }
    for split, rows in taken.rows.items():
        assert set(rows.tolist()) <= set(with_latents.corpus.rows(split))  # type: ignore[arg-type]
        assert np.array_equal(taken.drawings[taken.places[split]], table.drawing[rows])


def test_without_labels_no_question_about_classes_is_asked(small_run: Path, small_csv: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(small_run, tmp_path / "run"))
    unlabelled = tmp_path / "more.txt"
    unlabelled.write_text("".join(f"another text {n}\n" for n in range(6)))
    options: dict[str, Any] = {"dataset": str(small_csv), "split_column": "split", "generator": "demo", "encoders": ("vit-demo",)}
    featurize_command(FeaturizeOptions(**options, steps=1, run_dir=run, unlabelled=unlabelled))
    flags = ("--dataset", str(small_csv), "--split-column", "split", "--run-dir", str(run), "--unlabelled", str(unlabelled))
    assert main(["inspect", *flags]) == 0
    figures = json.loads((run / "inspection-more.json").read_text())
    column = figures["columns"]["vit-demo"]
    assert column["classes"]["left_out"] == figures["class_similarity"]["left_out"] == "these texts have no labels"
    assert column["near_copies"]["drawings"] == 6
    assert figures["thumbnails"]["left_out"] == "there is no test example"
    assert figures["verdict"]["words"] == "cannot tell whether the images predict the class: these texts have no labels"
    assert not (run / "inspection.json").exists()
    assert not (run / "thumbnails").exists()


def test_a_store_written_by_featurize_is_inspected_from_end_to_end(small_run: Path, small_csv: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(small_run, tmp_path / "run"))
    assert main(["inspect", "--dataset", str(small_csv), "--split-column", "split", "--run-dir", str(run)]) == 0
    figures = json.loads((run / "inspection.json").read_text())
    assert sorted(figures["columns"]) == ["clip-demo", "vit-demo"]
    examples = {"train": 36, "validation": 12, "validation_new": 12, "validation_shared": 0}
    assert figures["columns"]["clip-demo"]["classes"]["examples"] == examples
    assert figures["class_similarity"]["pictures"] == 36
    assert figures["thumbnails"]["examples"] == 12
    assert figures["columns"]["vit-demo"]["agreement"]["left_out"].startswith("got an encoder of the family vit;")


def test_from_python_a_path_or_an_open_store_is_inspected(with_latents: Planted, tmp_path: Path) -> None:
    shutil.rmtree(with_latents.run_dir / "tokens" / "silent")
    store = TokenStore(with_latents.run_dir / "tokens")
    settings = InspectSettings(device="cpu", thumbnails=2)
    by_path = inspect(str(store.path), with_latents.corpus, settings=settings, run_dir=tmp_path / "elsewhere")
    opened = inspect(store, with_latents.corpus, settings=settings)
    assert by_path.columns == opened.columns
    assert by_path.class_similarity == opened.class_similarity
    assert (with_latents.run_dir / "drawings.png").read_bytes() == (tmp_path / "elsewhere" / "drawings.png").read_bytes()
    assert not (with_latents.run_dir / "inspection.json").exists()


def test_without_a_store_it_is_a_one_line_error(planted: Planted, tmp_path: Path, run: Run) -> None:
    nowhere = Planted(table=planted.table, run_dir=tmp_path / "none", corpus=planted.corpus, drawings=planted.drawings)
    status, figures, printed = run(nowhere)
    assert (status, figures) == (2, {})
    assert re.fullmatch(r"error: got no token store in .*/none/tokens; expected .*; run python -m featurize first\n", printed)
    assert not (tmp_path / "none").exists()


def test_the_store_of_another_corpus_is_refused(planted: Planted, run: Run) -> None:
    status, figures, printed = run(planted, "--limit", "50")
    assert (status, figures) == (2, {})
    assert "with other examples, labels or splits" in printed
    assert not (planted.run_dir / "inspection.json").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
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
        (("--limit", "2"), "got --limit 2;"),
        (("--near-copi", "1"), "did you mean '--near-copy'?"),
    ],
    ids=str,
)
def test_a_bad_flag_is_a_one_line_error(planted: Planted, run: Run, flags: tuple[str, ...], message: str) -> None:
    status, figures, printed = run(planted, *flags)
    assert (status, figures) == (2, {})
    assert message in printed
    assert len(printed.splitlines()) == 1
    assert not (planted.run_dir / "inspection.json").exists()


def test_a_failed_run_leaves_the_last_inspection_whole(planted: Planted, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run(planted)
    before = (planted.run_dir / "inspection.json").read_bytes()

    def fail(*_: Any) -> None:
        raise InputError(got="a full disk", expected="room", do="make room")

    monkeypatch.setattr(command, "write_json", fail)
    assert run(planted)[0] == 2
    assert (planted.run_dir / "inspection.json").read_bytes() == before


def test_too_little_memory_is_a_one_line_error(with_latents: Planted, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(LatentDecoder, "decode", full)
    status, _, printed = run(with_latents)
    assert status == 2
    assert "error: got too little memory" in printed.splitlines()[-1]


def test_no_model_is_downloaded(with_latents: Planted, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    is_offline: list[bool] = []
    find_generator = decoded_images.find_generator

    def watched(*arguments: Any, **how: Any) -> Any:
        is_offline.append(constants.HF_HUB_OFFLINE)
        return find_generator(*arguments, **how)

    monkeypatch.setattr(decoded_images, "find_generator", watched)
    _without_tokens(with_latents)
    run(with_latents, "--thumbnails", "1")
    assert is_offline == [True]
    assert constants.HF_HUB_OFFLINE is False
