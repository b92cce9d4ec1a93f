"""Depth: grey, near = bright, far and sky black.

Source: Ranftl et al., "Towards robust monocular depth estimation", arXiv 1907.01341 (scale- and shift-invariant comparison).
"""

import numpy as np
from numpy.typing import NDArray

from controls import estimators
from core.control import Control, Image, Score, Weights
from core.request import Frozen


class Params(Frozen):
    """Depth has no settings."""


def available() -> bool:
    """Whether a depth estimator is installed."""
    return estimators.find("depth") is not None


def extract(image_HWC: Image, params: Params) -> Image:
    """Estimated depth of a picture: RGB uint8 HWC → near = bright, the same in all three channels.

    Raises:
        BadRequest: no estimator is installed.
    """
    return np.repeat(estimators.need("depth")(image_HWC)[..., None], 3, axis=2)


def compare(wanted_HWC: Image, got_HWC: Image, params: Params | None = None) -> Score | None:
    """How well the picture's estimated depth follows the wanted map; None without an estimator."""
    estimate = estimators.find("depth")
    return None if estimate is None else _score(wanted_HWC.mean(axis=2), estimate(got_HWC).astype(np.float64))


def compare_maps(wanted_HWC: Image, got_HWC: Image) -> Score:
    """Scale- and shift-invariant RMSE between two maps, in grey levels."""
    return _score(wanted_HWC.mean(axis=2), got_HWC.mean(axis=2))


def _score(wanted_HW: NDArray[np.float64], got_HW: NDArray[np.float64]) -> Score:
    """`value` is 1 − RMSE / standard deviation of the wanted map: 1 for equal up to scale and shift, 0 for unrelated or inverted."""
    rmse, spread = aligned_rmse(wanted_HW, got_HW), float(wanted_HW.std())
    value = 1.0 if spread == 0 else min(1.0, max(0.0, 1 - rmse / spread))
    return Score(value=value, metric="depth RMSE after scale and shift", raw=rmse, unit="grey levels of 255")


def aligned_rmse(wanted_HW: NDArray[np.float64], got_HW: NDArray[np.float64]) -> float:
    """RMSE of s·got + t against wanted with the best s ≥ 0 and t; an inverted map gains nothing from s < 0."""
    wanted, got = wanted_HW - wanted_HW.mean(), got_HW - got_HW.mean()
    energy = float((got * got).sum())
    scale = max(0.0, float((wanted * got).sum()) / energy) if energy > 0 else 0.0
    return float(np.sqrt(np.mean((wanted - scale * got) ** 2)))


CONTROL = Control(
    name="depth",
    params=Params,
    extract=extract,
    compare=compare,
    compare_maps=compare_maps,
    weights={"sd": Weights("lllyasviel/control_v11f1p_sd15_depth", revision="539f99181d33db39cf1af2e517cd8056785f0a87")},
    available=available,
)
