"""What a single file is, and which networks it holds."""

from collections.abc import Callable, Mapping

from core.errors import BadModel
from pipelines.layouts.adapter import adapter, is_adapter
from pipelines.layouts.autoencoder import PREFIXES, SCALES, autoencoder
from pipelines.layouts.control_lora import control_lora
from pipelines.layouts.header import Header
from pipelines.layouts.part import Part
from pipelines.layouts.text import clip, open_clip, t5
from pipelines.layouts.transformers import flux, flux_controlnet, sd3, sd3_controlnet, xlabs_controlnet
from pipelines.layouts.unet import CONTROL, SIZES, SIZES_OF_REFINER, UNET, controlnet, diffusers_controlnet, unet
from pipelines.lora_file import reads_maps

REFINER = "conditioner.embedders.0.model."  # SDXL's refiner has the second text encoder in the first one's place


def _prefix(header: Header, first: str) -> str | None:
    """Before the denoising network's names, in a whole model and in a file of its own; None where `first` is in neither."""
    return next((prefix for prefix in (UNET, "") if header.has(prefix + first)), None)


def family_in(header: Header) -> str:
    """The family of a whole model, or of its denoising network alone; "" for anything else."""
    control = header.has(CONTROL) or header.has("input_hint_block.") or header.has("zero_convs.") or header.has("controlnet_blocks.")
    if control or reads_maps(header.shapes):
        return ""
    if _prefix(header, "double_blocks.") is not None:
        return "flux"
    if _prefix(header, "joint_blocks.") is not None:
        return "sd3"
    prefix = _prefix(header, "input_blocks.0.0.weight")
    if prefix is None:
        return ""
    return "sdxl" if header.has(f"{prefix}label_emb.0.0.") else "sd"


def parts_in(header: Header, family: str) -> dict[str, Callable[[], Part]]:
    """How each part that the file holds is read."""
    found: dict[str, Callable[[], Part]] = {}
    vae = next((prefix for prefix in PREFIXES if header.has(f"{prefix}decoder.conv_in.")), None)
    if vae is not None:
        found["vae"] = lambda: autoencoder(header, vae, SCALES[family])

    def add(part: str, prefix: str, first: str, read: Callable[[], Part]) -> None:
        if header.has(prefix + first):
            found.setdefault(part, read)

    if family == "sd":
        old = "cond_stage_model.transformer."
        add("text_encoder", old, "", lambda: clip(header, old, projected=False))
        add("text_encoder", "cond_stage_model.model.", "", lambda: open_clip(header, "cond_stage_model.model.", projected=False))
    elif family == "sdxl":
        first, second = (f"conditioner.embedders.{end}." for end in ("0.transformer", "1.model"))
        add("text_encoder", first, "", lambda: clip(header, first, projected=False))
        add("text_encoder_2", second, "", lambda: open_clip(header, second, projected=True))
        add("text_encoder_2", REFINER, "", lambda: open_clip(header, REFINER, projected=True))
    else:
        large, giant, t5xxl = (f"text_encoders.{name}.transformer." for name in ("clip_l", "clip_g", "t5xxl"))
        add("text_encoder", large, "", lambda: clip(header, large, projected=family == "sd3"))
        add("text_encoder_2" if family == "sd3" else "", giant, "", lambda: clip(header, giant, projected=True, act="gelu"))
        add("text_encoder_3" if family == "sd3" else "text_encoder_2", t5xxl, "", lambda: t5(header, t5xxl))
        found.pop("", None)
    return {**_denoiser(header, family, found), **found}


def _denoiser(header: Header, family: str, others: Mapping[str, Callable[[], Part]]) -> dict[str, Callable[[], Part]]:
    prefix = _prefix(header, {"flux": "double_blocks.", "sd3": "joint_blocks."}.get(family, "input_blocks.0.0.weight")) or ""
    if family == "flux":
        return {"transformer": lambda: flux(header, prefix)}
    if family == "sd3":
        return {"transformer": lambda: sd3(header, prefix)}

    def read() -> Part:
        pooled = others["text_encoder_2"]().config["projection_dim"] if "text_encoder_2" in others else None
        return unet(header, prefix, pooled, SIZES_OF_REFINER if header.has(REFINER) else SIZES)

    return {"unet": read}


def control_in(header: Header) -> Part:
    """The ControlNet, adapter or Control LoRA that a file is.

    Raises:
        BadModel: it is neither, nor a model.
    """
    if reads_maps(header.shapes):
        return control_lora(header)
    if header.has("double_blocks.") and header.has("controlnet_blocks."):
        return xlabs_controlnet(header)
    if header.has(CONTROL) or header.has("input_hint_block.0.weight"):
        return controlnet(header, CONTROL if header.has(CONTROL) else "")
    if header.has("controlnet_cond_embedding."):
        return diffusers_controlnet(header)
    if header.has("controlnet_blocks."):
        if header.has("pos_embed_input."):
            return sd3_controlnet(header)
        if header.has("controlnet_x_embedder."):
            return flux_controlnet(header)
    if is_adapter(header):
        return adapter(header)
    raise BadModel(f"{str(header.path)!r} {_what_else(header)}")


def _what_else(header: Header) -> str:
    """What a file is that is no model and no control, and the remedy."""
    names = list(header.shapes)
    if any("lora" in name for name in names):
        return "is a LoRA: name it in the prompt as <lora:name:1>, or in the request's loras"
    if names and all(name.startswith(("encoder.", "decoder.", "quant_conv.", "post_quant_conv.", "loss.")) for name in names):
        return "is an autoencoder alone: give a whole model, and this with --vae"
    if header.has("down_blocks.") or header.has("transformer_blocks."):
        return "is one network under diffusers' names, without its configuration: give the whole diffusers folder"
    if header.has("emb_params") or header.has("clip_l"):
        return "is a textual inversion: put it into a folder 'embeddings'"
    shown = names[0][:60] if names else "nothing"
    return (
        f"is of an unknown layout (it holds {shown!r}): known are the original files of SD 1.x, 2.x, XL, 3, FLUX.1, and their ControlNets"
    )
