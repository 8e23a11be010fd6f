"""A folder of a real S3 server: conditional writes, buckets that are not there or read-only, the server stopped and started."""

import threading
from pathlib import Path

import pytest

from lugpi_core.errors import InputError
from lugpi_core.remote.folder import RemoteFolder, Taken, measured
from tests.support.s3_server import S3Server


@pytest.fixture
def bucket(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty bucket of the test's own; nothing waits before a further try."""
    monkeypatch.setattr("lugpi_core.remote.folder.PAUSES_S", (0.0,))
    return s3.make_bucket()


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_what_is_put_is_listed_and_read(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    folder = RemoteFolder(f"s3://{bucket}/run")
    folder.require_bucket()
    assert folder.files() == {}
    assert folder.folders() == []
    assert folder.read("a/file") is None
    file = write(tmp_path / "file", b"content" * 1000)
    for name in ("a/file", "a/b/file"):
        folder.put_new(file, name)
    assert folder.folders() == ["a"]
    assert folder.folders("a") == ["b"]
    assert folder.files("a") == {"file": 7000}
    assert folder.read_many({"a/file": 7000, "a/b/file": 7000}) == dict.fromkeys(("a/file", "a/b/file"), file.read_bytes())
    size, sha256 = measured(file)
    folder.get("a/file", tmp_path / "copy", sha256=sha256, size=size)
    assert (tmp_path / "copy").read_bytes() == file.read_bytes()
    folder.remove("a/file")
    assert list(s3.objects(bucket)) == ["run/a/b/file"]


def test_another_machines_writes_are_seen(bucket: str, tmp_path: Path) -> None:
    here, there = RemoteFolder(f"s3://{bucket}/run"), RemoteFolder(f"s3://{bucket}/run")
    there.put_new(write(tmp_path / "file", b"first"), "file")
    assert here.files() == {"file": 5}
    there.put(write(tmp_path / "file", b"second"), "file")
    there.put_new(tmp_path / "file", "other")
    assert here.files() == {"file": 6, "other": 6}
    assert here.read("file") == b"second"


def test_one_of_several_writers_succeeds(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    files = [write(tmp_path / str(n), str(n).encode()) for n in range(4)]
    outcomes: list[str] = []

    def put(file: Path) -> None:
        try:
            RemoteFolder(f"s3://{bucket}/run").put_new(file, "one")
            outcomes.append(file.read_text())
        except Taken as taken:
            outcomes.append(taken.sha256)

    writers = [threading.Thread(target=put, args=(file,)) for file in files]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    stored = s3.objects(bucket)["run/one"].decode()
    assert sorted(outcomes) == sorted([stored, *[measured(files[int(stored)])[1]] * 3])


def test_a_bucket_that_is_not_there_is_one_line(s3: S3Server) -> None:
    with pytest.raises(
        InputError, match=r"^got s3://no-such-bucket/run: looking for the bucket failed .*; expected a bucket that is there; "
    ):
        RemoteFolder("s3://no-such-bucket/run").require_bucket()


def test_a_bucket_that_is_read_only_is_one_line(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    s3.forbid_writing(bucket)
    folder = RemoteFolder(f"s3://{bucket}/run")
    folder.require_bucket()
    with pytest.raises(
        InputError, match=r"uploading file failed \(PermissionError: .*; expected credentials that may list, read and write"
    ):
        folder.put_new(write(tmp_path / "file", b"content"), "file")
    assert s3.objects(bucket) == {}


def test_a_server_that_is_stopped_is_one_line_and_started_goes_on(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    folder, file = RemoteFolder(f"s3://{bucket}/run"), write(tmp_path / "file", b"content")
    folder.put_new(file, "file")
    s3.stop()
    try:
        for act in (lambda: folder.read("file"), lambda: folder.put_new(file, "other"), folder.require_bucket):
            with pytest.raises(
                InputError, match=r"expected a store that answers; run the same command again; what is uploaded is kept"
            ) as failed:
                act()
            assert "planted-secret" not in str(failed.value)
    finally:
        s3.start()
    assert folder.read("file") == b"content"
    folder.put_new(file, "other")
    assert folder.files() == {"file": 7, "other": 7}


def test_wrong_credentials_are_one_line(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(InputError, match=r"PartialCredentialsError.*; expected credentials that may list"):
        RemoteFolder(f"s3://{bucket}/run").require_bucket()
