"""A whole run from YAML to a folder: it feeds what rendering feeds, caches what the base says, learns, and resumes exactly."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from accelerate import PartialState
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor

from controls.prepare import load_map
from core.errors import BadModel, BadRequest, Mismatch
from core.images import decode, encode_png
from core.request import ControlUnit, RenderRequest
from pipelines.checkpoint import Folder
from pipelines.engine import Engine
from pipelines.families.sd import StableDiffusion
from pipelines.family import Place
from pipelines.images import condition_to_tensor
from renderer import examine
from tests.tinymodels import CAPTIONS, build_base, build_controlnet
from training import checkpoint as checkpoints
from training.buckets import BucketOrder
from training.controlnet import ControlNetTask
from training.randomness import Draws
from training.run import ControlNetConfig, build_task, main, read_config, train_controlnet

SETTINGS: dict[str, Any] = {
    "hint_channels": [4, 4, 8, 8],
    "data": {"condition": "canny", "width": 64, "height": 64},
    "train": {"steps": 4, "batch_size": 4, "learning_rate": 1e-3, "device": "cpu", "checkpoint_every": 2, "log_every": 2, "ema_decay": 0.5},
}


def config(base: Path, dataset: Path, out: Path, **changes: Any) -> ControlNetConfig:
    """SETTINGS with these changes; `train` and `data` are merged."""
    values = {
        **SETTINGS,
        **changes,
        "base": str(base),
        "data": {**SETTINGS["data"], "folder": dataset, **changes.get("data", {})},
        "train": {**SETTINGS["train"], "out": out, **changes.get("train", {})},
    }
    return ControlNetConfig.model_validate(values)


def task_of(settings: ControlNetConfig) -> ControlNetTask:
    return build_task(settings, PartialState(cpu=True))


def test_training_feeds_what_rendering_feeds(base: Path, dataset: Path, tmp_path: Path) -> None:
    task = task_of(config(base, dataset, tmp_path))
    model = StableDiffusion.load(Folder(base), Place(torch.device("cpu"), torch.float32))
    batch = task.batch([3, 8])
    for row, index in enumerate((3, 8)):
        unit = ControlUnit(kind="canny", image=dataset / "canny" / f"{index}.png", ready=True, resize="crop")
        assert torch.equal(batch["condition"][row], condition_to_tensor(load_map(unit, 64, 64).map_HWC))
        assert torch.equal(batch["tokens_BLD"][row], model.encode_prompt(CAPTIONS[index % 4]).tokens_BLD[0])
        picture_HWC = task.loader.picture(task.pairs[index])
        mean = batch["moments"][row, :4] * task.scale
        # encoded in a batch there, alone here: rounding of convolutions, some ulps of values near 1
        torch.testing.assert_close(mean, model.encode_image(picture_HWC)[0], rtol=0, atol=1e-5)
    assert torch.equal(task.texts.empty.tokens_BLD[0], model.encode_prompt("").tokens_BLD[0])
    assert batch["condition"].dtype == torch.float32
    assert set(batch["condition"].unique().tolist()) == {0.0, 1.0}


def test_statistics_of_each_channel_are_the_renderers(base: Path, dataset: Path, tmp_path: Path) -> None:
    """An autoencoder whose config gives mean and deviation of every channel, as some models' for SDXL do."""
    model = shutil.copytree(base, tmp_path / "base")
    file = model / "vae" / "config.json"
    means, deviations = [0.5, -1.0, 2.0, 0.0], [2.0, 0.5, 1.0, 4.0]
    file.write_text(json.dumps(json.loads(file.read_text()) | {"latents_mean": means, "latents_std": deviations}))
    settings = config(model, dataset, tmp_path / "run", reward={"weight": 1.0}, cache=tmp_path / "cache", data={"kind": "canny"})
    task = task_of(settings)
    moments_B8hw = task.batch([3])["moments"]
    certain_B8hw = torch.cat([moments_B8hw[:, :4], torch.full_like(moments_B8hw[:, :4], -30.0)], dim=1)  # no spread: the mean itself
    wanted_BCHW = Engine(Place(torch.device("cpu"), torch.float32)).base(model).encode_image(task.loader.picture(task.pairs[3]))
    found_BCHW = task.latents(certain_B8hw, Draws(0, [0]))
    # encoded in a batch there, alone here: rounding of convolutions, times 4 from the deviations
    torch.testing.assert_close(found_BCHW, wanted_BCHW, rtol=0, atol=4e-5)
    assert task.reward is not None
    back_BCHW = found_BCHW / task.reward.scale + task.reward.shift
    torch.testing.assert_close(back_BCHW, moments_B8hw[:, :4], rtol=0, atol=4e-5)


