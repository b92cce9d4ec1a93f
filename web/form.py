"""What the page's components hold, by name, made into requests; and requests made into what they hold.

A component's name says whose field it is: `prompt` is the request's, `hires.scale` the second pass's, `control.2.weight` that of control
unit 2, and `control.2.slider 0` one of its kind's own settings (see `web.settings`). Values are what a browser sent: everything is checked
by the models again.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

import controls
from batch.rows import parse_lora
from controls.prepare import Prepared, load_map
from core.control import Image
from core.errors import BadRequest
from core.files import sha256_file
from core.images import decode, encode_png
from core.provenance import Record
from core.request import MAX_CONTROLS, ControlUnit, Frozen, Hires, Inversion, LoraUnit, RenderRequest, SkipLayers, build_request, explain
from web import painting
from web.settings import slots, typed

Values = Mapping[str, Any]

# Parts of a request that are there when their switch is on: `hires.on`, `hires.scale`, …
SWITCHED: Mapping[str, type[Frozen]] = {"hires": Hires, "inversion": Inversion, "skip_layers": SkipLayers}
MOST_EXACT = 2**53 - 1  # of a browser's whole numbers
PAINTED = Path(__file__)  # stands for what is painted where only the presence of a file counts


def read_request(values: Values, out: Path, model: str) -> RenderRequest:
    """The request that the page asks for; its pictures are kept in `out`, so that it can be drawn again. model: the renderer's own.

    Raises:
        BadRequest, BadImage: a value or a picture is refused.
    """
    sketch_request(values, model)  # everything is checked before anything is written
    for i in range(MAX_CONTROLS):
        if values.get(f"control.{i}.on"):
            check_unit(values, i)
    asked = _plain_fields(values, model)
    asked["controls"] = [read_unit(values, i, out) for i in range(MAX_CONTROLS) if is_given(values, i)]
    if values.get("init_image"):
        asked["init_image"] = keep_picture(Path(values["init_image"]), out)
        if values.get("mask"):
            asked["mask"] = painting.keep(painting.on_black(values["mask"]), out)
    return build_request(asked)


def sketch_request(values: Values, model: str) -> RenderRequest:
    """The request that the page asks for, to be examined and not to be drawn: nothing is kept, pictures are where the uploads lie.

    Raises:
        BadRequest: a value is refused.
    """
    asked = _plain_fields(values, model)
    asked["controls"] = [_drawn_unit(values, i) for i in range(MAX_CONTROLS) if is_given(values, i)]
    if values.get("init_image"):
        asked["init_image"] = Path(values["init_image"])
        if values.get("mask"):
            asked["mask"] = PAINTED
    return build_request(asked)


def read_unit(values: Values, index: int, out: Path) -> ControlUnit:
    """Control unit `index`, its picture and its region kept in `out`. What is painted without a picture is itself the finished map.

    Raises:
        BadRequest, BadImage: a value or a picture is refused.
    """
    unit, drawn_HWC = _drawn_unit(values, index), _drawn_picture(values, index)
    if drawn_HWC is not None:
        return unit.model_copy(update={"image": painting.keep(drawn_HWC, out)})
    painted = values.get(f"control.{index}.painting")
    region = None if not painted else painting.keep(painting.on_black(painted), out)
    return unit.model_copy(update={"image": keep_picture(unit.image, out), "mask": region})


def check_unit(values: Values, index: int) -> None:
    """Whether control unit `index` is one, whatever its picture.

    Raises:
        BadRequest: a value is refused.
    """
    _unit(values, index)


def is_given(values: Values, index: int) -> bool:
    """Whether control unit `index` is on and has a picture, or a painting in its place."""
    on = values.get(f"control.{index}.on")
    return bool(on and (values.get(f"control.{index}.image") or values.get(f"control.{index}.painting")))


def read_map(values: Values, index: int) -> Prepared | None:
    """A control's map as the network will see it, or None without a picture.

    Raises:
        BadRequest, BadImage: a value or the picture is refused.
    """
    if not (values[f"control.{index}.image"] or values.get(f"control.{index}.painting")):
        return None
    size = build_request({"width": values["width"], "height": values["height"]})
    unit, drawn_HWC = _drawn_unit(values, index), _drawn_picture(values, index)
    if drawn_HWC is None:
        return load_map(unit, size.width, size.height)
    with tempfile.TemporaryDirectory(prefix="limn-drawn-") as folder:
        path = Path(folder) / "drawing.png"
        path.write_bytes(encode_png(drawn_HWC))
        prepared = load_map(unit.model_copy(update={"image": path}), size.width, size.height)
    return prepared if not unit.ready else replace(prepared, warnings=())  # what is drawn here is meant as it is


def looks_finished(kind: str, image: Path) -> bool | None:
    """Whether a picture seems to be a finished map of its kind; None where that cannot be told.

    Raises:
        BadImage: it is no picture.
    """
    look = controls.get(kind).looks_finished
    return None if look is None else look(decode(image))


def keep_picture(path: Path, out: Path) -> Path:
    """The picture published under `out`, named by its content: uploads are deleted, records stay true.

    What the file said besides its pixels (place, camera, name) is not kept.
    """
    return painting.keep(decode(path), out)


def shown(request: RenderRequest, out: Path, record: Record | None = None) -> tuple[dict[str, Any], list[str]]:
    """What the page holds for a request, by name, and what of it could not be brought back.

    A picture is brought back only where it lies in `out` and, with a record, is still the one that was used: whoever wrote the request
    could name any file of this machine.
    """
    values: dict[str, Any] = {
        name: value for name, value in request if name not in ("controls", "init_image", "mask", "loras", "vae", "model", *SWITCHED)
    }
    lost: list[str] = []
    for name in ("seed", "variation_seed"):
        if values[name] > MOST_EXACT:
            lost.append(f"the {name.replace('_', ' ')} {values.pop(name)}, for a browser's numbers are exact up to {MOST_EXACT}")
    if "model" in request.model_fields_set:
        values["model"] = request.model
    values |= {"vae": request.vae or "", "loras": ", ".join(map(lora_text, request.loras))}
    for owner in SWITCHED:
        part = getattr(request, owner)
        values[f"{owner}.on"] = part is not None
        values |= {f"{owner}.{name}": _numbers_text(value) if isinstance(value, tuple) else value for name, value in part or ()}
    values["init_image"] = _found(request.init_image, out, record.init_sha256 if record else None)
    if request.init_image is not None and values["init_image"] is None:
        lost.append("the picture it began from")
    mask = _found(request.mask, out, record.mask_sha256 if record else None) if values["init_image"] else None
    values["mask"] = "" if mask is None else painting.as_region(Path(mask))
    for i, unit in enumerate(request.controls):
        known = record.controls[i] if record else None
        image = _found(unit.image, out, known.source_sha256 if known else None)
        if image is None:
            lost.append(f"the picture of control {i + 1} ({unit.kind})")
        region = _found(unit.mask, out, known.mask_sha256 if known else None)
        values |= {f"control.{i}.{name}": getattr(unit, name) for name in ("kind", "ready", "weight", "mode", "resize", "processor_px")}
        values |= {f"control.{i}.image": image, f"control.{i}.painting": "" if region is None else painting.as_region(Path(region))}
        values |= {f"control.{i}.window": [unit.start, unit.end], f"control.{i}.model": unit.model or "", f"control.{i}.on": True}
        values[f"control.{i}.layer_weights"] = _numbers_text(unit.layer_weights)
        params = controls.get(unit.kind).parse_params(unit.params)
        values |= {f"control.{i}.{slot}": getattr(params, name) for name, slot in slots(type(params)).items()}
    for i in range(len(request.controls), MAX_CONTROLS):
        values |= {f"control.{i}.on": False, f"control.{i}.image": None, f"control.{i}.painting": ""}
    return values, lost


def lora_text(lora: LoraUnit) -> str:
    """A LoRA as it is typed: `bold=0.8`, or `bold=0.8:0.5` with a weight of its own for the text encoders."""
    return f"{lora.name}={lora.weight:g}" + ("" if lora.text_weight is None else f":{lora.text_weight:g}")


def _numbers_text(numbers: Sequence[float]) -> str:
    """Numbers as they are typed: `1 0.5 0.2`."""
    return " ".join(f"{number:g}" for number in numbers)


def _plain_fields(values: Values, model: str) -> dict[str, Any]:
    """The request's fields without its pictures and controls."""
    plain = {name: value for name, value in values.items() if name in RenderRequest.model_fields and name not in ("init_image", "mask")}
    asked = typed(RenderRequest, plain)
    if str(asked.get("model") or "").strip() in ("", model):
        asked.pop("model", None)
    if isinstance(asked.get("loras"), str):
        asked["loras"] = [parse_lora(text.strip()) for text in asked["loras"].split(",") if text.strip()]
    for owner, model_of in SWITCHED.items():
        if values.get(f"{owner}.on") and (owner != "inversion" or values.get("init_image")):
            own = {name: values[f"{owner}.{name}"] for name in model_of.model_fields if f"{owner}.{name}" in values}
            asked[owner] = typed(model_of, own)
    return asked


