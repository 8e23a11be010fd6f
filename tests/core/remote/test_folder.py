"""A folder of an object store: what was sent is there, what is read is true, and faults are one line."""

import errno
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from lugpi_core.errors import InputError
from lugpi_core.remote.faults import raised_by, store_error
from lugpi_core.remote.folder import RemoteFolder, Taken, measured
from tests.support.faulty_store import FAULTS, Fault, FaultyStore, Verb


@pytest.fixture
def folder(faulty_store: type[FaultyStore]) -> RemoteFolder:
    """A folder in the store with faults."""
    return RemoteFolder("memory://bucket/run")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of 1,000 bytes."""
    path = tmp_path / "file"
    path.write_bytes(bytes(range(250)) * 4)
    return path


def test_what_is_put_is_listed_and_read(folder: RemoteFolder, file: Path, tmp_path: Path) -> None:
    assert folder.files() == {}
    assert folder.folders() == []
    assert folder.read("a/file") is None
    folder.put_new(file, "a/file")
    folder.put_new(file, "a/b/file")
    assert folder.folders() == ["a"]
    assert folder.folders("a") == ["b"]
    assert folder.files("a") == {"file": 1000}
    assert folder.read("a/file") == file.read_bytes()
    assert folder.read_many({"a/file": 1000, "a/b/file": 1000}) == {name: file.read_bytes() for name in ("a/file", "a/b/file")}
    size, sha256 = measured(file)
    folder.get("a/file", tmp_path / "copy", sha256=sha256, size=size)
    assert (tmp_path / "copy").read_bytes() == file.read_bytes()
    folder.remove("a/file")
    folder.remove("a/file")
    assert folder.read("a/file") is None


def test_a_name_with_equal_content_is_done_and_one_with_other_content_is_kept(folder: RemoteFolder, file: Path, tmp_path: Path) -> None:
    folder.put_new(file, "file")
    folder.put_new(file, "file")
    other = tmp_path / "other"
    other.write_bytes(b"other")
    with pytest.raises(Taken) as taken:
        folder.put_new(other, "file")
    assert (taken.value.bytes, taken.value.sha256) == measured(file)
    assert folder.read("file") == file.read_bytes()
    folder.put(other, "file")
    assert folder.read("file") == b"other"


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("verb", ["PUT", "GET", "LIST"])
def test_every_second_request_may_fail(fault: Fault, verb: Verb, folder: RemoteFolder, file: Path, tmp_path: Path) -> None:
    FaultyStore.every, FaultyStore.fault = {verb: 2}, fault
    size, sha256 = measured(file)
    names = [f"file{n}" for n in range(6)]
    for name in names:
        folder.put_new(file, name)
        folder.get(name, tmp_path / name, sha256=sha256, size=size)
        assert folder.read(name) == file.read_bytes() == (tmp_path / name).read_bytes()
    assert folder.read_many(dict.fromkeys(names, size)) == dict.fromkeys(names, file.read_bytes())
    listed = [folder.files() for _ in range(2)]
    assert dict.fromkeys(names, size) in listed  # a cut list is a list, and lacks names
    assert FaultyStore.broken[verb] > 0


@pytest.mark.parametrize("fault", FAULTS)
def test_a_store_that_always_fails_ends_in_one_line(fault: Fault, folder: RemoteFolder, file: Path, tmp_path: Path) -> None:
    folder.put_new(file, "file")
    FaultyStore.every, FaultyStore.fault = {"PUT": 1, "GET": 1}, fault
    size, sha256 = measured(file)
    with pytest.raises(
        InputError, match=r"^got memory://bucket/run: (uploading new|reading new back) failed \(.*; expected a store that answers; "
    ):
        folder.put_new(file, "new")
    with pytest.raises(InputError, match=r"^got memory://bucket/run"):
        folder.get("file", tmp_path / "copy", sha256=sha256, size=size)
    with pytest.raises(InputError, match=r"^got memory://bucket/run: reading file failed"):
        folder.read("file")
    assert not list(tmp_path.glob("copy*"))
    assert not list(tmp_path.glob(".copy*"))


def test_a_file_with_other_content_is_not_read(folder: RemoteFolder, file: Path, tmp_path: Path) -> None:
    folder.put_new(file, "file")
    size, sha256 = measured(file)
    for record in ({"size": size, "sha256": "0" * 64}, {"size": size + 1, "sha256": None}):
        with pytest.raises(InputError, match="whose content differs from its record"):
            folder.get("file", tmp_path / "copy", **record)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"got no memory://bucket/run/absent \(FileNotFoundError\)"):
        folder.get("absent", tmp_path / "copy", sha256=sha256, size=size)
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize(
    "error",
    [
        PermissionError("Access Denied"),
        OSError("Forbidden: https://storage.googleapis.com/upload\nrobot does not have storage.objects.create access"),
        OSError("Invalid Credentials, 401"),
        OSError("This request is not authorized to perform this operation.\nErrorCode:AuthorizationPermissionMismatch"),
        OSError("403 Forbidden: you need write access."),
    ],
)
def test_no_second_try_helps_without_permission(folder: RemoteFolder, file: Path, monkeypatch: pytest.MonkeyPatch, error: OSError) -> None:
    """As the libraries of S3, GCS (twice), Azure and the Hub say it."""
    FaultyStore.every, FaultyStore.fault = {"PUT": 1}, "fails"
    monkeypatch.setattr(FaultyStore, "error", lambda: error)
    with pytest.raises(InputError, match=r"uploading file failed \((Permission|OS)Error: .*\); expected credentials that may list"):
        folder.put_new(file, "file")
    assert FaultyStore.requests["PUT"] == 1


def test_a_request_that_gcs_does_not_understand_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """gcsfs 2026.10: ``ValueError("Bad Request: …")``."""
    for module, name in {"gcsfs.retry": "HttpError", "google.auth.exceptions": "GoogleAuthError"}.items():
        monkeypatch.setitem(sys.modules, module, ModuleType(module))
        monkeypatch.setattr(sys.modules[module], name, type(name, (Exception,), {}), raising=False)
    assert ValueError in raised_by.__wrapped__("gs")
    said = store_error("gs://bucket/run", "listing it", ValueError("Bad Request: b\nInvalid bucket name: 'b'"))
    assert re.match(
        r"got gs://bucket/run: listing it failed \(ValueError: .*; expected a request that the store's library accepts; ", str(said)
    )


def test_there_is_no_further_try_after_minutes(folder: RemoteFolder, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FaultyStore.every, FaultyStore.fault = {"PUT": 1}, "times out"
    monkeypatch.setattr("lugpi_core.remote.folder.PATIENCE_S", -1.0)
    with pytest.raises(InputError, match=r"uploading file failed \(FSTimeoutError: FSTimeoutError\)"):
        folder.put_new(file, "file")
    assert FaultyStore.requests["PUT"] == 1


def test_clocks_that_differ_are_named(folder: RemoteFolder, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FaultyStore.every, FaultyStore.fault = {"PUT": 1}, "fails"
    skewed = "The difference between the request time and the current time is too large."
    monkeypatch.setattr(FaultyStore, "error", lambda: PermissionError(skewed))
    with pytest.raises(InputError, match=r"expected a clock like the store's; set this machine's clock"):
        folder.put_new(file, "file")


def test_a_full_local_disk_is_no_fault_of_the_store(
    folder: RemoteFolder, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.put_new(file, "file")
    FaultyStore.every, FaultyStore.fault = {"GET": 1}, "fails"
    monkeypatch.setattr(FaultyStore, "error", lambda: OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(OSError, match="No space left on device") as full:
        folder.get("file", tmp_path / "copy", sha256=None, size=1000)
    assert full.value.errno == errno.ENOSPC
    assert "copy" in str(full.value.filename)


@pytest.mark.parametrize(
    "planted",
    [
        {"FSSPEC_MEMORY_SECRET": "correct-horse-battery"},
        {"AWS_SECRET_ACCESS_KEY": "correct-horse-battery"},
        {},
    ],
    ids=["fsspec", "aws", "patterns"],
)
def test_credentials_are_not_printed(planted: dict[str, str], folder: RemoteFolder, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = [
        "AKIAIOSFODNN7EXAMPLE",
        "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEYabc",
        "hf_abcdefghijklmnop",
        "sig=abc%2Fdef",
        "user:word@host",
    ]
    text = "denied for AKIAIOSFODNN7EXAMPLE, hf_abcdefghijklmnop, https://user:word@host/x?sig=abc%2Fdef"
    text += ", wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
    for name, value in planted.items():
        monkeypatch.setenv(name, value)
        text, secrets = f"{text} with {value}", [*secrets, value]
    FaultyStore.every, FaultyStore.fault = {"PUT": 1}, "fails"
    monkeypatch.setattr(FaultyStore, "error", lambda: PermissionError(text))
    with pytest.raises(InputError) as failed:
        folder.put_new(file, "file")
    assert "[hidden]" in str(failed.value)
    assert "denied for" in str(failed.value)
    assert not [secret for secret in [*secrets, "wJalrXUtnFEMI"] if secret in str(failed.value)]
    assert failed.value.__cause__ is None
    assert failed.value.__suppress_context__


@pytest.mark.parametrize(("address", "package"), [("gs://bucket/run", "lugpi[gs]"), ("az://container/run", "lugpi[az]")])
def test_a_library_that_is_not_installed_is_named(address: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("gcsfs", "gcsfs.retry", "adlfs", "azure.core.exceptions"):
        monkeypatch.setitem(sys.modules, module, None)
    raised_by.cache_clear()
    with pytest.raises(
        InputError, match=rf"^got {address} without its library \(.*\); expected it installed; run pip install '{re.escape(package)}'$"
    ):
        RemoteFolder(address)
