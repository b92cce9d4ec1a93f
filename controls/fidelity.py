"""Fidelity on request: one picture against one control, whatever network that takes; and what to make of the number."""

from controls import estimators
from core.control import Control, Image, Score
from core.request import Frozen


def measure(control: Control, wanted_HWC: Image, picture_HWC: Image, params: Frozen) -> Score | None:
    """As `control.compare`, but a network that is named and not loaded yet is loaded.

    params: settled (`controls.prepare.settled`). None where there is no network, or nothing in the map that could be measured.

    Raises:
        BadModel: as `load`.
    """
    load(control, params)
    return control.compare(wanted_HWC, picture_HWC, params)


def load(control: Control, params: Frozen) -> None:
    """Loads the network that the settings name, so that from now on `control.compare` has it at hand.

    Raises:
        BadModel: the network is missing, damaged or of another kind.
    """
    if (name := getattr(params, "estimator", "")) and getattr(params, "method", "network") == "network":
        estimators.find(estimator_kind(control), name)


def why_not(control: Control, params: Frozen) -> str:
    """Why `measure` gives None."""
    if not control.available(params):
        return f"no {estimator_kind(control)} estimator is installed: name a network with estimator="
    return "the map shows nothing that could be measured"


def estimator_kind(control: Control) -> str:
    """What kind of network a learned control asks: normals come from depth."""
    return "depth" if control.name == "normal" else control.name
