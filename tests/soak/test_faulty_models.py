"""Models that fail in some rows: each failed row is detected and then fixed or flagged, and no other row changes.

A fault is ``(place, value, lasting)``. A lasting fault also occurs when the row is computed again in float32.
"""

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from featurize.cli import main
from featurize.encode.image_encoder import ImageEncoder
from featurize.encode.transformers_models import _TransformersTokens
from featurize.generate.text_to_image import TextToImage
from lugpi_core.store.reader import ColumnReader

VALUES = {"nan": torch.nan, "inf": torch.inf, "constant": 0.25}
PLACES = ("unet", "latents", "decoder", "encoder")
# A constant prediction of the UNet gives an image of plain noise, finite and not constant, which cannot be detected.
FAULTS = [
    (place, value, lasting) for place in PLACES for value in VALUES for lasting in (True, False) if (place, value) != ("unet", "constant")
]
COLUMNS = ("latents", "clip-demo", "vit-demo")
REACHED = {"unet": COLUMNS, "latents": COLUMNS, "decoder": COLUMNS[1:], "encoder": COLUMNS[2:]}
REASONS = {"nan": "not finite", "inf": "not finite", "constant": "constant picture"}
DEMO = ("--generator", "demo", "--encoders", "demo", "--steps", "2", "--size-px", "32", "--batch-size", "8", "--shard-rows", "24")

Fault = tuple[str, str, bool]


class _Faulty:
    """Wraps the calls of the models and makes rows fail. A row is identified by its seed when it is generated, and later by the
    values of its last call."""

    def __init__(self, faults: Mapping[int, Fault], patch: pytest.MonkeyPatch) -> None:
        self._faults = faults
        self._seeds_now: list[int] = []
        self._seed_of: dict[bytes, int] = {}
        self._calls: dict[tuple[str, int], int] = {}
        self.struck: set[int] = set()
        self._around(patch, TextToImage, "denoise", self._draw)
        self._around(patch, TextToImage, "decode", self._decode)
        self._around(patch, ImageEncoder, "encode", self._encode)
        self._around(patch, diffusers.UNet2DConditionModel, "forward", self._unet)
        self._around(patch, diffusers.AutoencoderKL, "decode", self._decoder)
        self._around(patch, _TransformersTokens, "forward", self._tower)

    @staticmethod
    def _around(patch: pytest.MonkeyPatch, owner: Any, name: str, stand_in: Callable[..., Any]) -> None:
        whole = getattr(owner, name)

        def call(self: Any, *given: Any, **named: Any) -> Any:
            return stand_in(lambda *changed: whole(self, *(changed or given), **named), *given)

        patch.setattr(owner, name, call)

    def _draw(self, whole: Callable[..., Any], _: Any, seeds: list[int]) -> torch.Tensor:
        self._begin(("unet", "latents"), seeds)
        latents: torch.Tensor = self._strike("latents", whole(), len(seeds))
        self._remember(latents.half(), seeds)
        return latents

    def _decode(self, whole: Callable[..., Any], latents: torch.Tensor) -> torch.Tensor:
        seeds = self._recognise(latents)
        self._begin(("decoder",), seeds)
        images: torch.Tensor = whole()
        self._remember(images, seeds)
        return images

    def _encode(self, whole: Callable[..., Any], images: torch.Tensor) -> torch.Tensor:
        self._seeds_now = self._recognise(images)
        tokens: torch.Tensor = whole()
        return tokens

    def _unet(self, whole: Callable[..., Any], read: torch.Tensor, *_: Any) -> tuple[torch.Tensor]:
        return (self._strike("unet", whole()[0], len(self._seeds_now)),)

    def _decoder(self, whole: Callable[..., Any], latents: torch.Tensor) -> tuple[torch.Tensor]:
        return (self._strike("decoder", whole()[0], len(latents)),)

    def _tower(self, whole: Callable[..., Any], pixels: torch.Tensor) -> torch.Tensor:
        self._begin(("encoder",), self._seeds_now)
        return self._strike("encoder", whole(), len(pixels))

    def _begin(self, places: tuple[str, ...], seeds: list[int]) -> None:
        self._seeds_now = list(seeds)
        for place in places:
            for seed in seeds:
                self._calls[place, seed] = self._calls.get((place, seed), 0) + 1

    def _strike(self, place: str, values: torch.Tensor, rows: int) -> torch.Tensor:
        """Put the faults of this place into their rows; with guidance every row occurs twice."""
        values = values.clone()
        for n, seed in enumerate(self._seeds_now):
            at, value, lasting = self._faults.get(seed, ("nowhere", "", False))
            if at == place and (lasting or self._calls[place, seed] == 1):
                values[n::rows] = VALUES[value]
                self.struck.add(seed)
        return values

    def _remember(self, values: torch.Tensor, seeds: list[int]) -> None:
        self._seed_of |= {row.numpy().tobytes(): seed for row, seed in zip(values.float(), seeds, strict=True)}

    def _recognise(self, values: torch.Tensor) -> list[int]:
        """Return the seeds of rows that an earlier call returned."""
        return [self._seed_of[row.numpy().tobytes()] for row in values.float()]


def _table(path: Path, rows: int) -> Path:
    path.write_text("text,label\n" + "".join(f"picture number {n},{'ab'[n % 2]}\n" for n in range(rows)))
    return path


def _seeds(table: Path) -> list[int]:
    """Return the seed of every image."""
    from featurize.plan.images import plan_images
    from lugpi_core.corpora.load import load_corpus

    return [int(seed) for seed in plan_images(load_corpus(table), seed=0).seeds]


