"""Draws and order depend on (seed, sample counter, name) and on nothing else."""

import time

import pytest
import torch

from training.randomness import Draws, Order, key


def test_a_row_does_not_depend_on_its_batch() -> None:
    whole = Draws(5, range(100, 132))
    normal, uniform = whole.normal((3, 4)), whole.uniform((2,))
    for split in (1, 8, 16):
        parts = [Draws(5, range(first, first + split)) for first in range(100, 132, split)]
        assert torch.equal(torch.cat([part.normal((3, 4)) for part in parts]), normal)
        assert torch.equal(torch.cat([part.uniform((2,)) for part in parts]), uniform)


def test_seed_counter_and_name_all_matter() -> None:
    base = Draws(5, [7]).normal((4,))
    for other in (Draws(6, [7]).normal((4,)), Draws(5, [8]).normal((4,)), Draws(5, [7]).normal((4,), name="other")):
        assert not torch.equal(base, other)
    far = [Draws(5, [7 + 2**32]).normal((4,)), Draws(5 + 2**32, [7]).normal((4,))]  # torch's CPU generator would repeat itself here
    assert not any(torch.equal(base, other) for other in far)


def test_a_name_is_drawn_once() -> None:
    draws = Draws(0, [0])
    draws.normal()
    with pytest.raises(ValueError, match="'normal' was already drawn"):
        draws.normal()


def test_distributions() -> None:
    draws = Draws(1, range(20_000))
    normal, uniform = draws.normal((4,)), draws.uniform((4,))
    # 80,000 numbers: five deviations of mean and variance
    assert abs(float(normal.mean())) < 5 / 80_000**0.5
    assert abs(float(normal.var()) - 1) < 5 * (2 / 80_000) ** 0.5
    assert 0 <= float(uniform.min()) < 0.001
    assert 0.999 < float(uniform.max()) < 1
    assert abs(float(uniform.mean()) - 0.5) < 5 * (1 / 12 / 80_000) ** 0.5
    neighbours = float((normal[1:] * normal[:-1]).mean())
    assert abs(neighbours) < 5 / 80_000**0.5


def test_a_batch_of_noise_is_cheap() -> None:
    times = []
    for first in range(0, 640, 32):
        start = time.thread_time()
        Draws(0, range(first, first + 32)).normal((4, 16, 16))
        times.append(time.thread_time() - start)
    assert min(times) < 3e-3  # seconds of this thread: 0.4 ms on an idle core


def test_every_epoch_is_another_permutation() -> None:
    order = Order(10, seed=3)
    epochs = [order.indices(range(10 * epoch, 10 * epoch + 10)) for epoch in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert order.indices(range(5, 25)) == [*epochs[0][5:], *epochs[1], *epochs[2][:5]]
    assert Order(10, seed=3).indices([25]) == [epochs[2][5]]
    assert Order(10, seed=4).indices(range(10)) != epochs[0]


def test_numbers_are_the_same_on_every_machine() -> None:
    """Recorded once: a change here would change every run that is resumed or repeated."""
    assert key(1, "noise") == 18322485831345218777
    assert Draws(1, [2]).normal((3,), name="noise")[0].tolist() == pytest.approx([-0.2481, 0.6634, 0.3615], abs=1e-4)
