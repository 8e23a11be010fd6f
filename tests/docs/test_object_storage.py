"""The commands of docs/cluster.md about object storage run, one after the other, against a real S3 server."""

import importlib
from pathlib import Path

import pytest

from tests.support.pages import code_of
from tests.support.s3_server import S3Server

COMMANDS = [code for code in code_of("docs/cluster.md") if not code.is_python and "s3://BUCKET" in code.text]
# So that they take seconds.
LESS = {"featurize": ("--limit", "40", "--steps", "1"), "verify": ("--limit", "40"), "baseline": ("--limit", "40"), "evaluate": ()}


@pytest.mark.filterwarnings("ignore:--limit leaves no train example:UserWarning")
def test_the_commands_run(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = s3.make_bucket()
    monkeypatch.chdir(tmp_path)
    Path("texts.csv").write_text("text,label\na cat,animals\na lorry,vehicles\n")
    ran = []
    for code in COMMANDS:
        package, *arguments = [word.replace("BUCKET", bucket).replace("/tmp/scratch", "scratch") for word in code.words][2:]
        name = package if arguments[0].startswith("-") else arguments[0]
        assert importlib.import_module(f"{package}.cli").main([*arguments, *LESS[name]]) == 0, code
        ran.append(name)
    assert ran == list(LESS)
    assert Path("texts.predictions.csv").is_file()
