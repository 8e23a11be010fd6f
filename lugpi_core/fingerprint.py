"""Fingerprints: nested dictionaries of everything that determines the bytes of a file, compared field by field."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import xxhash

from lugpi_core.errors import InputError

Fingerprint = Mapping[str, Any]
_CHUNK_BYTES = 1 << 22
# What transformers and open_clip read from a folder besides weights and sentence pieces.
_DECIDING = frozenset(
    {
        "config.json",
        "open_clip_config.json",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "vocab.txt",
        "merges.txt",
    }
)


def digest(value: Any) -> str:
    """Return the xxh3-128 of a JSON value, independent of the order of its keys."""
    return xxhash.xxh3_128_hexdigest(json.dumps(value, sort_keys=True, ensure_ascii=True).encode())


def hash_file(path: Path) -> str:
    """Return the xxh3-128 of one file's bytes."""
    hasher = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            hasher.update(chunk)
    return hasher.hexdigest()


def hash_model_folder(folder: Path) -> str:
    """Return one hash over the files of a model folder that determine what it computes: weights, configurations, vocabularies.

    Other files of a repository (other formats, cards, folders of other tools) do not count, so a partial copy is the same model.

    Raises:
        InputError: the folder contains no ``.safetensors`` file (pickled weights are never read).
    """
    files = sorted(path for path in folder.iterdir() if path.is_file() and _decides(path.name))
    if not any(path.suffix == ".safetensors" for path in files):
        raise InputError(
            got=f"{folder} without a .safetensors file",
            expected="weights as safetensors (pickled weights are not read)",
            do="save the model again with save_pretrained()",
        )
    return digest([(path.name, hash_file(path)) for path in files])


def _decides(name: str) -> bool:
    return not name.startswith(".") and (name in _DECIDING or name.endswith((".safetensors", ".safetensors.index.json", ".model")))


def differences(found: Fingerprint, wanted: Fingerprint) -> list[str]:
    """Return ``field: found …, wanted …`` for each field that differs, sorted by field name; empty if they agree."""
    flat_found, flat_wanted = dict(flat(found)), dict(flat(wanted))
    names = sorted(flat_found.keys() | flat_wanted.keys())
    return [
        f"{name}: found {_as_json(flat_found, name)}, wanted {_as_json(flat_wanted, name)}"
        for name in names
        if _as_json(flat_found, name) != _as_json(flat_wanted, name)
    ]


def flat(fingerprint: Fingerprint, prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Yield each field of a nested fingerprint as (dotted name, value)."""
    for key, value in fingerprint.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _as_json(flat: Mapping[str, Any], name: str) -> str:
    return json.dumps(flat[name], sort_keys=True) if name in flat else "nothing"
