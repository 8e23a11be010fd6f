"""``python -m featurize`` as a user meets it: exit statuses, one line an error, one JSON object at the end, and a store left as it was."""

import json
import re
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import pytest
import torch

from featurize.cli import main
from featurize.encode.image_encoder import ImageEncoder
from lugpi_core.runtime.pretrained import embedded_model
from tests.support.checkout import Command, Start
from tests.support.read_only import make_read_only
from tests.support.shards import shard_file
from tests.support.small_corpus import load_no_model

DEMO = ("--generator", "demo", "--steps", "2", "--batch-size", "4", "--shard-rows", "8", "--encoders", "demo")


def _demo_with(flags: Sequence[str]) -> tuple[str, ...]:
    """Return the flags of the demo and others; a list of encoders in these is not added to the demo's."""
    return (*(DEMO[:-2] if "--encoders" in flags else DEMO), *flags)


@pytest.fixture(scope="module")
def store(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a finished store; tests leave it as it is."""
    run_dir = tmp_path_factory.mktemp("run")
    assert main(["--dataset", str(table), "--run-dir", str(run_dir), *DEMO]) == 0
    return run_dir


def _state(run_dir: Path) -> dict[str, tuple[int, bytes]]:
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"") for path in sorted(run_dir.rglob("*"))}


def _refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """Run a command that must end with exit status 2, nothing on stdout and a single line on stderr; return the line."""
    capsys.readouterr()
    assert main([str(one) for one in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert re.match(r"error: got .*; expected .*; .+", lines[0])
    return lines[0]


def test_a_process_of_srun_is_a_part_on_a_card_of_its_own(
    table: Path, store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cards: list[int] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", cards.append)
    for name, value in {"JOB_ID": 7, "STEP_ID": 0, "PROCID": 3, "LOCALID": 3, "NTASKS": 4}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    assert main(["--dataset", str(table), "--run-dir", str(store), *DEMO]) == 0
    captured = capsys.readouterr()
    assert "part 3/4 (process 3 of 4, as SLURM says)" in captured.err
    assert json.loads(captured.out)["part"] == "3/4"
    assert cards == [1]


def test_a_process_of_its_own_fills_the_store_and_prints_one_json_object(
    command: Command, table: Path, store: Path, tmp_path: Path
) -> None:
    done = command("featurize", "--dataset", table, "--run-dir", tmp_path, *DEMO)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    figures = json.loads(line)
    assert (figures["command"], figures["store"], figures["rows"]) == (
        "featurize",
        str(tmp_path / "tokens"),
        {"prompts": 13, "drawn": 13, "decoded": 13, "encoded": 26, "redone": 0},
    )
    assert "own: 9 train, 1 validation, 3 test; 13 images (0 saved" in done.stderr
    assert "note: the embedded generator draws emoji" in done.stderr
    assert "generating on CPU, float32, attention AttnProcessor2_0, 4 at a time" in done.stderr
    # One validation example cannot show two classes.
    assert [line for line in done.stderr.lower().splitlines() if "warning" in line] == [f"warning: {table} has no validation example of b"]
    assert "Loading weights" not in done.stderr
    with h5py.File(tmp_path / "tokens" / "tokens.h5") as file:
        assert file["clip-demo/tokens"].shape == (13, 17, 128)
    for path in (store / "tokens").glob("*/shard-*.h5"):
        assert (tmp_path / path.relative_to(store)).read_bytes() == path.read_bytes()


def test_the_same_command_again_is_already_done(table: Path, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = _state(store)
    assert main(["--dataset", str(table), "--run-dir", str(store), *DEMO]) == 0
    captured = capsys.readouterr()
    figures = json.loads(captured.out.splitlines()[-1])
    assert (figures["already_done"], figures["rows"]["drawn"]) == (True, 0)
    assert "already done: " in captured.err
    assert _state(store) == before


def test_a_scale_without_effect_is_no_other_setting(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Earlier versions recorded it as it was given: such stores are found again with any scale that does nothing."""
    run = ("--dataset", str(table), "--run-dir", str(tmp_path), *_demo_with(["--encoders", "vit-demo"]))
    assert main([*run, "--guidance", "0"]) == 0
    assert "2 steps, no guidance, " in capsys.readouterr().err
    assert main([*run, "--guidance", "1"]) == 0
    assert "already done: " in capsys.readouterr().err
    assert "guidance: found 0.0, wanted 2.0" in _refused(capsys, *run, "--guidance", "2")


def test_failed_rows_are_told_and_the_exit_status_is_one(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = ImageEncoder.encode

    def poisoned(self: ImageEncoder, images: torch.Tensor) -> torch.Tensor:
        tokens = whole(self, images).clone()
        tokens[2 if len(tokens) > 1 else 0] = torch.nan  # in the block, and when it is redone alone
        return tokens

    monkeypatch.setattr(ImageEncoder, "encode", poisoned)
    arguments = [
        "--dataset",
        str(table),
        "--run-dir",
        str(tmp_path),
        *_demo_with(["--encoders", "vit-demo"]),
        "--batch-size",
        "13",
        "--shard-rows",
        "13",
    ]
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert "FAILED rows: latents 0, vit-demo 1 (python -m featurize info lists them)" in captured.err
    assert json.loads(captured.out)["failed_rows"] == {"latents": 0, "vit-demo": 1}


def _own_generator(tmp_path: Path, change: Callable[[Path], object]) -> str:
    folder = Path(shutil.copytree(embedded_model("generator"), tmp_path / "generator"))
    change(folder)
    return f"demo={folder}"


def _add_field(path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), "another": 1}))


