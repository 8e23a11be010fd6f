"""The optimizer and its schedule."""

import pytest
import torch
from torch import nn

from train.learning.optimizer import make_optimizer, optimizer_on, rate_at


def test_the_learning_rate_decays_linearly_to_zero() -> None:
    assert [rate_at(step, 4, 2.0) for step in range(6)] == [2.0, 1.5, 1.0, 0.5, 0.0, 0.0]


def test_auto_takes_8_bits_on_cuda() -> None:
    assert [optimizer_on(device, "auto") for device in ("cpu", "cuda")] == ["adamw", "adamw8bit"]
    assert [optimizer_on("cpu", "adamw8bit"), optimizer_on("cuda", "adamw")] == ["adamw8bit", "adamw"]


@pytest.mark.parametrize("name", ["adamw", "adamw8bit"])
def test_biases_and_norms_do_not_decay(name: str) -> None:
    model = nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 8), nn.LayerNorm(8))
    names = {id(parameter): parameter_name for parameter_name, parameter in model.named_parameters()}
    optimizer = make_optimizer(model, "adamw8bit" if name == "adamw8bit" else "adamw", learning_rate=0.1, weight_decay=0.3)
    decays = {names[id(parameter)]: group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]}
    assert decays == {"0.weight": 0.3, "1.weight": 0.3, "1.bias": 0.0, "2.weight": 0.0, "2.bias": 0.0}


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


def test_embeddings_keep_32_bit_state() -> None:
    model = nn.Sequential(nn.Embedding(100, 128), nn.Linear(128, 64))
    optimizer = make_optimizer(model, "adamw8bit", learning_rate=0.1, weight_decay=0.0)
    torch.autograd.backward(model(torch.arange(8)).sum())
    optimizer.step()
    kinds = [optimizer.state[parameter]["state1"].dtype for parameter in (model[0].weight, model[1].weight)]
    assert kinds == [torch.float32, torch.uint8]


def test_a_step_with_8_bits_does_not_synchronize(monkeypatch: pytest.MonkeyPatch) -> None:
    import bitsandbytes

    def wait(_: torch.Tensor) -> None:
        raise AssertionError("waited")

    monkeypatch.setattr(bitsandbytes.optim.optimizer, "sync_gpu", wait)
    model = nn.Linear(128, 64)
    optimizer = make_optimizer(model, "adamw8bit", learning_rate=0.1, weight_decay=0.0)
    torch.autograd.backward(model(torch.randn(8, 128)).sum())
    optimizer.step()
    assert bitsandbytes.optim.optimizer.sync_gpu is not wait
