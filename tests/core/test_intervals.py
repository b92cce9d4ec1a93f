"""Intervals by resampling, against the normal distribution."""

import numpy as np
import pytest

from core.intervals import bootstrap


def test_the_interval_holds_the_mean_and_narrows() -> None:
    rng = np.random.default_rng(0)
    few, many = ([list(rng.normal(5, 1, 2)) for _ in range(count)] for count in (20, 500))
    low, high = bootstrap(many)
    assert low < np.mean(many) < high
    # 1000 numbers of deviation 1: 4 deviations of the mean wide
    assert high - low == pytest.approx(4 / np.sqrt(1000), rel=0.15)
    assert bootstrap(few)[1] - bootstrap(few)[0] > 3 * (high - low)
    assert bootstrap(many) == (low, high)
