"""Tar shards as WebDataset writes them: the files of a sample have one name up to its first dot, and lie next to one another.

    DIR/*.tar    0001.jpg  0001.canny.png  0001.txt     (or the caption in 0001.json)

Shards stay closed: only where each picture's bytes begin is kept. Source: webdataset, "The WebDataset format".
"""

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.errors import BadRequest, unknown_name
from training.pairs import PICTURES, DataConfig, Format, Pair, Piece, Report, caption_of, columns_of, pair_of

PLAIN = tuple(ending[1:] for ending in PICTURES)


def recognises(path: Path) -> bool:
    """A tar file, or a folder of them."""
    return path.suffix == ".tar" if path.is_file() else any(path.glob("*.tar"))


def read(config: DataConfig, report: Report) -> list[Pair]:
    """See `Format.read`: shards in the order of their names."""
    pairs = []
    for shard in [config.folder] if config.folder.is_file() else sorted(config.folder.glob("*.tar")):
        try:
            for name, files in _samples(shard):
                try:
                    pairs.append(_pair(f"{shard}:{name}", name, files, config))
                except BadRequest as error:
                    report(error)
        except (tarfile.TarError, OSError) as error:
            report(BadRequest(f"shard {str(shard)!r} cannot be read ({error}): it must be a plain .tar, not compressed and not cut"))
    return pairs


def _samples(shard: Path) -> Iterator[tuple[str, dict[str, Piece]]]:
    """Each sample's name and its files by what follows the first dot."""
    name, files = "", dict[str, Piece]()
    with tarfile.open(shard, "r:") as archive:
        for member in archive:
            if not member.isfile():
                continue
            folder, slash, file = member.name.rpartition("/")
            stem, _, extension = file.partition(".")
            if folder + slash + stem != name:
                if files:
                    yield name, files
                name, files = folder + slash + stem, {}
            files[extension.lower()] = Piece(shard, member.offset_data, member.size, member.name)
    if files:
        yield name, files


def _pair(where: str, name: str, files: dict[str, Piece], config: DataConfig) -> Pair:
    others = {name for name in columns_of(config) if name in files}
    picture = _piece({end: file for end, file in files.items() if end not in others}, config.picture, where)
    values: dict[str, Any] = {}
    try:
        if "json" in files:
            found = json.loads(files["json"].read())
            values |= found if isinstance(found, dict) else {}
        if "txt" in files:
            values["txt"] = files["txt"].read().decode().strip()
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"{where}: its caption is not UTF-8 or not JSON ({error})") from None
    column = config.caption or ("txt" if "txt" in values else "text" if "text" in values else "caption")
    text = caption_of(values, column, config, name.rpartition("/")[2], where)
    return pair_of(config, lambda extension: _piece(files, extension, where), picture, text)


def _piece(files: dict[str, Piece], wanted: str, where: str) -> Piece:
    """The file whose extension is wanted, its picture format left out or not; the plain picture where nothing is wanted.

    Raises:
        BadRequest: there is none, or more than one.
    """
    if wanted in files:
        return files[wanted]
    found = [extension for plain in PLAIN if (extension := f"{wanted}.{plain}".lstrip(".")) in files]
    if not found:
        raise BadRequest(f"{where}: {unknown_name('extension', wanted or 'jpg', files)}")
    if len(found) > 1:
        raise BadRequest(
            f"{where}: {' and '.join(found)} may each be the {wanted or 'picture'}: name its whole extension, as data.picture={found[0]}"
        )
    return files[found[0]]


def conditions(path: Path) -> list[str]:
    """See `Format.conditions`: endings of the first sample that name a picture besides its own."""
    try:
        shard = path if path.is_file() else min(path.glob("*.tar"))
        _, files = next(_samples(shard), ("", {}))
    except (tarfile.TarError, OSError):
        return []
    return [end.rpartition(".")[0] for end in files if "." in end and end.rpartition(".")[2] in PLAIN]


FORMAT = Format("webdataset", recognises, read, conditions, "DIR/*.tar with NAME.jpg, NAME.<condition>.png and NAME.txt")
