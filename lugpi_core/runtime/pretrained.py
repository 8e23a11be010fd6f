"""Find and load pretrained models: embedded ones, a local folder as it is, or a hub id through the hub's cache.

Only safetensors, never pickles, never remote code.
"""

import difflib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lugpi_core.errors import DISK_FAULTS, InputError, one_line
from lugpi_core.runtime.stopping import raise_wrapped_stop

MODEL_FILES = ("*.json", "*.txt", "*.model", "*.safetensors")
EMBEDDED_FOLDER = Path(__file__).resolve().parents[1] / "embedded"
EMBEDDED_LICENSE = "Apache-2.0"
# By one of these files a folder is known as a model of transformers, diffusers or open_clip.
_INDEXES = ("config.json", "model_index.json", "open_clip_config.json")


def embedded_model(name: str) -> Path:
    """Return the folder of one of the small models that are shipped with the package (trained by ``python -m dev.embedded_models``).

    ``name`` is ``generator`` (Stable Diffusion), ``generator-flow`` (PRX), ``tiny`` (a TAESD for the latents of both), ``clip-demo``
    (open_clip), ``vit-demo`` (ViT) or ``text`` (DistilBERT).

    Raises:
        InputError: the package was installed without it.
    """
    folder = EMBEDDED_FOLDER / name
    if not folder.is_dir():
        raise InputError(got=f"no {folder}", expected="the embedded models that come with lugpi", do="install the package again")
    return folder


def local_model_folder(source: str, *, revision: str | None = None, patterns: Sequence[str] = MODEL_FILES, flag: str) -> Path:
    """Return the folder with a model's files, downloading them if ``source`` is a hub id.

    Args:
        source: a folder, or ``owner/name`` (optionally ``owner/name@revision``) of the Hugging Face hub.
        revision: commit, tag or branch of the hub id.
        patterns: which files to download.
        flag: the user's flag, for the error.

    Raises:
        InputError: no such folder and no such model on the hub, or the hub cannot be reached.
        OSError: the download cannot be written, for example because the disk is full.
    """
    path = Path(source)
    if source.strip() and path.is_dir():
        if (path / "snapshots").is_dir() and (path / "refs").is_dir():
            newest = max((path / "snapshots").iterdir(), key=lambda folder: folder.stat().st_mtime, default=path / "snapshots")
            raise InputError(got=f"{flag} {source}, a model in the hub's cache", expected="one of its snapshots", do=f"give {newest}")
        return path
    require_hub_id(source, flag=flag)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, RevisionResolutionError

    name, _, at = source.partition("@")
    # httpx.HTTPError, or that of the fork of httpx that newer hub clients use.
    transport_error: type[BaseException] = HfHubHTTPError.__mro__[1]
    try:
        return Path(snapshot_download(name, revision=revision or at or None, allow_patterns=list(patterns)))
    except (OSError, ValueError, transport_error, RevisionResolutionError) as error:
        if isinstance(error, OSError) and error.errno in DISK_FAULTS:
            raise
        raise InputError(
            got=f"{flag} {source} ({reason(error)})",
            expected="a local folder or a model on the Hugging Face hub that can be reached",
            do=hub_advice(source, error),
        ) from None


