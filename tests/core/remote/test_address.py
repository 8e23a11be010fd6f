"""Addresses of object stores: which are taken, and where their files are kept."""

from pathlib import Path

import pytest

from lugpi_core.errors import InputError
from lugpi_core.remote.address import address_of, local_folder


@pytest.mark.parametrize(
    ("place", "address"),
    [
        ("runs/demo", None),
        ("/tmp/a:b/c", None),
        (Path("s3://bucket/a/b"), "s3://bucket/a/b"),
        ("s3://bucket//a/./b/", "s3://bucket/a/b"),
        ("gs://bucket/a", "gs://bucket/a"),
        ("az://container@account.blob.core.windows.net/a", "az://container@account.blob.core.windows.net/a"),
        ("hf://datasets/owner/name@main/a", "hf://datasets/owner/name@main/a"),
        ("memory://a", "memory://a"),
    ],
)
def test_an_address_survives_as_a_path(place: str | Path, address: str | None) -> None:
    assert address_of(place) == address
    assert address_of(Path(place)) == address


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("s4://bucket/a", "got an address s4://…; expected a folder, or an address in an object store; begin it with s3://, gs://, az://"),
        ("S3://bucket/a", "got an address S3://…; expected a folder, or an address in an object store; begin it with s3://, gs://, az://"),
        ("s3://", "got the address s3://; expected s3://BUCKET/FOLDER; write it in that form"),
        ("s3://bucket/../other", "got the address s3://bucket/../other; expected s3://BUCKET/FOLDER; "),
        (
            "hf://owner/name",
            "got the address hf://owner/name; expected hf://buckets/OWNER/NAME/FOLDER or hf://datasets/OWNER/NAME/FOLDER; ",
        ),
        ("s3://key:word@bucket/a", "got an address s3://… with a password or a query in it; expected s3://BUCKET/FOLDER; "),
        ("gs://bucket/a?sig=word", "got an address gs://… with a password or a query in it; "),
    ],
)
def test_other_addresses_are_refused_in_one_line(place: str, line: str) -> None:
    with pytest.raises(InputError) as refused:
        address_of(Path(place))
    assert str(refused.value).startswith(line)
    assert "word@" not in str(refused.value)
    assert "=word" not in str(refused.value)


def test_each_address_has_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    one, other = (local_folder(Path(f"s3://{bucket}/run"), None) for bucket in ("abc", "abd"))
    assert one.parent == other.parent == tmp_path / "lugpi"
    assert one != other
    assert one.name.startswith("run-")
    assert local_folder(Path("s3://abc//run/"), tmp_path / "here") == tmp_path / "here" / one.name
    assert local_folder(Path("runs/demo"), None) == Path("runs/demo")


def test_scratch_beside_a_local_folder_is_refused() -> None:
    with pytest.raises(InputError, match="--scratch x with the local folder runs; expected --scratch for an object store only"):
        local_folder(Path("runs"), Path("x"))
