"""The commands of docs/generators.md that need no model of the hub run, on fewer texts."""

from pathlib import Path

import pytest

from featurize.cli import main
from tests.support.pages import code_of


@pytest.mark.filterwarnings("ignore:--limit leaves no train example:UserWarning")
def test_the_comparison_of_the_embedded_generators_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    commands = [code.words[3:] for code in code_of("docs/generators.md") if "demo" in code.words]
    assert [words[0] for words in commands] == ["--dataset"] * 3 + ["inspect"]
    for words in commands:
        assert main([*words, "--limit", "100"]) == 0
    assert (tmp_path / "runs" / "demo-100" / "comparison.json").is_file()
