"""What does featurize cost beyond its bare forwards? The same drawings, with and without the pipeline and the store around them."""

import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import finish, interleaved, median_ratio, medians
from featurize.cli import featurize
from featurize.generators import find_generator, generator_settings
from featurize.image_encoder import ImageEncoder, find_encoder
from featurize.options import FeaturizeOptions
from featurize.prompts import plan_drawings
from featurize.text_to_image import TextToImage
from lugpi_core.command_line import say
from lugpi_core.corpora import load_corpus
from lugpi_core.device import resolve_compute
from lugpi_core.quiet import quiet_libraries

ENCODERS = ("clip-demo", "vit-demo")


def measure(*, smoke: bool, record: bool) -> dict[str, Any]:
    """Return images/s of featurize on the embedded models, and its time over that of its bare forwards.

    Featurize's own time is that of its stages without loading the models, as its record says.
    """
    quiet_libraries()
    drawings, repeats, batch = (16, 1, 8) if smoke else (512, 5, 16)
    options = FeaturizeOptions(dataset="demo", generator="demo", encoders=("demo",), limit=drawings, batch_size=batch)
    forwards = _BareForwards(options)
    staged: list[float] = []
    with tempfile.TemporaryDirectory() as folder, _parts_may_lack_labels():
        seconds = interleaved({"forwards": forwards.run, "featurize": lambda: staged.append(_featurize(options, folder))}, repeats=repeats)
    seconds["featurize"] = staged[1:]
    figures = {
        "images_per_s": round(drawings / medians(seconds)["featurize"], 2),
        "featurize_over_forwards": median_ratio(seconds, "featurize", "forwards"),
        "drawings": drawings,
        "seconds": medians(seconds),
    }
    say(f"featurize: {figures}")
    return finish("featurize", figures, record=record)


def _featurize(options: FeaturizeOptions, folder: str) -> float:
    with tempfile.TemporaryDirectory(dir=folder) as run_dir:
        figures = featurize(FeaturizeOptions(**{**vars(options), "run_dir": Path(run_dir)}))
    return float(sum(value for name, value in figures["times"].items() if name != "load_s"))


@contextmanager
def _parts_may_lack_labels() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="--limit leaves no train example")  # nothing is trained here
        yield


class _BareForwards:
    """Draw, decode and encode the same prompts in the same batches, and throw the result away."""

    def __init__(self, options: FeaturizeOptions) -> None:
        compute = resolve_compute("auto", "auto", half="float16")
        with _parts_may_lack_labels():
            self._plan = plan_drawings(load_corpus(options), seed=0)
        settings = generator_settings("demo", {})
        self._text_to_image = TextToImage(find_generator("demo", settings, half=False), compute, attention="auto")
        self._encoders = [ImageEncoder(find_encoder(name), compute) for name in ENCODERS]
        self._batch = options.batch_size

    @torch.inference_mode()
    def run(self) -> None:
        for start in range(0, len(self._plan), self._batch):
            part = slice(start, start + self._batch)
            latents = self._text_to_image.draw(self._plan.prompts[part], self._plan.seeds[part].tolist())
            images = self._text_to_image.decode(latents)
            for encoder in self._encoders:
                encoder.encode(images)
