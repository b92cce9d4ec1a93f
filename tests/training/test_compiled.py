"""Compiled blocks are used where every gradient is the same, and only there."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.training.test_controlnet import config, task_of
from tests.training.toytask import ToyTask
from training.compiled import LIMITS, Backend, Regions, batches_of_each_size, compile_proven
from training.config import TrainConfig
from training.randomness import Draws
from training.trainer import _Whole, train

LIMIT = LIMITS[torch.float32]
CPU = torch.device("cpu")


def right(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
    """A compiler that changes nothing."""
    return graph


def wrong(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
    """A compiler as torch 2.13's is in some shapes: what goes forward is exact, what goes back is zero."""

    def run(*args: Any) -> Any:
        out: tuple[Tensor, ...] = graph(*args)
        for one in out:
            if one.requires_grad:
                one.register_hook(torch.zeros_like)  # type: ignore[no-untyped-call]
        return out

    return run


def broken(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
    raise RuntimeError("no such instruction")


class ToyTransformerBlock(nn.Module):
    """Between encoder and head."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.nn.functional.silu(self.layer(x))


class Blocks(ToyTask):
    """With two repeated blocks, and a last layer that is zero as a ControlNet's is; samples of three sizes."""

    def __init__(self) -> None:
        super().__init__(dropout=0.0)
        torch._dynamo.reset()
        self.encoder = nn.Sequential(*self.encoder, ToyTransformerBlock(), ToyTransformerBlock())
        nn.init.zeros_(self.head.weight)

    def buckets(self) -> list[int]:
        return [0, 1, 1, 0, 2, 1, 1, 1, 0, 0]


def proof(task: Any, backend: Backend) -> tuple[str | None, Regions]:
    frozen = task.frozen() if hasattr(task, "frozen") else {}
    for network in frozen.values():
        network.requires_grad_(False)
    regions = Regions([*task.modules().values(), *frozen.values()])
    return compile_proven(_Whole(task, None), regions, batches_of_each_size(task, 2, 0, CPU), limit=LIMIT, backend=backend), regions


def loss(task: Any) -> Tensor:
    found: Tensor = task.loss(task.batch([0, 3]), Draws(0, range(2)))[0]
    return found


@pytest.mark.parametrize("backend", [right, "aot_eager"])
def test_a_right_compiler_is_used_with_gradients_alone(backend: Backend) -> None:
    task = Blocks()
    before = loss(task)
    problem, regions = proof(task, backend)
    assert problem is None
    assert len(regions.blocks) == 2
    assert not task.head.weight.any()  # it spoke for the proof alone
    torch.testing.assert_close(loss(task), before)
    compiled = torch._dynamo.utils.counters["frames"]["ok"]
    assert compiled > 0
    with torch.no_grad():
        task.encoder(torch.randn(5, 3))
    assert torch._dynamo.utils.counters["frames"]["ok"] == compiled


@pytest.mark.parametrize(
    ("backend", "message"),
    [(wrong, "the gradient of encoder.0.weight differs by 8.7e-01 of its size (at most 0.001)"), (broken, "no such instruction")],
)
def test_a_wrong_compiler_is_caught_and_undone(backend: Backend, message: str) -> None:
    task = Blocks()
    before = loss(task)
    problem, regions = proof(task, backend)
    assert problem is not None
    assert message in problem
    assert not any("forward" in vars(block) for block in regions.blocks)
    assert torch.equal(loss(task), before)


def test_the_blocks_of_a_base_and_its_controlnet(base: Path, dataset: Path, tmp_path: Path) -> None:
    task = task_of(config(base, dataset, tmp_path))
    problem, regions = proof(task, right)
    assert problem is None
    kinds = {type(block).__name__ for block in regions.blocks}
    assert kinds == {"BasicTransformerBlock", "ResnetBlock2D"}
    for network in (task.net, task.steering.denoiser):
        assert any(block in regions.blocks for block in network.modules())


def test_a_batch_of_every_size_is_compared() -> None:
    task = Blocks()
    found = [given()[0]["x"] for given in batches_of_each_size(task, 3, 0, CPU)]
    for batch, indices in zip(found, ([0, 3, 8], [1, 2, 5], [4, 4, 4]), strict=True):
        assert torch.equal(batch, task.x[indices])


def test_a_run_says_what_came_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    unequal, equal = "nothing is compiled: the gradient of encoder.0.weight differs", "2 blocks are compiled; every gradient"
    for backend, said in ((wrong, unequal), (right, equal)):
        monkeypatch.setattr("training.trainer.compile_proven", functools.partial(compile_proven, backend=backend))
        train(Blocks(), TrainConfig(out=tmp_path / backend.__name__, steps=1, batch_size=4, compile=True, device="cpu"))
        assert said in capsys.readouterr().out
