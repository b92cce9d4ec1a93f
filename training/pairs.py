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

from pydantic import Field, model_validator

from core.control import Image
from core.errors import BadImage, BadRequest, unknown_name
from core.images import decode
from core.request import Frozen

Interval = tuple[float, float]
PICTURES = (".jpg", ".jpeg", ".png", ".webp")  # endings of files
FROM_FILE = ("stem", "name")  # what a caption's template takes from the picture's file


class DataConfig(Frozen):
    """Where the pairs are, what is read of them, and what size they are trained at."""

    folder: Path = Field(description="a folder or file of any format that training/formats knows, or OWNER/NAME of a dataset on the hub")
    format: str = Field("auto", description="auto: recognised by its files; else the format's name")
    condition: str | Annotated[tuple[str, ...], Field(min_length=1, max_length=8)] = Field(
        description="column, folder or extension with the condition; with extract, the kind of control; several are stacked"
    )
    grey: tuple[str, ...] = Field((), description="conditions that are stacked as one channel instead of three")
    mask: str = Field("", description="column, folder or extension with masks: the loss counts where they are white")
    picture: str = Field("", description="the same for the picture; empty: the format's usual name")
    caption: str = Field("", description="the same for the caption; empty: the format's usual name")
    template: str = Field("", description="caption of rows that have none, as in 'a photo of $name'; columns and the file's $stem fit in")
    kind: str | tuple[str, ...] = Field(
        "",
        description="kind of control that the condition is, or each of several; empty: the one that `condition` names, where it names one",
    )
    extract: bool = Field(False, description="make the conditions from the pictures with the kind's extractor")
    params: dict[str, Any] = Field(default_factory=dict, description="settings of the extractor")
    vary: dict[str, Annotated[Interval, Field()]] = Field(
        default_factory=dict, description="settings of the extractor that each pair draws anew, as from … to"
    )
    width: int = Field(128, ge=64, le=4096, multiple_of=8, description="pixels; pictures are scaled to cover and cropped")
    height: int = Field(128, ge=64, le=4096, multiple_of=8, description="pixels")
    buckets: int = Field(0, ge=0, le=64, description="sizes of the same area that pictures are sorted into by their proportions; 0: one")
    scales: tuple[Annotated[float, Field(ge=0.125, le=8.0)], ...] = Field(
        (1.0,), min_length=1, max_length=8, description="factors on width and height; a picture goes where it need not be enlarged"
    )
    crops: int = Field(0, ge=0, le=64, description="random crops of every pair, each trained on like a pair; 0: one crop, in the middle")
    zoom: float = Field(1.0, ge=1.0, le=8.0, description="random crops show the largest crop or down to one so many times smaller")
    resample: Literal["auto", "area", "nearest", "lines"] = Field("auto", description="how conditions are resized; auto: as their kind is")
    flip: bool = Field(False, description="also train on every pair mirrored; wrong where captions say left and right")

    @model_validator(mode="after")
    def _fields_agree(self) -> "DataConfig":
        if self.kind and len(self.conditions) != len(self.kinds):
            raise ValueError(f"kind names {len(self.kinds)} kinds for {len(self.conditions)} conditions: give one for each")
        if len(set(self.conditions)) != len(self.conditions):
            raise ValueError(f"condition {list(self.conditions)}: the same one twice")
        if strange := [name for name in self.grey if name not in self.conditions]:
            raise ValueError(f"grey names {strange[0]!r}, which is none of the conditions {', '.join(self.conditions)}")
        if len(self.conditions) > 1 and (self.params or self.vary):
            raise ValueError("params and vary are one extractor's settings: leave them out where conditions are stacked")
        if not all(self.conditions):
            raise ValueError("condition is empty: name the column, folder or extension that holds the conditions")
        if not string.Template(self.template).is_valid():
            raise ValueError(f"template {self.template!r}: a $ begins the name of a column; write $$ for the character itself")
        if self.zoom > 1.0 and not self.crops:
            raise ValueError(f"zoom {self.zoom:g} is of random crops: set crops to 1 or more")
        return self

    @property
    def conditions(self) -> tuple[str, ...]:
        """The names of all conditions, in the order of their channels."""
        return (self.condition,) if isinstance(self.condition, str) else self.condition

    @property
    def kinds(self) -> tuple[str, ...]:
        """What the conditions are said to be, one name each; their own where nothing is said."""
        return ((self.kind,) if isinstance(self.kind, str) else self.kind) if self.kind else self.conditions

    @property
    def title(self) -> str:
        """All conditions as one name."""
        return "+".join(self.conditions)


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
    """One picture, its caption and its conditions; without any, they are extracted from the picture.

    mask: where the loss counts; None for everywhere. crop: the number of its random crop; None for the crop in the middle.
    """

    picture: Source
    conditions: tuple[Source, ...]
    caption: str
    mask: Source | None = None
    mirrored: bool = False
    crop: int | None = None

    @property
    def sources(self) -> tuple[Source, ...]:
        """All that is read of the pair."""
        return (self.picture, *self.conditions, *(() if self.mask is None else (self.mask,)))


