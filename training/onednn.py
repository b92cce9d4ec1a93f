"""Layers of a float32 training on an x86 processor, computed by oneDNN; `pipelines.onednn` says why, and is for drawing.

Linear layers, whether they learn or not: what goes forward and the gradient that goes on are oneDNN's; the weights' own gradient stays
MKL's, which is as fast there. Small convolutions that do not learn: their weights are laid out once, as they are and turned round for the
gradient that goes on. Equal to the plain layers to rounding, and a function of shapes and threads alone, so that a resumed run is exact.
Axes: R rows, D widths, B pictures, C channels, H and W cells.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.attention import replaced
from pipelines.onednn import FEWEST_ROWS, Convolution, available, multiply, packable, plain


@contextmanager
def learning_by_onednn(networks: Sequence[nn.Module]) -> Iterator[None]:
    """Plain float32 layers of these networks go through oneDNN, with gradients and without, where this machine has it."""
    with ExitStack() as stack:
        for network in networks if available() else ():
            for module in network.modules():
                if type(module) is nn.Linear and "forward" not in vars(module) and type(module.weight) is nn.Parameter:
                    stack.enter_context(replaced(module, _linear(module)))
                elif isinstance(module, nn.Conv2d) and plain(module) and packable(module):
                    stack.enter_context(replaced(module, _convolution(module)))
        yield


def _linear(module: nn.Linear) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        weight, bias = module.weight, module.bias
        if not (_plain_numbers(x) and weight.dtype == torch.float32) or x.numel() < FEWEST_ROWS * x.shape[-1]:
            return F.linear(x, weight, bias)
        if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
            found: Tensor = _Linear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
            return found
        return multiply(x, weight, bias)

    return forward


def _convolution(module: nn.Conv2d) -> Callable[[Tensor], Tensor]:
    before, convolution = module.forward, Convolution(module)

    def forward(x: Tensor) -> Tensor:
        if not _plain_numbers(x) or not convolution.fits(x):
            return before(x)
        if torch.is_grad_enabled() and x.requires_grad:
            found: Tensor = _Convolution.apply(x, convolution)  # type: ignore[no-untyped-call]
            return found
        with torch.no_grad():
            return _in_rows(convolution(x))

    return forward


def _plain_numbers(x: Tensor) -> bool:
    return x.dtype == torch.float32 and x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")


def _in_rows(x_BCHW: Tensor) -> Tensor:
    """In the usual order: oneDNN's, channels last, can crash GroupNorm's gradient."""
    return x_BCHW.contiguous()


class _Linear(torch.autograd.Function):
    """y = x·Wᵀ + b, and its gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x (…, D), weight (D', D), bias (D',) → (…, D')."""
        ctx.save_for_backward(x, weight)
        return multiply(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Of those that are asked for."""
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        rows_RD = gradient.reshape(-1, gradient.shape[-1])
        return (
            multiply(gradient, weight.t(), None) if wants_x else None,
            rows_RD.t() @ x.reshape(-1, x.shape[-1]) if wants_weight else None,
            rows_RD.sum(0) if wants_bias else None,
        )


class _Convolution(torch.autograd.Function):
    """A convolution that does not learn, and the gradient that goes on."""

    @staticmethod
    def forward(ctx: Any, x_BCHW: Tensor, convolution: Convolution) -> Tensor:
        """(B, C, H, W) → (B, C', H', W')."""
        ctx.convolution, ctx.shape = convolution, x_BCHW.shape
        return _in_rows(convolution(x_BCHW))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Of the input alone."""
        return _in_rows(ctx.convolution.gradient(gradient, ctx.shape)), None
