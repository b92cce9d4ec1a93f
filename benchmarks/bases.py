"""Published models' configurations with random weights and every width divided: each part costs in proportion what it really does."""

from pathlib import Path
from typing import Any

from pipelines.engine import resolve
from pipelines.loading import quiet

DIVISORS = {"sd15": (1, 2, 4), "sdxl": (1, 5)}  # that leave whole heads, each as wide as in the model itself


def shrunk(family: str, folder: Path, divisor: int) -> Path:
    """A diffusers folder of one of `DIVISORS`."""
    with quiet():
        return {"sd15": _sd15, "sdxl": _sdxl}[family](folder, divisor)


def _sd15(folder: Path, divisor: int) -> Path:
    """Stable Diffusion 1.5. Source: its published config files."""
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel

    unet = UNet2DConditionModel(
        block_out_channels=[width // divisor for width in (320, 640, 1280, 1280)],
        norm_num_groups=32 // divisor,
        attention_head_dim=8 // divisor,  # the number of heads, in spite of its name
        cross_attention_dim=768 // divisor,
        sample_size=64,
    )
    tokenizer, encoder = _text(768 // divisor, 12 // divisor, 12, hidden_act="quick_gelu")
    parts = {"vae": _vae(divisor), "text_encoder": encoder, "tokenizer": tokenizer, "unet": unet, "scheduler": _scheduler()}
    missing = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    StableDiffusionPipeline(**parts, **missing).save_pretrained(folder)
    return folder


def _sdxl(folder: Path, divisor: int) -> Path:
    """Stable Diffusion XL. Autoencoder and text encoders are divided by 4 where the UNet is by 5. Source: its published config files."""
    from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel

    other = 4 if divisor > 1 else 1
    unet = UNet2DConditionModel(
        block_out_channels=[width // divisor for width in (320, 640, 1280)],
        down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        transformer_layers_per_block=[1, 2, 10],
        attention_head_dim=[heads // divisor for heads in (5, 10, 20)],  # numbers of heads
        cross_attention_dim=2048 // other,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256 // other,
        projection_class_embeddings_input_dim=2816 // other,
        sample_size=128,
    )
    tokenizer, encoder = _text(768 // other, 12 // other, 12, hidden_act="quick_gelu")
    tokenizer_2, encoder_2 = _text(1280 // other, 20 // other, 32, hidden_act="gelu", projection_dim=1280 // other)
    texts = {"tokenizer": tokenizer, "text_encoder": encoder, "tokenizer_2": tokenizer_2, "text_encoder_2": encoder_2}
    vae = _vae(other, scaling_factor=0.13025, sample_size=1024)
    StableDiffusionXLPipeline(vae=vae, unet=unet, scheduler=_scheduler(), **texts).save_pretrained(folder)
    return folder


def _vae(divisor: int, **config: Any) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=[width // divisor for width in (128, 256, 512, 512)],
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        layers_per_block=2,
        norm_num_groups=32 // divisor,
        **config,
    )


def _text(width: int, heads: int, layers: int, **config: Any) -> tuple[Any, Any]:
    """A tokenizer of toyland's words and a CLIP text encoder for it."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(resolve("toyland") / "tokenizer", model_max_length=77)
    config |= {"vocab_size": len(tokenizer), "num_hidden_layers": layers, "num_attention_heads": heads, "max_position_embeddings": 77}
    config |= {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
    kind: Any = CLIPTextModelWithProjection if "projection_dim" in config else CLIPTextModel
    return tokenizer, kind(CLIPTextConfig(hidden_size=width, intermediate_size=4 * width, **config))


def _scheduler() -> Any:
    from diffusers import DDIMScheduler

    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    return DDIMScheduler(**betas, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
