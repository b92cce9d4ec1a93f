"""What comes out of a render: finished pictures, and the steps on the way to them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image

from core.control import Image, Score
from core.provenance import Record, write_picture


@dataclass(frozen=True, eq=False)
class Picture:
    """A finished picture.

    image: PIL, RGB. fidelity: a score for each of the request's controls, None where it cannot be measured. maps: the control maps as the
    networks saw them last, at the picture's size. record: all that is needed to make it again.
    """

    image: PIL.Image.Image
    fidelity: tuple[Score | None, ...]
    maps: tuple[Image, ...]
    record: Record

    def save(self, folder: Path | str) -> Path:
        """Publish the picture as PNG, its record inside, under the name its record gives; equal pictures have equal names."""
        path = Path(folder) / self.record.file_name()
        write_picture(path, np.asarray(self.image), self.record)
        return path


@dataclass(frozen=True, eq=False)
class Step:
    """A moment of a render: step `index` of `steps` of the `pictures` (numbers in the request) that are drawn together."""

    index: int
    steps: int
    pictures: range
    _preview: Callable[[], list[Image]]
    _decode: Callable[[], list[Image]]

    def preview(self) -> list[Image]:
        """What the pictures look like now (RGB uint8 HWC), fast and coarse: x̂_0 without the autoencoder."""
        return self._preview()

    def decode(self) -> list[Image]:
        """The same through the autoencoder: exact, and as slow as the end of a render."""
        return self._decode()


OnStep = Callable[[Step], None]
