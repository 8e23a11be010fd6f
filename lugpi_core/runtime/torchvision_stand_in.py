"""Let open_clip and timm be imported where torchvision is not installed.

Both import torchvision at import time (open_clip 3.3: transform.py, utils.py; timm 1.0: data/, layers/, utils/model.py), for image
transforms, data sets and a frozen batch norm. lugpi calls none of these. A torchvision that fits the installed torch cannot always be had,
for example where only torch comes from an index of CPU builds.
"""

import importlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import NoReturn

_WANT_TORCHVISION = ("open_clip", "timm")


def let_open_clip_import_without_torchvision() -> None:
    """From now on, import open_clip and timm with a stand-in for torchvision if that is not installed. A second call changes nothing."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


@contextmanager
def torchvision_stand_in() -> Iterator[None]:
    """Inside the block, ``torchvision`` and its modules can be imported, and every name can be taken from them.

    The names are classes: they can be subclassed and compared; a call raises ImportError. After the block torchvision is as absent as
    before: transformers, which asks once and remembers the answer, is asked before.
    """
    from transformers.utils import is_torchvision_available

    is_torchvision_available()
    finder, before = _StandInFinder(), {name: sys.modules.pop(name) for name in ("torchvision",) if name in sys.modules}
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name, module in sys.modules.items() if isinstance(module, _StandInModule)]:
            del sys.modules[name]
        sys.modules.update(before)  # None, where somebody has forbidden the import


class _AbsentType(type):
    """A class of torchvision that is not there: its attributes are such classes too."""

    def __getattr__(cls, name: str) -> "_AbsentType":
        return _absent(f"{cls.__qualname__}.{name}", name)

    def __call__(cls, *_: object, **__: object) -> NoReturn:
        raise ImportError(f"{cls.__qualname__} is called, but torchvision is not installed")


def _absent(qualified_name: str, name: str) -> _AbsentType:
    if name.startswith("__"):  # what Python and inspect look for
        raise AttributeError(name)
    return _AbsentType(name, (), {"__qualname__": qualified_name})


class _StandInModule(ModuleType):
    def __getattr__(self, name: str) -> _AbsentType:
        return _absent(f"{self.__name__}.{name}", name)


class _StandInFinder(MetaPathFinder, Loader):
    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(fullname, self, is_package=True) if fullname.partition(".")[0] == "torchvision" else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandInModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


class _Finder(MetaPathFinder):
    """Finds open_clip and timm as the other finders do, and has them executed inside ``torchvision_stand_in``."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname not in _WANT_TORCHVISION or importlib.util.find_spec("torchvision") is not None:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader = _InsideStandIn(spec.loader)
                return spec
        return None


class _InsideStandIn(Loader):
    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        assert module.__spec__ is not None
        module.__spec__.loader = self._loader
        with torchvision_stand_in():
            self._loader.exec_module(module)
