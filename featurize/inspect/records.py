"""What the answers of an inspection have in common: how they become JSON, and how their figures are written for a person."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Record:
    """A frozen dataclass whose fields are the keys of a JSON object."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {field.name: json_value(getattr(self, field.name)) for field in fields(self)}


@dataclass(frozen=True, kw_only=True)
class LeftOut(Record):
    """A question that could not be answered.

    Attributes:
        left_out: why.
    """

    left_out: str


def json_value(value: Any) -> Any:
    """Return a value with records, paths, mappings and tuples replaced by objects, strings and lists."""
    if isinstance(value, Record):
        return value.to_json()
    if isinstance(value, Mapping):
        return {str(key): json_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_value(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def decimal(value: float) -> str:
    """Return a share or a p-value with three digits and no leading zero: ``.312``."""
    return f"{value:.3f}".replace("0.", ".", 1) if 0 <= value < 1 else f"{value:.3f}"


def percent(share: float) -> str:
    """Return a share as a percentage: ``31.2 %``."""
    return f"{100 * share:.1f} %"


def interval_text(interval: tuple[float, float]) -> str:
    """Return a 95 % confidence interval: ``95 % CI .282 to .339``."""
    return f"95 % CI {decimal(interval[0])} to {decimal(interval[1])}"
