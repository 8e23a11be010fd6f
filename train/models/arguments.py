"""Checks of what the Python API is called with, before anything is loaded: Python itself checks no annotation."""

from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path

import numpy as np

from lugpi_core.corpora.corpus import Corpus
from lugpi_core.errors import InputError
from lugpi_core.fields import require_type
from lugpi_core.store.token_store import TokenStore
from train.data.text_model import TextModel
from train.models.train_model import TrainedModel
from train.options.settings import Optimization, Placement

_TYPES: dict[str, tuple[type, ...]] = {
    "text_model": (str, TextModel),
    "optimization": (Optimization,),
    "placement": (Placement,),
    "name": (str,),
    "config": (Mapping,),
}


def require_trainable(corpus: Corpus, training: Mapping[str, object]) -> None:
    """Raise TypeError unless the corpus and the settings have their types, and InputError if the corpus has unlabelled texts."""
    require_type("corpus", corpus, Corpus)
    for name, value in training.items():
        if name in _TYPES:
            require_type(name, value, *_TYPES[name])
    if not all(example.is_labelled for example in corpus.examples):
        raise InputError(
            got=f"unlabelled texts in the corpus {corpus.name}",
            expected="a label for each text",
            do="distil a student on unlabelled texts with unlabelled=",
        )


def teacher_folders(teachers: Sequence[TrainedModel | str | Path]) -> list[Path]:
    """Return the folders of a student's teachers.

    Raises:
        InputError: none, one of them twice, or not of one run.
        TypeError: they are no list.
    """
    if isinstance(teachers, str) or not isinstance(teachers, Sequence):
        raise TypeError(f"teachers: got {teachers!r}; expected a list of trained models or their folders")
    for teacher in teachers:
        require_type("teachers", teacher, TrainedModel, str, Path)
    folders = [teacher.folder if isinstance(teacher, TrainedModel) else Path(teacher) for teacher in teachers]
    places = [folder.resolve() for folder in folders]
    if len({place.parent for place in places}) != 1 or len(set(places)) < len(places):
        raise InputError(
            got=f"teachers {', '.join(map(str, folders))}" if folders else "no teacher",
            expected="one teacher, or several different ones of one run",
            do="give the folder of each once",
        )
    return folders


def require_numbers(argument: str, numbers: object) -> tuple[float, ...]:
    """Return the numbers of a list, a tuple or an array. Raises TypeError for anything else."""
    values = numbers.tolist() if isinstance(numbers, np.ndarray) else numbers
    if isinstance(values, str) or not isinstance(values, Sequence) or not all(isinstance(value, Real) for value in values):
        raise TypeError(f"{argument}: got {numbers!r:.80}; expected a list of numbers")
    return tuple(map(float, values))


def column_of(store: object, column: str | None) -> str | None:
    """Return the column that is read of a store: the only one that a ``TokenStore`` has open if none is given.

    Raises:
        InputError: a ``TokenStore`` without that column, or for one image of several.
    """
    if not isinstance(store, TokenStore):
        return column
    if store.image:
        raise InputError(
            got=f"a TokenStore with image={store.image}",
            expected="a whole store: of several images per text, each epoch reads one at random",
            do=f"give its folder, {store.path}",
        )
    if column is None and len(store.columns) == 1:
        return store.columns[0]
    if column is not None and column not in store.columns:
        raise InputError(
            got=f"column={column!r} of a TokenStore with {', '.join(store.columns)}", expected="one of these", do="open it with that column"
        )
    return column
