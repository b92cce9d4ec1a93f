"""Inversion: black lines on white become the white lines on black that line ControlNets read; for scanned drawings."""

from controls.metrics import likeness as compare_maps
from core.control import ByExtraction, Control, Image, Weights
from core.request import Frozen


class Params(Frozen):
    """Inversion has no settings."""


def extract(image_HWC: Image, params: Params) -> Image:
    """255 minus the picture: RGB uint8 HWC in and out."""
    return 255 - image_HWC


compare = ByExtraction(Params, extract, compare_maps)

CONTROL = Control(
    name="invert",
    params=Params,
    extract=extract,
    compare=compare,
    compare_maps=compare_maps,
    weights={"sd": Weights("lllyasviel/control_v11p_sd15_lineart")},
)