def require_hub_id(source: str, *, flag: str) -> None:
    """Raise InputError for what is no folder and cannot be a name on the hub: a file, a path, a web address, nothing."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    if Path(source).is_file() or source.startswith("~"):
        raise _no_model(source, flag)
    try:
        validate_repo_id(source.partition("@")[0])
    except HFValidationError:
        raise _no_model(source, flag) from None


def _no_model(source: str, flag: str) -> InputError:
    path, expected = Path(source), "a model's folder, or owner/name on the Hugging Face hub"
    if path.is_file():
        is_model = any((path.parent / name).is_file() for name in _INDEXES)
        do = f"give its folder, {path.parent}" if is_model else "save the model as a folder with save_pretrained(), and give that"
        return InputError(got=f"{flag} {source}, which is a file", expected=expected, do=do)
    if address := re.match(r"https?://([^/]+)/*(.*)", source):
        hub_id = re.match(r"[\w.-]+/[\w.-]+", address[2]) if address[1] in ("huggingface.co", "hf.co") else None
        do = f"give {hub_id[0]}" if hub_id else "download the model and give its folder"
        return InputError(got=f"{flag} {source}, a web address", expected=expected, do=do)
    similar = _similar_folder(path)
    do = f"did you mean {similar}?" if similar else "check the path"
    return InputError(got=f"{flag} {source or repr(source)}, which is no folder", expected=expected, do=do)


def _similar_folder(path: Path) -> Path | None:
    """Return the folder that a path without a folder may mean: ``~`` written out, or one part of it spelt a little differently."""
    if path.parts[:1] == ("~",):
        path = path.expanduser()
        if path.is_dir():
            return path
    existing = next((parent for parent in path.parents if parent.is_dir()), None)
    if existing is None:
        return None
    missing, *rest = path.relative_to(existing).parts
    try:
        names = [child.name for child in existing.iterdir() if child.is_dir()]
    except OSError:
        return None
    close = difflib.get_close_matches(missing, names, n=1)
    similar = existing.joinpath(close[0], *rest) if close else None
    return similar if similar is not None and similar.is_dir() else None


def hub_advice(source: str, error: BaseException) -> str:
    """Return what helps against the error of a download of ``source``, for the last part of an InputError."""
    from huggingface_hub import constants, errors

    similar = _similar_folder(Path(source))
    check_name = "check the name" + (f" (did you mean the folder {similar}?)" if similar else "")
    error = hub_cause(error)
    match error:
        case errors.GatedRepoError():
            return "ask for access on its page at huggingface.co, and log in with: hf auth login"
        case errors.RepositoryNotFoundError():
            return f"{check_name}; for a private model, log in with: hf auth login"
        case errors.RevisionNotFoundError() | errors.RevisionResolutionError():
            return "check the revision, after the @"
        case errors.DisabledRepoError():
            return "choose another model: the hub has switched this one off"
        case errors.HfHubHTTPError(response=response) if response is not None and response.status_code in (401, 403):
            return "log in with an account that may read it: hf auth login"
    unlock = "unset HF_HUB_OFFLINE, " if constants.is_offline_mode() and "HF_HUB_OFFLINE" in os.environ else ""
    return f"{check_name}, {unlock}or download the model on a machine with network access and give its folder"


def hub_cause(error: BaseException) -> BaseException:
    """Return what the hub answered, which its client and diffusers wrap in errors that speak of the network; else the error itself."""
    from huggingface_hub import errors

    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, errors.HfHubHTTPError):
        cause = cause.__cause__ or cause.__context__
    return error if cause is None else cause


def read_config(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file of a pretrained model's folder.

    Raises:
        InputError: there is no such file, or it is no JSON object.
    """
    try:
        value = json.loads(path.read_bytes())
        fault = f"a JSON {type(value).__name__}"
    except FileNotFoundError:
        raise InputError(
            got=f"no {path.name} in {path.parent}", expected="a model's folder", do="give one as the library's save_pretrained() writes it"
        ) from None
    except (ValueError, RecursionError) as error:
        value, fault = None, f"which is not JSON ({reason(error)})"
    if not isinstance(value, dict):
        raise InputError(
            got=f"{path}, {fault}",
            expected="a JSON object, as the model's library wrote it",
            do="get this file again from where the model comes from",
        )
    return value


def require_whole_weights(what: str, folder: Path, config: Mapping[str, Any]) -> None:
    """Raise InputError for weights that do not stand in the folder as they are meant: quantized ones, or those of a base model whose
    adapter lies beside them, which the libraries leave out without a word unless peft is installed."""
    if config.get("quantization_config") is not None:
        raise InputError(got=f"{what}, whose weights are quantized", expected="plain weights", do="give the unquantized model")
    if found := sorted(path.name for path in (*folder.glob("adapter_config.json"), *folder.glob("adapter_model.*"))):
        raise InputError(
            got=f"{what} with an adapter beside its weights ({found[0]})",
            expected="one whole model",
            do="merge it with peft's merge_and_unload(), and save that with save_pretrained(); without the adapter, remove its files",
        )


def require_vocabulary(what: str, folder: Path, tokenizer: Any, *, expected: str) -> None:
    """Raise InputError for a folder without the vocabulary that the tokenizer's class reads: transformers makes one up, of special tokens
    alone. CANINE, ByT5 and the Perceiver read characters or bytes and have no file."""
    names = tuple(dict.fromkeys(("tokenizer.json", *tokenizer.vocab_files_names.values())))
    if not tokenizer.vocab_files_names:
        return
    is_there = any((folder / name).is_file() for name in names) or any(folder.glob("*.model"))
    if not is_there or len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise InputError(
            got=f"{what} without {' or '.join(names)}",
            expected=expected,
            do="save the whole tokenizer there with save_pretrained()",
        )


@contextmanager
def loading(what: object, *, expected: str, do: str) -> Iterator[None]:
    """Turn what the model libraries raise inside the block into one InputError: got ``what``, which does not load, and why.

    An InputError passes unchanged, and so does an interrupt that a library has wrapped in an error of its own.

    Raises:
        InputError: a file is missing, damaged, or does not fit its configuration.
    """
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    try:
        yield
    except InputError:
        raise
    # open_clip asserts that shapes fit; diffusers raises KeyError, IndexError and TypeError at files of another model; configurations of
    # transformers refuse values of another type by an error of the hub's client that is none of these.
    except (OSError, ValueError, LookupError, TypeError, AssertionError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        raise_wrapped_stop(error)
        raise InputError(got=f"{what}, which does not load ({reason(error)})", expected=expected, do=do) from None


@contextmanager
def only_local_files() -> Iterator[None]:
    """Let the hub's client download nothing inside the block, and find only what is on this machine."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def reason(error: BaseException) -> str:
    """Return the first line of an error's message, and the next where the first ends in a colon, shortened to 160 characters: enough for a
    one-line report. The hub's client begins with "Got: " where it names the error behind it.
    """
    first, *rest = str(error).split("\n")
    text = one_line(" ".join([first.removeprefix("Got: "), *rest[: first.rstrip().endswith(":")]])) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "…"
