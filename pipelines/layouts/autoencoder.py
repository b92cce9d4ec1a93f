"""AutoencoderKL in the original layout. Its latents' scale stands in no file: it is the published one of the family."""

from typing import Any

from torch import Tensor

from pipelines.layouts.header import Header, count
from pipelines.layouts.part import Part

# Of each family's latents: what they are multiplied with, and what is taken off before. Source: the models' published configurations.
SCALES: dict[str, dict[str, float]] = {
    "sd": {"scaling_factor": 0.18215},
    "sdxl": {"scaling_factor": 0.13025},
    "sd3": {"scaling_factor": 1.5305, "shift_factor": 0.0609},
    "flux": {"scaling_factor": 0.3611, "shift_factor": 0.1159},
}
PREFIXES = ("first_stage_model.", "vae.")


def autoencoder(header: Header, prefix: str, family: str) -> Part:
    """The autoencoder of a single file."""
    shapes = header.under(prefix)
    levels = count(shapes, "encoder.down.*.")
    config: dict[str, Any] = {
        "in_channels": shapes["encoder.conv_in.weight"][1],
        "out_channels": shapes["decoder.conv_out.weight"][0],
        "block_out_channels": [shapes[f"encoder.down.{i}.block.0.conv2.weight"][0] for i in range(levels)],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": count(shapes, "encoder.down.0.block.*."),
        "latent_channels": shapes["decoder.conv_in.weight"][1],
        "use_quant_conv": "quant_conv.weight" in shapes,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes,
        "force_upcast": family == "sdxl",  # its activations outgrow half precision
        **SCALES[family],
    }

    def tensors() -> dict[str, Tensor]:
        from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

        found = header.tensors(
            {"vae." + name: prefix + name for name in shapes if name.startswith(("encoder", "decoder", "quant", "post"))}
        )
        converted: dict[str, Tensor] = convert_ldm_vae_checkpoint(found, config)
        return converted

    return Part("AutoencoderKL", config, tensors)
