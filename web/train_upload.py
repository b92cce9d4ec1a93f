"""A dataset that a visitor uploads, as a ZIP or as loose files: unpacked into a folder of its own, of which nothing is published unless
everything in it is harmless.

What comes from outside decides nothing but the names inside that folder: no path that leads out of it, no link, nothing that unpacks to
more than the limits, no file but pictures, captions and JSON lines.
"""

import hashlib
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from core.errors import BadRequest, LimnError, shortened
from core.files import publish_folder
from core.images import MAX_BYTES

MOST_FILES = 4000
MOST_BYTES = 200 * 2**20  # of one dataset, unpacked
MOST_BYTES_OF_ALL = 2 * 2**30
MOST_CHARACTERS, MOST_FOLDERS = 200, 6  # of a name with its folders
PICTURES = {".png", ".jpg", ".jpeg", ".webp"}
TAKEN = PICTURES | {".txt", ".jsonl", ".json"}
MOST_ROWS = 20_000  # each is held in memory
ROWS = {"metadata.jsonl", "prompt.json"}  # name their pictures themselves
ROWS_END = {".jsonl", ".json"}
IMAGES = "images"

_ENTRY = b"PK\x01\x02"  # begins every entry of a ZIP's directory
_SECRET = 0x1  # the flag of an entry that is encrypted
_CONDITION = re.compile(r"(.+)\.([A-Za-z_]{2,32})$")
_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f<>:"|?*]')


@dataclass(frozen=True)
class Received:
    """An uploaded dataset: its folder, how many files it has, and how many were left out because no dataset has such."""

    folder: Path
    files: int
    left_out: int


def receive(paths: Sequence[Path], home: Path) -> Received:
    """The uploaded files as a dataset below `home`; the same files once more are the same dataset.

    paths: one ZIP, or loose pictures, captions (`NAME.txt`) and conditions (`NAME.canny.png`), or with them a `metadata.jsonl`.

    Raises:
        BadRequest: it is no dataset, is over a limit, or would reach out of its folder.
        DiskFull: there is no room.
    """
    archives = [path for path in paths if path.suffix.lower() == ".zip"]
    if archives and len(paths) > 1:
        raise BadRequest(f"{len(paths)} files with a ZIP among them: upload one ZIP alone, or the files without it")
    found = _of_zip(archives[0]) if archives else _loose(paths)
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", archives[0].stem if archives else "pairs").strip("-")[:40] or "pairs"
    folder = home / f"{stem}-{digest.hexdigest()[:8]}"
    if not folder.exists():
        _room(home, sum(one.size for one in found.files))
        publish_folder(folder, found.write)
    return Received(folder, len(found.files), found.left_out)


@dataclass(frozen=True)
class _File:
    """One file to be written: its place in the dataset, its size in bytes, where its bytes are."""

    place: PurePosixPath
    size: int
    source: Path
    member: str = ""


@dataclass(frozen=True)
class _Found:
    files: list[_File]
    left_out: int

    def write(self, folder: Path) -> None:
        """Everything written into a folder. Raises BadRequest where it is no dataset's."""
        from training import formats

        for file, data in self._read():
            place = folder / file.place
            place.parent.mkdir(parents=True, exist_ok=True)
            if file.place.suffix.lower() in ROWS_END and data.count(b"\n") > MOST_ROWS:
                raise BadRequest(f"{shortened(str(file.place))} has more than {MOST_ROWS} rows: put larger datasets on the machine itself")
            with place.open("xb") as out:
                out.write(data)
        try:
            formats.recognise(folder)
        except LimnError:
            raise BadRequest(
                "no pairs are found in what was uploaded: put pictures into images/, conditions of the same names into a folder called by "
                "their kind, as in canny/, captions beside the pictures as .txt"
            ) from None

    def _read(self) -> Iterator[tuple[_File, bytes]]:
        if not self.files[0].member:
            yield from ((file, file.source.read_bytes()) for file in self.files)
            return
        try:
            with zipfile.ZipFile(self.files[0].source) as archive:
                for file in self.files:
                    with archive.open(file.member) as member:
                        data = member.read(file.size + 1)
                    if len(data) != file.size:
                        raise BadRequest(f"{shortened(file.member)} is not of the size that the ZIP says: pack it again")
                    yield file, data
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError) as error:
            raise BadRequest(f"the ZIP is damaged ({' '.join(str(error).split())[:120]}): pack it again") from None


