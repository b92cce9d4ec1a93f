"""`limn dataset check`: everything that is wrong with a dataset, said at once and before a day is spent on it, and a sheet to look at."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from core.control import Image
from core.errors import BadImage, BadRequest, LimnError
from core.images import sha256_pixels
from core.sheet import contact_sheet
from training.data import ASPECT_TOLERANCE, UNCLEAR, Loader, read_pairs
from training.hub import located
from training.mirror import is_mirrorable
from training.pairs import DataConfig, Pair, load

SHOWN = 12  # pairs on the sheet
_PARTICULAR = re.compile(r"'[^']*'|\S*/\S*|\d+")  # of one place: what is quoted, paths, numbers

Progress = Callable[[int, int], None]


@dataclass
class Findings:
    """What a check found: how many pairs were read, and every mistake with the places it was met at."""

    pairs: int = 0
    mistakes: dict[str, list[str]] = field(default_factory=dict)
    warnings: dict[str, list[str]] = field(default_factory=dict)
    _first: dict[str, str] = field(default_factory=dict, repr=False)

    def mistake(self, what: str, where: object) -> None:
        """Notes something that training would stop at, or learn wrongly from."""
        self.mistakes.setdefault(what, []).append(str(where))

    def error(self, error: LimnError) -> None:
        """Notes what reading stopped at; errors that differ in names and numbers alone are one kind, shown by the first of them."""
        message = " ".join(str(error).split())
        self.mistake(self._first.setdefault(_PARTICULAR.sub("", message), message), "")

    def warn(self, what: str, where: object) -> None:
        """Notes something that may be meant."""
        self.warnings.setdefault(what, []).append(str(where))

    def lines(self) -> Iterator[str]:
        """One line for each kind of mistake, the number of times and the first place."""
        for title, found in (("mistake", self.mistakes), ("warning", self.warnings)):
            for what, places in found.items():
                more = f"; and {len(places) - 1} more like it" if len(places) > 1 else ""
                yield f"{title}: {what}" + (f": {len(places)} of {self.pairs}, the first is {places[0]}" if places[0] else more)


def check(config: DataConfig, *, base: str = "toyland", on_progress: Progress | None = None) -> tuple[Findings, Image | None]:
    """Looks at every pair of a dataset: what is wrong, and a sheet of some pairs, picture beside condition.

    base: what it is for, as in a training's settings: it decides by which estimator conditions are extracted.

    Raises:
        BadRequest: there is no dataset to look at.
    """
    config = config.model_copy(update={"folder": located(config.folder)})
    found = Findings()
    pairs = read_pairs(config.model_copy(update={"flip": False, "crops": 0}), found.error)
    loader = Loader(config, base=base)
    found.pairs = len(pairs)
    seen: dict[str, Pair] = {}
    whole: list[Pair] = []
    for number, pair in enumerate(pairs):
        if on_progress:
            on_progress(number + 1, len(pairs))
        if not pair.caption.strip():
            found.warn("empty caption", pair.picture)
        try:
            picture_HWC = load(pair.picture)
            maps = [load(condition) for condition in pair.conditions]
            mask_HWC = None if pair.mask is None else load(pair.mask)
        except BadImage as error:
            found.error(BadImage(f"a picture that cannot be decoded ({error})"))
            continue
        whole.append(pair)
        before = seen.setdefault(sha256_pixels(picture_HWC), pair)
        if before is not pair:
            same = "and caption" if before.caption == pair.caption else "with another caption"
            found.warn(f"a duplicate: the same picture {same}", f"{pair.picture}, as {before.picture}")
        if min(picture_HWC.shape[:2]) < min(config.width, config.height):
            found.warn(f"a picture smaller than {config.width}x{config.height}, which is enlarged", pair.picture)
        for control, source, map_HWC in zip(loader.controls, pair.conditions, maps, strict=False):  # none where they are extracted
            for what in _wrong_map(picture_HWC, map_HWC):
                found.mistake(what, source)
            if not np.ptp(map_HWC):  # which may be meant: a picture that nobody is in has an empty pose
                found.warn(f"an empty condition (all {'black' if not map_HWC.any() else 'of one colour'})", source)
            if config.flip and control is not None and not is_mirrorable(map_HWC, control.name):
                found.mistake(f"a condition that {UNCLEAR}", source)
            if control is not None and control.mistake is not None and (wrong := control.mistake(map_HWC)):
                found.mistake(f"a {control.name} map that {wrong}", source)
        if mask_HWC is not None:
            for what in _wrong_mask(picture_HWC, mask_HWC):
                found.mistake(what, pair.mask)
    try:
        return found, _sheet(whole, loader, config) if whole else None
    except LimnError as error:  # conditions that cannot be extracted
        found.error(error)
        return found, None


def _wrong_map(picture_HWC: Image, map_HWC: Image) -> Iterator[str]:
    yield from _wrong_shape(picture_HWC, map_HWC, "condition")
    if np.ptp(map_HWC) and map_HWC.max() <= 1:
        yield "a condition in the range 0 to 1, which is nearly black: save it in 0 to 255"
    if picture_HWC.shape == map_HWC.shape and np.array_equal(picture_HWC, map_HWC):
        yield "a condition equal to its picture"


def _wrong_mask(picture_HWC: Image, mask_HWC: Image) -> Iterator[str]:
    yield from _wrong_shape(picture_HWC, mask_HWC, "mask")
    if not mask_HWC.any():
        yield "an empty mask (all black), with which nothing of the picture counts"


def _wrong_shape(picture_HWC: Image, other_HWC: Image, what: str) -> Iterator[str]:
    (high, wide), (other_high, other_wide) = picture_HWC.shape[:2], other_HWC.shape[:2]
    if abs(wide / high / (other_wide / other_high) - 1) > ASPECT_TOLERANCE:
        yield f"a {what} of other proportions than its picture ({other_wide}x{other_high} for {wide}x{high}), which is cropped differently"


def _sheet(pairs: Sequence[Pair], loader: Loader, config: DataConfig) -> Image:
    chosen = [pairs[i] for i in np.unique(np.linspace(0, len(pairs) - 1, min(SHOWN, len(pairs))).astype(int))]
    strips = [[loader.picture(pair), *loader.maps(pair)] for pair in chosen]
    title = f"{config.folder.name}: {config.title}, {len(pairs)} pairs"
    return contact_sheet(strips, [pair.caption or "(no caption)" for pair in chosen], columns=3, cell_px=192, title=title)


def refuse(found: Findings) -> None:
    """Raises BadRequest if there are mistakes."""
    if found.mistakes:
        count = sum(len(places) for places in found.mistakes.values())
        raise BadRequest(f"the dataset has {count} mistakes of {len(found.mistakes)} kinds: mend them, or leave those pairs out")
