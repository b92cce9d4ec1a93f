"""Tiny Z-Image checkpoints on disk, laid out as published ones are; see `tests.tinymodels`. The autoencoder is SD3's."""

from pathlib import Path
from typing import Any

from tests.tinymodels_chat import TEXT_WIDTH, build_chat_tokenizer, build_qwen3
from tests.tinymodels_sd3 import build_vae

LATENTS = 16
SHARED = {"dim": 32, "n_heads": 2, "n_kv_heads": 2, "n_refiner_layers": 1}


def build_base(folder: Path, *, seed: int = 0) -> Path:
    """Write a Z-Image folder and return it."""
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = build_chat_tokenizer()
        network = ZImageTransformer2DModel(**SHARED, n_layers=3, in_channels=LATENTS, cap_feat_dim=TEXT_WIDTH, axes_dims=[8, 4, 4])
        for token in (network.x_pad_token, network.cap_pad_token):  # drawn, so that what is filled up shows
            torch.nn.init.normal_(token)
        pipe = ZImagePipeline(
            transformer=network.eval(),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=build_vae(),
            text_encoder=build_qwen3(len(tokenizer)),
            tokenizer=tokenizer,
        )
    pipe.save_pretrained(folder, safe_serialization=True)
    return folder


def build_controlnet(folder: Path, *, seed: int = 1, strength: float = 0.2, **config: Any) -> Path:
    """Write a ZImageControlNetModel folder and return it, its zero layers drawn anew; config: entries of its config.json."""
    import torch
    from diffusers import ZImageControlNetModel

    own = {"control_layers_places": [0, 2], "control_in_dim": LATENTS}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = ZImageControlNetModel(**(SHARED | own | config))
        for name, layer in net.named_modules():
            if name.endswith(("before_proj", "after_proj")):
                torch.nn.init.normal_(layer.weight, std=strength)
                torch.nn.init.normal_(layer.bias, std=strength)
    net.eval().save_pretrained(folder, safe_serialization=True)
    return folder
