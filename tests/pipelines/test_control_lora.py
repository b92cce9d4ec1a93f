"""FLUX.1's Control LoRAs: as diffusers draws with them, in both forms of the file, refused where they mean nothing, and leaving no trace.

diffusers loads them through PEFT, which is no dependency of ours; without it the comparison is with the one network that base and Control
LoRA together are, in diffusers' pipeline for such networks.
"""

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from core.errors import Mismatch
from pipelines.adapters import Lora, LoraStack
from pipelines.checkpoint import Folder, open_checkpoint
from pipelines.controlnet_flux_lora import ControlLora, check_control_lora
from pipelines.families.flux import Flux
from pipelines.family import Hint, Place
from pipelines.layouts.control_lora import control_lora
from pipelines.layouts.header import Header
from pipelines.layouts.part import outline
from pipelines.steering import Steering
from pipelines.tokens import unpack
from tests.pipelines.control_loras import build_house, random_control_lora, tuned_transformer
from tests.pipelines.flow_parity import host_reads, ours
from tests.pipelines.loras import random_lora, save_diffusers
from tests.pipelines.scenes import HEIGHT, ORACLES_OWN, PLACE, PROMPT, STEPS, WAYS, WIDTH, image, left_half, picture
from tests.pipelines.their_pipelines import assert_same, generators, means_for_samples, their_pipe
from tests.tinymodels_flux import MAX_TOKENS

pytestmark = ORACLES_OWN

GUIDANCE, WEIGHT = 3.5, 0.85


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_house(tmp_path_factory.mktemp("control-loras"))


@cache
def load(folder: Path) -> Flux:
    return Flux.load(Folder(folder), PLACE)


def steer(family: Flux, net: Path, i: int = 0, **how: Any) -> Steering:
    return Steering(family.prepare(family.load_control(open_checkpoint(net)), Hint(picture(i), "canny")), **how)


def theirs(folder: Path, weight: float = WEIGHT, kind: str = "FluxControlPipeline", **call: Any) -> Tensor:
    """Final latents of diffusers' pipeline on the network that dev and the Control LoRA are."""
    transformer = tuned_transformer(folder / "dev", folder / "canny-diffusers.safetensors", weight)
    return drawn(their_pipe(kind, folder / "dev", transformer=transformer), **call)


