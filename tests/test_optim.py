"""The optimizer and its schedule."""

import pytest
import torch
from torch import nn

from train.optim import make_optimizer, make_schedule


def test_the_rate_falls_linearly_to_zero() -> None:
    optimizer = make_optimizer(nn.Linear(2, 2), "adamw", learning_rate=1.0, weight_decay=0.0)
    schedule = make_schedule(optimizer, steps=4)
    rates = []
    for _ in range(5):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([1.0, 0.75, 0.5, 0.25, 0.0])


@pytest.mark.parametrize("name", ["adamw", "adamw8bit"])
def test_frozen_parameters_are_left_alone(name: str) -> None:
    model = nn.Sequential(nn.Linear(128, 64), nn.Linear(64, 2))
    model[0].requires_grad_(False)
    before = model[0].state_dict()["weight"].clone()
    optimizer = make_optimizer(model, "adamw8bit" if name == "adamw8bit" else "adamw", learning_rate=0.1, weight_decay=0.1)
    torch.autograd.backward(model(torch.randn(8, 128)).sum())
    optimizer.step()
    assert torch.equal(model[0].state_dict()["weight"], before)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 2


def test_eight_bit_state_takes_a_quarter_of_the_memory() -> None:
    model = nn.Linear(512, 512, bias=False)
    optimizer = make_optimizer(model, "adamw8bit", learning_rate=0.1, weight_decay=0.0)
    torch.autograd.backward(model(torch.randn(8, 512)).sum())
    optimizer.step()
    state = optimizer.state[model.weight]
    assert state["state1"].dtype == torch.uint8
    assert state["state2"].dtype == torch.uint8


def test_both_optimizers_lower_the_loss() -> None:
    for name in ("adamw", "adamw8bit"):
        torch.manual_seed(0)
        model = nn.Linear(128, 64)
        inputs, target = torch.randn(32, 128), torch.randn(32, 64)
        optimizer = make_optimizer(model, "adamw8bit" if name == "adamw8bit" else "adamw", learning_rate=0.01, weight_decay=0.0)
        losses = []
        for _ in range(20):
            loss = nn.functional.mse_loss(model(inputs), target)
            losses.append(float(loss.detach()))
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
        assert losses[-1] < 0.8 * losses[0], name
