"""Samplers: one function per published algorithm, each for every family and path.

Every module of this package that defines `SAMPLERS` offers samplers; see `base` for the head they share.
"""

import importlib
import pkgutil

from core.registry import lookup
from pipelines.samplers.base import Model, Noise, OnStep, Run, Sampler
from pipelines.samplers.inversion import INVERTIBLE, invert

__all__ = ["INVERTIBLE", "SAMPLERS", "Model", "Noise", "OnStep", "Run", "Sampler", "get", "invert"]


def _all() -> dict[str, Sampler]:
    found: dict[str, Sampler] = {}
    for module in pkgutil.iter_modules(__path__, prefix=f"{__name__}."):
        for sampler in getattr(importlib.import_module(module.name), "SAMPLERS", ()):
            assert sampler.name not in found, f"{module.name} offers {sampler.name!r}, which another module already offers"
            found[sampler.name] = sampler
    return dict(sorted(found.items()))


SAMPLERS = _all()


def get(name: str) -> Sampler:
    """The sampler of that name.

    Raises:
        BadRequest: the name is unknown; the message names the nearest.
    """
    return lookup(SAMPLERS, name, "sampler")
