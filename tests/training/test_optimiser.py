"""Learning rates and optimisers by their closed forms."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from core.errors import BadRequest, Mismatch
from tests.training.toytask import ToyTask, weights
from training.config import TrainConfig
from training.optimiser import Average, Optimiser, rate
from training.trainer import train


def config(**changes: Any) -> TrainConfig:
    return TrainConfig.model_validate({"out": Path(), "steps": 110, "learning_rate": 2.0, "warmup": 10, **changes})


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
def test_the_rate_rises_linearly_over_the_warmup(schedule: str) -> None:
    settings = config(schedule=schedule)
    assert [rate(settings, step) for step in range(10)] == pytest.approx([2 * (step + 1) / 10 for step in range(10)])
    assert rate(settings, 10) == 2.0


def test_after_the_warmup_it_follows_its_schedule() -> None:
    for step in (10, 35, 60, 109):
        done = (step - 10) / 100
        assert rate(config(schedule="constant"), step) == 2.0
        assert rate(config(schedule="linear"), step) == pytest.approx(2 * (1 - done))
        assert rate(config(schedule="cosine"), step) == pytest.approx(1 + math.cos(math.pi * done))
    assert rate(config(schedule="linear"), 200) == 0.0


def test_a_warmup_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="warmup 110 leaves nothing of 110 steps"):
        config(warmup=110, schedule="cosine")


def test_lion_is_its_formula() -> None:
    weight = nn.Parameter(torch.tensor([[1.0, -2.0]]))
    optimiser = Optimiser(
        {"w": weight}, config(optimiser="lion", warmup=0, betas=(0.9, 0.99), weight_decay=0.1, learning_rate=0.1, clip=100.0)
    )
    theta, momentum = weight.detach().clone(), torch.zeros(1, 2)
    for step, gradient in enumerate(([[1.0, 0.5]], [[-8.0, 0.5]], [[0.0, 3.0]])):
        g = torch.tensor(gradient)
        theta = theta - 0.1 * ((0.9 * momentum + 0.1 * g).sign() + 0.1 * theta)
        momentum = 0.99 * momentum + 0.01 * g
        weight.grad = g.clone()
        optimiser.step(step)
        torch.testing.assert_close(weight.detach(), theta, rtol=0, atol=1e-6)  # the same sums in fp32, in another order


@pytest.mark.parametrize("name", ["adamw8bit", "adafactor", "lion", "prodigy"])
def test_every_optimiser_learns_and_goes_on_exactly(name: str, tmp_path: Path) -> None:
    if library := {"adamw8bit": "bitsandbytes", "prodigy": "prodigyopt"}.get(name):
        pytest.importorskip(library)
    rates = {"adafactor": 0.05, "lion": 0.003, "prodigy": 1.0}
    settings: dict[str, Any] = {
        "steps": 60, "batch_size": 4, "optimiser": name, "learning_rate": rates.get(name, 0.01), "ema_decay": 0.0, "device": "cpu",
        "checkpoint_every": 20, "log_every": 10,
    }  # fmt: skip
    losses: list[float] = []
    train(ToyTask(dropout=0.0), TrainConfig(out=tmp_path / "whole", **settings), lambda run: losses.append(run.metrics.get("loss", 0.0)))
    assert losses[-1] < 0.9 * losses[9]

    class PowerCut(Exception):
        pass

    def cut(run: Any) -> None:
        if run.step == 33:
            raise PowerCut

    with pytest.raises(PowerCut):
        train(ToyTask(dropout=0.0), TrainConfig(out=tmp_path / "cut", **settings), cut)
    train(ToyTask(dropout=0.0), TrainConfig(out=tmp_path / "cut", resume="must", **settings))
    for part, tensor in weights(tmp_path / "whole").items():
        assert torch.equal(weights(tmp_path / "cut")[part], tensor), part
    if name == "lion":
        with pytest.raises(Mismatch, match="another optimiser than adafactor"):
            train(ToyTask(dropout=0.0), TrainConfig(out=tmp_path / "cut", **(settings | {"optimiser": "adafactor", "steps": 70})))


def test_an_optimiser_that_is_not_installed_is_named() -> None:
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        with pytest.raises(BadRequest, match="needs bitsandbytes, which is not installed: pip install bitsandbytes"):
            Optimiser({"w": nn.Parameter(torch.ones(2))}, config(optimiser="adamw8bit"))


def test_adafactor_moves_what_begins_at_zero() -> None:
    """By the rate, as AdamW does: a ControlNet begins with layers that are all zero."""
    weight, bias = nn.Parameter(torch.zeros(4, 3)), nn.Parameter(torch.zeros(4))
    optimiser = Optimiser({"w": weight, "b": bias}, config(optimiser="adafactor", warmup=0, learning_rate=1e-3))
    weight.grad, bias.grad = torch.full((4, 3), 0.01), torch.full((4,), -0.01)
    optimiser.step(0)
    torch.testing.assert_close(weight.detach(), torch.full((4, 3), -1e-3), rtol=1e-3, atol=0)
    torch.testing.assert_close(bias.detach(), torch.full((4,), 1e-3), rtol=1e-3, atol=0)


def test_prodigy_has_one_rate() -> None:
    with pytest.raises(ValueError, match="learning_rate_factors 2: prodigy finds one rate for all"):
        config(optimiser="prodigy", learning_rate_factors={"head": 2.0, "encoder": 1.0})
    config(optimiser="prodigy", learning_rate_factors={"head": 0.0})


def test_a_factor_for_no_parameter_names_those_there_are() -> None:
    parameters = {name: nn.Parameter(torch.ones(2)) for name in ("net.hint.weight", "net.hint.bias", "net.blocks.0.weight")}
    with pytest.raises(BadRequest, match=r"'hint' fits no trainable parameter: names start with net\.hint, net\.blocks"):
        Optimiser(parameters, config(learning_rate_factors={"hint": 2.0}))


@pytest.mark.parametrize(("before", "now"), [("lion", "adamw"), ("adamw", "adafactor")])
def test_another_optimiser_than_the_checkpoint_s_is_refused(before: str, now: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"out": tmp_path, "batch_size": 4, "device": "cpu"}
    train(ToyTask(), TrainConfig.model_validate({**settings, "steps": 2, "optimiser": before}))
    with pytest.raises(Mismatch, match=rf"another optimiser than {now} \({before}\): use another `out`, or train\.optimiser={before}"):
        train(ToyTask(), TrainConfig.model_validate({**settings, "steps": 4, "optimiser": now}))


def test_the_average_can_lie_on_the_cpu() -> None:
    live = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    averages = [Average({"w": live}, 0.9, on_cpu=on_cpu) for on_cpu in (False, True)]
    with torch.no_grad():
        live.add_(1.0)
    for average in averages:
        assert average.tensors["w"].device.type == "cpu"
        assert average.tensors["w"].data_ptr() != live.data_ptr()
        average.update(0)
    assert torch.equal(averages[0].tensors["w"], averages[1].tensors["w"])
    assert float(averages[1].tensors["w"][0]) == pytest.approx(1 - 2 / 11)


def test_a_run_is_the_same_with_its_average_on_the_cpu(tmp_path: Path) -> None:
    for on_cpu in (False, True):
        settings = config(
            out=tmp_path / str(on_cpu), steps=12, ema_decay=0.9, ema_on_cpu=on_cpu, learning_rate=0.01, batch_size=4, device="cpu"
        )
        train(ToyTask(), settings)
    for name, tensor in weights(tmp_path / "False").items():
        assert torch.equal(weights(tmp_path / "True")[name], tensor)
