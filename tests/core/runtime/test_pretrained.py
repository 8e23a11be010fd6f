"""Pretrained models: a folder as it is, a hub id through the hub's cache, and one line if neither works or loading fails."""

import errno
import re
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, StrictDataclassError
from safetensors import SafetensorError, safe_open

from lugpi_core.errors import InputError
from lugpi_core.runtime.pretrained import EMBEDDED_FOLDER, MODEL_FILES, embedded_model, loading, local_model_folder, read_config, reason


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """The downloads requested from a hub that has everything."""
    calls: list[tuple[str, dict[str, Any]]] = []

    def snapshot_download(name: str, **options: Any) -> str:
        calls.append((name, options))
        return "/hub/snapshot"

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return calls


def test_a_folder_is_taken_as_it_is_and_the_hub_is_not_asked(tmp_path: Path, asked: list[tuple[str, dict[str, Any]]]) -> None:
    (tmp_path / "name@x").mkdir()
    assert local_model_folder(str(tmp_path / "name@x"), flag="--encoders") == tmp_path / "name@x"
    assert asked == []


@pytest.mark.parametrize(
    "source",
    ["/no/such/folder", "./folder", "../folder", "~/folder", "~", "missing/folder/deep", "no spaces allowed", r"C:\models\bert", "C:/bert"],
)
def test_what_cannot_be_a_hub_id_is_never_looked_up_there(source: str, asked: list[tuple[str, dict[str, Any]]]) -> None:
    with pytest.raises(InputError) as caught:
        local_model_folder(source, flag="--encoders")
    expected = "a model's folder, or owner/name on the Hugging Face hub"
    assert str(caught.value).startswith(f"got --encoders {source}, which is no folder; expected {expected}; ")
    assert asked == []


@pytest.mark.parametrize("source", ["", " "])
def test_no_name_is_not_the_working_folder(source: str, asked: list[tuple[str, dict[str, Any]]]) -> None:
    with pytest.raises(InputError, match="which is no folder"):
        local_model_folder(source, flag="--encoders")
    assert asked == []


@pytest.mark.parametrize("name", ["model.safetensors", "model", "deep/er/model.safetensors"])
def test_a_file_is_not_taken_for_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[Any], name: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
    (tmp_path / name).write_bytes(b"")
    got = f"got --text-model {name}, which is a file; expected a model's folder, or owner/name on the Hugging Face hub; "
    with pytest.raises(InputError, match=re.escape(got + "save the model as a folder with save_pretrained(), and give that")):
        local_model_folder(name, flag="--text-model")
    (Path(name).parent / "config.json").write_text("{}")
    with pytest.raises(InputError, match=re.escape(f"{got}give its folder, {Path(name).parent}")):
        local_model_folder(name, flag="--text-model")
    assert asked == []


@pytest.mark.parametrize(
    ("source", "meant"),
    [
        ("./models/brt-base", "models/bert-base"),
        ("model/bert-base/last", "models/bert-base/last"),
        ("models/bert-base/lst/", "models/bert-base/last"),
        ("~/models/bert-base", "{home}/models/bert-base"),
        ("~/model/bert-base", "{home}/models/bert-base"),
    ],
)
def test_a_misspelt_folder_is_suggested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, meant: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "models" / "bert-base" / "last").mkdir(parents=True)
    with pytest.raises(InputError) as caught:
        local_model_folder(source, flag="--text-model")
    assert str(caught.value).endswith(f"; did you mean {meant.format(home=tmp_path)}?")


@pytest.mark.parametrize(
    ("source", "do"),
    [
        ("https://huggingface.co/owner/name", "give owner/name"),
        ("https://huggingface.co/owner/name/tree/main", "give owner/name"),
        ("https://huggingface.co/", "download the model and give its folder"),
        ("http://example.org/owner/name", "download the model and give its folder"),
    ],
)
def test_a_web_address_is_no_hub_id(asked: list[Any], source: str, do: str) -> None:
    with pytest.raises(InputError, match=f"{re.escape(source)}, a web address; .*; {do}$"):
        local_model_folder(source, flag="--text-model")
    assert asked == []


