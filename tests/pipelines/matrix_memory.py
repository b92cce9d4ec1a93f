"""Cells of docs/features.md about how a model lies in memory; see `tests.pipelines.matrix`."""

import importlib.util
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import pytest

from core.errors import BadRequest
from pipelines.quantise import QUANTISED
from pipelines.residency import OFFLOADS, Memory
from renderer import Picture, Renderer
from tests.pipelines.bench import Bench, near, pixels


@lru_cache(1)
def plain_picture(bench: Bench) -> Any:
    """With the model as it lies by default."""
    return bench.draw(bench.request(controls=(bench.control(),)))[0]


def lying(bench: Bench, memory: Memory) -> tuple[Any, Any, Picture]:
    """The same picture with the model as it lies by default and as it is asked to lie, and the latter with its record."""
    picture = Renderer.open(bench.renderer.model, device="cpu", memory=memory).render(bench.request(controls=(bench.control(),)))[0]
    return plain_picture(bench), pixels(picture), picture


def offload(bench: Bench) -> None:
    for way in OFFLOADS.keys() - {"none"}:
        plain, offloaded, _ = lying(bench, Memory(offload=way))  # type: ignore[arg-type]
        levels = np.abs(plain.astype(float) - offloaded).max()
        assert levels <= (0 if way == "model" else 1), way  # on the CPU, layers that come and go are computed plainly, not by oneDNN


def storage(bench: Bench) -> None:
    """float8 keeps three bits of mantissa: a weight is a sixteenth of itself off at most, and pictures are other ones."""
    plain, rounded, picture = lying(bench, Memory(storage="float8"))
    assert 0 < np.abs(plain - rounded).mean() < 64
    assert "the denoising network's weights are rounded: float8" in picture.record.notes


def quantised(how: Any) -> Callable[[Bench], None]:
    """A cell of one way of rounding; where its package is not installed, the cell is the sentence that says so."""

    def cell(bench: Bench) -> None:
        package = QUANTISED[how][0]
        if importlib.util.find_spec(package) is None:
            with pytest.raises(BadRequest, match=f"run 'pip install {package}'"):
                lying(bench, Memory(quantise=how))
            return
        plain, rounded, picture = lying(bench, Memory(quantise=how))
        assert 0 < np.abs(plain - rounded).mean() < 64
        assert f"the denoising network's weights are rounded: {how}" in picture.record.notes

    return cell


def attention(bench: Bench) -> None:
    plain, sdpa, _ = lying(bench, Memory(attention="sdpa"))
    assert near(plain, sdpa)


MEMORY: dict[str, Callable[[Bench], None]] = {
    "networks that wait on the CPU (model, group, sequential)": offload,
    "weights kept in float8": storage,
    "matrices in int8 (torchao)": quantised("int8"),
    "matrices in llm_int8 (bitsandbytes)": quantised("llm_int8"),
    "matrices in nf4 (bitsandbytes)": quantised("nf4"),
    "attention by name": attention,
}
