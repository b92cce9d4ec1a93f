"""Layers of float32 networks on x86 processors, computed by oneDNN with its widest instructions.

PyTorch gives a linear layer to MKL, which uses half the width of an AMD processor that has AVX-512, and lays the weights of a convolution
out anew at every call, which for few cells takes as long as the convolution. Both are put right for the length of a `with`, through
operators that PyTorch's own compiler calls; where they are missing nothing is changed. The results are those of the plain layers to
rounding, and depend on shapes and threads alone. Axes: B rows, C channels, H and W cells, D width.
"""

import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.attention import replaced
from pipelines.place import Place

FEWEST_ROWS = 16  # below, MKL is as fast, and the way to it shorter
MOST_CELLS = 1024  # of all rows; beyond, laying out weights is little beside the sums
PACKED_BYTES = 2**22  # of a layer's weights: small layers gain, and a large model is not held twice
_SHAPES_KEPT = 2  # with guidance and without

_Packed = dict[tuple[bool, tuple[int, ...]], Tensor]  # by whether they are turned round, and the input's shape
_packed: WeakKeyDictionary[nn.Module, tuple[Tensor, int, _Packed]] = WeakKeyDictionary()


@contextmanager
def by_onednn(networks: Sequence[nn.Module], place: Place) -> Iterator[None]:
    """Plain linear layers and convolutions of these networks, which compute on `place`, are computed by oneDNN if that is an x86 processor.

    Layers that come and go, as offloading has it, stay as they are.
    """
    here = place.device.type == "cpu" and place.dtype == torch.float32 and available()
    with ExitStack() as stack:
        for network in networks if here else ():
            for module in network.modules():
                if isinstance(module, nn.Linear) and plain(module):
                    stack.enter_context(replaced(module, _linear(module)))
                elif isinstance(module, nn.Conv2d) and plain(module) and packable(module):
                    stack.enter_context(replaced(module, _convolution(module)))
        yield


@cache
def available() -> bool:
    """Whether this machine and this PyTorch have the operators, and they give what the plain ones give."""
    if platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    x_BD, weight_DD = torch.linspace(-1, 1, 32).reshape(2, 16), torch.linspace(-1, 1, 64).reshape(4, 16)
    x_BCHW, weight_CCHW = torch.linspace(-1, 1, 32).reshape(1, 2, 4, 4), torch.linspace(-1, 1, 36).reshape(2, 2, 3, 3)
    try:
        with torch.inference_mode():
            linear = multiply(x_BD, weight_DD, None)
            convolved = _convolve(x_BCHW, _pack(weight_CCHW, (1, 2, 4, 4), _ONCE), None, _ONCE)
    except (AttributeError, RuntimeError):
        return False
    return torch.allclose(linear, F.linear(x_BD, weight_DD), atol=1e-5) and torch.allclose(
        convolved, F.conv2d(x_BCHW, weight_CCHW, padding=1), atol=1e-5
    )


def plain(module: nn.Linear | nn.Conv2d) -> bool:
    """Whether nobody else has put something in the layer's place, or trains it: offloading, quantised weights, a class of its own."""
    if type(module) not in (nn.Linear, nn.Conv2d) or "forward" in vars(module):
        return False
    weight = module.weight
    if type(weight) is not nn.Parameter or weight.requires_grad or weight.is_inference() or not weight.is_contiguous():
        return False
    return weight.dtype == torch.float32 and weight.device.type == "cpu"


def packable(module: nn.Conv2d) -> bool:
    """Whether a convolution is of the kind and size whose weights are laid out once."""
    regular = module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return regular and module.weight.nbytes <= PACKED_BYTES


def _linear(module: nn.Linear) -> Callable[..., Tensor]:
    weight, bias = module.weight.detach(), None if module.bias is None else module.bias.detach()

    def forward(x: Tensor) -> Tensor:
        if x.dtype != torch.float32 or x.numel() < FEWEST_ROWS * x.shape[-1]:
            return F.linear(x, weight, bias)
        return multiply(x.contiguous(), weight, bias)  # other orders of axes have other kernels, which round otherwise

    return forward


