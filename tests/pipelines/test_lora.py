"""LoRAs against diffusers' own loader, against the formula with the weights changed, and against the model that was there before."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from core.errors import BadModel, BadRequest, Mismatch
from pipelines.adapters import Lora, LoraStack
from pipelines.lora_file import find_lora
from pipelines.lora_names import layer_table
from tests.pipelines.loras import (
    described,
    random_lora,
    run_flux,
    run_sd3,
    run_unet,
    save_diffusers,
    save_kohya,
    small_flux,
    small_sd3,
    small_unet,
)

# PEFT remarks on a second adapter, which is what is tested; only the oracle uses PEFT.
pytestmark = pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning")

RTOL, ATOL = 1e-5, 1e-5  # the same sums in another order, fp32


def assert_same(got: Tensor, expected: Tensor, without: Tensor) -> None:
    assert (expected - without).abs().max() > 1e-2  # the LoRA does something
    torch.testing.assert_close(got, expected, rtol=RTOL, atol=ATOL)


@pytest.mark.parametrize("sdxl", [False, True], ids=["sd", "sdxl"])
def test_two_loras_on_a_unet_are_diffusers_own(sdxl: bool, tmp_path: Path) -> None:
    unet = small_unet(sdxl)
    states = [random_lora(unet, seed) for seed in (1, 2)]
    paths = [save_diffusers(tmp_path / f"{i}.safetensors", {"unet": state}) for i, state in enumerate(states)]
    theirs = copy.deepcopy(unet)
    for i, path in enumerate(paths):
        theirs.load_lora_adapter(load_file(path), prefix="unet", adapter_name=f"a{i}", network_alphas=None, metadata=described("unet"))
    theirs.set_adapters(["a0", "a1"], [0.8, -0.3])
    before = run_unet(unet)
    stack = LoraStack({"unet": unet})
    stack.use([Lora(paths[0], 0.8), Lora(paths[1], -0.3)])
    assert_same(run_unet(unet), run_unet(theirs), before)
    stack.use([])
    assert torch.equal(run_unet(unet), before)


@pytest.mark.parametrize(("build", "run"), [(small_flux, run_flux), (small_sd3, run_sd3)], ids=["flux", "sd3"])
def test_two_loras_on_a_transformer_are_diffusers_own(build: Any, run: Any, tmp_path: Path) -> None:
    net = build()
    paths = [save_diffusers(tmp_path / f"{seed}.safetensors", {"transformer": random_lora(net, seed)}) for seed in (1, 2)]
    theirs = copy.deepcopy(net)
    for i, path in enumerate(paths):
        theirs.load_lora_adapter(load_file(path), prefix="transformer", adapter_name=f"a{i}", metadata=described("transformer"))
    theirs.set_adapters(["a0", "a1"], [0.5, 0.7])
    before = run(net)
    stack = LoraStack({"transformer": net})
    stack.use([Lora(paths[0], 0.5), Lora(paths[1], 0.7)])
    assert_same(run(net), run(theirs), before)
    stack.clear()
    assert torch.equal(run(net), before)


def test_a_pipelines_own_loader_with_text_encoder(base: Path, tmp_path: Path) -> None:
    """load_lora_weights and set_adapters, UNet and text encoder, each with its weight."""

    def opened() -> Any:
        return StableDiffusionPipeline.from_pretrained(base, safety_checker=None, requires_safety_checker=False)

    pipe, theirs = opened(), opened()
    paths = []
    for seed in (1, 2):
        parts = {"unet": random_lora(pipe.unet, seed), "text_encoder": random_lora(pipe.text_encoder, seed)}
        paths.append(save_diffusers(tmp_path / f"{seed}.safetensors", parts))
        theirs.load_lora_weights(paths[-1], adapter_name=f"a{seed}")
    theirs.set_adapters(["a1", "a2"], [{"unet": 0.8, "text_encoder": 0.4}, {"unet": 0.5, "text_encoder": 0.5}])

    def text(one: Any) -> Tensor:
        with torch.no_grad():
            states: Tensor = one.encode_prompt("a red cube", "cpu", 1, False)[0]
        return states

    before = text(pipe), run_unet(pipe.unet)
    stack = LoraStack({"unet": pipe.unet, "text_encoder": pipe.text_encoder})
    assert stack.use([Lora(paths[0], 0.8, 0.4), Lora(paths[1], 0.5, 0.5)])  # texts encoded before do not hold
    assert_same(text(pipe), text(theirs), before[0])
    assert_same(run_unet(pipe.unet), run_unet(theirs.unet), before[1])
    assert not stack.use([Lora(paths[0], 0.1, 0.4), Lora(paths[1], 0.5, 0.5)])  # the text encoder's half is as it was
    assert stack.use([Lora(paths[0], 1.0, 0.0)])
    assert torch.equal(text(pipe), before[0])
    stack.use([Lora(paths[0], 0.0, 0.0)])
    assert stack.active == ()
    assert torch.equal(run_unet(pipe.unet), before[1])


def merged(net: Any, state: Mapping[str, Tensor], scale: float) -> Any:
    """A copy of the network with W + scale · up · down in place of W."""
    changed = copy.deepcopy(net)
    for key, down in state.items():
        if ".lora_A." in key:
            up = state[key.replace(".lora_A.", ".lora_B.")]
            weight = changed.get_submodule(key.split(".lora_A.")[0]).weight
            delta = up.flatten(1) @ down.flatten(1)
            weight.data += scale * delta.reshape(weight.shape)
    return changed


def test_kohya_names_and_alpha(tmp_path: Path) -> None:
    unet = small_unet()
    state = random_lora(unet, 1)
    path = save_kohya(tmp_path / "k.safetensors", {"lora_unet": state}, alpha=2.0)
    before = run_unet(unet)
    LoraStack({"unet": unet}).use([Lora(path, 0.7)])
    assert_same(run_unet(unet), run_unet(merged(small_unet(), state, 0.7 * 2.0 / 4)), before)


def test_kohya_sdxl_has_the_original_block_names(tmp_path: Path) -> None:
    """The names diffusers itself turns back, checked by its own table."""
    from diffusers.loaders.lora_conversion_utils import _maybe_map_sgm_blocks_to_diffusers

    unet = small_unet(sdxl=True)
    table = layer_table({"unet": unet})
    ours = {name.replace(".", "_"): name for name, module in unet.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    original = {
        key.removeprefix("lora_unet_"): layers[0][1]
        for key, layers in table.items()
        if key.startswith(("lora_unet_input_blocks", "lora_unet_middle_block", "lora_unet_output_blocks"))
    }
    attended = {key: name for key, name in original.items() if "transformer_blocks" in key or "proj_in" in key}
    assert len(attended) > 50
    mapped = _maybe_map_sgm_blocks_to_diffusers({f"lora_unet_{key}.alpha": torch.tensor(1.0) for key in attended}, unet.config)
    for stem in (("input_blocks", "down_blocks"), ("middle_block", "mid_block"), ("output_blocks", "up_blocks")):
        mapped = {key.replace(*stem): value for key, value in mapped.items()}
    assert set(mapped) == {f"lora_unet_{name.replace('.', '_')}.alpha" for name in attended.values()}
    assert set(original.values()) >= {name for flat, name in ours.items() if flat.startswith(("down_blocks", "mid_block", "up_blocks"))}
    # And a whole file in these names.
    state = random_lora(unet, 3)
    names = {name.replace(".", "_"): key for key, name in original.items()}
    path = save_kohya(tmp_path / "xl.safetensors", {"lora_unet": state}, alpha=4.0, names=names)
    before = run_unet(unet)
    LoraStack({"unet": unet}).use([Lora(path)])
    assert_same(run_unet(unet), run_unet(merged(small_unet(sdxl=True), state, 1.0)), before)


def test_kohya_flux_has_joint_matrices(tmp_path: Path) -> None:
    """Query, key and value are the rows of one product, one third after the other."""
    net = small_flux()
    draw = torch.Generator().manual_seed(0)
    tensors = {}
    for name, rows in (("double_blocks_0_img_attn_qkv", 96), ("double_blocks_0_txt_attn_qkv", 96), ("single_blocks_0_linear1", 96 + 128)):
        tensors[f"lora_unet_{name}.lora_down.weight"] = torch.randn(4, 32, generator=draw)
        tensors[f"lora_unet_{name}.lora_up.weight"] = torch.randn(rows, 4, generator=draw) * 0.2
        tensors[f"lora_unet_{name}.alpha"] = torch.tensor(4.0)
    path = tmp_path / "flux.safetensors"
    save_file(tensors, path)
    before = run_flux(net)
    stack = LoraStack({"transformer": net})
    stack.use([Lora(path, 0.6)])
    got = run_flux(net)
    stack.clear()
    assert_same(got, run_flux(merged_rows(small_flux(), tensors, 0.6)), before)
    assert torch.equal(run_flux(net), before)


def merged_rows(net: Any, tensors: Mapping[str, Tensor], scale: float) -> Any:
    """The joint products' rows added to the weights they are for."""
    double, single = net.transformer_blocks[0].attn, net.single_transformer_blocks[0]
    places = {
        "double_blocks_0_img_attn_qkv": [double.to_q, double.to_k, double.to_v],
        "double_blocks_0_txt_attn_qkv": [double.add_q_proj, double.add_k_proj, double.add_v_proj],
        "single_blocks_0_linear1": [single.attn.to_q, single.attn.to_k, single.attn.to_v, single.proj_mlp],
    }
    for name, layers in places.items():
        delta = tensors[f"lora_unet_{name}.lora_up.weight"] @ tensors[f"lora_unet_{name}.lora_down.weight"]
        for layer, rows in zip(layers, delta.split([layer.out_features for layer in layers]), strict=True):
            layer.weight.data += scale * rows
    return net


