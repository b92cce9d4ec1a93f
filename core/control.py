"""The contract of one kind of control: what `controls/<kind>.py` defines as `CONTROL`."""

import sys
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
    """How well a picture obeys its control: `value` runs from 0 (worst) to 1 (best); `raw` is the metric in its own unit.

    parts: what the metric is made of or what else was measured (precision, recall, …), by name.
    """

    value: float
    metric: str
    raw: float
    unit: str
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Weights:
    """A published ControlNet for one kind and one family. revision: the commit it was tried at; None for the newest."""

    repo: str
    revision: str | None = None


class Compare(Protocol):
    """The map that was wanted, the picture that was drawn and the extractor's settings → a score, or None where it cannot be measured."""

    def __call__(self, wanted_HWC: Image, got_HWC: Image, params: Any = None) -> Score | None: ...


class ReadFile(Protocol):
    """The kind's own file format (OpenPose's JSON, depth in 16 bits) → a finished map of exactly `width` × `height`."""

    def __call__(self, data: bytes, width: int, height: int, resize: Resize, params: Any = None) -> Image: ...


class InspectFile(Protocol):
    """The kind's own file, the size that is drawn and the settings → the file's (width, height), and what is wrong with it, as `mistake`.

    The size is None where the file does not say.
    """

    def __call__(self, data: bytes, width: int, height: int, params: Any = None) -> tuple[tuple[int, int] | None, str | None]: ...


def always(params: Any = None) -> bool:
    """The extractor needs nothing that could be missing."""
    return True


@dataclass(frozen=True)
class ByExtraction:
    """The usual `compare`: extract from the picture with the same settings (by default those of `settings`) and compare the two maps."""

    settings: type[Frozen]
    extract: Callable[[Image, Any], Image]
    compare_maps: Callable[[Image, Image], Score | None]

    def __call__(self, wanted_HWC: Image, got_HWC: Image, params: Any = None) -> Score | None:
        return self.compare_maps(wanted_HWC, self.extract(got_HWC, self.settings.model_validate({}) if params is None else params))


@dataclass(frozen=True)
class Control:
    """One condition kind.

    `extract` makes a map from a picture; `compare` scores a picture against a map, `compare_maps` a map against a map.
    `available` says whether `extract` and `compare` can work on this machine, with given settings or (without) the default ones: a learned
    extractor needs its estimator.
    `resample` is how a finished map is resized: "area" for continuous values, "nearest" for labels and colours that mean something,
    "lines" for white one-pixel lines on black, which must outlive shrinking. `looks_finished` tells such a map from a picture, where
    that is possible; `mistake` says what is wrong with a map that is said to be finished, and the remedy, in a sentence without its
    subject ("looks like …"), or None. `own_file` knows the kind's own file format by a file's first 64 bytes, `read_file` reads it,
    `inspect_file` looks for mistakes in it.
    `marks` says that the map is something drawn on black, measured with its surroundings: outside a region it is blacked out, where of
    other maps only the region's own pixels are compared; lines are always marks.
    `finish` makes the drawn picture keep what the control promises of its pixels: (picture, map, settings) → picture.
    Source of the contract: docs/architecture.md.
    """

    name: str
    params: type[Frozen]
    extract: Callable[[Image, Any], Image]
    compare: Compare
    compare_maps: Callable[[Image, Image], Score | None]
    weights: Mapping[str, Weights] = field(default_factory=dict)
    resample: Resample = "area"
    available: Callable[..., bool] = always
    looks_finished: Callable[[Image], bool] | None = None
    mistake: Callable[[Image], str | None] | None = None
    own_file: Callable[[bytes], bool] | None = None
    read_file: ReadFile | None = None
    inspect_file: InspectFile | None = None
    marks: bool = False
    finish: Callable[[Image, Image, Any], Image] | None = None

    @property
    def summary(self) -> str:
        """What the kind is, in one sentence: the first of its module's docstring."""
        words = " ".join((sys.modules[self.extract.__module__].__doc__ or "").split("\n\n", 1)[0].split())
        return words.partition(". ")[0].rstrip(".")

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
