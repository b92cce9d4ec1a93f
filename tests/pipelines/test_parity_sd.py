"""The one loop against diffusers' own pipelines: same weights, seeds and sampler, fp32 final latents within 1e-4."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipelines import samplers
from pipelines.checkpoint import Folder
from pipelines.denoise import Plan, Steering, denoise, seeded_noise
from pipelines.families.sd import StableDiffusion
from pipelines.family import Hint, Place
from pipelines.schedules import make_times
from pipelines.t2i_adapter import adapter_features, unet_places
from tests import tinymodels_sdxl
from tests.pipelines import unet_parity
from tests.pipelines.scenes import ORACLES_OWN, image
from tests.pipelines.scenes import picture as pixels
from tests.pipelines.their_pipelines import assert_same
from tests.pipelines.unet_parity import control, hole
from tests.tinymodels import SIZE_PX, control_map

pytestmark = ORACLES_OWN

PROMPT, NEGATIVE, GUIDANCE, SEED, STEPS = "a red sphere left of a blue cube", "snow at night", 2.0, 7, 12
SCHEDULERS = {
    "euler": ("EulerDiscreteScheduler", {"timestep_spacing": "linspace"}, "uniform"),
    "ddim": ("DDIMScheduler", {"timestep_spacing": "leading"}, "leading"),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {"timestep_spacing": "linspace"}, "uniform"),
    "heun": ("HeunDiscreteScheduler", {"timestep_spacing": "trailing"}, "trailing"),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "linspace"}, "uniform"),
}
PLACE = Place(torch.device("cpu"), torch.float32)


def theirs(base: Path, nets: list[Path], sampler: str, count: int = 1, **options: Any) -> Tensor:
    """Final latents of diffusers' documented pipeline."""
    import diffusers
    from PIL import Image

    parts: dict[str, Any] = {"safety_checker": None, "requires_safety_checker": False, "local_files_only": True}
    call: dict[str, Any] = {}
    if nets:
        loaded = [diffusers.ControlNetModel.from_pretrained(net) for net in nets]
        images = [Image.fromarray(control_map(i)) for i in range(len(nets))]
        parts["controlnet"], call["image"] = (loaded, images) if len(nets) > 1 else (loaded[0], images[0])
    kind = diffusers.StableDiffusionControlNetPipeline if nets else diffusers.StableDiffusionPipeline
    pipe = kind.from_pretrained(base, **parts)
    name, spacing, _ = SCHEDULERS[sampler]
    pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config, **spacing)
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator("cpu").manual_seed(SEED + i) for i in range(count)]
    latents = pipe(
        [PROMPT] * count if not nets else PROMPT,
        negative_prompt=[NEGATIVE] * count if not nets else NEGATIVE,
        num_images_per_prompt=count if nets else 1,
        height=SIZE_PX,
        width=SIZE_PX,
        num_inference_steps=STEPS,
        guidance_scale=options.pop("guidance", GUIDANCE),
        generator=generators,
        output_type="latent",
        **call,
        **options,
    ).images
    assert isinstance(latents, Tensor)
    return latents


def ours(base: Path, nets: list[Path], sampler: str, count: int = 1, guidance: float = GUIDANCE, **steering: Any) -> Tensor:
    """Final latents of the one loop; steering: one value for all controls, or a list with one for each."""
    family = StableDiffusion.load(Folder(base), PLACE)
    controls = []
    for i, net in enumerate(nets):
        own = {key: value[i] if isinstance(value, list) else value for key, value in steering.items()}
        controls.append(Steering(family.prepare(family.load_control(Folder(net)), Hint(control_map(i), "canny")), **own))
    spec = samplers.get(sampler)
    schedule = SCHEDULERS[sampler][2]
    offset, end = family.steps_offset, family.end_on_first
    plan = Plan(
        sampler=spec,
        times=make_times(family.path, schedule, STEPS, spec.grid, steps_offset=offset, end_on_first=end),
        positive=family.encode_prompt(PROMPT),
        negative=family.encode_prompt(NEGATIVE) if guidance != 1.0 else None,
        guidance_scale=guidance,
        controls=tuple(controls),
    )
    noise = seeded_noise([SEED + i for i in range(count)], family.latent_shape(SIZE_PX, SIZE_PX), PLACE.device)
    return denoise(family, plan, noise, lambda i, denoised: None)


@pytest.mark.parametrize("count_nets", [0, 1, 2])
@pytest.mark.parametrize("prediction", ["epsilon", "v"])
@pytest.mark.parametrize("sampler", ["euler", "ddim", "dpmpp_2m"])
def test_final_latents(sampler: str, prediction: str, count_nets: int, base: Path, base_v: Path, controlnets: list[Path]) -> None:
    model, nets = (base if prediction == "epsilon" else base_v), controlnets[:count_nets]
    weights = [0.7, 0.4][:count_nets]
    extra: dict[str, Any] = {"controlnet_conditioning_scale": weights if count_nets > 1 else weights[0]} if nets else {}
    assert_same(ours(model, nets, sampler, weight=weights), theirs(model, nets, sampler, **extra))


