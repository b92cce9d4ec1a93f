"""Settings inside other programs' pictures, as far as Limn has the same: AUTOMATIC1111's text, ComfyUI's graph, InvokeAI's metadata.

Sources: the A1111 web UI's "PNG Info" text; ComfyUI's `prompt` text, the graph as {id: {class_type, inputs}}, where an input is a value or
[id, output]; InvokeAI's `invokeai_metadata` text, one flat JSON object.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from core.errors import BadRequest
from core.infotext import SAMPLER_NAMES
from core.request import RenderRequest
from web.settings import bound

_A1111 = {
    "Steps": ("steps", int),
    "CFG scale": ("guidance_scale", float),
    "Seed": ("seed", int),
    "Clip skip": ("clip_skip", int),
    "Variation seed": ("variation_seed", int),
    "Variation seed strength": ("variation_strength", float),
}
_A1111_READ = {*_A1111, "Size", "Sampler", "Schedule type", "Model", "Denoising strength", "Hires upscale", "Hires steps", "Hires upscaler"}
_A1111_OF_FILES = {"Model hash", "Version", "Hashes", "Lora hashes", "TI hashes", "VAE hash", "Batch size", "Batch pos", "User"}
_INVOKE_REST = (
    "loras",
    "vae",
    "ipAdapters",
    "t2iAdapters",
    "hrf_enabled",
    "refiner_model",
    "seamless_x",
    "seamless_y",
    "cfg_rescale_multiplier",
)
_FIELD = re.compile(r'\s*([A-Za-z][\w \-/]*):\s*("(?:\\.|[^"\\])*"|[^,]*)(?:,|$)')
_COMFY_SAMPLERS = {
    "euler": "euler", "euler_ancestral": "euler_ancestral", "heun": "heun", "dpm_2": "dpm2", "dpm_2_ancestral": "dpm2_ancestral",
    "dpmpp_2m": "dpmpp_2m", "dpmpp_2m_sde": "dpmpp_2m_sde", "dpmpp_3m_sde": "dpmpp_3m_sde", "dpmpp_sde": "dpmpp_sde",
    "uni_pc": "unipc", "ddim": "ddim", "ddpm": "ddpm", "lcm": "lcm", "deis": "deis",
}  # fmt: skip
_INVOKE_SAMPLERS = {
    "euler": "euler", "euler_a": "euler_ancestral", "heun": "heun", "kdpm_2": "dpm2", "kdpm_2_a": "dpm2_ancestral", "dpmpp_2m": "dpmpp_2m",
    "dpmpp_2m_k": "dpmpp_2m", "dpmpp_2m_sde": "dpmpp_2m_sde", "unipc": "unipc", "deis": "deis", "ddim": "ddim", "ddpm": "ddpm",
    "pndm": "pndm", "lcm": "lcm", "tcd": "tcd",
}  # fmt: skip
_COMFY_SCHEDULES = {
    "normal": "uniform",
    "karras": "karras",
    "exponential": "exponential",
    "sgm_uniform": "sgm_uniform",
    "simple": "simple",
    "beta": "beta",
}
_MOST_NODES = 2000

Found = tuple[str, dict[str, Any], list[str]]  # the program, values of a request's fields, and what there was besides


def read_foreign(texts: Mapping[str, str]) -> Found | None:
    """What another program wrote into a PNG; None where nothing is known.

    Raises:
        BadRequest: there is such a text, but it is damaged.
    """
    for key, program, read in (
        ("invokeai_metadata", "InvokeAI", _invokeai),
        ("prompt", "ComfyUI", _comfyui),
        ("parameters", "AUTOMATIC1111", _a1111),
    ):
        if key not in texts:
            continue
        try:
            values, rest = read(texts[key])
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
            raise BadRequest(f"the settings that {program} wrote into this picture are damaged: use an undamaged copy") from None
        return program, {name: value for name, value in values.items() if value is not None}, rest
    return None


def _a1111(text: str) -> tuple[dict[str, Any], list[str]]:
    lines = text.strip().split("\n")
    last = lines.pop() if "Steps:" in lines[-1] else ""
    said = "\n".join(lines)
    prompt, _, negative = said.partition("\nNegative prompt: ") if not said.startswith("Negative prompt: ") else ("", "", said[17:])
    fields = {key.strip(): _unquoted(value.strip()) for key, value in _FIELD.findall(last)}
    if not fields:
        raise ValueError(last)
    values: dict[str, Any] = {"prompt": prompt, "negative_prompt": negative}
    values |= {ours: kind(fields[theirs]) for theirs, (ours, kind) in _A1111.items() if theirs in fields}
    if "x" in fields.get("Size", ""):
        width, _, height = fields["Size"].partition("x")
        values |= {"width": int(width), "height": int(height)}
    sampler = fields.get("Sampler", "").removesuffix(" Karras")
    names = {theirs.lower(): ours for ours, theirs in SAMPLER_NAMES.items()}
    values["sampler"] = names.get(sampler.lower())
    schedule = fields.get("Schedule type", "Karras" if fields.get("Sampler", "").endswith("Karras") else "").lower().replace(" ", "_")
    values["schedule"] = schedule if schedule in (*_COMFY_SCHEDULES.values(), "polyexponential") else None
    rest = [f"the model {fields['Model']!r}"] if "Model" in fields else []
    rest += [f"the sampler {fields['Sampler']!r}"] if values["sampler"] is None and "Sampler" in fields else []
    hires, lost = _a1111_hires(fields)
    values["hires"] = hires
    rest += lost + [f"{key} (its picture is not in the file)" for key in fields if key.startswith("ControlNet ")]
    known = _A1111_READ | _A1111_OF_FILES
    return values, rest + [f"{key} {value}" for key, value in fields.items() if key not in known and not key.startswith("ControlNet ")]


def _a1111_hires(fields: Mapping[str, str]) -> tuple[dict[str, Any] | None, list[str]]:
    """The second pass where Limn has the same, and what of it, or of a picture that was begun from, is lost."""
    if "Hires upscale" not in fields:
        return None, ["the picture it began from"] if "Denoising strength" in fields else []
    upscaler = fields.get("Hires upscaler", "Latent")
    if upscaler not in ("Latent", "Lanczos"):
        return None, [f"the second pass with the upscaler {upscaler!r}"]
    hires = {"scale": float(fields["Hires upscale"]), "upscaler": upscaler.lower(), "steps": int(fields.get("Hires steps", 0)) or None}
    return hires | ({"strength": float(fields["Denoising strength"])} if "Denoising strength" in fields else {}), []


def _comfyui(text: str) -> tuple[dict[str, Any], list[str]]:
    graph = json.loads(text)
    nodes = {str(key): node for key, node in list(graph.items())[:_MOST_NODES] if isinstance(node, dict)}
    sampler = next((node for node in nodes.values() if str(node.get("class_type", "")).startswith("KSampler")), None)
    if sampler is None:
        raise ValueError("no sampler")
    given = sampler["inputs"]

    def value(name: str) -> Any:
        return given[name] if isinstance(given.get(name), int | float | str) else None

    seed = value("seed") if value("seed") is not None else value("noise_seed")
    values = {"seed": seed, "steps": value("steps"), "guidance_scale": value("cfg")}
    values |= {"sampler": _COMFY_SAMPLERS.get(str(value("sampler_name"))), "schedule": _COMFY_SCHEDULES.get(str(value("scheduler")))}
    values |= {ours: _text_behind(nodes, given.get(theirs)) for theirs, ours in (("positive", "prompt"), ("negative", "negative_prompt"))}
    latent = next(_behind(nodes, given.get("latent_image"), "width"), None)
    if latent is not None:
        values |= {name: latent[name] for name in ("width", "height") if isinstance(latent.get(name), int)}
    inputs = [node["inputs"] for node in nodes.values() if isinstance(node.get("inputs"), dict)]
    names = (("ckpt_name", "model"), ("unet_name", "model"), ("lora_name", "LoRA"), ("vae_name", "VAE"))
    rest = [f"the {what} {one[name]!r}" for name, what in names for one in inputs if name in one]
    skip = next((one["stop_at_clip_layer"] for one in inputs if isinstance(one.get("stop_at_clip_layer"), int)), None)
    values["clip_skip"] = None if skip is None else -skip
    values["pag_scale"], weaker = _comfyui_guidance(nodes)
    rest += weaker
    rest += ["the picture it began from"] if isinstance(value("denoise"), int | float) and value("denoise") < 1 else []
    rest += ["its other samplers"] if sum(str(node.get("class_type", "")).startswith("KSampler") for node in nodes.values()) > 1 else []
    controls = sum("ControlNetApply" in str(node.get("class_type")) for node in nodes.values())
    return values, rest + ([f"{controls} control{'s' if controls > 1 else ''} (their pictures are not in the file)"] if controls else [])


def _comfyui_guidance(nodes: Mapping[str, Any]) -> tuple[float | None, list[str]]:
    """The scale of perturbed-attention guidance, which is Limn's; and what it counts otherwise."""
    given = [(str(node.get("class_type", "")), node["inputs"]) for node in nodes.values() if isinstance(node.get("inputs"), dict)]
    scale = next((inputs.get("scale") for name, inputs in given if name == "PerturbedAttentionGuidance"), None)
    layers = [inputs.get("layers", inputs.get("double_layers")) for name, inputs in given if name.startswith("SkipLayerGuidance")]
    lost = [f"the skip-layer guidance of {one}, whose window it counts otherwise" for one in layers]
    most = bound(RenderRequest.model_fields["pag_scale"].metadata, "le")
    if not isinstance(scale, int | float) or scale <= most:
        return scale if isinstance(scale, int | float) else None, lost
    return None, [f"the perturbed attention of {scale:g}, over Limn's {most:g}", *lost]


