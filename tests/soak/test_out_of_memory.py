"""Out of memory at any stage and any number of rows: the run halves its batch, continues and ends with the same rows."""

import json
import math
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from featurize.cli import main
from featurize.encode.encoders import find_encoder
from featurize.encode.image_encoder import ImageEncoder
from featurize.generate.text_to_image import TextToImage
from featurize.options import FeaturizeOptions
from featurize.plan import job as planning
from featurize.run import featurize_command
from lugpi_core.runtime.device import Compute
from lugpi_core.store.reader import ColumnReader

ROWS, SHARD, BATCH, TEXTS = 24, 12, 8, 12
STAGES: dict[str, tuple[Any, str]] = {
    "prompt": (TextToImage, "encode_prompts"),
    "denoise": (TextToImage, "denoise"),
    "decode": (TextToImage, "decode"),
    "encode": (ImageEncoder, "encode"),
}
COLUMNS = ("latents", "clip-demo", "vit-demo")
SMALL: dict[str, Any] = {"generator": "demo", "steps": 2, "size_px": 32, "batch_size": BATCH, "shard_rows": SHARD}
# The messages of the libraries.
MESSAGES = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 8."),
    MemoryError("std::bad_alloc"),
)


class _Memory:
    """Makes calls fail: ``lacks(stage, rows, done)`` says whether a call of ``rows`` rows fails after ``done`` rows of its stage."""

    def __init__(self, lacks: Callable[[str, int, int], bool], patch: pytest.MonkeyPatch) -> None:
        self._lacks = lacks
        self.failures, self.done = Counter[str](), Counter[str]()
        for stage, (owner, name) in STAGES.items():
            patch.setattr(owner, name, self._limited(stage, getattr(owner, name)))

    def _limited(self, stage: str, whole: Callable[..., Any]) -> Callable[..., Any]:
        def call(self_: Any, *given: Any, **named: Any) -> Any:
            rows = len(given[-1])
            if stage == "prompt" and list(given[-1]) == [""]:  # the empty prompt of guidance is no row
                return whole(self_, *given, **named)
            if self._lacks(stage, rows, self.done[stage]):
                self.failures[stage] += 1
                raise MESSAGES[sum(self.failures.values()) % len(MESSAGES)]
            result = whole(self_, *given, **named)
            self.done[stage] += rows
            return result

        return call


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "own.csv"
    path.write_text("text,label\n" + "".join(f"picture number {n},{'ab'[n % 2]}\n" for n in range(ROWS)))
    return path


def _featurize(table: Path, run: Path) -> dict[str, Any]:
    return featurize_command(FeaturizeOptions(dataset=str(table), run_dir=run, encoders=("demo",), **SMALL))


def _arguments(table: Path, run: Path) -> list[str]:
    flags = [part for name, value in SMALL.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    return ["--dataset", str(table), "--run-dir", str(run), "--encoders", "vit-demo", *flags]


@pytest.fixture(scope="module")
def well(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("well")
    assert _featurize(table, run)["batches"]["halvings"] == []
    return run


def _check(run: Path, well: Path, columns: tuple[str, ...] = COLUMNS) -> None:
    for column in columns:
        found, wanted = ColumnReader(run / "tokens", column), ColumnReader(well / "tokens", column)
        assert found.flagged == wanted.flagged == {}
        assert np.abs(found.gather(range(ROWS)).astype(float) - wanted.gather(range(ROWS))).max() <= 0.02


def _limited_run(table: Path, run: Path, limits: dict[str, int]) -> Counter[str]:
    """Run with room for ``limits`` rows per call of each stage; return how often each stage failed."""
    with pytest.MonkeyPatch.context() as patch:
        memory = _Memory(lambda stage, rows, _: rows > limits.get(stage, ROWS), patch)
        figures = _featurize(table, run)
    assert figures["complete"]
    assert figures["rows"] == {"prompts": ROWS, "drawn": ROWS, "decoded": ROWS, "encoded": 2 * ROWS, "redone": 0}
    assert Counter(one["stage"] for one in figures["batches"]["halvings"]) == memory.failures
    for stage, limit in limits.items():
        assert memory.failures[stage] <= math.log2(TEXTS if stage == "prompt" else BATCH)
        assert figures["batches"]["rows"][stage] <= limit or not memory.failures[stage]
    return memory.failures


def test_out_of_memory_at_any_stage_ends_with_the_same_rows(
    table: Path, well: Path, tmp_path: Path, campaign: Callable[[int, int], int], report: Callable[[str], None]
) -> None:
    """In the short form all stages run out of memory in each run, each stage at every limit in one of the runs."""
    limits = [{stage: (n + 3 * k) % BATCH + 1 for k, stage in enumerate(STAGES)} for n in range(BATCH)]
    if campaign(0, 1):
        limits += [{stage: limit} for stage in STAGES for limit in range(1, (TEXTS if stage == "prompt" else BATCH) + 1)]
    failures = Counter[str]()
    for n, limit_of_stage in enumerate(limits):
        failures += _limited_run(table, tmp_path / f"run-{n}", limit_of_stage)
        _check(tmp_path / f"run-{n}", well)
    assert failures.keys() == STAGES.keys()
    report(
        f"out of memory: {len(limits)} runs, {sum(failures.values())} failed calls {dict(failures)}, never more than log2(B) of a stage "
        "in a run, all stores complete and the same"
    )


@pytest.mark.parametrize("stage", list(STAGES))
def test_when_not_even_one_row_fits_the_written_rows_are_kept(
    table: Path, well: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], stage: str
) -> None:
    arguments = _arguments(table, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        _Memory(lambda at, _, done: at == stage and done >= SHARD, patch)
        assert main(arguments) == 2
    captured = capsys.readouterr()
    said = captured.err.splitlines()
    assert captured.out == ""
    assert said[-1].startswith(f"error: got too little memory for one row at a time ({stage}); expected a device that one image fits on")
    assert "what is written is kept" in said[-1]
    assert "Traceback" not in captured.err
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]["drawn"] == ROWS - SHARD
    _check(tmp_path, well, ("latents", "vit-demo"))


# Half precision on the CPU, which a user cannot ask for.
HALF = Compute(device="cpu", device_name="CPU", dtype="bfloat16", threads=1)


def _featurize_in_half(table: Path, run: Path) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "resolve_compute", lambda *_, **__: HALF)
        return _featurize(table, run)