@pytest.mark.parametrize(
    ("flags", "field"),
    [
        (["--steps", "3"], "generation.generator.steps: found 2, wanted 3"),
        (["--guidance", "1"], "generation.generator.guidance: found 3.0, wanted 1.0"),
        (["--scheduler", "euler"], 'generation.generator.scheduler: found "ddim", wanted "euler"'),
        (["--size-px", "128"], "generation.generator.size_px: found 64, wanted 128"),
        (["--seed", "1"], "other settings: --seed: 0 then, 1 now; expected"),
        (["--generator", "GENERATOR"], "generation.generator.weights: found"),
        (["--encoders", "ENCODER"], "encoder.weights: found"),
        (["--encoders", "vit-demo", "ENCODER"], "encoder.weights: found"),
        (["--token-dtype", "int8"], 'encoder.stored_as: found "float16", wanted "int8"'),
        (["--deepcache", "2"], "generation.generator.deepcache: found 1, wanted 2"),
        (["--guidance-interval", "0:0.5"], "generation.generator.guidance_interval: "),
        (["--images-per-text", "2"], "other settings: --images-per-text: 1 then, 2 now; expected"),
        (["--shard-rows", "4"], "shard_rows: found 8, wanted 4"),
        (["--no-latents", "--encoders", "OTHER", "--steps", "3"], "generation.generator.steps: found 2, wanted 3"),
        (["--no-latents", "--encoders", "OTHER", "--limit", "10"], "other settings: --limit: none then, 10 now; expected"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_another_setting_on_the_same_store_is_refused(
    table: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], field: str
) -> None:
    before = _state(store)
    given = {
        "GENERATOR": lambda: _own_generator(tmp_path, lambda folder: _add_field(folder / "unet" / "config.json")),
        "ENCODER": lambda: str(_encoder(tmp_path / "clip-demo")),
        "OTHER": lambda: str(_encoder(tmp_path / "another")),
    }
    resolved = [given[flag]() if flag in given else flag for flag in flags]
    line = _refused(capsys, "--dataset", table, "--run-dir", store, *_demo_with(resolved))
    assert "that was made with other settings" in line
    assert field in line
    assert _state(store) == before


def _encoder(folder: Path) -> Path:
    shutil.copytree(embedded_model("clip-demo"), folder)
    _add_field(folder / "open_clip_config.json")
    return folder


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dataset", "dmo"], "did you mean 'demo'?"),
        (["--dataset", "no/such.csv"], "no/such.csv"),
        (["--stepz", "3"], "did you mean '--steps'?"),
        (["--encoders", "vit-dmo"], "did you mean 'vit-demo'?"),
        (["--generator", "demmo"], "did you mean 'demo'?"),
        (["--steps", "0"], "got --steps 0; expected at least 1"),
        (["--steps", "many"], "many"),
        (["--size-px", "7"], "got --size-px 7"),
        (["--guidance", "nan"], "got --guidance nan"),
        (["--batch-size", "0"], "got --batch-size 0; expected at least 1"),
        (["--batch-size", "some"], "batch-size"),
        (["--shard-rows", "-1"], "got --shard-rows -1"),
        (["--images-per-text", "0"], "got --images-per-text 0; expected at least 1"),
        (["--deepcache", "0"], "got --deepcache 0; expected at least 1"),
        (["--deepcache-cut", "layer"], "got --deepcache-cut layer without --deepcache; expected steps that reuse deep features"),
        (["--guidance-interval", "0.7:0.2"], "got --guidance-interval 0.7:0.2; expected a:b with 0 <= a < b <= 1"),
        (["--guidance-reuse"], "got --guidance-reuse without --guidance-interval"),
        (["--fidelity", "balanced"], "got --fidelity balanced for "),
        (["--fidelity", "balansed"], "balansed"),
        (["--decoder", "tinny"], "expected full, half, tiny, or tiny=FOLDER with an existing folder; did you mean 'tiny'?"),
        (["--decoder", "tiny=no/such"], "got --decoder tiny=no/such; expected full, half, tiny, or tiny=FOLDER with an existing folder"),
        (["--max-failed", "-1"], "got --max-failed -1; expected 0 or more"),
        (["--memory-gb", "0"], "got --memory-gb 0"),
        (["--memory-gb", "nan"], "got --memory-gb nan"),
        (["--compile", "perhaps"], "perhaps"),
        (["--attention", "xformers"], "got --attention xformers on cpu"),
        (["--device", "cpu", "--dtype", "float16"], "got --dtype float16 on the CPU"),
        (["--encoders"], "encoders"),
        (["--generator", "fast"], "got no source of the generator fast within reach"),
        (["--encoders", "vit-b16"], "got --encoders vit-b16, which is google/vit-base-patch16-224-in21k"),
    ],
    ids=" ".join,
)
def test_a_bad_value_is_one_line_and_exit_status_two(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    dataset = [] if "--dataset" in flags else ["--dataset", table]
    allowed = ("own: ", "note: ", "encoder ", "generator ")  # said before the models are loaded
    capsys.readouterr()
    assert main([str(one) for one in (*dataset, "--run-dir", tmp_path / "run", *_demo_with(flags))]) == 2
    captured = capsys.readouterr()
    (line,) = [line for line in captured.err.splitlines() if not line.startswith(allowed)]
    assert line.startswith("error: got ")
    assert message in line
    assert captured.out == ""


def test_a_run_folder_that_cannot_be_written_is_refused(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = _refused(capsys, "--dataset", table, "--run-dir", table / "below-a-file", *DEMO)
    assert "below-a-file/tokens (Not a directory); expected a folder that can be written" in line


def test_an_error_in_a_process_of_its_own_has_no_traceback(new_command: Command, tmp_path: Path) -> None:
    done = new_command("-m", "featurize", "--dataset", "demo", "--run-dir", tmp_path, "--generator", "papre")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: got --generator papre; expected a preset, PRESET=FOLDER, a diffusers folder, a .safetensors file or a hub id owner/name; "
        "did you mean 'paper'?\n"
    )


@pytest.fixture(scope="module")
def slow_run(table: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str | Path], Path]:
    """The words of a command that takes long enough to be interrupted, without its folder, and the folder of a run of it."""
    arguments = ["--dataset", table, *DEMO, "--steps", "20", "--run-dir"]
    folder = tmp_path_factory.mktemp("slow") / "whole"
    assert main([*map(str, arguments), str(folder)]) == 0
    return arguments, folder


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_resumes_to_the_same_bytes(
    slow_run: tuple[list[str | Path], Path], tmp_path: Path, start: Start, number: signal.Signals, status: int
) -> None:
    arguments, whole = slow_run
    child = start("-m", "featurize", *arguments, tmp_path / "broken")
    while not list((tmp_path / "broken").rglob("shard-*.partial")) and child.poll() is None:
        time.sleep(0.05)
    time.sleep(0.1)
    child.send_signal(number)
    said, complained = child.communicate(timeout=60)
    assert (child.returncode, said) == (status, ""), complained
    assert complained.splitlines()[-1] == "interrupted: what is written is kept; run the same command to continue"
    assert "Traceback" not in complained
    assert main([*map(str, arguments), str(tmp_path / "broken")]) == 0
    assert _shards(tmp_path / "broken") == _shards(whole)


