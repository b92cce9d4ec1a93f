"""A manifest and its pictures as they were dropped on the page: kept together in a folder of their own, every row checked."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path, PurePath

from batch.manifest import SUFFIXES, Manifest, Problem, read_manifest
from core.errors import BadRequest
from core.files import publish
from core.request import RenderRequest

MOST_FILES = 2000
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".json")


def collect(paths: Sequence[Path], out: Path, kind: str) -> tuple[Path, Manifest]:
    """The rows of the manifest among some uploaded files, or a row for each control picture where there is none, and where they lie.

    Files are copied into a folder of `out` under their own names, where the manifest finds them; a row that names a file elsewhere is a
    problem. kind: of control, for pictures without a manifest; a text file of a picture's name is its prompt.

    Raises:
        BadRequest: nothing can be read, two files have one name, or there are too many.
    """
    names = [PurePath(path.name).name for path in paths]
    if not paths or len(paths) > MOST_FILES:
        raise BadRequest(f"{len(paths)} files: give a manifest ({', '.join(SUFFIXES)}) with its pictures, {MOST_FILES} files at most")
    if len(set(names)) < len(names):
        raise BadRequest(f"two files are called {next(name for name in names if names.count(name) > 1)!r}: give each a name of its own")
    manifests = [name for name in names if PurePath(name).suffix.lower() in SUFFIXES]
    if len(manifests) > 1:
        raise BadRequest(f"{len(manifests)} manifests at once: give one, with its pictures")
    digest = hashlib.sha256(kind.encode() if not manifests else b"")
    for name, path in sorted(zip(names, paths, strict=True)):
        digest.update(name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    folder = (out / "batches" / digest.hexdigest()[:24]).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for name, path in zip(names, paths, strict=True):
        if not (folder / name).is_file():  # its content is that of the folder's name
            publish(folder / name, path.read_bytes())
    manifest = folder / manifests[0] if manifests else _of_pictures(folder, names, kind)
    found = read_manifest(manifest)
    kept = Manifest(problems=list(found.problems))
    for row in found.rows:
        strange = [path for path in _files(row.request) if not path.resolve().is_relative_to(folder)]
        if strange:
            kept.problems.append(Problem(row.line, None, f"{strange[0].name!r} does not lie beside the manifest: drop it here as well"))
        else:
            kept.rows.append(row)
    return folder, kept


def _of_pictures(folder: Path, names: Sequence[str], kind: str) -> Path:
    """A manifest of our own: a row for each picture."""
    rows = []
    for name in sorted(names):
        if PurePath(name).suffix.lower() not in PICTURES:
            continue
        caption = (folder / name).with_suffix(".txt")
        prompt = caption.read_text(encoding="utf-8", errors="replace").strip() if caption.is_file() else ""
        rows.append(json.dumps({"prompt": prompt, kind: name}))
    if not rows:
        raise BadRequest(f"no manifest ({', '.join(SUFFIXES)}) and no picture among these files: give one or the other")
    path = folder / "of-pictures.jsonl"
    publish(path, ("\n".join(rows) + "\n").encode())
    return path


def _files(request: RenderRequest) -> list[Path]:
    """Every file that a request reads."""
    own = [request.init_image, request.mask, *(path for unit in request.controls for path in (unit.image, unit.mask))]
    return [path for path in own if path is not None]
