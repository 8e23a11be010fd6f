"""Fields of settings: their types checked, and the groups that a flat dataclass of flags inherits sliced out of it again."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from lugpi_core.errors import InputError, nearest

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Part = TypeVar("Part", bound=DataclassInstance)

_PLAIN = {int: "a whole number", float: "a number", str: "a text", bool: "True or False", Path: "a path", NoneType: "None"}
_type_hints = cache(get_type_hints)


def check_fields(settings: "DataclassInstance") -> None:
    """Compare each field of a dataclass with its type hint; for its ``__post_init__``, since Python itself checks no types.

    What is written differently but means the same is converted: a str for a path, a list for a tuple, NumPy's numbers, an int for a
    float. So settings from Python equal those that the flags give.

    Raises:
        InputError: a field has a value of another type, or none of its choices.
    """
    from typeguard import CollectionCheckStrategy, TypeCheckError, check_type  # 60 ms, which --help does not need

    hints = _type_hints(type(settings))
    for field in fields(settings):
        given, hint = getattr(settings, field.name), hints[field.name]
        value = given
        try:
            value = _converted(given, hint)
            check_type(value, hint, collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS)
            is_right = not isinstance(value, bool) or bool in _kinds(hint)  # to Python, True is an int
        except (TypeCheckError, OverflowError):  # the latter for an int beyond all floats
            is_right = False
        if not is_right:
            raise InputError(got=f"{field.name}={given!r}", expected=_readable(hint), do="give such a value")
        if value is not given:
            object.__setattr__(settings, field.name, value)  # the dataclass is frozen


def _kinds(hint: Any) -> tuple[Any, ...]:
    return (hint, *get_args(hint))


def _converted(value: object, hint: Any) -> object:
    kinds = _kinds(hint)
    match value:
        case bool():
            return value
        case Integral() if int in kinds:
            return int(value)
        case Real() if float in kinds:
            return float(value)
        case str() if Path in kinds:
            return Path(value)
        case list() if get_origin(hint) is tuple:
            return tuple(value)
    return value


def _readable(hint: Any) -> str:
    """Return what a type hint allows, in words."""
    if get_origin(hint) is Literal:
        choices = get_args(hint)
        return f"one of {', '.join(choices)}" if len(choices) > 1 else str(choices[0])
    if get_origin(hint) is tuple:
        return f"a tuple, each item {_readable(get_args(hint)[0])}"
    return _PLAIN.get(hint) or " or ".join(_readable(kind) for kind in get_args(hint))


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


def require_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise InputError unless an argument is one of its choices: Python does not check a Literal."""
    if value not in choices:
        raise InputError(got=f"{name}={value!r}", expected=" | ".join(choices), do=nearest(str(value), choices))


def require_type(name: str, value: object, *types: type) -> None:
    """Raise TypeError unless an argument is of one of its types; a bool is no int."""
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        raise TypeError(f"{name}: got {value!r:.80}; expected {' or '.join(kind.__name__ for kind in types)}")


def require_names(argument: str, names: Sequence[str]) -> tuple[str, ...]:
    """Return the names. Raises InputError for a single string, which would be taken as a list of letters, and for other values."""
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise InputError(got=f"{argument}={names!r}", expected="a list of names", do="put it in brackets, even if it is a single name")
    return tuple(names)
