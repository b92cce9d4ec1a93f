"""Blur: the picture without its detail, which the ControlNet draws anew.

Source: ControlNet's annotator "blur_gaussian" (σ = 9).
"""

from pydantic import Field

from controls.arrays import blurred
from controls.metrics import likeness as compare_maps
from core.control import ByExtraction, Control, Image, Weights
from core.request import Frozen


class Params(Frozen):
    """How much detail goes."""

    sigma: float = Field(9.0, ge=0.1, le=64.0, description="standard deviation of the Gaussian, in pixels")


def extract(image_HWC: Image, params: Params) -> Image:
    """The picture through a Gaussian: RGB uint8 HWC in and out."""
    return blurred(image_HWC, params.sigma)


compare = ByExtraction(Params, extract, compare_maps)

CONTROL = Control(
    name="blur",
    params=Params,
    extract=extract,
    compare=compare,
    compare_maps=compare_maps,
    weights={
        "sd": Weights("lllyasviel/control_v11f1e_sd15_tile"),
        "sd3": Weights("stabilityai/stable-diffusion-3.5-large-controlnet-blur"),
    },
)
