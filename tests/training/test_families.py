"""Every family: a new ControlNet is silent, learns from the outside in, and hears in training what rendering lets it hear."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import PartialState
from torch import Tensor

from core.errors import BadRequest
from core.images import decode, encode_png
from pipelines.checkpoint import Folder
from pipelines.engine import Engine
from pipelines.family import Drawing, Family, Hint, Place
from tests import tinymodels, tinymodels_flux, tinymodels_sd3, tinymodels_sdxl
from tests.training.test_formats import folders
from training.controlnet import ControlNetTask
from training.randomness import Draws
from training.run import ControlNetConfig, build_task, train_controlnet
from training.steering import steering, zero_layers
from training.texts import cached_texts

BASES: dict[str, Callable[[Path], Path]] = {
    "sd": tinymodels.build_base,
    "sdxl": tinymodels_sdxl.build_base,
    "sd3": tinymodels_sd3.build_base,
    "flux": tinymodels_flux.build_base,
}
PLACE = Place(torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module", params=BASES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return BASES[request.param](tmp_path_factory.mktemp("bases") / request.param)


@pytest.fixture(scope="module")
def task(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> ControlNetTask:
    return build_task(config(folder, tmp_path_factory.mktemp("task")), PartialState(cpu=True))


def config(base: Path, home: Path, **train: Any) -> ControlNetConfig:
    """Three pairs of noise with noise as condition."""
    return ControlNetConfig.model_validate(
        {
            "base": str(base),
            "hint_channels": [4, 4, 8, 8],
            "caption_dropout": 0.0,
            "data": {"folder": folders(home / "data"), "condition": "hint", "width": 64, "height": 64},
            "train": {"out": home / "run", "steps": 3, "batch_size": 2, "learning_rate": 1e-3, "device": "cpu", "ema_decay": 0.0, **train},
        }
    )


def speaking(net: Any) -> Any:
    """The network with zero layers that are no longer zero."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for layer in zero_layers(net).values():
            for parameter in layer.parameters():
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return net


def test_gradient_arrives_in_three_steps(task: ControlNetTask) -> None:
    net = task.steering.new().train()
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-3)
    task = replace(task, net=net)
    batch = task.batch([0, 1])
    for module in task.frozen().values():
        module.requires_grad_(False)
    names = {name for name, _ in net.named_parameters()}
    zero = {name for name in names if name.startswith(tuple(zero_layers(net)))}
    outer = {name for name in zero if not name.startswith(("controlnet_cond_embedding", "pos_embed_input", "controlnet_x_embedder"))}
    inner_hint = {name for name in names if name.startswith("controlnet_cond_embedding") and name not in zero}

    def step() -> set[str]:
        optimiser.zero_grad()
        loss, _ = task.loss(batch, Draws(0, [3, 4]))
        loss.backward()  # type: ignore[no-untyped-call]
        learning = {name for name, p in net.named_parameters() if p.grad is not None and p.grad.any()}
        optimiser.step()
        return learning

    assert step() == outer
    # what is left over never learns: the last copied block's text goes nowhere, and SD3's places stay
    unused = names - (second := step()) - inner_hint
    assert zero <= second
    assert len(unused) < 0.2 * len(names), sorted(unused)
    third = step()
    assert third == names - unused
    assert inner_hint <= third


def test_a_new_controlnet_says_nothing(task: ControlNetTask) -> None:
    batch = task.batch([0, 2])
    text = task.texts.dropped(batch, 0.0, Draws(0, [0, 1]))
    x = Draws(1, [0, 1]).normal(task.base.latent_shape(64, 64))
    t = torch.tensor([10.0, 700.0])
    with torch.no_grad():
        residuals = task.steering.residuals(task.steering.new().eval(), x, t, text, batch["condition"])
        assert all(not tensor.any() for tensors in residuals.values() for tensor in tensors)
        assert torch.equal(task.base.predict(x, t, text, residuals), task.base.predict(x, t, text, None))


def test_what_was_trained_hears_the_same_when_it_renders(task: ControlNetTask, folder: Path, tmp_path: Path) -> None:
    """The tensors that the trainer feeds against the renderer's own path, from picture, prompt and map files to residuals."""
    net = speaking(task.steering.new()).eval()
    net.save_pretrained(tmp_path / "net")
    base: Family = Engine(PLACE).base(folder)
    loaded = base.load_control(Folder(tmp_path / "net"))
    pair = task.pairs[1]
    assert isinstance(pair.picture, Path)
    batch = task.batch([1])
    latents, height = task.base.latent_shape(64, 64), 64
    drawing = Drawing(64, height, 3.5)
    text = base.bind(base.encode_prompt(pair.caption), drawing)
    trained = task.texts.dropped(batch, 0.0, Draws(0, [0]))
    assert torch.equal(trained.tokens_BLD, text.tokens_BLD)
    if text.pooled_BD is not None:
        assert trained.pooled_BD is not None
        assert torch.equal(trained.pooled_BD, text.pooled_BD)
    if base.name == "sdxl":  # 72x64 on the disk, cropped by 4 pixels left and right: rendering has no such past
        assert trained.extra["time_ids"].tolist() == [[64.0, 72.0, 0.0, 4.0, 64.0, 64.0]]
        text.extra["time_ids"].copy_(trained.extra["time_ids"])
    x, t = Draws(1, [0]).normal(latents), torch.tensor([500.0])
    map_HWC = task.loader.condition(pair)
    with torch.inference_mode():
        wanted = base.prepare(loaded, Hint(map_HWC, "hint")).residuals(x, t[0], text)
        found = task.steering.residuals(net, x, t, trained, batch["condition"])
    assert found.keys() == wanted.keys()
    for place, tensors in wanted.items():
        for one, other in zip(found[place], tensors, strict=True):
            # a map's latents are cached from a batch of another size: some ulps of values near 1
            torch.testing.assert_close(one, other, rtol=0, atol=2e-5)
    mean = task.base.encode_image(task.loader.picture(pair))
    channels = mean.shape[1]
    scaled = (batch["moments"][:, :channels] - task.shift) * task.scale
    torch.testing.assert_close(scaled, mean, rtol=0, atol=2e-5)
    assert decode(pair.picture).shape == (64, 72, 3)


