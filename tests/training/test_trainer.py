"""The loop against one written by hand, and what it does when things go wrong."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from core.errors import BadImage, BadRequest, LimnError, OutOfMemory
from tests.training.toytask import ToyTask, weights
from training import checkpoint as checkpoints
from training.config import TrainConfig
from training.randomness import Draws, Order
from training.trainer import Run, train


def config(out: Path, **changes: Any) -> TrainConfig:
    return TrainConfig.model_validate({"out": out, "steps": 6, "batch_size": 4, "learning_rate": 0.01, "device": "cpu", **changes})


def test_the_loop_is_the_textbooks(tmp_path: Path) -> None:
    settings = config(tmp_path, steps=20, warmup=5, schedule="cosine", clip=0.05, weight_decay=0.1, ema_decay=0.9, seed=3)
    train(ToyTask(dropout=0.0), settings)

    task = ToyTask(dropout=0.0)
    named = {f"{part}.{name}": p for part, module in task.modules().items() for name, p in module.named_parameters()}
    weight_names = [name for name in named if name.endswith("weight")]
    groups = [
        {"params": [named[name] for name in weight_names], "weight_decay": 0.1},
        {"params": [named[name] for name in named if name not in weight_names], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.999), fused=False)
    warmup = torch.optim.lr_scheduler.LinearLR(adamw, 1 / 5, 1, 4)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adamw, 15)
    schedule = torch.optim.lr_scheduler.SequentialLR(adamw, [warmup, cosine], [5])
    averaged = torch.optim.swa_utils.AveragedModel(
        nn.ModuleDict(task.modules()), avg_fn=lambda mean, live, n: torch.lerp(live, mean, min(0.9, (1 + n) / (10 + n)))
    )
    averaged.n_averaged += 1  # it would take the first weights as they are; ours starts from the untrained ones
    order = Order(len(task), 3)
    for step in range(20):
        counters = range(4 * step, 4 * step + 4)
        loss, _ = task.loss(task.batch(order.indices(counters)), Draws(3, counters))
        adamw.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(list(named.values()), 0.05)
        adamw.step()
        schedule.step()
        averaged.update_parameters(nn.ModuleDict(task.modules()))
    wanted = {name.removeprefix("module."): p for name, p in averaged.named_parameters()}
    for name, tensor in weights(tmp_path).items():
        # fused and plain AdamW and two ways to write an average differ in rounding: ulps of weights near 1, 20 times
        torch.testing.assert_close(tensor, wanted[name].detach(), rtol=0, atol=5e-6)


def test_micro_batches_change_nothing_but_rounding(tmp_path: Path) -> None:
    for accumulation in (1, 2, 4):
        train(ToyTask(dropout=0.0), config(tmp_path / str(accumulation), accumulation=accumulation))
    whole = weights(tmp_path / "1")
    for accumulation in ("2", "4"):
        for name, tensor in weights(tmp_path / accumulation).items():
            torch.testing.assert_close(tensor, whole[name], rtol=0, atol=2e-6)


def test_a_gradient_that_is_not_finite_stops_the_run_at_its_step(tmp_path: Path) -> None:
    # batches of 4: counter 21 is in step 6
    with pytest.raises(LimnError, match=r"norm is nan at step 6; the last good checkpoint is of step 4: lower learning_rate \(now 0.01\)"):
        train(ToyTask(nan_at=21), config(tmp_path, steps=10, checkpoint_every=2))
    assert checkpoints.steps(tmp_path / "checkpoints") == [2, 4]
    saved = checkpoints.load(tmp_path / "checkpoints", 4)
    assert all(tensor.isfinite().all() for part in (saved.model, saved.average, saved.optimiser) for tensor in part.values())
    assert not (tmp_path / "weights").exists()
    with pytest.raises(LimnError, match="no checkpoint was made yet"):
        train(ToyTask(nan_at=2), config(tmp_path / "early"))


def test_rates_follow_the_name_of_the_parameter(tmp_path: Path) -> None:
    task, fresh = ToyTask(), ToyTask()
    train(task, config(tmp_path, ema_decay=0, learning_rate_factors={"encoder": 0.0, "encoder.0.bias": 1.0}))
    assert torch.equal(task.encoder[0].weight, fresh.encoder[0].weight)
    assert not torch.equal(task.encoder[0].bias, fresh.encoder[0].bias)
    assert not torch.equal(task.head.weight, fresh.head.weight)
    with pytest.raises(BadRequest, match=r"'tail' fits no trainable parameter: names start with encoder\.0, head"):
        train(ToyTask(), config(tmp_path / "other", learning_rate_factors={"tail": 1.0}))


class FrozenTask(ToyTask):
    """The head reads features of a frozen module; part of the encoder is frozen too."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.9))
        self.encoder[0].bias.requires_grad_(False)

    def frozen(self) -> dict[str, nn.Module]:
        return {"features": self.features}

    def loss(self, batch: Any, draws: Draws) -> tuple[Tensor, dict[str, float | Tensor]]:
        assert not self.features.training
        assert self.encoder.training
        return super().loss({"x": self.features(batch["x"]), "y": batch["y"]}, draws)


