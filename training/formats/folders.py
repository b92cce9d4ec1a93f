"""Folders of pictures and of conditions whose files have the same names, captions in `.txt` files beside the pictures (kohya's layout).

    DIR/images/0001.png   DIR/images/0001.txt   DIR/canny/0001.png

Pictures alone will do where conditions are extracted. The pictures lie in the folder that `data.picture` names, in `images`, or in the
dataset's folder itself.
"""

from pathlib import Path

from core.errors import BadRequest
from training.pairs import PICTURES, DataConfig, Format, Pair, Report, caption_of, columns_of, pair_of

USUAL = "images"


def recognises(path: Path) -> bool:
    """A folder with pictures in it, or in its `images`."""
    return path.is_dir() and any(_is_picture(file) for folder in (path / USUAL, path) if folder.is_dir() for file in folder.iterdir())


def read(config: DataConfig, report: Report) -> list[Pair]:
    """See `Format.read`: pictures in the order of their names."""
    home = config.folder / config.picture if config.picture else config.folder / USUAL
    if not config.picture and not home.is_dir():
        home = config.folder
    pictures = _by_stem(home, report)
    others = {name: _by_stem(config.folder / name, report) for name in columns_of(config)}
    whole = set(pictures).intersection(*others.values())
    for name, files in others.items():
        for lonely, what in ((pictures.keys() - files.keys(), "condition"), (files.keys() - pictures.keys(), "picture")):
            if lonely:
                missing = "mask" if what == "condition" and name == config.mask else what
                where = config.folder / name if what == "condition" else home
                report(
                    BadRequest(
                        f"{len(lonely)} of {len(pictures.keys() | files.keys())} pairs have no {missing} in {str(where)!r}, "
                        f"the first is {min(lonely)!r}: files of a pair have the same name"
                    )
                )
    ending = "." + (config.caption or "txt").removeprefix(".")
    silent = [] if config.template else [stem for stem in sorted(whole) if not _caption_file(pictures[stem], ending).is_file()]
    if silent:
        report(
            BadRequest(
                f"{len(silent)} of {len(whole)} pairs have no caption in a {ending} file beside the picture, "
                f"the first is {str(pictures[silent[0]])!r}: write one, or give data.template for those without"
            )
        )
    pairs = []
    for stem in sorted(whole.difference(silent)):
        try:
            sources = {name: files[stem] for name, files in others.items()}
            pairs.append(pair_of(config, sources.__getitem__, pictures[stem], _caption(pictures[stem], ending, config)))
        except BadRequest as error:
            report(error)
    return pairs


def conditions(path: Path) -> list[str]:
    """See `Format.conditions`: folders with pictures."""
    return [
        folder.name
        for folder in sorted(path.iterdir())
        if folder.is_dir() and folder.name != USUAL and any(map(_is_picture, folder.iterdir()))
    ]


def _by_stem(folder: Path, report: Report) -> dict[str, Path]:
    """The pictures of a folder by what their names begin with; what is wrong with those names is reported."""
    found: dict[str, Path] = {}
    try:
        for path in sorted(folder.iterdir()):
            if _is_picture(path) and (other := found.setdefault(path.stem, path)) is not path:
                report(BadRequest(f"{str(path)!r} and {other.name!r} have one name, so that either may be meant: rename or remove one"))
    except OSError as error:
        raise BadRequest(
            f"folder {str(folder)!r} cannot be read ({error.strerror}): data.picture and data.condition name folders"
        ) from None
    return found


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURES


def _caption_file(picture: Path, ending: str) -> Path:
    return picture.with_name(picture.stem + ending)


def _caption(picture: Path, ending: str, config: DataConfig) -> str:
    file = _caption_file(picture, ending)
    try:
        values = {"text": file.read_bytes().decode("utf-8-sig").strip()} if file.is_file() else {}
    except UnicodeDecodeError as error:
        raise BadRequest(f"{str(file)!r} is not UTF-8 (byte {error.start}): save it as UTF-8") from None
    return caption_of(values, "text", config, picture.stem, str(file))


FORMAT = Format(
    "folders",
    recognises,
    read,
    conditions,
    "DIR/images/*.png with captions in *.txt, and DIR/<condition>/*.png of the same names",
    vague=True,
)
