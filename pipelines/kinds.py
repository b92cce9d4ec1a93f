"""What a file that is not the wanted kind of ControlNet is, in words: refusals name what was given."""

from core.errors import BadModel, Mismatch, UserError
from pipelines.checkpoint import Checkpoint

_KNOWN = {
    "ControlNetModel": "a ControlNet for Stable Diffusion or SDXL",
    "ControlNetUnionModel": "a union ControlNet for SDXL",
    "ControlNetXSAdapter": "a ControlNet-XS adapter for Stable Diffusion or SDXL",
    "FluxControlLora": "a Control LoRA for FLUX.1",
    "FluxControlNetModel": "a ControlNet for FLUX.1",
    "HunyuanDiT2DControlNetModel": "a ControlNet for HunyuanDiT",
    "LimnControlNetModel": "a ControlNet for Stable Diffusion or SDXL, of Limn's own layout",
    "LimnFluxControlNetModel": "a ControlNet for FLUX.1, of Limn's own layout",
    "LimnSD3ControlNetModel": "a ControlNet for Stable Diffusion 3, of Limn's own layout",
    "QwenImageControlNetModel": "a ControlNet for Qwen-Image",
    "SD3ControlNetModel": "a ControlNet for Stable Diffusion 3",
    "SanaControlNetModel": "a ControlNet for Sana",
    "SparseControlNetModel": "a ControlNet for AnimateDiff",
    "T2IAdapter": "a T2I-Adapter for Stable Diffusion or SDXL",
    "ZImageControlNetModel": "a ControlNet for Z-Image",
}


def wrong_kind(checkpoint: Checkpoint, base: Checkpoint, wanted: str, title: str) -> UserError:
    """The refusal of a checkpoint that is not of the class `wanted`, beside a base model of the family `title`."""
    where, kind = str(checkpoint.path), checkpoint.classes.get("")
    if kind in _KNOWN:
        return Mismatch(f"{where!r} is {_KNOWN[kind]}, the base model {str(base.path)!r} is {title}: use a {wanted} made for {title}")
    if kind is not None and kind.endswith("Pipeline"):
        return BadModel(f"{where!r} is a whole model ({kind}), not a {wanted}: give a ControlNet's folder")
    return BadModel(f"{where!r} is {kind or 'of an unknown class'}, not a {wanted}: give a ControlNet's folder")
