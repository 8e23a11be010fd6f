"""Without torchvision, open_clip and timm import all the same, and the other libraries still find it absent."""

import os
import subprocess
import sys

import pytest

from lugpi_core.runtime.torchvision_stand_in import torchvision_stand_in
from tests.support.checkout import ROOT

# As where it is not installed: find_spec finds nothing, and importing it fails.
ABSENT = "import sys; sys.modules['torchvision'] = None\n"
IMPORT_BOTH = """
import importlib.util
import pkgutil
from lugpi_core.runtime.libraries import prepare_libraries

for _ in range(2):
    prepare_libraries()
import timm
import open_clip
from transformers.utils import is_torchvision_available

assert importlib.util.find_spec("torchvision") is None
assert not is_torchvision_available()
assert [name for name, module in sys.modules.items() if name.startswith("torchvision") and module] == []
assert pkgutil.get_data("open_clip", "version.py")
open_clip.list_models()
text = {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1}
clip = open_clip.CLIP(embed_dim=8, vision_cfg={"layers": 1, "width": 16, "head_width": 8, "patch_size": 8, "image_size": 16}, text_cfg=text)
timm.create_model("test_vit")
try:
    open_clip.image_transform(224, is_train=False)
except ImportError as error:
    print(error)
"""


def _python(code: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=200, check=False)


def test_open_clip_and_timm_import_and_build_models_without_torchvision() -> None:
    done = _python(ABSENT + IMPORT_BOTH)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "torchvision.transforms.Normalize is called, but torchvision is not installed\n"


def test_a_process_that_knows_nothing_of_lugpi_needs_no_torchvision() -> None:
    done = _python(ABSENT + "from transformers import pipeline; import diffusers; diffusers.StableDiffusionPipeline")
    assert done.returncode == 0, done.stderr


def test_the_stand_ins_names_can_be_taken_subclassed_and_compared_but_not_called() -> None:
    with torchvision_stand_in():
        import torchvision.transforms.functional as F
        from torchvision.transforms import InterpolationMode, ToTensor

    class Mine(ToTensor):  # type: ignore[misc]
        pass

    assert {InterpolationMode.BICUBIC: 1}
    assert not isinstance(1, Mine)
    for call, name in ((F.resize, "torchvision.transforms.functional.resize"), (ToTensor, "torchvision.transforms.ToTensor")):
        with pytest.raises(ImportError, match=f"^{name} is called, but torchvision is not installed$"):
            call(1)
    with pytest.raises(AttributeError):
        _ = F.__wrapped__


@pytest.mark.parametrize("before", ["nothing", "forbidden"])
def test_after_an_error_inside_everything_is_as_before(before: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    if before == "forbidden":
        monkeypatch.setitem(sys.modules, "torchvision", None)
    finders = list(sys.meta_path)
    with pytest.raises(ModuleNotFoundError, match="a module that nobody has"), torchvision_stand_in():
        exec("import torchvision.ops.misc\nraise ModuleNotFoundError('a module that nobody has')")
    assert sys.meta_path == finders
    names = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "torchvision"}
    assert names == ({"torchvision": None} if before == "forbidden" else {})
