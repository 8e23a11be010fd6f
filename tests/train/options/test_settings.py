"""Settings of a training, as they come from Python: no value of another type begins a run."""

from typing import Any

import pytest

from lugpi_core.errors import InputError
from train.options.settings import DistillationSettings, Optimization, Placement
from train.options.training import TokensOptions


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        (Optimization, {"optimizer": "sgd"}),
        (Optimization, {"epochs": 1.5}),
        (Optimization, {"learning_rate": "5e-4"}),
        (Optimization, {"seed": "0"}),
        (Placement, {"device": "gpu"}),
        (Placement, {"dtype": "x"}),
        (Placement, {"compile": True}),
        (Placement, {"track": "wandb"}),
        (Placement, {"tokens_on": "gpu"}),
        (DistillationSettings, {"kd_preset": "other"}),
        (DistillationSettings, {"alpha": "1"}),
    ],
    ids=str,
)
def test_a_setting_of_another_type_is_refused(kind: type, given: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"got {next(iter(given))}="):
        kind(**given)


@pytest.mark.parametrize("given", [{"limit": "10"}, {"epochs": 1.5}, {"device": "gpu"}, {"tokens_on": "gpu"}, {"name": 3}], ids=str)
def test_options_check_the_settings_they_inherit(given: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"got {next(iter(given))}="):
        TokensOptions(dataset="demo", **given)
