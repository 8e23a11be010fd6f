"""``python -m featurize verify`` and ``info``: damage is reported and repaired, and nothing else is touched."""

import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from featurize.cli import main
from featurize.encode.image_encoder import ImageEncoder
from featurize.generate.text_to_image import TextToImage
from featurize.inspect.info import store_info
from featurize.maintain import repair_store, verify_store
from featurize.options import FeaturizeSettings
from featurize.run import featurize
from lugpi_core.corpora.corpus import Corpus
from lugpi_core.corpora.load import load_corpus
from lugpi_core.errors import InputError
from lugpi_core.fingerprint import digest
from lugpi_core.store.layout import structure
from lugpi_core.store.manifest import MANIFEST, ColumnSpec, load_manifest
from lugpi_core.store.reader import ColumnReader
from lugpi_core.store.writer import ColumnWriter
from tests.support.shards import shard_file

ROWS, COLUMNS = 13, ("clip-demo", "latents", "vit-demo")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "own.csv"
    cut = " and so on" * 20
    path.write_text("text,label\n" + "".join(f"text number {n}{cut if n == 3 else ''},{'ab'[n % 2]}\n" for n in range(ROWS)))
    return path


def _featurize(table: Path, run_dir: Path, *flags: str) -> Path:
    demo = ("--generator", "demo", "--steps", "2", "--batch-size", "4", "--shard-rows", "4", "--encoders")
    assert main(["--dataset", str(table), "--run-dir", str(run_dir), *demo, *(flags or ("demo",))]) in (0, 1)
    return run_dir


