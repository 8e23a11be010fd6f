"""The code blocks and the commands of the project's Markdown pages."""

import importlib
import re
import shlex
from dataclasses import dataclass

from tests.support.checkout import ROOT

PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    *sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/*.md")),
    "dev/embedded_models/README.md",
    "lugpi_core/data/README.md",
    "lugpi_core/embedded/README.md",
)
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`([^`\n]+)`")
_COMMAND = re.compile(r"(?:[A-Z_]+=\S+ )*(?:python -m (?:lugpi|featurize|train|benchmarks|dev\.\w+)\b|torchrun |make [a-z])")


@dataclass(frozen=True)
class Code:
    """Something a page tells the reader to run: a shell command, or a block of Python."""

    page: str
    line: int
    is_python: bool
    text: str

    @property
    def words(self) -> list[str]:
        """The words of a command, without environment variables and comment."""
        return [word for word in shlex.split(self.text, comments=True) if not re.fullmatch(r"[A-Z_]+=\S+", word)]


def run(words: list[str]) -> int:
    """Run ``python -m PACKAGE …`` or ``torchrun … -m PACKAGE …`` in this process; return the exit status."""
    package, *arguments = words[words.index("-m") + 1 :]
    status: int = importlib.import_module(f"{package}.cli").main(arguments)
    return status


def text_of(page: str) -> str:
    """Return a page's Markdown."""
    return (ROOT / page).read_text(encoding="utf-8")


def prose_of(page: str) -> str:
    """Return a page's Markdown without its code blocks, line for line."""
    return _FENCE.sub(lambda fence: "\n" * fence[0].count("\n"), text_of(page))


def code_of(page: str) -> list[Code]:
    """Return the Python blocks and the commands of a page's code blocks, in order, and then the complete commands in its sentences."""
    found = []
    for fence in _FENCE.finditer(text_of(page)):
        first = text_of(page).count("\n", 0, fence.start(2)) + 1
        if fence[1] == "python":
            found.append(Code(page, first, True, fence[2]))
        else:
            lines = enumerate(fence[2].replace("\\\n", "").splitlines(), first)
            found += [Code(page, number, False, line) for number, line in lines if _COMMAND.match(line)]
    for span in _INLINE.finditer(prose_of(page)):
        if _COMMAND.match(span[1]) and (" --" in span[1] or span[1].startswith("make ")) and not set(span[1]) & set("|…"):
            found.append(Code(page, prose_of(page).count("\n", 0, span.start()) + 1, False, span[1]))
    return found


def links_of(page: str) -> list[str]:
    """Return the targets of a page's links and images."""
    return re.findall(r"\]\(([^)\s]+)\)", _INLINE.sub("", prose_of(page)))


def anchors_of(page: str) -> set[str]:
    """Return the anchors of a page's headings."""
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in re.findall(r"(?m)^#+ (.+)$", prose_of(page))}
