"""What became of the models that tables need. Reports read it without the libraries that train."""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class FinishedModel:
    """What became of one planned model.

    Attributes:
        folder: of the finished one; None if it failed.
        failure: why it failed; empty otherwise.
        is_new: whether it was trained, or its training finished, just now.
    """

    folder: Path | None = None
    failure: str = ""
    is_new: bool = False


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of the planned models.

    Attributes:
        folders: of the finished ones, by the models' names.
        failed: why the others are not there, by the models' names.
        trained: names of those that this command trained, or finished training.
    """

    folders: dict[str, Path] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    trained: list[str] = field(default_factory=list)

    def add(self, name: str, model: FinishedModel) -> None:
        """Add what became of the planned model of that name."""
        if model.folder is None:
            self.failed[name] = model.failure
            return
        self.folders[name] = model.folder
        if model.is_new:
            self.trained.append(name)
