"""The layout of ControlNet's own tutorial: `prompt.json` of JSON lines with source, target and prompt.

    DIR/prompt.json    {"source": "source/0.png", "target": "target/0.png", "prompt": "pale golden rod circle with old lace background"}

Source: lllyasviel/ControlNet, docs/train.md.
"""

from pathlib import Path

from training.formats.rows import picture_columns, read_rows
from training.pairs import DataConfig, Format, Pair, Report

PROMPTS = "prompt.json"


def recognises(path: Path) -> bool:
    """A folder with its prompts."""
    return (path / PROMPTS).is_file()


def read(config: DataConfig, report: Report) -> list[Pair]:
    """See `Format.read`."""
    return read_rows(config.folder / PROMPTS, config, ("target", "prompt"), report)


def conditions(path: Path) -> list[str]:
    """See `Format.conditions`."""
    return picture_columns(path / PROMPTS, "target")


FORMAT = Format("fill50k", recognises, read, conditions, f"DIR/{PROMPTS} with target, prompt and source")
