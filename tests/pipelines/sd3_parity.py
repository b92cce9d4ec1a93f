"""Stable Diffusion 3 drawn by the one loop, by diffusers' own pipelines, and by its networks called one by one; for comparisons."""

import inspect
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelines.checkpoint import Folder
from pipelines.families.sd3 import StableDiffusion3
from tests import tinymodels_sd3
from tests.pipelines.flow_parity import GUIDANCE
from tests.pipelines.scenes import HEIGHT, NEGATIVE, PLACE, PROMPT, STEPS, WIDTH, picture
from tests.pipelines.their_pipelines import euler_by_hand, generators, means_for_samples

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
    with means_for_samples():
        latents = pipe(
            PROMPT,
            negative_prompt=NEGATIVE,
            num_images_per_prompt=count,
            num_inference_steps=STEPS,
            generator=generators(count),
            output_type="latent",
            **({"guidance_scale": GUIDANCE} | SIZE | options),
        ).images
    assert isinstance(latents, Tensor)
    return latents


def by_hand(family: StableDiffusion3, models: Path, nets: list[str], factor: Any, way: str = "txt2img") -> Tensor:
    """Euler's method over the networks themselves. factor(net, level, levels): the factor on the tokens of (negative, prompt)."""
    import diffusers

    loaded = [diffusers.SD3ControlNetModel.from_pretrained(models / f"net-{net}") for net in nets]
    maps = [torch.from_numpy(picture(i)).permute(2, 0, 1)[None] / 255.0 * 2.0 - 1.0 for i in range(len(nets))]
    hints = [family.vae.encode(one).latent_dist.mean * family.vae.config.scaling_factor for one in maps]
    texts = [family.encode_prompt(NEGATIVE), family.encode_prompt(PROMPT)]
    tokens, pooled = torch.cat([text.tokens_BLD for text in texts]), torch.cat([text.pooled_BD for text in texts])
    blocks = len(family.transformer.transformer_blocks)

    def velocity(x: Tensor, t: Tensor, i: int, n: int) -> Tensor:
        rows, t_rows = torch.cat([x, x]), t.expand(2)
        added = [torch.zeros(2, 24, tinymodels_sd3.WIDTH) for _ in range(blocks)]
        for number, (net, hint) in enumerate(zip(loaded, hints, strict=True)):
            found = net(rows, hint.repeat(2, 1, 1, 1), 1.0, tokens, torch.zeros_like(pooled), t_rows, return_dict=False)[0]
            for block in range(blocks):
                level = int(block / (blocks / len(found)))
                added[block] = added[block] + factor(number, level, len(found)) * found[level]
        without, prompted = family.transformer(rows, tokens, pooled, t_rows, added, return_dict=False)[0].chunk(2)
        return without + GUIDANCE * (prompted - without)

    scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(models / "base-3", subfolder="scheduler")
    scheduler.set_timesteps(STEPS)
    return euler_by_hand(scheduler, velocity, family.encode_image(picture(5)), way)
