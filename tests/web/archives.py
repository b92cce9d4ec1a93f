"""Datasets as visitors upload them: good ones, and what was done to other programs that unpack ZIPs.

Sources: "Zip Slip" (Snyk, 2018: names that lead out, links); 42.zip and Fifield, "A better zip bomb" (2019): little that unpacks to much.
"""

import io
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from core.errors import BadRequest
from core.images import encode_png
from tests.web.pairs import write_pairs
from web import train_upload

PIXELS = encode_png(np.zeros((64, 64, 3), np.uint8))


def zipped(path: Path, files: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    """A ZIP of these files."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def good(path: Path, around: str = "") -> Path:
    """Four pairs with their edges, what a Mac adds, and a README. around: a folder with a slash that holds everything."""
    folder = write_pairs(path.parent / f"{path.stem}-pairs")
    files = {around + str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}
    return zipped(path, files | {"__MACOSX/._0.png": b"x", f"{around}.DS_Store": b"x", f"{around}README.md": b"pairs"})


def _named(name: str) -> Callable[[Path], Path]:
    return lambda path: zipped(path, {"images/0.png": PIXELS, name: PIXELS})


def _linked(path: Path) -> Path:
    zipped(path, {"images/0.png": PIXELS})
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo("images/1.png")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    return path


def _locked(path: Path) -> Path:
    data = bytearray(zipped(path, {"images/0.png": PIXELS}).read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    data[data.index(b"PK\x03\x04") + 6] |= 1
    path.write_bytes(data)
    return path


def _swollen(path: Path) -> Path:
    """Twenty kilobytes that unpack to twenty-one megabytes."""
    return zipped(path, {"images/0.png": PIXELS, "images/1.png": bytes(21 * 2**20)})


def _many_swollen(path: Path) -> Path:
    """Files that each keep the limit and together do not."""
    return zipped(path, {f"images/{number}.png": bytes(19 * 2**20) for number in range(11)})


def _lying(path: Path) -> Path:
    """The directory says that a file has ten bytes; what is packed has a million."""
    data = bytearray(zipped(path, {"images/0.png": bytes(10**6)}).read_bytes())
    for mark, place in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        struct.pack_into("<I", data, data.index(mark) + place, 10)
    path.write_bytes(data)
    return path


def _crowded(path: Path) -> Path:
    """A directory of many entries that all lead to one file."""
    once = zipped(path, {"images/0.png": b""}).read_bytes()
    start = once.index(b"PK\x01\x02")
    entry, end = once[start : once.index(b"PK\x05\x06")], bytearray(once[once.index(b"PK\x05\x06") :])
    struct.pack_into("<I", end, 12, len(entry) * 9000)
    struct.pack_into("<HH", end, 8, 9000, 9000)
    path.write_bytes(once[:start] + entry * 9000 + bytes(end))
    return path


def _too_many(path: Path) -> Path:
    return zipped(path, {f"images/{number}.txt": b"" for number in range(train_upload.MOST_FILES + 1)})


def _many_rows(path: Path) -> Path:
    row = b'{"file_name": "images/0.png", "canny": "images/0.png", "text": ""}\n'
    return zipped(path, {"images/0.png": PIXELS, "metadata.jsonl": row * (train_upload.MOST_ROWS + 1)})


def _cut(path: Path) -> Path:
    data = good(path).read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return path


def _spoilt(path: Path) -> Path:
    data = bytearray(zipped(path, {"images/0.png": bytes(range(256)) * 40}).read_bytes())
    data[60:80] = bytes(20)
    path.write_bytes(data)
    return path


def _packed_oddly(path: Path) -> Path:
    return zipped(path, {"images/0.png": PIXELS}, zipfile.ZIP_LZMA)


def _nested(path: Path) -> Path:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("images/0.png", PIXELS)
    return zipped(path, {"inner.zip": inner.getvalue(), "images.txt": b"x"})


def _no_zip(path: Path) -> Path:
    path.write_bytes(b"\x7fELF" * 100)
    return path


# What is uploaded, and words of the sentence that refuses it.
HOSTILE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a name that leads out": (_named("../../../../tmp/limn-evil.png"), "leads out of the dataset"),
    "a name that leads out by backslashes": (_named("..\\..\\limn-evil.png"), "leads out of the dataset"),
    "a name that leads in and out": (_named("images/../../limn-evil.png"), "leads out of the dataset"),
    "an absolute name": (_named("/tmp/limn-evil.png"), "leads out of the dataset"),
    "a drive's name": (_named("C:/limn-evil.png"), "leads out of the dataset"),
    "a name with a line's end": (_named("images/a\nb.png"), "leads out of the dataset"),
    "a name as long as a page": (_named("images/" + "x" * 3000 + ".png"), "over 200 characters"),
    "a tower of folders": (_named("a/" * 50 + "0.png"), "over 200 characters or 6 folders"),
    "one name twice": (_named("Images/0.PNG"), "two files are called"),
    "a folder that is a file": (_named("images/0.png/1.png"), "a folder that is a file"),
    "a link": (_linked, "is a link"),
    "a password": (_locked, "is encrypted"),
    "an odd method": (_packed_oddly, "uncommon method"),
    "one file that swells": (_swollen, "21 MiB, over the limit of 20 MiB"),
    "many files that swell": (_many_swollen, "209 MiB unpacked, over the limit of 200 MiB"),
    "a size that lies": (_lying, "pack it again"),
    "a crowded directory": (_crowded, "more than 4000 files"),
    "too many files": (_too_many, "4001 files, over the limit of 4000"),
    "too many rows": (_many_rows, "more than 20000 rows"),
    "half a ZIP": (_cut, "cannot be read"),
    "a spoilt ZIP": (_spoilt, "damaged"),
    "a ZIP in a ZIP": (_nested, "no pairs are found"),
    "no ZIP at all": (_no_zip, "cannot be read"),
    "nothing of a dataset": (lambda path: zipped(path, {"run.sh": b"rm", "a.ckpt": b"x"}), "nothing of a dataset"),
}


def replay(folder: Path) -> list[str]:
    """Every hostile ZIP, uploaded as a dataset into this folder: those that were not refused, or left something."""
    through = []
    for number, (name, (make, _)) in enumerate(HOSTILE.items()):
        home = folder / f"uploads-{number}"
        try:
            train_upload.receive([make(folder / f"{number}.zip")], home)
        except BadRequest:
            if not any(path.is_file() for path in home.rglob("*")):
                continue
        through.append(f"ZIP with {name}")
    return through
