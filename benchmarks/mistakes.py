"""How often the checks on control files err: false alarms and detections over toyland's pictures and their maps.

    python benchmarks/mistakes.py [--count 200] [--size 128] [--quality 90] [--json FILE]

Every scene gives its picture and a finished map of every kind that has a check: extracted where no network is needed, exact for depth,
pose, normals and classes. A false alarm is a warning about a picture that is to be extracted from, or about a finished map that is said to
be one. A detection is a warning about the mistake that was made. Maps go through PNG and through JPEG. Empty maps (nothing there to draw)
are counted apart: the warning about them is right.
"""

import argparse
import io
import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import PIL.Image

sys.path[0] = str(Path(__file__).resolve().parents[1])  # not this folder, where a module is called as our package is

import controls
from controls.normal import Params as NormalParams
from controls.normal import normals
from controls.palettes import ADE20K
from controls.prepare import mistakes
from core.control import Control, Image
from core.request import ControlUnit
from core.skeleton import draw_pose
from toyland.render import Rendered, depth_map, render
from toyland.scene import sample

LINES = ("canny", "lines", "scribble", "softedge", "lineart")
CLASSES = (2, 9, 12, 13, 46, 4)  # ADE20K's sky, grass, person, earth, sand, tree: sky first, then ground, then things


@dataclass
class Rates:
    """Warnings given, over cases where none (false alarms) or one (detections) is right, by what was tried."""

    alarms: dict[str, list[bool]] = field(default_factory=lambda: defaultdict(list))
    detections: dict[str, list[bool]] = field(default_factory=lambda: defaultdict(list))
    empty: int = 0

    def share(self, tried: dict[str, list[bool]]) -> tuple[int, int]:
        """Warnings, and cases."""
        return sum(map(sum, tried.values())), sum(map(len, tried.values()))

    def table(self) -> str:
        """Every row with its warnings and cases, the totals last."""
        lines = []
        for title, tried in (("false alarms", self.alarms), ("detections", self.detections)):
            lines += [f"{name:44}{sum(found):6d} of {len(found):6d}  {np.mean(found):7.2%}" for name, found in sorted(tried.items())]
            warned, cases = self.share(tried)
            lines += [f"{title + ', all':44}{warned:6d} of {cases:6d}  {warned / cases:7.2%}", ""]
        return "\n".join([*lines, f"{self.empty} maps were empty and are not counted"])


def measure(count: int, size_px: int, quality: int | None = None) -> Rates:
    """The rates over the first `count` held-out scenes; with `quality`, every file goes through JPEG."""
    rates = Rates()
    for seed in range(count):
        rendered = render(sample(seed, "test"), size_px)
        _judge(rates, stored(rendered.picture_HWC, quality), {kind: stored(map_, quality) for kind, map_ in maps(rendered)})
    return rates


def maps(rendered: Rendered) -> Iterator[tuple[str, Image]]:
    """A finished map of every kind that can be checked."""
    picture_HWC = rendered.picture_HWC
    for kind in (*LINES, "threshold", "mask"):
        control = controls.get(kind)
        yield kind, control.extract(picture_HWC, control.parse_params({}))
    depth_HWC = depth_map(rendered.depth_HW)[0]
    yield "depth", depth_HWC
    yield "normal", normals(depth_HWC[..., 0], NormalParams.model_validate({}))
    if np.isfinite(rendered.joints_18x2).any():
        yield "pose", draw_pose(rendered.joints_18x2[None].astype(np.float64), *picture_HWC.shape[1::-1])
    instance_HW = rendered.instance_HW.astype(int)
    order_HW = np.where(instance_HW == 255, 1, np.where(instance_HW == 0, 0, instance_HW + 1))
    yield "segmentation", ADE20K[np.array(CLASSES)[order_HW.clip(0, len(CLASSES) - 1)]]


def stored(image_HWC: Image, quality: int | None) -> Image:
    """The picture as it comes back from a file."""
    if quality is None:
        return image_HWC
    file = io.BytesIO()
    PIL.Image.fromarray(image_HWC).save(file, "JPEG", quality=quality)
    return np.asarray(PIL.Image.open(file))


def _judge(rates: Rates, picture_HWC: Image, maps_by_kind: dict[str, Image]) -> None:
    for kind in controls.names():
        rates.alarms[f"picture to extract {kind} from"].append(warned(controls.get(kind), picture_HWC, ready=False))
    for kind, map_HWC in maps_by_kind.items():
        control = controls.get(kind)
        if map_HWC.max() < 32:
            rates.empty += 1
            continue
        rates.alarms[f"{kind} map, ready"].append(warned(control, map_HWC, ready=True))
        if control.looks_finished is not None and kind != "threshold":
            rates.detections[f"{kind} map extracted again"].append(warned(control, map_HWC, ready=False))
        if control.mistake is not None:
            rates.detections[f"picture as ready {kind}"].append(warned(control, picture_HWC, ready=True))
        if kind in (*LINES, "depth", "pose"):
            rates.detections[f"{kind} map inverted"].append(warned(control, 255 - map_HWC, ready=True))
        narrow = map_HWC[:, : int(map_HWC.shape[1] * 0.97)]
        rates.detections["map of another aspect"].append(warned(control, narrow, ready=True))


def warned(control: Control, image_HWC: Image, *, ready: bool) -> bool:
    """Whether the file is warned about, at a square size."""
    unit = ControlUnit(kind=control.name, image=Path("file.png"), ready=ready)
    return bool(mistakes(control, image_HWC, unit, (512, 512)))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--quality", type=int, help="JPEG quality; by default files are lossless")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rates = measure(args.count, args.size, args.quality)
    print(rates.table())
    if args.json:
        found = {name: rates.share(tried) for name, tried in (("false alarms", rates.alarms), ("detections", rates.detections))}
        args.json.write_text(json.dumps({"count": args.count, "size_px": args.size, "quality": args.quality, **found}))


if __name__ == "__main__":
    main()
