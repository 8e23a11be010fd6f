"""The tables of docs/benchmarks.md and docs/gpu-24gb.md as they follow from the records in benchmarks/results and from shapes."""

import json
from collections.abc import Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal
from math import floor, log10
from pathlib import Path
from typing import Any

from tests.support.checkout import ROOT

ENCODERS = {"ViT-B/32": "ViT-B-32", "ViT-B/16": "ViT-B-16", "ViT-L/14": "ViT-L-14"}
LENGTHS = (32, 128, 256, 512)
CORPORA = ("20ng", "imdb", "cwi-news", "cwi-wikinews")
# Distinct prompts of the paper's corpora, as `python -m featurize --dataset NAME --dry-run` counts them.
DRAWINGS = {"20ng": 18_780, "imdb": 49_582, "cwi-news": 5_650, "cwi-wikinews": 4_973}
# float16: latents at 512 and 768 px, tokens of B/32, B/16 and L/14.
ROW_BYTES = [2 * 4 * 64 * 64, 2 * 4 * 96 * 96, 2 * 50 * 768, 2 * 197 * 768, 2 * 257 * 1024]


def figures(benchmark: str) -> dict[str, Any]:
    """Return the figures of the newest record of a benchmark."""
    newest: Path = max((ROOT / "benchmarks" / "results").glob(f"{benchmark}_*.json"), key=lambda path: path.name.rsplit("_", 1)[1])
    found: dict[str, Any] = json.loads(newest.read_text())["figures"]
    return found


def three_digits(value: float) -> str:
    """Return a number with three digits that count, halves rounded up; a whole number gets no decimals."""
    places = 0 if isinstance(value, int) and value < 1000 else 2 - floor(log10(value))
    rounded = Decimal(str(value)).quantize(Decimal(1).scaleb(-places), ROUND_HALF_UP)
    return f"{rounded:,f}"


def row(*cells: str) -> str:
    """Return a line of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def drawing_rows() -> list[str]:
    """Times per image, over the bare forwards of the same models."""
    small, large = figures("featurize")["demo models"]["over"], figures("featurize")["SD v2 UNet, one image"]["over"]
    ours = small["featurize over bare forwards"]
    return [
        row("featurize, files included", f"{ours:.2f}", f"{large['featurize over bare forwards']:.2f}"),
        row(
            "diffusers pipeline, PNG files, encoder from files, in batches", f"{ours * small['PNG files, batched over featurize']:.2f}", ""
        ),
        row("the same, one prompt a call", f"{ours * small['PNG files, one prompt a call over featurize']:.1f}", ""),
    ]


def store_rows() -> list[str]:
    """Rows a second of B/32 tokens, page cache warm and cold."""
    found = figures("store")["B/32"]
    warm, cold = found["hot"]["rows_per_s"], found["cold"]["rows_per_s"]
    ways = {
        "lugpi, `gather`; cold: `batches`, which fetches ahead": ("ours, gather(rows)", "ours, batches(all)"),
        "`np.memmap`, `mapped[rows]`": ("np.memmap, mapped[rows]",) * 2,
        "`np.memmap`, `np.take` into a page-aligned buffer (the ceiling)": ("np.memmap, np.take into a buffer", ""),
        "h5py, `read_direct` loop": ("h5py read_direct loop",) * 2,
        "h5py, `dataset[rows]`, contiguous": ("h5py fancy, contiguous",) * 2,
        "h5py, `dataset[rows]`, one-row chunks": ("h5py fancy, one-row chunks",) * 2,
        "h5py, `dataset[rows]`, `chunks=True`": ("h5py fancy, chunks=True",) * 2,
        "the disk, read in order": ("", "the disk, read in order"),
    }
    return [
        row(way, three_digits(warm[hot]) if hot else "", three_digits(cold[late]) if late in cold else "")
        for way, (hot, late) in ways.items()
    ]


def epoch_rows() -> list[str]:
    """Padding, and the Trainer's epoch over ours."""
    epochs = figures("train")["epochs"]
    padding = {
        name: [f"{100 * epochs[one]['padding'][name]:.{digits}f} %" for one in CORPORA] for name, digits in (("ours", 1), ("shuffled", 0))
    }
    over = [three_digits(epochs[one]["over"]) if "over" in epochs[one] else "" for one in CORPORA]
    return [
        row("padding among the tokens of an epoch, batch 14", *padding["ours"]),
        row("the same with plain shuffling", *padding["shuffled"]),
        row("time per epoch, Hugging Face Trainer ÷ lugpi student¹", *over),
    ]


def cached_rows() -> list[str]:
    """What the caches spare, as time and as counted FLOPs."""
    cases = figures("train")["cached or live"]
    tokens, pixels = (f"student, teacher live from {what} over student, outputs cached" for what in ("tokens", "pixels"))
    asked = [("student, teacher live from ViT-B/32's tokens", "ViT-B/32", tokens)]
    asked += [(f"student, teacher live from pixels, {name}", name, pixels) for name in ENCODERS]
    asked += [(f"teacher from pixels, {name}", name, "teacher, from pixels over teacher, tokens cached") for name in ENCODERS]
    return [
        row(words, *(_time_and_count(cases[f"{ENCODERS[name]}, {length} tokens"]["over"][over]) for length in LENGTHS))
        for words, name, over in asked
    ]


def _time_and_count(over: Mapping[str, float]) -> str:
    return f"{three_digits(over['time'])} ({three_digits(over['counted'])})"


def memory_rows() -> list[str]:
    """Memory of both optimizers."""
    cases = figures("memory")["cases"]

    def gigabytes(case: str, what: str) -> str:
        return f"{cases[case][what] / 1e9:.2f} GB"

    return [
        row(
            f"`{name}`",
            gigabytes(f"student, {name}", "weights_bytes"),
            gigabytes(f"student, {name}", "optimizer_bytes"),
            gigabytes(f"student, {name}", "peak_bytes"),
            gigabytes(f"teacher, {name}", "peak_bytes"),
        )
        for name in ("adamw", "adamw8bit")
    ]


