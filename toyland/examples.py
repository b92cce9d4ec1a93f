"""Draws the pictures that the demo, the README and the documentation use: `python -m toyland.examples`."""

from pathlib import Path

import numpy as np

from core.files import publish
from core.images import encode_png
from core.skeleton import draw_pose
from toyland.render import depth_map, render
from toyland.scene import sample

ROOT = Path(__file__).resolve().parent.parent
RUNNER, KICKER, CHEERER, SHAPES = 10083, 10064, 10092, 10007  # seeds of test scenes, none among the evaluated
SHEET = ((10011, 10005, 10017, 10002, 10083), (10092, 10030, 10099, 10007, 10064))


def main(root: Path = ROOT) -> None:
    """Writes `examples/`, a picture with a figure and one without, two finished maps; and a sheet of scenes for the documentation."""
    runner, kicker, cheerer, shapes = (render(sample(seed, "test")) for seed in (RUNNER, KICKER, CHEERER, SHAPES))
    pictures = {
        "runner.png": runner.picture_HWC,
        "shapes.png": shapes.picture_HWC,
        "depth.png": depth_map(kicker.depth_HW)[0],
        "pose.png": draw_pose(cheerer.joints_18x2[None].astype(np.float64), 128, 128),
    }
    for name, image_HWC in pictures.items():
        publish(root / "examples" / name, encode_png(image_HWC))
    sheet = np.concatenate([np.concatenate([render(sample(seed, "test"), 192).picture_HWC for seed in row], axis=1) for row in SHEET])
    publish(root / "docs" / "images" / "toyland.png", encode_png(sheet))


if __name__ == "__main__":
    main()
