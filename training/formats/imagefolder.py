"""A folder with `metadata.jsonl`, one row a picture, as the `datasets` library and `limn toyland build` write it.

DIR/metadata.jsonl    {"file_name": "images/0.png", "text": "a red sphere on grass", "canny": "canny/0.png", "depth": "depth/0.png"}

A dataset in splits has such a folder for each, as `DIR/train`, which is the one that is read.
"""

from pathlib import Path

from training.formats.rows import picture_columns, read_rows
from training.pairs import DataConfig, Format, Pair, Report

METADATA = "metadata.jsonl"


def recognises(path: Path) -> bool:
    """A folder with its metadata."""
    return _metadata(path).is_file()


def read(config: DataConfig, report: Report) -> list[Pair]:
    """See `Format.read`."""
    return read_rows(_metadata(config.folder), config, ("file_name", "text"), report)


def conditions(path: Path) -> list[str]:
    """See `Format.conditions`."""
    return picture_columns(_metadata(path), "file_name")


def _metadata(path: Path) -> Path:
    here, split = path / METADATA, path / "train" / METADATA
    return split if split.is_file() and not here.is_file() else here


FORMAT = Format("imagefolder", recognises, read, conditions, f"DIR/{METADATA} with columns for picture, caption and condition")
