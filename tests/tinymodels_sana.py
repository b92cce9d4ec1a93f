"""Tiny Sana checkpoints on disk, laid out as published ones are; see `tests.tinymodels`."""

from pathlib import Path
from typing import Any

from tests.tinymodels import CAPTIONS

HEADS, HEAD_WIDTH, TEXT_WIDTH, CHANNELS = 2, 8, 32, 4


def build_base(folder: Path, *, seed: int = 0, flow_match: bool = False, **config: Any) -> Path:
    """Write a Sana folder and return it, with a DPM-Solver as published, or (flow_match) Euler's method; config: the transformer's."""
    import torch
    from diffusers import (
        AutoencoderDC,
        DPMSolverMultistepScheduler,
        FlowMatchEulerDiscreteScheduler,
        SanaPipeline,
        SanaTransformer2DModel,
    )
    from transformers import Gemma2Config, Gemma2Model

    tokenizer = build_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = SanaTransformer2DModel(**(transformer_config() | {"num_layers": 4, "out_channels": CHANNELS} | config))
        # Four blocks, the sizes of diffusers' own tests: a latent cell is 8 pixels instead of 32.
        vae = AutoencoderDC(
            latent_channels=CHANNELS,
            attention_head_dim=2,
            encoder_block_types=("ResBlock", "ResBlock", "ResBlock", "EfficientViTBlock"),
            decoder_block_types=("ResBlock", "ResBlock", "ResBlock", "EfficientViTBlock"),
            encoder_block_out_channels=(8, 8, 8, 8),
            decoder_block_out_channels=(8, 8, 8, 8),
            encoder_layers_per_block=(1, 1, 1, 1),
            decoder_layers_per_block=(1, 1, 1, 1),
            encoder_qkv_multiscales=((), (), (), (5,)),
            decoder_qkv_multiscales=((), (), (), (5,)),
            downsample_block_type="conv",
            upsample_block_type="interpolate",
            scaling_factor=0.41407,
        )
        text_encoder = Gemma2Model(
            Gemma2Config(
                vocab_size=len(tokenizer),
                hidden_size=TEXT_WIDTH,
                intermediate_size=2 * TEXT_WIDTH,
                head_dim=8,
                num_attention_heads=2,
                num_key_value_heads=2,
                num_hidden_layers=1,
                pad_token_id=tokenizer.pad_token_id,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                attn_implementation="eager",
            )
        )
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0) if flow_match else DPMSolverMultistepScheduler(**flow)
    pipe = SanaPipeline(
        tokenizer=tokenizer, text_encoder=text_encoder.eval(), vae=vae.eval(), transformer=transformer.eval(), scheduler=scheduler
    )
    pipe.save_pretrained(folder, safe_serialization=True)
    return folder


def build_controlnet(folder: Path, *, seed: int = 1, strength: float = 0.2, **config: Any) -> Path:
    """Write a SanaControlNetModel folder and return it, its zero layers drawn anew; config: entries of its config.json."""
    import torch
    from diffusers import SanaControlNetModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = SanaControlNetModel(**(transformer_config() | {"num_layers": 2} | config))
        for layer in [*net.controlnet_blocks, net.input_block]:
            torch.nn.init.normal_(layer.weight, std=strength)
            torch.nn.init.normal_(layer.bias, std=strength)
    net.eval().save_pretrained(folder, safe_serialization=True)
    return folder


def transformer_config() -> dict[str, Any]:
    """What base and ControlNet share."""
    return {
        "in_channels": CHANNELS,
        "num_attention_heads": HEADS,
        "attention_head_dim": HEAD_WIDTH,
        "num_cross_attention_heads": HEADS,
        "cross_attention_head_dim": HEAD_WIDTH,
        "cross_attention_dim": HEADS * HEAD_WIDTH,
        "caption_channels": TEXT_WIDTH,
        "sample_size": 8,
        "patch_size": 1,
    }


def build_tokenizer(vocabulary: int = 320) -> Any:
    """A Gemma tokenizer with a vocabulary of its own, which begins every text with its start token."""
    from tokenizers.processors import TemplateProcessing
    from transformers import GemmaTokenizer

    tokenizer = GemmaTokenizer().train_new_from_iterator(list(CAPTIONS), vocab_size=vocabulary)
    start = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{start} $A", special_tokens=[(start, tokenizer.bos_token_id)])
    return tokenizer
