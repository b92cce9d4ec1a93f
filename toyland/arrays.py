"""A built dataset as memory-mapped arrays, because decoding every PNG again in every epoch would cost more than training on it."""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from core.files import publish_folder
from toyland.dataset import read_rows

COLUMNS = {"images": "file_name", "masks": "mask", "canny": "canny", "depth": "depth", "pose": "pose"}


def packed(folder: Path, name: str) -> NDArray[np.uint8]:
    """The pictures of one kind, (N, H, W, 3) uint8 RGB or (N, H, W) for masks, mapped from `<folder>/arrays-<name>/`.

    name: "images", "masks", "canny", "depth" or "pose".
    """
    path = folder / f"arrays-{name}" / "data.npy"
    if not path.exists():
        rows = read_rows(folder)
        grey = name == "masks"
        first = _read(folder / rows[0][COLUMNS[name]], grey)

        def write(target: Path) -> None:
            array = np.lib.format.open_memmap(target / "data.npy", mode="w+", dtype=np.uint8, shape=(len(rows), *first.shape))
            for index, item in enumerate(rows):
                array[index] = _read(folder / item[COLUMNS[name]], grey)
            array.flush()

        publish_folder(path.parent, write)
    mapped: NDArray[np.uint8] = np.load(path, mmap_mode="r")
    return mapped


def _read(path: Path, grey: bool) -> NDArray[np.uint8]:
    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE if grey else cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise FileNotFoundError(f"{path}: missing or damaged; delete the dataset folder and build it again")
    return np.asarray(image, np.uint8)