def _unit(values: Values, index: int) -> ControlUnit:
    """A control unit as it stands on the page; its picture is where the browser's upload lies."""
    prefix = f"control.{index}."
    own = {name: values[prefix + name] for name in ControlUnit.model_fields if name != "mask" and prefix + name in values}
    asked = typed(ControlUnit, own)
    asked["image"] = asked.get("image") or "painting.png"
    control = controls.get(str(asked["kind"]))
    asked["params"] = typed(control.params, {name: values[prefix + slot] for name, slot in slots(control.params).items()})
    control.parse_params(asked["params"])
    window = values.get(f"{prefix}window")
    if not isinstance(window, list | tuple) or len(window) != 2:
        raise BadRequest(f"controls.{index}.window: give start and end, two numbers from 0 to 1")
    asked["start"], asked["end"] = window
    try:
        return ControlUnit.model_validate(asked)
    except ValidationError as error:
        raise BadRequest(f"controls.{index}.{explain(error)}") from None


def _drawn_unit(values: Values, index: int) -> ControlUnit:
    """A control unit whose map is finished where it is drawn; without a picture, `PAINTED` stands for what is drawn."""
    unit, painted = _unit(values, index), values.get(f"control.{index}.painting")
    given = bool(values[f"control.{index}.image"])
    if given and (not painted or painting.drawn(painted) != "map"):
        return unit
    return unit.model_copy(update={"ready": True} | ({} if given else {"image": PAINTED}))


def _drawn_picture(values: Values, index: int) -> Image | None:
    """A control's picture as it is drawn on the page, RGB uint8 HWC; None where the upload is the picture."""
    painted, given = values.get(f"control.{index}.painting"), values[f"control.{index}.image"]
    if painted and (not given or painting.drawn(painted) == "map"):
        return painting.on_black(painted)
    if painted and painting.drawn(painted) == "picture":
        return painting.on_picture(painted, decode(Path(given)))
    return None


def _found(path: Path | None, out: Path, sha256: str | None = None) -> str | None:
    """A file's path where it may be shown."""
    if path is None or path.suffix != ".png":
        return None
    try:
        real = path.resolve()
        if not real.is_relative_to(out.resolve()) or not real.is_file() or (sha256 and sha256_file(real) != sha256):
            return None
    except (OSError, ValueError):
        return None
    return str(real)
