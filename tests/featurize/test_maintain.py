"""``python -m featurize verify`` and ``info``: what holds is said, what does not is named, made again and nothing else is."""

import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from featurize.cli import main
from featurize.encode.image_encoder import ImageEncoder
from featurize.generate.text_to_image import TextToImage
from lugpi_core.fingerprint import digest
from lugpi_core.store.layout import structure
from lugpi_core.store.manifest import MANIFEST, ColumnSpec, load_manifest, shard_name
from lugpi_core.store.reader import ColumnReader
from lugpi_core.store.writer import ColumnWriter
from tests.support.checkout import ROOT

ROWS, COLUMNS = 13, ("clip-demo", "latents", "vit-demo")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """With models this small two threads wait for each other longer than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "own.csv"
    cut = " and so on" * 20
    path.write_text("text,label\n" + "".join(f"text number {n}{cut if n == 3 else ''},{'ab'[n % 2]}\n" for n in range(ROWS)))
    return path


def _made(table: Path, run_dir: Path, *flags: str) -> Path:
    demo = ("--generator", "demo", "--steps", "2", "--batch-size", "4", "--shard-rows", "4", "--encoders")
    assert main(["--dataset", str(table), "--run-dir", str(run_dir), *demo, *(flags or ("demo",))]) in (0, 1)
    return run_dir


@pytest.fixture(scope="module")
def made(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _made(table, tmp_path_factory.mktemp("made"))


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


Said = tuple[int, dict[str, Any], str]


@pytest.fixture
def ask(table: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Run verify or info on a run folder: exit status, figures, what was said."""

    def run_command(name: str, run_dir: Path, *flags: str) -> Said:
        capsys.readouterr()
        status = main([name, "--dataset", str(table), "--run-dir", str(run_dir), *flags])
        captured = capsys.readouterr()
        return status, json.loads(captured.out) if captured.out else {}, captured.err

    return run_command


def _shards(run_dir: Path) -> dict[str, bytes]:
    return {path.relative_to(run_dir).as_posix(): path.read_bytes() for path in sorted((run_dir / "tokens").glob("*/shard-*"))}


