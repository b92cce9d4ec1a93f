"""The evaluation from end to end on tiny untrained models: every number comes from a picture the renderer has drawn."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from controls import estimators as seam
from core.errors import BadModel, BadRequest
from core.images import decode
from tests import tinymodels
from toyland import estimators
from toyland.captions import caption
from toyland.evaluate import card_sheet, evaluate, save
from toyland.judge import Judge, Settings, another, pose_score
from toyland.measure import Palette
from toyland.render import render
from toyland.scene import sample


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with a ControlNet for canny and depth; pose has none."""
    home = tmp_path_factory.mktemp("models")
    base = tinymodels.build_base(home / "base")
    for seed, kind in enumerate(("canny", "depth")):
        tinymodels.build_controlnet(home / f"controlnet-{kind}", base, seed=seed)
    return base


@pytest.fixture
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Untrained estimators in place of the shipped ones."""
    for kind, new in (("depth", estimators.new_depth_estimator), ("pose", estimators.new_pose_estimator)):
        torch.manual_seed(1)
        (tmp_path / f"estimator-{kind}").mkdir()
        estimators.save(new(), new().state_dict(), tmp_path / f"estimator-{kind}")
    monkeypatch.setattr(seam, "ROOT", tmp_path)


@pytest.mark.usefixtures("_installed")
def test_every_row_is_measured_and_what_cannot_be_is_said(model: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    settings = Settings(model=str(model), count=2, steps=1, device="cpu", references=60)
    report = evaluate(settings, workers=1, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    rows = {row.key: row for row in report.rows}
    assert rows["pose"].value is None, "there is no ControlNet for pose beside this base"
    assert rows["pose"].floor is not None
    assert not report.met
    for key in ("colour", "place", "canny", "depth", "composition"):
        row = rows[key]
        assert None not in (row.floor, row.value, row.ceiling), key
        assert row.count == 2
    for key in ("vae", "vae_inside", "estimator_depth", "estimator_delta", "estimator_person"):
        assert rows[key].value is not None
    first, second = save(report, tmp_path / "out")
    values = json.loads(first.read_text())
    assert set(values["settings"]["weights_sha256"]) >= {
        "base/unet/diffusion_pytorch_model.safetensors",
        "controlnet-depth/diffusion_pytorch_model.safetensors",
    }
    assert second.read_text().startswith("| |")


def test_a_picture_is_the_renderers_and_its_seed_the_scenes(model: Path, tmp_path: Path) -> None:
    from core.request import RenderRequest
    from renderer import Renderer

    judge = Judge(Settings(model=str(model), count=2, steps=2, seed=40, device="cpu"), Palette({}), tmp_path)
    drawn_HWC = judge.draw("a red cube", 3)
    (picture,) = Renderer.open(str(model), "cpu").render(RenderRequest(prompt="a red cube", width=128, height=128, seed=43, steps=2))
    np.testing.assert_array_equal(drawn_HWC, np.asarray(picture.image))
    map_HWC = np.zeros((128, 128, 3), np.uint8)
    map_HWC[40:80, 40:80] = 255
    assert (judge.draw("a red cube", 3, "depth", map_HWC) != drawn_HWC).any()


def test_a_shuffled_prompt_speaks_of_another_scene_of_the_same_kind() -> None:
    for seed in range(12):
        scene = sample(seed, "test")
        other = another(scene, "test", 12)
        assert other.seed < 12
        assert bool(other.figure) == bool(scene.figure)
        assert caption(other) != caption(scene)
    assert another(sample(0, "test"), "test", 1).seed == 1, "a count of one has no other scene: the one after it serves"


def test_nobody_found_scores_nothing_and_the_truth_scores_all() -> None:
    rendered = render(next(scene for scene in (sample(seed, "test") for seed in range(9)) if scene.figure))
    joints_xy = rendered.joints_18x2.astype(np.float64)
    assert pose_score(rendered, np.empty((0, 18, 2))) == 0
    assert pose_score(rendered, joints_xy[None]) == 1
    assert pose_score(rendered, np.stack([joints_xy + 60, joints_xy + 1])) == 1
    assert pose_score(rendered, joints_xy[None] + 60) == 0


def test_a_sheet_for_the_card(model: Path, tmp_path: Path) -> None:
    path = card_sheet(Settings(model=str(model), steps=1, device="cpu"), tmp_path / "sheet.png")
    sheet_HWC = decode(path)
    assert sheet_HWC.shape[1] > 6 * 192


def test_mistakes_are_told_before_anything_is_drawn(model: Path, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="count = 0"):
        evaluate(Settings(count=0))
    for workers in (1, 2):
        with pytest.raises(BadModel, match="no model"):
            evaluate(Settings(model=str(tmp_path / "missing" / "model"), count=1, device="cpu"), workers=workers)
