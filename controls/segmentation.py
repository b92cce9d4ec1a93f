"""Segmentation: what every pixel shows (sky, grass, person, …), in the ADE20K palette that published ControlNets read.

Source: Zhou et al., "Scene parsing through ADE20K dataset", CVPR 2017; ControlNet 1.1, control_v11p_sd15_seg (ADE20K and COCO colours).
"""

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from controls import estimators
from controls.metrics import classes
from controls.mistakes import PICTURE
from controls.palettes import ADE20K, COCO, nearest
from core.control import Control, Image, Score, Weights
from core.request import Frozen

_LOOKED_AT_PX, _JPEG_LEVELS = 64, 12
_FLAT_LEVELS = 3  # what JPEG does to a colour within a large part of a map
_AT_ONCE = 4096  # colours that are looked up together: bounded memory for a picture of very many


class Params(Frozen):
    """Which network says what is where."""

    estimator: str = Field("", max_length=300, description=estimators.EXPLAINED_FOLDER.format("segmentation"))


def available(params: Params | None = None) -> bool:
    """Whether a segmentation network is named or installed; none is embedded."""
    return estimators.installed("segmentation", params.estimator if params else "")


def extract(image_HWC: Image, params: Params) -> Image:
    """The classes of a picture in their palette's colours: RGB uint8 HWC in and out; COCO's for a network of 133 classes, else ADE20K's.

    Raises:
        BadRequest: no network is named.
    """
    return _painted(estimators.need("segmentation", params.estimator), image_HWC)


def _painted(estimate: estimators.Estimate, image_HWC: Image) -> Image:
    palette = COCO if getattr(estimate, "classes", 0) == len(COCO) else ADE20K
    map_HWC: Image = palette[estimate(image_HWC)]
    return map_HWC


def compare(wanted_HWC: Image, got_HWC: Image, params: Params | None = None) -> Score | None:
    """Mean IoU of the classes found in the picture; None unless the network is loaded."""
    estimate = estimators.at_hand("segmentation", params.estimator if params else "")
    return None if estimate is None else compare_maps(wanted_HWC, _painted(estimate, got_HWC))


def compare_maps(wanted_HWC: Image, got_HWC: Image) -> Score | None:
    """Mean IoU over the classes of either map; None if the wanted one shows none.

    A colour is the class whose own is nearest, within what JPEG does to it; pixels of other colours (blended borders, the margins that
    'fill' leaves) are not asked for anything.
    """
    wanted_HW, got_HW = _classes(wanted_HWC), _classes(got_HWC)
    asked_HW = wanted_HW >= 0
    return classes(wanted_HW[asked_HW], got_HW[asked_HW]) if asked_HW.any() else None


def _classes(map_HWC: Image) -> NDArray[np.int32]:
    """The class of every pixel's colour, counted through both palettes, of which the one that fits more pixels is read; -1 for none."""
    keys_HW = (map_HWC[..., 0].astype(np.int32) << 16) | (map_HWC[..., 1].astype(np.int32) << 8) | map_HWC[..., 2]
    keys, codes, counts = np.unique(keys_HW, return_inverse=True, return_counts=True)
    colours_N3 = np.stack([keys >> 16, keys >> 8 & 255, keys & 255], axis=1).astype(np.uint8)
    read = [_named(colours_N3, palette) for palette in (ADE20K, COCO)]
    fits = [int(counts[found >= 0].sum()) for found in read]
    chosen = read[0] if fits[0] >= fits[1] else np.where(read[1] >= 0, read[1] + len(ADE20K), -1)
    labels_HW: NDArray[np.int32] = chosen.astype(np.int32)[codes.reshape(keys_HW.shape)]
    return labels_HW


def _named(colours_N3: NDArray[np.uint8], palette: NDArray[np.uint8]) -> NDArray[np.intp]:
    """The palette's class of each colour, (N,); -1 for a colour that is none of its.

    A class that no colour hits well is not there: what comes near it are borders that JPEG has blended.
    """
    parts = [nearest(colours_N3[start : start + _AT_ONCE], palette) for start in range(0, len(colours_N3), _AT_ONCE)]
    apart, which = np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])
    there = np.zeros(len(palette), bool)
    there[which[apart <= _FLAT_LEVELS]] = True
    named: NDArray[np.intp] = np.where((apart <= _JPEG_LEVELS) & there[which], which, -1)
    return named


def looks_finished(image_HWC: Image) -> bool:
    """Whether most pixels have colours of the ADE20K palette, or of COCO's, within what JPEG does to them, and few colours are used."""
    step = max(1, max(image_HWC.shape[:2]) // _LOOKED_AT_PX)
    colours_N3 = image_HWC[step // 2 :: step, step // 2 :: step].reshape(-1, 3)
    if not colours_N3.any():
        return False
    return any(_painted_with(colours_N3, palette) for palette in (ADE20K, COCO))


def _painted_with(colours_N3: NDArray[np.uint8], palette: NDArray[np.uint8]) -> bool:
    apart, which = nearest(colours_N3, palette)
    close = apart <= _JPEG_LEVELS
    used = np.bincount(which[close], minlength=len(palette)) > 0.002 * len(colours_N3)
    return bool(close.mean() > 0.85 and used.sum() <= 64)


def mistake(image_HWC: Image) -> str | None:
    """What is wrong with a segmentation map: its colours are none of the palette's."""
    return None if looks_finished(image_HWC) or not image_HWC.any() else f"has colours that ADE20K and COCO do not know, or {PICTURE}"


CONTROL = Control(
    name="segmentation",
    params=Params,
    extract=extract,
    compare=compare,
    compare_maps=compare_maps,
    weights={"sd": Weights("lllyasviel/control_v11p_sd15_seg")},
    resample="nearest",
    available=available,
    looks_finished=looks_finished,
    mistake=mistake,
)