@pytest.mark.parametrize("kind", ["loha", "lokr", "lokr-factored", "mid", "old-attention", "peft"])
def test_other_forms_of_the_product(kind: str, tmp_path: Path) -> None:
    unet, draw = small_unet(), torch.Generator().manual_seed(3)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw) * 0.6

    name = "down_blocks.1.resnets.0.conv1" if kind == "mid" else "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0"
    layer = f"lora_unet_{name.replace('.', '_')}"
    rank, scale = 2, 1.5
    tensors: dict[str, Tensor] = {f"{layer}.alpha": torch.tensor(rank * scale)}
    if kind == "loha":
        a, b, c, d = randn(32, rank), randn(rank, 32), randn(32, rank), randn(rank, 32)
        tensors |= {f"{layer}.hada_w1_a": a, f"{layer}.hada_w1_b": b, f"{layer}.hada_w2_a": c, f"{layer}.hada_w2_b": d}
        delta = scale * (a @ b) * (c @ d)
    elif kind == "lokr":  # of whole matrices: no rank, so α counts for nothing
        a, b = randn(4, 4), randn(8, 8)
        tensors |= {f"{layer}.lokr_w1": a, f"{layer}.lokr_w2": b}
        delta = torch.kron(a, b)
    elif kind == "lokr-factored":
        a, b, c = randn(4, 4), randn(8, rank), randn(rank, 8)
        tensors |= {f"{layer}.lokr_w1": a, f"{layer}.lokr_w2_a": b, f"{layer}.lokr_w2_b": c}
        delta = scale * torch.kron(a, b @ c)
    elif kind == "mid":
        weight = unet.get_submodule(name).weight
        a, m, b = randn(rank, weight.shape[1], 1, 1), randn(rank, rank, 3, 3), randn(weight.shape[0], rank, 1, 1)
        tensors |= {f"{layer}.lora_down.weight": a, f"{layer}.lora_mid.weight": m, f"{layer}.lora_up.weight": b}
        delta = scale * torch.einsum("or,rskl,si->oikl", b[..., 0, 0], m, a[..., 0, 0])
    else:
        a, b = randn(rank, 32), randn(32, rank)
        old = f"unet.{name.removesuffix('.to_out.0')}.processor.to_out_lora"
        new = f"base_model.model.{name}"
        tensors = {f"{old}.down.weight": a, f"{old}.up.weight": b}
        if kind == "peft":
            tensors = {f"{new}.lora_A.weight": a, f"{new}.lora_B.weight": b}
        delta = b @ a
    path = tmp_path / "one.safetensors"
    save_file(tensors, path)
    expected = small_unet()
    expected.get_submodule(name).weight.data += 0.9 * delta
    before = run_unet(unet)
    LoraStack({"unet": unet}).use([Lora(path, 0.9)])
    got = run_unet(unet)
    assert (got - before).abs().max() > 1e-3
    torch.testing.assert_close(got, run_unet(expected), rtol=RTOL, atol=ATOL)


