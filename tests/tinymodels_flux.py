"""Tiny FLUX.1 checkpoints on disk, laid out as published ones are; see `tests.tinymodels`. The autoencoder is SD3's."""

from pathlib import Path
from typing import Any

from tests.tinymodels import build_clip, build_tokenizer
from tests.tinymodels_sd3 import build_t5_tokenizer, build_vae

LATENTS, CLIP_WIDTH, TEXT_WIDTH = 16, 16, 24
MAX_TOKENS = 24  # T5's, in place of 512
# Two heads of 16: what base and ControlNet share.
SHARED = {
    "in_channels": 4 * LATENTS,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": TEXT_WIDTH,
    "pooled_projection_dim": CLIP_WIDTH,
    "axes_dims_rope": (4, 6, 6),
}
CHANNELS = {"FluxPipeline": 4 * LATENTS, "FluxControlPipeline": 8 * LATENTS, "FluxFillPipeline": 8 * LATENTS + 4 * 64}


def build_base(folder: Path, *, seed: int = 0, guided: bool = True, pipeline: str = "FluxPipeline", **transformer: Any) -> Path:
    """Write a FLUX folder and return it: dev, or schnell where not `guided`; transformer: entries of the transformer's config.json."""
    import diffusers
    import torch
    from transformers import T5Config, T5EncoderModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        own = {"num_layers": 3, "num_single_layers": 2, "guidance_embeds": guided, "out_channels": 4 * LATENTS}
        network = diffusers.FluxTransformer2DModel(**(SHARED | own | {"in_channels": CHANNELS[pipeline]} | transformer))
        tokenizer, t5_tokenizer = build_tokenizer(), build_t5_tokenizer()
        t5_tokenizer.model_max_length = MAX_TOKENS
        clip = build_clip(tokenizer, CLIP_WIDTH)
        t5 = T5EncoderModel(T5Config(vocab_size=len(t5_tokenizer), d_model=TEXT_WIDTH, d_ff=TEXT_WIDTH, d_kv=8, num_heads=2, num_layers=1))
        shift = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "shift": 3.0} if guided else {"shift": 1.0}
        pipe = getattr(diffusers, pipeline)(
            transformer=network.eval(),
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**shift),
            vae=build_vae(),
            text_encoder=clip,
            tokenizer=tokenizer,
            text_encoder_2=t5.eval(),
            tokenizer_2=t5_tokenizer,
        )
    pipe.save_pretrained(folder, safe_serialization=True)
    return folder


def build_controlnet(folder: Path, *, seed: int = 1, strength: float = 0.2, **config: Any) -> Path:
    """Write a FluxControlNetModel folder and return it, its zero layers drawn anew; config: entries of its config.json."""
    import torch
    from diffusers import FluxControlNetModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = FluxControlNetModel(**(SHARED | {"num_layers": 2, "num_single_layers": 1, "guidance_embeds": True} | config))
        for layer in [*net.controlnet_blocks, *net.controlnet_single_blocks, net.controlnet_x_embedder]:
            torch.nn.init.normal_(layer.weight, std=strength)
            torch.nn.init.normal_(layer.bias, std=strength)
        if net.input_hint_block is not None:
            torch.nn.init.normal_(net.input_hint_block.conv_out.weight, std=strength)
    net.eval().save_pretrained(folder, safe_serialization=True)
    return folder


def build_hole_controlnet(folder: Path, *, seed: int = 1, strength: float = 0.2) -> Path:
    """Write a FLUX ControlNet for holes as alimama's are laid out, and return it: four further channels in each token of the map."""
    import torch
    from diffusers import FluxControlNetModel

    build_controlnet(folder, seed=seed, strength=strength)
    net = FluxControlNetModel.from_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 100)
        net.controlnet_x_embedder = torch.nn.Linear(SHARED["in_channels"] + 4, net.inner_dim)
    net.save_pretrained(folder, safe_serialization=True)
    return folder
