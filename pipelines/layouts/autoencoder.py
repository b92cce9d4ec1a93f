"""AutoencoderKL in the original layout. Its latents' scale stands in no file: it is the published one of the family."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pipelines.layouts.header import Header, Shape, count
from pipelines.layouts.part import Part

# Of each family's latents: what they are multiplied with, and what is taken off before. Source: the models' published configurations.
SCALES: dict[str, dict[str, Any]] = {
    "sd": {"scaling_factor": 0.18215, "force_upcast": False},
    "sdxl": {"scaling_factor": 0.13025, "force_upcast": True},  # its activations outgrow half precision
    "sd3": {"scaling_factor": 1.5305, "shift_factor": 0.0609, "force_upcast": False},
    "flux": {"scaling_factor": 0.3611, "shift_factor": 0.1159, "force_upcast": False},
}
PREFIXES = ("first_stage_model.", "vae.")


def autoencoder(header: Header, prefix: str, scales: Mapping[str, Any]) -> Part:
    """An autoencoder under its original names. scales: what its tensors do not say of its latents, and of the numbers it computes in."""
    shapes = header.under(prefix)
    config = _config(shapes, "encoder.down.{}.block.") | dict(scales)

    def tensors() -> dict[str, Tensor]:
        from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

        found = header.tensors(
            {"vae." + name: prefix + name for name in shapes if name.startswith(("encoder", "decoder", "quant", "post"))}
        )
        converted: dict[str, Tensor] = convert_ldm_vae_checkpoint(found, config)
        return converted

    return Part("AutoencoderKL", config, tensors)


def diffusers_autoencoder(header: Header, scales: Mapping[str, Any]) -> Part:
    """An autoencoder alone in a file, under diffusers' names."""
    shapes = header.shapes
    config = _config(shapes, "encoder.down_blocks.{}.resnets.") | dict(scales)
    return Part("AutoencoderKL", config, lambda: _renamed(header.tensors({name: name for name in shapes})))


def _config(shapes: Mapping[str, Shape], block: str) -> dict[str, Any]:
    """What shapes say. block: what a level's blocks are called, {} for its number."""
    levels = count(shapes, f"{block.partition('{}')[0]}*.")
    return {
        "in_channels": shapes["encoder.conv_in.weight"][1],
        "out_channels": shapes["decoder.conv_out.weight"][0],
        "block_out_channels": [shapes[f"{block.format(i)}0.conv2.weight"][0] for i in range(levels)],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": count(shapes, f"{block.format(0)}*."),
        "latent_channels": shapes["decoder.conv_in.weight"][1],
        "use_quant_conv": "quant_conv.weight" in shapes,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes,
    }


# How attention was called before diffusers 0.18; published files still hold these names.
_OLD = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


def _renamed(found: dict[str, Tensor]) -> dict[str, Tensor]:
    for name in list(found):
        new = name
        for old, today in _OLD.items():
            new = new.replace(old, today) if ".attentions." in name else new
        found[new] = found.pop(name)
    return found
