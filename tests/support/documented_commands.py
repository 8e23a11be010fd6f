"""What the documents tell a reader to run, found in their Markdown, and cut down so that it runs on a CPU, without a network, in seconds.

A document is run in a folder of its own, the ``python -m …`` lines of its fences and its Python snippets from top to bottom, then the
commands with flags that stand in its sentences. What is put in the place of something large is written here, and nowhere else.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from tests.support.checkout import ROOT
from tests.support.topics import topic_texts

PAGES = ("README.md", *sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/*.md")), "dev/embedded_models/README.md")
# Run as it stands: its commands name the embedded models and its own corpus.
AS_IT_STANDS = ("docs/tutorial.md",)
RUN_ELSEWHERE = {
    f"python -m benchmarks {question}": "tests/benchmarks/test_commands.py"
    for question in ("store", "featurize", "train", "memory", "fidelity", "all")
}
# What no CPU runs without archives, fonts or hours; these are parsed. A test counts them.
RUN_ELSEWHERE["python -m benchmarks demo"] = "tests/benchmarks/test_experiments.py"
PARSED_ONLY = {
    "python -m benchmarks real": "wants the corpora's archives and hours; tests/benchmarks/test_experiments.py parses what it runs",
    "python -m dev.embedded_models": "wants a font and WordNet; tests/dev/test_training.py runs the recipe on eight pictures",
}
_COMMAND = re.compile(r"(?:[A-Z_]+=\S+ )*(python -m (?:featurize|dev\.embedded_models|train|benchmarks)\b|torchrun |make [a-z])")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`([^`\n]+)`")
# Corpora, models and sizes → what stands in their place. A corpus becomes a CSV of its name, so that its run's folder keeps its own.
CORPORA = ("20ng", "imdb", "cwi-news", "cwi-wikinews")
REPLACED = {
    "--dataset": {name: f"{name}.csv" for name in CORPORA},
    "--encoder": {"clip-vit-b32": "clip-demo"},
    "--encoders": {"clip-vit-b32": "clip-demo", "clip-vit-b16": "clip-demo", "clip-vit-l14": "clip-demo", "vit-b16": "vit-demo"},
    "--image-tokens": {"clip-vit-b32": "clip-demo", "clip-vit-l14": "clip-demo", "vit-b16": "vit-demo"},
    "--columns": {"clip-vit-b32": "clip-demo", "clip-vit-l14": "clip-demo", "vit-b16": "vit-demo"},
}
# Flag → its value in every command that has it, whatever the page says.
CUT_DOWN = {
    "--generator": "demo",
    "--text-model": "demo",
    "--steps": "1",
    "--size-px": "64",
    "--epochs": "1",
    "--seeds": "1",
    "--trials": "2",
    "--limit": "40",
    "--compile": "off",
    "--max-length": "16",
    "--student-layers": "1",
    "--nproc-per-node": "1",
}
# Nothing of a corpus that is no longer the paper's, and of a device that is not there, is left.
DROPPED = ("--data-dir", "--device", "--dtype")
DRAWN = {"--generator": "demo", "--encoders": "clip-demo", "--steps": "1"}
TRAINED = {"--text-model": "demo", "--epochs": "1"}
TABLED = {**TRAINED, "--rows": "table1"}
IN_SNIPPETS = {"clip-vit-b32": "clip-demo", "[12, 7, 4000]": "[12, 7, 40]"}


@dataclass(frozen=True)
class Told:
    """One thing that a page tells the reader to run.

    Attributes:
        page: of the repository, such as ``docs/tutorial.md``.
        line: where it stands, counted from 1.
        kind: a ``command`` or a ``python`` snippet of a fence, or a command ``inline`` in a sentence.
        text: as it stands, without a comment behind it.
    """

    page: str
    line: int
    kind: str
    text: str


def told(page: str) -> list[Told]:
    """Return what a page tells the reader to run, in the order in which it is run."""
    return told_by((ROOT / page).read_text(encoding="utf-8"), page)


def told_by(text: str, page: str) -> list[Told]:
    """Return what a Markdown text tells the reader to run: fences first, then what stands in sentences with flags."""
    found: list[Told] = []
    for fence in _FENCE.finditer(text):
        first = text.count("\n", 0, fence.start(2)) + 1
        if fence[1] == "python":
            found.append(Told(page, first, "python", fence[2]))
            continue
        for number, line in enumerate(fence[2].splitlines(), start=first):
            if _COMMAND.match(line):
                found.append(Told(page, number, "command", line.partition("#")[0].strip()))
    sentences = _FENCE.sub(lambda fence: "\n" * fence[0].count("\n"), text)
    for span in _INLINE.finditer(sentences):
        is_whole = "--" in span[1] and "|" not in span[1]  # a stroke says that there is a choice
        if _COMMAND.match(span[1]) and (is_whole or span[1].startswith("make ")):
            found.append(Told(page, sentences.count("\n", 0, span.start()) + 1, "inline", span[1].strip()))
    return found


def cut_down(command: str) -> list[str]:
    """Return the words of a ``python -m`` or ``torchrun`` command with everything large in it replaced."""
    words = [word for word in shlex.split(command) if not re.fullmatch(r"[A-Z_]+=\S+", word)]
    shown: list[str] = []
    flag = ""
    for word in words:
        if word.startswith("-"):
            flag = word
        elif flag in CUT_DOWN:  # one value, and what stands behind is no value of it
            shown.append(CUT_DOWN[flag])
            flag = ""
            continue
        if flag not in DROPPED:
            shown.append(REPLACED.get(flag, {}).get(word, word))
    added = {}
    if words[:3] == ["python", "-m", "featurize"] and words[3].startswith("--"):
        added = DRAWN
    elif "train" in words and not {"evaluate", "onnx", "report", "benchmarks"} & set(words):
        added = TABLED if "tables" in words else TRAINED
    if "benchmarks" in words and "--smoke" not in words:
        shown.append("--smoke")
    return shown + [part for flag, value in added.items() if flag not in shown for part in (flag, value)]


def snippet(text: str) -> str:
    """Return a Python snippet with what is named after a real encoder or a large corpus replaced."""
    for real, small in IN_SNIPPETS.items():
        text = text.replace(real, small)
    return text


def write_corpora(folder: Path) -> None:
    """Write a small corpus under the name of each of the paper's, and the files of texts that the pages read."""
    lines = "".join(f"{text},{label}\n" for text, label in topic_texts(45))
    for name in CORPORA:
        (folder / f"{name}.csv").write_text("text,label\n" + lines)
    for name in ("texts.txt", "more.txt"):
        (folder / name).write_text("".join(f"a {word} at the sea\n" for word in ("dog", "star", "loaf")))


def slugs(markdown: str) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    found: dict[str, int] = {}
    for line in _FENCE.sub("", markdown).splitlines():
        if heading := re.match(r"#{1,6} (.+)", line):
            plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1]).strip().lower()
            slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
            found[slug] = found.get(slug, -1) + 1
    return {slug if n == 0 else f"{slug}-{n}" for slug, most in found.items() for n in range(most + 1)}


def links(markdown: str) -> list[str]:
    """Return the targets of a page's links and pictures."""
    return re.findall(r"\]\(([^)\s]+)\)", _INLINE.sub("", _FENCE.sub("", markdown)))
