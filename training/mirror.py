"""What a control map becomes when its picture is mirrored: left joints become right ones, and normals turn round."""

import numpy as np
from numpy.typing import NDArray

from core.control import Image
from core.skeleton import COLOURS, JOINTS, LIMBS

_COLOURED = 64  # levels between the channels; the darkest colour of a limb has 153
_LIMB_BRIGHTNESS = 0.6  # of core.skeleton's maps and the published ones


def mirrored_map(map_HWC: Image, kind: str) -> Image:
    """A map of a kind, mirrored left to right: RGB uint8 HWC in and out. An unknown kind's colours mean no direction.

    What is black in a map of normals points nowhere and stays so.
    """
    flipped_HWC = np.ascontiguousarray(map_HWC[:, ::-1])
    if kind == "normal":
        flipped_HWC[..., 0] = np.where(flipped_HWC.any(axis=2), 255 - flipped_HWC[..., 0], 0)  # red runs to the left
    if kind == "pose":
        return _recoloured(flipped_HWC, _swaps())
    return flipped_HWC


def is_mirrorable(map_HWC: Image, kind: str) -> bool:
    """Whether left and right can be told apart: at least half of what is coloured in a pose is in OpenPose's very colours.

    What JPEG or blending has done to them is not undone: hands are drawn in colours that lie close to those of joints.
    """
    if kind != "pose":
        return True
    coloured_HW = np.ptp(map_HWC, axis=2) > _COLOURED
    numbers = (map_HWC[coloured_HW].astype(np.uint32) << np.array([16, 8, 0], np.uint32)).sum(axis=1, dtype=np.uint32)
    return not len(numbers) or float(np.isin(numbers, list(_swaps())).mean()) >= 0.5


def _swaps() -> dict[int, int]:
    """Each colour of a joint or limb and the colour of the one on the other side, as numbers 0xRRGGBB."""
    other = {name: name.replace("left", "LEFT").replace("right", "left").replace("LEFT", "right") for name in JOINTS}
    joints = [JOINTS.index(other[name]) for name in JOINTS]
    limbs = [LIMBS.index((joints[a], joints[b])) for a, b in LIMBS]
    swaps = {_number(COLOURS[i]): _number(COLOURS[j]) for i, j in enumerate(joints)}
    return swaps | {_number(_dimmed(i)): _number(_dimmed(j)) for i, j in enumerate(limbs)}


def _dimmed(limb: int) -> NDArray[np.uint8]:
    return (np.array(COLOURS[limb]) * _LIMB_BRIGHTNESS).astype(np.uint8)


def _number(colour: object) -> int:
    red, green, blue = (int(part) for part in np.asarray(colour))
    return red << 16 | green << 8 | blue


def _recoloured(map_HWC: Image, swaps: dict[int, int]) -> Image:
    """The map with each exact colour replaced; what is none of them stays."""
    numbers_HW = (map_HWC.astype(np.uint32) << np.array([16, 8, 0], np.uint32)).sum(axis=2, dtype=np.uint32)
    known, places_HW = np.unique(numbers_HW, return_inverse=True)
    wanted = np.array([swaps.get(int(number), int(number)) for number in known], np.uint32)[places_HW.reshape(numbers_HW.shape)]
    return np.stack([wanted >> 16, wanted >> 8 & 255, wanted & 255], axis=2).astype(np.uint8)
