"""Layers by oneDNN: the same to rounding, forwards and backwards, and out of the way again."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipelines.onednn import MOST_CELLS, available
from training.onednn import learning_by_onednn

if not available():
    pytest.skip("this machine or this PyTorch has not oneDNN's operators", allow_module_level=True)


def gradients(layer: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    """Output, and the gradient of a sum that weighs every entry differently, for all that requires one."""
    out: Tensor = layer(x)
    asked = [tensor for tensor in (x, *layer.parameters()) if tensor.requires_grad]
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(3))
    return (out, *torch.autograd.grad((out * weights).sum(), asked)) if asked else (out,)


@pytest.mark.parametrize("shape", [(64, 24), (2, 40, 24), (2, 3, 5, 24), (3, 24)])
@pytest.mark.parametrize(("bias", "asks"), [(True, "xw"), (False, "xw"), (True, "x"), (True, "w"), (True, "")])
def test_what_goes_forth_and_back_is_the_same(shape: tuple[int, ...], bias: bool, asks: str) -> None:
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(24, 17, bias=bias).requires_grad_("w" in asks)
    x = torch.randn(shape, generator=generator).requires_grad_("x" in asks)
    wanted = gradients(layer, x)
    with learning_by_onednn([nn.Sequential(layer)]):
        assert "forward" in vars(layer)
        found = gradients(layer, x)
        again = gradients(layer, x)
    assert "forward" not in vars(layer)
    for one, other, third in zip(found, wanted, again, strict=True):
        # sums of up to 64 numbers near 1 in another order
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
        assert torch.equal(one, third)


@pytest.mark.parametrize("side", [5, 8, 40])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("kernel", "padding", "dilation"), [(1, 0, 1), (3, 1, 1), (3, 0, 1), (3, 2, 2), (3, 3, 1)])
def test_a_frozen_convolution_goes_forth_and_back_the_same(kernel: int, padding: int, dilation: int, stride: int, side: int) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 12, kernel, stride, padding, dilation).requires_grad_(False)
    x = torch.randn(2, 8, side, side + 1).requires_grad_()
    wanted = gradients(layer, x)
    with learning_by_onednn([layer]):
        assert "forward" in vars(layer)
        found, again = gradients(layer, x), gradients(layer, x)
        with torch.no_grad():
            assert torch.equal(layer(x.detach()), found[0])
    assert (x[:, 0].numel() > MOST_CELLS) == (side == 40)  # both ways are tried
    for one, other, third in zip(found, wanted, again, strict=True):
        # sums of 72 to 108 numbers below 1 in another order
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
        assert torch.equal(one, third)
        assert one.is_contiguous()


def test_a_convolution_that_learns_is_left_alone() -> None:
    layer = nn.Conv2d(8, 8, 3)
    with learning_by_onednn([layer]):
        assert "forward" not in vars(layer)


def test_other_layers_and_dtypes_are_left_alone() -> None:
    class Own(nn.Linear):
        pass

    own, half = Own(24, 8), nn.Linear(24, 8, dtype=torch.bfloat16)
    x: Any = torch.randn(32, 24)
    with learning_by_onednn([own, half]):
        assert "forward" not in vars(own)
        assert half(x.bfloat16()).dtype == torch.bfloat16
    layer = nn.Linear(24, 8)
    with learning_by_onednn([layer]), torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
