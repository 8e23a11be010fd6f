"""What a model's card says of its licence."""

from pathlib import Path

import pytest
from huggingface_hub import constants

from featurize.generate.downloads import card_license, find_denoiser
from lugpi_core.errors import InputError


@pytest.mark.parametrize(
    ("front", "license"),
    [
        ("license: apache-2.0", "apache-2.0"),
        ('license: "mit"\ntags:\n- x', "mit"),
        ("license: other\nlicense_name: flux-1-dev\nlicense_link: LICENSE.md", "flux-1-dev"),
        ("license: other\nlicense_link: https://x/LICENSE", "other, https://x/LICENSE"),
        ("license: other", None),
        ("tags:\n- x", None),
    ],
)
def test_the_front_matter_of_a_card(tmp_path: Path, front: str, license: str | None) -> None:
    (tmp_path / "README.md").write_text(f"---\n{front}\n---\nlicense: not this one\n")
    assert card_license(tmp_path) == license


@pytest.mark.parametrize("card", ["", "license: mit\n", "---\nlicense: mit\n"])
def test_a_card_without_front_matter_states_no_licence(tmp_path: Path, card: str) -> None:
    assert card_license(tmp_path) is None
    (tmp_path / "README.md").write_text(card)
    assert card_license(tmp_path) is None


def test_a_denoiser_out_of_reach_is_no_name_to_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"; download it where there is a network and give it with --unet FILE$"):
        find_denoiser("owner/sigma", part="transformer")
