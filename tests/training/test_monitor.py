"""The monitor sees a ControlNet that is heard, says so once, keeps the right weights, and changes nothing of the training."""

import json
from dataclasses import replace
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import PartialState
from diffusers import ControlNetModel
from safetensors.torch import load_file

import training.run
from controls import canny
from core.errors import BadRequest
from core.images import decode
from pipelines.engine import Engine
from pipelines.family import Place
from pipelines.images import tensor_to_pictures
from renderer import Renderer
from tests.training.test_controlnet import config
from tests.training.test_families import speaking
from training import checkpoint as checkpoints
from training.controlnet import ControlNetTask
from training.gallery import read_bounds
from training.monitor import Measured, Monitor, _jumps, measure
from training.optimiser import Average
from training.run import build_task, held_out, train_controlnet
from training.task import Run


@pytest.fixture
def settings(base: Path, dataset: Path, tmp_path: Path) -> Any:
    return lambda **monitor: config(base, dataset, tmp_path / "run", monitor={"samples": 4, "tensorboard": False, **monitor})


def test_a_silent_net_has_no_gap_and_one_that_speaks_has(settings: Any) -> None:
    task = build_task(settings(), PartialState(cpu=True))
    silent = measure(task)
    assert (silent.gap, silent.error, silent.gap_shuffled) == (0.0, 0.0, 0.0)
    assert not silent.heard
    assert set(silent.residuals.values()) == {0.0}
    speaking(task.net)
    loud = measure(task)
    assert loud.gap < 0 < loud.error  # random words harm
    assert len(loud.bins) == 4
    assert np.mean(loud.bins) == pytest.approx(loud.gap, rel=1e-5)
    assert len(loud.residuals) == 5  # four skips and the middle
    assert all(value > 0 for value in loud.residuals.values())
    assert vars(measure(task)) == vars(loud)


