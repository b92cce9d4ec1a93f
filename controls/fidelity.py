"""Fidelity of one picture to one control: within its region, at its resolution, with whatever network that takes."""

import numpy as np
from numpy.typing import NDArray

from controls import estimators
from controls.geometry import place
from core.control import ByExtraction, Control, Image, Score
from core.request import Frozen

Where = NDArray[np.uint8]


def measure(
    control: Control, wanted_HWC: Image, picture_HWC: Image, params: Frozen, *, where_HW: Where | None = None, scale: float = 1.0
) -> Score | None:
    """As `compare`, but a network that is named and not loaded yet is loaded.

    params: settled (`controls.prepare.settled`). None where there is no network, or nothing in the map that could be measured.

    Raises:
        BadModel: as `load`.
    """
    load(control, params)
    return compare(control, wanted_HWC, picture_HWC, params, where_HW=where_HW, scale=scale)


def compare(
    control: Control, wanted_HWC: Image, picture_HWC: Image, params: Frozen, *, where_HW: Where | None = None, scale: float = 1.0
) -> Score | None:
    """As `control.compare`, where the control acts and at the resolution its map was made at.

    where_HW: uint8, the region mask, of which the lighter half counts; None for everywhere. scale: as `controls.prepare.Prepared` has it.
    """
    if asks_network(params) and estimators.at_hand(estimator_kind(control), getattr(params, "estimator", "")) is None:
        return None
    if where_HW is None and scale == 1:
        return control.compare(wanted_HWC, picture_HWC, params)
    got_HWC = seen(control, picture_HWC, params, scale)
    if got_HWC is None:
        return None
    if where_HW is not None:
        inside_HW = where_HW > 127
        if not inside_HW.any():
            return None
        if control.marks or control.resample == "lines":
            wanted_HWC, got_HWC = (np.where(inside_HW[..., None], map_HWC, np.uint8(0)) for map_HWC in (wanted_HWC, got_HWC))
        else:
            wanted_HWC, got_HWC = wanted_HWC[inside_HW][None], got_HWC[inside_HW][None]
    return control.compare_maps(wanted_HWC, got_HWC)


def seen(control: Control, picture_HWC: Image, params: Frozen, scale: float = 1.0) -> Image | None:
    """What a control's extractor finds in a drawn picture; None where its network is not at hand."""
    if asks_network(params):
        if estimators.at_hand(estimator_kind(control), getattr(params, "estimator", "")) is None:
            return None
    elif not isinstance(control.compare, ByExtraction):
        return picture_HWC  # inpaint: the hole was marked in the source, not in what is drawn
    if hasattr(params, "source"):
        params = params.model_copy(update={"source": "picture"})
    if scale == 1:
        return control.extract(picture_HWC, params)
    height, width = picture_HWC.shape[:2]
    work = max(1, round(width * scale)), max(1, round(height * scale))
    map_HWC = control.extract(place(width, height, *work, "just").resize(picture_HWC, "area"), params)
    return place(*work, width, height, "just").resize(map_HWC, control.resample)


def asks_network(params: Frozen) -> bool:
    """Whether an extractor with these settings asks an estimator."""
    return hasattr(params, "estimator") and getattr(params, "method", "network") == "network"


def load(control: Control, params: Frozen) -> None:
    """Loads the network that the settings name, so that from now on `control.compare` has it at hand.

    Raises:
        BadModel: the network is missing, damaged or of another kind.
    """
    if asks_network(params) and (name := getattr(params, "estimator", "")):
        estimators.find(estimator_kind(control), name)


def why_not(control: Control, params: Frozen) -> str:
    """Why `measure` gives None."""
    if not control.available(params):
        return f"no {estimator_kind(control)} estimator is installed: name a network with estimator="
    return "the map shows nothing, where the control acts, that could be measured"


def estimator_kind(control: Control) -> str:
    """What kind of network a learned control asks: normals come from depth."""
    return "depth" if control.name == "normal" else control.name
