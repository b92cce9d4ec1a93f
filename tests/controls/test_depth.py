"""The depth metric in closed form, and what depth and pose say without an estimator."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from controls import depth, estimators, normal
from core.control import Image
from core.errors import BadRequest
from toyland.render import depth_map, render
from toyland.scene import sample


def ramp(low: int, high: int) -> Image:
    return np.repeat(np.linspace(low, high, 64).astype(np.uint8)[None, :, None], 48, axis=0).repeat(3, axis=2)


def test_scale_and_shift_do_not_count_and_inversion_does() -> None:
    wanted = ramp(0, 252)
    assert depth.compare_maps(wanted, wanted).value == pytest.approx(1.0)
    same = depth.compare_maps(wanted, ramp(100, 226))
    assert same.raw < 1.0  # only what rounding to whole grey levels leaves
    assert same.value > 0.98
    inverted = depth.compare_maps(wanted, wanted[:, ::-1])
    assert inverted.value == pytest.approx(0.0)
    assert inverted.raw == pytest.approx(wanted[..., 0].std(), rel=1e-6)


def test_rmse_is_the_residual_of_the_regression() -> None:
    rng = np.random.default_rng(3)
    got = rng.uniform(0, 255, (40, 50))
    wanted = 0.5 * got + 20 + rng.normal(0, 7, got.shape)
    slope, shift = np.polyfit(got.ravel(), wanted.ravel(), 1)
    expected = np.sqrt(np.mean((wanted - slope * got - shift) ** 2))
    assert depth.aligned_rmse(wanted, got) == pytest.approx(expected, rel=1e-9)


def test_flat_maps() -> None:
    flat = np.full((48, 64, 3), 90, np.uint8)
    assert depth.compare_maps(flat, flat).value == 1.0
    assert depth.compare_maps(flat, ramp(0, 255)) is None  # any depth is a flat one at scale 0
    assert depth.compare_maps(ramp(0, 255), flat).value == pytest.approx(0.0, abs=1e-9)


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str, estimators.Estimate], None]:
    """Installs an estimator whose answer is known."""
    monkeypatch.setattr(estimators, "ROOT", tmp_path)
    monkeypatch.setattr(estimators, "LOADERS", {})

    def put(kind: str, estimate: estimators.Estimate) -> None:
        (tmp_path / f"estimator-{kind}").mkdir()
        estimators.LOADERS[kind] = lambda folder: estimate

    return put


@pytest.mark.usefixtures("install")
def test_without_an_estimator_extraction_says_so_and_fidelity_is_not_measured() -> None:
    assert not depth.available()
    with pytest.raises(BadRequest, match=r"no depth estimator is installed.*'ready'"):
        depth.extract(ramp(0, 255), depth.Params())
    assert depth.compare(ramp(0, 255), ramp(0, 255)) is None


def test_with_an_estimator_both_work(install: Callable[[str, estimators.Estimate], None]) -> None:
    install("depth", lambda image_HWC: image_HWC[..., 0])  # a world whose red is its depth
    scene = ramp(0, 255)
    scene[..., 1:] = 7
    wanted = depth.extract(scene, depth.Params())
    np.testing.assert_array_equal(wanted, ramp(0, 255))
    score = depth.compare(wanted, scene)
    assert score is not None
    assert score.value == pytest.approx(1.0)


def test_normals_made_from_a_depth_map_are_measured_in_the_pictures_own_depth() -> None:
    """By the embedded estimator, on two scenes whose depth is exact."""
    if not estimators.installed("depth"):
        pytest.skip("models/toyland is not there")
    params = normal.Params(source="depth")
    scenes = [render(sample(seed, "test")) for seed in (0, 1)]
    wanted = [normal.extract(depth_map(scene.depth_HW)[0], params) for scene in scenes]
    own, other = (normal.compare(wanted[0], scene.picture_HWC, params) for scene in scenes)
    assert own is not None
    assert other is not None
    assert own.value > 0.9
    assert other.value < own.value - 0.1
