"""How much slower is featurize than its bare forward passes, and how much faster than a diffusers pipeline that writes PNG files?

On the CPU: the embedded models, and one image by the architecture of Stable Diffusion 2. On a GPU: a grid of cases, each compared with its
roofline. All weights of real architectures are random, because the cost of a model depends on its shapes only.
"""

import gc
import itertools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.featurize.plain_diffusers import BareForwards, PlainPipeline, image_job, parts_may_lack_labels
from benchmarks.featurize.random_models import SD2_512, SD2_768, SMALL, GeneratorSizes, encoder_folder, sd2_folder, tiny_decoder_folder
from benchmarks.featurize.roofline import measured_peak_flops, roof
from benchmarks.harness import finish, interleaved, median_ratio, medians, promise
from featurize.options import FeaturizeOptions
from featurize.run import featurize_command
from lugpi_core.command_line import say
from lugpi_core.errors import InputError, nearest
from lugpi_core.runtime.device import resolve_compute
from lugpi_core.runtime.libraries import prepare_libraries

OURS, FORWARDS = "featurize", "bare forwards"
ONE_BY_ONE, BATCHED = "PNG files, one prompt a call", "PNG files, batched"
DEMO_BATCH = 16
# Promised on two cores: of which models, slower way, faster way, limit of their ratio.
AT_MOST = (("demo models", OURS, FORWARDS, 1.05), ("SD v2 UNet, one image", OURS, FORWARDS, 1.03))
AT_LEAST = (("demo models", ONE_BY_ONE, OURS, 2.0), ("demo models", BATCHED, OURS, 1.0))

# A GPU is limited to 24 GB, and --memory-gb to what is promised for the image size.
CARD_BYTES = 24 * 10**9
MEMORY_GB = {512: 12, 768: 16}
AT_LEAST_AGAINST_PLAIN = 1.3
PLAIN_BATCH, PLAIN_IMAGES, PLAIN_SINGLY = 8, 16, 4

Flags = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One point of the grid measured on a GPU; the defaults are its centre, around which each axis is varied.

    Attributes:
        shard_rows: rows of a shard. The first shard is the warm-up, which compiles kernels and chooses batch sizes.
        target: promised images/s on an H200.
        beside_plain: whether the plain diffusers pipeline is measured too.
    """

    name: str
    px: int = 512
    steps: int = 25
    guidance: float = 7.5
    scheduler: Literal["ddim", "dpm++"] = "dpm++"
    tiny_decoder: bool = False
    encoder: str = "ViT-L-14"
    attention: Literal["auto", "xformers", "sdpa"] = "auto"
    compile: Literal["on", "off"] = "on"
    deepcache: int = 1
    shard_rows: int = 64
    shards: int = 3
    target: float | None = None
    beside_plain: bool = False


_MIDDLE = Case(name="512 px, 25 steps", target=6.4, beside_plain=True)
_AXIS = replace(_MIDDLE, target=None, beside_plain=False)
_ONE_STEP = Case(name="512 px, one step", steps=1, guidance=0.0, scheduler="ddim", shard_rows=1024, target=60, beside_plain=True)
GRID = (
    _MIDDLE,
    Case(name="512 px, 50 steps", steps=50, scheduler="ddim", target=3.3, beside_plain=True),
    replace(_AXIS, name="512 px, 20 steps", steps=20, target=6.4),
    Case(name="768 px, 25 steps", px=768, shard_rows=32, target=2.3),
    Case(name="768 px, 50 steps", px=768, steps=50, scheduler="ddim", shard_rows=32),
    _ONE_STEP,
    replace(_ONE_STEP, name="512 px, one step, tiny decoder", tiny_decoder=True, target=170, beside_plain=False),
    replace(_AXIS, name="512 px, 25 steps, SDPA, not compiled", attention="sdpa", compile="off"),
    replace(_AXIS, name="512 px, 25 steps, xformers, not compiled", attention="xformers", compile="off"),
    replace(_AXIS, name="512 px, 25 steps, SDPA", attention="sdpa"),
    replace(_AXIS, name="512 px, 25 steps, xformers", attention="xformers"),
    replace(_AXIS, name="512 px, 25 steps, tiny decoder", tiny_decoder=True),
    replace(_AXIS, name="512 px, 25 steps, B/16", encoder="ViT-B-16"),
    replace(_AXIS, name="512 px, 25 steps, B/32", encoder="ViT-B-32"),
    # Its roofline counts all arithmetic, including the part that DeepCache leaves out.
    replace(_AXIS, name="512 px, 25 steps, DeepCache 3", deepcache=3),
)
SMOKE = Case(name="smoke", steps=2, compile="off", encoder="ViT-S-32", shard_rows=8, shards=2, beside_plain=True)


def measure(*, smoke: bool, record: bool, cases: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return images/s of every way, the roofline, and which promises hold.

    Writes models of the real sizes to the temporary folder ($TMPDIR): 5.6 GB on the CPU, 7 GB on a GPU.

    Args:
        smoke: tiny sizes, one round.
        record: write the figures to benchmarks/results/.
        cases: on a GPU, only the cases with one of these words in their names.

    Raises:
        InputError: no case matches.
    """
    prepare_libraries()
    chosen = choose_cases(cases)
    with tempfile.TemporaryDirectory() as name, parts_may_lack_labels():
        folder = Path(name)
        if not torch.cuda.is_available():
            figures = _on_cpu(folder, smoke=smoke)
        else:
            figures = on_card(folder, (SMOKE,), {SMOKE.px: SMALL}) if smoke else on_card(folder, chosen)
    return finish("featurize", figures, record=record)