def test_nothing_of_the_model_is_touched(tmp_path: Path) -> None:
    unet = small_unet()
    weights = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    path = save_diffusers(tmp_path / "a.safetensors", {"unet": random_lora(unet, 1)})
    before = run_unet(unet)
    stack = LoraStack({"unet": unet})
    stack.use([Lora(path, 0.8)])
    first = run_unet(unet)
    assert list(unet.state_dict()) == list(weights)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in unet.state_dict().items())
    stack.use([])
    assert torch.equal(run_unet(unet), before)
    stack.use([Lora(path, 0.8)])
    assert torch.equal(run_unet(unet), first)


def test_a_file_written_anew_is_read_anew(tmp_path: Path) -> None:
    unet = small_unet()
    path = save_diffusers(tmp_path / "a.safetensors", {"unet": random_lora(unet, 1)})
    stack = LoraStack({"unet": unet})
    stack.use([Lora(path)])
    first = run_unet(unet)
    save_diffusers(path, {"unet": random_lora(unet, 2, rank=5)}, rank=5)
    assert stack.use([Lora(path)])
    assert not torch.allclose(run_unet(unet), first)


def test_a_lora_for_another_family(tmp_path: Path) -> None:
    unet, flux, sd3 = small_unet(), small_flux(), small_sd3()
    of_flux = save_diffusers(tmp_path / "flux.safetensors", {"transformer": random_lora(flux, 1)})
    of_sd = save_diffusers(tmp_path / "sd.safetensors", {"unet": random_lora(unet, 1)})
    down, up = torch.zeros(4, 2048), torch.zeros(32, 4)
    layer = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    save_file({f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up}, tmp_path / "wide.safetensors")
    stack = LoraStack({"unet": unet})
    stack.use([Lora(of_sd)])
    steered = run_unet(unet)
    with pytest.raises(Mismatch, match=r"'flux.safetensors' is for FLUX and does not fit this model: \d+ of its \d+ layers"):
        stack.use([Lora(of_flux)])
    with pytest.raises(Mismatch, match=r"is for SDXL .* maps 2048 to 32 channels, the model's 32 to 32; use"):
        stack.use([Lora(of_sd), Lora(tmp_path / "wide.safetensors")])
    assert torch.equal(run_unet(unet), steered)  # a refusal leaves what was in use
    with pytest.raises(Mismatch, match="does not fit this model"):
        LoraStack({"transformer": sd3}).use([Lora(of_sd)])


