"""Fingerprints: nested dictionaries of everything that determines the bytes of a file, compared field by field.

The hash of a model's files has two parts, ``<files>+<content>``, each an xxh3-128. ``files`` is over the bytes of the files; in records of
lugpi before this form it is the whole hash. ``content`` is over the tensors, whatever else their files contain and however they are split
into shards, and over the configuration. Two hashes agree if their contents do; where one of them is of the earlier form, if their files do.
"""

import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from lugpi_core.errors import InputError

Fingerprint = Mapping[str, Any]
_CHUNK_BYTES = 1 << 20  # fits a processor's cache, so that a second hash of a chunk costs little
# What transformers and open_clip read from a folder besides weights and sentence pieces: of the earlier hash, and since.
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
_DECIDING_SINCE = frozenset({"processor_config.json", "entity_vocab.json", "bpe.codes", "dict.txt", "vocab-src.json", "vocab-tgt.json"})
_WEIGHTS, _INDEX = ".safetensors", ".safetensors.index.json"
_SHARD = re.compile(r"-[0-9]{5}-of-[0-9]{5}")
# What save_pretrained() writes about itself: it decides nothing.
_OF_THE_WRITER = frozenset(
    {
        "transformers_version",
        "_diffusers_version",
        "_name_or_path",
        "name_or_path",
        "_commit_hash",
        "tokenizer_file",
        "special_tokens_map_file",
    }
)
_LARGEST_CONFIGURATION_BYTES = 1 << 20
_LARGEST_HEADER_BYTES = 100_000_000  # as the safetensors library reads
_MODEL_HASH = re.compile(r"(?P<files>[0-9a-f]{32})(?:\+(?P<content>[0-9a-f]{32}))?")
_ITEMS_AT_ONCE = 4096
_Tensor = tuple[str, str, list[int], str]  # name, dtype, shape, hash of its bytes


def digest(value: Any) -> str:
    """Return the xxh3-128 of a JSON value, independent of the order of its keys."""
    return xxhash.xxh3_128_hexdigest(json.dumps(value, sort_keys=True, ensure_ascii=True).encode())


def digest_of_lists(*parts: Sequence[str] | NDArray[np.int64] | int) -> str:
    """Return ``digest([list(part), …])`` of long lists of texts or whole numbers, and of single numbers, without their JSON in memory."""
    hasher = xxhash.xxh3_128(b"[")
    for number, part in enumerate(parts):
        hasher.update(b", " if number else b"")
        if isinstance(part, int):
            hasher.update(str(part).encode())
            continue
        hasher.update(b"[")
        for start in range(0, len(part), _ITEMS_AT_ONCE):
            some = part[start : start + _ITEMS_AT_ONCE]
            text = json.dumps(some.tolist() if isinstance(some, np.ndarray) else list(some), ensure_ascii=True)
            hasher.update((", " if start else "").encode() + text[1:-1].encode())
        hasher.update(b"]")
    hasher.update(b"]")
    return hasher.hexdigest()


def hash_file(path: Path) -> str:
    """Return the xxh3-128 of one file's bytes."""
    hasher = xxhash.xxh3_128()
    with path.open("rb", buffering=0) as file:
        _read(file, None, hasher.update)
    return hasher.hexdigest()


def hash_model_folder(folder: Path) -> str:
    """Return one hash over the files of a model folder that determine what it computes: weights, configurations, vocabularies.

    Other files of a repository (other formats, cards, folders of other tools) do not count, so a partial copy is the same model.

    Raises:
        InputError: as ``require_safetensors``.
    """
    require_safetensors(folder)
    files = _files_of(folder)
    deciding = {path.name: path for path in files if path.name in _DECIDING or path.name.endswith((_WEIGHTS, _INDEX, ".model"))}
    since = {path.name: path for path in files if path.name in _DECIDING_SINCE or path.suffix == ".tiktoken"}
    return hash_model_files(deciding, since)


def require_safetensors(folder: Path) -> None:
    """Raise InputError if a model folder contains no ``.safetensors`` file (pickled weights are never read)."""
    if not any(path.suffix == _WEIGHTS for path in _files_of(folder)):
        raise InputError(
            got=f"{folder} without a .safetensors file",
            expected="weights as safetensors (pickled weights are not read)",
            do="get the model as safetensors, or load it once in Python and write it to a new folder with save_pretrained()",
        )


def _files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


def hash_model_files(files: Mapping[str, Path], since: Mapping[str, Path] | None = None) -> str:
    """Return the hash of a model that consists of these files.

    The content part is over names, dtypes, shapes and bytes of the tensors in safetensors files, over JSON files of up to 1 MiB as values
    without the fields in which ``save_pretrained()`` names itself and its place, and over the bytes of all other files. Files of one name
    but for ``-00001-of-00003`` are shards of one file. Indexes of shards do not count.

    Args:
        files: by their names in the model's folder, in the order that the ``files`` part depends on.
        since: more files that count for the content only, because earlier hashes did not have them.
    """
    bytes_of: dict[str, str] = {}
    contents: dict[str, Any] = {}
    tensors: dict[str, dict[str, _Tensor]] = {}
    for name, path in files.items():
        if not name.endswith(_WEIGHTS):
            bytes_of[name] = hash_file(path)
            continue
        bytes_of[name], found = _hash_safetensors(path)
        of_model = tensors.setdefault(_SHARD.sub("", name), {})
        if found is None or any(of_model.setdefault(tensor[0], tensor) != tensor for tensor in found):
            contents[name] = bytes_of[name]  # not safetensors, or shards that disagree: only equal files are equal
    for name, path in {**files, **(since or {})}.items():
        if not name.endswith((_WEIGHTS, _INDEX)):
            contents[name] = _hash_configuration(path) or bytes_of.get(name) or hash_file(path)
    content = {"tensors": {name: sorted(of_model.values()) for name, of_model in tensors.items()}, "files": contents}
    return f"{digest(list(bytes_of.items()))}+{digest(content)}"


