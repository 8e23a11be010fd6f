"""A generator's files from the Hugging Face hub: one pipeline, or a pipeline and the denoiser of another repository.

A repository's ``model_index.json`` is read first, so that a pipeline that does not run here is told before its gigabytes are downloaded.
Its card is downloaded for its licence.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lugpi_core.errors import DISK_FAULTS, InputError
from lugpi_core.runtime.pretrained import hub_advice, hub_cause, reason, require_hub_id

_INDEX, _CARD = "model_index.json", "README.md"
_FRONT_MATTER = re.compile(r"\s*---\s*\n(.*?)\n---", re.S)
_LICENSE = re.compile(r"^(license(?:_name|_link)?):[ \t]*(\S[^\n]*)$", re.M)
_NO_WEIGHTS = "choose a repository with weights as .safetensors (pickled weights are not read)"
_LARGEST_FRONT_BYTES = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Downloaded:
    """Files of one repository.

    Attributes:
        path: a folder, or a file.
        revision: the commit; None = the user's own folder.
        license: as the card states it; None = it states none, or is not at hand.
    """

    path: Path
    revision: str | None
    license: str | None


def find_pipeline(
    name: str, sources: Sequence[str], *, half: bool, check: Callable[[Path], str], with_denoiser: bool, is_preset: bool
) -> Downloaded:
    """Return the first of the sources that is at hand: a folder, or a repository of the hub.

    Args:
        name: of the generator, for the error.
        sources: folders or hub ids, ``owner/name`` or ``owner/name@revision``.
        half: prefer files of half precision.
        check: returns the name of the denoiser of a ``model_index.json``; raises InputError for a pipeline that does not run here.
        with_denoiser: whether its weights are wanted.
        is_preset: whether a folder may be given in place of the sources.

    Raises:
        InputError: none is within reach.
    """
    failures: list[tuple[str, BaseException]] = []
    for source in sources:
        if Path(source).is_dir():
            return Downloaded(path=Path(source), revision=None, license=card_license(Path(source)))
        require_hub_id(source, flag="--generator")
        try:
            with _as_os_error():
                return _download_pipeline(source, half=half, check=check, with_denoiser=with_denoiser)
        except InputError:
            raise
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno in DISK_FAULTS:
                raise
            failures.append((source, hub_cause(error)))
    elsewhere = f"download it where there is a network and give --generator {name}=FOLDER"
    advice = [_NO_WEIGHTS if "safetensors" in str(error) else hub_advice(source, error) for source, error in failures]
    gated = [text for text in advice if "hf auth login" in text and "check the name" not in text]
    raise InputError(
        got=f"no source of the generator {name} within reach ({'; '.join(f'{source}: {_answer(error)}' for source, error in failures)})",
        expected="one of its sources on the Hugging Face hub, or a local diffusers folder",
        do=gated[0] if gated else elsewhere if is_preset else advice[-1],
    )


def find_denoiser(source: str, *, part: str) -> Downloaded:
    """Return the denoiser of another repository: its folder with configuration and weights, or one file.

    Args:
        source: ``owner/name`` or ``owner/name/file.safetensors``.
        part: the denoiser's folder in a pipeline, ``unet`` or ``transformer``.

    Raises:
        InputError: it is not within reach.
    """
    from huggingface_hub import hf_hub_download, snapshot_download

    owner, name, *file = source.split("/", 2)
    repository = f"{owner}/{name}"
    try:
        with _as_os_error():
            if file:
                path = Path(hf_hub_download(repository, file[0]))
                snapshot = path.parents[len(Path(file[0]).parts) - 1]
            else:
                snapshot = Path(snapshot_download(repository, allow_patterns=[f"{part}/*.json", f"{part}/*.safetensors"]))
                path = snapshot / part
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in DISK_FAULTS:
            raise
        cause = hub_cause(error)
        raise InputError(
            got=f"no {source} within reach ({_answer(cause)})",
            expected="the denoiser on the Hugging Face hub",
            do=_denoiser_advice(repository, error),
        ) from None
    return Downloaded(path=path, revision=snapshot.name, license=_license_on_the_hub(repository, snapshot))


def _denoiser_advice(repository: str, error: BaseException) -> str:
    """Return what helps where the preset, not the user, has named the repository."""
    advice = hub_advice(repository, error)
    return "download it where there is a network and give it with --unet FILE" if "check the name" in advice else advice


def card_license(folder: Path) -> str | None:
    """Return the licence that a model's card states in its front matter; None if there is no card, or it states none."""
    card = folder / _CARD
    if not card.is_file():
        return None
    with card.open("rb") as file:
        front = _FRONT_MATTER.match(file.read(_LARGEST_FRONT_BYTES).decode(errors="replace"))
    stated = {match[1]: match[2].strip(" \"'") for match in _LICENSE.finditer(front[1])} if front else {}
    # ``license: other`` stands before the name of one that the hub does not list.
    named = [stated.get("license_name"), stated.get("license")]
    license = next((name for name in named if name and name != "other"), None)
    if license is None and (link := stated.get("license_link")):
        return f"other, {link}"
    return license


def _download_pipeline(source: str, *, half: bool, check: Callable[[Path], str], with_denoiser: bool) -> Downloaded:
    from diffusers import DiffusionPipeline
    from huggingface_hub import hf_hub_download

    repository, _, revision = source.partition("@")
    at = revision or None
    index = Path(hf_hub_download(repository, _INDEX, revision=at))
    denoiser = check(index)
    skipped = {} if with_denoiser else {denoiser: None}
    for variant in ("fp16", None) if half else (None, "fp16"):
        try:
            folder = Path(DiffusionPipeline.download(repository, revision=at, use_safetensors=True, variant=variant, **skipped))
        except ValueError:
            if (variant is None) == half:
                raise
            continue  # the repository has no files of that precision
        if skipped:
            hf_hub_download(repository, f"{denoiser}/config.json", revision=at)
        # The hub's cache keeps each commit in a folder of its name.
        return Downloaded(path=folder, revision=folder.name, license=_license_on_the_hub(repository, folder))
    raise AssertionError("the loop returns or raises")


def _license_on_the_hub(repository: str, snapshot: Path) -> str | None:
    from huggingface_hub import hf_hub_download

    try:
        with _as_os_error():
            hf_hub_download(repository, _CARD, revision=snapshot.name)
    except (OSError, ValueError):
        return None  # a repository without a card, or only its models are in the cache
    return card_license(snapshot)


@contextmanager
def _as_os_error() -> Iterator[None]:
    """Turn the errors of the hub's HTTP client that are no OSError, such as time-outs, into one."""
    from diffusers.utils.hub_utils import httpx  # the HTTP client of the installed hub library
    from huggingface_hub.errors import RevisionResolutionError

    try:
        yield
    except OSError:
        raise
    except (httpx.HTTPError, RevisionResolutionError) as error:
        raise OSError(reason(error)) from error


def _answer(error: BaseException) -> str:
    """Return what the hub said, or what kept it from being asked, in one line."""
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError) and error.response is not None:
        said = (error.server_message or "").split("\n")[0].strip()
        return f"{error.response.status_code}, {said}" if said else reason(error)
    while error.__cause__ is not None:
        error = error.__cause__
    return reason(error)
