"""The pictures of docs/rendering.md, drawn with the embedded model: samplers, weight and window, inversion, a region.

Run as `python -m toyland.sheets [FOLDER]`; `make docs` does.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from core.files import publish
from core.images import encode_png
from core.request import ControlUnit, Inversion, RenderRequest
from core.sheet import contact_sheet
from pipelines.engine import TOYLAND
from pipelines.images import tensor_to_pictures
from pipelines.samplers import SAMPLERS
from renderer import Picture, Renderer
from toyland.captions import caption
from toyland.measure import Image, psnr
from toyland.render import depth_map, render
from toyland.scene import Scene, sample

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
PROMPT = "a person in a red shirt and blue pants on sand by day"
WEIGHTS, ENDS = (0.0, 0.5, 1.0, 1.5), (0.25, 0.5, 0.75, 1.0)
INVERSION_STEPS = 50


class Sheets:
    """Draws with one renderer; `folder` takes the control images."""

    def __init__(self, folder: Path) -> None:
        self.renderer, self.folder = Renderer.open("toyland"), folder

    def samplers(self) -> Image:
        """Every sampler at 20 steps from the same noise, on the schedule each is mostly used with."""
        drawn = {name: self._draw(PROMPT, sampler=name, seed=3) for name in SAMPLERS}
        strips = [[_pixels(picture)] for picture in drawn.values()]
        return contact_sheet(strips, list(drawn), columns=6, cell_px=160, title=f"20 steps: {PROMPT}")

    def window(self) -> Image:
        """Canny's weight from row to row, the end of its window from column to column, with the F1 of the edges."""
        scene = _scene()
        image = self._file("scene", render(scene).picture_HWC)
        strips, captions = [], []
        for weight in WEIGHTS:
            for end in ENDS:
                unit = ControlUnit(kind="canny", image=image, weight=weight, end=end)
                picture = self._draw(caption(scene), controls=(unit,), seed=5)
                score = picture.fidelity[0]
                strips.append([_pixels(picture)])
                captions.append(f"weight {weight:g}, end {end:g}: " + (f"F1 {score.raw:.2f}" if score else "not measured"))
        return contact_sheet(strips, captions, columns=len(ENDS), cell_px=192, title=f"canny: {caption(scene)}")

    def inversion(self) -> Image:
        """A picture, what the autoencoder keeps of it, the same drawn again from its own noise, and that noise under other words."""
        scene = _scene()
        truth = render(scene)
        family = self.renderer.engine.base(TOYLAND / "base")
        kept = tensor_to_pictures(family.decode(family.encode_image(truth.picture_HWC)))[0]
        begin: dict[str, Any] = {
            "init_image": self._file("truth", truth.picture_HWC),
            "strength": 1.0,
            "steps": INVERSION_STEPS,
            "inversion": Inversion(prompt=caption(scene)),
        }
        again = _pixels(self._draw(caption(scene), guidance_scale=1.0, **begin))
        other = "a person in a white shirt and green pants on snow at night"
        depth = ControlUnit(kind="depth", image=self._file("depth", depth_map(truth.depth_HW)[0]), ready=True)
        changed = _pixels(self._draw(other, guidance_scale=3.0, controls=(depth,), **begin))
        captions = [
            f"a picture: {caption(scene)}",
            f"the autoencoder's round trip: {psnr(truth.picture_HWC, kept):.1f} dB",
            f"drawn again from its own noise, {INVERSION_STEPS} steps: {psnr(truth.picture_HWC, again):.1f} dB",
            f"the same noise with depth: {other}",
        ]
        return contact_sheet([[truth.picture_HWC], [kept], [again], [changed]], captions, columns=4, cell_px=256, title="Inversion")

    def region(self) -> Image:
        """One depth map for the whole picture, for its left half, for its right half, and none."""
        scene = _scene()
        map_HWC = depth_map(render(scene).depth_HW)[0]
        image, side = self._file("map", map_HWC), map_HWC.shape[1]
        halves: dict[str, Path | None] = {"everywhere": None}
        for name, columns in (("left half", slice(0, side // 2)), ("right half", slice(side // 2, side))):
            mask_HWC = np.zeros_like(map_HWC)
            mask_HWC[:, columns] = 255
            halves[name] = self._file(name.replace(" ", "-"), mask_HWC)
        strips, captions = [[map_HWC]], ["the depth map"]
        for name, mask in halves.items():
            unit = ControlUnit(kind="depth", image=image, ready=True, mask=mask)
            strips.append([_pixels(self._draw(caption(scene), controls=(unit,), seed=4))])
            captions.append(f"acts: {name}")
        strips.append([_pixels(self._draw(caption(scene), seed=4))])
        captions.append("without")
        return contact_sheet(strips, captions, columns=5, cell_px=192, title=f"A region: {caption(scene)}")

    def _draw(self, prompt: str, **values: Any) -> Picture:
        (picture,) = self.renderer.render(RenderRequest(prompt=prompt, **values))
        return picture

    def _file(self, name: str, image_HWC: Image) -> Path:
        path = self.folder / f"{name}.png"
        publish(path, encode_png(image_HWC))
        return path


def main(folder: Path = IMAGES) -> None:
    """Publishes all sheets."""
    with tempfile.TemporaryDirectory() as files:
        sheets = Sheets(Path(files))
        for name in ("samplers", "window", "inversion", "region"):
            publish(folder / f"{name}.png", encode_png(getattr(sheets, name)()))
            print(folder / f"{name}.png")


def _pixels(picture: Picture) -> Image:
    return np.asarray(picture.image)


def _scene() -> Scene:
    """The first held-out person by day."""
    return next(scene for scene in (sample(seed, "test") for seed in range(1000)) if scene.figure is not None and scene.time == "day")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