def test_refusals(tmp_path: Path) -> None:
    stack = LoraStack({"unet": small_unet()})
    (tmp_path / "sub").mkdir()
    (tmp_path / "fine.safetensors").write_bytes(b"broken")
    save_file({"x.dora_scale": torch.zeros(1)}, tmp_path / "sub" / "dora.safetensors")
    save_file({"conv.weight": torch.zeros(1)}, tmp_path / "whole.safetensors")
    # As Black Forest Labs' own: with biases, norms, and an embedding of 128 channels.
    wide = {"img_in.lora_A.weight": torch.zeros(4, 128), "img_in.lora_B.bias": torch.zeros(8), "x.norm.query_norm.scale": torch.zeros(8)}
    save_file(wide, tmp_path / "depth.safetensors")
    (tmp_path / "old.pt").write_bytes(b"")
    for name, message in [
        ("fine", "cannot be read"),
        ("dora", "is a DoRA: only LoRA, LoHa and LoKr"),
        ("whole", "is no LoRA: it holds 'conv.weight'"),
        ("depth", "is a Control LoRA, .*: give it as the model of a control, as in --control canny=edges.png,model="),
        (str(tmp_path / "old.pt"), "pickles can run any program"),
    ]:
        with pytest.raises(BadModel, match=message) as error:
            stack.use([Lora(find_lora(name, tmp_path))])
        assert "\n" not in str(error.value)
    with pytest.raises(BadModel, match="cannot be read"):
        stack.use([Lora(tmp_path / "missing.safetensors")])
    layer = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    for tensors, kind, message in [
        ({f"{layer}.lora_A.weight": torch.zeros(2, 32)}, BadModel, "is damaged: layer .* has no 'up'"),
        ({f"{layer}.lora_A.weight": torch.zeros(2), f"{layer}.lora_B.weight": torch.zeros(3)}, Mismatch, "do not fit each other"),
        ({f"{layer}.alpha": torch.zeros(3)}, BadModel, "has 3 values, expected one"),
        ({"lora_te2_x.lora_up.weight": torch.zeros(2, 2)}, Mismatch, "for text encoders that this model has not"),
        ({"lora_te_x.lora_up.weight": torch.zeros(2, 2)}, Mismatch, "for text encoders that this model has not"),
    ]:
        save_file(tensors, tmp_path / "odd.safetensors")
        with pytest.raises(kind, match=message):
            stack.use([Lora(tmp_path / "odd.safetensors")])
    assert stack.active == ()
    assert find_lora("sub/dora", tmp_path) == find_lora("dora.safetensors", tmp_path) == tmp_path / "sub" / "dora.safetensors"
    with pytest.raises(BadRequest, match="unknown LoRA 'fone': did you mean 'fine'"):
        find_lora("fone", tmp_path)
    with pytest.raises(BadRequest, match="no LoRA folder"):
        find_lora("fone")
