"""The one loop and diffusers' own pipelines on the families with a UNet, called alike, for comparisons of final latents."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines import samplers
from pipelines.canvas import begin
from pipelines.checkpoint import Folder
from pipelines.denoise import Plan, Steering, denoise, seeded_noise
from pipelines.family import Drawing, Hint, Text
from pipelines.schedules import make_times
from pipelines.unet import UNetFamily
from tests.pipelines.scenes import HEIGHT, NEGATIVE, PLACE, PROMPT, SEED, STEPS, WIDTH
from tests.pipelines.scenes import picture as pixels

GUIDANCE = 2.0  # of tiny models' random weights more makes latents so large that fp32 rounds them by nearly the bound
SCHEDULERS = {
    "euler": ("EulerDiscreteScheduler", {"timestep_spacing": "linspace"}, "uniform"),
    "ddim": ("DDIMScheduler", {"timestep_spacing": "leading"}, "leading"),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {"timestep_spacing": "linspace"}, "uniform"),
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", {"timestep_spacing": "linspace", "algorithm_type": "sde-dpmsolver++"}, "uniform"),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "linspace"}, "uniform"),
    "heun": ("HeunDiscreteScheduler", {"timestep_spacing": "trailing"}, "trailing"),
    "dpm2_ancestral": ("KDPM2AncestralDiscreteScheduler", {"timestep_spacing": "trailing"}, "trailing"),
    "unipc": ("UniPCMultistepScheduler", {"timestep_spacing": "linspace"}, "uniform"),
    "pndm": ("PNDMScheduler", {"timestep_spacing": "leading", "skip_prk_steps": True}, "leading"),
    "lcm": ("LCMScheduler", {}, "trailing"),
}


def hole() -> NDArray[np.uint8]:
    """A mask of a block whose borders are not those of latent cells, and in which grey is rounded."""
    mask_HW = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask_HW[12:53, 20:71] = 200
    mask_HW[:8] = 100
    return mask_HW


def control(family: UNetFamily, folder: Path, seed: int = 0, kind: str = "canny", **steering: Any) -> Steering:
    """A control from a folder, with the map `pixels(seed)`."""
    return Steering(family.prepare(family.load_control(Folder(folder)), Hint(pixels(seed), kind)), **steering)


def told(family: UNetFamily, prompt: str, *, negative: bool = False) -> Text:
    """A prompt as the network is told it."""
    return family.bind(family.encode_prompt(prompt), Drawing(WIDTH, HEIGHT, GUIDANCE, negative))


def ours(
    family: UNetFamily,
    controls: Sequence[Steering] = (),
    *,
    sampler: str = "euler",
    count: int = 1,
    strength: float = 1.0,
    image_HWC: NDArray[np.uint8] | None = None,
    mask_HW: NDArray[np.uint8] | None = None,
    negative: str = NEGATIVE,
    **plan: Any,
) -> Tensor:
    """Final latents of the one loop."""
    spec = samplers.get(sampler)
    times = make_times(
        family.path, SCHEDULERS[sampler][2], STEPS, spec.grid, steps_offset=family.steps_offset, end_on_first=family.end_on_first
    )
    values: dict[str, Any] = {
        "sampler": spec,
        "times": times.tail(strength),
        "positive": told(family, PROMPT),
        "negative": told(family, negative, negative=True),
        "guidance_scale": GUIDANCE,
        "controls": tuple(controls),
        "canvas": None if image_HWC is None else begin(family, image_HWC, mask_HW, strength=strength),
    }
    noise = seeded_noise([SEED + i for i in range(count)], family.latent_shape(WIDTH, HEIGHT), PLACE.device)
    return denoise(family, Plan(**(values | plan)), noise, lambda i, denoised: None)


def theirs(base: Path, kind: str, *, sampler: str = "euler", count: int = 1, parts: dict[str, Any] | None = None, **call: Any) -> Tensor:
    """Final latents of a pipeline of diffusers, whose autoencoder gives means where it would draw from the generator of the noise."""
    import diffusers

    from tests.pipelines.their_pipelines import means_for_samples

    checker = {} if "XL" in kind else {"safety_checker": None, "requires_safety_checker": False}
    pipe = getattr(diffusers, kind).from_pretrained(base, local_files_only=True, **checker, **(parts or {}))
    name, spacing, _ = SCHEDULERS[sampler]
    pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config, **spacing)
    pipe.set_progress_bar_config(disable=True)
    values: dict[str, Any] = {
        "prompt": PROMPT,
        "negative_prompt": NEGATIVE,
        "guidance_scale": GUIDANCE,
        "num_inference_steps": STEPS,
        "num_images_per_prompt": count,
        "generator": [torch.Generator("cpu").manual_seed(SEED + i) for i in range(count)],
        "output_type": "latent",
    }
    sized = {} if "Img2Img" in kind and "ControlNet" not in kind else {"height": HEIGHT, "width": WIDTH}
    with means_for_samples():
        latents = pipe(**(values | sized | call)).images
    assert isinstance(latents, Tensor)
    return latents
