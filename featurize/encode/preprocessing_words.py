"""A recorded preprocessing in words. It imports nothing heavy: ``featurize info`` shows it without torch."""

from collections.abc import Mapping
from typing import Any


def preprocessing_in_words(recorded: Mapping[str, Any]) -> str:
    """Return the steps of a preprocessing, from the fields of its fingerprint."""
    size_px, crop_from_px = recorded.get("size_px"), recorded.get("crop_from_px")
    if not recorded.get("is_resized", True):
        steps = ["no resize"] + [f"crop {size_px} px"] * bool(recorded.get("is_cropped"))
    else:
        steps = [f"resize to {crop_from_px or size_px} px ({recorded.get('interpolation')})"] + [f"crop {size_px} px"] * bool(crop_from_px)
    if scale := recorded.get("scale"):
        steps.append(f"white = {scale:g}")
    if recorded.get("is_bgr"):
        steps.append("blue first")
    if tuple(recorded.get("mean", ())) == (0, 0, 0) and tuple(recorded.get("std", ())) == (1, 1, 1):
        return ", ".join([*steps, "not normalised"])
    return ", ".join([*steps, *(f"{name} {' '.join(f'{value:.3g}' for value in recorded.get(name, ()))}" for name in ("mean", "std"))])