def test_frozen_parts_stay_as_they_are(tmp_path: Path) -> None:
    task = FrozenTask()
    before = {name: p.clone() for name, p in {**dict(task.features.named_parameters()), "bias": task.encoder[0].bias}.items()}
    train(task, config(tmp_path))
    for name, parameter in {**dict(task.features.named_parameters()), "bias": task.encoder[0].bias}.items():
        assert torch.equal(parameter, before[name])
    saved = checkpoints.load(tmp_path / "checkpoints", 6)
    assert "encoder.0.bias" in saved.model
    assert "encoder.0.bias" not in saved.average
    assert not any(name.startswith("features") for name in saved.model)
    assert torch.equal(weights(tmp_path)["encoder.0.bias"], before["bias"])


class TiedTask(ToyTask):
    """Head and encoder share one bias."""

    def __init__(self) -> None:
        super().__init__(dropout=0.0)
        self.encoder = nn.Sequential(nn.Linear(3, 2), nn.Identity(), nn.Identity())
        self.head = nn.Linear(2, 2)
        self.head.bias = self.encoder[0].bias


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    train(TiedTask(), config(tmp_path, steps=3, ema_decay=0.5, checkpoint_every=3))
    found = weights(tmp_path)
    assert torch.equal(found["head.bias"], found["encoder.0.bias"])
    task = TiedTask()
    train(task, config(tmp_path, steps=3, resume="must"))
    assert torch.equal(task.head.bias, checkpoints.load(tmp_path / "checkpoints", 3).model["encoder.0.bias"])


def test_bf16_computes_in_bf16_and_learns_in_fp32(tmp_path: Path) -> None:
    seen = set()

    class Watching(ToyTask):
        def loss(self, batch: Any, draws: Draws) -> tuple[Tensor, dict[str, float | Tensor]]:
            seen.add(self.encoder(batch["x"]).dtype)
            return super().loss(batch, draws)

    task = Watching()
    train(task, config(tmp_path, precision="bf16"))
    assert seen == {torch.bfloat16}
    assert {p.dtype for p in task.encoder.parameters()} == {torch.float32}
    train(task, config(tmp_path / "fp32"))  # another precision in the same process
    assert seen == {torch.bfloat16, torch.float32}


def test_fp16_learns_with_a_scaled_loss_and_goes_on_exactly(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"precision": "fp16", "steps": 30, "checkpoint_every": 10, "log_every": 10}
    losses: list[float] = []
    train(ToyTask(), config(tmp_path / "fp16", **settings), lambda run: losses.append(run.metrics.get("loss", 0.0)))
    plain: list[float] = []
    train(
        ToyTask(), config(tmp_path / "fp32", **(settings | {"precision": "fp32"})), lambda run: plain.append(run.metrics.get("loss", 0.0))
    )
    assert losses[-1] == pytest.approx(plain[-1], rel=0.02)  # eleven bits of mantissa, and two steps left out while the scale falls
    scaling = checkpoints.load(tmp_path / "fp16" / "checkpoints", 30).state["scaler"]
    assert scaling["scale"] >= 1024

    class PowerCut(Exception):
        pass

    def cut(run: Run) -> None:
        if run.step == 15:
            raise PowerCut

    with pytest.raises(PowerCut):
        train(ToyTask(), config(tmp_path / "cut", **settings), cut)
    train(ToyTask(), config(tmp_path / "cut", **settings, resume="must"))
    assert all(torch.equal(weights(tmp_path / "cut")[name], tensor) for name, tensor in weights(tmp_path / "fp16").items())
    assert checkpoints.load(tmp_path / "cut" / "checkpoints", 30).state["scaler"] == scaling


def test_an_fp16_step_that_overflows_is_left_out_and_one_that_always_does_stops(tmp_path: Path) -> None:
    class Loud(ToyTask):
        last = 8

        def loss(self, batch: Any, draws: Draws) -> tuple[Tensor, dict[str, float | Tensor]]:
            loss, metrics = super().loss(batch, draws)
            return loss * (float("inf") if max(draws.counters) >= 8 and min(draws.counters) <= self.last else 1.0), metrics

    found: list[Tensor] = []
    settings: dict[str, Any] = {"precision": "fp16", "steps": 30, "ema_decay": 0}
    train(Loud(), config(tmp_path / "loud", **settings), lambda run: found.append(run.weights()["head"]["weight"].clone()))
    assert torch.equal(found[2], found[1])  # counter 8 is in the third step
    assert not torch.equal(found[3], found[2])
    never = Loud()
    never.last = 10**6
    with pytest.raises(LimnError, match=r"norm is (nan|inf) at step 1[4-9]"):  # 65,536 is halved to 1 first
        train(never, config(tmp_path / "never", **settings))


