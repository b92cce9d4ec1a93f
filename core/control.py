"""The contract of one kind of control: what `controls/<kind>.py` defines as `CONTROL`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.request import Frozen

Image = NDArray[np.uint8]  # RGB, HWC


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


@dataclass(frozen=True)
class Control:
    """One condition kind. Source of the contract: docs/architecture.md."""

    name: str
    params: type[Frozen]
    extract: Callable[[Image, Any], Image]
    compare: Callable[[Image, Image], Score]
    weights: Mapping[str, Weights] = field(default_factory=dict)
    resample: str = "area"  # "nearest" for maps whose values are labels or thin lines
