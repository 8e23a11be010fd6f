"""Where the embedded models lie: small ones of the real ones' classes, trained by ``python -m dev.embedded_models`` and shipped with the
package, so that everything runs without a download."""

from pathlib import Path

from lugpi_core.errors import InputError

FOLDER = Path(__file__).resolve().parents[1] / "embedded"
LICENSE = "Apache-2.0"


def embedded_model(name: str) -> Path:
    """Return the folder of one of ``generator`` (Stable Diffusion), ``tiny`` (a TAESD for its latents), ``clip-demo`` (open_clip),
    ``vit-demo`` (ViT) and ``text`` (DistilBERT).

    Raises:
        InputError: the package was installed without it.
    """
    folder = FOLDER / name
    if not folder.is_dir():
        raise InputError(got=f"no {folder}", expected="the embedded models that come with lugpi", do="install the package again")
    return folder
