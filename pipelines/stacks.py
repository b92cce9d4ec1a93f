"""ControlNets that read several maps at once: which controls of a request belong to one, and the one map that theirs become.

Such a network's config says what it reads, as `limn_kinds` and `limn_channels`, in the order of its channels. In a request every map is a
control of its own, all with that network as their model: each is extracted, checked and scored as ever, and they act as one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.errors import Mismatch
from core.request import ControlUnit

SHARED = ("weight", "start", "end", "mode", "mask", "layer_weights")  # what controls that act as one must agree in


@dataclass(frozen=True)
class Stack:
    """What one network reads: maps of these kinds, each with 3 channels or 1."""

    kinds: tuple[str, ...]
    channels: tuple[int, ...]

    @staticmethod
    def of(config: Mapping[str, Any]) -> "Stack | None":
        """What a ControlNet's config says of it; None for one that reads a single map."""
        kinds, channels = config.get("limn_kinds"), config.get("limn_channels")
        return Stack(tuple(kinds), tuple(channels)) if kinds and channels else None

    def entries(self) -> dict[str, Any]:
        """The same for a config."""
        return {"limn_kinds": list(self.kinds), "limn_channels": list(self.channels)}


def together(units: Sequence[ControlUnit], stacks: Sequence[Stack | None], nets: Sequence[object]) -> list[tuple[int, ...]]:
    """The positions of the controls that act as one, in the order of their network's channels; others alone.

    stacks, nets: of each control, what its network reads and which network it is.

    Raises:
        Mismatch: a network that reads several maps has not all of them, has one twice, or its controls act differently.
    """
    found: list[tuple[int, ...]] = []
    for first, (stack, net) in enumerate(zip(stacks, nets, strict=True)):
        if stack is None:
            found.append((first,))
            continue
        mine = [place for place in range(len(units)) if nets[place] == net]
        if mine[0] != first:
            continue
        given = [units[place].kind for place in mine]
        about = f"control {first} ({units[first].kind}): its ControlNet reads {' and '.join(stack.kinds)} together"
        if sorted(given) != sorted(stack.kinds):
            raise Mismatch(f"{about}, but is given {' and '.join(given)}: give one control of each of its kinds, all with this model")
        for name in SHARED:
            if len({getattr(units[place], name) for place in mine}) > 1:
                raise Mismatch(f"{about}, so {name} acts on both: give it alike to controls {', '.join(map(str, mine))}")
        found.append(tuple(mine[given.index(kind)] for kind in stack.kinds))
    return found