def pair_of(config: DataConfig, find: Callable[[str], Source], picture: Source, caption: str) -> Pair:
    """The pair of a picture. find: the source under a column's, a folder's or an extension's name."""
    conditions = () if config.extract else tuple(find(name) for name in config.conditions)
    return Pair(picture, conditions, caption, find(config.mask) if config.mask else None)


def columns_of(config: DataConfig) -> tuple[str, ...]:
    """What is read besides the picture: conditions, unless they are extracted, and masks."""
    return (() if config.extract else config.conditions) + ((config.mask,) if config.mask else ())


Report = Callable[[BadRequest], None]
"""Told of everything wrong with a dataset: it raises (training), or notes it and reading goes on (checking)."""


@dataclass(frozen=True)
class Format:
    """One layout of datasets: what `training/formats/<name>.py` defines as `FORMAT`.

    recognises: whether a folder or file is of this layout, from its names. read: its pairs, in an order of its own that does not change.
    conditions: the names of what may hold conditions, from its first row. example: the layout in a line. vague: other layouts may look like
    it, so that they are asked first.
    """

    name: str
    recognises: Callable[[Path], bool]
    read: Callable[[DataConfig, Report], list[Pair]]
    conditions: Callable[[Path], list[str]]
    example: str
    vague: bool = False


def caption_of(values: Mapping[str, Any], column: str, config: DataConfig, stem: str, where: str) -> str:
    """A row's caption, or what the template makes of the row where it has none.

    Raises:
        BadRequest: there is no such column and no template, or it holds no text, or the template names what the row has not.
    """
    value = values.get(column)
    if value is None or (isinstance(value, str) and not value.strip()):
        if config.template:
            return _filled(config.template, {**values, **dict(zip(FROM_FILE, (stem, stem.replace("_", " ")), strict=True))}, where)
        if column not in values:
            raise BadRequest(f"{where}: {unknown_name('column', column, values)}; or give data.template, a caption for rows without one")
        return ""
    if isinstance(value, list) and value and isinstance(value[0], str):
        return _whole(str(value[0]), where)
    if not isinstance(value, str):
        raise BadRequest(f"{where}: column {column!r} holds {value!r}, expected text")
    return _whole(value, where)


def _filled(template: str, values: Mapping[str, Any], where: str) -> str:
    for name in string.Template(template).get_identifiers():
        if name not in values:
            raise BadRequest(f"{where}: data.template: {unknown_name('column', name, values)}")
        if values[name] is None or values[name] == "":
            raise BadRequest(f"{where}: data.template needs {name!r}, which is empty here: fill it in, or leave the row out")
    return _whole(string.Template(template).substitute(values), where)


def _whole(text: str, where: str) -> str:
    """The text, if it can be encoded: JSON may hold halves of characters."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRequest(
            f"{where}: character {error.start} of the caption is half of one (\\u{ord(text[error.start]):x}): mend it"
        ) from None
    return text
