"""ControlNets of fewer blocks, half the width or low rank: silent, learning from the outside in, heard when rendered."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState
from safetensors.torch import load_file
from torch import Tensor

from core.errors import BadModel, BadRequest, Mismatch
from pipelines.checkpoint import open_checkpoint
from pipelines.engine import Engine
from pipelines.family import Family, Hint, Residuals
from pipelines.variants import differences
from tests.training.test_families import BASES, PLACE, config, speaking
from training.controlnet import ControlNetTask
from training.export import has_single_file, single_file_tensors, write_folder
from training.randomness import Draws
from training.run import build_task, load_controlnet, train_controlnet
from training.steering import Steering, steering, zero_layers

HINT = (4, 4, 8, 8)
VARIANTS: dict[str, dict[str, Any]] = {"lite": {"variant": "lite"}, "lora": {"variant": "lora", "rank": 4}, "blocks": {}}
FEWER = {"sd": (1,), "sdxl": (2,), "sd3": (1,), "flux": (1, 1)}


@pytest.fixture(scope="module", params=BASES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return BASES[request.param](tmp_path_factory.mktemp("bases") / request.param)


@pytest.fixture(scope="module")
def task(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> ControlNetTask:
    task = build_task(config(folder, tmp_path_factory.mktemp("task")), PartialState(cpu=True))
    for module in task.frozen().values():
        module.requires_grad_(False)
    return task


def started(task: ControlNetTask, variant: str) -> Steering:
    blocks = FEWER[task.base.name] if variant == "blocks" else ()
    torch.manual_seed(3)
    return steering(task.base, HINT, blocks, **VARIANTS[variant])


def said(task: ControlNetTask, control: Steering, net: Any) -> tuple[Residuals, Tensor, Tensor]:
    """What the net says of the first two samples, the base's output with it, and the base's own."""
    batch, x = task.batch([0, 1]), Draws(1, [0, 1]).normal(task.base.latent_shape(64, 64))
    text, t = task.texts.dropped(batch, 0.0, Draws(0, [0, 1])), torch.tensor([10.0, 700.0])
    with torch.no_grad():
        residuals = control.residuals(net, x, t, text, batch["condition"])
        return residuals, task.base.predict(x, t, text, residuals), task.base.predict(x, t, text, None)


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_begins_silent(task: ControlNetTask, variant: str) -> None:
    control = started(task, variant)
    net = control.new().eval()
    residuals, with_net, alone = said(task, control, net)
    assert all(not tensor.any() for tensors in residuals.values() for tensor in tensors)
    assert torch.equal(with_net, alone)
    loud = speaking(net)
    assert not torch.equal(said(task, control, loud)[1], alone)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradient_arrives_in_three_steps(task: ControlNetTask, variant: str) -> None:
    control = started(task, variant)
    net = control.new().train()
    learns = {name for name, parameter in net.named_parameters() if parameter.requires_grad}
    optimiser = torch.optim.AdamW([parameter for parameter in net.parameters() if parameter.requires_grad], lr=1e-3)
    batch, now = task.batch([0, 1]), replace(task, net=net, steering=control)
    zero = {name for name in learns if name.startswith(tuple(zero_layers(net)))}
    hint = {name for name in zero if name.startswith(("controlnet_cond_embedding", "pos_embed_input", "controlnet_x_embedder"))}
    frozen = {name: parameter.clone() for name, parameter in net.named_parameters() if name not in learns}

    def step() -> set[str]:
        optimiser.zero_grad()
        loss, _ = now.loss(batch, Draws(0, [3, 4]))
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        return {name for name, p in net.named_parameters() if p.grad is not None and p.grad.any()}

    assert step() == zero - hint
    second = step()
    assert zero <= second
    third = step()
    if variant == "lora":
        downs = {name for name in learns if name.endswith(".down")}
        ups = {name for name in learns if name.endswith(".up")}
        assert learns == zero | downs | ups | {name for name in learns if name.startswith("controlnet_cond_embedding")}
        assert not second & downs  # while `up` is zero nothing reaches what is before it
        assert len(second & ups) > 0.8 * len(ups)  # the last copied block's text goes nowhere
        assert {name.removesuffix(".up") for name in second & ups} <= {name.removesuffix(".down") for name in third & downs}
        assert all(torch.equal(tensor, dict(net.named_parameters())[name]) for name, tensor in frozen.items())
    else:
        assert not frozen
        assert len(third) > 0.8 * len(learns)
    assert second <= third


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_written_says_the_same_when_it_renders(task: ControlNetTask, folder: Path, variant: str, tmp_path: Path) -> None:
    control = started(task, variant)
    net = speaking(control.new()).eval()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith(".up"):
                parameter.normal_(std=0.05)
    write_folder(tmp_path / "net", net)
    base: Family = Engine(PLACE).base(folder)
    prepared = base.prepare(base.load_control(open_checkpoint(tmp_path / "net")), Hint(task.loader.condition(task.pairs[1]), "hint"))
    batch, x = task.batch([1]), Draws(1, [0]).normal(task.base.latent_shape(64, 64))
    text, t = task.texts.dropped(batch, 0.0, Draws(0, [0])), torch.tensor([500.0])
    with torch.inference_mode():
        found, wanted = prepared.residuals(x, t[0], text), control.residuals(net, x, t, text, batch["condition"])
        out = base.predict(x, t, text, found)
    assert found.keys() == wanted.keys()
    assert prepared.levels == sum(map(len, wanted.values()))
    for place, tensors in wanted.items():
        for one, other in zip(found[place], tensors, strict=True):
            # weight plus difference in one matrix here, in two there, and latents from a batch of another size: ulps of values near 1
            torch.testing.assert_close(one, other, rtol=1e-4, atol=5e-5)
    assert out.shape == x.shape
    stored = load_file(tmp_path / "net" / "diffusion_pytorch_model.safetensors")
    if variant == "lora":
        assert stored.keys() == differences(net).keys()
        learned = sum(tensor.numel() for tensor in stored.values())
        assert learned < 0.7 * sum(tensor.numel() for tensor in steering(task.base, HINT).new().state_dict().values())
    if variant == "lite":
        whole = sum(tensor.numel() for tensor in steering(task.base, HINT).new().parameters())
        assert sum(tensor.numel() for tensor in net.parameters()) < 0.6 * whole


def test_the_copied_blocks_are_the_bases_first(task: ControlNetTask) -> None:
    net = started(task, "blocks").new()
    denoiser = task.steering.denoiser
    for part in ("down_blocks", "transformer_blocks", "single_transformer_blocks"):
        for number, block in enumerate(getattr(net, part, None) or []):
            base_state = getattr(denoiser, part)[number].state_dict()
            state = block.state_dict()
            assert all(torch.equal(tensor, base_state[name]) for name, tensor in state.items())
    whole = steering(task.base, HINT).new()
    assert sum(parameter.numel() for parameter in net.parameters()) < sum(parameter.numel() for parameter in whole.parameters())


def test_more_blocks_than_there_are_and_odd_widths_are_refused(task: ControlNetTask) -> None:
    with pytest.raises(BadRequest, match="blocks"):
        steering(task.base, HINT, (9,) * len(FEWER[task.base.name])).new()
    if task.base.name in ("sd3", "flux"):
        with pytest.raises(BadRequest, match=r"data\.grey: .* leave it out"):
            steering(task.base, HINT, channels=(3, 1))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_of_it_ends_in_what_can_be_trained_further(folder: Path, variant: str, tmp_path: Path) -> None:
    blocks = FEWER[folder.name] if variant == "blocks" else ()
    given = config(folder, tmp_path, steps=2).model_copy(update={"blocks": blocks, **VARIANTS[variant]})
    run = train_controlnet(given)
    net, weights = run.task.modules()["controlnet"], tmp_path / "run" / "weights"
    base = Engine(PLACE).base(folder)
    base.load_control(open_checkpoint(weights))
    again = load_controlnet(base, weights, steering(base, HINT, blocks, **VARIANTS[variant]))
    for name, tensor in net.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert {name for name, p in again.named_parameters() if p.requires_grad} == {n for n, p in net.named_parameters() if p.requires_grad}
    assert weights.joinpath("controlnet-hint.safetensors").exists() == has_single_file(net)
    assert has_single_file(net) == (variant == "lora" and folder.name in ("sd", "sdxl")) or type(net).__module__.startswith("diffusers")
    if type(net).__module__.startswith("diffusers"):
        return
    with pytest.raises(Mismatch, match=r"is a Limn.*, these settings make a"):
        load_controlnet(base, weights, steering(base, HINT))
    if variant == "lora":
        with pytest.raises(Mismatch, match="has rank 4, these settings make 8"):
            load_controlnet(base, weights, steering(base, HINT, variant="lora", rank=8))


def test_low_rank_differences_are_named_as_comfyui_and_a1111_read_them(tmp_path: Path) -> None:
    base: Any = Engine(PLACE).base(BASES["sd"](tmp_path / "base"))
    names = single_file_tensors(steering(base, HINT, variant="lora", rank=2).new())
    # comfy/controlnet.py knows it by the mark and sets what it finds on its own layers
    assert "lora_controlnet" in names
    assert {"input_blocks.1.1.transformer_blocks.0.attn1.to_q.up", "input_blocks.1.1.transformer_blocks.0.attn1.to_q.down"} <= names.keys()
    assert {"zero_convs.0.0.weight", "input_hint_block.0.weight", "middle_block_out.0.bias", "time_embed.0.up"} <= names.keys()
    assert not any(name.endswith("to_q.weight") for name in names)
    # A1111 takes only matrices from the model that it draws with: its layers have no biases and untaught norms until the file gives them
    first, norm = base.unet.down_blocks[0].resnets[0], "input_blocks.1.0.in_layers.0.weight"
    assert torch.equal(names[norm], first.norm1.weight)
    assert torch.equal(names["input_blocks.1.0.in_layers.2.bias"], first.conv1.bias)
    assert torch.equal(names["time_embed.0.bias"], base.unet.time_embedding.linear_1.bias)


def test_more_channels_than_are_explained_are_refused(tmp_path: Path) -> None:
    base = Engine(PLACE).base(BASES["sd"](tmp_path / "base"))
    net = steering(base, HINT, channels=(3, 1)).new()
    write_folder(tmp_path / "net", net)
    with pytest.raises(Mismatch, match=r"reads 4 channels of conditions and does not say of which kinds: .* limn_kinds"):
        base.load_control(open_checkpoint(tmp_path / "net"))
    net.register_to_config(limn_kinds=["canny", "depth"], limn_channels=[3, 1])
    write_folder(tmp_path / "net", net)
    assert base.load_control(open_checkpoint(tmp_path / "net")).net.config.limn_channels == [3, 1]


def test_damaged_differences_are_named(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    base = Engine(PLACE).base(BASES["sd"](tmp_path / "base"))
    write_folder(tmp_path / "net", steering(base, HINT, variant="lora", rank=2).new())
    file = tmp_path / "net" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    shutil.copytree(tmp_path / "net", tmp_path / "other")
    save_file({name: tensor for name, tensor in tensors.items() if name != "conv_in.up"}, file)
    with pytest.raises(BadModel, match=r"its tensors are not those of its config \(conv_in\.up\)"):
        base.load_control(open_checkpoint(tmp_path / "net"))
