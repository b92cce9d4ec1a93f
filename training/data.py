"""Training pairs, read and brought to the training size; a picture and its condition go through the placement of rendering.

The layouts are `training/formats`' business. What a condition is decides how it is resized and what mirroring does to it.
"""

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

import controls
from controls.geometry import Placement, place
from controls.prepare import settled
from core.control import Control, Image, Resample
from core.errors import BadImage, BadRequest, Mismatch, unknown_name
from core.request import Frozen
from core.stack import stacked
from pipelines.stacks import Stack
from training import formats
from training.mirror import is_mirrorable, mirrored_map
from training.pairs import DataConfig as DataConfig
from training.pairs import Pair as Pair
from training.pairs import Report, Source, load
from training.randomness import key

ASPECT_TOLERANCE = 0.02  # a pixel of rounding in 64
UNCLEAR = (
    "is a pose that is not in OpenPose's very colours, so data.flip cannot swap left and right: save it as PNG, or leave out data.flip"
)

Size = tuple[int, int]  # width, height


def read_pairs(config: DataConfig, report: Report | None = None) -> list[Pair]:
    """The pairs of a dataset, crop after crop, those that are mirrored after the others.

    report: told of everything wrong, and reading goes on; without it the first mistake is raised.

    Raises:
        BadRequest: there is no dataset there, a row cannot be read, a column does not exist, files are missing, or there are no rows.
    """
    layout = formats.recognise(config.folder) if config.format == "auto" else formats.get(config.format)
    told = report or _raise
    pairs = layout.read(config, told)
    if not pairs:
        told(BadRequest(f"dataset {str(config.folder)!r} has no rows: nothing to train on ({layout.name}: {layout.example})"))
    files = [source for pair in pairs for source in pair.sources if isinstance(source, Path)]
    missing = [path for path in files if not _is_file(path)]
    if missing:
        told(
            BadRequest(
                f"{len(missing)} of the {len(files)} files that dataset {str(config.folder)!r} names are missing, "
                f"the first is {str(missing[0])!r}"
            )
        )
        gone = set(missing)
        pairs = [pair for pair in pairs if gone.isdisjoint(pair.sources)]
    if config.crops:
        pairs = [replace(pair, crop=crop) for crop in range(config.crops) for pair in pairs]
    return pairs + ([replace(pair, mirrored=True) for pair in pairs] if config.flip else [])


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name longer than the system takes
        return False


def _raise(error: BadRequest) -> None:
    raise error


def controls_of(config: DataConfig) -> tuple[Control | None, ...]:
    """The kind of control that each condition is, where that is known.

    Raises:
        BadRequest: a kind is named, or needed to extract or to stack, and there is none of the name.
    """
    needed = bool(config.kind or config.grey) or config.extract or len(config.conditions) > 1
    return tuple(controls.get(kind) if needed or kind in controls.names() else None for kind in config.kinds)


