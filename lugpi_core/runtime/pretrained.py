"""Find and load pretrained models: embedded ones, a local folder as it is, or a hub id through the hub's cache.

Only safetensors, never pickles, never remote code.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lugpi_core.errors import InputError
from lugpi_core.runtime.stopping import raise_wrapped_stop

MODEL_FILES = ("*.json", "*.txt", "*.model", "*.safetensors")
EMBEDDED_FOLDER = Path(__file__).resolve().parents[1] / "embedded"
EMBEDDED_LICENSE = "Apache-2.0"


def embedded_model(name: str) -> Path:
    """Return the folder of one of the small models that are shipped with the package (trained by ``python -m dev.embedded_models``).

    ``name`` is ``generator`` (Stable Diffusion), ``tiny`` (a TAESD for its latents), ``clip-demo`` (open_clip), ``vit-demo`` (ViT) or
    ``text`` (DistilBERT).

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
    """
    if Path(source).is_dir():
        return Path(source)
    if source.startswith(("/", "./", "../", "~")):
        raise InputError(got=f"{flag} {source}, which is no folder", expected="a model's folder", do="check the path")
    name, _, at = source.partition("@")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    # httpx.HTTPError, or that of the fork of httpx that newer hub clients use.
    transport_error: type[BaseException] = HfHubHTTPError.__mro__[1]
    try:
        return Path(snapshot_download(name, revision=revision or at or None, allow_patterns=list(patterns)))
    except (OSError, ValueError, transport_error) as error:
        raise InputError(
            got=f"{flag} {source} ({reason(error)})",
            expected="a local folder or a model on the Hugging Face hub that can be reached",
            do="check the name, or download the model on a machine with network access and give its folder",
        ) from None


@contextmanager
def loading(what: object, *, expected: str, do: str) -> Iterator[None]:
    """Turn what the model libraries raise inside the block into one InputError: got ``what``, which does not load, and why.

    An InputError passes unchanged, and so does an interrupt that a library has wrapped in an error of its own.

    Raises:
        InputError: a file is missing, damaged, or does not fit its configuration.
    """
    from safetensors import SafetensorError

    try:
        yield
    except InputError:
        raise
    # open_clip asserts that shapes fit; diffusers raises KeyError and TypeError at incomplete configurations.
    except (OSError, ValueError, KeyError, TypeError, AssertionError, RuntimeError, SafetensorError) as error:
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
    """Return the first line of an error's message, shortened to 160 characters: enough for a one-line report."""
    text = " ".join(str(error).split("\n")[0].split()) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "…"