def test_a_second_training_in_the_same_folder_is_refused(base: Path, dataset: Path, tmp_path: Path) -> None:
    settings = config(base, dataset, tmp_path / "run")

    def again(run: object) -> None:
        with pytest.raises(BadRequest, match=rf"'{tmp_path}/run' is being trained in by process {os.getpid()} on .* since .*: wait for it"):
            train_controlnet(settings.model_copy(update={"caption_dropout": 0.0}))

    train_controlnet(settings, again)
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["caption_dropout"] == 0.5
    train_controlnet(settings)  # the lock went with the first


def test_the_loss_starts_at_the_bases_own(base: Path, dataset: Path, tmp_path: Path) -> None:
    task = task_of(config(base, dataset, tmp_path, caption_dropout=0.0))
    unet = UNet2DConditionModel.from_pretrained(base / "unet").eval()
    loss, _ = task.loss(task.batch([0, 1, 2]), Draws(0, range(3)))
    noise = Draws(0, range(3)).normal((4, 8, 8), name="noise")
    draws = Draws(0, range(3))
    posterior = draws.normal((4, 8, 8), name="posterior")
    moments = task.batch([0, 1, 2])["moments"]
    x0 = (moments[:, :4] + torch.exp(0.5 * moments[:, 4:]) * posterior) * task.scale
    t = (draws.uniform(name="timestep") * 1000).long()
    alpha, sigma = task.objective.path.alpha_sigma(t)
    x = alpha[:, None, None, None] * x0 + sigma[:, None, None, None] * noise
    with torch.no_grad():
        wanted = (unet(x, t, task.batch([0, 1, 2])["tokens_BLD"]).sample - noise).square().mean()
    assert float(loss.detach()) == pytest.approx(float(wanted), rel=1e-6)


def test_a_run_ends_in_a_folder_that_diffusers_and_we_load(base: Path, dataset: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in sorted(base.rglob("*")) if path.is_file()}
    settings = config(base, dataset, tmp_path / "run", weights="fp16")
    run = train_controlnet(settings)
    assert (run.step, run.task.name) == (4, "controlnet-canny")
    net = ControlNetModel.from_pretrained(tmp_path / "run" / "weights", torch_dtype=torch.float16)
    stored = load_file(tmp_path / "run" / "weights" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    assert any(conv.weight.any() for conv in net.controlnet_down_blocks)
    saved = checkpoints.load(tmp_path / "run" / "checkpoints", 4)
    averaged = saved.average["controlnet.controlnet_mid_block.weight"]
    assert torch.equal(net.controlnet_mid_block.weight, averaged.half())
    assert not torch.equal(averaged, saved.model["controlnet.controlnet_mid_block.weight"])
    StableDiffusion.load(Folder(base), Place(torch.device("cpu"), torch.float32)).load_control(Folder(tmp_path / "run" / "weights"))
    assert json.loads((tmp_path / "run" / "weights" / "config.json").read_text())["limn_kind"] == "canny"
    unit = ControlUnit(kind="depth", image=dataset / "canny" / "0.png", ready=True, model=str(tmp_path / "run" / "weights"))
    request = RenderRequest(model=str(base), width=64, height=64, controls=(unit,))
    findings = examine(request, Engine(Place(torch.device("cpu"), torch.float32)))
    assert any("says that it is for canny; give it a canny map" in finding.text for finding in findings if finding.error)
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text()) == settings.model_dump(mode="json")
    assert {path: path.read_bytes() for path in sorted(base.rglob("*")) if path.is_file()} == before


