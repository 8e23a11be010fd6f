"""The table of presets on docs/generators.md says what the presets are."""

from featurize.generate.presets import PRESETS
from tests.support.checkout import ROOT


def test_the_table_has_every_preset_as_it_is() -> None:
    rows = [line.strip("| ").split(" | ") for line in (ROOT / "docs" / "generators.md").read_text().splitlines() if line.startswith("| `")]
    table = {row[0].strip("`"): row[1:] for row in rows if row[0].strip("`") in PRESETS}
    assert list(table) == list(PRESETS)
    for name, preset in PRESETS.items():
        model, license, native_px, tokens, settings, *work = (cell.strip(" |") for cell in table[name])
        assert model == " + ".join(filter(None, (preset.sources[0] if preset.sources else "embedded", preset.denoiser)))
        assert license == preset.license
        assert native_px.replace("*", "") == " or ".join(map(str, preset.native_px))
        assert (int(tokens), settings) == (preset.tokens_read, f"{preset.steps}, {preset.guidance:g}")
        assert "".join(work) == ("" if preset.tflop is None else f"{preset.tflop:g}")
