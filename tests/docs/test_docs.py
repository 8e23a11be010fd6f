"""What the documents tell a reader to run, runs; their links lead somewhere; their figures are those that were measured or counted."""

import contextlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.options import BenchmarkOptions, DemoOptions, DriftOptions, GenerationOptions, RealOptions, TrainingOptions
from dev.embedded_models.options import EmojiOptions
from lugpi_core.command_line import parse
from tests.support.checkout import ROOT
from tests.support.documented_commands import (
    AS_IT_STANDS,
    PAGES,
    PARSED_ONLY,
    RUN_ELSEWHERE,
    Told,
    cut_down,
    links,
    slugs,
    snippet,
    told,
    told_by,
    write_corpora,
)

PARSERS = {
    "dev.embedded_models": EmojiOptions,
    "store": BenchmarkOptions,
    "fidelity": BenchmarkOptions,
    "memory": BenchmarkOptions,
    "all": BenchmarkOptions,
    "featurize": GenerationOptions,
    "train": TrainingOptions,
    "pictures": DriftOptions,
    "demo": DemoOptions,
    "real": RealOptions,
}
LINKED = (*PAGES, "CONTRIBUTING.md", "CHANGELOG.md", "lugpi_core/data/README.md")


def run_in_process(words: Sequence[str]) -> int:
    """Run ``python -m featurize|train|benchmarks …`` here, where the libraries are loaded already; return the exit status."""
    from benchmarks.cli import main as benchmarks
    from featurize.cli import main as featurize
    from train.cli import main as train

    return {"featurize": featurize, "train": train, "benchmarks": benchmarks}[words[2]](words[3:])


def run_by_launcher(words: Sequence[str]) -> int:
    """Run ``torchrun …`` in processes of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", *words[1:]]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    return done.returncode if done.returncode == 0 else pytest.fail(done.stderr)


def run_command(one: Told) -> None:
    """Run a command, or parse it, or find the test that runs it."""
    if one.text.startswith("make "):
        targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
        assert set(one.text.split()[1:]) <= targets, one
        return
    kind = next((name for name in (*RUN_ELSEWHERE, *PARSED_ONLY) if f"{one.text} ".startswith(f"{name} ")), None)
    if kind is not None:
        words = shlex.split(one.text)[2:]
        named = words.pop(0)
        assert parse(PARSERS[named if named in PARSERS else words.pop(0)], words, prog=named) is not None
        return
    words = shlex.split(one.text) if one.page in AS_IT_STANDS else cut_down(one.text)
    _train_missing_teachers(words)
    status = run_by_launcher(words) if words[0] == "torchrun" else run_in_process(words)
    assert status == 0, f"{one.page}, line {one.line}: {shlex.join(words)}"


def _train_missing_teachers(words: Sequence[str]) -> None:
    """Train the teachers that a command names and that its page takes for trained."""
    if "--teachers" not in words:
        return
    behind = list(words[words.index("--teachers") + 1 :])
    names = behind[: next((n for n, word in enumerate(behind) if word.startswith("--")), len(behind))]
    run = Path("runs") / Path(words[words.index("--dataset") + 1]).stem
    for name in names:
        if not (run / name).is_dir():
            given = words[words.index("--dataset") : words.index("--dataset") + 2]
            teacher = ["python", "-m", "train", "teacher", *given, "--name", name, "--image-tokens", "clip-demo", "--epochs", "1"]
            assert run_in_process([*teacher, "--text-model", "demo"]) == 0


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_tells_the_reader_to_run_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_corpora(tmp_path)
    done: set[str] = set()
    session: dict[str, object] = {"__name__": "__main__"}
    for one in told(page):
        if one.kind == "inline" and one.text in done:
            continue
        done.add(one.text)
        if one.kind == "python":
            text = one.text if page in AS_IT_STANDS else snippet(one.text)
            with contextlib.redirect_stdout(None):
                exec(compile(text, f"{page}:{one.line}", "exec"), session)
        else:
            run_command(one)


def test_the_commands_that_are_only_parsed_do_not_grow_in_silence() -> None:
    parsed = {name for page in PAGES for one in told(page) for name in PARSED_ONLY if f"{one.text} ".startswith(f"{name} ")}
    assert parsed == set(PARSED_ONLY), "an entry that no page has any more goes"
    assert len(PARSED_ONLY) == 2


def test_what_is_run_elsewhere_is_run_there() -> None:
    for name, where in RUN_ELSEWHERE.items():
        assert f'"{name.split()[-1]}"' in (ROOT / where).read_text(encoding="utf-8"), name


def test_commands_and_snippets_are_found() -> None:
    page = "Run `make test`, or `python -m train sweep`, `python -m train a|b --c`; `python -m featurize --dataset a.csv`.\n\n"
    page += "```\nX=1 python -m train student  # why\nout\n```\n\n```python\nprint(1)\n```\n"
    found = [(one.line, one.kind, one.text) for one in told_by(page, "page")]
    assert found == [
        (4, "command", "X=1 python -m train student"),
        (9, "python", "print(1)\n"),
        (1, "inline", "make test"),
        (1, "inline", "python -m featurize --dataset a.csv"),
    ]


def test_what_is_large_is_replaced_and_nothing_else() -> None:
    drawn = cut_down("python -m featurize --dataset 20ng --generator paper --encoders clip-vit-l14 vit-b16 --memory-gb 22")
    small = "python -m featurize --dataset 20ng.csv --generator demo --encoders clip-demo vit-demo --memory-gb 22 --steps 1"
    assert drawn == shlex.split(small)
    assert cut_down("X=0 python -m train sweep --dataset own.csv --trials 30 --over alpha=1:2") == shlex.split(
        "python -m train sweep --dataset own.csv --trials 2 --over alpha=1:2 --text-model demo --epochs 1"
    )
    assert cut_down("torchrun --nproc-per-node 4 -m train teacher --dataset imdb --dtype float16") == shlex.split(
        "torchrun --nproc-per-node 1 -m train teacher --dataset imdb.csv --text-model demo --epochs 1"
    )
    assert cut_down("python -m benchmarks pictures --generator fast --encoder clip-vit-b32") == shlex.split(
        "python -m benchmarks pictures --generator demo --encoder clip-demo --smoke"
    )
    assert cut_down("python -m featurize info --dataset imdb") == shlex.split("python -m featurize info --dataset imdb.csv")
    assert cut_down("python -m train onnx --model runs/20ng/student") == shlex.split("python -m train onnx --model runs/20ng/student")


@pytest.mark.parametrize("page", LINKED)
def test_every_link_of_a_page_leads_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in links(text):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        there = (ROOT / page).parent / path if path else ROOT / page
        assert there.exists(), f"{page}: {target}"
        if anchor:
            assert anchor in slugs(there.read_text(encoding="utf-8")), f"{page}: {target}"


@pytest.mark.parametrize("page", PAGES)
def test_formulas_hold_nothing_that_markdown_takes_for_its_own(page: str) -> None:
    for formula in re.findall(r"\$\$?[^$\n]+\$\$?", (ROOT / page).read_text(encoding="utf-8")):
        assert not re.search(r"\\[^a-zA-Z ]|[})\]]_|\*", formula), formula


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    assert {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"} == {
        target for target in links(index) if not target.startswith("pictures/")
    }


def test_anchors_are_those_of_github() -> None:
    assert slugs("# A `b`: c & d\n## Twice\n## Twice\n```\n# no heading\n```\n") == {"a-b-c--d", "twice", "twice-1"}