@pytest.fixture(scope="module")
def original(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of an intact store."""
    return _featurize(table, tmp_path_factory.mktemp("original"))


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(original, tmp_path / "run"))


@pytest.fixture(scope="module")
def original_flagged(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, but rows 2, 6 and 10 of vit-demo failed."""
    with pytest.MonkeyPatch.context() as patch:
        _fail_in(patch, "vit-demo", 2)
        return _featurize(table, tmp_path_factory.mktemp("flagged"))


@pytest.fixture
def flagged(original_flagged: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(original_flagged, tmp_path / "run"))


# Exit status, figures of the last line, and what was printed for a person.
Result = tuple[int, dict[str, Any], str]
Command = Callable[..., Result]


@pytest.fixture
def command(table: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run verify or info on a run folder."""

    def run_command(name: str, run_dir: Path, *flags: str) -> Result:
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
    name, path = dataset or layout.what, shard_file(folder, row // 4)
    content = bytearray(path.read_bytes())
    content[structure(layout).offsets[name] + row % 4 * layout.bytes_of(name)] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("flags", [(), ("--deep",), ("--repair",), ("--deep", "--repair")], ids=" ".join)
def test_an_intact_store_is_reported_as_such_and_not_touched(run: Path, command: Command, flags: Any) -> None:
    before = _state(run)
    status, figures, printed = command("verify", run, *flags)
    assert (status, figures["complete"], figures["findings"]) == (0, True, [])
    assert printed == f"{run / 'tokens'}: complete and intact{'' if flags else '; --deep reads every byte'}\n"
    assert _state(run) == before


def test_damage_is_reported_by_row_and_the_exit_status_is_one(run: Path, command: Command) -> None:
    for row in (5, 6, 9):
        _flip(run, "vit-demo", row)
    shard_file(run / "tokens" / "latents", 0).unlink()
    before = _state(run)
    status, figures, printed = command("verify", run, "--deep")
    assert (status, figures["complete"]) == (1, False)
    assert re.search(r"latents/shard-00000-\w+\.h5: rows 0-3 missing \(missing\)", printed)
    assert re.search(r"vit-demo/shard-00001-\w+\.h5: rows 5-6 damaged \(its content differs from its xxh3_128 and sha256\)", printed)
    assert printed.splitlines()[-1] == f"{run / 'tokens'}: 1 file missing, 2 files damaged"
    assert [finding["rows"] for finding in figures["findings"]] == [[0, 1, 2, 3], [5, 6], [9]]
    assert _state(run) == before
    status, _, printed = command("verify", run)
    assert status == 1
    assert printed.splitlines()[-1] == f"{run / 'tokens'}: 1 file missing"


def _cut(run_dir: Path) -> None:
    path = shard_file(run_dir / "tokens" / "clip-demo", 1)
    os.truncate(path, path.stat().st_size // 2)


def _header(run_dir: Path) -> None:
    path = shard_file(run_dir / "tokens" / "clip-demo", 2)
    path.write_bytes(b"X" + path.read_bytes()[1:])


def _half_a_manifest(column: str) -> Callable[[Path], None]:
    def damage(run_dir: Path) -> None:
        path = run_dir / "tokens" / column / MANIFEST
        path.write_bytes(path.read_bytes()[:200])

    return damage


# How a store is damaged, and the shards that a repair may write.
DAMAGE: dict[str, tuple[Callable[[Path], object], set[str]]] = {
    "a row of tokens": (lambda run: _flip(run, "vit-demo", 9), {"vit-demo/2"}),
    "a hash": (lambda run: _flip(run, "vit-demo", 1, "row_hash"), {"vit-demo/0"}),
    "a row of latents": (lambda run: _flip(run, "latents", 4), {"latents/1"}),
    "rows everywhere": (lambda run: [_flip(run, column, 7) for column in COLUMNS], {"latents/1", "clip-demo/1", "vit-demo/1"}),
    "a shard of tokens": (lambda run: shard_file(run / "tokens/clip-demo", 0).unlink(), {"clip-demo/0"}),
    "a shard of latents": (lambda run: shard_file(run / "tokens/latents", 2).unlink(), {"latents/2"}),
    "half a shard": (_cut, {"clip-demo/1"}),
    "a header": (_header, {"clip-demo/2"}),
    "the table": (lambda run: (run / "tokens/examples.h5").write_bytes(b"x"), set()),
    "the view": (lambda run: (run / "tokens/tokens.h5").unlink(), set()),
    "half a manifest of tokens": (_half_a_manifest("clip-demo"), {f"clip-demo/{n}" for n in range(4)}),
    "half a manifest of latents": (_half_a_manifest("latents"), {f"latents/{n}" for n in range(4)}),
    "a manifest": (lambda run: (run / "tokens/vit-demo" / MANIFEST).unlink(), {f"vit-demo/{n}" for n in range(4)}),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_repair_computes_damaged_rows_again_and_only_those(run: Path, original: Path, command: Command, name: str) -> None:
    damage, hit = DAMAGE[name]
    before = _state(run)
    damage(run)
    status, figures, printed = command("verify", run, "--deep", "--repair")
    assert (status, figures.get("findings_left")) == (0, []), printed
    assert figures["findings"]
    assert printed.splitlines()[-1] == f"{run / 'tokens'}: after the repair complete and intact"
    assert _shards(run) == _shards(original)
    after = _state(run)
    written = {file for file in _shards(run) if before[file][:2] != after[file][:2]}
    assert written <= {shard_file(run / "tokens" / shard[:-2], int(shard[-1])).relative_to(run).as_posix() for shard in hit}
    for small in ("tokens/examples.h5", "tokens/tokens.h5"):
        assert after[small][2] == before[small][2]
    assert command("verify", run, "--deep")[0] == 0


def test_parts_share_the_reading_and_repair_their_own_shards(
    run: Path, original: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    for row in (5, 9):
        _flip(run, "vit-demo", row)
    found = {part: command("verify", run, "--deep", "--part", f"{part}/4") for part in range(4)}
    assert [[finding["rows"] for finding in figures["findings"]] for _, figures, _ in found.values()] == [[], [[5]], [[9]], []]
    assert [(status, figures["complete"], figures["part"]) for status, figures, _ in found.values()] == [
        (part in (1, 2), part not in (1, 2), f"{part}/4") for part in range(4)
    ]
    assert found[0][2] == f"part 0/4 of {run / 'tokens'}: complete and intact\n"
    status, figures, _ = command("verify", run, "--repair", "--part", "1/4")
    assert (status, figures["findings_left"]) == (0, [])
    for name, value in {"ID": 2, "COUNT": 4, "MIN": 0}.items():  # the task of an array, without --part
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    assert command("verify", run, "--deep")[1]["findings"][0]["rows"] == [9]
    assert command("verify", run, "--repair")[0] == 0
    assert _shards(run) == _shards(original)
    assert command("verify", run, "--deep", "--part", "4/4")[0] == 2


def test_a_repair_computes_only_the_damaged_blocks(run: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    _flip(run, "vit-demo", 5)
    monkeypatch.delattr(TextToImage, "denoise")  # the latents are intact
    status, figures, _ = command("verify", run, "--deep", "--repair")
    assert status == 0
    assert figures["made_again"] == [{"prompts": 0, "drawn": 0, "decoded": 4, "encoded": 4, "redone": 0}]


@pytest.mark.parametrize(
    ("strategy", "again"), [(("chunks", "--images-per-text", "2"), [8, 4, 8, 8]), (("keywords",), [8, 4, 8, 8])], ids=["chunks", "keywords"]
)
def test_stores_of_other_prompts_are_repaired(tmp_path: Path, command: Command, strategy: tuple[str, ...], again: list[int]) -> None:
    """A row of each column is damaged, a shard of images and text vectors is gone; the repair plans the same prompts again."""
    table = tmp_path / "own.csv"
    table.write_text("text,label\n" + "".join(f"whale {letter},{letter in 'abcdefg'}\n" for letter in "abcdefghijklm"))
    run = _featurize(table, tmp_path / "whole", "vit-demo", "prompt-text", "--prompts", *strategy)
    intact = _shards(run)
    for column, row in (("prompt-text", 1), ("vit-demo", 5)):
        _flip(run, column, row)
    for column in ("latents", "vit-demo", "prompt-text"):
        shard_file(run / "tokens" / column, 2).unlink()
    status, figures, printed = command("verify", run, "--deep", "--repair")
    assert (status, figures["findings_left"]) == (0, []), printed
    assert _shards(run) == intact
    (rows,) = figures["made_again"]
    assert [rows[name] for name in ("prompts", "drawn", "decoded", "encoded")] == again


def _fail_in(patch: pytest.MonkeyPatch, encoder: str, row_of_block: int) -> None:
    whole, failed = ImageEncoder.encode, list[str]()

    def poisoned(self: ImageEncoder, images: torch.Tensor) -> torch.Tensor:
        tokens = whole(self, images).clone()
        if self.files.name == encoder and len(tokens) == 4:
            tokens[row_of_block] = torch.nan
            failed.append(encoder)
        elif failed and len(tokens) == 1 and self.files.name == encoder:  # the failed row, computed again alone
            failed.pop()
            tokens[0] = torch.nan
        return tokens

    patch.setattr(ImageEncoder, "encode", poisoned)


def test_flagged_rows_are_reported_and_generated_again(flagged: Path, original: Path, command: Command) -> None:
    status, figures, printed = command("verify", flagged)
    assert status == 1
    assert re.search(r"vit-demo/shard-00000-\w+\.h5: rows 2 flagged \(not finite\)", printed)
    assert [(finding["kind"], finding["rows"]) for finding in figures["findings"]] == [
        ("flagged", [2]),
        ("flagged", [6]),
        ("flagged", [10]),
    ]
    status, figures, printed = command("verify", flagged, "--repair")
    assert (status, figures["findings_left"]) == (0, []), printed
    assert [made_again["drawn"] for made_again in figures["made_again"]] == [12]
    assert [made_again["redone"] for made_again in figures["made_again"]] == [3]  # in float32, each alone
    _assert_same_except(flagged, original, [2, 6, 10])


def _assert_same_except(run: Path, original: Path, rows: list[int]) -> None:
    """Some rows were generated alone and may differ in their last bits; all others must have the same bytes."""
    others = [row for row in range(ROWS) if row not in rows]
    for column in COLUMNS:
        repaired, expected = (ColumnReader(folder / "tokens", column).gather(range(ROWS)) for folder in (run, original))
        assert np.array_equal(repaired[others], expected[others])
        assert np.abs(repaired.astype(float) - expected).max() <= 0.02


def test_the_prompt_of_a_flagged_row_is_encoded_alone(flagged: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[list[str]] = []
    whole = TextToImage.encode_prompts

    def watched(self: TextToImage, prompts: Sequence[str]) -> Any:
        read.append(list(prompts))
        return whole(self, prompts)

    monkeypatch.setattr(TextToImage, "encode_prompts", watched)
    assert command("verify", flagged, "--repair")[0] == 0
    assert [prompts for prompts in read if len(prompts) == 1 and prompts != [""]] == [
        ["text number 2"],
        ["text number 6"],
        ["text number 10"],
    ]
    assert not ColumnReader(flagged / "tokens", "vit-demo").flagged


def test_flagged_rows_of_a_later_encoder_are_repaired_in_all_columns(table: Path, tmp_path: Path, original: Path, command: Command) -> None:
    run = _featurize(table, tmp_path / "run", "clip-demo")
    with pytest.MonkeyPatch.context() as patch:
        _fail_in(patch, "vit-demo", 2)
        _featurize(table, run, "vit-demo")
    status, figures, printed = command("verify", run, "--repair")
    assert (status, figures["findings_left"]) == (0, []), printed
    _assert_same_except(run, original, [2, 6, 10])


def test_components_of_images_that_are_generated_again_are_computed_again(flagged: Path, command: Command) -> None:
    reduce, store = ("--column", "clip-demo", "--pca", "4"), flagged / "tokens"
    assert command("reduce", flagged, *reduce)[0] == 0
    before = ColumnReader(store, "clip-demo-pca4").gather(range(ROWS))
    status, figures, printed = command("verify", flagged, "--repair")
    assert (status, {finding["column"] for finding in figures["findings_left"]}) == (1, {"clip-demo-pca4"}), printed
    assert re.search(r"clip-demo-pca4/shard-00000-\w+\.h5: rows 2 missing \(.*; run python -m featurize reduce again\)", printed)
    with pytest.raises(InputError, match=r"clip-demo-pca4 with .*; run python -m featurize reduce again"):
        ColumnReader(store, "clip-demo-pca4")
    assert command("reduce", flagged, *reduce)[1]["rows"] == 3
    assert command("verify", flagged, "--deep")[0] == 0
    after = ColumnReader(store, "clip-demo-pca4").gather(range(ROWS))
    again = np.isin(range(ROWS), [2, 6, 10])
    assert np.array_equal(after[~again], before[~again])
    assert np.abs(after.astype(float) - before).max() <= 0.1


def _plant_foreign(run_dir: Path, name: str = "mine") -> ColumnSpec:
    """Write a foreign column of tokens next to ours."""
    spec = ColumnSpec(name=name, what="tokens", rows=ROWS, row_shape=(2, 3), shard_rows=4, fingerprint={"made": "elsewhere"})
    column = ColumnWriter(run_dir / "tokens", spec)
    for shard in range(spec.shards):
        writer = column.claim(shard)
        assert writer is not None
        writer.write(0, np.ones((writer.layout.rows, 2, 3), np.float16), np.zeros(writer.layout.rows, np.uint8))
        column.commit(shard, writer)
    return spec


@pytest.mark.parametrize("name", ["mine", "a-column-before-ours"])
def test_a_damaged_foreign_column_is_refused_and_not_touched(run: Path, command: Command, name: str) -> None:
    _plant_foreign(run, name)
    _flip(run, name, 5)
    before = _state(run)
    status, figures, printed = command("verify", run, "--deep", "--repair")
    assert (status, figures) == (2, {})
    assert re.search(rf"error: got .*{name}, which no featurize command wrote; .*; get its files again from their source", printed)
    assert _state(run) == before


@pytest.mark.parametrize("name", ["mine", "a-column-before-ours"])
def test_a_repair_leaves_foreign_columns_alone(flagged: Path, command: Command, name: str) -> None:
    _plant_foreign(flagged, name)
    (flagged / "tokens" / "tokens.h5").unlink()
    before = {file: state for file, state in _state(flagged).items() if f"/{name}/shard" in file}
    status, figures, printed = command("verify", flagged, "--repair")
    assert (status, figures.get("findings_left")) == (0, []), printed
    assert {file: state for file, state in _state(flagged).items() if f"/{name}/shard" in file} == before
    assert len(ColumnReader(flagged / "tokens", name)) == ROWS


@pytest.mark.parametrize("name", ["mine", "a-column-before-ours"])
def test_a_damaged_table_is_repaired_next_to_a_foreign_column(run: Path, command: Command, name: str) -> None:
    _plant_foreign(run, name)
    (run / "tokens" / "examples.h5").unlink()
    status, figures, printed = command("verify", run, "--repair")
    assert (status, figures.get("findings_left")) == (0, []), printed


@pytest.mark.parametrize("change", [{"flag_of_tomorrow": 1}, {"batch_size": "many"}, {"encoders": None}], ids=str)
def test_unknown_flags_in_a_manifest_are_a_one_line_error(run: Path, command: Command, change: Any) -> None:
    path = run / "tokens" / "vit-demo" / MANIFEST
    value = json.loads(path.read_text())
    value.pop("xxh3_128")
    value["made_by"] |= change
    path.write_text(json.dumps({**value, "xxh3_128": digest(value)}))
    _flip(run, "vit-demo", 5)
    status, figures, printed = command("verify", run, "--deep", "--repair")
    assert (status, figures) == (2, {})
    assert printed.splitlines()[-1].startswith("error: got ")


@pytest.mark.parametrize("name", ["verify", "info"])
def test_without_a_store_it_is_a_one_line_error(tmp_path: Path, command: Command, name: str) -> None:
    status, figures, printed = command(name, tmp_path / "none")
    assert (status, figures) == (2, {})
    (line,) = printed.splitlines()
    assert re.fullmatch(
        r"error: got no token store in .*/none/tokens; expected one that featurize \w+; run python -m featurize first", line
    )
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("name", ["verify", "info"])
def test_an_unknown_flag_is_answered_with_the_nearest(run: Path, command: Command, name: str) -> None:
    status, _, printed = command(name, run, "--limti", "3")
    assert status == 2
    assert "did you mean '--limit'?" in printed


def test_info_reports_what_is_in_a_store(run: Path, command: Command) -> None:
    _plant_foreign(run)
    before = _state(run)
    status, figures, printed = command("info", run)
    assert (status, figures["complete"], figures["merged"]) == (1, False, False), "a column that is not in tokens.h5 yet"
    assert figures["examples"].items() >= {"corpus": "own", "examples": ROWS, "prompts_cut": 1}.items()
    assert figures["examples"]["prompt_figures"]["prompts_cut"] == 1
    assert f"{run / 'tokens'}: own corpus, 13 examples, 1 with a cut prompt" in printed
    assert sorted(figures["columns"]) == [*COLUMNS[:2], "mine", "vit-demo"]
    column = figures["columns"]["vit-demo"]
    assert (column["rows"], column["rows_final"], column["row_shape"], column["dtype"]) == (ROWS, ROWS, [17, 128], "float16")
    assert column["bytes"] == sum(path.stat().st_size for path in (run / "tokens" / "vit-demo").glob("shard-*"))
    assert column["made_by"]["steps"] == 2
    assert "vit-demo: 13 of 13 rows of 17 × 128 float16, 0.1 MB" in printed
    assert "  generation.generator.steps = 2" in printed
    assert "tokens by vit-demo" in printed
    assert figures["columns"]["mine"]["made_by"] is None
    assert _state(run) == before


def test_info_reports_flagged_and_unfinished_rows(flagged: Path, table: Path, command: Command) -> None:
    texts = {example.text: example.id for example in load_corpus(table).examples}
    ids = ", ".join(texts[f"text number {n}"] for n in (2, 6, 10))
    assert f"  FAILED: rows 2, 6, 10 of the column, of the texts {ids} (not finite)\n" in command("info", flagged)[2]
    column = ColumnWriter(flagged / "tokens", load_manifest(flagged / "tokens" / "clip-demo")[0])
    column.reopen(2, column.records[2])
    (flagged / "tokens" / "examples.h5").unlink()
    _, figures, printed = command("info", flagged)
    assert "FAILED: rows 2, 6, 10" in printed
    assert "clip-demo: 9 of 13 rows" in printed
    assert "no table of examples yet" in printed
    assert figures["columns"]["vit-demo"]["flagged"] == {"2": "not finite", "6": "not finite", "10": "not finite"}


@pytest.mark.parametrize(("part", "status"), [("1/4", 1), ("3/4", 0)])
def test_a_part_fails_with_its_own_rows_and_the_store_with_those_of_any(
    flagged: Path, table: Path, command: Command, capsys: pytest.CaptureFixture[str], part: str, status: int
) -> None:
    capsys.readouterr()
    demo = ["--generator", "demo", "--steps", "2", "--batch-size", "4", "--shard-rows", "4", "--encoders", "demo"]
    assert main(["--dataset", str(table), "--run-dir", str(flagged), *demo, "--part", part]) == status
    figures = json.loads(capsys.readouterr().out)
    assert (figures["complete"], figures["part_complete"], figures["failed_rows"]["vit-demo"]) == (False, status == 0, 3)
    for name in ("info", "merge"):
        status, figures, _ = command(name, flagged)
        assert (status, figures["complete"], figures["failed_rows"]["vit-demo"], figures["missing_shards"]) == (1, False, 3, "")


def test_from_python_a_store_is_verified_and_described(run: Path) -> None:
    store = run / "tokens"
    assert verify_store(store, deep=True).complete
    _flip(run, "vit-demo", 5)
    assert verify_store(store).complete
    found = verify_store(store, deep=True)
    assert [(finding.kind, finding.rows) for finding in found.findings] == [("damaged", (5,))]
    assert found.summary().splitlines()[-1] == f"{store}: 1 file damaged"
    (store / "examples.h5").write_bytes(b"x")
    (store / "clip-demo" / MANIFEST).write_bytes(b"{")
    content = store_info(store)
    assert content.columns["vit-demo"].row_shape == (17, 128)
    assert content.examples is None
    assert sorted(content.unreadable) == ["clip-demo", "examples.h5"]
    assert content.to_json()["not_shown"].keys() == {"clip-demo"}
    assert content.summary().count("cannot be read: got ") == 2


def test_a_store_of_a_corpus_in_memory_is_repaired_from_python(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = Corpus.from_texts([f"text number {n}" for n in range(14)], ["a", "b"] * 7, name="in-memory")
    with pytest.MonkeyPatch.context() as patch:
        _fail_in(patch, "vit-demo", 2)
        settings = FeaturizeSettings(steps=1, shard_rows=4, batch_size=4)
        featurize(corpus, tmp_path, generator="demo", encoders=["vit-demo"], settings=settings)
    store = tmp_path / "tokens"
    assert verify_store(store, deep=True).counts() == "3 rows flagged in 3 files"
    shard = shard_file(store / "vit-demo", 3)
    intact = shard.read_bytes()
    shard.write_bytes(intact[:-1] + bytes([intact[-1] ^ 1]))
    assert main(["verify", "--dataset", "in-memory", "--run-dir", str(tmp_path), "--repair"]) == 2
    printed = capsys.readouterr().err
    assert "wrote for a corpus in memory, in-memory; expected" in printed
    assert "call lugpi.repair_store(store, corpus)" in printed
    other = Corpus.from_texts([f"text number {n}" for n in range(14)], ["a", "c"] * 7, name="in-memory")
    with pytest.raises(InputError, match="with other examples, prompts, labels or splits"):
        repair_store(store, other)
    assert repair_store(str(store), corpus).complete
    assert shard.read_bytes() == intact
    assert repair_store(store, corpus).complete