def test_a_run_learns_and_ends_in_what_rendering_loads(folder: Path, tmp_path: Path) -> None:
    run = train_controlnet(config(folder, tmp_path))
    weights = tmp_path / "run" / "weights"
    base = Engine(PLACE).base(folder)
    loaded = base.load_control(Folder(weights))
    assert sum(p.abs().sum() for layer in zero_layers(run.task.modules()["controlnet"]).values() for p in layer.parameters()) > 0
    prepared = base.prepare(loaded, Hint(np.full((64, 64, 3), 99, np.uint8), "hint"))
    text = base.bind(base.encode_prompt("x"), Drawing(64, 64, 3.5))
    with torch.inference_mode():
        residuals = prepared.residuals(torch.ones(1, *base.latent_shape(64, 64)), torch.tensor(100.0), text)
    values: list[Tensor] = [tensor for tensors in residuals.values() for tensor in tensors]
    assert any(tensor.any() for tensor in values)
    assert json.loads((weights / "config.json").read_text())["_class_name"] == type(run.task.modules()["controlnet"]).__name__


def test_flow_times_are_shifted_by_the_size_of_the_pictures(task: ControlNetTask) -> None:
    shifts = []
    for side in (8, 16):
        objective = task.objective_at(torch.zeros(1, 4, side, 2 * side))
        assert objective.shift == task.base.shift(16 * side, 8 * side).factor
        shifts.append(objective.shift)
    assert (shifts[0] < shifts[1]) == (task.base.name == "flux")  # the others' shift is one for all sizes


def test_long_captions_end_with_each_encoder_s_window(folder: Path, tmp_path: Path) -> None:
    """As diffusers cuts them: what CLIP has beyond its first window takes nothing from T5."""
    base = Engine(PLACE).base(folder)
    PartialState(cpu=True)
    long = "a red sphere left of a blue cube on grass at sunset " * 20
    found = cached_texts(tmp_path, [long, "a red sphere"], base, Drawing(64, 64, 3.5), {})
    for name, rows in found.rows.items():
        wanted = getattr(base.encode_prompt("a red sphere"), name)
        assert torch.equal(rows[[1]], wanted)
        assert rows[[0]].shape == wanted.shape
    tokens, whole = found.rows["tokens_BLD"][[0]], base.encode_prompt(long).tokens_BLD
    filler = base.encode_prompt("").filler
    window = tokens.shape[1] if filler is None else filler().shape[1]
    assert torch.equal(tokens[:, :window], whole[:, :window])
    rest = tokens.shape[1] - window
    assert (rest > 0) == (base.name == "sd3")
    assert torch.equal(tokens[:, window:], whole[:, whole.shape[1] - rest :])


def test_blocks_that_are_not_there_are_refused(folder: Path) -> None:
    base = Engine(PLACE).base(folder)
    with pytest.raises(BadRequest, match="blocks"):
        steering(base, (4, 4, 8, 8), (9, 9)).new()


def test_a_base_in_half_the_bits_trains_too(folder: Path, tmp_path: Path) -> None:
    given = config(folder, tmp_path, precision="bf16", steps=2)
    if folder.name != "sd3":
        with pytest.raises(BadRequest, match=r"set train\.precision=bf16"):
            train_controlnet(given.model_copy(update={"base_weights": "bf16", "train": config_train(given, "fp32")}))
        return
    run = train_controlnet(given.model_copy(update={"base_weights": "bf16"}))
    net = run.task.modules()["controlnet"]
    assert {parameter.dtype for parameter in net.parameters()} == {torch.float32}
    assert any(parameter.any() for layer in zero_layers(net).values() for parameter in layer.parameters())


def config_train(given: ControlNetConfig, precision: str) -> Any:
    return given.train.model_copy(update={"precision": precision})


def test_pictures_of_other_proportions_and_resolutions_train_in_their_own_sizes(folder: Path, tmp_path: Path) -> None:
    given = config(folder, tmp_path, batch_size=1, steps=4)
    for number, (width, height) in enumerate([(96, 150), (150, 96), (70, 70)]):
        for part in ("images", "hint"):
            picture_HWC = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
            (tmp_path / "data" / part / f"{number}.png").write_bytes(encode_png(picture_HWC))
    data = given.data.model_copy(update={"width": 96, "height": 96, "buckets": 7, "scales": (0.75, 1.0)})
    run = train_controlnet(given.model_copy(update={"data": data}))
    assert run.step == 4
    assert isinstance(run.task, ControlNetTask)
    sizes = [run.task.loader.size(pair) for pair in run.task.pairs]
    assert len(set(sizes)) == 3
    for width, height in sizes:
        run.task.base.latent_shape(width, height)  # which refuses what the model cannot draw
