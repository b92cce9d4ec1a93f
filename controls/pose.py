"""Human pose: OpenPose's stick figures, 18 COCO joints in their published colours on black.

Source: Cao et al., "OpenPose", arXiv 1812.08008; Yang and Ramanan, TPAMI 2013 (PCK).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from controls import estimators
from controls.arrays import brightest
from controls.geometry import place
from controls.mistakes import PICTURE
from core.control import Control, Image, Score, Weights
from core.openpose import People, draw_people, people_from_openpose
from core.request import Frozen, Resize
from core.skeleton import JOINTS, Joints, detect_joints, oks, pck

MOST_OUTSIDE = 0.25  # of a file's joints; people who are cut off by the picture's edge have fewer
INVERTED_POSE = "is mostly white, but pose maps are drawn on black: draw it again (limn extract pose FILE.json) or invert it"


class Params(Frozen):
    """Who finds the people."""

    estimator: str = Field("", max_length=300, description=estimators.EXPLAINED.format("ViTPose or DWPose"))
    detector: str = Field(
        "",
        max_length=300,
        description="hub id or folder of what finds the people; empty for RT-DETR; 'whole': the picture shows one person",
    )
    confidence: float = Field(0.3, ge=0.0, le=1.0, description="joints and people below this are left out (named estimators alone)")


def available(params: Params | None = None) -> bool:
    """Whether a pose estimator is named or installed."""
    return estimators.installed("pose", params.estimator if params else "")


def extract(image_HWC: Image, params: Params) -> Image:
    """The drawn poses of the people in a picture: RGB uint8 HWC → OpenPose map, same size; all black if nobody is found.

    Raises:
        BadRequest: no estimator is named and none is installed.
    """
    height, width = image_HWC.shape[:2]
    return draw_people(_people(estimators.need("pose", params.estimator), image_HWC, params), width, height)


def _people(estimate: estimators.Estimate, image_HWC: Image, params: Params | None) -> People:
    """Whom an estimator finds; only named ones take settings."""
    found: Any = (
        estimate(image_HWC, confidence=params.confidence, detector=params.detector) if params and params.estimator else estimate(image_HWC)
    )
    return found if isinstance(found, People) else People.of(found)


def compare(wanted_HWC: Image, got_HWC: Image, params: Params | None = None) -> Score | None:
    """PCK of the people estimated in the picture; None without a loaded estimator, or if the wanted map shows no arm and no leg."""
    estimate = estimators.at_hand("pose", params.estimator if params else "")
    return None if estimate is None else _score(_drawn(wanted_HWC), _people(estimate, got_HWC, params).body)


def compare_maps(wanted_HWC: Image, got_HWC: Image) -> Score | None:
    """PCK between two drawn maps; None if the wanted one shows no arm and no leg."""
    return _score(_drawn(wanted_HWC), _drawn(got_HWC))


def _drawn(map_HWC: Image) -> Joints:
    """The people on a drawn map, (P, 18, 2), each in one piece.

    Where a joint is out of sight, what lies beyond it comes apart: it goes to the nearest person who lacks all of its joints. Single discs
    are left out, for the points of drawn hands have a joint's colour.
    """
    found = sorted(detect_joints(map_HWC), key=lambda joints: -int(_seen(joints).sum()))
    pieces = [joints for joints in found if _seen(joints).sum() > 1] or found
    people: list[Joints] = []
    for piece in pieces:
        near = [(_apart(piece, other), place) for place, other in enumerate(people) if not (_seen(piece) & _seen(other)).any()]
        distance, place = min(near, default=(np.inf, 0))
        if near and distance <= float(np.ptp(people[place][_seen(people[place])], axis=0).max()):
            people[place] = np.where(_seen(piece)[:, None], piece, people[place])
        else:
            people.append(piece)
    return np.array(people).reshape(-1, len(JOINTS), 2)


def _seen(joints: Joints) -> NDArray[np.bool_]:
    seen: NDArray[np.bool_] = np.isfinite(joints[:, 0])
    return seen


def _apart(one: Joints, other: Joints) -> float:
    """The distance between the nearest joints of two people."""
    between = one[_seen(one)][:, None] - other[_seen(other)][None]
    return float(np.hypot(between[..., 0], between[..., 1]).min())


def _score(wanted_people: Joints, got_people: Joints) -> Score | None:
    """Mean PCK@0.1 over the wanted people, each held against the person found who fits best; nobody is used twice.

    Parts: OKS, likewise, and how many people are wanted and found.
    """
    scores, similarities = [], []
    left = list(got_people)
    for wanted in wanted_people:
        if np.isnan(pck(wanted, wanted)):
            continue
        found = [(pck(wanted, got), oks(wanted, got)) for got in left]
        best = max(range(len(found)), key=lambda place: found[place], default=None)
        scores.append(0.0 if best is None else found[best][0])
        similarities.append(0.0 if best is None else found[best][1])
        if best is not None:
            left.pop(best)
    if not scores:
        return None
    value = float(np.mean(scores))
    parts = {"OKS": float(np.mean(similarities)), "people wanted": float(len(wanted_people)), "people found": float(len(got_people))}
    return Score(value, "PCK@0.1 of the figure's height, limb joints", value, "", parts)


def own_file(head: bytes) -> bool:
    """Whether a file that begins like this is JSON."""
    return head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"[")


def read_file(data: bytes, width: int, height: int, resize: Resize, params: Params | None = None) -> Image:
    """An OpenPose file drawn at exactly `width` × `height`, hands and faces included, placed as a picture of its canvas size would be.

    Raises:
        BadRequest: not an OpenPose file.
    """
    people, canvas = people_from_openpose(data, width, height)
    return draw_people(people.moved(place(*canvas, width, height, resize).points), width, height)


def inspect_file(data: bytes, width: int, height: int, params: Params | None = None) -> tuple[tuple[int, int] | None, str | None]:
    """The file's canvas, None where it names none, and whether its people stand beside it.

    Raises:
        BadRequest: not an OpenPose file.
    """
    named = people_from_openpose(data, 1, 1)[1]
    canvas = None if 1 in named else (round(named[0]), round(named[1]))
    people, (across, down) = people_from_openpose(data, width, height)
    joints_N2 = people.body[np.isfinite(people.body[..., 0])]
    outside = ((joints_N2 < 0) | (joints_N2 > (across, down))).any(axis=1)
    if not len(joints_N2) or outside.mean() <= MOST_OUTSIDE:
        return canvas, None
    which = f"its canvas of {across:g}x{down:g}" if canvas else f"{across:g}x{down:g}, and it names no canvas"
    return canvas, (
        f"has {int(outside.sum())} of {len(joints_N2)} joints outside {which}: set canvas_width and canvas_height in it to the size of the "
        "picture that they were found in"
    )


def looks_finished(image_HWC: Image) -> bool:
    """Whether this is a drawn pose already: at least half black, and at least four joints' discs joined into a person."""
    if float((image_HWC.max(axis=2) < 16).mean()) < 0.5:
        return False
    people_xy = detect_joints(image_HWC)
    return bool((np.isfinite(people_xy[..., 0]).sum(axis=1) >= 4).any()) if len(people_xy) < 100 else False


def mistake(image_HWC: Image) -> str | None:
    """What is wrong with a pose map: it is not mostly black, or shows no joint in OpenPose's colours."""
    if not image_HWC.any():
        return None
    light_HW = brightest(image_HWC)
    if float((light_HW < 48).mean()) < 0.5:
        return INVERTED_POSE if float((light_HW > 191).mean()) > 0.6 else PICTURE
    return None if len(detect_joints(image_HWC)) else PICTURE


CONTROL = Control(
    name="pose",
    params=Params,
    extract=extract,
    compare=compare,
    compare_maps=compare_maps,
    weights={
        "sd": Weights("lllyasviel/control_v11p_sd15_openpose", revision="9ae9f970358db89e211b87c915f9535c6686d5ba"),
        "sdxl": Weights("thibaud/controlnet-openpose-sdxl-1.0"),
        "sd3": Weights("InstantX/SD3-Controlnet-Pose"),
    },
    resample="nearest",
    available=available,
    marks=True,
    looks_finished=looks_finished,
    mistake=mistake,
    own_file=own_file,
    read_file=read_file,
    inspect_file=inspect_file,
)
