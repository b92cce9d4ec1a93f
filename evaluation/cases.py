"""What a bench draws: prompts with a true picture and its control maps, from toyland's held-out scenes or a folder of pictures.

Axes: pictures and maps are RGB uint8 HWC, all of one size.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

import controls
from controls.geometry import place
from controls.prepare import load_map, settled
from core.control import Image
from core.errors import BadRequest
from core.files import sha256_file
from core.images import decode
from core.request import ControlUnit
from core.skeleton import draw_pose
from toyland.captions import caption
from toyland.render import depth_map, render
from toyland.scene import sample

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True, eq=False)
class Case:
    """One prompt, the picture it belongs to, and a map of every kind that the picture has something for."""

    name: str
    prompt: str
    picture_HWC: Image
    maps: Mapping[str, Image]


class Cases(Protocol):
    """Where cases come from."""

    def __len__(self) -> int: ...

    def case(self, index: int, kinds: Sequence[str], size: tuple[int, int], model: str) -> Case:
        """One case at a `size` (width, height). model: whose estimators extract."""
        ...

    def described(self) -> dict[str, object]:
        """What another person needs to have the same cases."""
        ...


@dataclass(frozen=True)
class Scenes:
    """The first `count` held-out toyland scenes: depth and pose are exact, a scene without a person has no pose."""

    count: int

    def __len__(self) -> int:
        return max(0, self.count)

    def described(self) -> dict[str, object]:
        return {"pictures": "toyland's held-out scenes", "count": self.count}

    def case(self, index: int, kinds: Sequence[str], size: tuple[int, int], model: str) -> Case:
        width, height = size
        if width != height:
            raise BadRequest(f"size {width}x{height}: toyland's scenes are square; give a square --size, or --pictures FOLDER")
        scene = sample(index, "test")
        drawn = render(scene, width)
        exact = {"depth": depth_map(drawn.depth_HW)[0]}
        if scene.figure is not None:
            exact["pose"] = draw_pose(drawn.joints_18x2[None].astype(np.float64), width, height)
        others = [kind for kind in kinds if kind not in ("depth", "pose")]
        maps = {kind: exact[kind] for kind in kinds if kind in exact} | {
            kind: _extracted(kind, drawn.picture_HWC, model) for kind in others
        }
        return Case(f"scene {index}", caption(scene), drawn.picture_HWC, _steering(maps))


@dataclass(frozen=True)
class Pictures:
    """Pictures of a user's with their captions; what can be extracted from them is the truth."""

    paths: tuple[Path, ...]
    prompts: tuple[str, ...]

    @classmethod
    def read(cls, folder: Path, count: int, prompt: str | None = None) -> "Pictures":
        """The first `count` pictures of a folder, each with the text file beside it (`fox.jpg`, `fox.txt`), or all with one prompt.

        Raises:
            BadRequest: no folder, no pictures, or one without a caption.
        """
        if count < 1:
            raise BadRequest(f"count = {count}: give 1 at least")
        if not folder.is_dir():
            raise BadRequest(f"{str(folder)!r} is no folder: give one with pictures and, beside each, its caption as .txt")
        paths = tuple(path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES)[:count]
        if not paths:
            raise BadRequest(f"folder {str(folder)!r} has no pictures: it wants files that end in {', '.join(SUFFIXES)}")
        return cls(paths, tuple(_caption(path) if prompt is None else prompt for path in paths))

    def __len__(self) -> int:
        return len(self.paths)

    def described(self) -> dict[str, object]:
        digest = hashlib.sha256("".join(map(sha256_file, self.paths)).encode())
        for prompt in self.prompts:
            digest.update(prompt.encode() + b"\0")
        return {"pictures": "a folder of pictures", "count": len(self.paths), "files_sha256": digest.hexdigest()}

    def case(self, index: int, kinds: Sequence[str], size: tuple[int, int], model: str) -> Case:
        path = self.paths[index]
        source_HWC = decode(path)
        placement = place(source_HWC.shape[1], source_HWC.shape[0], *size, "crop")
        units = [ControlUnit(kind=kind, image=path) for kind in kinds]
        maps = {unit.kind: load_map(unit, *size, model=model).map_HWC for unit in units}
        return Case(path.name, self.prompts[index], placement.pad(placement.resize(source_HWC, "area")), _steering(maps))


def _caption(path: Path) -> str:
    beside = path.with_suffix(".txt")
    try:
        return beside.read_text("utf-8-sig").strip()
    except (OSError, UnicodeDecodeError):
        raise BadRequest(f"picture {path.name!r} has no caption: write it as UTF-8 in {beside.name!r}, or give --prompt for all") from None


def _extracted(kind: str, picture_HWC: Image, model: str) -> Image:
    control = controls.get(kind)
    return control.extract(picture_HWC, settled(control, control.parse_params({}), model))


def _steering(maps: Mapping[str, Image]) -> dict[str, Image]:
    """Without maps that are all black: nobody there, no edge."""
    return {kind: map_HWC for kind, map_HWC in maps.items() if map_HWC.any()}
