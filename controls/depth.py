"""Depth: grey, near = bright, far and sky black.

Source: Ranftl et al., "Towards robust monocular depth estimation", arXiv 1907.01341 (scale- and shift-invariant comparison).
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from controls import estimators
from controls.arrays import as_map
from controls.depthfile import is_depth_file, read_depth
from controls.metrics import ordinal_agreement
from controls.mistakes import depth_mistake, looks_like_depth
from core.control import Control, Image, Score, Weights
from core.request import Frozen, Resize

_CHECKED_PX = 1024  # a larger file is looked at in every second, third, … pixel
FILE_FAR_BRIGHT = {
    False: "has its large values at the top and its small ones at the bottom, as distances have: give values=distance if they are",
    True: "has its small values at the top and its large ones at the bottom: leave out values=distance if they are no distances",
}


class Params(Frozen):
    """Who estimates, and what the numbers in a file mean."""

    estimator: str = Field("", max_length=300, description=estimators.EXPLAINED.format("depth"))
    values: Literal["nearness", "distance"] = Field("nearness", description="what is large in a .npy or 16-bit file: the near, or the far")


def available(params: Params | None = None) -> bool:
    """Whether a depth estimator is named or installed."""
    return estimators.installed("depth", params.estimator if params else "")


def extract(image_HWC: Image, params: Params) -> Image:
    """Estimated depth of a picture: RGB uint8 HWC → near = bright, the same in all three channels.

    Raises:
        BadRequest: no estimator is installed.
    """
    return as_map(estimators.need("depth", params.estimator)(image_HWC))


def compare(wanted_HWC: Image, got_HWC: Image, params: Params | None = None) -> Score | None:
    """How well the picture's estimated depth follows the wanted map; None without an estimator, or while a named one is not loaded."""
    estimate = estimators.at_hand("depth", params.estimator if params else "")
    return None if estimate is None else _score(wanted_HWC.mean(axis=2), estimate(got_HWC).astype(np.float64))


def compare_maps(wanted_HWC: Image, got_HWC: Image) -> Score | None:
    """Scale- and shift-invariant RMSE between two maps, in grey levels; None if the wanted one alone is flat."""
    return _score(wanted_HWC.mean(axis=2), got_HWC.mean(axis=2))


def _score(wanted_HW: NDArray[np.float64], got_HW: NDArray[np.float64]) -> Score | None:
    """`value` is 1 − RMSE / standard deviation of the wanted map: 1 for equal up to scale and shift, 0 for unrelated or inverted.

    None for a flat map that is wanted of a picture with any depth: at scale 0 every picture would be it.

    Parts: ordinal agreement, the share of pairs of pixels that stand in the wanted order (0.5 by chance).
    """
    rmse, spread = aligned_rmse(wanted_HW, got_HW), float(wanted_HW.std())
    if spread == 0 and got_HW.std() > 0:
        return None
    value = 1.0 if spread == 0 else min(1.0, max(0.0, 1 - rmse / spread))
    parts = {"ordinal agreement": ordinal_agreement(wanted_HW, got_HW)}
    return Score(value=value, metric="depth RMSE after scale and shift", raw=rmse, unit="grey levels of 255", parts=parts)


def aligned_rmse(wanted_HW: NDArray[np.float64], got_HW: NDArray[np.float64]) -> float:
    """RMSE of s·got + t against wanted with the best s ≥ 0 and t; an inverted map gains nothing from s < 0."""
    wanted, got = wanted_HW - wanted_HW.mean(), got_HW - got_HW.mean()
    energy = float((got * got).sum())
    scale = max(0.0, float((wanted * got).sum()) / energy) if energy > 0 else 0.0
    return float(np.sqrt(np.mean((wanted - scale * got) ** 2)))


def read_file(data: bytes, width: int, height: int, resize: Resize, params: Params | None = None) -> Image:
    """Depth of more than 8 bits, scaled to its own range: `.npy` or 16-bit PNG → near = bright, exactly `width` × `height`.

    Raises:
        BadImage: the file is damaged or over a limit, or a value is no number.
    """
    return read_depth(data, (width, height), resize, far_is_large=params is not None and params.values == "distance")


def inspect_file(data: bytes, width: int, height: int, params: Params | None = None) -> tuple[tuple[int, int], str | None]:
    """The file's size, and whether its far end seems to come out bright.

    Raises:
        BadImage: as `read_file`.
    """
    distance = params is not None and params.values == "distance"
    map_HWC = read_depth(data, None, "just", far_is_large=distance)
    step = max(1, max(map_HWC.shape[:2]) // _CHECKED_PX)
    turned = depth_mistake(map_HWC[::step, ::step]) is not None
    return (map_HWC.shape[1], map_HWC.shape[0]), FILE_FAR_BRIGHT[distance] if turned else None


CONTROL = Control(
    name="depth",
    params=Params,
    extract=extract,
    compare=compare,
    compare_maps=compare_maps,
    weights={
        "sd": Weights("lllyasviel/control_v11f1p_sd15_depth", revision="539f99181d33db39cf1af2e517cd8056785f0a87"),
        "sdxl": Weights("diffusers/controlnet-depth-sdxl-1.0"),
        "sd3": Weights("stabilityai/stable-diffusion-3.5-large-controlnet-depth"),
        "flux": Weights("jasperai/Flux.1-dev-Controlnet-Depth"),
    },
    available=available,
    looks_finished=looks_like_depth,
    mistake=depth_mistake,
    own_file=is_depth_file,
    read_file=read_file,
    inspect_file=inspect_file,
)