def test_a_folder_of_the_hubs_cache_is_not_its_model(tmp_path: Path) -> None:
    cached = tmp_path / "models--owner--name"
    (cached / "refs").mkdir(parents=True)
    (cached / "snapshots" / "abc").mkdir(parents=True)
    with pytest.raises(InputError, match=re.escape(f"{cached}, a model in the hub's cache; expected one of its snapshots; give {cached}")):
        local_model_folder(str(cached), flag="--text-model")
    assert local_model_folder(str(cached / "snapshots" / "abc"), flag="--text-model") == cached / "snapshots" / "abc"


@pytest.mark.parametrize(
    ("source", "revision", "wanted"),
    [
        ("owner/name", None, ("owner/name", None)),
        ("owner/name@v1", None, ("owner/name", "v1")),
        ("owner/name", "abc", ("owner/name", "abc")),
        ("owner/name@v1", "abc", ("owner/name", "abc")),
        ("owner/name@", None, ("owner/name", None)),
    ],
)
def test_a_hub_id_is_downloaded_at_its_revision(
    asked: list[tuple[str, dict[str, Any]]], source: str, revision: str | None, wanted: tuple[str, str | None]
) -> None:
    assert local_model_folder(source, revision=revision, flag="--encoders") == Path("/hub/snapshot")
    name, options = asked[0]
    assert (name, options["revision"]) == wanted
    assert options["allow_patterns"] == list(MODEL_FILES)


def test_pickled_weights_and_code_are_never_asked_for(asked: list[tuple[str, dict[str, Any]]]) -> None:
    assert set(MODEL_FILES) == {"*.json", "*.txt", "*.model", "*.safetensors"}
    local_model_folder("owner/name", patterns=("unet/*.safetensors",), flag="--generator")
    assert asked[0][1]["allow_patterns"] == ["unet/*.safetensors"]


def test_an_unknown_model_is_one_line_with_the_flag() -> None:
    with pytest.raises(
        InputError, match=r"got --encoders owner/no-such-model \(.+\); expected a local folder or a model on the Hugging Face hub"
    ):
        local_model_folder("owner/no-such-model", flag="--encoders")


def refused_by_the_hub(monkeypatch: pytest.MonkeyPatch, error: BaseException, source: str = "owner/name") -> str:
    """Return the message for a model whose download raises ``error``."""

    def snapshot_download(name: str, **options: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(InputError) as caught:
        local_model_folder(source, flag="--text-model")
    return str(caught.value)


@pytest.mark.parametrize(
    ("kind", "do"),
    [
        ("GatedRepoError", "ask for access on its page at huggingface.co, and log in with: hf auth login"),
        ("RepositoryNotFoundError", "check the name; for a private model, log in with: hf auth login"),
        ("RevisionNotFoundError", "check the revision, after the @"),
        ("HfHubHTTPError", "check the name, or download the model on a machine with network access and give its folder"),
    ],
)
def test_the_advice_fits_what_the_hub_says(monkeypatch: pytest.MonkeyPatch, kind: str, do: str) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    error = getattr(huggingface_hub.errors, kind)
    assert refused_by_the_hub(monkeypatch, error.__new__(error, "no")).endswith(f"; {do}")


def test_offline_a_misspelt_folder_is_suggested_and_the_variable_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    (tmp_path / "models" / "bert").mkdir(parents=True)
    message = refused_by_the_hub(monkeypatch, LocalEntryNotFoundError("nothing here"), "models/brt")
    assert "check the name (did you mean the folder models/bert?), unset HF_HUB_OFFLINE, or download the model" in message


def test_a_full_disk_is_not_a_wrong_name(monkeypatch: pytest.MonkeyPatch) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: (_ for _ in ()).throw(full))
    with pytest.raises(OSError, match="No space left") as caught:
        local_model_folder("owner/name", flag="--text-model")
    assert caught.value is full


