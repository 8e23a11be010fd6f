"""What do the shortcuts of drawing change in the tokens? DeepCache and the tiny decoder beside the same drawings without them.

Shapes: M drawings, T tokens, D width.
"""

import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import finish
from featurize.options import FeaturizeOptions
from featurize.run import featurize_command
from lugpi_core.command_line import say
from lugpi_core.runtime.libraries import prepare_libraries
from lugpi_core.store.reader import ColumnReader, token_columns_of

# What is changed, as flags of featurize.
SHORTCUTS: dict[str, dict[str, Any]] = {
    "deepcache 2": {"deepcache": 2},
    "deepcache 3": {"deepcache": 3},
    "deepcache 5": {"deepcache": 5},
    "tiny decoder": {"decoder": "tiny"},
}
# Another picture of the same text: what a shortcut's change is to be held against.
OTHER_SEED = {"seed": 1}


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """One run: tokens [M, T, D] and the seconds of drawing and decoding."""

    tokens_MTD: NDArray[np.float32]
    seconds: float


def measure(*, generator: str, encoder: str, steps: int, drawings: int, record: bool) -> dict[str, Any]:
    """Return for each shortcut how alike its tokens are to those without it, beside those of another seed, and how much faster it is."""
    prepare_libraries()
    common: dict[str, Any] = {"dataset": "demo", "limit": drawings, "generator": generator, "encoders": (encoder,), "steps": steps}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="--limit leaves no train example")  # nothing is trained here
        plain = _draw(common)
        figures = {name: compare(plain, _draw({**common, **flags})) for name, flags in {**SHORTCUTS, "another seed": OTHER_SEED}.items()}
    say(f"pictures: {figures}")
    about = {"generator": generator, "encoder": encoder, "steps": steps, "drawings": drawings}
    return finish("pictures", {**about, "beside the plain drawing": figures}, record=record)


def compare(plain: Drawn, other: Drawn) -> dict[str, float]:
    """Return the cosines of tokens (mean and least), the mean cosine of tokens less their mean over the drawings, and plain time over
    this time."""
    exact, changed = plain.tokens_MTD, other.tokens_MTD
    mean_TD = exact.mean(axis=0)
    cosines = _cosine(exact, changed)
    return {
        "cosine_mean": round(float(cosines.mean()), 5),
        "cosine_min": round(float(cosines.min()), 5),
        "centred_cosine_mean": round(float(_cosine(exact - mean_TD, changed - mean_TD).mean()), 5),
        "times_faster": round(plain.seconds / other.seconds, 3),
    }


def _draw(flags: dict[str, Any]) -> Drawn:
    with tempfile.TemporaryDirectory() as folder:
        figures = featurize_command(FeaturizeOptions(**flags, run_dir=Path(folder)))
        store = Path(folder) / "tokens"
        reader = ColumnReader(store, token_columns_of(store)[0])
        tokens = reader.gather(range(len(reader))).astype(np.float32)
    return Drawn(tokens_MTD=tokens, seconds=figures["times"]["denoise_s"] + figures["times"]["decode_s"])


def _cosine(left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float32]:
    norms = np.linalg.norm(left, axis=-1) * np.linalg.norm(right, axis=-1)
    products: NDArray[np.float32] = (left * right).sum(axis=-1) / np.maximum(norms, 1e-12)
    return products
