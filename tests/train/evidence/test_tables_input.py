"""Bad input to ``python -m train tables``: an error in one line, before anything is trained."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lugpi_core.corpora.corpus import Corpus
from lugpi_core.errors import InputError
from lugpi_core.store.clip_scores import ClipScores, content_of, write_clip_scores
from lugpi_core.store.manifest import load_manifest
from tests.support.checkout import ROOT
from tests.support.planted_store import Planted, plant, plant_column, plant_unlabelled, telling_tokens, write_table
from tests.support.shards import shard_file
from tests.support.small_tables import fake_model, flags, scores, words
from train.cli import main
from train.evidence.compare import compare
from train.evidence.tables import tables
from train.options.settings import DistillationSettings, Optimization, SeveralImages
from train.options.tables import TablesOptions

Make = Callable[..., TablesOptions]


@pytest.fixture
def make(small_csv: Path, tmp_path: Path) -> Make:
    """Make the options of tables in a run of the test's own."""
    return lambda **more: TablesOptions(**flags(small_csv, tmp_path / "run", **more))


def error_of(run: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The error of ``tables --no-train`` on a run."""
    capsys.readouterr()
    assert main(["tables", "--dataset", "topics.csv", "--run-dir", str(run), "--no-train"]) == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning: ")]
    return error


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metrics.json", "{}", "metrics.json without command, config"),
        ("metrics.json", "[]", "metrics.json without any name in it"),
        ("training.json", "{}", "training.json without command, flags"),
        ("training.json", "[1]", "training.json without any name in it"),
        ("training.json", '{"command": "student", "flags": {"seed": 0}}', "training.json without distillation, layers, shares, unlabelled"),
        ("predictions.csv", "", "predictions.csv, damaged (empty)"),
    ],
)
def test_an_incomplete_record_is_an_error_of_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, text: str, message: str
) -> None:
    folder = fake_model(tmp_path, "baseline", scores(300), command="baseline")
    (folder / name).write_text(text)
    assert message in error_of(tmp_path, capsys)


def test_lost_or_doubled_predictions_are_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = fake_model(tmp_path, "baseline", scores(300), command="baseline") / "predictions.csv"
    whole = path.read_text().splitlines(keepends=True)
    path.write_text("".join(whole[:-8]))
    assert "predictions.csv with 392 test examples; expected 400, as its metrics.json say" in error_of(tmp_path, capsys)
    path.write_text("".join([*whole, whole[-1]]))
    assert "predictions.csv with 401 test examples; expected 400" in error_of(tmp_path, capsys)
    path.write_text("".join(whole[1:]))
    assert "damaged (a first line 'train/0," in error_of(tmp_path, capsys)
    path.write_text(whole[0] + '"' + "".join(whole[1:]) * 20)
    assert "predictions.csv, damaged" in error_of(tmp_path, capsys)


def test_a_folder_in_place_of_a_file_is_an_error_of_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake_model(tmp_path, "baseline", scores(300), command="baseline")
    (tmp_path / "tables.json").mkdir()
    assert "tables.json: " in error_of(tmp_path, capsys)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--rows", "student-non"), "did you mean 'student-none'"),
        (("--kd-preset", "hinton", "--rows", "student-vit-demo-ce"), "did you mean 'student-vit-demo'"),
        (("--rows", "table3"), "did you mean 'table2'"),
        (("--seeds", "0"), "--seeds 0"),
        (("--name", "x"), "got the flag --name; expected a flag of python -m train tables"),
        (("--columns", "vit-dem"), "did you mean 'vit-demo'"),
        (("--columns", "latents"), "--columns latents"),
        (("--hard", "0", "--alpha", "0", "--beta", "0"), "at least one positive weight"),
        (("--text-model", "no/such-model"), "no/such-model"),
        (("--max-length", "4000"), "2 to 128"),
        (("--image-tokens", "clip-demo"), "--image-tokens"),
        (("--limit", "30"), "other examples, prompts, labels or splits"),
        (("--optimiser", "adamw"), "did you mean '--optimizer'"),
        (("--seed", "2147483646"), "got --seed 2147483646 for 3 seeds, the last of which is 2147483648; expected seeds of 0 to 2147483647"),
        (
            ("--seed", "2147481648", "--seeds", "1", "--ensemble", "3"),
            "with seeds up to 2147481648, whose last teacher has the seed 2147483648",
        ),
        (("--folds", "13", "--rows", "baseline", "folds"), "got --folds 13 for 12 different train texts of class"),
        (("--embedding-loss", "infonce", "--batch-size", "1", "--rows", "student-none"), "expected two texts or more in each forward pass"),
        (("--freeze-layers", "9", "--rows", "images-clip-demo", "teacher-none"), "got --freeze-layers 9; expected 0 to 2"),
    ],
)
def test_bad_input_is_an_error_of_one_line(
    small_csv: Path, small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], message: str
) -> None:
    (tmp_path / "tokens").symlink_to(small_run / "tokens")
    given = flags(small_csv, tmp_path)
    if "--text-model" in more:
        del given["text_model"]
    capsys.readouterr()
    assert main(["tables", *words(given), *more]) == 2
    printed = capsys.readouterr()
    errors = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, printed.err
    assert message in errors[0]
    assert printed.out == ""
    assert not list(tmp_path.glob("*/training.json"))


def test_rows_with_images_need_a_store(make: Make) -> None:
    with pytest.raises(InputError, match=r"no image tokens.*run python -m featurize first.*--rows baseline teacher-none student-none"):
        tables(make(rows=("all",)))
    with pytest.raises(InputError, match=r"--columns clip-demo.*run python -m featurize first"):
        tables(make(columns=("clip-demo",)))
    assert not list(make().run.glob("*/training.json"))


def test_a_missing_corpus_is_reported_before_anything_else(make: Make, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.csv"):
        tables(make(dataset=str(tmp_path / "nowhere.csv"), rows=("all",)))


def test_a_store_with_a_missing_shard_is_refused(make: Make, small_run: Path) -> None:
    options = make(rows=("table1",))
    shutil.copytree(small_run / "tokens", options.run / "tokens")
    shard_file(options.run / "tokens" / "vit-demo", 1).unlink()
    with pytest.raises(InputError, match=r"shard-00001-\w+\.h5: missing"):
        tables(options)
    assert not list(options.run.glob("*/training.json"))


SRUN = {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_ID": "0", "SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "a"}


@pytest.mark.parametrize("environment", [{"WORLD_SIZE": "2"}, SRUN])
def test_launchers_of_several_processes_are_refused(make: Make, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="CUDA_VISIBLE_DEVICES"):
        tables(make(rows=("baseline",)))


def test_the_list_of_commands_has_whole_sentences(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    listed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert len(listed) == 10
    assert [line for line in listed if not line.endswith(".")] == []


def test_tables_are_printed_where_they_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake_model(tmp_path, "baseline", scores(300), command="baseline")
    (tmp_path / "tables.md").mkdir()
    assert main(["tables", "--dataset", "topics.csv", "--run-dir", str(tmp_path), "--no-train", "--seeds", "1"]) == 2
    assert capsys.readouterr().out.startswith("# topics: 1 model, ")


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom train.cli import main\nassert main(['tables', '--help']) == 0\n"
        "heavy = {'torch', 'transformers', 'h5py', 'numpy', 'scipy', 'sklearn'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "--no-train" in done.stdout


def test_settings_that_no_train_does_not_compare_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["tables", "--dataset", "topics.csv", "--run-dir", str(tmp_path), "--no-train", "--seeds", "1"]
    assert main([*words, "--text-model", "demo", "--epochs", "3"]) == 2
    assert "whatever it was trained with; not compared: --epochs, --text-model\n" in capsys.readouterr().err
    assert main(words) == 2
    assert "not compared" not in capsys.readouterr().err


def test_images_without_clip_scores_are_no_weighted_ones(tmp_path: Path) -> None:
    planted = plant(tmp_path, counts=(12, 6, 6), images_per_text=2)
    plant_column(planted, "telling", telling_tokens(planted.labels, strength=1.0))
    weighted = Optimization(epochs=1, several_images="weighted")
    with pytest.raises(InputError, match="without CLIP scores"):
        compare(planted.corpus, planted.run_dir, rows=("baseline", "teacher-telling"), seeds=1, text_model="demo", optimization=weighted)
    assert not list(planted.run_dir.glob("*/training.json"))


def plant_scores(planted: Planted, encoder: str) -> None:
    """Plant two images of each text, and their scores."""
    tokens = planted.run_dir / "tokens"
    plant_column(planted, "telling", telling_tokens(planted.labels, strength=1.0))
    scores = ClipScores(
        column="telling",
        encoder=encoder,
        content=content_of(load_manifest(tokens / "telling")[1]),
        corpus_fingerprint=planted.corpus.fingerprint(),
        logit_scale=10.0,
        scores_NK=np.zeros(planted.drawings.shape, np.float32),
    )
    write_clip_scores(tokens, scores)


def test_what_teachers_cannot_read_of_unlabelled_texts_is_refused_before_they_are_trained(tmp_path: Path) -> None:
    planted = plant(tmp_path, counts=(12, 6, 6), images_per_text=2)
    plant_scores(planted, "a" * 32)
    extra = Corpus.from_texts([f"new {n}" for n in range(4)], name="more")

    def expect_error(message: str, several_images: SeveralImages = "drawn") -> None:
        optimization = Optimization(epochs=1, several_images=several_images)
        rows: dict[str, Any] = {"rows": ("student-telling-more",), "seeds": 1, "unlabelled": extra}
        with pytest.raises(InputError, match=message):
            compare(planted.corpus, planted.run_dir, text_model="demo", optimization=optimization, **rows)
        assert not list(planted.run_dir.glob("*/training.json"))

    plant_unlabelled(planted, extra, images_per_text=2)
    expect_error("tokens-more without CLIP scores", "weighted")
    plant_unlabelled(planted, extra, images_per_text=2, fingerprint={"planted": "by another generator"})
    expect_error("that differ from the teacher's: planted: found")
    plant_unlabelled(planted, extra, without=(1,), images_per_text=2)
    expect_error("images of some texts only")


def test_images_of_a_subset_are_not_predicted(tmp_path: Path) -> None:
    planted = plant(tmp_path, counts=(12, 6, 6))
    plant_column(planted, "telling", telling_tokens(planted.labels, strength=1.0))
    write_table(planted.run_dir / "tokens", planted.corpus, (1, 3))
    loss = DistillationSettings(predict_image=1.0)
    with pytest.raises(InputError, match=r"no image was drawn for 2 texts \(featurize --subset\)"):
        compare(planted.corpus, planted.run_dir, rows=("student-telling",), seeds=1, text_model="demo", distillation=loss)
    assert not list(planted.run_dir.glob("*/training.json"))
