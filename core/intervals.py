"""Intervals around measured means, from the measurements alone."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

DRAWS = 1000


def bootstrap(groups: Sequence[Sequence[float]], statistic: Callable[[NDArray[np.float64]], float] = np.mean) -> tuple[float, float]:
    """A 95% interval of a statistic of pooled values, with whole groups (scenes) drawn again 1000 times, always the same ones.

    Source: Efron, "Bootstrap methods: another look at the jackknife", Annals of Statistics 1979 (percentile interval over clusters).
    """
    rng = np.random.default_rng(0)
    arrays = [np.asarray(group, np.float64) for group in groups if len(group)]
    draws = rng.integers(len(arrays), size=(DRAWS, len(arrays)))
    values = [statistic(np.concatenate([arrays[index] for index in draw])) for draw in draws]
    return float(np.percentile(values, 2.5)), float(np.percentile(values, 97.5))
