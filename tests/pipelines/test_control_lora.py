"""FLUX.1's Control LoRAs: as diffusers draws with them, in both forms of the file, refused where they mean nothing, and leaving no trace.

diffusers loads them through PEFT, which is no dependency of ours; without it the comparison is with the one network that base and Control
LoRA together are, in diffusers' pipeline for such networks.
"""

import hashlib
import re
import shutil
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from core.errors import BadModel, Mismatch, UserError
from core.request import ControlUnit, RenderRequest
from pipelines.adapters import Lora, LoraStack
from pipelines.catalogue import check, installed
from pipelines.checkpoint import Folder, open_checkpoint
from pipelines.controlnet_flux_lora import ControlLora, check_control_lora
from pipelines.families.flux import Flux
from pipelines.family import Hint, Place
from pipelines.layouts.control_lora import control_lora
from pipelines.layouts.header import Header
from pipelines.layouts.part import outline
from pipelines.steering import Steering
from pipelines.tokens import unpack
from renderer import Renderer
from tests import tinymodels, tinymodels_flux
from tests.pipelines.bench import near
from tests.pipelines.control_loras import build_control_lora, random_control_lora, tuned_transformer
from tests.pipelines.flow_parity import host_reads, ours
from tests.pipelines.loras import random_lora, save_diffusers
from tests.pipelines.scenes import HEIGHT, ORACLES_OWN, PLACE, PROMPT, STEPS, WAYS, WIDTH, image, left_half, picture
from tests.pipelines.their_pipelines import assert_same, generators, means_for_samples, their_pipe
from tests.tinymodels_flux import MAX_TOKENS

pytestmark = ORACLES_OWN

GUIDANCE, WEIGHT = 3.5, 0.85


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """dev, schnell, a model for maps; Control LoRAs for dev; pictures."""
    root = tmp_path_factory.mktemp("control-loras")
    tinymodels_flux.build_base(root / "dev")
    tinymodels_flux.build_base(root / "schnell", guided=False)
    tinymodels_flux.build_base(root / "map", pipeline="FluxControlPipeline")
    tinymodels_flux.build_controlnet(root / "net", seed=1)
    for i, name in enumerate(("canny", "depth")):
        build_control_lora(root, root / "dev", seed=i, name=name)
    tinymodels.build_pictures(root)
    return root


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
    begun, ended = (ours(dev, [Steering(control, **window)], told_scale=GUIDANCE) for window in ({"end": 0.5}, {"start": 0.5}))
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


def unit(folder: Path, name: str = "canny-original.safetensors", **values: Any) -> ControlUnit:
    return ControlUnit(**({"kind": "canny", "image": folder / "depth.png", "ready": True, "model": str(folder / name)} | values))


def request(folder: Path, **values: Any) -> RenderRequest:
    return RenderRequest(**({"prompt": "a red sphere", "model": str(folder / "dev"), "width": 64, "height": 64, "steps": 3} | values))


@pytest.fixture(scope="module")
def renderer(folder: Path) -> Renderer:
    return Renderer.open(str(folder / "dev"), device="cpu")


def pixels(picture: Any) -> Any:
    return np.asarray(picture.image).astype(int)


@pytest.mark.parametrize("true_cfg_scale", [1.0, 2.5])
def test_requests_mixed_in_one_batch(true_cfg_scale: float, folder: Path, renderer: Renderer) -> None:
    """Each row has its own map and its own strength, none too; a request with another Control LoRA is drawn by itself."""
    rows: list[dict[str, Any]] = [{"weight": 1.0}, {"weight": 0.4, "image": folder / "photo.png"}, {"weight": 0.0}]
    some = [request(folder, seed=i, true_cfg_scale=true_cfg_scale, controls=(unit(folder, **row),)) for i, row in enumerate(rows)]
    some.append(request(folder, true_cfg_scale=true_cfg_scale, controls=(unit(folder, "depth-original.safetensors"),)))
    together = renderer.render_many(some)
    assert [pictures[0].record.batch_rows for pictures in together] == [3, 3, 3, 1]
    for one, (mixed,) in zip(some, together, strict=True):
        (alone,) = renderer.render(one)
        assert near(pixels(mixed), pixels(alone))
    (plain,) = renderer.render(request(folder, seed=2, true_cfg_scale=true_cfg_scale))
    assert near(pixels(together[2][0]), pixels(plain))
    assert not near(pixels(together[0][0]), pixels(renderer.render(request(folder, true_cfg_scale=true_cfg_scale))[0]))


