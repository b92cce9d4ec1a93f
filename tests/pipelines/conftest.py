"""Tiny models, built once per test session."""

from pathlib import Path

import pytest

from pipelines.checkpoint import Folder
from pipelines.families.sdxl import StableDiffusionXL
from tests import tinymodels, tinymodels_sdxl


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An epsilon model."""
    return tinymodels.build_base(tmp_path_factory.mktemp("tiny") / "base")


@pytest.fixture(scope="session")
def base_v(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A v-prediction model with a zero-terminal-SNR table."""
    folder = tmp_path_factory.mktemp("tiny") / "base-v"
    return tinymodels.build_base(folder, prediction_type="v_prediction", seed=5, rescale_betas_zero_snr=True)


@pytest.fixture(scope="session")
def controlnets(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two ControlNets of `base`; they fit `base_v` too, whose layout is the same."""
    folder = tmp_path_factory.mktemp("nets")
    return [tinymodels.build_controlnet(folder / f"net-{seed}", base, seed=seed) for seed in (1, 2)]


@pytest.fixture(scope="session")
def sdxl_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SDXL model."""
    return tinymodels_sdxl.build_base(tmp_path_factory.mktemp("sdxl") / "base")


@pytest.fixture(scope="session")
def sdxl(sdxl_base: Path) -> StableDiffusionXL:
    """It, loaded."""
    from tests.pipelines.scenes import PLACE

    return StableDiffusionXL.load(Folder(sdxl_base), PLACE)


@pytest.fixture(scope="session")
def sdxl_nets(sdxl_base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two ControlNets of it."""
    folder = tmp_path_factory.mktemp("sdxl-nets")
    return [tinymodels.build_controlnet(folder / f"net-{seed}", sdxl_base, seed=seed) for seed in (1, 2)]


@pytest.fixture(scope="session")
def sdxl_unions(sdxl_base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two union ControlNets of it."""
    folder = tmp_path_factory.mktemp("sdxl-unions")
    return [tinymodels_sdxl.build_union(folder / f"union-{seed}", sdxl_base, seed=seed) for seed in (1, 2)]


@pytest.fixture(scope="session")
def sdxl_adapters(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two T2I-Adapters for it; the second one looks at grey."""
    folder, channels = tmp_path_factory.mktemp("sdxl-adapters"), (*tinymodels_sdxl.WIDTHS, tinymodels_sdxl.WIDTHS[-1])
    return [
        tinymodels_sdxl.build_adapter(folder / f"adapter-{seed}", channels, kind="full_adapter_xl", in_channels=seed, seed=seed)
        for seed in (3, 1)
    ]
