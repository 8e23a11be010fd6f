"""Flags that change what is in a store, as commands: another decoder, DeepCache, how many rows may fail."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from featurize.cli import main
from featurize.encode.encoders import find_encoder
from featurize.encode.image_encoder import ImageEncoder
from featurize.generate.text_to_image import TextToImage
from featurize.options import FeaturizeOptions, FeaturizeSettings, InspectSettings
from lugpi_core.errors import InputError
from lugpi_core.runtime.device import resolve_compute
from lugpi_core.runtime.pretrained import embedded_model
from lugpi_core.store.manifest import MANIFEST, load_manifest
from lugpi_core.store.reader import ColumnReader
from tests.support.shards import shard_file
from tests.support.small_corpus import load_no_model, poison

DEMO = ("--generator", "demo", "--encoders", "clip-demo", "--steps", "3", "--batch-size", "4", "--shard-rows", "8")
# Shown, not an error, because the embedded encoders read all of the embedded generators' pixels.
pytestmark = pytest.mark.filterwarnings("always:--decoder half makes images of 32 px")
ROWS, TINY, HALF = 13, "clip-demo-tiny", "clip-demo-half"


@pytest.fixture(scope="module")
def original_run(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a store with the generator's own decoder, to which the tiny one and the halved one were added later."""
    run_dir = tmp_path_factory.mktemp("run")
    assert main(["--dataset", str(table), "--run-dir", str(run_dir), *DEMO]) == 0
    before = _state(run_dir / "tokens")
    for decoder in ("tiny", "half"):
        assert main(["--dataset", str(table), "--run-dir", str(run_dir), *DEMO, "--decoder", decoder]) == 0
    after = _state(run_dir / "tokens")
    assert {name: after[name] for name in before if "/" in name} == {name: before[name] for name in before if "/" in name}
    return run_dir


@pytest.fixture
def run(original_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original_run, tmp_path / "run"))


