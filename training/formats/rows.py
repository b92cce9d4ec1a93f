"""Rows of JSON lines as pairs: what several formats share."""

import json
from pathlib import Path
from typing import Any

from core.errors import BadRequest, unknown_name
from training.pairs import PICTURES, DataConfig, Pair, Report, caption_of, pair_of


def read_rows(file: Path, config: DataConfig, usual: tuple[str, str], report: Report) -> list[Pair]:
    """The pairs of a file of JSON lines. usual: the format's names of the columns with picture and caption.

    Raises:
        BadRequest: the file cannot be read; what is wrong with a row is reported.
    """
    pairs = []
    try:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    pairs += _pairs(line, f"{file}:{number}", (file.parent, config, usual))
                except BadRequest as error:
                    report(error)
    except OSError as error:
        raise BadRequest(f"{str(file)!r} cannot be read ({error.strerror}): check the path") from None
    return pairs


def picture_columns(file: Path, picture: str) -> list[str]:
    """The columns of a file of JSON lines that name pictures in its first row, but for the one of that name; none if it cannot be read."""
    try:
        with file.open("rb") as lines:
            row = json.loads(next(lines, b"").decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return []
    columns = row.items() if isinstance(row, dict) else ()
    return [name for name, value in columns if name != picture and isinstance(value, str) and Path(value).suffix.lower() in PICTURES]


def _pairs(line: bytes, where: str, given: tuple[Path, DataConfig, tuple[str, str]]) -> list[Pair]:
    folder, config, usual = given
    try:
        text = line.decode("utf-8-sig").strip()  # editors on Windows begin a file with a byte order mark
    except UnicodeDecodeError as error:
        raise BadRequest(f"{where} is not UTF-8 (byte {error.start}): save it as UTF-8") from None
    if not text:
        return []
    picture, caption = config.picture or usual[0], config.caption or usual[1]
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"{where}: not JSON ({error})") from None
    if not isinstance(row, dict):
        raise BadRequest(f"{where}: a row is an object with the columns {picture}, {caption} and {' and '.join(config.conditions)}")
    path = folder / _path(row, picture, where)
    text = caption_of(row, caption, config, path.stem, where)
    return [pair_of(config, lambda column: folder / _path(row, column, where), path, text)]


def _path(row: dict[str, Any], column: str, where: str) -> str:
    if column not in row:
        raise BadRequest(f"{where}: {unknown_name('column', column, row)}")
    if not isinstance(row[column], str):
        raise BadRequest(f"{where}: column {column!r} holds {row[column]!r}, expected text")
    return str(row[column])
