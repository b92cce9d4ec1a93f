"""Layers computed by oneDNN give what the plain ones give, and only layers that are plain are touched."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pipelines.onednn import MOST_CELLS, PACKED_BYTES, available, by_onednn
from pipelines.place import Place

pytestmark = pytest.mark.skipif(not available(), reason="no x86 processor, or a PyTorch without oneDNN")

# Sums of a thousand products of float32 in another order; the inputs' deviation is 1, and the layers' own outputs' below 1.
ROUNDING = 2e-5
HERE = Place(torch.device("cpu"), torch.float32)


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "x",
    [
        _random(2, 64, 96),
        _random(2, 96, 8, 8).flatten(2).transpose(1, 2),
        _random(2, 64, 96)[:, ::2],
        _random(4, 96),
    ],
    ids=["tokens", "transposed", "every other", "few rows"],
)
@torch.inference_mode()
def test_a_linear_layer_is_the_plain_one_to_rounding(x: Tensor, bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(96, 40, bias=bias).requires_grad_(False)
    plain = layer(x)
    with by_onednn([layer], HERE):
        found = layer(x)
        assert torch.equal(layer(x.clone()), found)
    assert found.shape == plain.shape
    torch.testing.assert_close(found, plain, atol=ROUNDING, rtol=0)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("side", [4, 8, 40], ids=lambda side: f"{side} x {side}")
def test_a_convolution_is_the_plain_one_to_rounding(side: int, kernel: int, stride: int) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(48, 64, kernel, stride, padding=kernel // 2).requires_grad_(False)
    x = _random(2, 48, side, side)
    plain = layer(x)
    with torch.inference_mode(), by_onednn([layer], HERE):
        for _ in range(2):  # laid out, then known
            torch.testing.assert_close(layer(x).clone(), plain, atol=ROUNDING, rtol=0)
    assert (2 * side * side > MOST_CELLS) == (side == 40)  # both ways are tried


def test_weights_that_change_are_laid_out_anew() -> None:
    torch.manual_seed(0)
    layer, x = nn.Conv2d(8, 8, 3, padding=1).requires_grad_(False), _random(1, 8, 4, 4)
    with torch.inference_mode(), by_onednn([layer], HERE):
        layer(x)
    layer.weight.mul_(2.0)
    plain = layer(x)
    with torch.inference_mode(), by_onednn([layer], HERE):
        torch.testing.assert_close(layer(x).clone(), plain, atol=ROUNDING, rtol=0)


def test_afterwards_the_layers_are_as_they_were() -> None:
    network = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Linear(8, 8)).requires_grad_(False)
    with by_onednn([network], HERE):
        assert all("forward" in vars(layer) for layer in network)
    assert not any("forward" in vars(layer) for layer in network)


def _half(layer: nn.Conv2d) -> nn.Conv2d:
    return layer.to(torch.bfloat16)


def _hooked(layer: nn.Conv2d) -> nn.Conv2d:
    before = layer.forward
    vars(layer)["forward"] = lambda x: before(x)  # as accelerate's hooks do
    return layer


@pytest.mark.parametrize(
    "made",
    [
        lambda: _half(nn.Conv2d(8, 8, 3)),
        lambda: _hooked(nn.Conv2d(8, 8, 3)),
        lambda: nn.Conv2d(8, 8, 3, groups=2),
        lambda: nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"),
        lambda: nn.Conv2d(8, 8, 3, padding="same"),
        lambda: nn.Conv2d(512, PACKED_BYTES // 4 // 512 // 9 + 1, 3),
        lambda: nn.ConvTranspose2d(8, 8, 3),
        lambda: nn.Conv2d(8, 8, 3, device="meta"),
    ],
    ids=["half precision", "hooked", "grouped", "reflecting", "padded by name", "large", "transposed", "elsewhere"],
)
def test_layers_that_are_not_plain_are_let_be(made: Callable[[], nn.Module]) -> None:
    layer = made().requires_grad_(False)
    before = vars(layer).get("forward")
    with by_onednn([layer], HERE):
        assert vars(layer).get("forward") is before


def test_layers_in_training_are_let_be() -> None:
    layer = nn.Linear(8, 8)
    with by_onednn([layer], HERE):
        assert "forward" not in vars(layer)


@pytest.mark.parametrize("place", [Place(torch.device("cuda"), torch.float32), Place(torch.device("cpu"), torch.bfloat16)], ids=str)
def test_layers_that_wait_here_for_another_device_are_let_be(place: Place) -> None:
    layer = nn.Linear(8, 8).requires_grad_(False)
    with by_onednn([layer], place):
        assert "forward" not in vars(layer)


def test_what_a_lora_adds_is_added() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(16, 16).requires_grad_(False), _random(32, 16)
    plain = layer(x)
    layer.register_forward_hook(lambda module, inputs, output: output + 1.0)
    with torch.inference_mode(), by_onednn([layer], HERE):
        torch.testing.assert_close(layer(x).clone(), plain + 1.0, atol=ROUNDING, rtol=0)
