"""What can be had from a finished picture's file: its settings, how it obeys its controls, and the same as a command or as Python."""

import json
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import controls
from controls.fidelity import seen
from controls.overlay import overlay
from controls.prepare import load_map, settled
from core.control import Image
from core.errors import BadRequest
from core.images import decode, read_png_text
from core.provenance import Record, read_record
from core.request import ControlUnit, RenderRequest, build_request
from pipelines.opening import Opening
from web.foreign import read_foreign
from web.form import lora_text

VARIED = 0.2  # how far a variation goes

_OPTIONS = {"negative_prompt": "--negative", "guidance_scale": "--guidance"}
MODELS_OWN = {"width", "height", "steps", "sampler", "schedule", "guidance_scale"}  # a model may have other defaults for what is left out
_ELSEWHERE = ("width", "height", "controls", "hires", "skip_layers", "inversion", "loras", "paste_back")


@dataclass(frozen=True)
class Settings:
    """A picture's settings. record: Limn's own, where there is one; origin: who wrote them; lost: what could not be read into a request."""

    request: RenderRequest
    origin: str
    record: Record | None = None
    lost: list[str] = field(default_factory=list)


def read_settings(path: Path) -> Settings:
    """The settings inside a PNG of Limn, A1111, ComfyUI or InvokeAI.

    Raises:
        BadImage: not a PNG, or damaged.
        BadRequest: it holds no settings, or such as cannot be read.
    """
    texts = read_png_text(path)
    if "limn" in texts:
        record = read_record(path)
        return Settings(alone(record), "a Limn picture", record)
    found = read_foreign(texts)
    if found is None:
        raise BadRequest(
            f"{path.name!r} holds no settings of Limn, A1111, ComfyUI or InvokeAI: the program that saved it last may have dropped them"
        )
    program, values, lost = found
    return Settings(build_request(values), f"a picture from {program}", lost=lost)


def alone(record: Record) -> RenderRequest:
    """The request that makes this picture and no other."""
    seed, variation = record.request.seeds(record.index)
    update = {"seed": seed, "count": 1} | ({} if variation is None else {"variation_seed": variation})
    return record.request.model_copy(update=update)


def overlays(path: Path) -> list[tuple[Image, str]]:
    """For each control that can be measured the wanted map with the picture's own on it, and what it shows.

    Raises:
        BadImage, BadRequest: a control's picture is no longer there.
    """
    record, drawn_HWC = read_record(path), decode(path)
    found = []
    for unit in record.request.controls:
        control = controls.get(unit.kind)
        params = settled(control, control.parse_params(unit.params), record.request.model)
        wanted = load_map(unit, drawn_HWC.shape[1], drawn_HWC.shape[0], model=record.request.model)
        if (got_HWC := seen(control, drawn_HWC, params, wanted.scale)) is not None:
            shown_HWC = overlay(control, wanted.map_HWC, got_HWC)
            found.append((np.ascontiguousarray(shown_HWC), f"{unit.kind}: orange is missing, blue is too much"))
    return found


def as_command(request: RenderRequest, opening: Opening | None = None) -> str:
    """The request as a `limn render` command. opening: how its model was opened."""
    words = ["limn", "render"]
    default = RenderRequest()
    for name, value in request:
        if name in _ELSEWHERE or value is None or (value == getattr(default, name) and name not in MODELS_OWN):
            continue
        words += [_OPTIONS.get(name, f"--{name.replace('_', '-')}"), str(value)]
    words += ["--size", f"{request.width}x{request.height}"]
    words += ["--no-paste-back"] if not request.paste_back else []
    for unit in request.controls:
        words += ["--control", _control(unit)]
    for option, part in (("--hires", request.hires), ("--skip-layers", request.skip_layers)):
        words += [] if part is None else [option, ",".join(f"{name}={_written(value)}" for name, value in part if value is not None)]
    words += [] if request.inversion is None else ["--inversion", request.inversion.prompt]
    for lora in request.loras:
        words += ["--lora", lora_text(lora)]
    words += [word for name, value in _chosen(opening).items() for word in (f"--{name}", value)]
    return shlex.join(words)


def as_python(request: RenderRequest, opening: Opening | None = None) -> str:
    """The request as a program. opening: how its model was opened."""
    values = json.loads(request.model_dump_json(exclude_defaults=True)) | request.model_dump(include=MODELS_OWN)
    chosen = _chosen(opening)
    given = f", **Opening({', '.join(f'{name}={value!r}' for name, value in chosen.items())}).arguments" if chosen else ""
    return (
        "from core.request import build_request\n"
        + ("from pipelines.opening import Opening\n" if chosen else "")
        + f"from renderer import Renderer\n\nrequest = build_request({values!r})\n"
        f"for picture in Renderer.open({request.model!r}{given}).render(request):\n    print(picture.save('outputs'))\n"
    )


def _chosen(opening: Opening | None) -> dict[str, str]:
    """What was chosen of how a model is opened."""
    return {} if opening is None else {name: value for name, value in vars(opening).items() if value != getattr(Opening, name)}


def _control(unit: ControlUnit) -> str:
    """A control as the command line writes it."""
    items = [f"{unit.kind}={_quoted(str(unit.image))}"] + ["ready"] * unit.ready
    defaults = ControlUnit(kind=unit.kind, image=unit.image)
    for name, value in unit:
        if name in ("kind", "image", "ready", "params") or value == getattr(defaults, name):
            continue
        items.append(f"{name}={_written(value)}")
    settings = controls.get(unit.kind).params()
    items += [f"{name}={_quoted(str(value))}" for name, value in unit.params.items() if value not in (None, "", getattr(settings, name))]
    return ",".join(items)


def _written(value: Any) -> str:
    """A value as the command line takes it after its key: numbers with spaces between."""
    return " ".join(map(str, value)) if isinstance(value, tuple) else _quoted(str(value))


def _quoted(text: str) -> str:
    return f'"{text}"' if "," in text else text
