"""One row of a manifest as a request: short forms, paths relative to the manifest, and messages that name the column.

    {"prompt": "a red sphere", "seed": 7, "size": "128x96", "pose": "figure.png,ready,weight=0.8", "lora": "bold=0.8"}

A key is a field of `core.request.RenderRequest`, one of `SHORT`, or a kind of control, whose value is `--control`'s after `KIND=`.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import controls
from controls.grammar import parse_control
from core.errors import BadRequest, UserError, shortened, unknown_name
from core.request import ControlUnit, RenderRequest, build_request

SHORT: Final = {"size": "width and height", "negative": "negative_prompt", "guidance": "guidance_scale", "lora": "loras"}
_RENAMED = {"negative": "negative_prompt", "guidance": "guidance_scale", "lora": "loras"}
PARTS: Final = {"hires": "scale", "skip_layers": "blocks"}  # parts of a request that can be written in short, by their main value
_PATHS = ("init_image", "mask")
_TEXTS = ("prompt", "negative_prompt", "negative")  # which can be empty on purpose


class BadRow(UserError):
    """A row is wrong; `key` is the column that is, where one can be named."""

    def __init__(self, message: str, key: str | None = None) -> None:
        super().__init__(message)
        self.key = key


def known_keys() -> tuple[str, ...]:
    """Every key that a row may have."""
    return (*RenderRequest.model_fields, *SHORT, *_kinds())


def _kinds() -> list[str]:
    """The kinds of control that a column can name: `mask` is the request's own."""
    return [kind for kind in controls.names() if kind not in RenderRequest.model_fields]


def check_keys(keys: Iterable[str]) -> None:
    """Whether every key is known.

    Raises:
        BadRow: one is not; the message names the nearest.
    """
    known = known_keys()
    for key in keys:
        if key not in known:
            raise BadRow(str(unknown_name("column", key, known)), key)


def request_of(row: Mapping[str, Any], folder: Path) -> RenderRequest:
    """A row's request. folder: what the row's relative paths are relative to; None counts as not given, and "" but for texts.

    Paths and control units that are such already, not text, are taken as they are.

    Raises:
        BadRow: an unknown key, a value out of range, or half a character.
    """
    check_keys(row)
    values: dict[str, Any] = {}
    units: list[Any] = []
    kinds = _kinds()
    for key, value in row.items():
        if _left_out(key, value):
            continue
        if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
            raise BadRow(f"{key} = {shortened(value)}: half a character; save the manifest as UTF-8", key)
        try:
            if key in kinds:
                units += [_control(key, text, folder) for text in (value if isinstance(value, list) else [value])]
            elif key == "controls":
                units += [_whole_control(item, folder) for item in _listed(value, key)]
            elif key == "size":
                values["width"], values["height"] = parse_size(str(value))
            elif key in ("lora", "loras"):
                values["loras"] = [parse_lora(item) if isinstance(item, str) else item for item in _listed(value, key)]
            elif key in PARTS:
                values[key] = value if isinstance(value, dict) else parse_part(key, str(value))
            elif key == "inversion":
                values[key] = {"prompt": value} if isinstance(value, str) else value
            elif key in _PATHS:
                values[key] = value if isinstance(value, Path) else placed(Path(str(value)), folder)
            else:
                values[_RENAMED.get(key, key)] = value
        except BadRow:
            raise
        except UserError as error:
            raise BadRow(str(error), key) from None
    try:
        return build_request(values | ({"controls": units} if units else {}))
    except BadRequest as error:
        message = str(error)
        field = message.split(" ", 1)[0].partition(".")[0].rstrip(":")
        raise BadRow(message, _column(field, row)) from None