def _of_zip(path: Path) -> _Found:
    """What a ZIP holds, judged by its directory; a folder around everything is left away."""
    if path.read_bytes().count(_ENTRY) > 2 * MOST_FILES:  # before a directory of half a million entries is made into objects
        raise BadRequest(f"the ZIP holds more than {MOST_FILES} files, which is the limit: put larger datasets on the machine itself")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError) as error:
        raise BadRequest(f"the ZIP cannot be read ({' '.join(str(error).split())[:120]}): pack it again") from None
    for entry in entries:
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise BadRequest(f"{shortened(entry.filename)} is a link: pack the file itself")
        if entry.flag_bits & _SECRET:
            raise BadRequest(f"{shortened(entry.filename)} is encrypted: pack it without a password")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise BadRequest(f"{shortened(entry.filename)} is packed by an uncommon method: pack it as plain ZIP")
    named = [(_place(entry.filename), entry) for entry in entries]
    taken = [(place, entry) for place, entry in named if _is_taken(place)]
    around = {place.parts[0] for place, _ in taken if len(place.parts) > 1}
    if len(around) == 1 and around != {IMAGES} and all(len(place.parts) > 1 for place, _ in taken):
        taken = [(PurePosixPath(*place.parts[1:]), entry) for place, entry in taken]
    return _bounded([_File(place, entry.file_size, path, entry.filename) for place, entry in taken], len(named) - len(taken))


def _loose(paths: Sequence[Path]) -> _Found:
    """Loose files; without rows that name them, pictures are sorted by their names: `0.png` is a picture, `0.canny.png` its condition."""
    named = [(_place(path.name), path) for path in paths]
    rows = any(place.name in ROWS for place, _ in named)
    files = [
        _File(place if rows or place.suffix.lower() not in PICTURES | {".txt"} else _sorted(place), path.stat().st_size, path)
        for place, path in named
        if _is_taken(place)
    ]
    return _bounded(files, len(named) - len(files))


def _sorted(place: PurePosixPath) -> PurePosixPath:
    named = _CONDITION.match(place.stem) if place.suffix.lower() in PICTURES else None
    return PurePosixPath(named[2], named[1] + place.suffix) if named else PurePosixPath(IMAGES, place.name)


def _place(name: str) -> PurePosixPath:
    """A name from outside as a place inside. Raises BadRequest where it leads out, or is none."""
    place = PurePosixPath(name.replace("\\", "/"))
    if place.is_absolute() or ".." in place.parts or not place.parts or _FORBIDDEN.search(name):
        raise BadRequest(f"the name {shortened(name)} leads out of the dataset, or is none: pack its folder with plain names")
    if len(name) > MOST_CHARACTERS or len(place.parts) > MOST_FOLDERS:
        raise BadRequest(f"the name {shortened(name)} is over {MOST_CHARACTERS} characters or {MOST_FOLDERS} folders: give shorter names")
    return place


def _is_taken(place: PurePosixPath) -> bool:
    return place.suffix.lower() in TAKEN and not any(part.startswith((".", "__MACOSX")) for part in place.parts)


def _bounded(files: list[_File], left_out: int) -> _Found:
    """Raises BadRequest for too many files, too large ones, or two of one name."""
    if not files:
        raise BadRequest(
            f"nothing of a dataset is among these files: pictures, .txt, .jsonl or .json, loose or in a ZIP of {_mib(MAX_BYTES)}"
        )
    if len(files) > MOST_FILES:
        raise BadRequest(f"{len(files)} files, over the limit of {MOST_FILES}: put larger datasets on the machine itself")
    if large := [file for file in files if file.size > MAX_BYTES]:
        raise BadRequest(
            f"{shortened(str(large[0].place))} has {_mib(large[0].size)}, over the limit of {_mib(MAX_BYTES)}: make it smaller"
        )
    if (total := sum(file.size for file in files)) > MOST_BYTES:
        raise BadRequest(
            f"the dataset has {_mib(total)} unpacked, over the limit of {_mib(MOST_BYTES)}: put larger ones on the machine itself"
        )
    seen: set[str] = set()
    for file in files:
        name = str(file.place).lower()  # some file systems hold them for one
        if name in seen:
            raise BadRequest(f"two files are called {shortened(str(file.place))}: give each a name of its own")
        seen.add(name)
    if wrong := [name for name in seen if any(str(parent) in seen for parent in PurePosixPath(name).parents)]:
        raise BadRequest(f"{shortened(wrong[0])} lies in a folder that is a file as well: pack it again")
    return _Found(files, left_out)


def _room(home: Path, more: int) -> None:
    """Raises BadRequest where all uploaded datasets together would be too large."""
    there = sum(path.stat().st_size for path in home.rglob("*") if path.is_file()) if home.is_dir() else 0
    if there + more > MOST_BYTES_OF_ALL:
        raise BadRequest(
            f"uploaded datasets hold {_mib(there)} of {_mib(MOST_BYTES_OF_ALL)} already: remove some from {home.name!r} on the machine"
        )


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"
