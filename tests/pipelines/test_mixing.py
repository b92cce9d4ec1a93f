"""Requests mixed in one batch: whatever the loop knows, row by row as alone; what cannot share a batch is drawn by itself, in its place."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from core.errors import BadImage, Cancelled
from core.request import ControlUnit, RenderRequest
from pipelines.mixing import _weighted
from renderer import Picture, Renderer
from tests import tinymodels


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tinymodels.build_pictures(tinymodels.build_models(tmp_path_factory.mktemp("models")))


@pytest.fixture(scope="module")
def renderer(folder: Path) -> Renderer:
    return Renderer.open(str(folder / "base"), device="cpu")


def request(prompt: str = "a red sphere", **values: Any) -> RenderRequest:
    return RenderRequest(**({"prompt": prompt, "width": 64, "height": 64, "steps": 3, "guidance_scale": 2.5} | values))


def unit(folder: Path, weight: float = 1.0, image: str = "depth.png", **values: Any) -> ControlUnit:
    return ControlUnit(**({"kind": "canny", "image": folder / image, "ready": True, "weight": weight} | values))


def near(one: Picture, other: Picture) -> bool:
    """Equal to rounding: a level of 255 may tip over."""
    return bool(np.abs(np.asarray(one.image).astype(int) - np.asarray(other.image)).max() <= 1)


def rows(drawn: Sequence[Sequence[Picture]]) -> list[tuple[int, int]]:
    return [(pictures[0].record.batch_row, pictures[0].record.batch_rows) for pictures in drawn]


@pytest.mark.parametrize(
    ("prompts", "values"),
    [
        (("a red sphere AND snow :0.5", "a blue cube AND night :0.5"), {}),
        (("[a red sphere:a blue cube:2]", "[snow:a person at night:2]"), {}),
        (("a red sphere", "snow"), {"pag_scale": 2.0, "guidance_rescale": 0.7}),
        (("a red sphere", "snow"), {"sampler": "dpmpp_sde", "variation_strength": 0.3}),
        (("a red sphere", "snow"), {"guidance_scale": 1.0}),
    ],
)
def test_what_the_loop_knows_it_knows_for_every_row(
    prompts: tuple[str, str], values: dict[str, Any], renderer: Renderer, folder: Path
) -> None:
    some = [
        request(
            prompts[i], seed=i, negative_prompt=("", "dark")[i], controls=(unit(folder, 0.5 + i, ("depth.png", "photo.png")[i]),), **values
        )
        for i in range(2)
    ]
    together = renderer.render_many(some)
    assert rows(together) == [(0, 2), (1, 2)]
    for one, (picture,) in zip(some, together, strict=True):
        assert near(picture, renderer.render(one)[0])
        assert picture.record.request.seed == one.seed


@pytest.mark.parametrize("mode", ["prompt", "control", "guess"])
def test_modes_and_windows_of_several_controls(mode: str, renderer: Renderer, folder: Path) -> None:
    some = [
        request(seed=i, controls=(unit(folder, 0.4 + 0.7 * i, mode=mode), unit(folder, 1.0 - 0.5 * i, kind="depth", end=0.7)))
        for i in range(3)
    ]
    together = renderer.render_many(some)
    assert rows(together) == [(0, 3), (1, 3), (2, 3)]
    assert all(near(picture, renderer.render(one)[0]) for one, (picture,) in zip(some, together, strict=True))


def test_what_cannot_share_a_batch_is_drawn_by_itself_in_its_place(renderer: Renderer, folder: Path) -> None:
    some = [
        request(seed=1),
        request(seed=2, count=2),
        request(seed=3, init_image=folder / "photo.png"),
        request(seed=4, controls=(unit(folder, mask=folder / "left.png"),)),
        request(seed=5, steps=2),
        request("a person " * 60, seed=6),  # two windows of CLIP: the others' would be filled up with something that is read
        request(seed=7),
    ]
    together = renderer.render_many(some)
    assert rows(together) == [(0, 2), (0, 1), (0, 1), (0, 1), (0, 1), (0, 1), (1, 2)]
    assert [len(pictures) for pictures in together] == [1, 2, 1, 1, 1, 1, 1]
    for i in range(1, 6):
        assert np.array_equal(np.asarray(together[i][0].image), np.asarray(renderer.render(some[i])[0].image)), "bit for bit"


def test_a_mistake_in_one_of_them_is_found_before_any_is_drawn(renderer: Renderer, folder: Path) -> None:
    with pytest.raises(BadImage, match="nowhere"):
        renderer.render_many([request(), request(controls=(unit(folder, image="nowhere.png"),))])


def test_a_batch_is_cancelled_before_the_next_network(renderer: Renderer) -> None:
    asked = []

    def cancelled() -> bool:
        asked.append(1)
        return len(asked) == 2

    with pytest.raises(Cancelled):
        renderer.render_many([request(seed=1), request(seed=2)], cancelled=cancelled)
    assert len(asked) == 2


def test_weights_of_rows_are_rounded_as_one_weight_is() -> None:
    """A factor is taken in float32 however short the residuals are, as torch does with a number."""
    residual = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0)).half()
    found = _weighted(residual, torch.tensor([0.3, 1.7]))
    assert found.dtype == torch.float16
    assert torch.equal(found, torch.stack([residual[0] * 0.3, residual[1] * 1.7]))