def test_several_pictures_and_a_second_pass(folder: Path, renderer: Renderer) -> None:
    asked = request(folder, count=2, controls=(unit(folder, weight=WEIGHT),), hires={"scale": 1.5})
    two = renderer.render(asked)
    one = renderer.render(asked.model_copy(update={"count": 1, "seed": 1}))
    assert two[0].image.size == (96, 96)
    assert near(pixels(two[1]), pixels(one[0]))
    assert not near(pixels(two[1]), pixels(renderer.render(asked.model_copy(update={"count": 1, "seed": 1, "controls": ()}))[0]))


def test_schnell_leaves_out_what_it_is_not_told(folder: Path) -> None:
    schnell = load(folder / "schnell")
    control = steer(schnell, folder / "canny-original.safetensors")
    assert (ours(schnell, [control]) - ours(schnell)).abs().max() > 0.1


def says(renderer: Renderer, asked: RenderRequest) -> str:
    """The one error that the doctor finds, which is what drawing raises."""
    (error,) = [finding.error for finding in renderer.examine(asked) if finding.error is not None]
    with pytest.raises(type(error)) as caught:
        renderer.render(asked)
    assert isinstance(error, UserError)
    assert str(caught.value) == str(error)
    assert "\n" not in str(error)
    return str(error)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"mask": "left.png"}, "a Control LoRA changes the base model as a whole and knows no region: leave out its mask"),
        ({"layer_weights": (1.0, 1.0)}, "has no levels to weigh: leave out layer_weights, and give a weight"),
        ({"mode": "guess"}, "mode 'guess' means nothing to it: leave the mode at 'balanced'"),
        ({"mode": "control"}, "mode 'control' means nothing to it"),
    ],
)
def test_what_has_no_meaning_is_refused(values: dict[str, Any], said: str, folder: Path, renderer: Renderer) -> None:
    given = {key: folder / value if key == "mask" else value for key, value in values.items()}
    assert said in says(renderer, request(folder, controls=(unit(folder, **given),)))
    mask = {"mask_HW": torch.ones(HEIGHT, WIDTH)} if "mask" in values else values
    with pytest.raises(Mismatch, match="a Control LoRA changes the base model as a whole"):
        Steering(steer(load(folder / "dev"), folder / "canny-original.safetensors").control, **mask)


def test_two_at_once_are_refused(folder: Path, renderer: Renderer) -> None:
    def two(**windows: Any) -> RenderRequest:
        second = unit(folder, "depth-diffusers.safetensors", kind="depth", **windows.pop("second", {}))
        return request(folder, controls=(unit(folder, **windows), second))

    assert "two Control LoRAs cannot change the base model at once" in says(renderer, two(end=0.7, second={"start": 0.3}))
    renderer.render(two(end=0.5, second={"start": 0.5}))