def _run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    status = main([str(one) for one in arguments])
    return status, json.loads(capsys.readouterr().out.splitlines()[-1])


def _values(run: Path, column: str, rows: int) -> np.ndarray[Any, Any]:
    return ColumnReader(run / "tokens", column).gather(range(rows))


def _check(run: Path, well: Path, faults: Mapping[int, Fault], rows: int) -> None:
    """Assert that lasting faults are flagged in the columns they reach, others are fixed, and all other rows are as without faults."""
    fixed = [row for row, (_, _, lasting) in faults.items() if not lasting]
    for column in COLUMNS:
        reader = ColumnReader(run / "tokens", column)
        flagged = {row: REASONS[value] for row, (place, value, lasting) in faults.items() if lasting and column in REACHED[place]}
        assert reader.flagged == flagged
        found, wanted = reader.gather(range(rows)), _values(well, column, rows)
        assert np.isfinite(found).all()
        assert not found[list(flagged)].any()
        sound = [row for row in range(rows) if row not in flagged and row not in fixed]
        assert np.array_equal(found[sound], wanted[sound])
        if fixed:
            assert np.abs(found[fixed].astype(float) - wanted[fixed]).max() <= 0.02


def _faulty_run(capsys: pytest.CaptureFixture[str], table: Path, run: Path, faults: Mapping[int, Fault]) -> dict[str, Any]:
    """Run featurize with these faults, check its output and return its figures."""
    seeds = _seeds(table)
    lasting = {row: fault for row, fault in faults.items() if fault[2]}
    with pytest.MonkeyPatch.context() as patch:
        faulty = _Faulty({seeds[row]: fault for row, fault in faults.items()}, patch)
        status, figures = _run(capsys, "--dataset", table, "--run-dir", run, *DEMO, "--max-failed", str(len(lasting)))
    assert faulty.struck == {seeds[row] for row in faults}
    assert status == (1 if lasting else 0)
    counted = {column: sum(column in REACHED[place] for place, _, _ in lasting.values()) for column in COLUMNS}
    assert figures["failed_rows"] == counted
    assert figures["rows"]["redone"] == len(faults)
    assert (figures["rows"]["drawn"], figures["rows"]["encoded"]) == (len(seeds), 2 * len(seeds))
    status, info = _run(capsys, "info", "--dataset", table, "--run-dir", run)
    assert {column: len(info["columns"][column]["flagged"]) for column in COLUMNS} == counted
    return figures


def test_every_fault_is_detected_and_no_other_row_changes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], campaign: Callable[[int, int], int], report: Callable[[str], None]
) -> None:
    rows, rounds, chance = campaign(66, 440), campaign(1, 20), random.Random(0)
    table = _table(tmp_path / "own.csv", rows)
    assert _run(capsys, "--dataset", table, "--run-dir", tmp_path / "well", *DEMO)[0] == 0
    flagged = 0
    for n in range(rounds):
        faults = dict(zip(chance.sample(range(rows), len(FAULTS)), FAULTS, strict=True))
        figures = _faulty_run(capsys, table, tmp_path / f"run-{n}", faults)
        _check(tmp_path / f"run-{n}", tmp_path / "well", faults, rows)
        flagged += sum(figures["failed_rows"].values())
    report(
        f"faulty rows: {rounds * len(FAULTS)} of {rounds * rows} at {len(PLACES)} places, NaN, Inf and constant: all detected, half "
        f"fixed in float32, {flagged} rows of columns flagged; not finite on disk 0, other rows changed 0"
    )


def test_failed_rows_are_repaired_when_the_models_work_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], campaign: Callable[[int, int], int]
) -> None:
    rows, chance = campaign(40, 400), random.Random(1)
    table, run = _table(tmp_path / "own.csv", rows), tmp_path / "run"
    assert _run(capsys, "--dataset", table, "--run-dir", tmp_path / "well", *DEMO)[0] == 0
    lasting = [fault for fault in FAULTS if fault[2]]
    faults = {row: chance.choice(lasting) for row in chance.sample(range(rows), rows // 20)}
    _faulty_run(capsys, table, run, faults)
    _check(run, tmp_path / "well", faults, rows)
    status, figures = _run(capsys, "--dataset", table, "--run-dir", run, *DEMO)
    assert (status, figures["already_done"], figures["rows"]["drawn"]) == (1, True, 0)
    assert _run(capsys, "verify", "--dataset", table, "--run-dir", run, "--repair")[0] == 0
    for column in COLUMNS:
        found, wanted = _values(run, column, rows), _values(tmp_path / "well", column, rows)
        assert np.abs(found.astype(float) - wanted).max() <= 0.02
        sound = [row for row in range(rows) if row not in faults]
        assert np.array_equal(found[sound], wanted[sound])


def test_a_model_that_fails_in_every_row_ends_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, run = _table(tmp_path / "own.csv", 40), tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        _Faulty(dict.fromkeys(_seeds(table), ("encoder", "nan", True)), patch)
        assert main(["--dataset", str(table), "--run-dir", str(run), *DEMO]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: got 24 failed rows of 24; expected at most 16 (--max-failed)")
    status, figures = _run(capsys, "--dataset", table, "--run-dir", run, *DEMO)
    assert (status, figures["rows"]["drawn"]) == (1, 16)
    assert figures["failed_rows"] == {"latents": 0, "clip-demo": 0, "vit-demo": 24}
