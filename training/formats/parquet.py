"""Parquet tables with pictures inside, as the `datasets` library saves them and the hub serves them.

Where tables are named or filed by split, as in `data/train-00000-of-00004.parquet`, and one is called train, only that one is read.

A dataset on the hub is named as OWNER/NAME (`training.hub`).
"""

import re
import string
from functools import partial
from pathlib import Path
from typing import Any

from core.errors import BadRequest, unknown_name
from training.pairs import FROM_FILE, Cell, DataConfig, Format, Pair, Report, caption_of, columns_of, pair_of

_SPLIT = re.compile(r"(.+)-\d{5}-of-\d{5}")


def recognises(path: Path) -> bool:
    """A table, or a folder with tables at any depth."""
    return path.suffix == ".parquet" if path.is_file() else next(path.rglob("*.parquet"), None) is not None


def read(config: DataConfig, report: Report) -> list[Pair]:
    """See `Format.read`: tables in the order of their names.

    Raises:
        BadRequest: pyarrow is not installed, or a table or column cannot be read.
    """
    pyarrow = _library()
    pairs = []
    picture, caption = config.picture or "image", config.caption or "text"
    wanted = (picture, *columns_of(config))
    spoken = (
        [name for name in string.Template(config.template).get_identifiers() if name not in FROM_FILE] if config.template else [caption]
    )
    for path in [config.folder] if config.folder.is_file() else _to_train_on(config.folder):
        try:
            table = pyarrow.parquet.ParquetFile(path)
            names = table.schema_arrow.names
            if strange := [name for name in (*wanted, *spoken) if name not in names]:
                raise unknown_name(f"column of {str(path)!r}", strange[0], names)
            texts = [name for name in names if name in (caption, *spoken)]
            for group in range(table.num_row_groups):
                for row, values in enumerate(_values(table, group, texts)):
                    where = f"{path}:{group}.{row}"
                    cell = partial(Cell, path, group, row)
                    try:
                        pairs.append(pair_of(config, cell, cell(picture), caption_of(values, caption, config, "", where)))
                    except BadRequest as error:
                        report(error)
        except BadRequest as error:
            report(error)
        except (pyarrow.ArrowException, OSError) as error:
            report(BadRequest(f"table {str(path)!r} cannot be read ({' '.join(str(error).split())[:120]}): fetch it again"))
    return pairs


def _library() -> Any:
    try:
        import pyarrow.parquet  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        raise BadRequest("Parquet tables need pyarrow, which is not installed: pip install pyarrow") from None
    return pyarrow


def _to_train_on(folder: Path) -> list[Path]:
    """All tables of a folder, or those of its split called train."""
    tables = sorted(folder.rglob("*.parquet"))
    splits = [found[1] if (found := _SPLIT.fullmatch(table.stem)) else table.relative_to(folder).parent.name for table in tables]
    return [table for table, split in zip(tables, splits, strict=True) if split == "train" or "train" not in splits]


def _values(table: Any, group: int, columns: list[str]) -> list[dict[str, Any]]:
    if not columns:
        return [{}] * int(table.metadata.row_group(group).num_rows)
    found: list[dict[str, Any]] = table.read_row_group(group, columns=columns).to_pylist()
    return found


def conditions(path: Path) -> list[str]:
    """See `Format.conditions`: columns of the first table that hold bytes, or records with bytes, as pictures are kept."""
    pyarrow = _library()
    table = path if path.is_file() else _to_train_on(path)[0]
    try:
        columns = pyarrow.parquet.read_schema(table)
    except (pyarrow.ArrowException, OSError):
        return []
    return [column.name for column in columns if column.name != "image" and "binary" in str(column.type)]


FORMAT = Format("parquet", recognises, read, conditions, "DIR/**/*.parquet with columns of pictures and text")
