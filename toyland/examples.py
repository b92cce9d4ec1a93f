"""Draws the control pictures under `examples/` that the demo and the README use: `python -m toyland.examples`."""

from pathlib import Path

import numpy as np

from core.files import publish
from core.images import encode_png
from core.skeleton import draw_pose
from toyland.render import depth_map, render
from toyland.scene import sample

FOLDER = Path(__file__).resolve().parent.parent / "examples"
RUNNER, KICKER, CHEERER, SHAPES = 10083, 10064, 10092, 10005  # seeds of test scenes, none among the evaluated


def main(folder: Path = FOLDER) -> None:
    """Writes a picture to take edges from, two finished maps, and a picture without a figure."""
    runner, kicker, cheerer, shapes = (render(sample(seed, "test")) for seed in (RUNNER, KICKER, CHEERER, SHAPES))
    pictures = {
        "runner.png": runner.picture_HWC,
        "shapes.png": shapes.picture_HWC,
        "depth.png": depth_map(kicker.depth_HW)[0],
        "pose.png": draw_pose(cheerer.joints_18x2[None].astype(np.float64), 128, 128),
    }
    for name, image_HWC in pictures.items():
        publish(folder / name, encode_png(image_HWC, {}))


if __name__ == "__main__":
    main()
