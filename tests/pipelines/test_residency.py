"""How a model lies in memory changes nothing of what it draws, but for weights that are rounded."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from core.errors import BadRequest
from core.request import RenderRequest
from pipelines.checkpoint import open_checkpoint
from pipelines.engine import Engine, choose_place, family_of
from pipelines.memory import offloaded
from pipelines.place import Place
from pipelines.residency import Memory, Waiting, set_attention
from renderer import Renderer
from tests import tinymodels_flux, tinymodels_zimage

pytestmark = pytest.mark.filterwarnings("ignore:.FluxPosEmbed. is deprecated:FutureWarning")
REQUEST = RenderRequest(prompt="a red cube", width=64, height=64, steps=2, seed=5, count=2)


def drawn(base: Path, memory: Memory | None = None) -> list[np.ndarray]:
    renderer = Renderer.open(str(base), memory=memory)
    return [np.asarray(picture.image).astype(int) for picture in [*renderer.render(REQUEST), *renderer.render(REQUEST)]]


@pytest.mark.parametrize("offload", ["model", "group", "sequential"])
def test_offloaded_networks_draw_the_same(base: Path, offload: Any) -> None:
    """To the bit; where layers come and go, they are not computed by oneDNN on the CPU, and a sum's last bit may tip a level."""
    for wanted, got in zip(drawn(base), drawn(base, Memory(offload=offload)), strict=True):
        assert np.abs(wanted - got).max() <= (0 if offload == "model" else 1)


def test_eight_bits_are_stored_and_thirty_two_computed(base: Path) -> None:
    """float8 (e4m3) keeps three bits of mantissa, which is 6 % of a weight at most: pictures differ, by little."""
    engine = Engine(choose_place(), Memory(storage="float8"))
    family: Any = engine.base(base)
    assert {parameter.dtype for parameter in family.unet.parameters()} >= {torch.float8_e4m3fn}
    assert {parameter.dtype for parameter in family.vae.parameters()} == {torch.float32}
    difference = max(float(np.abs(a - b).mean()) for a, b in zip(drawn(base), drawn(base, Memory(storage="float8")), strict=True))
    assert 0 < difference < 8  # levels of 255


def test_devices_that_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.quantise.importlib.util.find_spec", lambda name: True)
    for memory in (Memory(storage="float8"), Memory(quantise="nf4")):
        with pytest.raises(BadRequest, match="is not for mps"):
            memory.check("mps")
    with pytest.raises(BadRequest, match="quantise = 'llm_int8' goes with offload none, and storage as_computed"):
        Memory(quantise="llm_int8", offload="model").check("cuda")


def test_attention_is_set_for_one_network_alone(tmp_path: Path) -> None:
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry

    folder = tinymodels_flux.build_base(tmp_path / "flux")
    checkpoint = open_checkpoint(folder)
    before = _AttentionBackendRegistry.get_active_backend()[0]
    family: Any = family_of(checkpoint).load(checkpoint, choose_place())
    set_attention(family.transformer, "_native_math")
    assert _AttentionBackendRegistry.get_active_backend()[0] == before
    backends = {
        getattr(module.processor, "_attention_backend", None) for module in family.transformer.modules() if hasattr(module, "processor")
    }
    assert [str(getattr(backend, "value", backend)) for backend in backends] == ["_native_math"]


@pytest.mark.parametrize(
    ("memory", "says"),
    [
        ({"offload": "grup"}, r"unknown offload 'grup': did you mean 'group'\?"),
        ({"attention": "flush"}, r"unknown attention 'flush': did you mean 'flash'\?"),
        ({"attention": "flash"}, r"attention = 'flash' needs a package that is not installed: run 'pip install flash-attn'"),
        ({"offload": "sequential", "storage": "float8"}, r"use offload group"),
        ({"storage": "float4"}, r"unknown storage 'float4'"),
        ({"quantise": "nf5"}, r"unknown quantise 'nf5': did you mean 'nf4'\?"),
    ],
)
def test_settings_that_cannot_be(memory: dict[str, Any], says: str) -> None:
    with pytest.raises(BadRequest, match=says):
        Engine(choose_place(), Memory(**memory))


