"""Stable Diffusion 3 drawn by the one loop, by diffusers' own pipelines, and by its networks called one by one; for comparisons."""

import inspect
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines import samplers
from pipelines.checkpoint import Folder
from pipelines.denoise import Plan, denoise, seeded_noise
from pipelines.families.sd3 import StableDiffusion3
from pipelines.family import Hint, Place
from pipelines.schedules import make_times
from pipelines.steering import Steering
from tests import tinymodels_sd3

PROMPT, NEGATIVE, GUIDANCE, SEED, STEPS = "a red sphere left of a blue cube", "snow at night", 4.0, 7, 6
PLACE = Place(torch.device("cpu"), torch.float32)
WIDTH, HEIGHT = 96, 64  # not square, so that rows taken for columns show
SIZE = {"width": WIDTH, "height": HEIGHT}

BASES: dict[str, dict[str, Any]] = {
    "3": {},
    "3.5": {"version": "3.5", "t5": False, "seed": 3},  # no T5, QK norm, a second attention
    "shifting": {"seed": 4, "use_dynamic_shifting": True, "base_image_seq_len": 4, "max_image_seq_len": 32},
    "3-inpaint": {"version": "3-inpaint", "seed": 5},
}
NETS: dict[str, dict[str, Any]] = {
    "plain": {"seed": 1},
    "deep": {"seed": 2, "num_layers": 3},
    "pooled": {"seed": 3, "force_zeros_for_pooled_projection": False},
    "3.5": {"seed": 4, "version": "3.5", "dual_attention_layers": (0,)},
    "large": {
        "seed": 5,
        "joint_attention_dim": None,
        "use_pos_embed": False,
        "pos_embed_type": None,
        "force_zeros_for_pooled_projection": False,
    },
    "inpaint": {"seed": 6, "extra_conditioning_channels": 1},
}


def build(folder: Path) -> Path:
    """Write every base and ControlNet of the tests."""
    for name, options in BASES.items():
        tinymodels_sd3.build_base(folder / f"base-{name}", **options)
    for name, options in NETS.items():
        tinymodels_sd3.build_controlnet(folder / f"net-{name}", **options)
    return folder


def load(models: Path) -> dict[str, StableDiffusion3]:
    """Every base, loaded."""
    return {name: StableDiffusion3.load(Folder(models / f"base-{name}"), PLACE) for name in BASES}


def picture() -> NDArray[np.uint8]:
    """A picture with something in it: coloured blocks."""
    return np.kron(np.random.default_rng(5).integers(0, 256, (4, 6, 3), dtype=np.uint8), np.ones((16, 16, 1), np.uint8))


def drawn_map(seed: int) -> NDArray[np.uint8]:
    """A map of noise at the size that is drawn."""
    return np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def paint_mask() -> NDArray[np.uint8]:
    """255 where to paint: all but a border, off the latent grid."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[12:40, 20:] = 255
    return mask


@cache
def components(folder: Path) -> dict[str, Any]:
    """A folder's parts as diffusers loads them, once for all pipelines."""
    import diffusers

    missing = {} if (folder / "text_encoder_3").is_dir() else {"text_encoder_3": None, "tokenizer_3": None}
    pipe = diffusers.StableDiffusion3Pipeline.from_pretrained(folder, local_files_only=True, **missing)
    parts: dict[str, Any] = pipe.components
    return parts