def test_a_configuration_is_an_object(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    assert read_config(tmp_path / "config.json") == {"model_type": "vit"}
    expected = "a JSON object, as the model's library wrote it; get this file again from where the model comes from"
    lfs_pointer, latin1 = b"version https://git-lfs.github.com/spec/v1", b"\xff"
    for content, fault in ((b"[]", "a JSON list"), (b"null", "a JSON NoneType"), (lfs_pointer, "not JSON"), (latin1, "not JSON")):
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(InputError, match=f"config.json, .*{fault}.*; expected {expected}"):
            read_config(tmp_path / "config.json")


def test_a_folder_without_a_configuration_is_not_asked_of_lugpi(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_config(tmp_path / "config.json")
    assert str(caught.value) == (
        f"got no config.json in {tmp_path}; expected a model's folder; give one as the library's save_pretrained() writes it"
    )


def test_a_download_that_breaks_off_is_one_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    http_error = HfHubHTTPError.__mro__[1]
    assert not issubclass(http_error, OSError | ValueError)

    def snapshot_download(name: str, **options: Any) -> str:
        raise http_error("The read operation timed out")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(InputError, match=r"got --encoders owner/name \(The read operation timed out\)"):
        local_model_folder("owner/name", flag="--encoders")


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("one\ntwo", "one"),
        ("  a \t b ", "a b"),
        ("", "OSError"),
        ("\nsecond", "OSError"),
        ("Validation error for field 'a':\n    TypeError: no int\nthird", "Validation error for field 'a': TypeError: no int"),
        ("Got: ConnectError: unknown host\nsecond", "ConnectError: unknown host"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("x" * 160, "x" * 160),
        ("x" * 161, "x" * 157 + "…"),
    ],
)
def test_the_reason_is_one_short_line(message: str, shown: str) -> None:
    assert reason(OSError(message)) == shown


@pytest.mark.parametrize(
    "error", [OSError, ValueError, KeyError, IndexError, TypeError, AssertionError, RuntimeError, SafetensorError, StrictDataclassError]
)
def test_what_libraries_raise_while_loading_becomes_one_line(error: type[Exception]) -> None:
    with pytest.raises(InputError) as caught, loading("a/folder", expected="weights", do="get them again"):
        raise error("shape\nmismatch")
    assert str(caught.value).startswith("got a/folder, which does not load (")
    assert str(caught.value).endswith("shape); expected weights; get them again") or error is KeyError
    assert caught.value.__suppress_context__


def test_input_errors_and_other_errors_pass_through_loading() -> None:
    own = InputError(got="a", expected="b", do="c")
    for error in (own, ZeroDivisionError()):
        with pytest.raises(type(error)) as caught, loading("x", expected="y", do="z"):
            raise error
        assert caught.value is error


def test_an_interrupt_that_a_library_wrapped_is_raised_again() -> None:
    def wrapped() -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as interrupt:
            raise RuntimeError("loading failed") from interrupt

    with pytest.raises(KeyboardInterrupt), loading("x", expected="y", do="z"):
        wrapped()


def test_the_embedded_models_are_small_and_in_half_precision() -> None:
    files = sorted(EMBEDDED_FOLDER.rglob("*.safetensors"))
    folders = {"generator", "generator-flow", "tiny", "clip-demo", "vit-demo", "text"}
    assert {path.relative_to(EMBEDDED_FOLDER).parts[0] for path in files} == folders
    assert sum(path.stat().st_size for path in files) <= 30_000_000
    for path in files:
        with safe_open(path, framework="pt") as file:
            dtypes = {file.get_tensor(name).dtype for name in sorted(file.keys())}
        assert dtypes <= {torch.float16, torch.int64}, path


def test_a_package_without_embedded_models_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("lugpi_core.runtime.pretrained.EMBEDDED_FOLDER", tmp_path)
    with pytest.raises(InputError, match="install the package again"):
        embedded_model("text")
