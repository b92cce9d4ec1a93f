"""Controls that change the base network itself while it is called, instead of adding to what it computes.

Such a control says in its configuration that it `limn_tunes`. It acts on a row as a whole: it has a weight and a window, but no region, no
levels and no halves of guidance. One acts at a time.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import combinations
from typing import Any, Protocol, runtime_checkable

from torch import nn

from core.errors import Mismatch
from pipelines.family import PreparedControl, Residuals


@runtime_checkable
class Tunes(Protocol):
    """A prepared control whose residuals are not for the family to add, but for itself to change the base network by."""

    def tuned(self, network: nn.Module, residuals: Residuals) -> AbstractContextManager[Residuals]:
        """While it is open the network computes as these residuals want it; gives those that are left for `Family.predict`."""
        ...


@contextmanager
def tuned(network: nn.Module, controls: Sequence[PreparedControl], residuals: Residuals | None) -> Iterator[Residuals | None]:
    """The base network as the controls of a step want it, and the residuals that are left for the family."""
    with ExitStack() as stack:
        for control in controls:
            if isinstance(control, Tunes):
                residuals = stack.enter_context(control.tuned(network, residuals or {}))
        yield residuals or None


def says_tunes(config: Mapping[str, Any]) -> bool:
    """Whether a control's configuration says that it changes the base network."""
    return config.get("limn_tunes") is True


def check_parts(mode: str, layer_weights: Sequence[float], *, masked: bool) -> None:
    """
    Raises:
        Mismatch: a control that changes the network is to act on a part of it alone.
    """
    about = "a Control LoRA changes the base model as a whole"
    if masked:
        raise Mismatch(f"{about} and knows no region: leave out its mask")
    if layer_weights:
        raise Mismatch(f"{about} and has no levels to weigh: leave out layer_weights, and give a weight")
    if mode != "balanced":
        raise Mismatch(f"{about}, so mode {mode!r} means nothing to it: leave the mode at 'balanced'")


def check_windows(windows: Sequence[tuple[float, float]]) -> None:
    """windows: start and end of every control that changes the network.

    Raises:
        Mismatch: two of them would act at once.
    """
    for (start, end), (other_start, other_end) in combinations(windows, 2):
        if max(start, other_start) < min(end, other_end):
            raise Mismatch(
                "two Control LoRAs cannot change the base model at once: give one of them, or windows (start, end) that do not overlap"
            )
