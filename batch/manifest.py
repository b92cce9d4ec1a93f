"""Manifests: a file of rows (JSONL, CSV or Parquet) → requests, every row checked, every mistake with its line and column.

JSONL: an object a line; a first line `{"defaults": {…}}` holds for all. CSV: the first line names the columns; an empty cell is not given.
Parquet: a column each, null is not given. Paths are relative to the manifest. A row wins over the file's defaults, these over the caller's.
"""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from batch.rows import BadRow, check_keys, given_over, request_of, seen_from_here
from core.errors import BadRequest, UserError
from core.request import RenderRequest

SUFFIXES = (".jsonl", ".csv", ".parquet")
MAX_ROW_BYTES = 2**20


@dataclass(frozen=True)
class Problem:
    """What is wrong with a row. line: as an editor counts (Parquet: the row's number); column: likewise, or the column's name."""

    line: int
    column: int | str | None
    message: str

    def __str__(self) -> str:
        where = f"line {self.line}" + ("" if self.column is None else f", column {self.column}")
        return f"{where}: {self.message}"


@dataclass(frozen=True)
class Row:
    """A good row: where it stands, and its request. folder: where below the output its pictures go; columns: where each key stands."""

    line: int
    request: RenderRequest
    folder: str = ""
    columns: Mapping[str, int | str] = field(default_factory=dict, compare=False)


@dataclass
class Manifest:
    """A manifest as it was read: its good rows and what is wrong with the others."""

    rows: list[Row] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


@dataclass(frozen=True)
class _Raw:
    """A row before it means anything. columns: where each key stands."""

    line: int
    values: Mapping[str, Any]
    columns: Mapping[str, int | str]


class _Broken(UserError):
    """A row that cannot be read at all."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


def read_manifest(path: Path, defaults: Mapping[str, Any] | None = None) -> Manifest:
    """Every row of a manifest. defaults: for what a row leaves out, as `batch.rows.seen_from_here` gives them.

    Raises:
        BadRequest: the file cannot be read, is of another format, is empty, or what holds for all of its rows is wrong.
    """
    reader = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}.get(path.suffix.lower())
    if reader is None:
        raise BadRequest(f"manifest {str(path)!r}: give a file whose name ends in {', '.join(SUFFIXES)}, or a folder of control pictures")
    found, given = Manifest(), dict(defaults or {})
    for raw in reader(path):
        if isinstance(raw, _Broken):
            found.problems.append(raw.problem)
            continue
        if raw.line == 1 and set(raw.values) == {"defaults"}:
            given = given_over(given, _own_defaults(raw.values["defaults"], path))
            continue
        try:
            request = request_of(given_over(given, raw.values), path.parent)
            found.rows.append(Row(raw.line, request, columns=raw.columns))
        except BadRow as error:
            found.problems.append(Problem(raw.line, raw.columns.get(error.key or ""), str(error)))
    if not found.rows and not found.problems:
        raise BadRequest(f"manifest {str(path)!r} has no rows: write one request to a line")
    return found


def read_defaults(path: Path) -> dict[str, Any]:
    """Defaults from a YAML file: a mapping of columns and values; its paths are relative to it.

    Raises:
        BadRequest: the file cannot be read, is no mapping, or has an unknown key.
    """
    import yaml

    try:
        values = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadRequest(f"defaults {str(path)!r} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise BadRequest(f"defaults {str(path)!r}: write one KEY: VALUE to a line")
    try:
        check_keys(map(str, values))
        request_of(values, path.parent)
        return seen_from_here(values, path.parent)
    except BadRow as error:
        raise BadRequest(f"defaults {str(path)!r}: {error}") from None


def _own_defaults(values: Any, path: Path) -> dict[str, Any]:
    """What a JSONL file's first line gives to all rows; where it is wrong no row can be drawn as it was meant."""
    try:
        if not isinstance(values, dict):
            raise BadRow("give an object of columns and values")
        check_keys(values)
    except BadRow as error:
        raise BadRequest(f"manifest {str(path)!r}, line 1, defaults: {error}") from None
    return values