def test_without_an_average_the_weights_themselves_are_exported(tmp_path: Path) -> None:
    task = ToyTask()
    train(task, config(tmp_path, ema_decay=0))
    assert torch.equal(weights(tmp_path)["head.weight"], task.head.weight)


def test_callbacks_see_every_step_and_the_averaged_weights(tmp_path: Path) -> None:
    seen: list[tuple[int, Tensor]] = []

    def look(run: Run) -> None:
        seen.append((run.step, run.weights()["head"]["weight"].clone()))

    run = train(ToyTask(), config(tmp_path, ema_decay=0.9), look)
    assert [step for step, _ in seen] == [1, 2, 3, 4, 5, 6]
    assert torch.equal(seen[-1][1], weights(tmp_path)["head.weight"])
    assert not torch.equal(seen[-1][1], seen[0][1])
    assert run.step == 6


def test_the_log_holds_means_since_the_last_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    singly, together = tmp_path / "1", tmp_path / "3"
    train(ToyTask(), config(singly, log_every=1))
    train(ToyTask(), config(together, log_every=3))
    rows = [json.loads(line) for line in (singly / "log.jsonl").read_text().splitlines()]
    means = [json.loads(line) for line in (together / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in means] == [3, 6]
    for mean, part in zip(means, (rows[:3], rows[3:]), strict=True):
        for name in ("loss", "kept"):
            assert mean[name] == pytest.approx(sum(row[name] for row in part) / 3, rel=1e-4)  # the log keeps six digits
        assert mean["samples_per_s"] > 0
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 8
    assert said[0].startswith("toy step 1/6 loss ")


def test_a_finished_run_is_exported_again_without_training(tmp_path: Path) -> None:
    train(ToyTask(), config(tmp_path))
    first = weights(tmp_path)
    (tmp_path / "weights" / "toy.safetensors").unlink()
    calls: list[int] = []
    train(ToyTask(), config(tmp_path), lambda run: calls.append(run.step))
    assert not calls
    assert all(torch.equal(tensor, first[name]) for name, tensor in weights(tmp_path).items())


def test_it_runs_outside_the_main_thread(tmp_path: Path) -> None:
    thread = threading.Thread(target=train, args=(ToyTask(), config(tmp_path)))
    thread.start()
    thread.join()
    assert (tmp_path / "weights" / "toy.safetensors").exists()


def test_memory_that_runs_out_is_answered_with_settings_that_fit(tmp_path: Path) -> None:
    class Hungry(ToyTask):
        def loss(self, batch: Any, draws: Any) -> Any:
            if len(draws) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().loss(batch, draws)

    settings: dict[str, Any] = {"out": tmp_path, "steps": 2, "batch_size": 8, "device": "cpu"}
    with pytest.raises(OutOfMemory, match=r"micro-batches of 8: set train\.accumulation=2"):
        train(Hungry(), TrainConfig(**settings))
    with pytest.raises(OutOfMemory, match=r"micro-batches of 4: set train\.accumulation=4"):
        train(Hungry(), TrainConfig(**settings, accumulation=2))
    assert train(Hungry(), TrainConfig(**settings, accumulation=4)).step == 2


def test_an_allocator_of_the_cpu_that_gives_up_is_no_traceback(tmp_path: Path) -> None:
    class Hungry(ToyTask):
        def loss(self, batch: Any, draws: Any) -> Any:
            torch.empty(2**50)

    with pytest.raises(OutOfMemory, match=r"cpu has too little memory for micro-batches of 4: set train\.accumulation=2"):
        train(Hungry(), config(tmp_path))


@pytest.mark.parametrize("workers", [0, 1])
def test_what_a_sample_lacks_is_said_in_one_line(tmp_path: Path, workers: int) -> None:
    class Damaged(ToyTask):
        def batch(self, indices: list[int]) -> Any:
            raise BadImage("'7.png' is cut off: restore it")

    with pytest.raises(BadImage, match=r"^'7\.png' is cut off: restore it$"):
        train(Damaged(), config(tmp_path, workers=workers))


def test_what_accelerate_was_told_elsewhere_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`accelerate config` speaks through the environment."""

    def unproven(*args: object, **options: object) -> None:
        raise AssertionError

    train(ToyTask(dropout=0.0), config(tmp_path / "plain", clip=1000.0))
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "inductor")
    monkeypatch.setattr(torch, "compile", unproven)
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "3")
    train(ToyTask(dropout=0.0), config(tmp_path / "told", clip=1000.0))
    plain, told = (checkpoints.load(tmp_path / name / "checkpoints", 6) for name in ("plain", "told"))
    for part in ("model", "optimiser"):
        for name, tensor in getattr(plain, part).items():
            assert torch.equal(getattr(told, part)[name], tensor), name
