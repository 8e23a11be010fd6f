"""What the libraries of object stores raise, as one line for the user that contains no credential."""

import errno
import importlib
import os
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from lugpi_core.errors import InputError, one_line

# Scheme → (module, exceptions) that its library raises besides OSError, each module imported with the library.
_RAISED: Mapping[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "s3": (("botocore.exceptions", ("BotoCoreError", "ClientError")), ("aiohttp", ("ClientError",))),
    # gcsfs: a plain ValueError for status 400
    "gs": (
        ("gcsfs.retry", ("HttpError",)),
        ("builtins", ("ValueError",)),
        ("google.auth.exceptions", ("GoogleAuthError",)),
        ("aiohttp", ("ClientError",)),
    ),
    "az": (("azure.core.exceptions", ("AzureError",)), ("aiohttp", ("ClientError",))),
    "hf": (("huggingface_hub.errors", ("HTTPError", "HFValidationError")),),
    "memory": (),
}
# Those of them that no second try helps.
_FINAL: Mapping[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "s3": (("botocore.exceptions", ("NoCredentialsError", "PartialCredentialsError", "ParamValidationError", "ProfileNotFound")),),
    "gs": (("google.auth.exceptions", ("DefaultCredentialsError",)),),
    "az": (("azure.core.exceptions", ("ClientAuthenticationError",)),),
    "hf": (("huggingface_hub.errors", ("HFValidationError",)),),
    "memory": (),
}
# What says in an exception of a general class that credentials are wrong or may not do this: gcsfs 2026.10 (an OSError "Forbidden: NAME",
# an HttpError "…, 401"), azure-core ("ErrorCode:AuthorizationPermissionMismatch"), huggingface_hub ("403 Forbidden", "401 Client Error").
_REFUSED = re.compile(r"\AForbidden: |, 40[13]\Z|\b40[13] (?:Client Error|Forbidden|Unauthorized)|\bErrorCode:\s*(?:Auth|InvalidAuth)")
# Of the local disk: no fault of the store.
LOCAL_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EMFILE)
_SECRET_NAME = re.compile(r"key|secret|token|password|credential|connection_string|sas", re.IGNORECASE)
# Access keys of AWS and their secrets, tokens of Google and the Hub, keys and signatures of Azure, passwords and queries of addresses.
_SECRET_TEXT = re.compile(
    r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|(?<![A-Za-z0-9/+])[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+])|\bya29\.[\w.-]+|\bhf_\w+|\b[Bb]earer\s+\S+"
    r"|(?<=AccountKey=)[^;\s]+|(?<=[?&])[^\s'\"]+|(?<=://)[^\s/@]+:[^\s/@]+@"
)
_SHORTEST_SECRET = 6
_LONGEST = 240


@cache
def raised_by(scheme: str) -> tuple[type[Exception], ...]:
    """Return what the library of a scheme raises when the store or the way to it fails."""
    return (OSError, EOFError, *_classes(_RAISED[scheme]))


@cache
def final_of(scheme: str) -> tuple[type[Exception], ...]:
    """Return those of them that no second try helps."""
    return (PermissionError, FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, *_classes(_FINAL[scheme]))


def is_final(scheme: str, error: Exception) -> bool:
    """Whether no second try helps."""
    return isinstance(error, (*final_of(scheme), ValueError)) or _REFUSED.search(str(error)) is not None


def store_error(address: str, doing: str, error: Exception) -> InputError:
    """Return the line for what went wrong in a store: ``doing`` says what was tried."""
    text = without_secrets(str(error) or type(error).__name__)
    got = f"{address}: {doing} failed ({type(error).__name__}: {one_line(text)[:_LONGEST]})"
    if "RequestTimeTooSkewed" in text or "request time and the current time is too large" in text:
        return InputError(got=got, expected="a clock like the store's", do="set this machine's clock (NTP) and run the same command again")
    if isinstance(error, FileNotFoundError):
        return InputError(got=got, expected="a bucket that is there", do="create it with the store's own tool, or correct the address")
    if isinstance(error, ValueError):
        do = "correct the address, or what the environment and the library's configuration file say"
        return InputError(got=got, expected="a request that the store's library accepts", do=do)
    if is_final(address.partition(":")[0], error):
        return InputError(
            got=got,
            expected="credentials that may list, read and write there, where the store's library looks for them",
            do="try them with the store's own tool, give them in the environment or its configuration file, and run the same command again",
        )
    return InputError(got=got, expected="a store that answers", do="run the same command again; what is uploaded is kept")


def without_secrets(text: str) -> str:
    """Return a text without the credentials of this process, and without what looks like some."""
    for secret in sorted(_secrets(), key=len, reverse=True):
        text = text.replace(secret, "[hidden]")
    return _SECRET_TEXT.sub("[hidden]", text)


def _secrets() -> Iterator[str]:
    """Yield the values of settings whose names are those of credentials, in the environment and in fsspec's own configuration."""
    from fsspec.config import conf

    yield from _values({**os.environ, **conf})


def _values(settings: Mapping[str, Any], is_secret: bool = False) -> Iterator[str]:
    for name, value in settings.items():
        hidden = is_secret or _SECRET_NAME.search(str(name)) is not None
        if isinstance(value, Mapping):
            yield from _values(value, hidden)
        elif hidden and isinstance(value, str) and len(value) >= _SHORTEST_SECRET:
            yield value


def _classes(named: tuple[tuple[str, tuple[str, ...]], ...]) -> Iterator[type[Exception]]:
    for module, names in named:
        loaded = importlib.import_module(module)
        yield from (getattr(loaded, name) for name in names)
