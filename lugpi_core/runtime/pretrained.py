"""Find a model's files: a local folder as it is, a hub id through the hub's cache. Only safetensors, never pickles, never remote code."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lugpi_core.errors import InputError

MODEL_FILES = ("*.json", "*.txt", "*.model", "*.safetensors")


def local_model_folder(source: str, *, revision: str | None = None, patterns: Sequence[str] = MODEL_FILES, flag: str) -> Path:
    """Return the folder that holds a model's files, downloading them when ``source`` is a hub id.

    Args:
        source: a folder, or ``owner/name`` (optionally ``owner/name@revision``) of the Hugging Face hub.
        revision: commit, tag or branch of the hub id.
        patterns: which files to download.
        flag: the flag the user gave, for the error.

    Raises:
        InputError: no such folder and no such model on the hub, or the hub cannot be reached.
    """
    if Path(source).is_dir():
        return Path(source)
    if source.startswith(("/", "./", "../", "~")):
        raise InputError(got=f"{flag} {source}, which is no folder", expected="a model's folder", do="check the path")
    name, _, at = source.partition("@")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    # httpx.HTTPError, or that of the fork of httpx that newer hub clients stand on.
    transport_error: type[BaseException] = HfHubHTTPError.__mro__[1]
    try:
        return Path(snapshot_download(name, revision=revision or at or None, allow_patterns=list(patterns)))
    except (OSError, ValueError, transport_error) as error:
        raise InputError(
            got=f"{flag} {source} ({reason(error)})",
            expected="a local folder or a model on the Hugging Face hub that can be reached",
            do="check the name, or download the model where there is a network and give its folder",
        ) from None


@contextmanager
def only_local_files() -> Iterator[None]:
    """Let the hub's client find inside the block what is on this machine, and download nothing."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def reason(error: BaseException) -> str:
    """Return the first line of an error's message, shortened to 160 characters: enough for a one-line report."""
    text = " ".join(str(error).split("\n")[0].split()) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "…"
