"""The `parameters` text of a picture, as AUTOMATIC1111's web UI and its ControlNet extension write it.

Galleries and other tools read it. It is a summary: what has no counterpart there is left out, and the full truth stands in
our own record. Source: the format the web UI documents by its "PNG Info" tab.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from core.request import ControlUnit, RenderRequest

SAMPLER_NAMES = {
    "euler": "Euler",
    "euler_ancestral": "Euler a",
    "heun": "Heun",
    "dpm2": "DPM2",
    "dpm2_ancestral": "DPM2 a",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "dpmpp_3m_sde": "DPM++ 3M SDE",
    "dpmpp_sde": "DPM++ SDE",
    "unipc": "UniPC",
    "deis": "DEIS",
    "ddim": "DDIM",
    "ddpm": "DDPM",
    "pndm": "PLMS",
    "lcm": "LCM",
    "tcd": "TCD",
}
_SCHEDULES = {"sgm_uniform": "SGM Uniform"}
_RESIZE = {"just": "Just Resize", "crop": "Crop and Resize", "fill": "Resize and Fill"}
_MODE = {
    "balanced": "Balanced",
    "prompt": "My prompt is more important",
    "control": "ControlNet is more important",
    "guess": "ControlNet is more important",  # its nearest counterpart
}
_THRESHOLDS = {"canny": ("low", "high")}  # which of our settings the extension shows as its thresholds A and B


def infotext(request: RenderRequest, index: int, hashes: Mapping[str, str], params: Sequence[Mapping[str, Any]], version: str) -> str:
    """The text for the request's picture `index`.

    `hashes` holds the SHA-256 of the weights by part ('base', 'control 0', …), `params` each control's settings.
    """
    seed, variation = request.seeds(index)
    settings: dict[str, Any] = {
        "Steps": request.steps,
        "Sampler": SAMPLER_NAMES.get(request.sampler, request.sampler),
        "Schedule type": _SCHEDULES.get(request.schedule, request.schedule.capitalize()),
        "CFG scale": request.guidance_scale,
        "Seed": seed,
        "Size": f"{request.width}x{request.height}",
        "Model hash": hashes.get("base", "")[:10],
        "Model": _model_name(request.model),
        **_where_asked(request, variation),
    }
    for place, unit in enumerate(request.controls):
        used = params[place] if place < len(params) else {}
        settings[f"ControlNet {place}"] = _unit(request, unit, hashes.get(f"control {place}", ""), used)
    settings["Version"] = f"limn {version}".strip()
    lines = [request.prompt]
    if request.negative_prompt:
        lines.append(f"Negative prompt: {request.negative_prompt}")
    lines.append(_joined(settings))
    return "\n".join(lines).replace("\0", "")  # a NUL ends a PNG text


def _where_asked(request: RenderRequest, variation: int | None) -> dict[str, Any]:
    """What the web UI writes only where it is used."""
    settings: dict[str, Any] = {}
    if variation is not None:
        settings |= {"Variation seed": variation, "Variation seed strength": request.variation_strength}
    if request.init_image is not None:
        settings["Denoising strength"] = request.strength
    if request.clip_skip != 1:
        settings["Clip skip"] = request.clip_skip
    if request.eta is not None:
        settings["Eta"] = request.eta
    if request.hires is not None:
        hires = request.hires
        settings |= {
            "Denoising strength": hires.strength,
            "Hires upscale": hires.scale,
            "Hires steps": max(1, int((hires.steps or request.steps) * hires.strength)),  # there, those that are walked
            "Hires upscaler": "Latent" if hires.upscaler == "latent" else "Lanczos",
        }
    return settings


def _unit(request: RenderRequest, unit: ControlUnit, sha256: str, params: Mapping[str, Any]) -> str:
    name = _model_name(unit.model or unit.kind)
    thresholds = {label: params[key] for label, key in zip("AB", _THRESHOLDS.get(unit.kind, ()), strict=False) if key in params}
    settings = {
        "Module": "none" if unit.ready else unit.kind,
        "Model": f"{name} [{sha256[:8]}]" if sha256 else name,
        "Weight": unit.weight,
        "Resize Mode": _RESIZE[unit.resize],
        "Processor Res": unit.processor_px or min(request.width, request.height),
        **{f"Threshold {label}": value for label, value in thresholds.items()},
        "Guidance Start": unit.start,
        "Guidance End": unit.end,
        "Pixel Perfect": False,
        "Control Mode": _MODE[unit.mode],
    }
    return _joined(settings)


def _joined(settings: Mapping[str, Any]) -> str:
    """`Key: value` pairs; a value in which a separator stands is quoted as JSON."""
    return ", ".join(f"{key}: {_quoted(str(value))}" for key, value in settings.items() if value != "")


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if any(separator in value for separator in ",:\n") else value


def _model_name(model: str) -> str:
    """The last part of a folder, a file (without its ending) or a hub id: what a reader calls the model."""
    return PurePath(model).name.removesuffix(".safetensors") or model
