"""Inpainting by blending latents, with every sampler: what is kept is at the network's own noise level whenever it is asked.

Samplers that ask midway, or from several steps at once, keep an x of their own; the loop blends what the network sees instead.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pipelines import samplers
from pipelines.canvas import Canvas, begin
from pipelines.checkpoint import Folder
from pipelines.denoise import Plan, denoise, seeded_noise
from pipelines.families.sd import StableDiffusion
from pipelines.schedules import make_times
from tests.pipelines.scenes import HEIGHT, NEGATIVE, ORACLES_OWN, PLACE, PROMPT, SEED, STEPS, WIDTH, image
from tests.pipelines.scenes import picture as pixels
from tests.pipelines.their_pipelines import assert_same
from tests.pipelines.unet_parity import GUIDANCE, SCHEDULERS, hole, ours, theirs, told

pytestmark = ORACLES_OWN


@pytest.fixture(scope="module")
def family(base: Path) -> StableDiffusion:
    return StableDiffusion.load(Folder(base), PLACE)


# diffusers cuts a list in which PNDM's second timestep stands twice, and so begins with half of a step.
CASES = [(sampler, strength) for sampler in SCHEDULERS for strength in (0.7, 1.0) if (sampler, strength) != ("pndm", 0.7)]


@pytest.mark.parametrize(("sampler", "strength"), CASES)
def test_samplers_are_diffusers(sampler: str, strength: float, family: StableDiffusion, base: Path) -> None:
    picture = {"image": image(pixels(9)), "mask_image": image(hole()), "strength": strength}
    expected = theirs(base, "StableDiffusionInpaintPipeline", sampler=sampler, **picture)
    assert_same(ours(family, sampler=sampler, image_HWC=pixels(9), mask_HW=hole(), strength=strength), expected)


@torch.no_grad()
def test_dpm2_by_hand(family: StableDiffusion) -> None:
    """diffusers noises the picture to the end of the step where the network is asked midway: here is k-diffusion's algorithm, in σ/α."""
    spec, texts = samplers.get("dpm2"), [told(family, NEGATIVE, negative=True), told(family, PROMPT)]
    times = make_times(family.path, "trailing", STEPS, spec.grid).tail(0.7)
    canvas = begin(family, pixels(9), hole(), strength=0.7)
    noise, kept, mask = torch.randn((1, 4, 8, 12), generator=torch.Generator().manual_seed(SEED)), canvas.latents_1Chw, canvas.mask_11hw
    assert mask is not None

    def slope(x: Tensor, i: int) -> Tensor:
        x = mask * x + (1.0 - mask) * (kept + times.levels[i] * noise)
        rows, t = (x * times.alphas[i]).repeat(2, 1, 1, 1), torch.tensor(times.timesteps[i])
        negative, prompted = family.unet(rows, t, torch.cat([text.tokens_BLD for text in texts])).sample.chunk(2)
        out: Tensor = negative + GUIDANCE * (prompted - negative)
        return out

    x = kept + times.levels[0] * noise
    for i in range(0, len(times) - 1, 2):
        midway = x + slope(x, i) * (times.levels[i + 1] - times.levels[i])
        x = x + slope(midway, i + 1) * (times.levels[i + 2] - times.levels[i])
    x = x - slope(x, len(times) - 1) * times.levels[-2]
    plan = Plan(spec, times, texts[1], texts[0], GUIDANCE, canvas=canvas)
    got = denoise(family, plan, seeded_noise([SEED], (4, 8, 12), PLACE.device), lambda i, denoised: None)
    assert_same(got, mask * x + (1.0 - mask) * kept)


class Cellwise:
    """A family whose network looks at each cell by itself, and keeps what it was shown."""

    def __init__(self, family: StableDiffusion) -> None:
        self.family, self.shown = family, list[tuple[Tensor, float]]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.family, name)

    def predict(self, x_BCHW: Tensor, t: Tensor, *others: Any) -> Tensor:
        self.shown.append((x_BCHW, float(t)))
        return torch.tanh(0.7 * x_BCHW) + 0.2 * torch.sin(t / 300.0)


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_the_network_always_sees_the_kept_part_at_its_level(name: str, family: StableDiffusion) -> None:
    """So with a network that looks at each cell by itself, what is painted is what img2img paints there."""
    spec, cellwise = samplers.get(name), Cellwise(family)
    times = make_times(family.path, "trailing", STEPS, spec.grid, steps_offset=1).tail(0.7)
    picture, noise = torch.randn(1, 4, 8, 12), seeded_noise([SEED], (4, 8, 12), PLACE.device)()
    mask = F.interpolate(torch.from_numpy(hole() >= 128).float()[None, None], (HEIGHT // 8, WIDTH // 8))
    drawn = []
    for canvas in (Canvas(picture), Canvas(picture, mask)):
        plan = Plan(spec, times, told(family, PROMPT), canvas=canvas)
        drawn.append(denoise(cellwise, plan, seeded_noise([SEED], (4, 8, 12), PLACE.device), lambda i, denoised: None))  # type: ignore[arg-type]
    torch.testing.assert_close(drawn[1], mask * drawn[0] + (1.0 - mask) * picture, rtol=1e-6, atol=1e-6)
    seen = cellwise.shown[len(cellwise.shown) // 2 :]
    assert len(seen) == spec.calls(times.steps)
    points = zip(times.timesteps, times.alphas, times.sigmas, strict=False)  # the picture at the end is no question to the network
    levels = {float(torch.tensor(t)): (alpha, sigma) for t, alpha, sigma in points}
    for x, t in seen:
        alpha, sigma = levels[t]
        expected = (1.0 - mask) * (alpha * picture + sigma * noise)
        torch.testing.assert_close((1.0 - mask) * x, expected, rtol=0, atol=1e-6)
