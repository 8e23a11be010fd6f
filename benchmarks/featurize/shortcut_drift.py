"""How far do the shortcuts of the generator, DeepCache and the tiny decoder, move the tokens?

Shapes: M images, T tokens, D width.
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

# The flags of featurize that each shortcut changes.
SHORTCUTS: dict[str, dict[str, Any]] = {
    "deepcache 2": {"deepcache": 2},
    "deepcache 3": {"deepcache": 3},
    "deepcache 5": {"deepcache": 5},
    "tiny decoder": {"decoder": "tiny"},
}
# Another image of the same text, to compare the drift with.
OTHER_SEED = {"seed": 1}


@dataclass(frozen=True, kw_only=True)
class Result:
    """One run: tokens [M, T, D] and the seconds of denoising and decoding."""

    tokens_MTD: NDArray[np.float32]
    seconds: float


def measure(*, generator: str, encoder: str, steps: int, drawings: int, record: bool) -> dict[str, Any]:
    """Return for each shortcut, and for another seed, its speed and the similarity of its tokens to those without it."""
    prepare_libraries()
    common: dict[str, Any] = {"dataset": "demo", "limit": drawings, "generator": generator, "encoders": (encoder,), "steps": steps}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="--limit leaves no train example")  # nothing is trained here
        plain = _featurize(common)
        figures = {
            name: compare(plain, _featurize({**common, **flags})) for name, flags in {**SHORTCUTS, "another seed": OTHER_SEED}.items()
        }
    say(f"pictures: {figures}")
    about = {"generator": generator, "encoder": encoder, "steps": steps, "drawings": drawings}
    return finish("pictures", {**about, "beside the plain drawing": figures}, record=record)


def compare(plain: Result, other: Result) -> dict[str, float]:
    """Return the cosine of the tokens (mean and minimum), the mean cosine after subtracting the mean over images, and the speed-up."""
    exact, changed = plain.tokens_MTD, other.tokens_MTD
    mean_TD = exact.mean(axis=0)
    cosines = _cosine(exact, changed)
    return {
        "cosine_mean": round(float(cosines.mean()), 5),
        "cosine_min": round(float(cosines.min()), 5),
        "centred_cosine_mean": round(float(_cosine(exact - mean_TD, changed - mean_TD).mean()), 5),
        "times_faster": round(plain.seconds / other.seconds, 3),
    }


def _featurize(flags: dict[str, Any]) -> Result:
    with tempfile.TemporaryDirectory() as folder:
        figures = featurize_command(FeaturizeOptions(**flags, run_dir=Path(folder)))
        store = Path(folder) / "tokens"
        reader = ColumnReader(store, token_columns_of(store)[0])
        tokens = reader.gather(range(len(reader))).astype(np.float32)
    return Result(tokens_MTD=tokens, seconds=figures["times"]["denoise_s"] + figures["times"]["decode_s"])


def _cosine(left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float32]:
    norms = np.linalg.norm(left, axis=-1) * np.linalg.norm(right, axis=-1)
    products: NDArray[np.float32] = (left * right).sum(axis=-1) / np.maximum(norms, 1e-12)
    return products
