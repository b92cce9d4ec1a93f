"""Randomness as a pure function of (seed, sample counter, name): resume is exact, and no split into batches or processes changes it.

The sample counter counts the samples a run has consumed since its first step. It decides which sample comes next (`Order`) and what noise,
time and dropout that sample meets (`Draws`). No generator has a state that would have to be saved.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def key(*parts: object) -> int:
    """A 64-bit number from the parts' text; equal parts give equal numbers on every machine."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little")


class Draws:
    """The random numbers of the samples at `counters`; row i depends on (seed, counters[i], name) and on nothing else.

    Philox with a 128-bit key (64 bits of seed and name, 64 of counter): torch's CPU generator keeps 32 bits of its seed only, so that
    streams would begin to collide after some ten thousand samples.

    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011).
    """

    def __init__(self, seed: int, counters: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.seed = seed
        self.counters = tuple(counters)
        self.device = torch.device(device)
        self._used: set[str] = set()

    def __len__(self) -> int:
        return len(self.counters)

    def normal(self, shape: Sequence[int] = (), name: str = "normal") -> Tensor:
        """Standard normal numbers, (B, *shape) float32.

        Raises:
            ValueError: `name` was drawn before; a second draw would repeat the same numbers.
        """
        rows, generator, restart = self._rows(shape, name)
        for row, counter in zip(rows, self.counters, strict=True):
            restart(counter)
            generator.standard_normal(out=row, dtype=np.float32)
        return self._tensor(rows, shape)

    def uniform(self, shape: Sequence[int] = (), name: str = "uniform") -> Tensor:
        """Uniform numbers in [0, 1), (B, *shape) float32. Raises as `normal`."""
        rows, generator, restart = self._rows(shape, name)
        for row, counter in zip(rows, self.counters, strict=True):
            restart(counter)
            generator.random(out=row, dtype=np.float32)
        return self._tensor(rows, shape)

    def _rows(self, shape: Sequence[int], name: str) -> tuple[NDArray[np.float32], np.random.Generator, "_Restart"]:
        if name in self._used:
            raise ValueError(f"{name!r} was already drawn for this batch: give every draw its own name")
        self._used.add(name)
        bits = np.random.Philox(key=key(self.seed, name))
        rows = np.empty((len(self.counters), int(np.prod(shape, dtype=np.int64))), np.float32)
        return rows, np.random.Generator(bits), _Restart(bits)

    def _tensor(self, rows: NDArray[np.float32], shape: Sequence[int]) -> Tensor:
        return torch.from_numpy(rows.reshape(len(rows), *shape)).to(self.device)


class _Restart:
    """Puts a Philox generator at the start of the stream of one counter; ten times cheaper than making a new one."""

    def __init__(self, bits: np.random.Philox) -> None:
        self.bits = bits
        self.state = bits.state
        self.key = self.state["state"]["key"]

    def __call__(self, counter: int) -> None:
        self.key[1] = counter
        self.bits.state = self.state


class Order:
    """Which sample comes at which counter: every epoch is a permutation of all samples, keyed on (seed, epoch)."""

    def __init__(self, samples: int, seed: int) -> None:
        if samples < 1:
            raise ValueError(f"an order needs at least 1 sample, got {samples}")
        self.samples = samples
        self.seed = seed
        self._epoch = -1
        self._permutation: NDArray[np.int64] = np.empty(0, np.int64)

    def begin(self, consumed: int) -> int:
        """The counter that a run goes on from after so many samples."""
        return consumed

    def indices(self, counters: Sequence[int]) -> list[int]:
        """The sample index for each counter, in [0, samples)."""
        return [int(self._of(counter // self.samples)[counter % self.samples]) for counter in counters]

    def _of(self, epoch: int) -> NDArray[np.int64]:
        if epoch != self._epoch:
            bits = np.random.Philox(key=[key(self.seed, "order"), epoch])
            self._permutation = np.random.Generator(bits).permutation(self.samples)
            self._epoch = epoch
        return self._permutation