def _invokeai(text: str) -> tuple[dict[str, Any], list[str]]:
    found = json.loads(text)
    values = {name: found.get(name) for name in ("seed", "steps", "width", "height", "negative_prompt")}
    values |= {"prompt": found.get("positive_prompt"), "guidance_scale": found.get("cfg_scale")}
    scheduler = str(found.get("scheduler"))
    values["sampler"] = _INVOKE_SAMPLERS.get(scheduler)
    values["schedule"] = "karras" if scheduler.endswith("_k") else None
    model = found.get("model")
    rest = [f"the model {model['name']!r}"] if isinstance(model, dict) and "name" in model else []
    values["clip_skip"] = int(found["clip_skip"]) + 1 if found.get("clip_skip") else None
    rest += ["the picture it began from"] if found.get("init_image") or found.get("strength") else []
    rest += [key for key in _INVOKE_REST if found.get(key)]
    controls = found.get("controlnets") or []
    return values, rest + ([f"{len(controls)} controls (their pictures are not in the file)"] if controls else [])


def _text_behind(nodes: Mapping[str, Any], link: Any) -> str | None:
    """The text that a conditioning is made from."""
    found = next(_behind(nodes, link, "text"), None)
    return found["text"] if found is not None and isinstance(found["text"], str) else None


def _behind(nodes: Mapping[str, Any], link: Any, wanted: str) -> Iterator[dict[str, Any]]:
    """The inputs of every node on the way back from a link that has the input `wanted`, nearest first."""
    waiting, seen = [link], set[str]()
    while waiting:
        one = waiting.pop(0)
        if not isinstance(one, list) or not one or str(one[0]) in seen or str(one[0]) not in nodes:
            continue
        seen.add(str(one[0]))
        given = nodes[str(one[0])].get("inputs", {})
        if wanted in given and not isinstance(given[wanted], list):
            yield given
        waiting += list(given.values())


def _unquoted(value: str) -> str:
    return str(json.loads(value)) if value.startswith('"') else value