@pytest.fixture(scope="module")
def well_in_half(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("half")
    assert _featurize_in_half(table, run)["compute"]["dtype"] == "bfloat16"
    return run


def _failing_latents(patch: pytest.MonkeyPatch) -> None:
    """Make row 2 of every block NaN, unless it is generated on its own."""
    whole = TextToImage.denoise

    def draw(self: TextToImage, embeddings: Any, seeds: list[int], **how: Any) -> torch.Tensor:
        latents = whole(self, embeddings, seeds, **how).clone()
        if len(seeds) > 1:
            assert latents.dtype == torch.bfloat16
            latents[2] = torch.nan
        return latents

    patch.setattr(TextToImage, "denoise", draw)


@pytest.mark.parametrize("lacking", [None, *STAGES])
def test_without_memory_for_float32_the_failed_rows_stay_flagged(
    table: Path, well_in_half: Path, tmp_path: Path, lacking: str | None
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        _failing_latents(patch)
        _Memory(lambda stage, rows, _: stage == lacking and rows == 1, patch)  # blocks have 8 and 4 rows, rows computed again have one
        figures = _featurize_in_half(table, tmp_path)
    failed = [2, 10, 14, 22]
    at = {None: (), "prompt": COLUMNS, "denoise": COLUMNS, "decode": COLUMNS[1:], "encode": COLUMNS[1:]}[lacking]
    assert figures["failed_rows"] == {column: 4 * (column in at) for column in COLUMNS}
    assert figures["rows"]["redone"] == (0 if lacking else 4)
    for column in COLUMNS:
        found, wanted = ColumnReader(tmp_path / "tokens", column), ColumnReader(well_in_half / "tokens", column)
        assert list(found.flagged) == (failed if column in at else [])
        sound = [row for row in range(ROWS) if row not in failed]
        assert np.array_equal(found.gather(sound), wanted.gather(sound))
        assert np.isfinite(found.gather(failed)).all()


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tower", None])
def test_models_that_do_not_fit_in_float32_get_their_bits_back(part: str | None) -> None:
    options = FeaturizeOptions(dataset="demo", encoders=("vit-demo",), **SMALL)
    generator = planning.find_generator("demo", planning.generator_settings("demo", {"size_px": options.size_px}), half=True)
    drawer, encoder = TextToImage(generator, HALF), ImageEncoder(find_encoder("vit-demo"), HALF)
    parts = {"unet": drawer.parts.denoiser, "vae": drawer.parts.vae, **drawer.parts.text_encoders, "tower": encoder._tower}
    before = {name: {key: value.clone() for key, value in module.state_dict().items()} for name, module in parts.items()}
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        if part is not None:
            patch.setattr(parts[part], "float", lambda: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory")))
            stack.enter_context(pytest.raises(torch.OutOfMemoryError))
        with drawer.in_float32(), encoder.in_float32():
            with drawer.text_encoder_on_device():
                embeddings = drawer.encode_prompts(["a cat"])
            latents = drawer.denoise(embeddings, [1])
            images = drawer.decode(latents)
            assert part is None
            assert {values.dtype for values in (embeddings["tokens"], latents, images)} == {torch.float32}
            # Only the part that runs is in float32.
            assert {name: next(module.parameters()).dtype for name, module in parts.items()} == {
                **dict.fromkeys(parts, torch.bfloat16),
                "tower": torch.float32,
            }
    for name, module in parts.items():
        found = module.state_dict()
        assert all(torch.equal(found[key], value) and found[key].dtype == value.dtype for key, value in before[name].items())
    assert encoder._dtype == torch.bfloat16
