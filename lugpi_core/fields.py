"""Groups of fields that a flat dataclass of flags inherits, sliced out of it again."""

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Part = TypeVar("Part", bound=DataclassInstance)


def part_of(whole: "Part", kind: "type[Part]") -> "Part":
    """Return the ``kind`` whose fields ``whole``, an instance of a subclass, inherits; its own checks run again."""
    return kind(**{field.name: getattr(whole, field.name) for field in fields(kind)})


def require_known_arguments(given: Mapping[str, object], arguments: type) -> None:
    """Raise TypeError if a name in ``given`` is none of the TypedDict ``arguments``.

    Python does not check the names of an unpacked TypedDict, so a misspelt setting would have no effect.
    """
    known = arguments.__annotations__
    if unknown := sorted(given.keys() - known.keys()):
        raise TypeError(f"got an unexpected argument {unknown[0]!r}; expected {', '.join(known)}")