class Loader:
    """Decodes pairs and brings them to the training size. sizes: of the pictures that are not trained at the config's own.

    base: what is trained for, as settings name it; it decides which estimator extracts by default, as in rendering. controls: the kind of
    each condition, None where it is none of ours. Conditions of several kinds are stacked, channel after channel.
    """

    def __init__(self, config: DataConfig, sizes: Mapping[Source, Size] | None = None, base: str = "") -> None:
        self.config, self.base = config, base
        self.controls = controls_of(config)
        self.width, self.height = config.width, config.height
        self.sizes = dict(sizes or {})
        self.channels = tuple(1 if name in config.grey else 3 for name in config.conditions)
        if (config.params or config.vary) and not config.extract:
            raise BadRequest("data.params and data.vary are an extractor's settings: set data.extract to make conditions from the pictures")
        if config.extract:
            for control, ends in itertools.product(self.controls, itertools.product(*config.vary.values())):
                assert control is not None
                self._params(control, config.params | self._as_declared(control, dict(zip(config.vary, ends, strict=True))))

    @property
    def control(self) -> Control | None:
        """The kind of the first condition."""
        return self.controls[0]

    @property
    def kind(self) -> str:
        """What is known of the conditions, the kinds of several joined by +; rendering calls them so too."""
        return "+".join(control.name for control in self.controls if control is not None)

    def told(self) -> dict[str, Any]:
        """What a ControlNet's config says of the conditions: the kind, or the kinds and channels of several; nothing of unknown ones."""
        kinds = tuple(control.name for control in self.controls if control is not None)
        if self.channels == (3,):
            return {"limn_kind": kinds[0] if kinds else None}
        return {"limn_kind": None, **Stack(kinds, self.channels).entries()}

    @property
    def stacking(self) -> dict[str, tuple[int, ...]]:
        """The channels of each condition, where there are several or one is grey; for names of caches."""
        return {} if self.channels == (3,) else {"channels": self.channels}

    @property
    def resample(self) -> str:
        """How the conditions are resized."""
        return "+".join(self._resample(control) for control in self.controls)

    def size(self, pair: Pair) -> Size:
        """The width and height that a pair is trained at."""
        return self.sizes.get(pair.picture, (self.width, self.height))

    def picture(self, pair: Pair) -> Image:
        """The picture, RGB uint8 (height, width, 3). Raises BadImage if it cannot be decoded."""
        placed_HWC = self._placed(pair.picture, pair, "area")
        return np.ascontiguousarray(placed_HWC[:, ::-1]) if pair.mirrored else placed_HWC

    def condition(self, pair: Pair) -> Image:
        """The condition, uint8 (height, width, C): RGB, or all that are stacked. Raises BadImage if one cannot be decoded."""
        return stacked(self.maps(pair), self.channels)

    def maps(self, pair: Pair) -> list[Image]:
        """Each condition, RGB uint8 (height, width, 3). Raises BadImage if one cannot be decoded."""
        maps = []
        for number, control in enumerate(self.controls):
            if not pair.conditions:
                assert control is not None
                map_HWC = control.extract(self._placed(pair.picture, pair, "area"), self.params(pair, number))
            else:
                map_HWC = self._placed(pair.conditions[number], pair, self._resample(control))
            maps.append(mirrored_map(map_HWC, control.name if control else "") if pair.mirrored else map_HWC)
        return maps

    def mask(self, pair: Pair) -> Image:
        """Where the loss counts, uint8 (height, width, 3), white there. Raises BadImage if it cannot be decoded."""
        assert pair.mask is not None
        mask_HWC = self._placed(pair.mask, pair, "area")
        return np.ascontiguousarray(mask_HWC[:, ::-1]) if pair.mirrored else mask_HWC

    def params(self, pair: Pair, number: int = 0) -> Frozen:
        """An extractor's settings for a pair: those that vary are drawn from its picture's name, so that they never change."""
        control = self.controls[number]
        assert control is not None
        name, drawn = self._name(pair.picture), {}
        for setting, (low, high) in self.config.vary.items():
            drawn[setting] = low + (high - low) * (key(name, setting) / 2**64)
        return self._params(control, self.config.params | self._as_declared(control, drawn))

    def recipe(self, pair: Pair) -> str:
        """How the pair's conditions are made, as a short name: equal recipes make equal conditions of equal files."""
        if pair.conditions:
            return self.resample
        made = "".join(self.params(pair, number).model_dump_json() for number in range(len(self.controls)))
        return hashlib.sha256(made.encode()).hexdigest()[:16]

    def view(self, pair: Pair) -> str:
        """What of the picture the pair shows, as the end of a cache key; empty for the middle as it is."""
        shown = "" if pair.crop is None else "-" + ",".join(f"{share:.6f}" for share in self._drawn(pair))
        return shown + "-mirrored" * pair.mirrored

    def placement(self, pair: Pair, width: int, height: int) -> Placement:
        """How a picture, condition or mask of this size comes to lie in what is trained on: one geometry for all that a pair has."""
        size = self.size(pair)
        middle = place(width, height, *size, "crop")
        if pair.crop is None:
            return middle
        left, top, right, bottom = middle.box
        zoom, across, down = self._drawn(pair)
        wide, high = (right - left) / zoom, (bottom - top) / zoom
        x, y = (width - wide) * across, (height - high) * down
        return replace(middle, box=(x, y, min(x + wide, float(width)), min(y + high, float(height))))

    def check(self, pairs: Sequence[Pair]) -> None:
        """Whether conditions have their pictures' proportions, so that one crop fits both; a few pairs are looked at.

        Raises:
            Mismatch: one has not.
        """
        for pair in pairs[:: max(1, len(pairs) // 8)]:
            self.check_pair(pair)

    def check_pair(self, pair: Pair) -> None:
        """Whether all that a pair has can be decoded and has one shape.

        Raises:
            BadImage: something cannot be decoded, or a mask hides everything, or a map that is to be mirrored cannot be.
            Mismatch: a condition or mask has other proportions than its picture.
        """
        for wrong in other_proportions(pair):
            raise Mismatch(wrong)
        for control, source in zip(self.controls, pair.conditions, strict=False) if self.config.flip else ():  # none if extracted
            if control is not None and not is_mirrorable(load(source), control.name):
                raise BadImage(f"{str(source)!r} {UNCLEAR}")
        if pair.mask is not None and not load(pair.mask).any():
            raise BadImage(f"mask {str(pair.mask)!r} is all black: nothing of its picture would count; leave the pair out")

    def _drawn(self, pair: Pair) -> tuple[float, float, float]:
        """A random crop's zoom and its place across and down, 0 to 1, drawn from its picture's name and its number."""
        name = self._name(pair.picture)
        zoom, across, down = (key(name, pair.crop, what) / 2**64 for what in ("zoom", "across", "down"))
        return self.config.zoom**zoom, across, down

    def _resample(self, control: Control | None) -> Resample:
        automatic: Resample = control.resample if control else "area"
        return automatic if self.config.resample == "auto" else self.config.resample

    def _params(self, control: Control, values: Mapping[str, Any]) -> Frozen:
        if strange := [name for name in self.config.vary if name not in control.params.model_fields]:
            raise unknown_name(f"{control.name} setting", strange[0], control.params.model_fields)
        return settled(control, control.parse_params(values), self.base)

    def _as_declared(self, control: Control, values: Mapping[str, float]) -> dict[str, Any]:
        """Values of settings, rounded where they are whole numbers. All ends of what varies are tried before anything is extracted."""
        found: dict[str, Any] = dict(values)
        for setting in values.keys() & control.params.model_fields.keys():
            declared = control.params.model_fields[setting].annotation
            kinds = get_args(declared)
            if (int in kinds or not kinds) and declared is not float:
                found[setting] = round(values[setting])
        return found

    def _name(self, source: Source) -> str:
        """A source without the machine's path to it."""
        path = source if isinstance(source, Path) else source.path
        home = self.config.folder if self.config.folder.is_dir() else self.config.folder.parent
        short = path.relative_to(home).as_posix() if path.is_relative_to(home) else path.name
        return str(source).replace(str(path), short, 1)

    def _placed(self, source: Source, pair: Pair, resample: Resample) -> Image:
        image_HWC = load(source)
        placement = self.placement(pair, image_HWC.shape[1], image_HWC.shape[0])
        return placement.pad(placement.resize(image_HWC, resample))


def other_proportions(pair: Pair) -> Iterator[str]:
    """What is wrong with each condition or mask that would be cropped otherwise than its picture."""
    if len(pair.sources) == 1:
        return
    high, wide, _ = load(pair.picture).shape
    for source in pair.sources[1:]:
        other_high, other_wide, _ = load(source).shape
        if abs(wide / high / (other_wide / other_high) - 1) > ASPECT_TOLERANCE:
            yield (
                f"{str(pair.picture)!r} is {wide}x{high} and its {'mask' if source == pair.mask else 'condition'} {str(source)!r} "
                f"{other_wide}x{other_high}: both need the same proportions, or they would be cropped differently"
            )
