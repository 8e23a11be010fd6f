"""A run in an object store: the same bytes as in a local folder, through an S3 server that is stopped; what is there is not fetched."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from featurize.cli import main
from lugpi_core.remote.folder import RemoteFolder
from lugpi_core.store.layout import LATENTS
from tests.support.s3_server import ENVIRONMENT, S3Server

DEMO = ("--generator", "demo", "--steps", "2", "--batch-size", "4", "--shard-rows", "8")
Run = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing waits before a further try."""
    monkeypatch.setattr("lugpi_core.remote.folder.PAUSES_S", (0.0,))
    monkeypatch.setattr("lugpi_core.store.object_store.GRACE_S", 0.0)
    monkeypatch.setattr("lugpi_core.store.object_store.LOOK_S", 0.0)


@pytest.fixture
def run(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """``run(command, bucket, machine, …)``: run a command of featurize on a run in a bucket; return status, figures and what it said."""

    def on(command: str, bucket: str, machine: str, *flags: str) -> tuple[int, dict[str, Any], str]:
        capsys.readouterr()
        where = ("--dataset", str(table), "--run-dir", f"s3://{bucket}/runs/table", "--scratch", str(tmp_path / machine))
        status = main([*([command] if command else []), *where, *flags])
        said = capsys.readouterr()
        assert not [secret for secret in ENVIRONMENT.values() if len(secret) > 15 and secret in said.out + said.err]
        return status, json.loads(said.out.splitlines()[-1]) if status != 2 else {}, said.err

    return on


def shards_in(objects: dict[str, bytes]) -> dict[str, bytes]:
    return {name.partition("tokens/")[2]: data for name, data in objects.items() if name.endswith(".h5") and "/shard-" in name}


def shards_of(folder: Path) -> list[str]:
    return sorted(f"{path.parent.name}/{path.name[:11]}" for path in folder.rglob("shard-*.h5"))


def test_a_run_through_a_server_that_stops_has_the_bytes_of_a_local_run(
    s3: S3Server, run: Run, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["--dataset", str(table), "--run-dir", str(tmp_path / "local"), *DEMO, "--encoders", "clip-demo"]) == 0
    bucket, put, sent = s3.make_bucket(), RemoteFolder.put_new, []

    def put_and_stop(self: RemoteFolder, path: Path, name: str) -> None:
        if "/shard-" in name and name.endswith(".h5"):
            sent.append(name)
            if len(sent) == 4:
                s3.stop()
        put(self, path, name)

    monkeypatch.setattr(RemoteFolder, "put_new", put_and_stop)
    try:
        status, _, said = run("", bucket, "first", *DEMO, "--encoders", "clip-demo")
    finally:
        s3.start()
    assert status == 2, said
    assert "expected a store that answers; run the same command again" in said.splitlines()[-1]
    assert len(shards_in(s3.objects(bucket))) == 3
    status, figures, said = run("", bucket, "first", *DEMO, "--encoders", "clip-demo")
    assert status == 0, said
    assert len(sent) == len(set(sent)) + 1
    local = {path.relative_to(tmp_path / "local").as_posix(): path.read_bytes() for path in (tmp_path / "local").rglob("*.h5")}
    there = s3.objects(bucket)
    assert shards_in(there) == shards_in(local)
    assert {name.partition("runs/table/")[2] for name in there if name.endswith(".h5")} == set(local)
    assert shards_of(tmp_path / "first") == []

    status, figures, said = run("", bucket, "second", *DEMO, "--encoders", "clip-demo")
    assert (status, figures["already_done"]) == (0, True), said
    assert shards_of(tmp_path / "second") == []
    status, figures, _ = run("info", bucket, "second")
    assert status == 0
    assert {name: column["rows_final"] == column["rows"] for name, column in figures["columns"].items()} == {
        LATENTS: True,
        "clip-demo": True,
    }

    status, figures, said = run("", bucket, "third", *DEMO, "--encoders", "vit-demo")  # decodes the latents, which are fetched
    assert status == 0, said
    assert {name.split("/")[0] for name in shards_of(tmp_path / "third")} == {LATENTS}
    assert run("verify", bucket, "fourth", "--deep")[:2][0] == 0


def test_damage_in_the_store_is_found_and_repaired(s3: S3Server, run: Run, tmp_path: Path) -> None:
    bucket = s3.make_bucket()
    assert run("", bucket, "first", *DEMO, "--encoders", "clip-demo")[0] == 0
    before = s3.objects(bucket)
    lost, changed = sorted(name for name in before if "/clip-demo/shard-" in name)[:2]
    s3.remove(bucket, lost)
    s3.write(bucket, changed, before[changed][:-1] + bytes([before[changed][-1] ^ 1]))
    status, figures, said = run("verify", bucket, "second")
    assert (status, [finding["kind"] for finding in figures["findings"]]) == (1, ["missing"]), said
    status, figures, said = run("verify", bucket, "second", "--deep")
    assert (status, [finding["kind"] for finding in figures["findings"]]) == (1, ["missing", "damaged"]), said
    status, figures, said = run("verify", bucket, "second", "--repair")
    assert (status, figures["complete"]) == (0, True), said
    assert shards_in(s3.objects(bucket)) == shards_in(before)


def test_bad_buckets_are_one_line(s3: S3Server, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = (*DEMO, "--encoders", "clip-demo")
    status, _, said = run("", "no-such-bucket", "first", *flags)
    assert status == 2
    assert "expected a bucket that is there" in said
    bucket = s3.make_bucket()
    s3.forbid_writing(bucket)
    status, _, said = run("", bucket, "first", *flags)
    assert status == 2
    assert "expected credentials that may list, read and write there" in said.splitlines()[-1]
    assert s3.objects(bucket) == {}
    assert "%" not in said  # no image was generated


def test_another_run_of_the_bucket_is_one_line_and_nothing_is_written(s3: S3Server, run: Run, tmp_path: Path) -> None:
    bucket = s3.make_bucket()
    assert run("", bucket, "first", *DEMO, "--encoders", "clip-demo")[0] == 0
    before = s3.objects(bucket)
    status, _, said = run("", bucket, "second", *DEMO, "--encoders", "clip-demo", "--seed", "1")
    assert status == 2
    assert len(said.splitlines()) == 1
    assert "seed" in said
    assert s3.objects(bucket) == before
