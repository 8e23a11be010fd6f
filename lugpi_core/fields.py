"""Groups of fields that a flat dataclass of flags inherits, sliced out of it again."""

from dataclasses import fields
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Part = TypeVar("Part", bound=DataclassInstance)


def part_of(whole: "Part", kind: "type[Part]") -> "Part":
    """Return the ``kind`` whose fields ``whole``, an instance of a subclass, inherits; its own checks run again."""
    return kind(**{field.name: getattr(whole, field.name) for field in fields(kind)})
