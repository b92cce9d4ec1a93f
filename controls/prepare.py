"""From a control unit's files to the map at generation size: decode, place, extract unless ready, pad."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import controls
from controls.geometry import place
from core.control import Control, Image, ReadFile
from core.errors import BadImage
from core.files import sha256_file
from core.images import MAX_BYTES, decode, sha256_pixels
from core.request import ControlUnit, Resize


@dataclass(frozen=True)
class Prepared:
    """A control at generation size.

    map_HWC: RGB uint8. mask_HW: uint8, 255 where the control acts; None for everywhere. The digests are SHA-256 in hex: of the source
    file's bytes, of the map's pixels, of the mask file's bytes. warnings: sentences for the user.
    """

    map_HWC: Image
    mask_HW: NDArray[np.uint8] | None
    source_sha256: str
    map_sha256: str
    mask_sha256: str | None = None
    warnings: tuple[str, ...] = ()


def load_map(unit: ControlUnit, width: int, height: int) -> Prepared:
    """Reads a unit's picture (or finished map) and mask, and brings both to exactly `width` × `height`.

    A picture is resized first and extracted then, so that edges are one pixel wide at the size that is drawn; a finished map is resized
    as its kind asks (`Control.resample`); a `.json` is read in the kind's own format. What `fill` leaves over is black in map and mask.

    Raises:
        BadImage: a file is missing, is no picture, or is over a limit.
        BadRequest: unknown kind or setting, or a kind whose estimator is not installed.
    """
    control = controls.get(unit.kind)
    params = control.parse_params(unit.params)
    warnings = []
    if control.read_file is not None and unit.image.suffix.lower() == ".json":
        map_HWC = _read_file(control.read_file, unit.image, (width, height), unit.resize)
    else:
        source_HWC = decode(unit.image)
        placement = place(source_HWC.shape[1], source_HWC.shape[0], width, height, unit.resize)
        if unit.ready:
            map_HWC = placement.pad(placement.resize(source_HWC, control.resample))
        else:
            map_HWC = placement.pad(control.extract(placement.resize(source_HWC, "area"), params))
            if _looks_finished(control, source_HWC):
                warnings.append(f"{unit.image.name} looks like a finished {unit.kind} map: add 'ready' to use it without extracting again")
    if not map_HWC.any():
        warnings.append(f"the {unit.kind} map of {unit.image.name} is empty (all black): nothing in it steers the picture")
    mask_HW = None if unit.mask is None else _load_mask(unit.mask, (width, height), unit.resize)
    return Prepared(
        map_HWC=map_HWC,
        mask_HW=mask_HW,
        source_sha256=sha256_file(unit.image),
        map_sha256=sha256_pixels(map_HWC),
        mask_sha256=None if unit.mask is None else sha256_file(unit.mask),
        warnings=tuple(warnings),
    )


def _load_mask(path: Path, size: tuple[int, int], resize: Resize) -> NDArray[np.uint8]:
    """A mask by the same path as its map: uint8 (H, W), grey where the file's edge is soft or a pixel is cut."""
    source_HWC = decode(path)
    placement = place(source_HWC.shape[1], source_HWC.shape[0], *size, resize)
    mask_HW: NDArray[np.uint8] = np.rint(placement.pad(placement.resize(source_HWC, "area")).mean(axis=2)).astype(np.uint8)
    return mask_HW


def _read_file(read: ReadFile, path: Path, size: tuple[int, int], resize: Resize) -> Image:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise BadImage(f"{str(path)!r} has {path.stat().st_size / 2**20:.1f} MiB, over the limit of {MAX_BYTES // 2**20} MiB")
        data = path.read_bytes()
    except OSError as error:
        raise BadImage(f"{str(path)!r} cannot be read ({error.strerror}): check the path") from None
    return read(data, *size, resize)


def _looks_finished(control: Control, source_HWC: Image) -> bool:
    return control.looks_finished is not None and control.looks_finished(source_HWC)