@pytest.mark.parametrize("sampler", ["euler", "ddim", "dpmpp_2m"])
@pytest.mark.parametrize("count_nets", [1, 2])
def test_start_end_window(sampler: str, count_nets: int, base: Path, controlnets: list[Path]) -> None:
    nets, starts, ends = controlnets[:count_nets], [0.2, 0.0][:count_nets], [0.7, 0.5][:count_nets]
    expected = theirs(
        base,
        nets,
        sampler,
        control_guidance_start=starts if count_nets > 1 else starts[0],
        control_guidance_end=ends if count_nets > 1 else ends[0],
    )
    got = ours(base, nets, sampler, start=starts, end=ends)
    assert_same(got, expected)
    assert (got - ours(base, nets, sampler)).abs().max() > 1e-2  # the window did something


@pytest.mark.parametrize("sampler", ["heun", "euler_ancestral"])
def test_the_other_samplers(sampler: str, base: Path, controlnets: list[Path]) -> None:
    assert_same(ours(base, controlnets[:1], sampler), theirs(base, controlnets[:1], sampler))


@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral"])
def test_several_pictures_draw_from_seed_plus_i(sampler: str, base: Path, controlnets: list[Path]) -> None:
    for nets in ([], controlnets[:1]):
        assert_same(ours(base, nets, sampler, count=3), theirs(base, nets, sampler, count=3))


def test_guess_mode(base: Path, controlnets: list[Path]) -> None:
    assert_same(ours(base, controlnets, "euler", mode="guess"), theirs(base, controlnets, "euler", guess_mode=True))


@pytest.mark.parametrize("count_nets", [0, 1])
def test_without_guidance(count_nets: int, base: Path, controlnets: list[Path]) -> None:
    nets = controlnets[:count_nets]
    assert_same(ours(base, nets, "euler", guidance=1.0), theirs(base, nets, "euler", guidance=1.0))


