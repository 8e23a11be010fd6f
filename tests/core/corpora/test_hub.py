"""Tables of the library datasets: from the hub, of which there is a double here, and from folders."""

from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value, exceptions

from lugpi_core.corpora.hub import hub_tables
from lugpi_core.errors import InputError

WANTED = ("text", "label")


def _part(texts: list[str], labels: list[int]) -> Dataset:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"]), "n": Value("int32")})
    return Dataset.from_dict({"text": texts, "label": labels, "n": list(range(len(texts)))}, features=features)


def test_hub_splits_come_in_order_with_their_class_names(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    parts = DatasetDict({"test": _part(["c"], [-1]), "dev": _part(["b"], [0]), "train": _part(["a", "d"], [1, 0])})

    def load(*args: object, **flags: object) -> DatasetDict:
        asked.append((args, flags))
        return parts

    monkeypatch.setattr("datasets.load_dataset", load)
    tables = hub_tables("hf:o/n/conf@abc", WANTED, "label")
    assert asked == [(("o/n",), {"name": "conf", "revision": "abc"})]
    assert [table.source for table in tables] == ["train", "validation", "test"]
    assert tables[0].columns == {"text": ["a", "d"], "label": [1, 0]}
    assert tables[0].classes == ("no", "yes")
    assert tables[1].where == "hf:o/n/conf@abc, split dev"


def test_a_hub_split_that_is_not_used_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = DatasetDict({"train": _part(["a"], [1]), "unsupervised": _part(["b"], [-1])})
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **flags: parts)
    with pytest.warns(UserWarning, match="split unsupervised is not used"):
        assert len(hub_tables("hf:o/n", WANTED, "label")) == 1


@pytest.mark.parametrize("names", [["test"], ["train", "dev", "valid"]])
def test_ambiguous_hub_splits_are_refused(monkeypatch: pytest.MonkeyPatch, names: list[str]) -> None:
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **flags: DatasetDict({name: _part(["a"], [1]) for name in names}))
    with pytest.raises(InputError, match=f"splits {', '.join(names)} in hf:o/n"):
        hub_tables("hf:o/n", WANTED, "label")


@pytest.mark.parametrize(
    "error",
    [
        exceptions.DatasetNotFoundError("Dataset 'o/n' doesn't exist on the Hub or cannot be accessed."),
        ConnectionError("Couldn't reach 'o/n'\non the Hub"),
        ValueError("BuilderConfig 'x' not found."),
        RuntimeError("Dataset scripts are no longer supported, but found n.py"),
        exceptions.DatasetGenerationError("An error occurred while generating the dataset"),
    ],
)
def test_an_unreachable_hub_is_one_line_with_advice(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*args: object, **flags: object) -> None:
        raise error

    monkeypatch.setattr("datasets.load_dataset", fail)
    with pytest.raises(InputError, match=rf"no hf:o/n \({type(error).__name__}: .*pass them as --dataset") as caught:
        hub_tables("hf:o/n", WANTED, "label")
    assert "\n" not in str(caught.value)


@pytest.mark.timeout(60)
def test_without_a_network_the_hub_fails_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE"):
        hub_tables("hf:nobody/nothing-of-that-name", WANTED, "label")
