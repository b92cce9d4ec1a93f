"""Training pairs on disk: an imagefolder with `metadata.jsonl`, one row a picture, with columns for caption and conditions.

    DIR/metadata.jsonl    {"file_name": "images/0.png", "text": "a red sphere on grass", "canny": "canny/0.png", "depth": "depth/0.png"}

Paths are relative to the folder. A picture and its condition go through one placement, and it is the placement of rendering.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

import controls
from controls.geometry import place
from core.control import Image
from core.errors import BadRequest, Mismatch, unknown_name
from core.images import decode
from core.request import Frozen

METADATA = "metadata.jsonl"
ASPECT_TOLERANCE = 0.02  # a pixel of rounding in 64


class DataConfig(Frozen):
    """Where the pairs are and what size they are trained at."""

    folder: Path = Field(description="imagefolder with metadata.jsonl")
    condition: str = Field(description="column with the condition's path")
    picture: str = Field("file_name", description="column with the picture's path")
    caption: str = Field("text", description="column with the caption")
    width: int = Field(128, ge=64, le=4096, multiple_of=8, description="pixels; pictures are scaled to cover and cropped")
    height: int = Field(128, ge=64, le=4096, multiple_of=8, description="pixels")
    resample: Literal["auto", "area", "nearest", "lines"] = Field(
        "auto", description="how conditions are resized; auto: as the control of the column's name is"
    )
    flip: bool = Field(False, description="also train on every pair mirrored; wrong where captions say left and right")


@dataclass(frozen=True)
class Pair:
    """One picture, its caption and its condition."""

    picture: Path
    condition: Path
    caption: str
    mirrored: bool = False


def read_pairs(config: DataConfig) -> list[Pair]:
    """The pairs of an imagefolder, those that are mirrored after the others.

    Raises:
        BadRequest: there is no metadata, a row cannot be read, a column does not exist, or there are no rows.
    """
    file = config.folder / METADATA
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise BadRequest(f"{str(file)!r} cannot be read ({error.strerror}): a dataset is a folder with {METADATA}") from None
    except UnicodeDecodeError as error:
        raise BadRequest(f"{str(file)!r} is not UTF-8 (byte {error.start}): save it as UTF-8") from None
    pairs = [_pair(line, f"{file}:{number}", config) for number, line in enumerate(lines, 1) if line.strip()]
    if not pairs:
        raise BadRequest(f"{str(file)!r} has no rows: nothing to train on")
    missing = [path for pair in pairs for path in (pair.picture, pair.condition) if not path.is_file()]
    if missing:
        raise BadRequest(
            f"{len(missing)} of the {2 * len(pairs)} files that {str(file)!r} names are missing, the first is {str(missing[0])!r}"
        )
    mirrored = [Pair(pair.picture, pair.condition, pair.caption, mirrored=True) for pair in pairs] if config.flip else []
    return pairs + mirrored


def _pair(line: str, where: str, config: DataConfig) -> Pair:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise BadRequest(f"{where}: not JSON ({error})") from None
    if not isinstance(row, dict):
        raise BadRequest(f"{where}: a row is an object with the columns {config.picture}, {config.caption} and {config.condition}")
    values = {column: _text(row, column, where) for column in (config.picture, config.condition, config.caption)}
    return Pair(config.folder / values[config.picture], config.folder / values[config.condition], values[config.caption])


def _text(row: dict[str, Any], column: str, where: str) -> str:
    if column not in row:
        raise BadRequest(f"{where}: {unknown_name('column', column, row)}")
    if not isinstance(row[column], str):
        raise BadRequest(f"{where}: column {column!r} holds {row[column]!r}, expected text")
    return str(row[column])


class Loader:
    """Decodes pairs and brings them to the training size."""

    def __init__(self, config: DataConfig) -> None:
        known = config.condition in controls.names()
        automatic = controls.get(config.condition).resample if known else "area"
        self.width, self.height = config.width, config.height
        self.resample = automatic if config.resample == "auto" else config.resample

    def picture(self, pair: Pair) -> Image:
        """The picture, RGB uint8 (height, width, 3). Raises BadImage if it cannot be decoded."""
        return self._placed(decode(pair.picture), pair, "area")

    def condition(self, pair: Pair) -> Image:
        """The condition, RGB uint8 (height, width, 3). Raises BadImage if it cannot be decoded."""
        return self._placed(decode(pair.condition), pair, self.resample)

    def check(self, pairs: Sequence[Pair]) -> None:
        """Whether conditions have their pictures' proportions, so that one crop fits both; a few pairs are looked at.

        Raises:
            Mismatch: one has not.
        """
        for pair in pairs[:: max(1, len(pairs) // 8)]:
            (high, wide, _), (condition_high, condition_wide, _) = decode(pair.picture).shape, decode(pair.condition).shape
            if abs(wide / high / (condition_wide / condition_high) - 1) > ASPECT_TOLERANCE:
                raise Mismatch(
                    f"{str(pair.picture)!r} is {wide}x{high} and its condition {str(pair.condition)!r} {condition_wide}x{condition_high}: "
                    "both need the same proportions, or they would be cropped differently"
                )

    def _placed(self, image_HWC: Image, pair: Pair, resample: Literal["area", "nearest", "lines"]) -> Image:
        placement = place(image_HWC.shape[1], image_HWC.shape[0], self.width, self.height, "crop")
        placed_HWC = placement.pad(placement.resize(image_HWC, resample))
        return np.ascontiguousarray(placed_HWC[:, ::-1]) if pair.mirrored else placed_HWC
