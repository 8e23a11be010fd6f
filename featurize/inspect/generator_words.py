"""Which files of the user's were part of a store's generator, for a person."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

_SUFFIX, _HASH_DIGITS = ".safetensors", 8


def files_in_words(record: Mapping[str, Any], flags: Mapping[str, Any]) -> list[str]:
    """Return ``denoiser FILE`` and ``LoRA FILE × SCALE`` for each file.

    Args:
        record: the generator's, as a column's fingerprint has it. It has hashes and scales, and no names.
        flags: of the command that began the column, which names the files; empty if they are not known.
    """
    unet, given = flags.get("unet"), flags.get("lora")
    words = [f"denoiser {Path(unet).name}"] if isinstance(unet, str) else []
    names = [Path(text).name for text in given if isinstance(text, str)] if isinstance(given, (list, tuple)) else []
    fused = record.get("loras")
    for place, lora in enumerate(fused if isinstance(fused, list) else ()):
        if isinstance(lora, Mapping):
            named = names[place].partition(_SUFFIX)[0] + _SUFFIX if place < len(names) else f"{str(lora.get('weights'))[:_HASH_DIGITS]}…"
            scale = lora.get("scale")
            words.append(f"LoRA {named} × {f'{scale:g}' if isinstance(scale, float) else scale}")
    return words