def _state(run_dir: Path) -> dict[str, tuple[int, int, bytes]]:
    files = (path for path in sorted(run_dir.rglob("*")) if path.is_file())
    return {path.relative_to(run_dir).as_posix(): (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def _flip(run_dir: Path, column: str, row: int, dataset: str | None = None) -> None:
    folder = run_dir / "tokens" / column
    layout = load_manifest(folder)[0].layout(row // 4)
    name, path = dataset or layout.what, folder / shard_name(row // 4)
    content = bytearray(path.read_bytes())
    content[structure(layout).offsets[name] + row % 4 * layout.bytes_of(name)] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("flags", [(), ("--deep",), ("--repair",), ("--deep", "--repair")], ids=" ".join)
def test_of_a_good_store_it_is_said_that_everything_holds_and_no_file_changes(run: Path, ask: Callable[..., Said], flags: Any) -> None:
    before = _state(run)
    status, figures, said = ask("verify", run, *flags)
    assert (status, figures["complete"], figures["findings"]) == (0, True, [])
    assert said == f"{run / 'tokens'}: everything holds{'' if flags else '; --deep reads every byte'}\n"
    assert _state(run) == before


def test_what_does_not_hold_is_named_by_its_rows_and_the_exit_status_is_one(run: Path, ask: Callable[..., Said]) -> None:
    for row in (5, 6, 9):
        _flip(run, "vit-demo", row)
    (run / "tokens" / "latents" / shard_name(0)).unlink()
    before = _state(run)
    status, figures, said = ask("verify", run, "--deep")
    assert (status, figures["complete"]) == (1, False)
    assert "latents/shard-00000.h5: rows 0-3 missing (missing)" in said
    assert "vit-demo/shard-00001.h5: rows 5-6 damaged (its content differs from its xxh3_128 and sha256)" in said
    assert said.splitlines()[-1] == f"{run / 'tokens'}: 1 missing, 2 damaged"
    assert [finding["rows"] for finding in figures["findings"]] == [[0, 1, 2, 3], [5, 6], [9]]
    assert _state(run) == before
    status, _, said = ask("verify", run)
    assert status == 1
    assert said.splitlines()[-1] == f"{run / 'tokens'}: 1 missing"


def _cut(run_dir: Path) -> None:
    path = run_dir / "tokens" / "clip-demo" / shard_name(1)
    os.truncate(path, path.stat().st_size // 2)


def _header(run_dir: Path) -> None:
    path = run_dir / "tokens" / "clip-demo" / shard_name(2)
    path.write_bytes(b"X" + path.read_bytes()[1:])


def _half_a_manifest(column: str) -> Callable[[Path], None]:
    def damage(run_dir: Path) -> None:
        path = run_dir / "tokens" / column / MANIFEST
        path.write_bytes(path.read_bytes()[:200])

    return damage


# What is damaged, and the shards that may be written again for it.
DAMAGE: dict[str, tuple[Callable[[Path], object], set[str]]] = {
    "a row of tokens": (lambda run: _flip(run, "vit-demo", 9), {"vit-demo/2"}),
    "a hash": (lambda run: _flip(run, "vit-demo", 1, "row_hash"), {"vit-demo/0"}),
    "a row of latents": (lambda run: _flip(run, "latents", 4), {"latents/1"}),
    "rows everywhere": (lambda run: [_flip(run, column, 7) for column in COLUMNS], {"latents/1", "clip-demo/1", "vit-demo/1"}),
    "a shard of tokens": (lambda run: (run / "tokens/clip-demo" / shard_name(0)).unlink(), {"clip-demo/0"}),
    "a shard of latents": (lambda run: (run / "tokens/latents" / shard_name(2)).unlink(), {"latents/2"}),
    "half a shard": (_cut, {"clip-demo/1"}),
    "a header": (_header, {"clip-demo/2"}),
    "the table": (lambda run: (run / "tokens/examples.h5").write_bytes(b"x"), set()),
    "the view": (lambda run: (run / "tokens/tokens.h5").unlink(), set()),
    "half a manifest of tokens": (_half_a_manifest("clip-demo"), {f"clip-demo/{n}" for n in range(4)}),
    "half a manifest of latents": (_half_a_manifest("latents"), {f"latents/{n}" for n in range(4)}),
    "a manifest": (lambda run: (run / "tokens/vit-demo" / MANIFEST).unlink(), {f"vit-demo/{n}" for n in range(4)}),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_repair_makes_again_what_does_not_hold_and_only_that(run: Path, made: Path, ask: Callable[..., Said], name: str) -> None:
    damage, hit = DAMAGE[name]
    before = _state(run)
    damage(run)
    status, figures, said = ask("verify", run, "--deep", "--repair")
    assert (status, figures.get("findings_left")) == (0, []), said
    assert figures["findings"]
    assert said.splitlines()[-1] == f"{run / 'tokens'}: after the repair everything holds"
    assert _shards(run) == _shards(made)
    after = _state(run)
    written = {file for file in _shards(run) if before[file][:2] != after[file][:2]}
    assert written <= {f"tokens/{shard.split('/')[0]}/{shard_name(int(shard.split('/')[1]))}" for shard in hit}
    for small in ("tokens/examples.h5", "tokens/tokens.h5"):
        assert after[small][2] == before[small][2]
    assert ask("verify", run, "--deep")[0] == 0


def test_a_repair_draws_only_the_blocks_that_are_hit(run: Path, ask: Callable[..., Said], monkeypatch: pytest.MonkeyPatch) -> None:
    _flip(run, "vit-demo", 5)
    monkeypatch.delattr(TextToImage, "draw")  # the latents hold
    status, figures, _ = ask("verify", run, "--deep", "--repair")
    assert status == 0
    assert figures["made_again"] == [{"prompts": 0, "drawn": 0, "decoded": 4, "encoded": 4, "redone": 0}]


def _fail_in(patch: pytest.MonkeyPatch, encoder: str, row_of_block: int) -> None:
    whole, failed = ImageEncoder.encode, list[str]()

    def poisoned(self: ImageEncoder, images: torch.Tensor) -> torch.Tensor:
        tokens = whole(self, images).clone()
        if self.files.name == encoder and len(tokens) == 4:
            tokens[row_of_block] = torch.nan
            failed.append(encoder)
        elif failed and len(tokens) == 1 and self.files.name == encoder:  # the failed row, made again alone
            failed.pop()
            tokens[0] = torch.nan
        return tokens

    patch.setattr(ImageEncoder, "encode", poisoned)


def test_flagged_rows_are_named_and_drawn_again(table: Path, tmp_path: Path, made: Path, ask: Callable[..., Said]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        _fail_in(patch, "vit-demo", 2)
        run = _made(table, tmp_path / "run")
    status, figures, said = ask("verify", run)
    assert status == 1
    assert "vit-demo/shard-00000.h5: rows 2 flagged (not finite)" in said
    assert [(one["kind"], one["rows"]) for one in figures["findings"]] == [("flagged", [2]), ("flagged", [6]), ("flagged", [10])]
    status, figures, said = ask("verify", run, "--repair")
    assert (status, figures["findings_left"]) == (0, []), said
    assert [made_again["drawn"] for made_again in figures["made_again"]] == [12]
    assert [made_again["redone"] for made_again in figures["made_again"]] == [3]  # in float32, each alone
    _same_but_for(run, made, [2, 6, 10])


def _same_but_for(run: Path, made: Path, rows: list[int]) -> None:
    """Some rows were drawn alone, and may differ in their last bits; all others are the same bytes."""
    others = [row for row in range(ROWS) if row not in rows]
    for column in COLUMNS:
        found, wanted = (ColumnReader(one / "tokens", column).gather(range(ROWS)) for one in (run, made))
        assert np.array_equal(found[others], wanted[others])
        assert np.abs(found.astype(float) - wanted).max() <= 0.02


def test_of_what_was_flagged_the_prompt_is_read_again_alone(
    table: Path, tmp_path: Path, ask: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        _fail_in(patch, "vit-demo", 2)
        run = _made(table, tmp_path / "run")
    read: list[list[str]] = []
    whole = TextToImage.encode_prompts

    def watched(self: TextToImage, prompts: Sequence[str]) -> Any:
        read.append(list(prompts))
        return whole(self, prompts)

    monkeypatch.setattr(TextToImage, "encode_prompts", watched)
    assert ask("verify", run, "--repair")[0] == 0
    assert [prompts for prompts in read if len(prompts) == 1 and prompts != [""]] == [
        ["text number 2"],
        ["text number 6"],
        ["text number 10"],
    ]
    assert not ColumnReader(run / "tokens", "vit-demo").flagged


def test_flagged_rows_of_an_encoder_that_was_added_later_are_made_again_in_every_column(
    table: Path, tmp_path: Path, made: Path, ask: Callable[..., Said]
) -> None:
    run = _made(table, tmp_path / "run", "clip-demo")
    with pytest.MonkeyPatch.context() as patch:
        _fail_in(patch, "vit-demo", 2)
        _made(table, run, "vit-demo")
    status, figures, said = ask("verify", run, "--repair")
    assert (status, figures["findings_left"]) == (0, []), said
    _same_but_for(run, made, [2, 6, 10])


def _bring(run_dir: Path, name: str = "mine") -> ColumnSpec:
    """A column of tokens that somebody else made and laid beside ours."""
    spec = ColumnSpec(name=name, what="tokens", rows=ROWS, row_shape=(2, 3), shard_rows=4, fingerprint={"made": "elsewhere"})
    column = ColumnWriter(run_dir / "tokens", spec)
    for shard in range(spec.shards):
        writer = column.claim(shard)
        assert writer is not None
        writer.write(0, np.ones((writer.layout.rows, 2, 3), np.float16), np.zeros(writer.layout.rows, np.uint8))
        column.commit(shard, writer)
    return spec


@pytest.mark.parametrize("name", ["mine", "a-column-before-ours"])
def test_a_damaged_column_that_featurize_did_not_make_is_refused_and_nothing_is_touched(
    run: Path, ask: Callable[..., Said], name: str
) -> None:
    _bring(run, name)
    _flip(run, name, 5)
    before = _state(run)
    status, figures, said = ask("verify", run, "--deep", "--repair")
    assert (status, figures) == (2, {})
    assert re.search(rf"error: got .*{name}, which no featurize command made; .*; get its files again from where they came", said)
    assert _state(run) == before


@pytest.mark.parametrize("name", ["mine", "a-column-before-ours"])
def test_a_repair_of_ours_leaves_a_column_of_somebody_else_alone(table: Path, tmp_path: Path, ask: Callable[..., Said], name: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        _fail_in(patch, "vit-demo", 2)
        run = _made(table, tmp_path / "run")
    _bring(run, name)
    (run / "tokens" / "tokens.h5").unlink()
    before = {file: state for file, state in _state(run).items() if f"/{name}/shard" in file}
    status, figures, said = ask("verify", run, "--repair")
    assert (status, figures.get("findings_left")) == (0, []), said
    assert {file: state for file, state in _state(run).items() if f"/{name}/shard" in file} == before
    assert len(ColumnReader(run / "tokens", name)) == ROWS


@pytest.mark.parametrize("name", ["mine", "a-column-before-ours"])
def test_a_damaged_table_is_repaired_beside_a_column_of_somebody_else(run: Path, ask: Callable[..., Said], name: str) -> None:
    _bring(run, name)
    (run / "tokens" / "examples.h5").unlink()
    status, figures, said = ask("verify", run, "--repair")
    assert (status, figures.get("findings_left")) == (0, []), said


@pytest.mark.parametrize("change", [{"flag_of_tomorrow": 1}, {"batch_size": "many"}, {"encoders": None}], ids=str)
def test_flags_in_a_manifest_that_this_version_does_not_have_are_one_line(run: Path, ask: Callable[..., Said], change: Any) -> None:
    path = run / "tokens" / "vit-demo" / MANIFEST
    value = json.loads(path.read_text())
    value.pop("xxh3_128")
    value["made_by"] |= change
    path.write_text(json.dumps({**value, "xxh3_128": digest(value)}))
    _flip(run, "vit-demo", 5)
    status, figures, said = ask("verify", run, "--deep", "--repair")
    assert (status, figures) == (2, {})
    assert said.splitlines()[-1].startswith("error: got ")


@pytest.mark.parametrize("name", ["verify", "info"])
def test_where_there_is_no_store_it_is_one_line_and_exit_status_two(tmp_path: Path, ask: Callable[..., Said], name: str) -> None:
    status, figures, said = ask(name, tmp_path / "none")
    assert (status, figures) == (2, {})
    (line,) = said.splitlines()
    assert re.fullmatch(
        r"error: got no token store in .*/none/tokens; expected one that featurize made; run python -m featurize first", line
    )
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("name", ["verify", "info"])
def test_an_unknown_flag_is_answered_with_the_nearest(run: Path, ask: Callable[..., Said], name: str) -> None:
    status, _, said = ask(name, run, "--limti", "3")
    assert status == 2
    assert "did you mean '--limit'?" in said


def test_info_shows_what_is_in_a_store(run: Path, ask: Callable[..., Said]) -> None:
    _bring(run)
    before = _state(run)
    status, figures, said = ask("info", run)
    assert status == 0
    assert figures["examples"] == {"corpus": "own", "examples": ROWS, "prompts_cut": 1}
    assert f"{run / 'tokens'}: own corpus, 13 examples, 1 prompts_cut" in said
    assert sorted(figures["columns"]) == [*COLUMNS[:2], "mine", "vit-demo"]
    column = figures["columns"]["vit-demo"]
    assert (column["rows"], column["rows_final"], column["row_shape"], column["dtype"]) == (ROWS, ROWS, [17, 128], "float16")
    assert column["bytes"] == sum(path.stat().st_size for path in (run / "tokens" / "vit-demo").glob("shard-*"))
    assert column["made_by"]["steps"] == 2
    assert "vit-demo: 13 of 13 rows of 17 × 128 float16, 0.1 MB" in said
    assert "  generation.generator.steps = 2" in said
    assert "tokens by vit-demo" in said
    assert figures["columns"]["mine"]["made_by"] is None
    assert _state(run) == before


def test_info_shows_flagged_and_unfinished_rows(table: Path, tmp_path: Path, ask: Callable[..., Said]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        _fail_in(patch, "vit-demo", 2)
        run = _made(table, tmp_path / "run")
    column = ColumnWriter(run / "tokens", load_manifest(run / "tokens" / "clip-demo")[0])
    column.reopen(2, column.records[2])
    (run / "tokens" / "examples.h5").unlink()
    _, figures, said = ask("info", run)
    assert "FAILED: rows 2, 6, 10" in said
    assert "clip-demo: 9 of 13 rows" in said
    assert "no table of examples yet" in said
    assert figures["columns"]["vit-demo"]["flagged"] == {"2": "not finite", "6": "not finite", "10": "not finite"}


def _help_s(name: str) -> float:
    """Seconds of processor time that --help takes, which other processes on the machine do not lengthen much."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-m", "featurize", name, "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "--run-dir" in done.stdout
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


@pytest.mark.parametrize("name", ["verify", "info"])
def test_help_comes_within_half_a_second(name: str) -> None:
    assert statistics.median(_help_s(name) for _ in range(3)) < 0.5