def test_a_run_cut_in_two_equals_one_run(base: Path, dataset: Path, tmp_path: Path) -> None:
    train_controlnet(config(base, dataset, tmp_path / "whole"))

    class PowerCut(Exception):
        pass

    def cut(run: Any) -> None:
        if run.step == 3:
            raise PowerCut

    with pytest.raises(PowerCut):
        train_controlnet(config(base, dataset, tmp_path / "cut"), cut)
    run = train_controlnet(config(base, dataset, tmp_path / "cut", train={"resume": "must"}))
    assert run.step == 4
    whole, again = (checkpoints.load(tmp_path / name / "checkpoints", 4) for name in ("whole", "cut"))
    for part in ("model", "average", "optimiser"):
        tensors: dict[str, Tensor] = getattr(whole, part)
        assert getattr(again, part).keys() == tensors.keys()
        assert all(torch.equal(getattr(again, part)[name], tensor) for name, tensor in tensors.items())


def test_the_loss_falls(base: Path, dataset: Path, tmp_path: Path) -> None:
    losses: list[float] = []
    train_controlnet(
        config(base, dataset, tmp_path, train={"steps": 24, "log_every": 8, "learning_rate": 1e-2}),
        lambda run: losses.append(run.metrics.get("loss", 0.0)),
    )
    assert losses[-1] < 0.7 * losses[7], losses


def test_training_goes_on_from_a_finished_controlnet(base: Path, dataset: Path, tmp_path: Path) -> None:
    start = build_controlnet(tmp_path / "start", base)
    task = task_of(config(base, dataset, tmp_path / "run", init=start))
    for name, tensor in ControlNetModel.from_pretrained(start).state_dict().items():
        assert torch.equal(task.net.state_dict()[name], tensor)
    assert all(parameter.requires_grad for parameter in task.net.parameters())
    union = tmp_path / "union"
    shutil.copytree(start, union)
    said = json.loads((union / "config.json").read_text())
    (union / "config.json").write_text(json.dumps(said | {"_class_name": "ControlNetUnionModel", "num_control_type": 6}))
    with pytest.raises(Mismatch, match="is a ControlNetUnionModel, these settings make a ControlNetModel"):
        task_of(config(base, dataset, tmp_path / "run", init=union))
    with pytest.raises(Mismatch, match="has conditioning_channels 3, these settings make 6"):
        task_of(config(base, dataset, tmp_path / "run", init=start, data={"condition": ["canny", "depth"], "extract": True}))
    with pytest.raises(BadModel, match="not a ControlNetModel"):
        task_of(config(base, dataset, tmp_path / "run", init=base / "unet"))
    other = build_controlnet(tmp_path / "other", build_base(tmp_path / "other_base", width=64))
    with pytest.raises(Mismatch, match="cross-attention width 64"):
        task_of(config(base, dataset, tmp_path / "run", init=other))


def test_mirrored_pairs_are_mirrored_in_all_they_have(base: Path, dataset: Path, tmp_path: Path) -> None:
    task = task_of(config(base, dataset, tmp_path, data={"flip": True}))
    assert len(task) == 20
    plain, mirrored = task.batch([2]), task.batch([12])
    assert torch.equal(mirrored["condition"], plain["condition"].flip(-1))
    assert torch.equal(mirrored["tokens_BLD"], plain["tokens_BLD"])
    vae = AutoencoderKL.from_pretrained(base / "vae")
    pixels = condition_to_tensor(task.loader.picture(task.pairs[2]))[None] * 2 - 1
    with torch.no_grad():
        wanted = vae.encode(pixels.flip(-1)).latent_dist.parameters
    torch.testing.assert_close(mirrored["moments"], wanted, rtol=0, atol=1e-5)


