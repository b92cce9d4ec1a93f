"""What is left out at each step: conditions, whole controls with the base as the target, and errors outside a mask."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from tests.training.test_controlnet import config, task_of
from tests.training.test_families import speaking
from training.controlnet import ControlNetTask
from training.randomness import Draws

ROWS = list(range(8))


@pytest.fixture(scope="module")
def task(base: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> ControlNetTask:
    """A ControlNet that is heard."""
    task = task_of(config(base, dataset, tmp_path_factory.mktemp("run"), caption_dropout=0.0))
    speaking(task.net).eval()
    return task


def heard(task: ControlNetTask, batch: dict[str, Tensor], counters: range) -> tuple[Tensor, Tensor]:
    """The conditions that the net is fed, and the loss."""
    seen: list[Tensor] = []

    class Listening:
        def __getattr__(self, name: str) -> Any:
            return getattr(task.steering, name)

        def residuals(self, net: Any, x: Tensor, t: Tensor, text: Any, condition: Tensor) -> Any:
            seen.append(condition)
            return task.steering.residuals(net, x, t, text, condition)

    with torch.no_grad():
        loss, _ = replace(task, steering=Listening()).loss(batch, Draws(0, counters))
    return seen[0], loss


@pytest.mark.parametrize("setting", ["condition_dropout", "prior_share"])
def test_conditions_are_dropped_with_their_share_anew_at_every_step(task: ControlNetTask, setting: str) -> None:
    changes: dict[str, Any] = {setting: 0.3}
    batch, dropping = task.batch(ROWS), replace(task, **changes)
    assert batch["condition"].flatten(1).any(1).all()
    dropped = []
    for first in range(0, 400, len(ROWS)):
        condition, _ = heard(dropping, batch, range(first, first + len(ROWS)))
        black_B = ~condition.flatten(1).any(1)
        assert torch.equal(condition[~black_B], batch["condition"][~black_B])
        dropped.append(black_B)
    rows = torch.stack(dropped)
    assert float(rows.float().mean()) == pytest.approx(0.3, abs=4 * (0.3 * 0.7 / 400) ** 0.5)  # four deviations of 400 draws
    assert len({tuple(row.tolist()) for row in rows}) > 10
    assert torch.equal(heard(dropping, batch, range(8))[0], heard(dropping, batch, range(8))[0])


def test_the_prior_is_what_the_base_says_alone(task: ControlNetTask) -> None:
    batch = task.batch(ROWS)
    draws = Draws(0, range(8))
    noised = task.objective.noised(task.latents(batch["moments"], draws), draws)
    text = task.texts.dropped(batch, 0.0, draws)
    black = torch.zeros_like(batch["condition"])
    with torch.no_grad():
        alone = task.base.predict(noised.x_BCHW, noised.t_B, text, None)
        said = task.base.predict(noised.x_BCHW, noised.t_B, text, task.steering.residuals(task.net, noised.x_BCHW, noised.t_B, text, black))
    _, loss = heard(replace(task, prior_share=1.0), batch, range(8))
    assert float(loss) == pytest.approx(float((said - alone).square().mean()), rel=1e-5)
    assert float(loss) > 0
    silent = replace(task, net=task.steering.new().eval(), prior_share=1.0)
    assert heard(silent, batch, range(8))[1] == 0  # a net that says nothing is what is wanted


def test_the_gradient_of_what_a_mask_hides_is_zero(base: Path, dataset: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "data"
    shutil.copytree(dataset, folder, ignore=shutil.ignore_patterns("cache"))
    (folder / "where").mkdir()
    mask_HW = np.zeros((72, 96), np.uint8)
    mask_HW[:, 48:] = 255  # the right half; of the square that is trained on too
    rows = (folder / "metadata.jsonl").read_text().splitlines()
    for index, row in enumerate(rows):
        assert cv2.imwrite(str(folder / "where" / f"{index}.png"), mask_HW)
        rows[index] = row.replace('"other": 7', f'"where": "where/{index}.png"')
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    task = task_of(config(base, folder, tmp_path / "run", data={"mask": "where", "flip": True}))
    batch = task.batch([0, 10])
    assert batch["mask"].shape == (2, 1, 8, 8)
    assert torch.equal(batch["mask"][0], batch["mask"][1].flip(-1))
    assert batch["mask"][0, 0, 0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    draws = Draws(0, [0, 1])
    noised = task.objective.noised(task.latents(batch["moments"], draws), draws)
    out = torch.randn(noised.target_BCHW.shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    task.objective.loss(noised, out, batch["mask"]).backward()  # type: ignore[no-untyped-call]
    assert out.grad is not None
    assert torch.equal(out.grad != 0, (batch["mask"] > 0).expand_as(out))
    loss, _ = task.loss(batch, Draws(0, [0, 1]))
    without, _ = task.loss({name: value for name, value in batch.items() if name != "mask"}, Draws(0, [0, 1]))
    assert loss != without