def _shards(run_dir: Path) -> dict[str, bytes]:
    return {path.relative_to(run_dir).as_posix(): path.read_bytes() for path in sorted((run_dir / "tokens").glob("*/shard-*"))}


def test_two_commands_at_once_share_the_work(table: Path, tmp_path: Path, start: Start) -> None:
    arguments = ["--dataset", str(table), *DEMO, "--steps", "10", "--batch-size", "2", "--shard-rows", "2", "--run-dir"]
    pair = [start("-m", "featurize", *arguments, tmp_path / "both") for _ in range(2)]
    ended = [child.communicate(timeout=120) for child in pair]
    assert [child.returncode for child in pair] == [0, 0], ended
    figures = [json.loads(said) for said, _ in ended]
    assert sum(one["rows"]["drawn"] for one in figures) == 13, "no picture is drawn twice"
    assert all(one["complete"] for one in figures)
    assert main([*arguments, str(tmp_path / "alone")]) == 0
    assert _shards(tmp_path / "both") == _shards(tmp_path / "alone")
    for name in ("examples.h5", "tokens.h5"):
        assert (tmp_path / "both" / "tokens" / name).read_bytes() == (tmp_path / "alone" / "tokens" / name).read_bytes()
    left = {path.name for path in (tmp_path / "both").rglob(".*") if path.name != ".lock"}
    assert not left


