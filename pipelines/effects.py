"""Settings that a model cannot follow, or that would do nothing: asked of its outline and of its controls' configurations."""

from collections.abc import Iterator, Sequence

from core.errors import BadRequest, Mismatch
from core.request import ControlUnit, RenderRequest
from pipelines.checkpoint import Checkpoint
from pipelines.clip import check_clip_skip
from pipelines.family import Family
from pipelines.skipping import idle_skip, skipped_blocks
from pipelines.steering import check_acts, idle_window
from pipelines.t2i_adapter import adapter_features, check_size

_UNET_CONTROLS = ("ControlNetModel", "ControlNetUnionModel", "LimnControlNetModel")
_CLIPS = ("text_encoder", "text_encoder_2")
# Blocks of the transformers' ControlNets by class: the entries of their configurations that count them, with the library's defaults.
_COUNTS = {
    "SD3ControlNetModel": {"num_layers": 18},
    "FluxControlNetModel": {"num_layers": 19, "num_single_layers": 38},
    "SanaControlNetModel": {"num_layers": 7},
    "QwenImageControlNetModel": {"num_layers": 60},
}


def check_guidance(request: RenderRequest, family: Family) -> None:
    """
    Raises:
        BadRequest: a second scale for a family that has one, or blocks to be skipped that the model does not have.
        Mismatch: perturbed attention or skipped layers, of a family that has none.
    """
    if family.guidance == "classifier_free" and request.true_cfg_scale != 1.0:
        raise BadRequest(
            f"true_cfg_scale = {request.true_cfg_scale:g}: {family.title} is guided by guidance_scale; leave true_cfg_scale at 1"
        )
    if request.pag_scale and not family.perturbed_layers:
        raise Mismatch(f"{family.title} has no perturbed-attention guidance: set pag_scale to 0")
    if request.skip_layers is not None:
        skipped_blocks(family, request.skip_layers)


def check_layer(request: RenderRequest, family: Family) -> None:
    """
    Raises:
        BadRequest: clip_skip is more than the model's CLIP has layers.
    """
    networks = family.networks()
    if family.clip_layer is None:
        return
    for name in _CLIPS:
        if name in networks:
            check_clip_skip(networks[name], request.clip_skip, family.clip_layer)


def check_control(unit: ControlUnit, net: Checkpoint | None, sizes: Sequence[tuple[int, int]]) -> None:
    """Whether a control can act as its unit says. net: None for a base that reads the map itself; sizes: to be drawn at, in pixels.

    Raises:
        Mismatch: a region or weights for levels that the network does not have.
        BadRequest: a size that a T2I-Adapter cannot take.
    """
    kind, config = (None, {}) if net is None else (net.classes.get(""), net.config(""))
    pooled = kind in _UNET_CONTROLS and bool(config.get("global_pool_conditions"))
    check_acts(unit.layer_weights, None if net is None else levels_of(net), masked=unit.mask is not None, pooled=pooled)
    for size in sizes if kind == "T2IAdapter" else ():
        check_size(size, int(config.get("downscale_factor", 8)))


def levels_of(net: Checkpoint) -> int | None:
    """How many residuals a control gives, by its configuration; None where that does not say."""
    kind, config = net.classes.get(""), net.config("")
    if kind == "T2IAdapter":
        return len(adapter_features(config))
    if kind in _UNET_CONTROLS:
        if config.get("residual_channels"):
            return len(config["residual_channels"])
        blocks = len(config.get("block_out_channels", (320, 640, 1280, 1280)))
        return blocks * (int(config.get("layers_per_block", 2)) + 1) + 1  # the first convolution for the shrinking that the last lacks
    if kind in _COUNTS:
        return sum(int(config.get(name, default)) for name, default in _COUNTS[kind].items())
    return len(config["control_layers_places"]) if config.get("control_layers_places") else None


def without_effect(request: RenderRequest, family: Family, steps: Sequence[int]) -> Iterator[tuple[str, str]]:
    """(part of the request, sentence) for what will do nothing. steps: of each stage, as they are walked."""
    if family.guidance != "classifier_free" and request.negative_prompt.strip() and request.true_cfg_scale == 1.0:
        yield "negative_prompt", f"{family.title} reads no negative prompt unless true_cfg_scale is above 1: it has no effect here"
    if request.clip_skip != 1 and family.clip_layer is None:
        yield "clip_skip", f"{family.title} reads no states of CLIP: clip_skip has no effect here"
    steered = steps if request.hires is None or request.hires.with_control else steps[:1]
    for count in dict.fromkeys(steered):
        for i, unit in enumerate(request.controls):
            if unit.weight and (idle := idle_window(unit.start, unit.end, count)) is not None:
                yield f"control {i} ({unit.kind})", f"a control {idle}"
    for count in dict.fromkeys(steps):
        if (idle := idle_window(request.guidance_start, request.guidance_end, count)) is not None:
            yield "guidance", f"guidance {idle}"
        if request.skip_layers is not None and (sentence := idle_skip(request.skip_layers, count)) is not None:
            yield "skip_layers", sentence
