"""Corpora of every task are drawn and inspected; what needs one class for each text is left out in one line, and JSON has no NaN."""

import json
from pathlib import Path
from typing import Any

import pytest

from featurize.inspect.inspect_store import inspect
from featurize.options import FeaturizeSettings, InspectSettings
from featurize.run import featurize
from lugpi_core.corpora.corpus import Corpus
from lugpi_core.errors import InputError
from lugpi_core.fingerprint import digest
from lugpi_core.store.manifest import MANIFEST, record_path

TEXTS = [f"a {colour} {thing}" for colour in ("red", "green", "blue") for thing in ("cat", "house", "boat", "tree")]
SPLITS = (["train"] * 2 + ["validation", "test"]) * 3
LABELS: dict[str, list[Any]] = {
    "multi-label": [["warm"], ["cold", "large"], [], ["warm", "large"]] * 3,
    "regression": [float(n) / 3 for n in range(12)],
}
SETTINGS = FeaturizeSettings(steps=1, guidance=1.0, device="cpu", batch_size=4, compile="off")


def _corpus(task: Any) -> Corpus:
    return Corpus.from_texts(TEXTS, labels=LABELS[task], splits=SPLITS, name="own", task=task)


@pytest.mark.parametrize(("task", "caption"), [("multi-label", "[cold, large]"), ("regression", "[0.333333]")])
def test_a_corpus_of_another_task_is_drawn_and_inspected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str, caption: str) -> None:
    corpus = _corpus(task)
    store = featurize(corpus, tmp_path, generator="demo", encoders=["vit-demo"], settings=SETTINGS, progress=False)
    captions: list[str] = []
    monkeypatch.setattr("featurize.inspect.inspect_store.caption_of", lambda *_: captions.append("") or "")
    found = inspect(store, corpus, settings=InspectSettings(device="cpu", thumbnails=2))
    record = json.loads(json.dumps(found.to_json(), allow_nan=False))
    reason = f"the corpus is a {task} task, and these questions need one class for each text"
    assert record["no_classes"] == record["class_similarity"]["left_out"] == record["columns"]["vit-demo"]["classes"]["left_out"] == reason
    assert record["verdict"]["level"] == "unknown"
    assert found.summary().count(reason) == 1
    assert record["columns"]["vit-demo"]["near_copies"].get("left_out") is None
    assert len(captions) == 2
    monkeypatch.undo()
    from featurize.inspect.inspect_store import caption_of

    assert caption_of(corpus, 1).startswith(f"{caption}\n")


def test_an_unfinished_store_says_how_many_of_how_many(tmp_path: Path) -> None:
    corpus = _corpus("multi-label")
    settings = FeaturizeSettings(steps=1, guidance=1.0, device="cpu", shard_rows=4, compile="off")
    store = featurize(corpus, tmp_path, generator="demo", encoders=["vit-demo"], settings=settings, progress=False)
    whole = inspect(store, corpus, settings=InspectSettings(device="cpu", thumbnails=0))
    assert "unfinished" not in whole.to_json()
    manifest = store.path / "vit-demo" / MANIFEST
    for shard in (0, 2):
        record_path(manifest.parent, shard).unlink()
    record = json.loads(manifest.read_text())
    record["shards"] = {"1": record["shards"]["1"]}
    record.pop("xxh3_128")
    manifest.write_text(json.dumps({**record, "xxh3_128": digest(record)}))
    found = inspect(store.path, corpus, settings=InspectSettings(device="cpu", thumbnails=0))
    assert found.to_json()["unfinished"] == {"vit-demo": [4, 12]}
    assert found.to_json()["complete"] is False
    assert "UNFINISHED: vit-demo has 4 of 12 images; the same featurize command again generates the rest" in found.summary().splitlines()


@pytest.mark.parametrize("encoders", [None, 5, [], "vit-demo", [""], [" "], [None], {"vit-demo": 1}, [3]])
def test_encoders_that_are_no_list_of_names_are_one_line(tmp_path: Path, encoders: Any) -> None:
    with pytest.raises(InputError, match=r"^got encoders=.*; expected a list of at least one name or folder; give for instance"):
        featurize(_corpus("regression"), tmp_path, generator="demo", encoders=encoders)


@pytest.mark.parametrize("generator", [None, 5, ["demo"]])
def test_a_generator_that_is_no_name_is_one_line(tmp_path: Path, generator: Any) -> None:
    with pytest.raises(InputError, match=r"^got generator=.*; expected a name or a folder"):
        featurize(_corpus("regression"), tmp_path, generator=generator, encoders=["vit-demo"])
    assert not list(tmp_path.iterdir())
