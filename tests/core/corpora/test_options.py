"""The corpus flags: light to import, checked when built, and the folder they lead to."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tyro

from lugpi_core.corpora.options import CorpusOptions, CorpusSettings, HubName, dataset_name, default_run_dir, hub_name, store_folder
from lugpi_core.errors import InputError


@pytest.mark.parametrize(
    ("dataset", "limit", "folder"),
    [
        ("20ng", None, "runs/20ng"),
        ("20ng", 300, "runs/20ng-300"),
        ("some/where/reviews.csv", None, "runs/reviews"),
        ("reviews.v2.jsonl", 12, "runs/reviews.v2-12"),
        ("hf:owner/name", None, "runs/owner--name"),
        ("hf:owner/na.me@abc123", None, "runs/owner--na.me"),
        ("hf:owner/name/english-news@main", 5, "runs/owner--name--english-news-5"),
    ],
)
def test_every_dataset_has_a_run_folder_of_its_own(dataset: str, limit: int | None, folder: str) -> None:
    assert default_run_dir(dataset, limit) == Path(folder)


def test_a_hub_name_is_split_into_its_parts() -> None:
    assert hub_name("hf:a-b/c.d/conf@refs/pr/1") == HubName(owner="a-b", name="c.d", config="conf", revision="refs/pr/1")
    assert hub_name("hf:a/b") == HubName(owner="a", name="b", config=None, revision=None)


@pytest.mark.parametrize("dataset", ["hf:imdb", "hf:", "hf:a/b/c/d", "hf:a/b@", "hf:a/../b@x y"])
def test_a_malformed_hub_name_is_refused(dataset: str) -> None:
    with pytest.raises(InputError, match=r"hf:owner/name\[/config\]"):
        dataset_name(dataset)


@pytest.mark.parametrize("limit", [2, 0, -1])
def test_a_limit_below_one_example_per_split_is_refused(limit: int) -> None:
    with pytest.raises(InputError, match=f"--limit {limit}"):
        CorpusOptions(dataset="demo", limit=limit)


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(InputError, match="--split-seed -1"):
        CorpusOptions(dataset="demo", split_seed=-1)


def test_the_flags_are_frozen_and_keyword_only() -> None:
    options = CorpusOptions(dataset="demo")
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.limit = 3  # type: ignore[misc]
    assert all(field.kw_only for field in dataclasses.fields(CorpusOptions))


def test_the_command_line_gives_the_same_options() -> None:
    line = ["--dataset", "x.csv", "--split-by", "date", "--limit", "9", "--prompt-column", "p", "--test-file", "t.csv", "--data-dir", "d"]
    expected = CorpusOptions(
        dataset="x.csv", split_by="date", limit=9, prompt_column="p", test_file=Path("t.csv"), data_dir=Path("d"), split_column=None
    )
    assert tyro.cli(CorpusOptions, args=line) == expected


def test_every_flag_has_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        tyro.cli(CorpusOptions, args=["--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for words in ("demo, a file (.csv, .tsv", "original archives", "by the date of the posts", "from every split in proportion"):
        assert words in shown


def test_importing_the_flags_loads_no_heavy_library() -> None:
    heavy = "{'numpy', 'pandas', 'torch', 'datasets', 'pyarrow', 'xxhash', 'tyro'}"
    code = f"import sys, lugpi_core.corpora.options; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_packed_file_and_a_folder_have_short_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "saved.v2").mkdir(parents=True)
    assert dataset_name("reviews.csv.gz") == dataset_name("a/reviews.tsv") == dataset_name("reviews.JSON.GZ") == "reviews"
    assert dataset_name("data/saved.v2") == dataset_name("data/saved.v2/") == "saved.v2"
    assert dataset_name(".") == tmp_path.name
    assert store_folder(Path("runs/r"), Path("more.txt.gz")) == Path("runs/r/tokens-more")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"label_separator": ""}, "an empty --label-separator"),
        ({"text_pair_column": "text"}, "--text-column and --text-pair-column text; expected two columns"),
        ({"task": "multilabel"}, "task='multilabel'; expected one of single-label, multi-label, regression"),
        ({"test_split": "dev"}, "test_split='dev'; expected one of test, validation, none"),
        ({"dedupe": "yes"}, "dedupe='yes'; expected True or False"),
    ],
)
def test_settings_that_mean_nothing_are_refused(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        CorpusSettings(**flags)


def test_the_command_line_has_the_settings_of_tasks_and_splits() -> None:
    line = ["--dataset", "x.csv", "--task", "multi-label", "--label-separator", "|", "--text-pair-column", "b", "--dedupe", "--no-stratify"]
    options = tyro.cli(CorpusOptions, args=[*line, "--group-column", "g", "--test-split", "none", "--drop-unlabelled"])
    expected = CorpusOptions(
        dataset="x.csv",
        task="multi-label",
        label_separator="|",
        text_pair_column="b",
        dedupe=True,
        stratify=False,
        group_column="g",
        test_split="none",
        drop_unlabelled=True,
    )
    assert options == expected