def test_config_overrides_and_mistakes(base: Path, dataset: Path, tmp_path: Path) -> None:
    file = tmp_path / "train.yaml"
    file.write_text(f"base: {base}\ndata: {{folder: {dataset}, condition: canny}}\ntrain: {{out: {tmp_path}, steps: 100}}\n")
    found = read_config(file, ["train.steps=7", "train.learning_rate=1e-4", "objective.min_snr_gamma=5", "hint_channels=[4, 4, 8, 8]"])
    assert (found.train.steps, found.train.learning_rate, found.objective.min_snr_gamma) == (7, 1e-4, 5.0)
    assert found.hint_channels == (4, 4, 8, 8)
    for override, message in {
        "train.step=7": "did you mean 'steps'",
        "train.steps=0": "greater than or equal to 1",
        "train.steps": "not key=value",
        "train.steps=[7": "is not YAML",
        "base.x=1": "'base' holds a value",
        "data.width=100": "multiple of 8",
    }.items():
        with pytest.raises(BadRequest, match=message):
            read_config(file, [override])
    with pytest.raises(BadRequest, match="cannot be read"):
        read_config(tmp_path / "none.yaml")
    file.write_text("a: [")
    with pytest.raises(BadRequest, match="is not YAML"):
        main(file)


def test_the_base_must_be_one(dataset: Path, tmp_path: Path, base: Path) -> None:
    with pytest.raises(BadModel):
        task_of(config(base / "unet", dataset, tmp_path))
    assert not tmp_path.joinpath("config.yaml").exists()


def test_pictures_that_are_not_square_train_in_batches_of_one_size(base: Path, dataset: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(dataset, folder, ignore=shutil.ignore_patterns("cache"))
    for index in range(0, 10, 2):
        for kind in ("images", "canny"):
            path = folder / kind / f"{index}.png"
            path.write_bytes(encode_png(np.ascontiguousarray(decode(path).transpose(1, 0, 2))))  # 72 wide, 96 high
    given = {"data": {"buckets": 5, "flip": True}, "condition_dropout": 0.5}
    task = task_of(config(base, folder, tmp_path / "a", **given))
    sizes = [task.loader.size(pair) for pair in task.pairs]
    assert {(width > height) for width, height in sizes} == {True, False}
    assert all(width * height == pytest.approx(64 * 64, rel=0.1) for width, height in sizes)
    assert len(set(task.buckets())) == 2
    order = BucketOrder(task.buckets(), 4, 0)
    for first in range(0, order.length, 4):
        batch = task.batch(order.indices(range(first, first + 4)))
        assert batch["condition"].shape[-2:] == tuple(8 * side for side in batch["moments"].shape[-2:])
    accumulating = {"train": {"accumulation": 2}, **given}
    train_controlnet(config(base, folder, tmp_path / "whole", **accumulating))

    class PowerCut(Exception):
        pass

    def cut(run: Any) -> None:
        if run.step == 3:
            raise PowerCut

    with pytest.raises(PowerCut):
        train_controlnet(config(base, folder, tmp_path / "cut", **accumulating), cut)
    train_controlnet(config(base, folder, tmp_path / "cut", train={"resume": "must", "accumulation": 2}, **given))
    one, other = (checkpoints.load(tmp_path / name / "checkpoints", 4).model for name in ("whole", "cut"))
    assert all(torch.equal(other[name], tensor) for name, tensor in one.items())


def test_extracted_conditions_are_cached_and_equal_those_that_are_read(base: Path, dataset: Path, tmp_path: Path) -> None:
    task = task_of(config(base, dataset, tmp_path, data={"condition": "canny", "extract": True, "flip": True}))
    assert task.conditions is not None
    batch = task.batch([1, 11])
    for row, index in enumerate((1, 11)):
        assert torch.equal(batch["condition"][row], condition_to_tensor(task.loader.condition(task.pairs[index])))
    assert torch.equal(batch["condition"][1], batch["condition"][0].flip(-1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {"resume": "must"}}, "holds no checkpoint and resume is must"),
        ({"train": {"learning_rate_factors": {"hint": 2.0}}}, r"'hint' fits .*: names start with .*controlnet\.controlnet_cond_embedding"),
        ({"objective": {"shift": 3.0}}, "moves the times of flow models"),
    ],
)
def test_settings_are_refused_before_the_cache_is_made(
    changes: dict[str, Any], message: str, base: Path, dataset: Path, tmp_path: Path
) -> None:
    with pytest.raises(BadRequest, match=message):
        train_controlnet(config(base, dataset, tmp_path / "run", cache=tmp_path / "cache", **changes))
    assert list(tmp_path.iterdir()) == []
