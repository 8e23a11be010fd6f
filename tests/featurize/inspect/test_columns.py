"""Inspected columns of planted tokens: what is planted is found; what cannot be answered is left out with the reason."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featurize.cli import main
from featurize.encode.encoders import find_encoder
from featurize.encode.joint_space import JointSpace
from featurize.generate.generators import find_generator, generator_settings
from featurize.inspect import sample
from featurize.inspect.inspect_store import inspect
from featurize.inspect.inspection import Inspection
from featurize.inspect.sample import take_sample
from featurize.options import FeaturizeOptions, InspectSettings
from featurize.plan.keywords import keyword_prompts
from featurize.plan.prompt_reader import prompt_reader
from featurize.plan.words import passages_of
from featurize.run import featurize_command
from lugpi_core.store.example_table import read_example_table
from lugpi_core.store.layout import PROMPT_TEXT
from tests.support.planted_store import Planted, Run, plant, plant_column, telling_tokens, without_tokens
from tests.support.shards import shard_file
from tests.support.small_clip import CPU, class_tokens_like, clip_folder


def test_a_column_that_predicts_the_class_differs_from_one_that_does_not(found: Inspection, original: Planted) -> None:
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
    assert telling.bytes_per_image == telling_tokens(original.labels, strength=0.0)[0].astype(np.float16).nbytes
    transports = [found.to_json()["columns"][name]["transport"] for name in ("telling", "silent")]
    assert transports[0]["p"] == 0.005
    assert transports[1]["p"] > 0.05
    assert found.verdict.level == "knows"
    assert "telling: the images predict the class (p = .001); linear probe accuracy " in found.summary()
    assert f"silent: 180 images of {silent.bytes_per_image:,} bytes, 0 failed\n  linear probe: accuracy " in found.summary()


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
    assert "2.2 % of the texts had a prompt cut" in found.summary()
    strict = inspect(original.run_dir / "tokens", original.corpus, settings=InspectSettings(device="cpu", near_copy=0.1))
    assert strict.to_json()["columns"]["silent"]["near_copies"]["share"] > 0.9


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
    without_tokens(planted)
    tokens = telling_tokens(planted.labels, strength=1.5)
    tokens[::4] = np.nan
    plant_column(planted, "sick", tokens)
    column = run(planted)[1]["columns"]["sick"]
    assert column["classes"]["examples"]["train"] == 67
    assert column["near_copies"]["drawings"] == 135
    assert column["verdict"]["level"] == "knows"


def test_a_column_of_failures_alone_is_left_out(planted: Planted, run: Run) -> None:
    without_tokens(planted)
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


@pytest.mark.parametrize("strategy", ["chunks", "keywords"])
def test_an_image_is_compared_with_its_own_prompt(strategy: str, tmp_path: Path, run: Run) -> None:
    files = find_encoder(str(clip_folder(tmp_path / "small-clip")))
    letters = "abcdefghijklmnopqrst"
    texts = [f"the {first}{second} sees 7 and 7 and 7, then the {second}{first} runs" for first in letters for second in letters][:180]
    planted = plant(tmp_path / "corpus", prompts=texts, images_per_text=2)
    generator = find_generator("demo", generator_settings("demo", {}), half=False)
    prompts = (
        [passages_of(text, 2)[0] for text in texts]
        if strategy == "chunks"
        else keyword_prompts(texts, texts[:90], prompt_reader(generator))
    )
    assert set(prompts).isdisjoint(texts)
    space = JointSpace(files, CPU)
    class_tokens = np.repeat(class_tokens_like(space, space.embed_texts(prompts)).numpy(), 2, axis=0)
    class_tokens[1::2] = np.random.default_rng(0).normal(size=class_tokens[1::2].shape)
    plant_column(
        planted,
        "small-clip",
        np.stack([class_tokens, class_tokens], axis=1),
        fingerprint={"encoder": files.fingerprint(), "generation": {"dtype": "float32", "generator": generator.fingerprint()}},
        made_by={"generator": "demo", "encoders": [str(files.folder)], "prompts": strategy},
    )
    agreement = run(planted)[1]["columns"]["small-clip"]["agreement"]
    assert agreement["texts"] == 180
    assert agreement["matching"] > 0.999


def test_keywords_whose_generator_is_out_of_reach_are_not_compared(tmp_path: Path, run: Run) -> None:
    files = find_encoder(str(clip_folder(tmp_path / "small-clip")))
    planted = plant(tmp_path / "corpus")
    tokens = telling_tokens(planted.labels, strength=0.0)
    made_by = {"encoders": [str(files.folder)], "prompts": "keywords"}
    plant_column(planted, "small-clip", tokens, fingerprint={"encoder": files.fingerprint()}, made_by=made_by)
    agreement = run(planted)[1]["columns"]["small-clip"]["agreement"]
    assert agreement["left_out"].startswith("got small-clip without a record of their generator")


def test_a_store_of_text_vectors_alone_is_told_as_what_it_is(tmp_path: Path, run: Run) -> None:
    planted = plant(tmp_path)
    plant_column(planted, PROMPT_TEXT, telling_tokens(planted.labels, strength=1.5), fingerprint={"text_encoder": {"name": "demo"}})
    status, figures, printed = run(planted)
    assert (status, figures["columns"]) == (0, {})
    assert figures["verdict"]["words"] == "cannot tell whether the images predict the class: the store has no tokens of images"
    reason = (
        f"got {planted.run_dir / 'tokens'} with text vectors of the generator and no images; expected images; "
        "run featurize with an image encoder among --encoders to generate them"
    )
    assert figures["thumbnails"]["left_out"] == figures["class_similarity"]["left_out"] == reason
    assert "--no-latents" not in printed


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
