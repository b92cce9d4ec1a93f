"""A folder of control pictures as rows: one request a picture, subfolders and proportions kept."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import PIL.Image

from batch.manifest import Manifest, Problem, Row
from batch.rows import BadRow, request_of
from batch.store import FAILED, REJECTED
from controls.grammar import parse_control
from core.errors import BadImage, BadRequest

SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".webp")
PROMPTS: Final = ("txt", "name")
_STEP_PX = 8
_SMALLEST_PX, _LARGEST_PX = 64, 4096
_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)  # the EXIF tag, and its values that swap width and height


@dataclass(frozen=True)
class Canvas:
    """What a model draws on. step_px: what sides are multiples of; width, height: where none are asked for."""

    step_px: int = _STEP_PX
    width: int = 128
    height: int = 128


def read_folder(
    folder: Path, control: str, prompt_from: str | None, values: Mapping[str, Any], *, canvas: Canvas | None = None, out: Path | None = None
) -> Manifest:
    """A row for every picture below `folder`, in the order of their paths.

    control: as `--control` without the file: `canny`, `depth,ready,weight=0.8`. prompt_from: `txt` for the text file beside each picture,
    `name` for its name, None for the prompt of `values`. values: the other fields. A picture is drawn in its control's proportions, with
    as many pixels as width and height of `values` have, else of the canvas. out: where pictures go; what lies below it is no control.

    Raises:
        BadRequest: no picture, an unknown control, or none; pictures would go among those that they are drawn from.
    """
    if out is not None and out.resolve() == folder.resolve():
        raise BadRequest(f"folder {str(folder)!r}: the next run would take its pictures for control pictures; give another --out")
    if prompt_from not in (None, *PROMPTS):
        raise BadRequest(f"--prompt-from {prompt_from[:40]!r}: give txt (the text file beside each picture) or name; else use --prompt")
    template = parse_control(_with_file(control))
    found = Manifest()
    canvas = canvas or Canvas()
    pixels = _pixels(values, canvas)
    for number, path in enumerate(_pictures(folder, out), 1):
        inside = path.relative_to(folder)
        try:
            if inside.parts[0] in (FAILED, REJECTED) and len(inside.parts) > 1:
                raise BadRow(f"a batch keeps files of its own in {inside.parts[0]}/: rename the folder")
            row = {key: value for key, value in values.items() if key != "size"}
            row["width"], row["height"] = sides(*_size(path), pixels, canvas.step_px)
            if prompt_from is not None:
                row["prompt"] = _prompt(path, prompt_from)
            request = request_of(row, Path())
            request = request.model_copy(update={"controls": (*request.controls, template.model_copy(update={"image": path}))})
            found.rows.append(Row(number, request, inside.parent.as_posix() if inside.parent != Path() else ""))
        except (BadImage, BadRow) as error:
            found.problems.append(Problem(number, inside.as_posix(), str(error)))
    if not found.rows and not found.problems:
        raise BadRequest(f"folder {str(folder)!r} has no pictures: it wants files that end in {', '.join(SUFFIXES)}")
    return found


def sides(width: int, height: int, pixels: int, step_px: int = _STEP_PX) -> tuple[int, int]:
    """Width and height of about so many pixels in the proportions of a picture, multiples of `step_px`, within the limits of a request."""
    scale = math.sqrt(pixels / (width * height))
    lowest = -(-_SMALLEST_PX // step_px) * step_px
    highest = _LARGEST_PX // step_px * step_px

    def fitted(side: int) -> int:
        return min(highest, max(lowest, round(side * scale / step_px) * step_px))

    return fitted(width), fitted(height)


def _pixels(values: Mapping[str, Any], canvas: Canvas) -> int:
    """How many are asked for, in either way of writing a size, or are the model's own."""
    asked = request_of({key: values[key] for key in ("size", "width", "height") if key in values}, Path())
    width, height = (getattr(asked, name) if name in asked.model_fields_set else getattr(canvas, name) for name in ("width", "height"))
    return int(width * height)


def _pictures(folder: Path, out: Path | None) -> Iterator[Path]:
    own = None if out is None else out.resolve()
    inside = own is not None and own.is_relative_to(folder.resolve())
    for path in sorted(folder.rglob("*")):
        if (
            path.suffix.lower() not in SUFFIXES
            or not path.is_file()
            or any(part.startswith(".") for part in path.relative_to(folder).parts)
        ):
            continue
        if not (inside and own is not None and path.resolve().is_relative_to(own)):
            yield path


def _size(path: Path) -> tuple[int, int]:
    """A picture's width and height as it is seen, from its header."""
    try:
        with PIL.Image.open(path) as image:
            turned = image.getexif().get(_ORIENTATION) in _TURNED
            return (image.height, image.width) if turned else (image.width, image.height)
    except Exception as error:  # Pillow's parsers raise almost anything on damaged bytes
        raise BadImage(f"{str(path)!r} is not a picture that can be read: replace it or take it out") from error


def _prompt(path: Path, prompt_from: str) -> str:
    if prompt_from == "name":
        return " ".join(path.stem.replace("_", " ").replace("-", " ").split())
    beside = path.with_suffix(".txt")
    try:
        return beside.read_text("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise BadRow(f"{beside.name} is not UTF-8: save it as UTF-8", "prompt") from None
    except OSError:
        raise BadRow(f"{beside.name} is missing: write the prompt there, or use --prompt", "prompt") from None


def _with_file(control: str) -> str:
    """`canny,low=80` with a place for the file."""
    kind, comma, rest = control.partition(",")
    if "=" in kind:
        raise BadRequest(f"--control {control[:60]!r}: with a folder give the kind alone, as in canny or depth,ready")
    return f"{kind}=picture{comma}{rest}"
