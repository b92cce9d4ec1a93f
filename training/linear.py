"""Linear layers that learn in float32 on an x86 processor, computed by oneDNN; `pipelines.onednn` says why, and is for drawing.

What goes forward and the gradient that goes on are oneDNN's; the weights' own gradient stays MKL's, which is as fast there. Equal to the
plain layers to rounding, and a function of shapes and threads alone, so that a resumed run is exact. Axes: R rows, D widths.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.attention import replaced
from pipelines.onednn import FEWEST_ROWS, available


@contextmanager
def linear_by_onednn(networks: Sequence[nn.Module]) -> Iterator[None]:
    """Plain float32 linear layers of these networks go through oneDNN, with gradients and without, where this machine has it."""
    with ExitStack() as stack:
        for network in networks if available() else ():
            for module in network.modules():
                if type(module) is nn.Linear and "forward" not in vars(module) and type(module.weight) is nn.Parameter:
                    stack.enter_context(replaced(module, _forward(module)))
        yield


def _forward(module: nn.Linear) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        weight, bias = module.weight, module.bias
        plain = x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
        if not plain or x.numel() < FEWEST_ROWS * x.shape[-1]:
            return F.linear(x, weight, bias)
        if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
            found: Tensor = _Linear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
            return found
        return _multiply(x, weight, bias)

    return forward


class _Linear(torch.autograd.Function):
    """y = x·Wᵀ + b, and its gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x (…, D), weight (D', D), bias (D',) → (…, D')."""
        ctx.save_for_backward(x, weight)
        return _multiply(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Of those that are asked for."""
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        rows_RD = gradient.reshape(-1, gradient.shape[-1])
        return (
            _multiply(gradient, weight.t(), None) if wants_x else None,
            rows_RD.t() @ x.reshape(-1, x.shape[-1]) if wants_weight else None,
            rows_RD.sum(0) if wants_bias else None,
        )


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return found