def disk_rows() -> list[str]:
    """Gigabytes of every column of the paper's corpora."""
    return [row(f"`{name}`", f"{count:,}", *(f"{count * size / 1e9:.2f}" for size in ROW_BYTES)) for name, count in DRAWINGS.items()]


# TFLOP of an image: UNet forwards with guidance, and the decoder; held against counted_work by a test.
UNET_TFLOP = {512: 0.804, 768: 2.149}
DECODER_TFLOP = {512: 2.515, 768: 5.754}
PAPER_S_AN_IMAGE = 17  # on an RTX 3090, 768 px, 50 steps (arXiv 2309.15238)


def image_tflop(px: int, steps: int) -> float:
    """Return the work of a guided image."""
    return 2 * steps * UNET_TFLOP[px] + DECODER_TFLOP[px]


def paper_tflop_per_s() -> float:
    """Return what the paper's time an image says of its card."""
    return image_tflop(768, 50) / PAPER_S_AN_IMAGE


def time_rows() -> list[str]:
    """Work in EFLOP, and hours at the paper's own speed, of ``fast`` and of ``paper``."""
    rows = []
    for name, count in DRAWINGS.items():
        work = [count * image_tflop(px, steps) / 1e6 for px, steps in ((512, 20), (768, 50))]
        hours = [one * 1e6 / paper_tflop_per_s() / 3600 for one in work]
        rows.append(row(f"`{name}`", f"{count:,}", f"{work[0]:.2f}", f"{hours[0]:.0f}", f"{work[1]:.2f}", f"{hours[1]:.0f}"))
    return rows


DEMO = {
    "baseline": "text alone, fine-tuned",
    "images-clip-demo": "images alone, CLIP",
    "images-vit-demo": "images alone, ViT",
    "teacher-clip-demo": "**teacher**, CLIP",
    "teacher-vit-demo": "**teacher**, ViT",
    "teacher-none": "control: text-only teacher",
    "teacher-shuffled": "control: shuffled images",
    "teacher-blank": "control: blank images",
    "student-clip-demo": "**student** of the CLIP teacher",
    "student-vit-demo": "**student** of the ViT teacher",
    "student-all": "**student** of both teachers",
    "student-none": "control: student of the text-only teacher",
    "student-shuffled": "control: student of the shuffled teacher",
    "student-blank": "control: student of the blank teacher",
    "student-clip-demo-more": "**student** of the CLIP teacher, with 2,400 unlabelled texts",
    "student-none-more": "control: student of the text-only teacher, with the same texts",
}


REAL = ("cwi-wikinews", "cwi-news", "20ng-2000")
REAL_MODELS = ("baseline", "images-clip-demo", "teacher-clip-demo", "teacher-none", "student-clip-demo", "student-none")


def demo_rows() -> list[str]:
    """The experiment on the embedded corpus."""
    return _experiment_rows("demo", list(DEMO))


def real_rows() -> list[str]:
    """The experiments on real corpora, one after another."""
    return [line for corpus in REAL for line in _experiment_rows(f"real-{corpus}", REAL_MODELS)]


def corpora_rows() -> list[str]:
    """Every model on every real corpus: accuracies, and under them what pictures bring teacher and student over their controls."""
    found = [figures(f"real-{corpus}") for corpus in REAL]
    accuracies = [[one["rows"][name]["test"]["accuracy"] for one in found] for name in REAL_MODELS]
    rows = [
        row(f"{DEMO[name]} (`{name}`)", *(f"{one['mean']:.3f} ± {one['sd']:.3f}" for one in over))
        for name, over in zip(REAL_MODELS, accuracies, strict=True)
    ]
    for name, control in (("teacher-clip-demo", "teacher-none"), ("student-clip-demo", "student-none")):
        rows.append(row(f"`{name}` − `{control}`, points", *(_compared(_tests(one)[name, control])[0] for one in found)))
    return rows


def _tests(found: Mapping[str, Any]) -> dict[tuple[str, str], Any]:
    return {(one["row"], one["reference"]): one for table in found["tables"] for one in table["comparisons"]}


def _experiment_rows(benchmark: str, models: Sequence[str]) -> list[str]:
    """Accuracies over seeds, and differences with their intervals and Holm's p."""
    found = figures(benchmark)
    tests = _tests(found)
    rows = []
    for name in models:
        over_seeds = found["rows"][name]["test"]["accuracy"]
        control = "teacher-none" if name.startswith("teacher") else "student-none-more" if name.endswith("-more") else "student-none"
        compared = [cell for reference in ("baseline", control) for cell in _compared(tests.get((name, reference)))]
        rows.append(row(f"{DEMO[name]} (`{name}`)", f"{over_seeds['mean']:.3f} ± {over_seeds['sd']:.3f}", *compared))
    return rows


def _interval(test: Mapping[str, Any]) -> tuple[float, float]:
    low, high = test["interval_over_seeds"] or test["interval"]
    return low, high


def _compared(test: Mapping[str, Any] | None) -> tuple[str, str]:
    if test is None:
        return "", ""
    difference, (low, high), p = 100 * test["difference"], (100 * end for end in _interval(test)), test["holm_p"]
    small = f"{p:.4f}" if p >= 1e-3 else f"{p:.0e}".replace("e-0", "e-") if p >= 1e-300 else "< 1e-300"
    shown = f"{p:.2f}" if p >= 0.01 else small
    return f"{difference:+.1f} [{low:+.1f}, {high:+.1f}]", shown
