"""Human pose: OpenPose's stick figures, 18 COCO joints, drawn by `core.skeleton`.

Source: Cao et al., "OpenPose", arXiv 1812.08008; Yang and Ramanan, TPAMI 2013 (PCK).
"""

import numpy as np

from controls import estimators
from controls.geometry import place
from core.control import Control, Image, Score, Weights
from core.request import Frozen, Resize
from core.skeleton import Joints, detect_joints, draw_pose, joints_from_openpose, pck


class Params(Frozen):
    """Pose has no settings."""


def available() -> bool:
    """Whether a pose estimator is installed."""
    return estimators.find("pose") is not None


def extract(image_HWC: Image, params: Params) -> Image:
    """The drawn poses of the people in a picture: RGB uint8 HWC → OpenPose map, same size.

    Raises:
        BadRequest: no estimator is installed.
    """
    height, width = image_HWC.shape[:2]
    return draw_pose(estimators.need("pose")(image_HWC), width, height)


def compare(wanted_HWC: Image, got_HWC: Image, params: Params | None = None) -> Score | None:
    """PCK of the people estimated in the picture; None without an estimator, or if the wanted map shows no arm and no leg."""
    estimate = estimators.find("pose")
    return None if estimate is None else _score(detect_joints(wanted_HWC), estimate(got_HWC))


def compare_maps(wanted_HWC: Image, got_HWC: Image) -> Score | None:
    """PCK between two drawn maps; None if the wanted one shows no arm and no leg."""
    return _score(detect_joints(wanted_HWC), detect_joints(got_HWC))


def _score(wanted_people: Joints, got_people: Joints) -> Score | None:
    """Mean PCK@0.1 over the wanted people, each held against the person found who fits best; nobody is used twice."""
    scores = []
    left = list(got_people)
    for wanted in wanted_people:
        found = [pck(wanted, got) for got in left]
        if found and not np.isnan(found[0]):
            best = int(np.argmax(found))
            scores.append(found[best])
            left.pop(best)
        elif not np.isnan(pck(wanted, wanted)):
            scores.append(0.0)
    if not scores:
        return None
    value = float(np.mean(scores))
    return Score(value=value, metric="PCK@0.1 of the figure's height, limb joints", raw=value, unit="")


def read_file(data: bytes, width: int, height: int, resize: Resize) -> Image:
    """An OpenPose file drawn at exactly `width` × `height`, placed as a picture of its canvas size would be.

    Raises:
        BadRequest: not an OpenPose file.
    """
    people_xy, (canvas_width, canvas_height) = joints_from_openpose(data, width, height)
    placement = place(canvas_width, canvas_height, width, height, resize)
    return draw_pose(placement.points(people_xy), width, height)


def looks_finished(image_HWC: Image) -> bool:
    """Whether this is a drawn pose already: at least half black, and at least four joints' discs joined into a person."""
    if float((image_HWC.max(axis=2) < 16).mean()) < 0.5:
        return False
    people_xy = detect_joints(image_HWC)
    return bool((np.isfinite(people_xy[..., 0]).sum(axis=1) >= 4).any()) if len(people_xy) < 100 else False


CONTROL = Control(
    name="pose",
    params=Params,
    extract=extract,
    compare=compare,
    compare_maps=compare_maps,
    weights={"sd": Weights("lllyasviel/control_v11p_sd15_openpose", revision="9ae9f970358db89e211b87c915f9535c6686d5ba")},
    resample="nearest",
    available=available,
    looks_finished=looks_finished,
    read_file=read_file,
)
