"""The embedded estimators: their targets and answers in closed form, a little training, and the way from a folder to a picture's depth."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from controls import estimators as seam
from controls import learned
from core.errors import BadModel
from core.skeleton import JOINTS, LIMB_JOINTS
from toyland import dataset, estimators
from toyland.estimators import CELLS, SIZE_PX
from training.config import TrainConfig
from training.randomness import Draws
from training.trainer import train

KINDS: dict[str, tuple[Any, Any]] = {
    "depth": (estimators.new_depth_estimator, estimators.DepthTask),
    "pose": (estimators.new_pose_estimator, estimators.PoseTask),
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    dataset.build(folder, 8, seed=0, split="test", workers=1)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Untrained estimators, saved as trained ones are."""
    home = tmp_path_factory.mktemp("estimators")
    for kind, (new, _) in KINDS.items():
        torch.manual_seed(3)
        (home / kind).mkdir()
        estimators.save(new(), new().state_dict(), home / kind)
    return {kind: home / kind for kind in KINDS}


def some_joints(seed: int = 5) -> torch.Tensor:
    return torch.rand(3, len(JOINTS), 2, generator=torch.Generator().manual_seed(seed)) * (SIZE_PX - 16) + 8


@pytest.mark.parametrize("kind", KINDS)
def test_they_are_small(kind: str, folders: dict[str, Path]) -> None:
    network = KINDS[kind][0]()
    assert sum(parameter.numel() for parameter in network.parameters()) <= 450_000
    assert (folders[kind] / "model.safetensors").stat().st_size < 910_000, "half precision"


def test_joints_come_back_from_their_heatmaps() -> None:
    joints = some_joints()
    maps = estimators.heatmaps(joints).numpy()
    for wanted, found in zip(joints.numpy(), maps, strict=True):
        cells, height = learned.peaks(found)
        # the parabola through logarithms is exact for a Gaussian; what is left is float32
        np.testing.assert_allclose(cells * SIZE_PX / CELLS, wanted, atol=1e-2)
        assert (height > 0.85).all()  # a cell's centre is at most half a cell away in x and in y


def test_a_joint_out_of_sight_has_an_empty_heatmap() -> None:
    joints = some_joints()
    joints[1, 4] = float("nan")
    maps = estimators.heatmaps(joints)
    assert maps[1, 4].abs().max() == 0
    assert maps[1, 5].max() > 0.85


def test_a_mirror_exchanges_left_and_right() -> None:
    assert [JOINTS[estimators.MIRRORED[JOINTS.index(name)]] for name in ("nose", "left_wrist", "right_ear")] == [
        "nose",
        "right_wrist",
        "left_ear",
    ]
    assert [estimators.MIRRORED[index] for index in estimators.MIRRORED] == list(range(len(JOINTS)))
    joints = some_joints()
    turned = estimators.mirrored_joints(joints)
    torch.testing.assert_close(estimators.mirrored_joints(turned), joints)
    torch.testing.assert_close(estimators.heatmaps(turned), estimators.heatmaps(joints)[:, estimators.MIRRORED].flip(-1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_task_gives_every_sample_its_own_loss(kind: str, scenes: Path) -> None:
    """Two halves of a batch average to the batch, whatever the split: augmentation hangs on the sample alone."""
    torch.manual_seed(0)
    new, make = KINDS[kind]
    task = make(new().eval(), scenes)
    with torch.no_grad():
        whole, _ = task.loss(task.batch([0, 1, 2, 3]), Draws(1, range(4)))
        halves = [task.loss(task.batch(part), Draws(1, part))[0] for part in ([0, 1], [2, 3])]
    torch.testing.assert_close(whole, torch.stack(halves).mean(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_little_training_lowers_the_loss_and_exports(kind: str, scenes: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    new, make = KINDS[kind]
    losses: list[float] = []
    settings = {"steps": 9, "batch_size": 4, "learning_rate": 2e-3, "warmup": 2, "device": "cpu", "log_every": 3, "ema_decay": 0.5}
    config = TrainConfig.model_validate({"out": tmp_path / kind, **settings})
    train(make(new(), scenes), config, on_step=lambda run: losses.append(run.metrics.get("loss", np.nan)))
    assert losses[-1] < 0.92 * losses[2]
    image_HWC = np.zeros((40, 40, 3), np.uint8)
    seam.LOADERS[kind](tmp_path / kind / "weights")(image_HWC)


@pytest.mark.parametrize(("height", "width"), [(128, 128), (64, 64), (96, 200), (300, 100), (1, 1), (1, 500)])
def test_any_size_goes_in_and_comes_out(height: int, width: int, folders: dict[str, Path]) -> None:
    image_HWC = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    depth_HW = learned.DepthEstimator(folders["depth"])(image_HWC)
    assert depth_HW.shape == (height, width)
    assert depth_HW.dtype == np.uint8
    if min(height, width) > 1:
        assert (depth_HW.min(), depth_HW.max()) == (0, 255), "the whole range, as ControlNets for depth know it"
    people_xy = learned.PoseEstimator(folders["pose"])(image_HWC)
    assert people_xy.shape[1:] == (len(JOINTS), 2)


class _Answer(torch.nn.Module):
    """A network that answers with heatmaps worked out beforehand."""

    def __init__(self, heatmaps: torch.Tensor) -> None:
        super().__init__()
        self.heatmaps = heatmaps

    def forward(self, pixel_values: torch.Tensor) -> "_Answer":
        return self


@pytest.mark.parametrize(("height", "width"), [(128, 128), (256, 256), (64, 192), (192, 96)])
def test_joints_are_given_in_the_pictures_pixels(height: int, width: int, folders: dict[str, Path]) -> None:
    estimator, side = learned.PoseEstimator(folders["pose"]), max(height, width)
    in_square = some_joints()[:1]
    estimator._network.network = _Answer(estimators.heatmaps(in_square))
    (found_J2,) = estimator(np.zeros((height, width, 3), np.uint8))
    wanted_J2 = in_square[0].numpy() * side / SIZE_PX - ((side - width) // 2, (side - height) // 2)
    np.testing.assert_allclose(found_J2, wanted_J2, atol=0.05)


def test_nobody_and_hidden_joints_are_told(folders: dict[str, Path]) -> None:
    estimator, image_HWC = learned.PoseEstimator(folders["pose"]), np.zeros((128, 128, 3), np.uint8)
    maps = estimators.heatmaps(some_joints()[:1])
    estimator._network.network = _Answer(0.2 * maps)
    assert estimator(image_HWC).shape == (0, len(JOINTS), 2)
    maps[0, JOINTS.index("left_ear")] *= 0.1
    estimator._network.network = _Answer(maps)
    (person_xy,) = estimator(image_HWC)
    assert np.isnan(person_xy[JOINTS.index("left_ear")]).all()
    assert np.isfinite(person_xy[list(LIMB_JOINTS)]).all()


def test_a_damaged_folder_is_told_in_one_line(folders: dict[str, Path], tmp_path: Path) -> None:
    for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
        broken = tmp_path / name
        broken.mkdir()
        for file in folders["depth"].iterdir():
            (broken / file.name).write_bytes(file.read_bytes())
        (broken / name).write_bytes((broken / name).read_bytes()[:100])
        with pytest.raises(BadModel, match=r"^[^\n]*restore models/toyland$"):
            learned.DepthEstimator(broken)