def test_a_damaged_final_shard_is_repaired_by_the_same_command(
    table: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = Path(shutil.copytree(store, tmp_path / "run"))
    path = shard_file(run_dir / "tokens" / "vit-demo", 1)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    untouched = {name: state for name, state in _state(run_dir).items() if re.search(r"/shard-.*\.h5$", name) and name != str(path)}
    assert main(["--dataset", str(table), "--run-dir", str(run_dir), *DEMO]) == 0
    captured = capsys.readouterr()
    assert f"{path}: its content differs from its hash; its damaged rows are generated again" in captured.err
    assert json.loads(captured.out)["rows"] == {"prompts": 0, "drawn": 0, "decoded": 4, "encoded": 4, "redone": 0}
    assert _shards(run_dir) == _shards(store)
    assert {name: _state(run_dir)[name] for name in untouched} == untouched


def test_too_small_a_disk_is_refused_before_a_model_is_loaded(
    table: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = sum(map(len, _shards(store).values()))
    arguments = ["--dataset", str(table), "--run-dir", str(tmp_path), *DEMO]
    load_no_model(monkeypatch)
    for free in (0, missing - 1):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        assert main(arguments) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert re.match(rf"error: got [01] MB free for {tmp_path}/tokens; expected [01] MB for the missing shards; free some space", line)
        assert not _shards(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=missing))
    with pytest.raises(AssertionError, match="a generator is loaded"):
        main(arguments)


def test_help_shows_every_flag_with_its_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    from dataclasses import fields

    from featurize.options import FeaturizeOptions

    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    names = [field.name.replace("_", "-") for field in fields(FeaturizeOptions)]
    missing: list[Any] = [name for name in names if not re.search(rf"--(no-)?{name}\b", shown)]
    assert not missing
    assert "Guidance scale; how it acts" in shown


def test_an_unknown_command_gets_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspekt", "--dataset", "demo"]) == 2
    commands = "verify, info, inspect, score, reduce, plan, missing, merge"
    assert capsys.readouterr().err == f"error: got the command 'inspekt'; expected one of {commands}; did you mean 'inspect'?\n"


@pytest.mark.parametrize(
    ("flags", "message"), [(("--limit", "2"), "--limit 2"), (("--limit", "-5"), "--limit -5"), (("--seed", "-1"), "--seed -1")]
)
def test_a_limit_or_a_seed_that_makes_no_corpus_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], message: str
) -> None:
    assert main(["--dataset", "demo", "--generator", "demo", "--encoders", "demo", "--run-dir", str(tmp_path / "run"), *flags]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_finished_store_that_cannot_be_written_to_is_done(
    table: Path, store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _state(store)
    capsys.readouterr()
    make_read_only(monkeypatch, store)
    assert main(["--dataset", str(table), "--run-dir", str(store), *DEMO]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["already_done"]
    assert f"already done: {store / 'tokens'}" in printed.err
    assert _state(store) == before


@pytest.mark.parametrize("missing", ["clip-demo/shard-00000-*.h5", "examples.h5", "tokens.h5"])
def test_a_store_that_lacks_something_and_cannot_be_written_to_is_one_line(
    table: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    run = Path(shutil.copytree(store, tmp_path / "run"))
    next((run / "tokens").glob(missing)).unlink()
    make_read_only(monkeypatch, run)
    assert main(["--dataset", str(table), "--run-dir", str(run), *DEMO]) == 2
    lacking = missing.partition("/")[0]
    assert f"error: got {run / 'tokens'} (no permission to write), which has no complete {lacking}; " in capsys.readouterr().err