def test_pictures_and_latents(base: Path) -> None:
    """Decoding, encoding and the uint8 at the end are diffusers' as well."""
    import diffusers

    from pipelines.images import tensor_to_pictures

    pipe = diffusers.StableDiffusionPipeline.from_pretrained(base, safety_checker=None, requires_safety_checker=False)
    family = StableDiffusion.load(Folder(base), PLACE)
    latents = torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(0)) * family.vae.config.scaling_factor
    with torch.no_grad():
        reference = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    expected = np.stack([np.asarray(image) for image in pipe.image_processor.postprocess(reference)])
    got = np.stack(tensor_to_pictures(family.decode(latents)))
    # Halves round either way, since x/2 + 0.5 and x·127.5 + 127.5 differ in the last bit.
    assert np.abs(got.astype(int) - expected.astype(int)).max() <= 1
    assert (got == expected).mean() > 0.999
    picture = control_map(0)
    with torch.no_grad():
        mean = pipe.vae.encode(pipe.image_processor.preprocess(picture[None] / np.float32(255.0))).latent_dist.mean
    torch.testing.assert_close(family.encode_image(picture), mean * pipe.vae.config.scaling_factor, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def family(base: Path) -> StableDiffusion:
    return StableDiffusion.load(Folder(base), PLACE)


@pytest.fixture(scope="module")
def inpainting(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tinymodels_sdxl.build_inpainting(tmp_path_factory.mktemp("tiny") / "inpainting", base)


def with_nets(nets: list[Path]) -> dict[str, Any]:
    """What diffusers' pipelines that begin from a picture take for ControlNets."""
    import diffusers

    if not nets:
        return {}
    loaded = [diffusers.ControlNetModel.from_pretrained(net) for net in nets]
    maps, weights = [image(pixels(i)) for i in range(len(nets))], [0.7, 0.4][: len(nets)]
    if len(nets) == 1:
        return {"parts": {"controlnet": loaded[0]}, "control_image": maps[0], "controlnet_conditioning_scale": weights[0]}
    return {"parts": {"controlnet": loaded}, "control_image": maps, "controlnet_conditioning_scale": weights}


@pytest.mark.parametrize(
    ("sampler", "count_nets", "strength"), [("euler", 0, 0.5), ("dpmpp_2m", 1, 0.7), ("ddim", 2, 0.7), ("euler", 1, 1.0)]
)
def test_img2img(sampler: str, count_nets: int, strength: float, family: StableDiffusion, base: Path, controlnets: list[Path]) -> None:
    nets = controlnets[:count_nets]
    kind = "StableDiffusionControlNetImg2ImgPipeline" if nets else "StableDiffusionImg2ImgPipeline"
    expected = unet_parity.theirs(base, kind, sampler=sampler, image=image(pixels(9)), strength=strength, **with_nets(nets))
    controls = [control(family, net, i, weight=weight) for i, (net, weight) in enumerate(zip(nets, (0.7, 0.4), strict=False))]
    assert_same(unet_parity.ours(family, controls, sampler=sampler, image_HWC=pixels(9), strength=strength), expected)


@pytest.mark.parametrize("nine", [False, True])
@pytest.mark.parametrize(("sampler", "count_nets", "strength"), [("euler", 0, 1.0), ("ddim", 1, 0.7), ("dpmpp_2m", 2, 1.0)])
def test_inpaint(
    sampler: str,
    count_nets: int,
    strength: float,
    nine: bool,
    base: Path,
    inpainting: Path,
    family: StableDiffusion,
    controlnets: list[Path],
) -> None:
    """By blending latents, and with a UNet that reads mask and picture."""
    nets, folder = controlnets[:count_nets], inpainting if nine else base
    model = StableDiffusion.load(Folder(inpainting), PLACE) if nine else family
    kind = "StableDiffusionControlNetInpaintPipeline" if nets else "StableDiffusionInpaintPipeline"
    picture = {"image": image(pixels(9)), "mask_image": image(hole()), "strength": strength}
    expected = unet_parity.theirs(folder, kind, sampler=sampler, **picture, **with_nets(nets))
    controls = [control(model, net, i, weight=weight) for i, (net, weight) in enumerate(zip(nets, (0.7, 0.4), strict=False))]
    assert_same(unet_parity.ours(model, controls, sampler=sampler, image_HWC=pixels(9), mask_HW=hole(), strength=strength), expected)


def test_v_prediction_from_a_picture(base_v: Path) -> None:
    model = StableDiffusion.load(Folder(base_v), PLACE)
    picture = {"image": image(pixels(9)), "mask_image": image(hole()), "strength": 0.7}
    expected = unet_parity.theirs(base_v, "StableDiffusionInpaintPipeline", sampler="ddim", **picture)
    assert_same(unet_parity.ours(model, sampler="ddim", image_HWC=pixels(9), mask_HW=hole(), strength=0.7), expected)


@pytest.mark.parametrize("count_adapters", [1, 2])
def test_adapters(count_adapters: int, family: StableDiffusion, base: Path, tmp_path: Path) -> None:
    import diffusers

    folders = [tinymodels_sdxl.build_adapter(tmp_path / str(seed), (32, 64), seed=seed) for seed in range(count_adapters)]
    found, weights = [diffusers.T2IAdapter.from_pretrained(folder) for folder in folders], [0.7, 0.4][:count_adapters]
    several = count_adapters > 1
    expected = unet_parity.theirs(
        base,
        "StableDiffusionAdapterPipeline",
        sampler="dpmpp_2m",
        parts={"adapter": diffusers.MultiAdapter(found) if several else found[0]},
        image=[image(pixels(i)) for i in range(count_adapters)] if several else image(pixels(0)),
        adapter_conditioning_scale=weights if several else weights[0],
    )
    controls = [control(family, folder, i, weight=weight) for i, (folder, weight) in enumerate(zip(folders, weights, strict=True))]
    assert_same(unet_parity.ours(family, controls, sampler="dpmpp_2m"), expected)


@pytest.mark.parametrize("kind", ["full_adapter", "light_adapter", "full_adapter_xl"])
def test_published_adapters_fit_their_bases(kind: str) -> None:
    """At published widths: an adapter's features lie where the UNet takes them, measured on the classes themselves."""
    import diffusers

    channels, cell = ((320, 640, 1280) if kind == "light_adapter" else (320, 640, 1280, 1280)), 16 if kind == "full_adapter_xl" else 8
    config = {"channels": channels, "downscale_factor": cell, "adapter_type": kind}
    with torch.device("meta"):
        shapes = [tuple(feature.shape) for feature in diffusers.T2IAdapter(num_res_blocks=1, **config)(torch.empty(1, 3, 512, 512))]
    assert adapter_features(config) == [(shape[1], 512 // shape[2]) for shape in shapes]
    attention, plain = "CrossAttnDownBlock2D", "DownBlock2D"
    sd: dict[str, Any] = {"down_block_types": (attention, attention, attention, plain), "block_out_channels": (320, 640, 1280, 1280)}
    sdxl: dict[str, Any] = {"down_block_types": (plain, attention, attention), "block_out_channels": (320, 640, 1280)}
    fits = [adapter_features(config) == unet_places(unet, 8)[:4] for unet in (sd, sdxl)]
    assert fits == [kind != "full_adapter_xl", kind == "full_adapter_xl"]
