"""Pictures that are not square: sizes of about the same area, each picture at the one of its proportions, each batch of one size.

Source: NovelAI, Improvements on Stable Diffusion (aspect ratio bucketing), 2022.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from training.randomness import key

WIDEST = 2.0  # the outermost sizes are so many times as wide as high, or as high as wide
LARGE_PX = 512  # from here on sides are multiples of 64, as published models' are; below, of what the model draws in
CELL_PX = 8

Size = tuple[int, int]  # width, height


def bucket_sizes(width: int, height: int, count: int, cell_px: int = CELL_PX) -> list[Size]:
    """At most `count` sizes with about the area of width × height, from the tallest to the widest; proportions rise evenly.

    cell_px: what sides are multiples of, where they need not be of 64.
    """
    step = 64 if min(width, height) >= LARGE_PX else cell_px
    if count <= 1:
        return [(width, height)]
    spread = np.linspace(-math.log(WIDEST), math.log(WIDEST), count)
    found: dict[Size, None] = {}
    for aspect in np.exp(spread):
        side = math.sqrt(width * height * aspect)
        size = max(1, round(side / step)) * step, max(1, round(side / aspect / step)) * step
        found[size] = None
    return list(found)


def nearest(sizes: Sequence[Size], width: int, height: int) -> Size:
    """The size that a picture loses least in when it is scaled to cover and cropped."""
    return min(sizes, key=lambda size: abs(math.log(size[0] / size[1] / (width / height))))


def bucket_levels(size: Size, count: int, scales: Sequence[float], cell_px: int = CELL_PX) -> list[list[Size]]:
    """Buckets of `count` proportions at each of several resolutions, the smallest first; scales: factors on width and height."""
    levels = []
    for scale in sorted(set(scales)):
        step = 64 if min(size) * scale >= LARGE_PX else cell_px
        width, height = (max(1, round(side * scale / step)) * step if scale != 1.0 else side for side in size)
        levels.append(bucket_sizes(width, height, count, cell_px))
    return levels


def fitting(levels: Sequence[Sequence[Size]], width: int, height: int) -> Size:
    """Where a picture belongs: at the largest resolution that it need not be enlarged for, else at the smallest; there as `nearest`."""
    chosen = [nearest(sizes, width, height) for sizes in levels]
    covered = [size for size in chosen if size[0] <= width and size[1] <= height]
    return (covered or chosen[:1])[-1]


class BucketOrder:
    """Which sample comes at which counter, where the samples of a batch must be of one bucket; see `randomness.Order`.

    Every epoch shuffles each bucket and cuts it into whole batches, the last filled up with samples from the bucket's beginning, and
    shuffles the batches. A batch is `batch_size` counters from a multiple of it on, whatever processes and micro-batches it is split over.
    """

    def __init__(self, buckets: Sequence[int], batch_size: int, seed: int) -> None:
        places: NDArray[np.int64] = np.asarray(buckets, np.int64)
        self.members = [np.flatnonzero(places == bucket) for bucket in np.unique(places)]
        self.batch_size, self.seed = batch_size, seed
        self.length = sum(-(-len(members) // batch_size) for members in self.members) * batch_size
        self._epoch = -1
        self._plan: NDArray[np.int64] = np.empty(0, np.int64)

    def begin(self, consumed: int) -> int:
        """The counter that a run goes on from after so many samples: a batch's first, also where the batch had another size before."""
        return -(-consumed // self.batch_size) * self.batch_size

    def indices(self, counters: Sequence[int]) -> list[int]:
        """The sample index for each counter."""
        return [int(self._of(counter // self.length)[counter % self.length]) for counter in counters]

    def _of(self, epoch: int) -> NDArray[np.int64]:
        if epoch != self._epoch:
            random = np.random.Generator(np.random.Philox(key=[key(self.seed, "order"), epoch]))
            batches = []
            for members in self.members:
                shuffled = random.permutation(members)
                whole = -(-len(members) // self.batch_size) * self.batch_size
                batches.append(np.resize(shuffled, whole).reshape(-1, self.batch_size))
            stacked = np.concatenate(batches)
            self._plan, self._epoch = stacked[random.permutation(len(stacked))].reshape(-1), epoch
        return self._plan