def _jsonl(path: Path) -> Iterator[_Raw | _Broken]:
    for line, text in enumerate(_text(path).split("\n"), 1):
        if not text.strip():
            continue
        if (broken := _unreadable(text, line)) is not None:
            yield broken
            continue
        try:
            values = json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)
        except json.JSONDecodeError as error:
            if line == 1 and text.lstrip(" {").startswith('"defaults"'):  # to go on without it would draw all rows otherwise
                raise BadRequest(
                    f"manifest {str(path)!r}, line 1, column {error.colno}: defaults that are not JSON: {error.msg.lower()}"
                ) from None
            yield _Broken(Problem(line, error.colno, f"not JSON: {error.msg.lower()}; write one object to a line"))
        except (ValueError, RecursionError) as error:
            yield _Broken(Problem(line, None, str(error)[:200]))
        else:
            if isinstance(values, dict):
                yield _Raw(line, values, {key: text.find(json.dumps(key, ensure_ascii=False)) + 1 for key in values})
            else:
                yield _Broken(Problem(line, 1, "not an object: write {…} with columns and values"))


def _csv(path: Path) -> Iterator[_Raw | _Broken]:
    text = _text(path)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        names = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        raise BadRequest(f"manifest {str(path)!r}: its first line cannot be read ({error}): name the columns there") from None
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise BadRequest(f"manifest {str(path)!r}, line 1: column {twice!r} is named twice")
    try:
        check_keys(tuple(names))
    except BadRow as error:
        raise BadRequest(f"manifest {str(path)!r}, line 1, column {names.index(error.key or '') + 1}: {error}") from None
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield _Broken(Problem(line, None, f"not CSV: {error}"))
            continue
        if not any(cell.strip() for cell in cells):
            continue
        if (broken := _unreadable(",".join(cells), line)) is not None:
            yield broken
        elif len(cells) > len(names):
            message = f"{len(cells)} cells for {len(names)} columns; a value with a comma needs quotes"
            yield _Broken(Problem(line, len(names) + 1, message))
        else:
            filled = {name: cell for name, cell in zip(names, cells, strict=False) if cell != ""}
            yield _Raw(line, filled, {name: number for number, name in enumerate(names, 1)})


def _parquet(path: Path) -> Iterator[_Raw | _Broken]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise BadRequest(f"manifest {str(path)!r}: Parquet needs pyarrow; install limn[cluster], or write JSONL or CSV") from None
    try:
        file = parquet.ParquetFile(path)
        check_keys(tuple(file.schema_arrow.names))
        line = 0
        for group in file.iter_batches(batch_size=1024):
            for values in group.to_pylist():
                line += 1
                yield _Raw(line, values, {name: name for name in values})
    except BadRow as error:
        raise BadRequest(f"manifest {str(path)!r}, column {error.key!r}: {error}") from None
    except (OSError, ValueError) as error:
        raise BadRequest(f"manifest {str(path)!r} cannot be read ({' '.join(str(error).split())[:200]})") from None


def _text(path: Path) -> str:
    """The file as text; bytes that are no UTF-8 become halves of characters, which `_unreadable` finds in their row."""
    try:
        return path.read_bytes().decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    except OSError as error:
        raise BadRequest(f"manifest {str(path)!r} cannot be read ({error.strerror}): check the path") from None


def _unreadable(text: str, line: int) -> _Broken | None:
    for column, letter in enumerate(text, 1) if not text.isascii() else ():
        if "\udc80" <= letter <= "\udcff":
            return _Broken(Problem(line, column, f"byte 0x{ord(letter) - 0xDC00:02x} is not UTF-8: save the file as UTF-8"))
    if len(text) > MAX_ROW_BYTES:
        return _Broken(Problem(line, None, f"{len(text)} characters, over the limit of {MAX_ROW_BYTES} for a row"))
    return None


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [key for key, _ in pairs]
        raise ValueError(f"{next(key for key in names if names.count(key) > 1)!r} is given twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number that a picture can be made with")
