"""Pretrained models: a folder as it is, a hub id through the hub's cache, and one line if neither works or loading fails."""

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError, safe_open

from lugpi_core.errors import InputError
from lugpi_core.runtime.pretrained import EMBEDDED_FOLDER, MODEL_FILES, embedded_model, loading, local_model_folder, reason


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


@pytest.mark.parametrize("source", ["/no/such/folder", "./folder", "../folder", "~/folder"])
def test_a_path_is_never_looked_up_on_the_hub(source: str, asked: list[tuple[str, dict[str, Any]]]) -> None:
    with pytest.raises(InputError, match=f"got --encoders {source}, which is no folder; expected a model's folder"):
        local_model_folder(source, flag="--encoders")
    assert asked == []


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


@pytest.mark.parametrize("source", ["owner/no-such-model", "missing/folder/deep", "no spaces allowed"])
def test_an_unknown_model_is_one_line_with_the_flag(source: str) -> None:
    with pytest.raises(InputError, match=rf"got --encoders {source} \(.+\); expected a local folder or a model on the Hugging Face hub"):
        local_model_folder(source, flag="--encoders")


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
        ("x" * 160, "x" * 160),
        ("x" * 161, "x" * 157 + "…"),
    ],
)
def test_the_reason_is_one_short_line(message: str, shown: str) -> None:
    assert reason(OSError(message)) == shown


@pytest.mark.parametrize("error", [OSError, ValueError, KeyError, TypeError, AssertionError, RuntimeError, SafetensorError])
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
    assert {path.relative_to(EMBEDDED_FOLDER).parts[0] for path in files} == {"generator", "tiny", "clip-demo", "vit-demo", "text"}
    assert sum(path.stat().st_size for path in EMBEDDED_FOLDER.glob("*/**/*") if path.is_file()) <= 25_000_000
    for path in files:
        with safe_open(path, framework="pt") as file:
            dtypes = {file.get_tensor(name).dtype for name in sorted(file.keys())}
        assert dtypes <= {torch.float16, torch.int64}, path


def test_a_package_without_embedded_models_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("lugpi_core.runtime.pretrained.EMBEDDED_FOLDER", tmp_path)
    with pytest.raises(InputError, match="install the package again"):
        embedded_model("text")