def given_over(defaults: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Values with defaults for what they leave out, however either is written: `size` is `width` and `height`, `negative` a short form.

    Of the defaults' `controls` those go whose kind the values name themselves.
    """
    given = {key: value for key, value in values.items() if not _left_out(key, value)}
    under = {key: value for key, value in defaults.items() if not _left_out(key, value)}
    if "size" in given:
        under.pop("width", None)
        under.pop("height", None)
    elif "size" in under and ("width" in given or "height" in given):
        try:
            width, height = parse_size(str(under.pop("size")))
        except BadRequest as error:
            raise BadRow(str(error), "size") from None
        under = {"width": width, "height": height} | under
    for short, whole in _RENAMED.items():
        if short in given or whole in given:
            under.pop(short, None)
            under.pop(whole, None)
    if isinstance(units := under.get("controls"), list):
        under["controls"] = [unit for unit in units if _kind_of(unit) not in given]
    return under | given


def _left_out(key: str, value: Any) -> bool:
    return value is None or (value == "" and key not in _TEXTS)


def _kind_of(unit: Any) -> str:
    """The kind of a control as `controls` lists it: a unit, its fields, or `--control`'s text."""
    if isinstance(unit, ControlUnit):
        return unit.kind
    return str(unit.get("kind")) if isinstance(unit, Mapping) else str(unit).partition("=")[0].strip()


def seen_from_here(row: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A row whose paths and control units are no longer relative to `folder`.

    Raises:
        BadRow: as `request_of`.
    """
    fixed = dict(row)
    for key, value in row.items():
        if _left_out(key, value):
            continue
        if key in _PATHS:
            fixed[key] = request_of({"init_image": value}, folder).init_image
        elif key == "controls" or key in _kinds():
            fixed[key] = list(request_of({key: value}, folder).controls)
    return fixed


def placed(path: Path, folder: Path) -> Path:
    """A path of a row as seen from here."""
    path = path.expanduser()
    return path if path.is_absolute() else folder / path


def parse_size(text: str) -> tuple[int, int]:
    """`128x96` as width and height.

    Raises:
        BadRequest: it is written otherwise.
    """
    width, cross, height = text.lower().partition("x")
    if not (cross and width.isascii() and width.isdigit() and height.isascii() and height.isdigit()):
        raise BadRequest(f"size {text[:40]!r}: write WIDTHxHEIGHT in pixels, as in 128x128")
    return int(width[:9]), int(height[:9])


def parse_part(name: str, text: str) -> dict[str, str]:
    """A part of a request, as `hires`, from its main value, `2`, or from `scale=2,steps=10`.

    Raises:
        BadRequest: it is written otherwise.
    """
    if "=" not in text:
        return {PARTS[name]: text}
    items = [item.partition("=") for item in text.split(",")]
    found = {key.strip(): value for key, _, value in items}
    if len(found) < len(items) or not all(equals for _, equals, _ in items):
        raise BadRequest(f"{name} {text[:60]!r}: write its {PARTS[name]}, or KEY=VALUE,… with each key once")
    return found


def parse_lora(text: str) -> dict[str, Any]:
    """`bold`, `bold=0.8`, `bold=0.8:0.5`, the last for the text encoders, as a LoRA unit's values."""
    name, equals, weights = text.partition("=")
    weight, colon, text_weight = weights.partition(":")
    return {"name": name} | ({"weight": weight} if equals else {}) | ({"text_weight": text_weight} if colon else {})


def _control(kind: str, text: Any, folder: Path) -> ControlUnit:
    if isinstance(text, ControlUnit):
        return text
    if not isinstance(text, str):
        raise BadRow(f"{kind} = {shortened(text)}: write FILE,KEY=VALUE,… as after --control {kind}=", kind)
    return _seen_from_here(parse_control(f"{kind}={text}"), folder)


def _whole_control(item: Any, folder: Path) -> ControlUnit:
    if isinstance(item, ControlUnit):
        return item
    if isinstance(item, str):
        return _seen_from_here(parse_control(item), folder)
    try:
        request = build_request({"controls": [item]})
    except BadRequest as error:
        raise BadRow(str(error), "controls") from None
    unit = request.controls[0]
    controls.get(unit.kind).parse_params(unit.params)
    return _seen_from_here(unit, folder)


def _seen_from_here(unit: ControlUnit, folder: Path) -> ControlUnit:
    here: dict[str, Any] = {"image": placed(unit.image, folder)}
    if unit.mask is not None:
        here["mask"] = placed(unit.mask, folder)
    return unit.model_copy(update=here)


def _listed(value: Any, key: str) -> list[Any]:
    """A list as JSON writes it, also inside a cell of a CSV file; one item may stand alone, several with `;` between them."""
    if isinstance(value, str):
        if value.lstrip().startswith("["):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError) as error:
                raise BadRow(f"{key} = {shortened(value)}: not a list as JSON writes it ({error})", key) from None
        else:
            value = [part.strip() for part in value.split(";") if part.strip()]
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list):
        raise BadRow(f"{key} = {shortened(value)}: write a list", key)
    return value


def _column(field: str, row: Mapping[str, Any]) -> str | None:
    """The row's own key for a field of the request."""
    if field in row:
        return field
    short = {"width": "size", "height": "size"} | {field: key for key, field in _RENAMED.items()}
    key = short.get(field)
    return key if key in row else None
