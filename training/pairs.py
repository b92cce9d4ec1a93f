"""What a training dataset is made of, whatever its layout: pairs of a picture and its condition, each with a caption.

A picture is named by its source: a file, a stretch of bytes in an archive, or a cell of a table. Nothing is read until it is needed, so a
dataset may be larger than the memory; what is held is the list of sources and captions.
"""

import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field

from core.control import Image
from core.errors import BadImage, BadRequest, unknown_name
from core.images import decode
from core.request import Frozen

Interval = tuple[float, float]


class DataConfig(Frozen):
    """Where the pairs are, what is read of them, and what size they are trained at."""

    folder: Path = Field(description="a folder or file of any format that training/formats knows")
    format: str = Field("auto", description="auto: recognised by its files; else the format's name")
    condition: str = Field(description="column, folder or extension with the condition; with extract, the kind of control")
    picture: str = Field("", description="the same for the picture; empty: the format's usual name")
    caption: str = Field("", description="the same for the caption; empty: the format's usual name")
    template: str = Field("", description="caption of rows that have none, as in 'a photo of $name'; columns and the file's $stem fit in")
    kind: str = Field("", description="kind of control that the conditions are; empty: the one that `condition` names, where it names one")
    extract: bool = Field(False, description="make the conditions from the pictures with the kind's extractor")
    params: dict[str, Any] = Field(default_factory=dict, description="settings of the extractor")
    vary: dict[str, Annotated[Interval, Field()]] = Field(
        default_factory=dict, description="settings of the extractor that each pair draws anew, as from … to"
    )
    width: int = Field(128, ge=64, le=4096, multiple_of=8, description="pixels; pictures are scaled to cover and cropped")
    height: int = Field(128, ge=64, le=4096, multiple_of=8, description="pixels")
    buckets: int = Field(0, ge=0, le=64, description="sizes of the same area that pictures are sorted into by their proportions; 0: one")
    resample: Literal["auto", "area", "nearest", "lines"] = Field("auto", description="how conditions are resized; auto: as their kind is")
    flip: bool = Field(False, description="also train on every pair mirrored; wrong where captions say left and right")


@dataclass(frozen=True)
class Piece:
    """A picture's bytes inside an archive that is not compressed: `size` bytes from `offset` on."""

    path: Path
    offset: int
    size: int
    member: str

    def __str__(self) -> str:
        return f"{self.path}:{self.member}"

    def read(self) -> bytes:
        """The bytes. Raises BadImage if the archive has shrunk or gone."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                data = file.read(self.size)
        except OSError as error:
            raise BadImage(f"{str(self)!r} cannot be read ({error.strerror}): is the archive still there?") from None
        if len(data) != self.size:
            raise BadImage(f"{str(self)!r} ends after {len(data)} of {self.size} bytes: the archive is cut, fetch it again")
        return data


@dataclass(frozen=True)
class Cell:
    """A picture's bytes in one cell of a Parquet table; the neighbours of a cell are read with it."""

    path: Path
    group: int
    row: int
    column: str

    def __str__(self) -> str:
        return f"{self.path}:{self.column}[{self.group}.{self.row}]"

    def read(self) -> bytes:
        """The bytes. Raises BadImage if the cell holds none."""
        value = _column(self.path, self.group, self.column)[self.row].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise BadImage(f"{str(self)!r} holds no picture's bytes ({type(data).__name__}): save the table with its pictures inside")
        return data


Source: TypeAlias = Path | Piece | Cell


@lru_cache(maxsize=4)
def _column(path: Path, group: int, column: str) -> Any:
    import pyarrow.parquet  # type: ignore[import-not-found,unused-ignore]

    return pyarrow.parquet.ParquetFile(path).read_row_group(group, columns=[column]).column(0)


def load(source: Source) -> Image:
    """The picture, RGB uint8 HWC. Raises BadImage, naming the source."""
    if isinstance(source, Path):
        return decode(source)
    try:
        return decode(source.read())
    except BadImage as error:
        raise BadImage(str(error).replace("the picture", repr(str(source)), 1)) from None


@dataclass(frozen=True)
class Pair:
    """One picture, its caption and its condition; without one, the condition is extracted from the picture."""

    picture: Source
    condition: Source | None
    caption: str
    mirrored: bool = False


Report = Callable[[BadRequest], None]
"""Told of everything wrong with a dataset: it raises (training), or notes it and reading goes on (checking)."""


@dataclass(frozen=True)
class Format:
    """One layout of datasets: what `training/formats/<name>.py` defines as `FORMAT`.

    recognises: whether a folder or file is of this layout, from its names. read: its pairs, in an order of its own that does not change.
    example: the layout in a line. vague: other layouts may look like it, so that they are asked first.
    """

    name: str
    recognises: Callable[[Path], bool]
    read: Callable[[DataConfig, Report], list[Pair]]
    example: str
    vague: bool = False


def caption_of(values: Mapping[str, Any], column: str, config: DataConfig, stem: str, where: str) -> str:
    """A row's caption, or what the template makes of the row where it has none.

    Raises:
        BadRequest: there is no such column and no template, or it holds no text.
    """
    value = values.get(column)
    if value is None or value == "":
        if config.template:
            return string.Template(config.template).safe_substitute({**values, "stem": stem, "name": stem.replace("_", " ")})
        if column not in values:
            raise BadRequest(f"{where}: {unknown_name('column', column, values)}; or give data.template, a caption for rows without one")
        return ""
    if isinstance(value, list) and value and isinstance(value[0], str):
        return str(value[0])
    if not isinstance(value, str):
        raise BadRequest(f"{where}: column {column!r} holds {value!r}, expected text")
    return value
