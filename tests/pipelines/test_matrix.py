"""Every feature in every family: each cell of docs/features.md is exercised, and the document is what is exercised."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from renderer import Renderer
from tests import (
    tinymodels,
    tinymodels_flux,
    tinymodels_qwenimage,
    tinymodels_sana,
    tinymodels_sd3,
    tinymodels_sdxl,
    tinymodels_zimage,
)
from tests.pipelines import matrix
from tests.pipelines.matrix import FAMILIES, FEATURES, Bench

pytestmark = [pytest.mark.filterwarnings("ignore:.FluxPosEmbed. is deprecated:FutureWarning")]


def on_its_own(build: Callable[..., Path]) -> Callable[..., Path]:
    """A builder of ControlNets that needs no base."""
    return lambda folder, base, seed: build(folder, seed=seed)


BUILDERS: dict[str, tuple[Callable[[Path], Path], Callable[..., Path]]] = {
    "sd": (tinymodels.build_base, tinymodels.build_controlnet),
    "sdxl": (tinymodels_sdxl.build_base, tinymodels.build_controlnet),
    "sd3": (tinymodels_sd3.build_base, on_its_own(tinymodels_sd3.build_controlnet)),
    "flux": (tinymodels_flux.build_base, on_its_own(tinymodels_flux.build_controlnet)),
    "sana": (tinymodels_sana.build_base, on_its_own(tinymodels_sana.build_controlnet)),
    "qwenimage": (tinymodels_qwenimage.build_base, on_its_own(tinymodels_qwenimage.build_controlnet)),
    "zimage": (tinymodels_zimage.build_base, on_its_own(tinymodels_zimage.build_controlnet)),
}


@pytest.fixture(scope="module", params=FAMILIES)
def bench(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp(request.param)
    base, net = BUILDERS[request.param]
    base(folder / "base")
    for seed, kind in enumerate(("canny", "depth")):
        net(folder / f"controlnet-{kind}", folder / "base", seed=seed + 1)
    tinymodels.build_pictures(folder)
    for name, level in (("white", 255), ("black", 0)):
        PIL.Image.fromarray(np.full((matrix.SIDE, matrix.SIDE), level, np.uint8)).save(folder / f"{name}.png")
    return Bench(request.param, Renderer.open(str(folder / "base"), device="cpu"), folder)


@pytest.mark.parametrize("feature", FEATURES)
def test_every_cell(feature: str, bench: Bench) -> None:
    matrix.exercise(bench, feature)


def test_every_family_is_in_the_table() -> None:
    from pipelines.engine import families

    assert set(families()) == set(FAMILIES) == set(BUILDERS)


def test_the_document_is_what_is_exercised() -> None:
    assert (matrix.ROOT / "docs" / "features.md").read_text(encoding="utf-8") == matrix.document()