def pipeline(kind: str, models: Path, base: str, nets: list[str]) -> Any:
    """A pipeline of diffusers' over our folders."""
    import diffusers

    pipe_class = getattr(diffusers, kind)
    taken = inspect.signature(pipe_class.__init__).parameters
    parts = {name: part for name, part in components(models / f"base-{base}").items() if name in taken}
    if nets:
        loaded = [diffusers.SD3ControlNetModel.from_pretrained(models / f"net-{net}") for net in nets]
        parts["controlnet"] = loaded if len(nets) > 1 else loaded[0]
    pipe = pipe_class(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def theirs(pipe: Any, count: int = 1, **options: Any) -> Tensor:
    """Final latents of diffusers' documented pipeline."""
    latents = pipe(
        PROMPT,
        negative_prompt=NEGATIVE,
        num_images_per_prompt=count,
        num_inference_steps=STEPS,
        generator=[torch.Generator("cpu").manual_seed(SEED + i) for i in range(count)],
        output_type="latent",
        **({"guidance_scale": GUIDANCE} | SIZE | options),
    ).images
    assert isinstance(latents, Tensor)
    return latents


def steered(family: StableDiffusion3, models: Path, nets: list[str], **steering: Any) -> tuple[Steering, ...]:
    """Controls, each with a map of its own; steering: one value for all, or a list with one for each."""
    controls = []
    for i, net in enumerate(nets):
        own = {key: value[i] if isinstance(value, list) else value for key, value in steering.items()}
        hint = own.pop("hint", Hint(drawn_map(i), "tile"))
        controls.append(Steering(family.prepare(family.load_control(Folder(models / f"net-{net}")), hint), **own))
    return tuple(controls)


def plan_of(family: StableDiffusion3, *controls: Steering, guidance: float = GUIDANCE, strength: float = 1.0, **options: Any) -> Plan:
    spec, shift = samplers.get("euler"), family.shift(**SIZE)
    times = make_times(family.path, "uniform", STEPS, spec.grid, shift=shift.factor, terminal=shift.terminal).tail(strength)
    negative = family.encode_prompt(NEGATIVE) if guidance != 1.0 else None
    return Plan(spec, times, family.encode_prompt(PROMPT), negative, guidance, controls, **options)


def drawn(family: StableDiffusion3, plan: Plan, count: int = 1) -> Tensor:
    noise = seeded_noise([SEED + i for i in range(count)], family.latent_shape(**SIZE), PLACE.device)
    return denoise(family, plan, noise, lambda i, denoised: None)


def assert_same(got: Tensor, expected: Tensor) -> None:
    assert expected.std() > 0.1  # the comparison is of something
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)  # the bound


def by_hand(
    family: StableDiffusion3, models: Path, nets: list[str], factor: Any, *, mask: Tensor | None = None, strength: float = 1.0
) -> Tensor:
    """Euler's method over the networks themselves. factor(net, level, levels): what the tokens of (negative, prompt) are multiplied with.

    Below strength 1 it starts from `picture()`, which stays where mask is 0.
    """
    import diffusers

    loaded = [diffusers.SD3ControlNetModel.from_pretrained(models / f"net-{net}") for net in nets]
    maps = [torch.from_numpy(drawn_map(i)).permute(2, 0, 1)[None] / 255.0 * 2.0 - 1.0 for i in range(len(nets))]
    hints = [family.vae.encode(one).latent_dist.mean * family.vae.config.scaling_factor for one in maps]
    texts = [family.encode_prompt(NEGATIVE), family.encode_prompt(PROMPT)]
    tokens, pooled = torch.cat([text.tokens_BLD for text in texts]), torch.cat([text.pooled_BD for text in texts])
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(models / "base-3", subfolder="scheduler")
    scheduler.set_timesteps(STEPS)
    first = int(STEPS - STEPS * strength)
    scheduler.set_begin_index(first)
    start, noise = family.encode_image(picture()), torch.randn((1, 16, 8, 12), generator=torch.Generator("cpu").manual_seed(SEED))
    x = (1.0 - scheduler.sigmas[first]) * start + scheduler.sigmas[first] * noise if strength < 1.0 else noise
    blocks = len(family.transformer.transformer_blocks)
    for t, sigma in zip(scheduler.timesteps[first:], scheduler.sigmas[first + 1 :], strict=True):
        rows, t_rows = torch.cat([x, x]), t.expand(2)
        added = [torch.zeros(2, 24, tinymodels_sd3.WIDTH) for _ in range(blocks)]
        for i, (net, hint) in enumerate(zip(loaded, hints, strict=True)):
            found = net(rows, hint.repeat(2, 1, 1, 1), 1.0, tokens, torch.zeros_like(pooled), t_rows, return_dict=False)[0]
            for block in range(blocks):
                level = int(block / (blocks / len(found)))
                added[block] = added[block] + factor(i, level, len(found)) * found[level]
        without, prompted = family.transformer(rows, tokens, pooled, t_rows, added, return_dict=False)[0].chunk(2)
        x = scheduler.step(without + GUIDANCE * (prompted - without), t, x, return_dict=False)[0]
        if mask is not None:
            x = mask * x + (1.0 - mask) * ((1.0 - sigma) * start + sigma * noise)
    return x
