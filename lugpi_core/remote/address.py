"""Addresses of object stores, and the local folder in which the files of a run there are built and kept. Imports nothing heavy."""

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

from lugpi_core.errors import InputError

# Scheme → what a bucket is called there, and how the address of a folder in it begins.
FORMS: Mapping[str, str] = {
    "s3": "s3://BUCKET/FOLDER",
    "gs": "gs://BUCKET/FOLDER",
    "az": "az://CONTAINER/FOLDER",
    "hf": "hf://buckets/OWNER/NAME/FOLDER or hf://datasets/OWNER/NAME/FOLDER",
    "memory": "memory://NAME",
}
# pathlib makes one slash of several: an address survives as a Path.
_ADDRESS = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):(?P<rest>/.*|)", re.DOTALL)


def address_of(place: str | Path) -> str | None:
    """Return the address that a place is, as ``scheme://bucket/folder``, or None for a local folder.

    Raises:
        InputError: another kind of address, one without a bucket, or one with a credential in it.
    """
    match = _ADDRESS.fullmatch(str(place))
    if match is None:
        return None
    scheme, parts = match["scheme"], [part for part in match["rest"].split("/") if part not in ("", ".")]
    if scheme not in FORMS:
        if not match["rest"] or Path(f"{scheme}:").is_dir():
            return None
        known = ", ".join(f"{name}://" for name in FORMS)
        raise InputError(got=f"an address {scheme}://…", expected="a folder, or an address in an object store", do=f"begin it with {known}")
    first = parts[0] if parts else ""
    if "?" in match["rest"] or ("@" in first and (":" in first or scheme in ("s3", "gs"))):
        raise InputError(
            got=f"an address {scheme}://… with a password or a query in it",
            expected=FORMS[scheme],
            do="give credentials to the store's library, in the environment or its own configuration file",
        )
    if len(parts) < (3 if scheme == "hf" else 1) or ".." in parts:
        raise InputError(got=f"the address {scheme}://{'/'.join(parts)}", expected=FORMS[scheme], do="write it in that form")
    return f"{scheme}://{'/'.join(parts)}"


def local_folder(place: Path, scratch: Path | None) -> Path:
    """Return a local folder as it is, and for an address the folder below ``scratch`` that has the files of it.

    Args:
        place: a folder or an address.
        scratch: where files of object stores are kept; the user's cache folder if None.

    Raises:
        InputError: as ``address_of``; or ``scratch`` beside a local folder, where it has no meaning.
    """
    address = address_of(place)
    if address is None:
        if scratch is not None:
            raise InputError(
                got=f"--scratch {scratch} with the local folder {place}",
                expected="--scratch for an object store only",
                do="leave it out, or give an address such as s3://BUCKET/FOLDER",
            )
        return place
    name = re.sub(r"[^A-Za-z0-9._-]", "-", address.rsplit("/", 1)[1])
    return (scratch or _cache()) / f"{name}-{hashlib.sha256(address.encode()).hexdigest()[:12]}"


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lugpi"
