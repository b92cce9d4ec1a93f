"""A file of JSON lines, one row a picture; paths are relative to the file."""

from pathlib import Path

from training.formats.rows import picture_columns, read_rows
from training.pairs import DataConfig, Format, Pair, Report


def recognises(path: Path) -> bool:
    """A file whose name ends in .jsonl."""
    return path.is_file() and path.suffix == ".jsonl"


def read(config: DataConfig, report: Report) -> list[Pair]:
    """See `Format.read`."""
    return read_rows(config.folder, config, ("file_name", "text"), report)


def conditions(path: Path) -> list[str]:
    """See `Format.conditions`."""
    return picture_columns(path, "file_name")


FORMAT = Format("jsonl", recognises, read, conditions, "FILE.jsonl with columns for picture, caption and condition")