def test_training_is_the_same_with_the_monitor(base: Path, dataset: Path, tmp_path: Path) -> None:
    for name, every in (("with", 1), ("without", 0)):
        train_controlnet(config(base, dataset, tmp_path / name, monitor={"every": every, "samples": 4, "tensorboard": every == 1}))
    one, other = (checkpoints.load(tmp_path / name / "checkpoints", 4).model for name in ("with", "without"))
    assert all(torch.equal(one[name], other[name]) for name in other)
    rows = [json.loads(line) for line in (tmp_path / "with" / "monitor.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert not (tmp_path / "without" / "monitor.jsonl").exists()
    log = [json.loads(line) for line in (tmp_path / "with" / "log.jsonl").read_text().splitlines()]
    assert log[-1]["gap"] == pytest.approx(rows[-2]["gap"], rel=1e-4)  # the last that was known when the line was written
    assert list((tmp_path / "with" / "tensorboard").iterdir())


def test_nothing_is_measured_or_held_out_where_no_samples_are_asked_for(base: Path, dataset: Path, tmp_path: Path) -> None:
    run = train_controlnet(config(base, dataset, tmp_path, monitor={"every": 1, "samples": 0, "tensorboard": False}))
    assert len(run.task) == 10
    assert not (tmp_path / "monitor.jsonl").exists()
    with pytest.raises(ValueError, match="give 2 or more, or 0"):
        config(base, dataset, tmp_path, monitor={"samples": 1})


def test_weights_and_biases_that_is_not_installed_is_named_before_anything_is_built(base: Path, dataset: Path, tmp_path: Path) -> None:
    if find_spec("wandb") is None:
        with pytest.raises(BadRequest, match="'mine' needs wandb, which is not installed: pip install wandb"):
            train_controlnet(config(base, dataset, tmp_path / "run", monitor={"wandb": "mine"}, cache=tmp_path / "cache"))
        assert not list(tmp_path.iterdir())


def test_samples_are_drawn_scored_and_the_best_kept(settings: Any, tmp_path: Path) -> None:
    train_controlnet(settings(every=2, fidelity_every=2, steps=2))
    rows = [json.loads(line) for line in (tmp_path / "run" / "monitor.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4]
    assert all(0 <= row["interval"][0] <= row["fidelity"] <= row["interval"][1] <= 1 for row in rows)
    bounds = read_bounds(tmp_path / "run")
    assert bounds is not None
    task = build_task(settings(), PartialState(cpu=True))
    true = [
        canny.compare(task.loader.maps(pair)[0], tensor_to_pictures(task.base.decode(task.base.encode_image(task.loader.picture(pair))))[0])
        for pair in (task.pairs[position] for position in task.held_out)
    ]
    assert bounds.ceiling == pytest.approx(np.mean([score.value for score in true if score is not None]))
    assert 0 <= bounds.floor <= 1
    assert f"floor {bounds.floor:.3f}" in (tmp_path / "run" / "weights" / "README.md").read_text()
    sheets = sorted((tmp_path / "run" / "grids").iterdir())
    assert [path.name for path in sheets] == ["step-00000002.png", "step-00000004.png"]
    assert decode(sheets[0]).shape[1] > 3 * 192
    best = load_file(tmp_path / "run" / "best_fidelity" / "diffusion_pytorch_model.safetensors")
    assert best.keys() == ControlNetModel.from_pretrained(tmp_path / "run" / "weights").state_dict().keys()
    assert not list((tmp_path / "run" / "monitor").glob("step-*"))  # nets that were drawn with do not stay


def test_convergence_is_said_once_and_its_weights_kept(settings: Any, tmp_path: Path) -> None:
    given = settings(every=1)
    task = build_task(given, PartialState(cpu=True))
    engine = Engine(Place(torch.device("cpu"), torch.float32))
    monitor = Monitor(task, given.monitor, tmp_path / "run", Renderer(engine, given.base))
    said: list[str] = []
    run = Run(0, task, given.train, Average(dict(task.net.named_parameters()), 0.0), main=True, say=said.append)
    kept, before = [], list[Measured]()
    for step, own in enumerate((0.0001, 0.0034, 0.0035, 0.0036, 0.02, 0.03, 0.2), start=1):
        run.step = step
        torch.nn.init.constant_(task.net.controlnet_mid_block.bias, step)
        found = Measured(step, 0.03, 0.001, own, error_shuffled=0.0001)
        monitor._note(run, before, found)
        before.append(found)
        file = tmp_path / "run" / "first_converged" / "diffusion_pytorch_model.safetensors"
        kept.append(int(load_file(file)["controlnet_mid_block.bias"][0]) if file.exists() else 0)
    # heard at step 2, though nothing obeys it yet; what is kept in the end is of the sudden convergence
    assert kept == [0, 2, 2, 2, 5, 5, 5]
    assert [line.split(": ")[1].partition(" at step")[0] for line in said] == ["the condition is heard", "sudden convergence"]
    assert "for 5 steps" in (tmp_path / "run" / "first_converged" / "README.md").read_text()


def test_a_net_that_only_learns_what_pictures_look_like_is_not_heard() -> None:
    """Figures of the first lesson, where nothing that was drawn obeyed before step 200, though the gap was three errors wide at step 25."""
    rows = [(25, 0.0309, 0.0103, -1e-6), (100, 0.0580, 0.0126, 3e-7), (150, 0.0571, 0.0123, 3.7e-6), (175, 0.0614, 0.0138, 0.00064)]
    before = [Measured(step, gap, error, own, error_shuffled=1e-7) for step, gap, error, own in rows]
    assert not any(row.heard for row in before)
    after = Measured(200, 0.0996, 0.0141, 0.0775, error_shuffled=0.01)
    assert after.heard
    assert _jumps([*before, after])
    assert not _jumps(before)


def test_what_is_measured_are_the_weights_that_are_kept(base: Path, dataset: Path, tmp_path: Path) -> None:
    """The averaged ones: with a slow average the gap of the live weights would say nothing of `first_converged`."""
    given = config(base, dataset, tmp_path / "run", monitor={"every": 2, "samples": 4, "tensorboard": False}, train={"ema_decay": 0.9})
    run = train_controlnet(given)
    last = json.loads((tmp_path / "run" / "monitor.jsonl").read_text().splitlines()[-1])
    assert isinstance(run.task, ControlNetTask)
    live = measure(run.task).residuals
    averaged = measure(replace(run.task, net=run.task.finished(run.weights()))).residuals
    assert last["residuals"] == pytest.approx(averaged, rel=1e-5)
    assert last["residuals"] != pytest.approx(live, rel=1e-2)


def test_a_kept_network_says_of_which_step_it_is_and_how_good(settings: Any, tmp_path: Path) -> None:
    train_controlnet(settings(every=2, fidelity_every=2, steps=2))
    rows = [json.loads(line) for line in (tmp_path / "run" / "monitor.jsonl").read_text().splitlines()]
    best = max(rows, key=lambda row: (row["fidelity"], -row["step"]))
    card = (tmp_path / "run" / "best_fidelity" / "README.md").read_text()
    assert f"for {best['step']} steps" in card
    assert f"| {best['step']} | {best['gap']:.5f} |" in card
    sheet = tmp_path / "run" / "grids" / f"step-{best['step']:08d}.png"
    assert (tmp_path / "run" / "best_fidelity" / "samples.png").read_bytes() == sheet.read_bytes()


def test_every_sample_is_measured_against_the_condition_of_another(settings: Any) -> None:
    """Also the last of nine, which is left over where they are measured in eights."""
    task = build_task(settings(), PartialState(cpu=True))
    speaking(task.net)
    torch.nn.init.normal_(task.net.controlnet_cond_embedding.conv_out.weight, std=10.0)  # so that it matters much which condition it is
    pair, nine, alone = (measure(replace(task, held_out=rows)) for rows in ([0, 1], [0] * 8 + [1], [0]))
    assert pair.gap_shuffled is not None
    assert abs(pair.gap_shuffled) > 1e-5
    assert nine.gap_shuffled == pytest.approx(2 / 9 * pair.gap_shuffled, rel=0.02)  # in rounding; seven are told what they are anyway
    assert alone.gap_shuffled is None
    assert not alone.heard
    assert np.isfinite(alone.error)


def test_samples_are_drawn_where_only_that_is_asked_for(settings: Any, tmp_path: Path) -> None:
    train_controlnet(settings(every=0, fidelity_every=4, steps=1))
    assert [path.name for path in (tmp_path / "run" / "grids").iterdir()] == ["step-00000004.png"]
    with pytest.raises(ValueError, match="fidelity_every 4 draws samples, and samples is 0: give 2 or more"):
        settings(samples=0, fidelity_every=4)


def test_other_processes_wait_as_long_as_the_samples_are_drawn(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default NCCL gives up after ten minutes, which sixteen pictures of FLUX, drawn twice for the floor, can take."""
    asked: dict[str, Any] = {}

    def state(**values: Any) -> None:
        asked.update(values)
        raise InterruptedError

    monkeypatch.setattr(training.run, "PartialState", state)
    with pytest.raises(InterruptedError):
        train_controlnet(settings())
    assert asked["timeout"] >= timedelta(hours=12)


def test_samples_are_held_out_of_large_sets_only(base: Path, dataset: Path, tmp_path: Path) -> None:
    small = build_task(config(base, dataset, tmp_path, monitor={"samples": 4}), PartialState(cpu=True))
    assert (len(small), len(small.held_out)) == (10, 4)
    both_ways = build_task(config(base, dataset, tmp_path, data={"flip": True}, monitor={"samples": 2}), PartialState(cpu=True))
    assert both_ways.held_out == [0, 5]
    assert len(both_ways) == 20  # 2 in 20 are a tenth
    both_ways.holds_out = True
    both_ways.__post_init__()
    assert len(both_ways) == 16  # neither half of a held-out pair is learned from
    assert not {both_ways.pairs[i].picture for i in both_ways.chosen} & {both_ways.pairs[i].picture for i in both_ways.held_out}
    assert held_out(small.pairs, 3) == [0, 3, 6]
