"""Models that another program has saved again, with equal tensors, are the same models: nothing is generated or trained again."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import featurize.cli
import train.cli
from lugpi_core.runtime.pretrained import embedded_model

TEXTS = "text,label\n" + "".join(f"the {word} number {n},{word}\n" for n in range(10) for word in ("cat", "dog"))
GENERATION = ("--dataset", "animals.csv", "--generator", "demo=generator", "--encoders", "vit", "--steps", "1")
TRAINING = ("--dataset", "animals.csv", "--text-model", "text", "--epochs", "1")


def save_again(file: Path, shards: int = 1) -> None:
    """Write the tensors of a safetensors file with other metadata, in as many shards."""
    tensors = load_file(file)
    file.unlink()
    names = sorted(tensors, reverse=True)
    about = {"format": "pt", "saved": "again", "by": "another program"}
    if shards == 1:
        save_file(tensors, file, metadata=about)
        return
    place = {name: f"{file.stem}-{n % shards + 1:05d}-of-{shards:05d}.safetensors" for n, name in enumerate(names)}
    for shard in set(place.values()):
        save_file({name: tensors[name] for name in names if place[name] == shard}, file.with_name(shard), metadata=about)
    file.with_name(f"{file.name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": place}))


@pytest.fixture
def last_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Run a command in a folder with a corpus and copies of the embedded models; return the JSON object of its last line."""
    monkeypatch.chdir(tmp_path)
    Path("animals.csv").write_text(TEXTS)
    for folder, name in (("generator", "generator"), ("vit", "vit-demo"), ("text", "text")):
        shutil.copytree(embedded_model(name), folder)

    def run(main: Callable[[tuple[str, ...]], int], *arguments: str) -> dict[str, Any]:
        status = main(arguments)
        output = capsys.readouterr()
        assert status == 0, output.err
        last: dict[str, Any] = json.loads(output.out.splitlines()[-1])
        return last

    return run


def test_nothing_is_done_again_after_models_were_saved_again(last_line: Callable[..., dict[str, Any]]) -> None:
    last_line(featurize.cli.main, *GENERATION)
    last_line(train.cli.main, "teacher", *TRAINING)
    last_line(train.cli.main, "student", *TRAINING)
    before = {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()}

    for file in [*sorted(Path("generator").glob("*/*.safetensors")), Path("vit/model.safetensors")]:
        save_again(file)
    save_again(Path("text/model.safetensors"), shards=3)
    save_again(Path("runs/animals/teacher/model.safetensors"))
    config = json.loads(Path("text/config.json").read_text())
    Path("text/config.json").write_text(json.dumps(config | {"transformers_version": "4.1", "_name_or_path": "elsewhere"}))

    again = last_line(featurize.cli.main, *GENERATION)
    assert again["already_done"]
    assert last_line(train.cli.main, "teacher", *TRAINING)["already_done"]
    assert last_line(train.cli.main, "student", *TRAINING)["already_done"]
    store = {path: content for path, content in before.items() if "tokens" in path.parts}
    assert {path: path.read_bytes() for path in store} == store
    with safe_open("runs/animals/teacher/model.safetensors", "np") as file:
        assert file.metadata()["saved"] == "again"


def test_a_row_that_is_lost_is_generated_again_with_saved_again_models(last_line: Callable[..., dict[str, Any]]) -> None:
    last_line(featurize.cli.main, *GENERATION, "--shard-rows", "8")
    shard = sorted(Path("runs/animals/tokens/vit").glob("shard-*.h5"))[1]
    whole = shard.read_bytes()
    save_again(Path("vit/model.safetensors"))
    shard.unlink()
    assert last_line(featurize.cli.main, *GENERATION, "--shard-rows", "8")["rows"]["encoded"] == 8
    assert shard.read_bytes() == whole