def choose_cases(words: Sequence[str]) -> list[Case]:
    """Return the cases of the grid with one of the words in their names; all cases without words.

    Raises:
        InputError: no case matches.
    """
    chosen = [case for case in GRID if not words or any(word in case.name for word in words)]
    if not chosen:
        names = [case.name for case in GRID]
        raise InputError(got=f"--cases {' '.join(words)}", expected="words from the names of the cases", do=nearest(words[0], names))
    return chosen


def _on_cpu(folder: Path, *, smoke: bool) -> dict[str, Any]:
    peak_flops = measured_peak_flops("cpu", torch.float32)
    demo, real = "demo models", "SD v2 UNet, one image"
    figures: dict[str, Any] = {"peak_gflops": round(peak_flops / 1e9, 1)}
    figures[demo] = demo_models(folder, peak_flops, drawings=16 if smoke else 256, singly=4 if smoke else 32, repeats=1 if smoke else 11)
    say(f"featurize, {demo}: {figures[demo]}")
    sizes, encoder, repeats = (SMALL, "ViT-S-32", 1) if smoke else (SD2_512, "ViT-B-32", 3)
    figures[real] = one_image(folder, peak_flops, sizes, encoder, repeats=repeats)
    say(f"featurize, {real}: {figures[real]}")
    figures["promises"] = promises(figures)
    say(f"featurize: {figures['promises']}")
    return figures


def demo_models(folder: Path, peak_flops: float, *, drawings: int, singly: int, repeats: int) -> dict[str, Any]:
    """Return the figures of the four ways with the embedded models; one prompt per call generates only the first ``singly`` images."""
    flags = {"dataset": "demo", "generator": "demo", "encoders": ("demo",), "batch_size": DEMO_BATCH, "limit": drawings}
    job = image_job(flags)
    bare, plain = BareForwards(job, batch=DEMO_BATCH), PlainPipeline(job)
    ours_s: list[float] = []

    def png(prompts_a_call: int, count: int) -> None:
        with tempfile.TemporaryDirectory(dir=folder) as images:
            plain.run(Path(images), batch=DEMO_BATCH, prompts_a_call=prompts_a_call, count=count)

    ways = {
        FORWARDS: bare.run,
        OURS: lambda: ours_s.append(own_seconds(run_featurize(flags, folder))),
        ONE_BY_ONE: lambda: png(1, singly),
        BATCHED: lambda: png(DEMO_BATCH, len(job.prompts)),
    }
    seconds = interleaved(ways, repeats=repeats)
    seconds[OURS] = ours_s[1:]
    counts = dict.fromkeys(ways, len(job.prompts)) | {ONE_BY_ONE: min(singly, len(job.prompts))}
    return _rates(seconds, counts, roof(peak_flops, job))


def one_image(folder: Path, peak_flops: float, sizes: GeneratorSizes, encoder: str, *, repeats: int) -> dict[str, Any]:
    """Return the figures of one image, two guided steps, decoded and encoded, and of its bare forward passes.

    Memory: one copy of the models at a time; the bare forward passes load theirs before each round, untimed.
    """
    generator, tower = sd2_folder(folder / "sd2", sizes, torch.float32), encoder_folder(folder / encoder, encoder, torch.float32)
    models = {"generator": str(generator), "encoders": (str(tower),), "steps": 2, "guidance": 7.5, "scheduler": "ddim"}
    flags = models | {"dataset": str(one_prompt(folder)), "split_column": "split", "prompt_column": "prompt", "batch_size": 1}
    job = image_job(flags)
    ours_s: list[float] = []
    loaded: list[BareForwards] = []

    def load(way: str) -> None:
        loaded.clear()
        gc.collect()
        if way == FORWARDS:
            loaded.append(BareForwards(job, batch=1))

    def run_forwards() -> None:
        loaded[0].run()

    ways = {FORWARDS: run_forwards, OURS: lambda: ours_s.append(own_seconds(run_featurize(flags, folder)))}
    seconds = interleaved(ways, repeats=repeats, before=load)
    seconds[OURS] = ours_s[1:]
    return _rates(seconds, dict.fromkeys(ways, 1), roof(peak_flops, job))


