"""Sizes of one area, and batches of one size whatever they are split over."""

import numpy as np
import pytest

from training.buckets import BucketOrder, bucket_levels, bucket_sizes, nearest


@pytest.mark.parametrize(("side", "step"), [(128, 8), (512, 64), (1024, 64)])
def test_sizes_have_one_area_and_rising_proportions(side: int, step: int) -> None:
    sizes = bucket_sizes(side, side, 7)
    assert (side, side) in sizes
    aspects = [width / height for width, height in sizes]
    assert aspects == sorted(aspects)
    assert len(set(sizes)) == len(sizes) == 7
    for width, height in sizes:
        assert width % step == height % step == 0
        assert width * height / side**2 == pytest.approx(1, abs=0.2)  # a side of 512 in steps of 64 is a coarse one
    assert {(h, w) for w, h in sizes} == set(sizes)


def test_sides_are_multiples_of_what_the_model_draws_in() -> None:
    for sizes in bucket_levels((96, 96), 7, (0.75, 1.0), 16):
        assert all(width % 16 == height % 16 == 0 for width, height in sizes)
        assert len(sizes) > 4
    assert any(width % 16 for sizes in bucket_levels((96, 96), 7, (0.75, 1.0)) for width, _ in sizes)


def test_a_picture_goes_where_it_loses_least() -> None:
    sizes = bucket_sizes(512, 512, 5)
    assert nearest(sizes, 1000, 1000) == (512, 512)
    assert nearest(sizes, 4000, 1000) == sizes[-1]
    assert nearest(sizes, 10, 30) == sizes[0]
    assert bucket_sizes(128, 64, 1) == [(128, 64)]


def test_a_batch_is_of_one_bucket_and_an_epoch_holds_everything() -> None:
    buckets = [0] * 10 + [1] * 3 + [2] * 8
    order = BucketOrder(buckets, 4, seed=1)
    assert order.length == (3 + 1 + 2) * 4
    for epoch in range(3):
        counters = range(epoch * order.length, (epoch + 1) * order.length)
        indices = order.indices(counters)
        assert set(indices) == set(range(21))
        for start in range(0, order.length, 4):
            assert len({buckets[index] for index in indices[start : start + 4]}) == 1
        assert sorted(np.bincount(indices)) == [1] * 18 + [2] * 3  # 3 fill up: 2 of bucket 0's 10, 1 of bucket 1's 3
    assert order.indices(range(24)) != order.indices(range(24, 48))
    assert order.indices([30, 2, 17]) == [order.indices(range(48))[i] for i in (30, 2, 17)]
