"""Tiny models, built once per test session."""

from pathlib import Path

import pytest

from tests import tinymodels


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