def _state(store: Path) -> dict[str, tuple[int, bytes]]:
    files = (path for path in sorted(store.rglob("*")) if path.is_file())
    return {path.relative_to(store).as_posix(): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def _shards(run_dir: Path, column: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((run_dir / "tokens" / column).glob("shard-*.h5"))]


def _figures(capsys: pytest.CaptureFixture[str], status: int, *arguments: str | Path) -> dict[str, Any]:
    capsys.readouterr()
    assert main([str(one) for one in arguments]) == status
    figures: dict[str, Any] = json.loads(capsys.readouterr().out)
    return figures


def test_another_decoder_gets_its_own_column_from_the_same_latents(
    table: Path, tmp_path: Path, original_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ("--dataset", table, "--run-dir", tmp_path, *DEMO)
    figures = _figures(capsys, 0, *run, "--decoder", "tiny")
    assert sorted(figures["columns"]) == [TINY, "latents"]
    assert _shards(tmp_path, TINY) == _shards(original_run, TINY), "in one pass as if added later"
    assert _shards(tmp_path, "latents") == _shards(original_run, "latents")
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(TextToImage, "denoise")
        figures = _figures(capsys, 0, *run)
    assert figures["rows"] == {"prompts": 0, "drawn": 0, "decoded": ROWS, "encoded": ROWS, "redone": 0}
    assert _shards(tmp_path, "clip-demo") == _shards(original_run, "clip-demo")
    load_no_model(monkeypatch)
    for flags in ((), ("--decoder", "tiny")):
        assert _figures(capsys, 0, *run, *flags)["already_done"]


def test_the_tiny_decoders_tokens_are_those_of_its_images(original_run: Path) -> None:
    latents = torch.from_numpy(ColumnReader(original_run / "tokens", "latents").gather(range(4))).float()
    vae = diffusers.AutoencoderTiny.from_pretrained(embedded_model("tiny"))
    with torch.inference_mode():
        images = (vae.decode(latents, return_dict=False)[0] / 2 + 0.5).clamp(0, 1)
    tokens = ImageEncoder(find_encoder("clip-demo"), resolve_compute("cpu", "float32", half="float16")).encode(images)
    found, other = (ColumnReader(original_run / "tokens", name).gather(range(4)).astype(float) for name in (TINY, "clip-demo"))
    assert np.abs(found - tokens.numpy()).max() <= 1e-2
    assert np.abs(found - other).max() > 0.1


def test_the_halved_decoders_tokens_are_near_those_of_the_whole(original_run: Path) -> None:
    whole, half, tiny = (
        torch.from_numpy(ColumnReader(original_run / "tokens", name).gather(range(ROWS))).float() for name in ("clip-demo", HALF, TINY)
    )
    near, far = (torch.nn.functional.cosine_similarity(whole, other, dim=-1).mean().item() for other in (half, tiny))
    assert 0.97 < near < 1
    assert far < near


def test_images_that_are_smaller_than_their_encoder_reads_are_told(
    table: Path, original_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ("--dataset", str(table), "--run-dir", str(original_run), *DEMO, "--decoder", "half")
    assert main([*run]) == 0
    assert "--decoder half makes images of 32 px, which are enlarged to the 64 px that clip-demo reads" in capsys.readouterr().err


def test_the_decoder_is_part_of_a_columns_identity(run: Path, table: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    found = {name: load_manifest(run / "tokens" / name)[0].fingerprint for name in ("latents", "clip-demo", TINY, HALF)}
    assert "decoder" not in found["latents"]
    assert len({str(found[name]["decoder"]) for name in ("clip-demo", TINY, HALF)}) == 3
    folder = Path(shutil.copytree(embedded_model("tiny"), tmp_path / "tiny"))
    (folder / "config.json").write_text(json.dumps({**json.loads((folder / "config.json").read_text()), "latent_magnitude": 4}))
    before = _state(run)
    assert main(["--dataset", str(table), "--run-dir", str(run), *DEMO, "--decoder", f"tiny={folder}"]) == 2
    assert "decoder.weights: found" in capsys.readouterr().err
    assert _state(run) == before


def _repaired(capsys: pytest.CaptureFixture[str], table: Path, run: Path, original_run: Path) -> None:
    """Repair a store whose latents are intact, and compare every column with the original."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(TextToImage, "denoise")
        figures = _figures(capsys, 0, "verify", "--dataset", table, "--run-dir", run, "--repair")
    assert figures["findings_left"] == []
    for column in ("latents", "clip-demo", TINY, HALF):
        assert _shards(run, column) == _shards(original_run, column)


@pytest.mark.parametrize("column", ["clip-demo", TINY, HALF])
def test_a_damaged_row_is_repaired_with_its_columns_decoder(
    run: Path, original_run: Path, table: Path, capsys: pytest.CaptureFixture[str], column: str
) -> None:
    path = shard_file(run / "tokens" / column, 1)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    _repaired(capsys, table, run, original_run)


@pytest.mark.parametrize("column", ["clip-demo", TINY, HALF])
def test_a_column_without_manifest_is_repaired_with_its_decoder(
    run: Path, original_run: Path, table: Path, capsys: pytest.CaptureFixture[str], column: str
) -> None:
    os.truncate(run / "tokens" / column / MANIFEST, 200)
    _repaired(capsys, table, run, original_run)


def test_deepcache_gives_other_images_and_another_fingerprint(
    table: Path, tmp_path: Path, original_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ("--dataset", table, "--run-dir", tmp_path, *DEMO)
    figures = _figures(capsys, 0, *run, "--deepcache", "2")
    assert figures["rows"]["drawn"] == ROWS
    latents = [ColumnReader(run / "tokens", "latents") for run in (tmp_path, original_run)]
    reused, whole = (reader.gather(range(ROWS)).astype(float) for reader in latents)
    assert 1e-3 < np.abs(reused - whole).max() < np.abs(whole).max()
    assert load_manifest(tmp_path / "tokens" / "latents")[0].fingerprint["generation"]["generator"]["deepcache"] == 2
    assert main([str(one) for one in run]) == 2
    assert "generation.generator.deepcache: found 2, wanted 1" in capsys.readouterr().err


def test_deepcache_of_one_is_none_at_all(table: Path, original_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_no_model(monkeypatch)
    assert main(["--dataset", str(table), "--run-dir", str(original_run), *DEMO, "--deepcache", "1"]) == 0


def test_too_many_failed_rows_end_the_run_with_one_line(
    table: Path, tmp_path: Path, original_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["--dataset", str(table), "--run-dir", str(tmp_path), *DEMO, "--max-failed", "1"]
    with pytest.MonkeyPatch.context() as patch:
        poison(patch, "unet", float("nan"))
        assert main(run) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    line = captured.err.splitlines()[-1]
    assert line.startswith("error: got 2 failed rows of 8; expected at most 1 (--max-failed); see python -m featurize info, ")
    assert "and try another --generator" in line
    assert line.endswith("what is written is kept")
    figures = _figures(capsys, 1, *run)
    assert (figures["rows"]["drawn"], figures["failed_rows"]) == (ROWS - 8, {"latents": 2, "clip-demo": 2})
    good = [row for row in range(ROWS) if row not in (1, 5)]
    for column in ("latents", "clip-demo"):
        repaired, original = (ColumnReader(run / "tokens", column).gather(good) for run in (tmp_path, original_run))
        assert np.array_equal(repaired, original)


@pytest.mark.parametrize(
    "flags", [("--compile", "off"), ("--memory-gb", "4"), ("--max-failed", "0"), ("--attention", "sdpa")], ids=" ".join
)
def test_how_it_is_computed_is_not_part_of_what_is_made(
    table: Path, original_run: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, str]
) -> None:
    load_no_model(monkeypatch)
    assert main(["--dataset", str(table), "--run-dir", str(original_run), *DEMO, *flags]) == 0


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        (FeaturizeSettings, {"device": "tpu"}),
        (FeaturizeSettings, {"attention": "x"}),
        (FeaturizeSettings, {"compile": "maybe"}),
        (FeaturizeSettings, {"latents": "no"}),
        (FeaturizeSettings, {"token_dtype": "int4"}),
        (FeaturizeSettings, {"steps": 2.5}),
        (FeaturizeSettings, {"guidance": "high"}),
        (FeaturizeSettings, {"batch_size": "all"}),
        (InspectSettings, {"device": "x"}),
        (InspectSettings, {"thumbnails": "10"}),
    ],
    ids=str,
)
def test_a_setting_of_another_type_is_refused(kind: type, given: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"got {next(iter(given))}="):
        kind(**given)


def test_numbers_from_python_are_those_of_the_flags() -> None:
    # The flags give floats, and "guidance": 7 would differ from 7.0 in a record.
    assert repr(FeaturizeSettings(guidance=-1).guidance) == "-1.0"


def test_options_check_the_settings_they_inherit() -> None:
    given: dict[str, Any] = {"dataset": "demo", "limit": "10"}
    with pytest.raises(InputError, match="got limit='10'"):
        FeaturizeOptions(**given)
