"""From a control unit's files to the map at generation size: decode, place, extract unless ready, pad; mistakes are noticed on the way."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import controls
from controls import estimators
from controls.fidelity import asks_network, estimator_kind
from controls.geometry import Placement, place
from core.control import Control, Image
from core.errors import BadImage, BadRequest
from core.files import sha256_file
from core.images import MAX_BYTES, MAX_PIXELS, decode, sha256_pixels
from core.request import ControlUnit, Frozen, Resize

MOST_ASPECT_CHANGE = 0.01  # a finished map whose proportions differ by more is said to be cut, squeezed or framed
_CHECKED_PX = 1024  # a larger file is looked at in every second, third, … pixel
_HEAD_BYTES = 64


@dataclass(frozen=True)
class Prepared:
    """A control at generation size.

    map_HWC: RGB uint8. mask_HW: uint8, 255 where the control acts; None for everywhere. The digests are SHA-256 in hex: of the source
    file's bytes, of the map's pixels, of the mask file's bytes. params: the settings the map was made with, the estimator's name filled in;
    empty for a finished map. warnings: sentences for the user. scale: how many pixels of what was extracted from make one of the map, along
    either side; 1 but for a `processor_px`.
    """

    map_HWC: Image
    mask_HW: NDArray[np.uint8] | None
    source_sha256: str
    map_sha256: str
    mask_sha256: str | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    scale: float = 1.0


def load_map(unit: ControlUnit, width: int, height: int, *, model: str = "toyland") -> Prepared:
    """Reads a unit's picture (or finished map) and mask, and brings both to exactly `width` × `height`.

    A picture is resized first and extracted then, so that edges are one pixel wide at the size that is drawn, unless the unit asks for
    another size to extract at; a finished map is resized as its kind asks (`Control.resample`); a file in the kind's own format is read by
    the kind. What `fill` leaves over is black in map and mask. model: what draws; it decides which estimator is the default.

    Raises:
        BadImage: a file is missing, is no picture, or is over a limit.
        BadRequest: unknown kind or setting, a kind whose estimator is not installed, or a `processor_px` that is too large.
    """
    control = controls.get(unit.kind)
    params = control.parse_params(unit.params)
    own, scale = takes_own_file(control, unit.image), 1.0
    if own:
        assert control.read_file is not None
        data = _bytes(unit.image)
        map_HWC = control.read_file(data, width, height, unit.resize, params)
        warnings = _file_mistakes(control, data, unit, (width, height))
    else:
        params = settled(control, params, model)
        source_HWC = decode(unit.image)
        placement = place(source_HWC.shape[1], source_HWC.shape[0], width, height, unit.resize)
        warnings = mistakes(control, source_HWC, unit, (width, height))
        if unit.ready:
            map_HWC = placement.pad(placement.resize(source_HWC, control.resample))
        else:
            scale = 1.0 if unit.processor_px is None else unit.processor_px / min(placement.inner)
            map_HWC = placement.pad(_extracted(control, params, source_HWC, placement, unit.processor_px))
    if not map_HWC.any():
        warnings.append(f"the {unit.kind} map of {unit.image.name} is empty (all black): nothing in it steers the picture")
    mask_HW = None if unit.mask is None else _load_mask(unit.mask, (width, height), unit.resize)
    if unit.mask is not None and mask_HW is not None:
        warnings += _mask_mistakes(unit, unit.mask, mask_HW)
    return Prepared(
        map_HWC=map_HWC,
        mask_HW=mask_HW,
        source_sha256=sha256_file(unit.image),
        map_sha256=sha256_pixels(map_HWC),
        mask_sha256=None if unit.mask is None else sha256_file(unit.mask),
        params={} if unit.ready and not own else params.model_dump(mode="json"),
        warnings=tuple(warnings),
        scale=scale,
    )


def settled(control: Control, params: Frozen, model: str) -> Frozen:
    """The settings with the estimator that goes with the model filled in, where the kind has one, asks it, and none is named."""
    if not asks_network(params) or getattr(params, "estimator", "") != "":
        return params
    return params.model_copy(update={"estimator": estimators.default(estimator_kind(control), model)})


def takes_own_file(control: Control, path: Path) -> bool:
    """Whether a file is in the kind's own format, so that nothing has to be extracted."""
    if control.own_file is None:
        return False
    try:
        with path.open("rb") as file:
            return control.own_file(file.read(_HEAD_BYTES))
    except OSError as error:
        raise BadImage(f"{str(path)!r} cannot be read ({error.strerror}): check the path") from None


