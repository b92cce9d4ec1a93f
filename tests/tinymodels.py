"""Tiny real models on disk, laid out as published checkpoints are: every class and file name is the real one, only the widths are small.

A base is a `StableDiffusionPipeline` folder (fp32, safetensors), a ControlNet a `ControlNetModel` folder whose zero convolutions have been
drawn anew, for with zeros a ControlNet would do nothing. Weights are random and depend on the seed alone.
"""

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

CAPTIONS = (
    "a red sphere left of a blue cube on grass at sunset",
    "a person in a green shirt and black pants on snow at night",
    "a yellow cone behind a white capsule on sand by day",
    "an orange cube and a purple sphere on stone",
)
SIZE_PX = 64  # 8 × 8 latents


def build_base(folder: Path, *, prediction_type: str = "epsilon", seed: int = 0, width: int = 32, **scheduler: Any) -> Path:
    """Write a Stable Diffusion folder and return it.

    width: of the text encoder and so of the cross-attention; scheduler: extra entries of `scheduler_config.json`.
    """
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    tokenizer = build_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = AutoencoderKL(
            block_out_channels=(8, 8, 16, 16),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=SIZE_PX,
        )
        text_encoder = build_clip(tokenizer, width)
        unet = UNet2DConditionModel(
            sample_size=SIZE_PX // 8,
            block_out_channels=(32, 64),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1,
            cross_attention_dim=width,
            attention_head_dim=4,
            norm_num_groups=8,
        )
    config = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "prediction_type": prediction_type,
        "clip_sample": False,
        "steps_offset": 1,
        "set_alpha_to_one": False,
    }
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=DDIMScheduler(**(config | scheduler)),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder, safe_serialization=True)
    return folder


def build_controlnet(folder: Path, base: Path, *, seed: int = 1, strength: float = 0.2) -> Path:
    """Write a ControlNet folder for `base` and return it; its zero convolutions are normal with deviation `strength`."""
    import torch
    from diffusers import ControlNetModel, UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(base, subfolder="unet")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 8, 16, 16))
        zero_convs = [*net.controlnet_down_blocks, net.controlnet_mid_block, net.controlnet_cond_embedding.conv_out]
        for conv in zero_convs:
            torch.nn.init.normal_(conv.weight, std=strength)
            torch.nn.init.normal_(conv.bias, std=strength)
    net.eval().save_pretrained(folder, safe_serialization=True)
    return folder


def build_tokenizer(vocabulary: int = 320, length: int = 77) -> Any:
    """A CLIPTokenizer with a vocabulary of its own, trained on `CAPTIONS`; other words split into known pieces."""
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer().train_new_from_iterator(list(CAPTIONS), vocab_size=vocabulary)
    tokenizer.model_max_length = length
    return tokenizer


def build_clip(tokenizer: Any, width: int, *, layers: int = 1, projection: int | None = None) -> Any:
    """A CLIP text encoder, with a projection where the pooled prompt is to be read."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=projection or width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def control_map(seed: int) -> NDArray[np.uint8]:
    """A ready map of noise, RGB uint8 HWC at the tiny models' size."""
    return np.random.default_rng(seed).integers(0, 256, (SIZE_PX, SIZE_PX, 3), dtype=np.uint8)


def build_models(folder: Path) -> Path:
    """Write what a renderer needs: `base` with `controlnet-canny` and `controlnet-depth` beside it, and `wide` and `wide-net` of another
    text width, which do not fit them."""
    build_base(folder / "base")
    for seed, kind in enumerate(("canny", "depth")):
        build_controlnet(folder / f"controlnet-{kind}", folder / "base", seed=seed + 1)
    build_base(folder / "wide", width=48)
    build_controlnet(folder / "wide-net", folder / "wide")
    return folder


def build_pictures(folder: Path) -> Path:
    """Write files to control with: `photo.png` of coloured blocks, a ready map `depth.png`, and a mask `left.png` of the left half."""
    random = np.random.default_rng(0)
    blocks = np.kron(random.integers(0, 256, (8, 8, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8))
    PIL.Image.fromarray(blocks).save(folder / "photo.png")
    PIL.Image.fromarray(control_map(1)).save(folder / "depth.png")
    half_HW = np.zeros((SIZE_PX, SIZE_PX), np.uint8)
    half_HW[:, : SIZE_PX // 2] = 255
    PIL.Image.fromarray(half_HW).save(folder / "left.png")
    return folder
