"""Normals: which way every surface faces, as colours: red is left, green is up, blue is towards the camera.

Derived from depth, estimated or given. Source: ControlNet 1.1's normal maps (Bae et al., "Estimating and exploiting the aleatoric
uncertainty in surface normal estimation", arXiv 2109.09881); the normal of z(x, y) is (−∂z/∂x, −∂z/∂y, 1), normalised.
"""

from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from controls import estimators
from controls.arrays import blurred, luminance
from controls.metrics import directions as compare_maps
from controls.metrics import unit_vectors
from controls.mistakes import PICTURE
from core.control import Control, Image, Score, Weights
from core.request import Frozen


class Params(Frozen):
    """Where the depth comes from, and how deep it is taken to be."""

    source: Literal["picture", "depth"] = Field("picture", description="what is given: a picture, or a depth map (near = bright)")
    estimator: str = Field("", max_length=300, description=estimators.EXPLAINED.format("depth"))
    strength: float = Field(1.0, ge=0.1, le=10.0, description="depth from black to white, in lengths of the picture's shorter side")
    smooth: float = Field(3.0, ge=0.0, le=20.0, description="standard deviation, in pixels, of the blur that evens out depth's grey levels")
    background: float = Field(0.0, ge=0.0, le=1.0, description="what is farther than this (0 farthest, 1 nearest) faces the camera")


def available(params: Params | None = None) -> bool:
    """Whether a depth estimator is installed, or none is needed."""
    settings = params or Params.model_validate({})
    return settings.source == "depth" or estimators.installed("depth", settings.estimator)


def extract(image_HWC: Image, params: Params) -> Image:
    """The normals of a picture or a depth map: RGB uint8 HWC in and out.

    Raises:
        BadRequest: a picture is given and no depth estimator is installed.
    """
    if params.source == "depth":
        return normals(luminance(image_HWC), params)
    return normals(estimators.need("depth", params.estimator, control="normal")(image_HWC), params)


def normals(nearness_HW: NDArray[np.uint8], params: Params) -> Image:
    """The normal map of a depth map, uint8 (H, W), near = bright."""
    nearness = nearness_HW.astype(np.float32) / 255
    reach = params.strength * min(nearness.shape)
    # Slopes go on beyond the border; where it is a mirror, they lie flat there and face the camera.
    margin = int(4 * params.smooth) + 2
    wide = np.pad(nearness, margin, mode="reflect", reflect_type="odd")
    smooth = blurred(wide, params.smooth) if params.smooth > 0 else wide
    inner = (slice(margin, -margin),) * 2
    # nearness grows to the right: the surface faces left; it grows downwards, as the ground's does: the surface faces up
    across, down = (cv2.Sobel(smooth, cv2.CV_32F, *axes, scale=reach / 8)[inner].copy() for axes in ((1, 0), (0, 1)))
    across[nearness < params.background] = 0
    down[nearness < params.background] = 0
    vectors_HWC = cv2.merge([across, down, np.ones_like(across)])
    vectors_HWC /= np.sqrt(across * across + down * down + 1)[..., None]
    map_HWC: Image = np.rint((vectors_HWC + 1) * np.float32(127.5)).astype(np.uint8)
    return map_HWC


def compare(wanted_HWC: Image, got_HWC: Image, params: Params | None = None) -> Score | None:
    """Mean angle between the wanted normals and those of the picture's estimated depth; None without an estimator."""
    settings = params or Params.model_validate({})
    estimate = estimators.at_hand("depth", settings.estimator)
    return None if estimate is None else compare_maps(wanted_HWC, normals(estimate(got_HWC), settings))


def looks_finished(image_HWC: Image) -> bool:
    """Whether nearly all pixels are directions of length 1, most of them not away from the camera."""
    vectors_HWC = image_HWC.astype(np.float32) / np.float32(127.5) - 1
    length_HW = np.linalg.norm(vectors_HWC, axis=2)
    return bool((np.abs(length_HW - 1) < 0.12).mean() > 0.9 and (vectors_HWC[..., 2] > 0).mean() > 0.9)


def mistake(image_HWC: Image) -> str | None:
    """What is wrong with a normal map: its colours are no directions, or they face away from the camera."""
    if looks_finished(image_HWC) or not image_HWC.any():
        return None
    vectors_HWC = unit_vectors(image_HWC)
    lengths_HW = np.linalg.norm(image_HWC.astype(np.float32) / np.float32(127.5) - 1, axis=2)
    if (np.abs(lengths_HW - 1) < 0.12).mean() > 0.9 and (vectors_HWC[..., 0] > 0.5).mean() > 0.5:
        return "has red where blue belongs, as files with the channels in the other order have: save it as RGB, where facing you is blue"
    return PICTURE


CONTROL = Control(
    name="normal",
    params=Params,
    extract=extract,
    compare=compare,
    compare_maps=compare_maps,
    weights={"sd": Weights("lllyasviel/control_v11p_sd15_normalbae")},
    available=available,
    looks_finished=looks_finished,
    mistake=mistake,
)
