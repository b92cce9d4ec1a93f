"""Builds a toyland dataset: an imagefolder with pictures, control maps, masks and `metadata.jsonl`.

    DIR/images/00000000.png  canny/…  depth/…  pose/…  masks/…
    DIR/metadata.jsonl       one row a scene: file_name, text, canny, depth, pose, mask, joints, depth_range, …

The folder is built in parts. A part's rows are published after its pictures, so that a build that was killed goes on where it stopped, and
`metadata.jsonl` exists only when the dataset is whole.
"""

import json
import multiprocessing
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from core.errors import BadRequest
from core.files import output_folder, publish
from core.skeleton import draw_pose
from toyland.captions import caption
from toyland.render import depth_map, render
from toyland.scene import Scene, Split, sample

PART = 250
FOLDERS = ("images", "canny", "depth", "pose", "masks")
CANNY_LOW, CANNY_HIGH = 100, 200  # the extractor's defaults


def build(
    out: Path,
    count: int,
    *,
    seed: int = 0,
    split: Split = "train",
    size: int = 128,
    workers: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Writes `count` scenes, seeds `seed` … `seed + count - 1`, and returns the path of `metadata.jsonl`.

    workers: processes; default one per core. on_progress(done, count) is called as parts finish.

    Raises:
        BadRequest: the folder cannot be made, or holds a dataset built with other settings.
        DiskFull: no room is left; what was built stays and the next call goes on from it.
    """
    if count < 1:
        raise BadRequest(f"count = {count}: a dataset has at least 1 scene")
    settings = {"count": count, "seed": seed, "split": split, "size": size, "version": 2}
    metadata = out / "metadata.jsonl"
    _claim(out, settings)
    if metadata.exists():
        return metadata
    for folder in (*FOLDERS, "parts"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    starts = range(0, count, PART)
    waiting = [start for start in starts if not _part(out, start).exists()]
    done = count - sum(min(PART, count - start) for start in waiting)
    work = partial(_build_part, out, count=count, seed=seed, split=split, size=size)
    for start in _map(work, waiting, workers or os.cpu_count() or 1):
        done += min(PART, count - start)
        if on_progress:
            on_progress(done, count)
    publish(metadata, b"".join(_part(out, start).read_bytes() for start in starts))
    for start in starts:
        _part(out, start).unlink()
    (out / "parts").rmdir()
    return metadata


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of a built dataset."""
    with (folder / "metadata.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def row(scene: Scene, name: str, depth_range: tuple[float, float], joints_18x2: np.ndarray) -> dict[str, Any]:
    """One line of `metadata.jsonl`. Paths are relative to the folder; missing joints are null."""
    joints = [None if np.isnan(x) else [round(float(x), 2), round(float(y), 2)] for x, y in joints_18x2]
    return {
        "file_name": f"images/{name}.png",
        "text": caption(scene),
        "canny": f"canny/{name}.png",
        "depth": f"depth/{name}.png",
        "pose": f"pose/{name}.png",
        "mask": f"masks/{name}.png",
        "joints": joints if scene.figure else None,
        "depth_range": [round(value, 4) for value in depth_range],
        "ground": scene.ground,
        "time": scene.time,
        "things": [[thing.colour, thing.shape] for thing in scene.things],
        "figure": [scene.figure.shirt, scene.figure.pants] if scene.figure else None,
        "seed": scene.seed,
    }


def _claim(out: Path, settings: dict[str, Any]) -> None:
    note = output_folder(out) / "dataset.json"
    if note.exists():
        found = json.loads(note.read_text())
        if found != settings:
            raise BadRequest(f"{out} holds a dataset built with {found}, not {settings}: choose another --out")
    else:
        publish(note, json.dumps(settings).encode())


def _part(out: Path, start: int) -> Path:
    return out / "parts" / f"{start:08d}.jsonl"


def _map(work: Callable[[int], int], starts: list[int], workers: int) -> Iterator[int]:
    if workers == 1 or len(starts) < 2:
        yield from map(work, starts)
        return
    with multiprocessing.get_context("spawn").Pool(min(workers, len(starts))) as pool:
        yield from pool.imap_unordered(work, starts)


def _build_part(out: Path, start: int, *, count: int, seed: int, split: Split, size: int) -> int:
    cv2.setNumThreads(1)
    rows = []
    for index in range(start, min(start + PART, count)):
        scene = sample(seed + index, split)
        drawn = render(scene, size)
        depth_HWC, depth_range = depth_map(drawn.depth_HW)
        name = f"{index:08d}"
        # the mask's values are instance numbers; 255 marks the ground
        mask_HW = np.where(drawn.ground_HW, np.uint8(255), drawn.instance_HW)
        maps = {
            "images": drawn.picture_HWC,
            "canny": cv2.Canny(drawn.picture_HWC, CANNY_LOW, CANNY_HIGH),
            "depth": depth_HWC[..., 0],
            "pose": draw_pose(drawn.joints_18x2[None], size, size),
            "masks": mask_HW,
        }
        for folder, image in maps.items():
            _write_png(out / folder / f"{name}.png", image)
        rows.append(row(scene, name, depth_range, drawn.joints_18x2))
    publish(_part(out, start), "".join(json.dumps(item) + "\n" for item in rows).encode())
    return start


def _write_png(path: Path, image: np.ndarray) -> None:
    bgr = image[..., ::-1] if image.ndim == 3 else image
    ok, data = cv2.imencode(".png", np.ascontiguousarray(bgr), [cv2.IMWRITE_PNG_COMPRESSION, 3])
    if not ok:
        raise BadRequest(f"{path}: a picture of shape {image.shape} cannot be written as PNG")
    path.write_bytes(data.tobytes())
