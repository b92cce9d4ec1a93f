"""A model without its weights: every network with its shapes, its configuration and its tokenizers, in no memory worth speaking of.

What can be asked of a family before it draws (does this ControlNet fit, does it take that schedule) can be asked of its outline too, so the
checks stand once. Weight files are looked at from header to last byte's place, not read.
"""

from typing import Any

from core.errors import BadModel
from pipelines.checkpoint import Checkpoint, Wrapped
from pipelines.engine import family_of, place_of
from pipelines.family import Family
from pipelines.layouts.part import outline
from pipelines.place import Place

_DAMAGE = (ValueError, TypeError, KeyError, AttributeError, RuntimeError, ZeroDivisionError, IndexError)


class Outlined(Wrapped):
    """A checkpoint whose networks come without weights."""

    def network(self, kind: Any, part: str, place: Place) -> Any:
        """The part's network with parameters on torch's meta device, in the place's numbers.

        Raises:
            BadModel: its configuration makes no network, or its files are missing or cut short.
        """
        self.checkpoint.files(part)
        config = self.checkpoint.config(part)
        try:
            network = outline(kind, config)
        except _DAMAGE as error:
            reason = " ".join(str(error).split())[:160]
            raise BadModel(
                f"configuration of {part!r} in {str(self.path)!r} makes no {kind.__name__} ({reason}): fetch the model again"
            ) from error
        for parameter in network.parameters():
            parameter.data = parameter.data.to(place.dtype)
        return network.eval().requires_grad_(False)


def outline_of(checkpoint: Checkpoint, place: Place) -> Family:
    """The family of a checkpoint, all but its weights.

    Raises:
        BadModel, Mismatch: as `Family.load`, as far as can be told without weights.
    """
    if hasattr(checkpoint, "measures"):
        checkpoint.measures = False  # what a single file's UNet predicts is not worth a forward here
    family = family_of(checkpoint)
    loaded = family.load(Outlined(checkpoint), place_of(family, place))
    loaded.checkpoint = checkpoint
    return loaded
