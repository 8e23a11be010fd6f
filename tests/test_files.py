"""Files and folders are whole or not there."""

import os
import stat
from pathlib import Path

import pytest

from lugpi_core import files
from lugpi_core.errors import InputError
from lugpi_core.files import cache_folder, make_folder, read_json, whole_file, whole_folder, write_json, write_text


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_whole_file_takes_its_place_at_the_end_and_not_before(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.txt"
    with whole_file(path) as partial:
        partial.write_text("new")
        assert partial.parent == path.parent, "a rename must stay within one file system"
        assert not path.exists()
    assert path.read_text() == "new"
    assert _names(path.parent) == ["a.txt"]


def test_a_failed_whole_file_leaves_nothing_behind_and_keeps_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail() -> None:
        with whole_file(path) as partial:
            partial.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "old"
    assert _names(tmp_path) == ["a.txt"]


def test_a_whole_file_is_synced_before_it_is_renamed_and_its_folder_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, order = tmp_path / "a.txt", list[str]()
    monkeypatch.setattr(files, "sync_file", lambda synced: order.append(f"file, old there: {path.read_text()}"))
    monkeypatch.setattr(files, "sync_folder", lambda synced: order.append(f"{synced.name}, new there: {path.read_text()}"))
    path.write_text("old")
    write_text(path, "new")
    assert order == ["file, old there: old", f"{tmp_path.name}, new there: new"]


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_whole_files_and_folders_have_the_permissions_of_ordinary_ones(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_text(tmp_path / "a", "")
        with whole_folder(tmp_path / "b"):
            pass
        assert os.umask(umask) == umask, "the mask is put back"
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~umask
    assert stat.S_IMODE((tmp_path / "b").stat().st_mode) == 0o777 & ~umask


def test_a_whole_folder_replaces_what_stood_there(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "old").write_text("old")
    with whole_folder(folder) as partial:
        (partial / "sub").mkdir()
        (partial / "sub" / "new").write_text("new")
        assert _names(folder) == ["old"]
    assert _names(folder) == ["sub"]
    assert (folder / "sub" / "new").read_text() == "new"
    assert _names(tmp_path) == ["model"]


def test_every_file_of_a_whole_folder_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr(files, "sync_file", lambda path: synced.append(path.name))
    with whole_folder(tmp_path / "model") as partial:
        (partial / "sub").mkdir()
        (partial / "sub" / "b").write_text("")
        (partial / "a").write_text("")
    assert synced == ["a", "b"]


def test_a_failed_whole_folder_leaves_nothing_behind_and_keeps_the_old_one(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "old").write_text("old")

    def fail() -> None:
        with whole_folder(folder) as partial:
            (partial / "new").write_text("new")
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        fail()
    assert (_names(tmp_path), _names(folder)) == (["model"], ["old"])


def test_json_survives_the_round_trip_in_plain_utf8(tmp_path: Path) -> None:
    value = {"name": "Größe", "figures": [1, 0.1, None, True]}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    assert "Größe".encode() in (tmp_path / "a.json").read_bytes()
    assert (tmp_path / "a.json").read_bytes().endswith(b"}\n")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_json_is_refused_and_the_old_file_stays(tmp_path: Path, value: float) -> None:
    write_json(tmp_path / "a.json", 1)
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == 1


def test_a_missing_json_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no file .*a\.json; .*run the command that makes it"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe"])
def test_a_damaged_json_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.json, which is not JSON .*; remove it"):
        read_json(tmp_path / "a.json")


def test_make_folder_makes_parents_and_takes_an_existing_one(tmp_path: Path) -> None:
    assert make_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert make_folder(tmp_path / "a" / "b").is_dir()


def test_a_folder_below_a_file_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/below \(Not a directory\); expected a folder that can be written"):
        make_folder(tmp_path / "file" / "below")


def test_a_folder_without_permission_is_an_input_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    with pytest.raises(InputError, match="no permission"):
        make_folder(tmp_path)


def test_the_cache_folder_follows_lugpi_then_xdg_then_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setenv("LUGPI_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.setenv("LUGPI_CACHE", "")
    assert cache_folder() == Path("/xdg/lugpi")
    monkeypatch.delenv("LUGPI_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_folder() == Path("/home/somebody/.cache/lugpi")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path("/home/somebody/.cache/lugpi")
