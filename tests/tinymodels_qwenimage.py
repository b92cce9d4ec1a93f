"""Tiny Qwen-Image checkpoints on disk, laid out as published ones are; see `tests.tinymodels`."""

from pathlib import Path
from typing import Any

from tests.tinymodels_chat import TEXT_WIDTH, build_chat_tokenizer, build_qwen_vl

LATENTS = 16
# Two heads of 16: what base and ControlNet share.
SHARED = {
    "in_channels": 4 * LATENTS,
    "out_channels": LATENTS,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": TEXT_WIDTH,
    "axes_dims_rope": (4, 6, 6),
}
# As published: the shift grows with the picture and the last level is stretched.
SCHEDULER = {
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 0.9,
    "base_image_seq_len": 256,
    "max_image_seq_len": 8192,
    "shift_terminal": 0.02,
    "time_shift_type": "exponential",
}


def build_base(folder: Path, *, seed: int = 0, **transformer: Any) -> Path:
    """Write a Qwen-Image folder and return it; transformer: entries of the transformer's config.json."""
    import torch
    from diffusers import AutoencoderKLQwenImage, FlowMatchEulerDiscreteScheduler, QwenImagePipeline, QwenImageTransformer2DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = build_chat_tokenizer()
        pipe = QwenImagePipeline(
            transformer=QwenImageTransformer2DModel(**(SHARED | {"num_layers": 3} | transformer)).eval(),
            scheduler=FlowMatchEulerDiscreteScheduler(**SCHEDULER),
            vae=AutoencoderKLQwenImage(base_dim=4, z_dim=LATENTS, dim_mult=[1, 2, 2, 2], num_res_blocks=1).eval(),
            text_encoder=build_qwen_vl(len(tokenizer)),
            tokenizer=tokenizer,
        )
    pipe.save_pretrained(folder, safe_serialization=True)
    return folder


def build_controlnet(folder: Path, *, seed: int = 1, strength: float = 0.2, **config: Any) -> Path:
    """Write a QwenImageControlNetModel folder and return it, its zero layers drawn anew; config: entries of its config.json."""
    import torch
    from diffusers import QwenImageControlNetModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = QwenImageControlNetModel(**(SHARED | {"num_layers": 2} | config))
        for layer in [*net.controlnet_blocks, net.controlnet_x_embedder]:
            torch.nn.init.normal_(layer.weight, std=strength)
            torch.nn.init.normal_(layer.bias, std=strength)
    net.eval().save_pretrained(folder, safe_serialization=True)
    return folder
