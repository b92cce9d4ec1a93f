"""The contract of one kind of control: what `controls/<kind>.py` defines as `CONTROL`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from core.errors import BadRequest, unknown_name
from core.request import Frozen, Resize, explain

Image = NDArray[np.uint8]  # RGB, HWC
Resample = Literal["area", "nearest", "lines"]


@dataclass(frozen=True)
class Score:
    """How well a picture obeys its control: `value` runs from 0 (worst) to 1 (best); `raw` is the metric in its own unit."""

    value: float
    metric: str
    raw: float
    unit: str


@dataclass(frozen=True)
class Weights:
    """A published ControlNet for one kind and one family."""

    repo: str
    revision: str


class Compare(Protocol):
    """The map that was wanted, the picture that was drawn and the extractor's settings → a score, or None where it cannot be measured."""

    def __call__(self, wanted_HWC: Image, got_HWC: Image, params: Any = None) -> Score | None: ...


class ReadFile(Protocol):
    """The kind's own file format (OpenPose's JSON) → a finished map of exactly `width` × `height`."""

    def __call__(self, data: bytes, width: int, height: int, resize: Resize) -> Image: ...


def always() -> bool:
    """The extractor needs nothing that could be missing."""
    return True


@dataclass(frozen=True)
class Control:
    """One condition kind.

    `extract` makes a map from a picture; `compare` scores a picture against a map, `compare_maps` a map against a map.
    `available` says whether `extract` and `compare` can work on this machine: a learned extractor needs its estimator.
    `resample` is how a finished map is resized: "area" for continuous values, "nearest" for labels and colours that mean something,
    "lines" for white one-pixel lines on black, which must outlive shrinking. `looks_finished` tells such a map from a picture, where
    that is possible. Source of the contract: docs/architecture.md.
    """

    name: str
    params: type[Frozen]
    extract: Callable[[Image, Any], Image]
    compare: Compare
    compare_maps: Callable[[Image, Image], Score | None]
    weights: Mapping[str, Weights] = field(default_factory=dict)
    resample: Resample = "area"
    available: Callable[[], bool] = always
    looks_finished: Callable[[Image], bool] | None = None
    read_file: ReadFile | None = None

    def parse_params(self, values: Mapping[str, Any]) -> Frozen:
        """The extractor's settings from plain values; what is not given has its default.

        Raises:
            BadRequest: an unknown name (the nearest is named), or a value out of range.
        """
        for name in values:
            if name not in self.params.model_fields:
                raise unknown_name(f"{self.name} setting", name, self.params.model_fields)
        try:
            return self.params.model_validate(dict(values))
        except ValidationError as error:
            raise BadRequest(f"{self.name}: {explain(error)}") from None