@pytest.mark.parametrize(
    ("how", "package", "bound"), [("int8", "torchao", 8), ("llm_int8", "bitsandbytes", 8), ("nf4", "bitsandbytes", 24)]
)
def test_matrices_in_fewer_bits(base: Path, how: Any, package: str, bound: float) -> None:
    """8-bit integers leave a weight's first two digits, 4-bit floats its first; bounds in levels of 255."""
    pytest.importorskip(package)
    wanted = drawn(base)
    got = drawn(base, Memory(quantise=how))
    assert 0 < max(float(np.abs(a - b).mean()) for a, b in zip(wanted, got, strict=True)) < bound
    family: Any = Engine(choose_place(), Memory(quantise=how)).base(base)
    layer = family.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q
    assert layer.weight.element_size() == 1 or how == "int8"
    assert family.unet.conv_in.weight.dtype == torch.float32


@pytest.mark.parametrize(("how", "package"), [("int8", "torchao"), ("llm_int8", "bitsandbytes"), ("nf4", "bitsandbytes")])
def test_a_missing_package_is_named(how: Any, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.quantise.importlib.util.find_spec", lambda name: None)
    with pytest.raises(BadRequest, match=f"quantise = '{how}' needs a package that is not installed: run 'pip install {package}'"):
        Engine(choose_place(), Memory(quantise=how))


def test_families_know_where_they_compute_while_weights_wait(base: Path) -> None:
    """What a family makes for itself when it is loaded (positions, statistics) belongs on the device; only weights wait on the CPU.

    No second device is here: the meta device stands for one. Networks must be on the CPU, and the family's own place must not.
    """
    place = Place(torch.device("meta"), torch.float32)
    memory = Memory(offload="group")
    checkpoint = open_checkpoint(base)
    loaded = family_of(checkpoint).load(Waiting(checkpoint), place)
    assert memory.waits
    assert loaded.place == place
    assert {parameter.device.type for network in loaded.networks().values() for parameter in network.parameters()} == {"cpu"}


@pytest.mark.parametrize("offload", ["model", "group", "sequential"])
def test_controlnets_that_take_parts_of_the_base_have_their_own(tmp_path: Path, offload: Any) -> None:
    """Z-Image's call the base's embeddings between its own calls, when the base may be anywhere."""
    folder, net = tinymodels_zimage.build_base(tmp_path / "base"), tinymodels_zimage.build_controlnet(tmp_path / "net")
    borrowed = {}
    for name, memory in (("plain", None), ("offloaded", Memory(offload=offload))):
        engine = Engine(choose_place("cpu"), memory)
        family: Any = engine.base(folder)
        control = engine.control(family, net)
        assert family.lent
        assert (control.t_embedder is family.transformer.t_embedder) == (name == "plain")
        assert not any(parameter.is_meta for parameter in control.parameters())
        borrowed[name] = dict(control.state_dict())
    assert all(torch.equal(tensor, borrowed["offloaded"][key]) for key, tensor in borrowed["plain"].items())


def test_what_lends_stays_when_memory_runs_out(tmp_path: Path) -> None:
    folder, net = tinymodels_zimage.build_base(tmp_path / "base"), tinymodels_zimage.build_controlnet(tmp_path / "net")
    engine = Engine(choose_place("cpu"))
    family: Any = engine.base(folder)
    for loaded, waits in ((None, True), (net, False)):
        if loaded is not None:
            engine.control(family, loaded)
        with offloaded(family):
            assert hasattr(family.transformer, "_hf_hook") == waits
            assert hasattr(family.text_encoder, "_hf_hook")


def test_attention_of_networks_before_the_dispatcher(base: Path) -> None:
    """A UNet has SDPA anyway, and nothing else by name but xformers."""
    assert all(np.array_equal(a, b) for a, b in zip(drawn(base), drawn(base, Memory(attention="sdpa")), strict=True))
    checkpoint = open_checkpoint(base)
    family: Any = family_of(checkpoint).load(checkpoint, choose_place("cpu"))
    with pytest.raises(BadRequest, match="attention backend 'flash' is not for UNet2DConditionModel: use sdpa or xformers"):
        set_attention(family.unet, "flash")
    with pytest.raises(BadRequest, match=r"attention backend 'xformers' cannot be used here .*: use sdpa"):
        set_attention(family.unet, "xformers")