def mistakes(control: Control, source_HWC: Image, unit: ControlUnit, size: tuple[int, int]) -> list[str]:
    """What looks wrong about a control's file, each as a sentence with the remedy."""
    step = max(1, max(source_HWC.shape[:2]) // _CHECKED_PX)
    seen_HWC, name, found = source_HWC[::step, ::step], unit.image.name, []
    if not unit.ready:
        if control.looks_finished is not None and control.looks_finished(seen_HWC):
            found.append(f"{name} looks like a finished {unit.kind} map: add 'ready' to use it without extracting again")
        return found
    if control.mistake is not None and (wrong := control.mistake(seen_HWC)):
        found.append(f"{name} {wrong}")
    return found + _other_aspect(unit, (source_HWC.shape[1], source_HWC.shape[0]), size)


def own_size(control: Control, path: Path) -> tuple[int, int] | None:
    """The width and height of a picture, or of a file in the kind's own format; None where that does not say.

    Raises:
        BadImage: the file is missing, is no picture, or is over a limit.
        BadRequest: it is another format than it seems.
    """
    if control.inspect_file is None or not takes_own_file(control, path):
        height, width = decode(path).shape[:2]
        return width, height
    return control.inspect_file(_bytes(path), 1, 1)[0]


def _file_mistakes(control: Control, data: bytes, unit: ControlUnit, size: tuple[int, int]) -> list[str]:
    """What looks wrong about a file in the kind's own format."""
    if control.inspect_file is None:
        return []
    own, wrong = control.inspect_file(data, *size, control.parse_params(unit.params))
    return [*([f"{unit.image.name} {wrong}"] if wrong else []), *([] if own is None else _other_aspect(unit, own, size))]


def _other_aspect(unit: ControlUnit, own: tuple[int, int], size: tuple[int, int]) -> list[str]:
    """What happens to a finished map of other proportions than the picture's. own: its width and height."""
    change = (own[0] / own[1]) / (size[0] / size[1])
    if max(change, 1 / change) <= 1 + MOST_ASPECT_CHANGE:
        return []
    what = {"just": "is squeezed", "crop": f"loses {1 - min(change, 1 / change):.0%}", "fill": "gets black margins"}[unit.resize]
    return [
        f"{unit.image.name} is {own[0]}x{own[1]} and {what} to fit {size[0]}x{size[1]}: draw at a size of the map's proportions, "
        "or choose another resize (just, crop, fill)"
    ]


def _extracted(control: Control, params: Frozen, source_HWC: Image, placement: Placement, processor_px: int | None) -> Image:
    """The map of the placed picture at its inner size, extracted there or at another resolution."""
    if processor_px is None:
        return control.extract(placement.resize(source_HWC, "area"), params)
    width, height = placement.inner
    scale = processor_px / min(width, height)
    inner = max(1, round(width * scale)), max(1, round(height * scale))
    if inner[0] * inner[1] > MAX_PIXELS:
        raise BadRequest(
            f"processor_px = {processor_px}: a picture of {width}x{height} would be looked at in {inner[0]}x{inner[1]}, over the limit of "
            f"{MAX_PIXELS / 1e6:.1f} Mpx: give a smaller processor_px"
        )
    work = Placement(placement.box, inner, (0, 0), 0, 0)
    map_HWC = control.extract(work.resize(source_HWC, "area"), params)
    return place(*work.inner, width, height, "just").resize(map_HWC, control.resample)


def _load_mask(path: Path, size: tuple[int, int], resize: Resize) -> NDArray[np.uint8]:
    """A mask by the same path as its map: uint8 (H, W), grey where the file's edge is soft or a pixel is cut."""
    source_HWC = decode(path)
    placement = place(source_HWC.shape[1], source_HWC.shape[0], *size, resize)
    mask_HW: NDArray[np.uint8] = np.rint(placement.pad(placement.resize(source_HWC, "area")).mean(axis=2)).astype(np.uint8)
    return mask_HW


def _mask_mistakes(unit: ControlUnit, path: Path, mask_HW: NDArray[np.uint8]) -> list[str]:
    """What looks wrong about a region mask: it is of one colour."""
    if not mask_HW.any():
        return [f"the mask {path.name} of {unit.image.name} is all black: {unit.kind} acts nowhere; it acts where a mask is white"]
    if (mask_HW == 255).all():
        return [f"the mask {path.name} of {unit.image.name} is all white, as its transparent parts are: {unit.kind} acts everywhere"]
    return []


def _bytes(path: Path) -> bytes:
    """A file's content, if it is not too large.

    Raises:
        BadImage: it is over the limit or cannot be read.
    """
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise BadImage(f"{str(path)!r} has {size / 2**20:.1f} MiB, over the limit of {MAX_BYTES // 2**20} MiB: make it smaller")
        return path.read_bytes()
    except OSError as error:
        raise BadImage(f"{str(path)!r} cannot be read ({error.strerror}): check the path") from None