def _convolution(module: nn.Conv2d) -> Callable[..., Tensor]:
    before, convolution = module.forward, Convolution(module)

    def forward(x: Tensor) -> Tensor:
        return convolution(x) if x.dtype == torch.float32 and convolution.fits(x) else before(x)

    return forward


class _Window(NamedTuple):
    """How a convolution moves, each of height and width."""

    padding: list[int]
    stride: list[int]
    dilation: list[int]


_ONCE = _Window([1, 1], [1, 1], [1, 1])


class Convolution:
    """A layer that does not learn, with its weights laid out for the shapes that it is asked for; it records no gradient."""

    def __init__(self, module: nn.Conv2d) -> None:
        self._module, self._bias = module, None if module.bias is None else module.bias.detach()
        self._window = _Window(*([int(value) for value in pair] for pair in (module.padding, module.stride, module.dilation)))

    def fits(self, x: Tensor) -> bool:
        """Whether an input is small enough to gain anything."""
        return x.ndim == 4 and x.shape[0] * x.shape[2] * x.shape[3] <= MOST_CELLS

    def __call__(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) float32 → (B, C', H', W'), channels last in memory."""
        return _convolve(x_BCHW, _packed_weight(self._module, tuple(x_BCHW.shape), self._window), self._bias, self._window)

    def gradient(self, gradient_BCHW: Tensor, shape: torch.Size) -> Tensor:
        """What the output's gradient (B, C', H', W') gives for the input, whose shape this is."""
        window, weight = self._window, self._module.weight.detach()
        turned = _Window([side - 1 - pad for side, pad in zip(weight.shape[2:], window.padding, strict=True)], *_ONCE[1:])
        if window[1:] != _ONCE[1:] or min(turned.padding) < 0:
            x = gradient_BCHW.new_empty(1).expand(shape)  # of which only the shape is looked at
            more: tuple[Any, ...] = (False, [0, 0], 1, [True, False, False])
            back = torch.ops.aten.convolution_backward(
                gradient_BCHW, x, weight, None, window.stride, window.padding, window.dilation, *more
            )
            found: Tensor = back[0]
            return found
        packed = _packed_weight(self._module, tuple(gradient_BCHW.shape), turned, turned=True)
        return _convolve(gradient_BCHW, packed, None, turned)


def _packed_weight(module: nn.Conv2d, shape: tuple[int, ...], window: _Window, *, turned: bool = False) -> Tensor:
    """The weights as oneDNN wants them for inputs of this shape; laid out once, and again where they are others.

    turned: with inputs and outputs, left and right, top and bottom exchanged, as the gradient needs them.
    """
    weight = module.weight.detach()
    known = _packed.get(module)
    if known is None or known[0].data_ptr() != weight.data_ptr() or known[1] != module.weight._version:
        known = _packed[module] = (weight, module.weight._version, {})
    if (turned, shape) not in known[2]:
        alike = [key for key in known[2] if key[0] == turned]
        for key in alike[: len(alike) - _SHAPES_KEPT + 1]:
            del known[2][key]
        known[2][turned, shape] = _pack(weight.transpose(0, 1).flip(2, 3).contiguous() if turned else weight, shape, window)
    return known[2][turned, shape]


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x·Wᵀ + b for x (…, D), W (D', D), b (D') of float32 → (…, D'); it records no gradient."""
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return found


def _pack(weight: Tensor, shape: tuple[int, ...], window: _Window) -> Tensor:
    found: Tensor = torch.ops.mkldnn._reorder_convolution_weight(weight, *window, 1, list(shape))
    return found


def _convolve(x: Tensor, packed: Tensor, bias: Tensor | None, window: _Window) -> Tensor:
    found: Tensor = torch.ops.mkldnn._convolution_pointwise(x, packed, bias, *window, 1, "none", [], "")
    return found
