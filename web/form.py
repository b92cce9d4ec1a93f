"""What the page's components hold, by name, made into requests.

A component's name says whose field it is: `prompt` is the request's, `control.weight` the control unit's, `canny.low` that of a kind's
own settings. Values are what a browser sent: everything is checked by the models again.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

import controls
from controls.prepare import Prepared, load_map
from core.errors import BadRequest
from core.files import publish
from core.images import decode, encode_png, sha256_pixels
from core.request import ControlUnit, RenderRequest, build_request, explain

Values = Mapping[str, Any]


def read_request(values: Values, out: Path) -> RenderRequest:
    """The request that the page asks for; the control picture is kept in `out`, so that it can be drawn again.

    Raises:
        BadRequest, BadImage: a value or the picture is refused.
    """
    asked = {name: value for name, value in values.items() if name in RenderRequest.model_fields}
    unit = read_unit(values)
    request = build_request(asked)  # before anything is written
    return request if unit is None else request.model_copy(update={"controls": (keep_image(unit, out),)})


def read_map(values: Values) -> Prepared | None:
    """The control's map as the network will see it, or None without a picture.

    Raises:
        BadRequest, BadImage: a value or the picture is refused.
    """
    unit = read_unit(values)
    if unit is None:
        return None
    size = build_request({"width": values["width"], "height": values["height"]})
    return load_map(unit, size.width, size.height)


def read_unit(values: Values) -> ControlUnit | None:
    """The control unit, or None without a picture.

    Raises:
        BadRequest: a value is refused.
    """
    asked = {name: values[f"control.{name}"] for name in ControlUnit.model_fields if f"control.{name}" in values}
    if not asked["image"]:
        return None
    kind = str(asked["kind"])
    asked["model"] = (asked.get("model") or "").strip() or None
    asked["params"] = {name: values[f"{kind}.{name}"] for name in controls.get(kind).params.model_fields}
    controls.get(kind).parse_params(asked["params"])
    try:
        return ControlUnit.model_validate(asked)
    except ValidationError as error:
        raise BadRequest(explain(error)) from None


def looks_finished(kind: str, image: Path) -> bool | None:
    """Whether a picture seems to be a finished map of its kind; None where that cannot be told.

    Raises:
        BadImage: it is no picture.
    """
    look = controls.get(kind).looks_finished
    return None if look is None else look(decode(image))


def keep_image(unit: ControlUnit, out: Path) -> ControlUnit:
    """The unit with its picture published under `out`, named by its content: uploads are deleted, records stay true.

    What the file said besides its pixels (place, camera, name) is not kept.
    """
    image_HWC = decode(unit.image)
    path = out / "controls" / f"{sha256_pixels(image_HWC)[:24]}.png"
    if not path.exists():
        publish(path, encode_png(image_HWC))
    return unit.model_copy(update={"image": path})
