"""Training pairs, read and brought to the training size; a picture and its condition go through the placement of rendering.

The layouts are `training/formats`' business. What a condition is decides how it is resized and what mirroring does to it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

import controls
from controls.geometry import Placement, place
from controls.prepare import settled
from core.control import Control, Image
from core.errors import BadRequest, Mismatch, unknown_name
from core.request import Frozen
from training import formats
from training.mirror import mirrored_map
from training.pairs import DataConfig as DataConfig
from training.pairs import Pair as Pair
from training.pairs import Report, Source, load
from training.randomness import key

ASPECT_TOLERANCE = 0.02  # a pixel of rounding in 64

Size = tuple[int, int]  # width, height


def read_pairs(config: DataConfig, report: Report | None = None) -> list[Pair]:
    """The pairs of a dataset, those that are mirrored after the others.

    report: told of everything wrong, and reading goes on; without it the first mistake is raised.

    Raises:
        BadRequest: there is no dataset there, a row cannot be read, a column does not exist, files are missing, or there are no rows.
    """
    layout = formats.recognise(config.folder) if config.format == "auto" else formats.get(config.format)
    told = report or _raise
    pairs = layout.read(config, told)
    if not pairs:
        told(BadRequest(f"dataset {str(config.folder)!r} has no rows: nothing to train on ({layout.name}: {layout.example})"))
    files = [source for pair in pairs for source in (pair.picture, pair.condition) if isinstance(source, Path)]
    missing = [path for path in files if not path.is_file()]
    if missing:
        told(
            BadRequest(
                f"{len(missing)} of the {len(files)} files that dataset {str(config.folder)!r} names are missing, "
                f"the first is {str(missing[0])!r}"
            )
        )
        gone = set(missing)
        pairs = [pair for pair in pairs if pair.picture not in gone and pair.condition not in gone]
    mirrored = [Pair(pair.picture, pair.condition, pair.caption, mirrored=True) for pair in pairs] if config.flip else []
    return pairs + mirrored


def _raise(error: BadRequest) -> None:
    raise error


def control_of(config: DataConfig) -> Control | None:
    """The kind of control that the conditions are, where that is known.

    Raises:
        BadRequest: a kind is named, or needed to extract, and there is none of the name.
    """
    if config.kind or config.extract:
        return controls.get(config.kind or config.condition)
    return controls.get(config.condition) if config.condition in controls.names() else None


class Loader:
    """Decodes pairs and brings them to the training size. sizes: of the pictures that are not trained at the config's own."""

    def __init__(self, config: DataConfig, sizes: Mapping[Source, Size] | None = None) -> None:
        self.config = config
        self.control = control_of(config)
        self.width, self.height = config.width, config.height
        self.sizes = dict(sizes or {})
        automatic = self.control.resample if self.control else "area"
        self.resample = automatic if config.resample == "auto" else config.resample
        if (config.params or config.vary) and not config.extract:
            raise BadRequest("data.params and data.vary are an extractor's settings: set data.extract to make conditions from the pictures")
        if config.extract:
            assert self.control is not None
            self._params(self.control, config.params | {name: ends[0] for name, ends in config.vary.items()})  # refused now, not later

    def size(self, pair: Pair) -> Size:
        """The width and height that a pair is trained at."""
        return self.sizes.get(pair.picture, (self.width, self.height))

    def picture(self, pair: Pair) -> Image:
        """The picture, RGB uint8 (height, width, 3). Raises BadImage if it cannot be decoded."""
        placed_HWC = self._placed(pair.picture, pair, "area")
        return np.ascontiguousarray(placed_HWC[:, ::-1]) if pair.mirrored else placed_HWC

    def condition(self, pair: Pair) -> Image:
        """The condition, RGB uint8 (height, width, 3). Raises BadImage if it cannot be decoded."""
        if pair.condition is None:
            assert self.control is not None
            map_HWC = self.control.extract(self._placed(pair.picture, pair, "area"), self.params(pair))
        else:
            map_HWC = self._placed(pair.condition, pair, self.resample)
        return mirrored_map(map_HWC, self.control.name if self.control else "") if pair.mirrored else map_HWC

    def params(self, pair: Pair) -> Frozen:
        """The extractor's settings for a pair: those that vary are drawn from its picture's name, so that they never change."""
        assert self.control is not None
        name, drawn = self._name(pair.picture), {}
        for setting, (low, high) in self.config.vary.items():
            value = low + (high - low) * (key(name, setting) / 2**64)
            whole = int in (kinds := get_args(self.control.params.model_fields[setting].annotation)) or not kinds
            integer = whole and self.control.params.model_fields[setting].annotation is not float
            drawn[setting] = round(value) if integer else value
        return self._params(self.control, self.config.params | drawn)

    def check(self, pairs: Sequence[Pair]) -> None:
        """Whether conditions have their pictures' proportions, so that one crop fits both; a few pairs are looked at.

        Raises:
            Mismatch: one has not.
        """
        for pair in pairs[:: max(1, len(pairs) // 8)]:
            if wrong := other_proportions(pair):
                raise Mismatch(wrong)

    def _params(self, control: Control, values: Mapping[str, Any]) -> Frozen:
        if strange := [name for name in self.config.vary if name not in control.params.model_fields]:
            raise unknown_name(f"{control.name} setting", strange[0], control.params.model_fields)
        return settled(control, control.parse_params(values), "")

    def _name(self, source: Source) -> str:
        """A source without the machine's path to it."""
        path = source if isinstance(source, Path) else source.path
        home = self.config.folder if self.config.folder.is_dir() else self.config.folder.parent
        short = path.relative_to(home).as_posix() if path.is_relative_to(home) else path.name
        return str(source).replace(str(path), short, 1)

    def _placed(self, source: Source, pair: Pair, resample: Literal["area", "nearest", "lines"]) -> Image:
        image_HWC = load(source)
        placement: Placement = place(image_HWC.shape[1], image_HWC.shape[0], *self.size(pair), "crop")
        return placement.pad(placement.resize(image_HWC, resample))


def other_proportions(pair: Pair) -> str | None:
    """What is wrong with a condition that would be cropped otherwise than its picture."""
    if pair.condition is None:
        return None
    (high, wide, _), (condition_high, condition_wide, _) = load(pair.picture).shape, load(pair.condition).shape
    if abs(wide / high / (condition_wide / condition_high) - 1) <= ASPECT_TOLERANCE:
        return None
    return (
        f"{str(pair.picture)!r} is {wide}x{high} and its condition {str(pair.condition)!r} {condition_wide}x{condition_high}: "
        "both need the same proportions, or they would be cropped differently"
    )