def drawn(pipe: Any, count: int = 1, **call: Any) -> Tensor:
    with means_for_samples():
        tokens = pipe(
            PROMPT,
            control_image=image(picture(0)),
            height=HEIGHT,
            width=WIDTH,
            num_inference_steps=STEPS,
            num_images_per_prompt=count,
            generator=generators(count),
            output_type="latent",
            max_sequence_length=MAX_TOKENS,
            guidance_scale=GUIDANCE,
            **call,
        ).images
    return unpack(tokens, HEIGHT // 8, WIDTH // 8)


@pytest.mark.parametrize("form", ["original", "diffusers"])
@pytest.mark.parametrize(("count", "weight"), [(1, WEIGHT), (2, 1.0)])
def test_as_diffusers_draws_it(form: str, count: int, weight: float, folder: Path) -> None:
    dev = load(folder / "dev")
    got = ours(dev, [steer(dev, folder / f"canny-{form}.safetensors", weight=weight)], told_scale=GUIDANCE, count=count)
    assert_same(got, theirs(folder, weight, count=count))
    assert (got - ours(dev, told_scale=GUIDANCE, count=count)).abs().max() > 0.1
    assert (
        got - ours(dev, [steer(dev, folder / f"canny-{form}.safetensors", 1, weight=weight)], told_scale=GUIDANCE, count=count)
    ).abs().max() > 0.01


@pytest.mark.parametrize("way", ["img2img", "inpaint"])
def test_from_a_picture(way: str, folder: Path) -> None:
    dev, given = load(folder / "dev"), WAYS[way]
    pictures: dict[str, Any] = {"image": image(given["image_HWC"]), "strength": given["strength"]}
    pictures |= {"mask_image": image(left_half())} if way == "inpaint" else {}
    kind = {"img2img": "FluxControlImg2ImgPipeline", "inpaint": "FluxControlInpaintPipeline"}[way]
    got = ours(dev, [steer(dev, folder / "canny-original.safetensors", weight=WEIGHT)], told_scale=GUIDANCE, **given)
    assert_same(got, theirs(folder, kind=kind, **pictures))


@pytest.mark.skipif(find_spec("peft") is None, reason="diffusers loads LoRAs through PEFT, which we do not need")
def test_as_diffusers_loads_it(folder: Path, tmp_path: Path) -> None:
    import diffusers

    transformer = diffusers.FluxTransformer2DModel.from_pretrained(folder / "dev" / "transformer")
    pipe = their_pipe("FluxControlPipeline", folder / "dev", transformer=transformer)
    pipe.load_lora_weights(str(folder / "canny-diffusers.safetensors"), adapter_name="canny")
    pipe.set_adapters(["canny"], [WEIGHT])
    dev = load(folder / "dev")
    got = ours(dev, [steer(dev, folder / "canny-original.safetensors", weight=WEIGHT)], told_scale=GUIDANCE)
    expected = drawn(pipe)
    print("largest difference from diffusers with PEFT:", (got - expected).abs().max().item())
    assert_same(got, expected)


def test_both_forms_are_one_control(folder: Path) -> None:
    one, other = (control_lora(Header.read(folder / f"canny-{form}.safetensors")) for form in ("original", "diffusers"))
    assert one.config == other.config
    theirs, mine = one.tensors(), other.tensors()
    assert theirs.keys() == mine.keys()
    assert all(torch.equal(theirs[name], mine[name]) for name in mine)


def test_of_the_published_size(tmp_path: Path) -> None:
    """FLUX.1-dev's layers, of rank 1: it fits the outline, and diffusers' converter, which knows no other size, reads it alike.

    But for one factor: where shift and scale change places, diffusers 0.42 exchanges halves of the rank too, and has another product.
    """
    from diffusers import FluxTransformer2DModel
    from diffusers.loaders.lora_conversion_utils import _convert_bfl_flux_control_lora_to_diffusers

    dev = outline(FluxTransformer2DModel, {"guidance_embeds": True})
    original, ours = random_control_lora({name: tuple(tensor.shape) for name, tensor in dev.state_dict().items()}, 0, rank=2)
    original, ours = ({name: tensor.half() for name, tensor in one.items()} for one in (original, ours))
    save_file(original, tmp_path / "dev.safetensors")
    check_control_lora(open_checkpoint(tmp_path / "dev.safetensors"), Folder(tmp_path), dev, 64)
    found = control_lora(Header.read(tmp_path / "dev.safetensors")).tensors()
    theirs = _convert_bfl_flux_control_lora_to_diffusers(dict(original))
    ends = {"lora_A.weight": "down", "lora_B.weight": "up", "lora_B.bias": "bias"}
    for name, tensor in theirs.items():
        name = name.removeprefix("transformer.")
        mine = next((name.removesuffix(end) + short for end, short in ends.items() if name.endswith(end)), name)
        assert torch.equal(found.pop(mine), ours[name])
        assert torch.equal(tensor, ours[name]) or name == "norm_out.linear.lora_A.weight"
    assert not found


def test_a_scale_that_is_said_is_used(folder: Path, tmp_path: Path) -> None:
    """α is the rank, unless the file says otherwise."""
    tensors, file = load_file(folder / "canny-diffusers.safetensors"), tmp_path / "said.safetensors"
    save_file(tensors, file, {"lora_adapter_metadata": '{"transformer.lora_alpha": 2.0, "transformer.r": 4}'})
    dev = load(folder / "dev")
    half = ours(dev, [steer(dev, file)], told_scale=GUIDANCE)
    torch.testing.assert_close(
        half, ours(dev, [steer(dev, folder / "canny-diffusers.safetensors", weight=0.5)], told_scale=GUIDANCE), rtol=0, atol=1e-5
    )
    save_file(tensors | {"transformer.x_embedder.alpha": torch.tensor(2.0)}, file)
    said, plain = (control_lora(Header.read(one)).tensors() for one in (file, folder / "canny-diffusers.safetensors"))
    torch.testing.assert_close(said["x_embedder.up"], plain["x_embedder.up"] / 2)
    assert torch.equal(said["proj_out.up"], plain["proj_out.up"])


def test_nothing_is_left_behind(folder: Path) -> None:
    """Without weight, outside the window and afterwards the base is bit by bit what it was; a window is of steps."""
    dev = Flux.load(Folder(folder / "dev"), PLACE)
    plain = ours(dev, told_scale=GUIDANCE)
    control = steer(dev, folder / "canny-original.safetensors").control
    whole = ours(dev, [Steering(control)], told_scale=GUIDANCE)
    assert torch.equal(ours(dev, told_scale=GUIDANCE), plain)
    assert torch.equal(ours(dev, [Steering(control, weight=0.0)], told_scale=GUIDANCE), plain)
    assert torch.equal(ours(dev, [Steering(control, start=0.5, end=0.6)], told_scale=GUIDANCE), plain)
    assert not any(module._forward_hooks for module in dev.transformer.modules())
    begun, ended = (ours(dev, [one], told_scale=GUIDANCE) for one in (Steering(control, end=0.5), Steering(control, start=0.5)))
    assert len({float(latents.sum()) for latents in (plain, whole, begun, ended)}) == 4
    both = ours(dev, [Steering(control, end=0.5), Steering(control, start=0.5)], told_scale=GUIDANCE)
    assert torch.equal(both, whole)


def test_beside_controlnets_and_loras(folder: Path, tmp_path: Path) -> None:
    """Everything adds up: a LoRA and a ControlNet do on the tuned base what they do on the network that it is."""
    dev, file = load(folder / "dev"), tmp_path / "lora.safetensors"
    save_diffusers(file, {"transformer": random_lora(dev.transformer, 3)})
    stack = LoraStack(dev.networks())
    controls = [steer(dev, folder / "canny-original.safetensors", weight=WEIGHT), steer(dev, folder / "net", 1, weight=0.5)]
    alone = ours(dev, controls[:1], told_scale=GUIDANCE)
    stack.use([Lora(file, 0.7)])
    with_lora, with_both = ours(dev, controls[:1], told_scale=GUIDANCE), ours(dev, controls, told_scale=GUIDANCE)
    stack.clear()
    assert torch.equal(ours(dev, controls[:1], told_scale=GUIDANCE), alone)
    assert (with_lora - alone).abs().max() > 1e-2
    assert (with_both - with_lora).abs().max() > 1e-2
    stack.use([Lora(file, 0.7)])
    again = ours(dev, controls[:1], told_scale=GUIDANCE)
    stack.clear()
    assert torch.equal(again, with_lora)


def test_a_lora_adds_to_the_tuned_layers(folder: Path, tmp_path: Path) -> None:
    """In one layer that both change the outputs are W·x and both differences."""
    dev, file = load(folder / "dev"), tmp_path / "lora.safetensors"
    delta = random_lora(dev.transformer, 3)
    save_diffusers(file, {"transformer": delta})
    stack, name = LoraStack(dev.networks()), "transformer_blocks.0.attn.to_q"
    layer, x = dev.transformer.get_submodule(name), torch.randn(2, 5, 32)
    net = dev.load_control(open_checkpoint(folder / "canny-original.safetensors"))
    assert isinstance(net, ControlLora)
    plain, own = layer(x), net.deltas[name]
    strength = torch.tensor([0.5, 0.0])
    assert own.bias is not None
    expected = plain + strength.view(2, 1, 1) * (x @ own.down.T @ own.up.T + own.bias)
    expected = expected + 1.5 * 0.7 * (x @ delta[f"{name}.lora_A.weight"].T @ delta[f"{name}.lora_B.weight"].T)  # α 6 at rank 4
    stack.use([Lora(file, 0.7)])
    with net.acting(dev.transformer, strength, torch.zeros(2, 5, 4)):
        got = layer(x)
    stack.clear()
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(layer(x), plain, rtol=0, atol=0)


def test_in_half_the_bits(folder: Path) -> None:
    """bfloat16 keeps the picture: the difference is small beside what the Control LoRA does."""
    dev, half = load(folder / "dev"), Flux.load(Folder(folder / "dev"), Place(PLACE.device, torch.bfloat16))
    expected, got = (ours(one, [steer(one, folder / "canny-original.safetensors", weight=0.5)], told_scale=GUIDANCE) for one in (dev, half))
    assert (got - expected).std() < 0.1 * (expected - ours(dev, told_scale=GUIDANCE)).std()


def test_the_loop_never_waits_for_the_device(folder: Path) -> None:
    dev = load(folder / "dev")
    control = steer(dev, folder / "canny-original.safetensors").control
    assert host_reads(dev, control) == 0


def test_schnell_leaves_out_what_it_is_not_told(folder: Path) -> None:
    schnell = load(folder / "schnell")
    control = steer(schnell, folder / "canny-original.safetensors")
    assert (ours(schnell, [control]) - ours(schnell)).abs().max() > 0.1


@pytest.mark.parametrize("part", [{"mask_HW": torch.ones(HEIGHT, WIDTH)}, {"layer_weights": (1.0, 1.0)}, {"mode": "prompt"}])
def test_it_acts_as_a_whole(part: dict[str, Any], folder: Path) -> None:
    control = steer(load(folder / "dev"), folder / "canny-original.safetensors").control
    with pytest.raises(Mismatch, match="a Control LoRA changes the base model as a whole"):
        Steering(control, **part)
