"""The reward: what it sees is what the kinds see, it falls along its gradient, and only clear pictures count."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from controls.estimators import ROOT
from core.control import Image
from core.errors import BadRequest
from core.openpose import People, draw_people
from pipelines.images import condition_to_tensor
from tests.training.test_controlnet import config, task_of
from tests.training.test_families import speaking
from toyland.render import Rendered, depth_map, render
from toyland.scene import sample
from training import reward as rewards
from training.config import RewardConfig
from training.data import DataConfig, Loader
from training.randomness import Draws
from training.reward import LOOKS, Reward, check_evaluator, make_reward, soft_edges
from training.run import train_controlnet

CPU = torch.device("cpu")


def figures(count: int) -> list[Rendered]:
    """Scenes of people, the first of the test split."""
    found: list[Rendered] = []
    seed = 0
    while len(found) < count:
        scene = sample(seed, "test")
        seed += 1
        if scene.figure is not None:
            found.append(render(scene, 128))
    return found


def truth(kind: str, scene: Rendered) -> Image:
    """The condition of a scene, exact."""
    if kind == "depth":
        return depth_map(scene.depth_HW)[0]
    if kind == "pose":
        return draw_people(People.of(scene.joints_18x2[None, :, :2]), 128, 128)
    return np.repeat(cv2.Canny(scene.picture_HWC, 100, 200)[..., None], 3, axis=2)


def loader(kind: str, tmp_path: Path, **changes: Any) -> Loader:
    return Loader(DataConfig.model_validate({"folder": tmp_path, "condition": kind, "width": 128, "height": 128, **changes}))


def batch(images: list[Image]) -> Tensor:
    return torch.stack([condition_to_tensor(image) for image in images])


@pytest.mark.parametrize("threshold", [60, 150])
def test_soft_edges_are_canny_s(threshold: int) -> None:
    for scene in figures(3):
        picture_HWC = scene.picture_HWC
        wanted = cv2.Canny(picture_HWC, threshold, threshold) > 0
        found = soft_edges(batch([picture_HWC]), threshold, threshold)[0, 0].numpy() > 0.5
        # what differs: gradients of exactly the threshold, and ties that OpenCV's whole numbers break otherwise
        assert float((found != wanted).mean()) < 0.002
        assert wanted.mean() > 0.005


@pytest.mark.parametrize("kind", LOOKS)
def test_a_picture_agrees_best_with_its_own_condition(kind: str, tmp_path: Path) -> None:
    scenes = figures(4)
    pictures, maps = batch([scene.picture_HWC for scene in scenes]), batch([truth(kind, scene) for scene in scenes])
    look = LOOKS[kind]("", loader(kind, tmp_path), CPU)
    with torch.no_grad():
        own, other = look(pictures, maps), look(pictures, maps.roll(1, 0))
        blank = look(torch.full_like(pictures, 0.5), maps)
    assert own.shape == (4,)
    assert bool((own >= 0).all())
    assert float(own.mean()) < 0.5 * float(other.mean())
    assert float(own.mean()) < 0.5 * float(blank.mean())


@pytest.mark.parametrize("kind", LOOKS)
def test_pictures_come_to_agree_along_the_gradient(kind: str, tmp_path: Path) -> None:
    first, second = figures(2)
    pixels = batch([first.picture_HWC]).requires_grad_()
    maps = batch([truth(kind, second)])
    look = LOOKS[kind]("", loader(kind, tmp_path), CPU)
    before = float(look(pixels, maps).detach())
    optimiser = torch.optim.Adam([pixels], lr=0.02)
    for _ in range(8):
        optimiser.zero_grad()
        look(pixels.clamp(0, 1), maps).sum().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    assert float(look(pixels.clamp(0, 1), maps).detach()) < 0.8 * before


def test_nobody_and_nothing_ask_for_nothing(tmp_path: Path) -> None:
    pixels, black = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0)).requires_grad_(), torch.zeros(1, 3, 128, 128)
    for kind in ("depth", "pose"):
        found = LOOKS[kind]("", loader(kind, tmp_path), CPU)(pixels, black)
        assert found.tolist() == [0.0]
        found.sum().backward()  # type: ignore[no-untyped-call]
    assert pixels.grad is not None
    assert not pixels.grad.any()


def test_a_person_is_cropped_as_extraction_crops_them() -> None:
    from controls.people import crop

    picture_HWC = figures(1)[0].picture_HWC
    joints = torch.tensor([[40.0, 30.0], [70.0, 110.0], [float("nan"), float("nan")]])
    corner, size = rewards._box(joints, (128, 128), 48 / 64, whole=False)
    found = rewards._cropped(condition_to_tensor(picture_HWC), corner, size, (64, 48), "zeros")
    wanted_HWC, back = crop(picture_HWC, np.array([40.0, 30.0, 70.0, 110.0]), (48, 64))
    places = back(np.array([[0.0, 0.0], [48.0, 64.0]]))
    np.testing.assert_allclose(places, torch.stack([corner, corner + size]).numpy(), atol=1e-3)
    # bilinear both, OpenCV's in fixed point with 1/32 of a pixel
    assert float((found[0] - condition_to_tensor(wanted_HWC)).abs().mean()) < 0.01


def made(base: Path, dataset: Path, out: Path, look: Callable[[Tensor, Tensor], Tensor] | None = None, **settings: Any) -> Any:
    task = task_of(config(base, dataset, out, caption_dropout=0.0, reward={"weight": 1.0, **settings}))
    speaking(task.net)
    if look is not None:
        assert task.reward is not None
        task.reward.look = look
    return task


def test_only_near_and_kept_samples_count(base: Path, dataset: Path, tmp_path: Path) -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def look(pixels: Tensor, maps: Tensor) -> Tensor:
        seen.append((pixels.detach(), maps))
        return pixels.flatten(1).mean(1)

    task = made(base, dataset, tmp_path, look)
    rows, draws = list(range(8)), Draws(3, range(8))
    samples = task.batch(rows)
    noised = task.objective.noised(task.latents(samples["moments"], draws), draws)
    near = (noised.t_B <= 200).nonzero().flatten().tolist()
    assert 0 < len(near) < 8
    loss, metrics = task.loss(samples, Draws(3, range(8)))
    pixels, maps = seen[0]
    assert torch.equal(maps, samples["condition"][near])
    assert pixels.shape == (len(near), 3, 64, 64)
    assert float(pixels.min()) >= 0
    assert float(pixels.max()) <= 1
    # over the 0.2 · 8 rows that are expected to count, however many do
    assert float(metrics["reward"]) == pytest.approx(float(pixels.flatten(1).mean(1).sum()) / 1.6, rel=1e-5)
    task.net.zero_grad()
    metrics_only = float(loss.detach())
    loss.backward()
    with_reward = {name: parameter.grad.clone() for name, parameter in task.net.named_parameters() if parameter.grad is not None}
    task.reward.config = RewardConfig(weight=1e-9)
    task.net.zero_grad()
    plain, _ = task.loss(samples, Draws(3, range(8)))
    plain.backward()
    assert metrics_only == pytest.approx(float(plain.detach()) + float(metrics["reward"]), rel=1e-5)
    assert any(not torch.equal(parameter.grad, with_reward[name]) for name, parameter in task.net.named_parameters() if name in with_reward)
    task.condition_dropout = 1.0
    seen.clear()
    dropped, metrics = task.loss(samples, Draws(3, range(8)))
    assert not seen  # a black condition asks for nothing
    assert metrics["reward"] == 0
    assert torch.isfinite(dropped)


def test_one_step_back_from_the_truth_is_the_picture(base: Path, dataset: Path, tmp_path: Path) -> None:
    seen: list[Tensor] = []

    def look(pixels: Tensor, maps: Tensor) -> Tensor:
        seen.append(pixels)
        return pixels.flatten(1).mean(1)

    task = made(base, dataset, tmp_path, look, until=1.0)
    assert isinstance(task.reward, Reward)
    draws = Draws(0, [0, 1])
    x0 = task.latents(task.batch([0, 1])["moments"], draws)
    noise = draws.normal(tuple(x0.shape[1:]), name="noise")
    noised = task.objective.at(x0, noise, torch.tensor([50, 150]))
    with torch.no_grad():
        task.reward(task.objective, noised, noise, torch.zeros(2, 3, 64, 64), torch.ones(2, dtype=torch.bool))
        wanted = (task.base.decode(x0) * 0.5 + 0.5).clamp(0, 1)
    # x̂_0 = (x − σ·ε)/α loses some ulps
    torch.testing.assert_close(seen[0], wanted, rtol=0, atol=1e-4)


def test_a_run_with_a_reward_logs_it(base: Path, dataset: Path, tmp_path: Path) -> None:
    settings = config(base, dataset, tmp_path / "run", reward={"weight": 0.5, "until": 1.0}, monitor={"fidelity_every": 4, "steps": 1})
    train_controlnet(settings)
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert all(0 < row["reward"] < 1 for row in rows if "reward" in row)
    assert any("reward" in row for row in rows)


def test_the_evaluator_is_another_network(tmp_path: Path) -> None:
    depth = loader("depth", tmp_path)
    with pytest.raises(BadRequest, match=r"the depth network that fidelity is measured with"):
        check_evaluator(RewardConfig(weight=1.0), depth, "toyland", measures=True)
    check_evaluator(RewardConfig(weight=1.0), depth, "toyland", measures=False)
    check_evaluator(RewardConfig(weight=1.0), depth, "runwayml/stable-diffusion-v1-5", measures=True)
    check_evaluator(RewardConfig(weight=1.0, estimator=str(ROOT / "other")), depth, "toyland", measures=True)
    check_evaluator(RewardConfig(), depth, "toyland", measures=True)
    for wrong in (
        loader("softedge", tmp_path),
        loader("own", tmp_path),
        Loader(depth.config.model_copy(update={"condition": ("canny", "depth")})),
    ):
        with pytest.raises(BadRequest, match="there is no reward for"):
            make_reward(RewardConfig(weight=1.0), wrong, None, (0.0, 1.0))


def test_micro_batches_add_up_to_the_batch(base: Path, dataset: Path, tmp_path: Path) -> None:
    task = made(base, dataset, tmp_path, lambda pixels, maps: pixels.flatten(1).mean(1), until=0.5)

    def rewarded(*counters: range) -> float:
        found = [task.loss(task.batch([0] * len(part)), Draws(3, part))[1]["reward"] for part in counters]
        return float(sum(found)) / len(found)

    whole = rewarded(range(8))
    assert whole > 0
    for parts in ([range(4), range(4, 8)], [range(row, row + 1) for row in range(8)]):
        # fp32, in batches of other sizes: rounding of convolutions; a mean over the rows that count would be off by tens of percent
        assert rewarded(*parts) == pytest.approx(whole, rel=1e-4)
