"""Repeated blocks compiled, where that is proven equal: one batch's loss and every gradient, compiled against eager.

An equal loss alone proves nothing: torch 2.13's compiled backward passes are silently wrong on a CPU in some shapes, with gradients of zero
behind a decoder's upsampler. Compiled code is used with gradients only, as it was proven; measuring and drawing stay eager.
"""

import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn

from training.randomness import Draws, key
from training.task import Task, WithBuckets

BLOCKS = ("TransformerBlock", "ResnetBlock2D")  # how the names of classes end
# Share of a gradient's norm that may differ. Rounding in another order is 1e-5 in fp32, and half precision rounds to 2⁻⁸ (bf16) at every
# operation; a wrong kernel's gradient is off by its own size.
LIMITS = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.1}
FLOOR = 1e-2  # of the root mean square of all gradients: below it a tensor's own are mostly rounding

Backend = str | Callable[..., Any]


class Regions:
    """The repeated blocks of some networks, which `compile` makes fast and `undo` leaves as they were."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        self.blocks = [module for network in networks for module in network.modules() if type(module).__name__.endswith(BLOCKS)]

    def compile(self, backend: Backend = "inductor") -> None:
        """From now on they run compiled wherever gradients are kept."""
        # blocks of one class share one function, which is compiled for every width
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 2 * len(self.blocks))
        for block in self.blocks:
            block.forward = _either(block.forward, torch.compile(block.forward, backend=backend, dynamic=False))

    def undo(self) -> None:
        """They run as ever."""
        for block in self.blocks:
            block.__dict__.pop("forward", None)


def _either(eager: Callable[..., Any], fast: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(eager)
    def forward(*args: Any, **kwargs: Any) -> Any:
        return (fast if torch.is_grad_enabled() else eager)(*args, **kwargs)

    return forward


Given = tuple[Any, Draws]
Heard = tuple[Tensor, dict[str, Tensor]]


def batches_of_each_size(task: Task, micro: int, seed: int, device: torch.device) -> list[Callable[[], Given]]:
    """A micro-batch of every size that the task has, with its draws, as often as it is called."""
    buckets = task.buckets() if isinstance(task, WithBuckets) else [0] * len(task)

    def given(bucket: int) -> Given:
        members = [index for index, own in enumerate(buckets) if own == bucket]
        batch = task.batch([members[row % len(members)] for row in range(micro)])
        torch.manual_seed(key(seed, "proof"))  # for modules that draw from torch's own generator
        return send_to_device(batch, device), Draws(seed, range(micro), device)

    return [functools.partial(given, bucket) for bucket in sorted(set(buckets))]


def compile_proven(
    whole: nn.Module, regions: Regions, batches: Sequence[Callable[[], Given]], *, limit: float, backend: Backend = "inductor"
) -> str | None:
    """Compiles, and undoes it if a gradient differs by more than `limit` of its norm; why it was undone, in words, or None.

    whole: called with a batch and its draws gives the loss first. Parameters that are zero speak during the proof, so that what lies
    before them has gradients.
    """
    if not regions.blocks:
        return "there are no repeated blocks"
    named = {name.removeprefix("parts."): parameter for name, parameter in whole.named_parameters() if parameter.requires_grad}
    problem: str | None = None
    with _speaking(list(named.values())), warnings.catch_warnings():
        wanted = [_heard(whole, named, *given()) for given in batches]
        regions.compile(backend)
        try:
            warnings.simplefilter("ignore", UserWarning)  # the compiler looks at gradients that are not kept
            for one, given in zip(wanted, batches, strict=True):
                problem = problem or _difference(one, _heard(whole, named, *given()), limit)
        except torch._dynamo.exc.TorchDynamoException as error:
            problem = f"the compiler failed ({type(error).__name__}: {' '.join(str(error).split())[:160]})"
    if problem:
        regions.undo()
    return problem


@contextmanager
def _speaking(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Parameters that are all zero hold small random numbers until the block is left."""
    silent = [parameter for parameter in parameters if not parameter.any()]
    generator = torch.Generator().manual_seed(0)
    try:
        with torch.no_grad():
            for parameter in silent:
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
        yield
    finally:
        with torch.no_grad():
            for parameter in silent:
                parameter.zero_()


def _heard(whole: nn.Module, named: Mapping[str, nn.Parameter], batch: Any, draws: Draws) -> Heard:
    """The loss, and its gradient for every parameter."""
    loss: Tensor = whole(batch, draws)[0]
    gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return loss.detach(), {name: gradient for name, gradient in zip(named, gradients, strict=True) if gradient is not None}


def _difference(wanted: Heard, found: Heard, limit: float) -> str | None:
    """The first thing that differs, in words."""
    floor = FLOOR * torch.stack([gradient.float().square().mean() for gradient in wanted[1].values()]).mean().sqrt()
    values = {"the loss": (wanted[0], found[0])}
    values |= {f"the gradient of {name}": (gradient, found[1].get(name, torch.zeros(()))) for name, gradient in wanted[1].items()}
    for name, (one, other) in values.items():
        size = one.float().norm() + (floor * one.numel() ** 0.5 if one.ndim else 0.0)
        share = float((one.float() - other.float()).norm() / size)
        if not share <= limit:
            return f"{name} differs by {share:.1e} of its size (at most {limit:g})"
    return None
