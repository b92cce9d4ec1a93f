"""Tiny Stable Diffusion 3 checkpoints on disk, laid out as published ones are; see `tests.tinymodels`.

The autoencoder's deviation is drawn down to nothing: diffusers samples latents of control images without a generator, and with no deviation
a sample is the mean.
"""

from pathlib import Path
from typing import Any

from tests.tinymodels import CAPTIONS, SIZE_PX, build_clip, build_tokenizer

WIDTH, CLIP_WIDTH, TEXT_WIDTH = 32, 16, 48  # of the transformer, of each CLIP encoder, and of the text that is read


def build_base(folder: Path, *, seed: int = 0, t5: bool = True, version: str = "3", **scheduler: Any) -> Path:
    """Write a Stable Diffusion 3 folder and return it.

    version: "3.5" has QK norm and a second attention in its first layer, "3-inpaint" takes mask and picture as channels besides;
    scheduler: entries of `scheduler_config.json`.
    """
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
    from transformers import T5Config, T5EncoderModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = SD3Transformer2DModel(
            **transformer_config(version), num_layers=4, dual_attention_layers=(0,) if version == "3.5" else (), pos_embed_max_size=12
        )
        t5_tokenizer = build_t5_tokenizer()
        t5_encoder = T5EncoderModel(
            T5Config(
                vocab_size=len(t5_tokenizer),
                d_model=TEXT_WIDTH,
                d_ff=TEXT_WIDTH,
                d_kv=8,
                num_heads=4,
                num_layers=1,
                is_encoder_decoder=False,
            )
        )
        pipe = StableDiffusion3Pipeline(
            transformer=transformer.eval(),
            scheduler=FlowMatchEulerDiscreteScheduler(**({"shift": 3.0} | scheduler)),
            vae=build_vae(),
            text_encoder=build_clip(build_tokenizer(), CLIP_WIDTH, layers=2, projection=CLIP_WIDTH),
            tokenizer=build_tokenizer(),
            text_encoder_2=build_clip(build_tokenizer(), CLIP_WIDTH, layers=2, projection=CLIP_WIDTH),
            tokenizer_2=build_tokenizer(),
            text_encoder_3=t5_encoder.eval() if t5 else None,
            tokenizer_3=t5_tokenizer if t5 else None,
        )
    pipe.save_pretrained(folder, safe_serialization=True)
    return folder


def build_controlnet(folder: Path, *, version: str = "3", seed: int = 1, strength: float = 0.2, **config: Any) -> Path:
    """Write an SD3ControlNetModel folder and return it, its zero layers drawn anew; config: entries of its config.json."""
    import torch
    from diffusers import SD3ControlNetModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = SD3ControlNetModel(**(transformer_config(version) | {"num_layers": 2, "pos_embed_max_size": 12} | config))
        for layer in [*net.controlnet_blocks, net.pos_embed_input.proj]:
            torch.nn.init.normal_(layer.weight, std=strength)
            torch.nn.init.normal_(layer.bias, std=strength)
    net.eval().save_pretrained(folder, safe_serialization=True)
    return folder


def transformer_config(version: str) -> dict[str, Any]:
    """What base and ControlNet share."""
    return {
        "sample_size": SIZE_PX // 8,
        "patch_size": 2,
        "in_channels": 33 if version == "3-inpaint" else 16,
        "out_channels": 16,
        "attention_head_dim": WIDTH // 4,
        "num_attention_heads": 4,
        "joint_attention_dim": TEXT_WIDTH,
        "caption_projection_dim": WIDTH,
        "pooled_projection_dim": 2 * CLIP_WIDTH,
        "qk_norm": "rms_norm" if version == "3.5" else None,
    }


def build_vae() -> Any:
    """SD3's autoencoder: sixteen channels, a shift, no quantising convolutions."""
    import torch
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=4,
        sample_size=SIZE_PX,
        scaling_factor=1.5305,
        shift_factor=0.0609,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    torch.nn.init.zeros_(vae.encoder.conv_out.weight[16:])
    torch.nn.init.constant_(vae.encoder.conv_out.bias[16:], -30.0)
    return vae.eval()


def build_t5_tokenizer(vocabulary: int = 320, length: int = 256) -> Any:
    """A T5 tokenizer with a vocabulary of its own, trained on the captions."""
    from transformers import T5Tokenizer

    tokenizer = T5Tokenizer().train_new_from_iterator(list(CAPTIONS), vocab_size=vocabulary)
    tokenizer.model_max_length = length
    return tokenizer