@pytest.mark.parametrize(
    ("changed", "kind", "said"),
    [
        (
            {"txt_in.lora_A.weight": (4, 32)},
            Mismatch,
            "maps 32 to 32 channels in 'context_embedder', the base model .* 24 to 32: use one made",
        ),
        ({"img_in.lora_A.weight": (4, 320)}, Mismatch, "maps 320 to 32 channels in 'x_embedder', the base model .* 128 to 32"),
        (
            {"double_blocks.9.img_mlp.0.lora_A.weight": (4, 32), "double_blocks.9.img_mlp.0.lora_B.weight": (128, 4)},
            Mismatch,
            "has a layer 'transformer_blocks.9.ff.net.0.proj' that the base model .* has not: use one made for this base",
        ),
        ({"single_blocks.0.norm.query_norm.scale": (8,)}, Mismatch, "has a norm 'single_transformer_blocks.0.attn.norm_q' of width 8 that"),
        (
            {"img_in.lora_B.weight": None},
            BadModel,
            r"is damaged: the tensors of 'img_in' do not fit each other \(down \[4, 128\], bias \[32\]\)",
        ),
        ({"img_in.lora_B.weight": (32, 5)}, BadModel, "is damaged: the tensors of 'img_in'"),
        ({"img_in.diff": (32, 128)}, BadModel, "holds 'img_in.diff', which is neither part of a LoRA nor a norm of FLUX.1's"),
    ],
)
def test_misfits_are_refused(
    changed: dict[str, Any], kind: type[UserError], said: str, folder: Path, renderer: Renderer, tmp_path: Path
) -> None:
    tensors = load_file(folder / "canny-original.safetensors") | {key: shape and torch.zeros(shape) for key, shape in changed.items()}
    save_file({key: tensor for key, tensor in tensors.items() if tensor is not None}, tmp_path / "odd.safetensors")
    found = says(renderer, request(folder, controls=(unit(folder, model=str(tmp_path / "odd.safetensors")),)))
    assert re.search(said, found)
    with pytest.raises(kind):
        load(folder / "dev").check_control(open_checkpoint(tmp_path / "odd.safetensors"))


def test_other_bases_refuse_it(folder: Path, renderer: Renderer, tmp_path: Path) -> None:
    found = says(renderer, request(folder, model=str(folder / "map"), controls=(unit(folder),)))
    assert "further channels of its own already: use FLUX.1-dev itself" in found
    tinymodels.build_base(tmp_path / "sd")
    found = says(renderer, request(folder, model=str(tmp_path / "sd"), controls=(unit(folder),)))
    assert "is a Control LoRA for FLUX.1, the base model" in found
    one = unit(folder, kind="depth")
    (warning,) = renderer.examine(request(folder, width=1024, height=1024, controls=(one,)))
    assert "is for canny going by its name alone" in warning.text


def test_as_a_lora_it_is_refused_with_the_way_to_use_it(folder: Path, renderer: Renderer) -> None:
    file = folder / "canny-diffusers.safetensors"
    with pytest.raises(
        BadModel, match=rf"is a Control LoRA, .*: give it as the model of a control, as in --control canny=edges.png,model={file}"
    ):
        renderer.render(request(folder, prompt=f"<lora:{file}:1>"))


def test_found_as_other_controls_are(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By name in Limn's folder, by hub id, and beside the base as its kind's own; listed, hashed, and recorded."""
    from huggingface_hub import constants

    monkeypatch.setenv("LIMN_MODELS", str(tmp_path / "limn"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    file, published = folder / "canny-original.safetensors", tmp_path / "hub" / "models--labs--canny-lora"
    snapshot = published / "snapshots" / ("0" * 40)
    for target in (tmp_path / "limn" / "canny-lora.safetensors", snapshot / "flux1-canny-dev-lora.safetensors"):
        target.parent.mkdir(parents=True)
        shutil.copyfile(file, target)
    (published / "refs").mkdir()
    (published / "refs" / "main").write_text("0" * 40)
    shutil.copytree(folder / "dev", tmp_path / "models" / "dev")
    shutil.copyfile(file, tmp_path / "models" / "controlnet-canny.safetensors")
    (listed, of_hub) = [one for one in installed() if one.kind == "control-lora"]
    assert (listed.name, listed.family, listed.source, of_hub.name, of_hub.source) == (
        "canny-lora",
        "flux",
        "folder",
        "labs/canny-lora",
        "hub",
    )
    assert not check(listed)
    assert not check(of_hub)
    renderer = Renderer.open(str(tmp_path / "models" / "dev"), device="cpu")
    own = {"model": renderer.model}
    (expected,) = renderer.render(request(folder, controls=(unit(folder),), **own))
    for name in ("canny-lora", "canny-lora.safetensors", str(snapshot), None):
        (found,) = renderer.render(request(folder, controls=(unit(folder, model=name),), **own))
        assert np.array_equal(pixels(found), pixels(expected))
        recorded = {one.part: one.sha256 for one in found.record.weights}
        assert recorded["control 0"] == hashlib.sha256(file.read_bytes()).hexdigest()