def one_prompt(folder: Path) -> Path:
    """Write a corpus that needs one image: each split has an example of each class, and all have the same prompt."""
    path = folder / "one.csv"
    labelled = itertools.product(("train", "validation", "test"), ("animals", "furniture"))
    lines = [f"text {row},a cat on a mat,{label},{split}" for row, (split, label) in enumerate(labelled)]
    path.write_text("\n".join(["text,prompt,label,split", *lines]) + "\n")
    return path


def promises(figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return each promise with the measured value."""
    return [
        promise(f"{models}: {slower} over {faster}", figures[models]["over"][f"{slower} over {faster}"], **{word: limit})
        for word, limits in (("at_most", AT_MOST), ("at_least", AT_LEAST))
        for models, slower, faster, limit in limits
    ]


def run_featurize(flags: Flags, folder: Path) -> dict[str, Any]:
    """Run the whole command into a temporary run folder inside ``folder``.

    Returns its figures and, as ``shard_made_s``, the time at which each shard of the last column was complete.
    """
    with tempfile.TemporaryDirectory(dir=folder) as run_dir:
        figures = featurize_command(FeaturizeOptions(**{**flags, "run_dir": Path(run_dir)}))
        shards = sorted((Path(figures["store"]) / list(figures["columns"])[-1]).glob("shard-*.h5"))
        return figures | {"shard_made_s": [shard.stat().st_mtime_ns / 1e9 for shard in shards]}


def own_seconds(figures: Mapping[str, Any]) -> float:
    """Return the wall seconds of a run without loading the models. Its stages overlap, so their sum would be larger."""
    return float(figures["times"]["fill_wall_s"] + figures["times"]["publish_s"])


def steady_rate(figures: Mapping[str, Any], shard_rows: int) -> float:
    """Return images/s from the end of the first shard to the end of the last full one, which excludes one-time costs."""
    made_s = figures["shard_made_s"][: figures["drawings"] // shard_rows]
    assert len(made_s) > 1, "a rate needs two full shards"
    return float((len(made_s) - 1) * shard_rows / (made_s[-1] - made_s[0]))


def _rates(seconds: dict[str, list[float]], counts: Mapping[str, int], roof_images_per_s: float) -> dict[str, Any]:
    """Return images/s of each way, its share of the roofline, and ratios of the time per image within a round."""
    per_image = {name: [value / counts[name] for value in values] for name, values in seconds.items()}
    rates = {name: 1 / value for name, value in medians(per_image).items()}
    pairs = [(OURS, FORWARDS), *((other, OURS) for other in seconds if other not in (OURS, FORWARDS))]
    return {
        "images": dict(counts),
        "images_per_s": {name: round(value, 4) for name, value in rates.items()},
        "roof_images_per_s": round(roof_images_per_s, 4),
        "share_of_roof": {name: round(value / roof_images_per_s, 4) for name, value in rates.items()},
        "over": {f"{slower} over {faster}": median_ratio(per_image, slower, faster) for slower, faster in pairs},
        "rounds_s": {name: [round(value, 4) for value in values] for name, values in seconds.items()},
    }


class ModelFolders:
    """The models of the cases, each written when it is first needed.

    Args:
        root: where to write them.
        sizes: of the generator, by image size.
        dtype: of the weights.
    """

    def __init__(self, root: Path, sizes: Mapping[int, GeneratorSizes], dtype: torch.dtype) -> None:
        self._root, self._sizes, self._dtype = root, sizes, dtype

    def flags(self, case: Case) -> dict[str, Any]:
        """Return the flags of featurize for a case."""
        generator = self._once(f"sd2-{case.px}", lambda path: sd2_folder(path, self._sizes[case.px], self._dtype))
        encoder = self._once(case.encoder, lambda path: encoder_folder(path, case.encoder, self._dtype))
        decoder = f"tiny={self._once('taesd', lambda path: tiny_decoder_folder(path, self._dtype))}" if case.tiny_decoder else "full"
        copied = ("steps", "guidance", "scheduler", "attention", "compile", "deepcache", "shard_rows")
        return {name: getattr(case, name) for name in copied} | {
            "dataset": "demo",
            "limit": case.shards * case.shard_rows,
            "generator": str(generator),
            "encoders": (str(encoder),),
            "decoder": decoder,
            "memory_gb": MEMORY_GB[case.px],
        }

    def _once(self, name: str, write: Callable[[Path], Path]) -> Path:
        folder = self._root / name
        return folder if folder.is_dir() else write(folder)


def on_card(folder: Path, cases: Sequence[Case], sizes: Mapping[int, GeneratorSizes] | None = None) -> dict[str, Any]:
    """Return the figures of each case and which promises hold. A case that fails records why, and the next one starts.

    Args:
        folder: for the models and the stores.
        cases: what to measure.
        sizes: of the generator, by image size (default: the real ones).
    """
    compute = resolve_compute("auto", "auto", half="float16")
    folders = ModelFolders(folder, sizes or {512: SD2_512, 768: SD2_768}, compute.torch_dtype)
    peak_flops = measured_peak_flops(compute.device, compute.torch_dtype)
    figures: dict[str, Any] = {"peak_tflops": round(peak_flops / 1e12, 3), "memory_limit_bytes": CARD_BYTES, "cases": {}}
    for case in cases:
        flags = folders.flags(case)
        measured = _or_reason(partial(_ours_on_card, case, flags, folder, peak_flops))
        if case.beside_plain:
            measured["beside"] = _or_reason(partial(_plain_on_card, flags, folder))
        figures["cases"][case.name] = measured
        say(f"featurize, {case.name}: {measured}")
    figures["promises"] = promises_on_card(cases, figures["cases"])
    say(f"featurize: {figures['promises']}")
    return figures


def promises_on_card(cases: Sequence[Case], found: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return each promise with the measured value, or None if the case failed."""
    promised = []
    for case in cases:
        rate = found[case.name].get("images_per_s")
        if case.target is not None:
            promised.append(promise(f"{case.name}: images/s", rate, at_least=case.target))
        if case.beside_plain and case.steps > 1:
            plain = found[case.name]["beside"].get(BATCHED)
            ratio = round(rate / plain, 3) if rate and plain else None
            promised.append(promise(f"{case.name}: times as fast as {BATCHED}", ratio, at_least=AT_LEAST_AGAINST_PLAIN))
        peak_bytes = found[case.name].get("peak_memory", {}).get("device_bytes")
        promised.append(promise(f"{case.name}: peak memory, bytes", peak_bytes, at_most=MEMORY_GB[case.px] * 1e9))
    return promised


def _ours_on_card(case: Case, flags: Flags, folder: Path, peak_flops: float) -> dict[str, Any]:
    _reset()
    figures = run_featurize(flags, folder)
    rate, limit = steady_rate(figures, case.shard_rows), roof(peak_flops, image_job(flags))
    kept = {name: figures[name] for name in ("drawings", "failed_rows", "batches", "times", "peak_memory", "compute")}
    # What the first shard took longer than the others: compiling, choosing kernels, filling caches.
    once_s = own_seconds(figures) - figures["drawings"] / rate
    rates = {"images_per_s": round(rate, 3), "roof_images_per_s": round(limit, 3), "share_of_roof": round(rate / limit, 4)}
    return rates | {"once_s": round(once_s, 1)} | kept


def _plain_on_card(flags: Flags, folder: Path) -> dict[str, float]:
    """Return images/s of a plain diffusers pipeline, PNG files and the encoder, warmed up."""
    _reset()
    job = image_job(flags, count=PLAIN_IMAGES)
    plain = PlainPipeline(job)

    def png(prompts_a_call: int, count: int) -> None:
        with tempfile.TemporaryDirectory(dir=folder) as images:
            plain.run(Path(images), batch=PLAIN_BATCH, prompts_a_call=prompts_a_call, count=count)

    ways = {ONE_BY_ONE: (1, min(PLAIN_SINGLY, len(job.prompts))), BATCHED: (PLAIN_BATCH, len(job.prompts))}
    seconds = interleaved({name: partial(png, *sizes) for name, sizes in ways.items()}, repeats=2)
    return {name: round(ways[name][1] / spent_s, 3) for name, spent_s in medians(seconds).items()}


def _or_reason(run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the result of ``run``, or why it failed: one case that does not fit or compile must not stop the others."""
    try:
        return run()
    except (InputError, RuntimeError, MemoryError) as error:  # torch's out of memory is a RuntimeError
        return {"failed": " ".join(f"{type(error).__name__}: {error}".split())[:300]}


def _reset() -> None:
    """Release what the previous case held, compiled code included, and limit the GPU to 24 GB."""
    gc.collect()
    torch.compiler.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        total_bytes = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, CARD_BYTES / total_bytes))
