"""The figures of the documents are those of the records in benchmarks/results, or those that the architectures and shapes give."""

import re

import pytest

import tests.support.documented_figures as figures
from featurize.cost.estimate import ALLOCATOR_FACTOR, RESERVE_BYTES, decode_rows, peak_bytes
from featurize.cost.stage_cost import StageWork, counted_work
from featurize.encode.encoders import PRESETS, find_encoder
from lugpi_core.store.layout import ShardLayout
from lugpi_core.store.lease import BEAT_S, STALE_S
from tests.featurize.cost.test_stage_cost import OPENCLIP_H, SD2_UNET, _folder, _generator, _open_clip
from tests.support.checkout import ROOT

BENCHMARKS = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
RESULTS = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
GPU = (ROOT / "docs" / "gpu-24gb.md").read_text(encoding="utf-8")
STORE = (ROOT / "docs" / "store.md").read_text(encoding="utf-8")
TABLES = ("drawing_rows", "store_rows", "epoch_rows", "cached_rows", "memory_rows")
BATCHES = (4, 8, 16, 32)
pytestmark = pytest.mark.timeout(1200)  # counting the work of Stable Diffusion takes a loaded machine minutes


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, StageWork]]:
    """What Stable Diffusion 2 costs at both sizes, with CLIP L/14."""
    folder = _folder(tmp_path_factory.mktemp("sd2"), "StableDiffusionPipeline", SD2_UNET, [OPENCLIP_H])
    return {px: counted_work(_generator(folder, px), [_open_clip("ViT-L-14")], dtype="float16") for px in (512, 768)}


@pytest.mark.parametrize("table", TABLES)
def test_a_table_of_speeds_is_that_of_its_record(table: str) -> None:
    for line in getattr(figures, table)():
        assert line in BENCHMARKS.splitlines()


@pytest.mark.parametrize("table", ["demo_rows", "real_rows", "corpora_rows"])
def test_a_table_of_an_experiment_is_that_of_its_records(table: str) -> None:
    for line in getattr(figures, table)():
        assert line in RESULTS.splitlines()


def test_what_stands_in_sentences_is_in_the_records() -> None:
    store, train = figures.figures("store")["B/32"], figures.figures("train")
    hot, writing = store["hot"]["ours_against"], store["writing"]
    fidelity = figures.figures("fidelity")
    cases = list(fidelity["cases"].values())
    rates, steps = writing["gb_per_s"], train["steps"]
    said = (
        f"`mapped[rows]` is {hot['np.memmap, mapped[rows]']}",
        f"{writing['ours_over']['raw file, write and fsync']:.2f} × the rate of a raw file",
        f"{rates['ours, with the sha256 of every file']:.2f}\nGB/s with it, {rates['ours, checked and final']} without",
        f"cached outputs takes {steps['32 tokens']['over']['student step over plain Hugging Face step']:.2f} (32 tokens)",
        f"and {steps['128 tokens']['over']['student step over plain Hugging Face step']:.2f} (128 tokens)",
        f"takes {100 * train['loader']['student']['share']:.3f} % of it",
        f"takes {cases[2]['int8_over_float16_bytes']:.3f} of",
        f"at least {min(one['cosine']['min'] for one in cases[:2]):.5f} on the demo",
        f"{100 * cases[1]['same_argmax']:.1f} % and {100 * cases[0]['same_argmax']:.1f} % of {cases[0]['examples']}",
        f"it is at least {cases[2]['cosine']['min']:.5f};",
        f"as some trained encoders have, {next(iter(fidelity['stress'].values()))['cosine']['min']:.4f}",
    )
    for words in said:
        assert BENCHMARKS.count(words) == 1, words


def test_every_record_that_is_there_is_linked() -> None:
    for path in (ROOT / "benchmarks" / "results").glob("*.json"):
        assert f"benchmarks/results/{path.name}" in BENCHMARKS + RESULTS, path.name


def test_the_work_of_an_image_is_what_is_counted(work: dict[int, dict[str, StageWork]]) -> None:
    for px in (512, 768):
        assert round(work[px]["denoise"].flops / 1e12, 3) == figures.UNET_TFLOP[px]
        assert work[px]["decode"].flops / 1e12 == pytest.approx(figures.DECODER_TFLOP[px], abs=1e-3)
    told = [figures.image_tflop(512, 50), figures.image_tflop(512, 20), figures.image_tflop(768, 50)]
    words = "An image is {:.1f} TFLOP at 512 px with 50 guided steps, decoder included, {:.1f} with 20 steps (`fast`), and {:.1f} at 768 px"
    assert words.format(*told) in GPU
    assert f"That is {figures.paper_tflop_per_s():.0f} TFLOP/s" in GPU
    assert round(told[2] / told[1]) == 6
    assert "six times the work" in GPU


def test_the_gpus_memory_is_what_is_counted(work: dict[int, dict[str, StageWork]]) -> None:
    for px, name in ((512, "SD v2-base, 512 px"), (768, "SD v2, 768 px")):
        peaks = [peak_bytes(work[px], batch=n, guided=True, decode_rows=decode_rows(work[px], n, True), encode_rows=n) for n in BATCHES]
        assert figures.row(name, *(f"{peak / 1e9:.1f}" for peak in peaks)) in GPU.splitlines()
    assert f"× {ALLOCATOR_FACTOR}, and\n{RESERVE_BYTES / 1e9:.2f} GB" in GPU
    assert int(work[512]["decode"].activation_bytes / work[512]["denoise"].activation_bytes) == 9
    weights = sum(work[512][name].weight_bytes for name in ("prompt", "denoise", "decode"))
    assert weights / 1e9 == pytest.approx(2.58, abs=0.005)
    assert weights / 2e9 == pytest.approx(1.29, abs=0.005)


@pytest.mark.parametrize("table", ["time_rows", "disk_rows"])
def test_a_table_of_what_is_needed_follows_from_drawings_and_shapes(table: str) -> None:
    for line in getattr(figures, table)():
        assert line in GPU.splitlines()


def test_the_papers_corpora_have_as_many_drawings_as_the_readme_says() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    found = dict(re.findall(r"^\| `([\w-]+)` \| [\d,]+ / [\d,]+ / [\d,]+ \| ([\d,]+) \|", readme, flags=re.MULTILINE))
    assert found in ({}, {name: f"{count:,}" for name, count in figures.DRAWINGS.items()})


def test_the_format_is_the_one_that_is_written() -> None:
    layout = ShardLayout(what="tokens", rows=2, row_shape=(3, 4), first_row=0, fingerprint_digest="0" * 32, dtype="int8")
    names = re.findall(r"^\| (?:`(\w+)` or `latents`|`(\w+)`) \| (float16|float32|uint64|uint8)[^|]*\| `\[m", STORE, flags=re.MULTILINE)
    assert ["".join(pair[:2]) for pair in names] == list(layout.datasets)
    assert f"touches it every\n{BEAT_S:.0f} s" in STORE
    assert f"has not been touched for {STALE_S:.0f} s" in STORE


def test_named_encoders_are_the_presets() -> None:
    assert {"clip-vit-b32", "vit-b16"} <= set(PRESETS)
    assert find_encoder("clip-demo").name == "clip-demo"


def test_three_digits_count_and_halves_go_up() -> None:
    shown = [figures.three_digits(one) for one in (172418, 36, 548, 9920, 1.845, 21.637, 0.0123)]
    assert shown == ["172,000", "36", "548", "9,920", "1.85", "21.6", "0.0123"]