def hash_weights_file(path: Path) -> str:
    """Return the hash of a model that is one safetensors file: its ``files`` part is ``hash_file``, its content the tensors."""
    file_hash, tensors = _hash_safetensors(path)
    return f"{file_hash}+{file_hash if tensors is None else digest(sorted(tensors))}"


def earlier_form(value: Any) -> Any:
    """Return a fingerprint as lugpi wrote it before models' hashes had a content part."""
    if isinstance(value, Mapping):
        return {key: earlier_form(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [earlier_form(item) for item in value]
    found = _MODEL_HASH.fullmatch(value) if isinstance(value, str) else None
    return found["files"] if found else value


def agree(found: Any, wanted: Any) -> bool:
    """Whether two values of a fingerprint mean the same: equal as JSON, but for models' hashes, which may be of two forms."""
    if isinstance(found, list | tuple) and isinstance(wanted, list | tuple):
        return len(found) == len(wanted) and all(map(agree, found, wanted))
    hashes = [_MODEL_HASH.fullmatch(value) if isinstance(value, str) else None for value in (found, wanted)]
    if (one := hashes[0]) is None or (other := hashes[1]) is None:
        return json.dumps(found, sort_keys=True) == json.dumps(wanted, sort_keys=True)
    part = "content" if one["content"] and other["content"] else "files"
    return bool(one[part] == other[part])


def differences(found: Fingerprint, wanted: Fingerprint) -> list[str]:
    """Return ``field: found …, wanted …`` for each field that differs, sorted by field name; empty if they agree. A field of ``flags`` is
    written as the flag that a user types: ``--patience: none then, 3 now``."""
    flat_found, flat_wanted = dict(flat(found)), dict(flat(wanted))
    names = sorted(flat_found.keys() | flat_wanted.keys())
    return [
        _as_typed(name, flat_found, flat_wanted)
        if name.startswith("flags.")
        else f"{name}: found {_as_json(flat_found, name)}, wanted {_as_json(flat_wanted, name)}"
        for name in names
        if not (name in flat_found and name in flat_wanted and agree(flat_found[name], flat_wanted[name]))
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


def _as_typed(name: str, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    then, now = (
        "none" if name in one and one[name] is None else one[name] if isinstance(one.get(name), str) else _as_json(one, name)
        for one in (found, wanted)
    )
    return f"--{name.removeprefix('flags.').replace('_', '-')}: {then} then, {now} now"


def _hash_configuration(path: Path) -> str | None:
    """Return the hash of a JSON file's value, or None if it is no JSON or large."""
    if path.suffix != ".json" or path.stat().st_size > _LARGEST_CONFIGURATION_BYTES:
        return None
    try:
        return digest(_without_writer(json.loads(path.read_bytes())))
    except (ValueError, RecursionError):
        return None


def _without_writer(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_writer(item) for key, item in value.items() if key not in _OF_THE_WRITER}
    return [_without_writer(item) for item in value] if isinstance(value, list) else value


def _hash_safetensors(path: Path) -> tuple[str, list[_Tensor] | None]:
    """Return the hash of a file's bytes and its tensors, reading it once; None for tensors if it is not safetensors.

    Source of the format: https://github.com/huggingface/safetensors#format: 8 bytes with the header's length, a header in JSON, and the
    tensors' bytes without gaps.
    """
    whole = xxhash.xxh3_128()
    with path.open("rb", buffering=0) as file:
        header = bytearray()
        _read(file, 8, whole.update, header.extend)
        size = int.from_bytes(header[:8], "little")
        if len(header) == 8 and size <= _LARGEST_HEADER_BYTES:
            _read(file, size, whole.update, header.extend)
        places = _places(bytes(header[8:]), path.stat().st_size - 8 - size)
        tensors: list[_Tensor] = []
        for name, dtype, shape, count in places or ():
            hasher = xxhash.xxh3_128()
            _read(file, count, whole.update, hasher.update)
            tensors.append((name, dtype, shape, hasher.hexdigest()))
        _read(file, None, whole.update)
    return whole.hexdigest(), None if places is None else tensors


def _places(header: bytes, data_bytes: int) -> list[tuple[str, str, list[int], int]] | None:
    """Return name, dtype, shape and size in bytes of each tensor in the order of the file; None unless they fill the data exactly."""
    try:
        stated = {name: item for name, item in json.loads(header).items() if name != "__metadata__"}
        ranges = sorted((*item["data_offsets"], name) for name, item in stated.items())
        places = [(name, str(stated[name]["dtype"]), list(stated[name]["shape"]), stop - start) for start, stop, name in ranges]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    starts, stops = [start for start, _, _ in ranges], [stop for _, stop, _ in ranges]
    is_full = [*starts, data_bytes] == [0, *stops] and all(type(count) is int and count >= 0 for *_, count in places)
    return places if is_full else None


def _read(file: FileIO, count: int | None, *update: Callable[[Any], object]) -> None:
    """Pass the next ``count`` bytes of a file, or all that are left, to each function, in pieces."""
    left = sys.maxsize if count is None else count
    piece = memoryview(bytearray(min(left, _CHUNK_BYTES)))
    while left and (got := file.readinto(piece[: min(left, _CHUNK_BYTES)])):
        for function in update:
            function(piece[:got])
        left -= got
