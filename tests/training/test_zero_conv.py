"""A new ControlNet is silent, and learns from the outside in: zero convolutions first, then the encoder copy, then the hint encoder."""

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from core.errors import BadRequest, Mismatch
from pipelines.families.sd import LoadedControlNet
from pipelines.family import Place
from training.controlnet import new_controlnet
from training.steering import check_silent, zero_layers

HINT = (4, 4, 8, 8)
COPIED = ("conv_in", "time_embedding", "down_blocks", "mid_block")


@pytest.fixture
def unet(base: Path) -> UNet2DConditionModel:
    return UNet2DConditionModel.from_pretrained(base / "unet").eval().requires_grad_(False)


@pytest.fixture
def inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "x": torch.randn(2, 4, 8, 8, generator=generator),
        "t": torch.tensor([10, 700]),
        "text": torch.randn(2, 77, 32, generator=generator),
        "condition": torch.rand(2, 3, 64, 64, generator=generator),
    }


def test_every_zero_convolution_is_zero_and_the_copy_is_exact(unet: UNet2DConditionModel) -> None:
    net = new_controlnet(unet, hint_channels=HINT)
    convolutions = zero_layers(net)
    # one after the first convolution, each layer and each downsampler; the middle; the hint's last
    skips = 1 + 2 * 1 + 1
    assert len(convolutions) == skips + 2
    for conv in convolutions.values():
        assert [name for name, _ in conv.named_parameters()] == ["weight", "bias"]
        assert all(not parameter.any() for parameter in conv.parameters())
    for part in COPIED:
        copy, original = getattr(net, part).state_dict(), getattr(unet, part).state_dict()
        assert copy.keys() == original.keys()
        assert all(torch.equal(copy[name], original[name]) for name in original)
        mine = {parameter.data_ptr() for parameter in getattr(net, part).parameters()}
        assert not mine & {parameter.data_ptr() for parameter in getattr(unet, part).parameters()}  # a copy, not a share
    net.controlnet_mid_block.bias.data[0] = 1e-30
    with pytest.raises(Mismatch, match=r"controlnet_mid_block\.bias is not zero"):
        check_silent(net)


def test_gradient_arrives_in_three_steps(unet: UNet2DConditionModel, inputs: dict[str, Tensor]) -> None:
    torch.manual_seed(1)
    net = new_controlnet(unet, hint_channels=HINT).train()
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-3)
    target = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    base_out = unet(inputs["x"], inputs["t"], inputs["text"]).sample

    def step() -> tuple[Tensor, set[str]]:
        down, middle = net(inputs["x"], inputs["t"], inputs["text"], inputs["condition"], return_dict=False)
        out = unet(
            inputs["x"], inputs["t"], inputs["text"], down_block_additional_residuals=down, mid_block_additional_residual=middle
        ).sample
        optimiser.zero_grad()
        (out - target).square().mean().backward()
        learning = {name for name, p in net.named_parameters() if p.grad is not None and p.grad.any()}
        optimiser.step()
        return out, learning

    names = {name for name, _ in net.named_parameters()}
    outer = {name for name in names if name.startswith(("controlnet_down_blocks", "controlnet_mid_block"))}
    hint = {name for name in names if name.startswith("controlnet_cond_embedding")}
    hint_last = {name for name in hint if "conv_out" in name}

    out, learning = step()
    assert torch.equal(out, base_out)
    assert learning == outer

    out, learning = step()
    assert not torch.equal(out, base_out)
    assert learning == outer | (names - hint) | hint_last

    _, learning = step()
    assert learning == names


def test_the_renderer_hears_nothing_of_a_new_controlnet(unet: UNet2DConditionModel, inputs: dict[str, Tensor]) -> None:
    loaded = LoadedControlNet(new_controlnet(unet, hint_channels=HINT).eval(), Place(torch.device("cpu"), torch.float32))
    embedded = loaded.embed(inputs["condition"])
    assert not embedded.any()
    down, middle = loaded.net(inputs["x"], inputs["t"], encoder_hidden_states=inputs["text"], controlnet_cond=embedded, return_dict=False)
    assert not any(residual.any() for residual in [*down, middle])


def test_a_hint_encoder_of_another_depth_is_refused(unet: UNet2DConditionModel) -> None:
    with pytest.raises(BadRequest, match="need 4 widths for latent cells of 8 pixels"):
        new_controlnet(unet, hint_channels=(4, 4, 8))
