"""How a model lies in memory changes nothing of what it draws, but for weights that are rounded."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from core.errors import BadRequest
from core.request import RenderRequest
from pipelines.checkpoint import open_checkpoint
from pipelines.engine import Engine, choose_place, family_of
from pipelines.residency import Memory, set_attention
from renderer import Renderer
from tests import tinymodels_flux

pytestmark = pytest.mark.filterwarnings("ignore:.FluxPosEmbed. is deprecated:FutureWarning")
REQUEST = RenderRequest(prompt="a red cube", width=64, height=64, steps=2, seed=5, count=2)


def drawn(base: Path, memory: Memory | None = None) -> list[np.ndarray]:
    renderer = Renderer.open(str(base), memory=memory)
    return [np.asarray(picture.image).astype(int) for picture in [*renderer.render(REQUEST), *renderer.render(REQUEST)]]


@pytest.mark.parametrize("offload", ["model", "group", "sequential"])
def test_offloaded_networks_draw_the_same(base: Path, offload: Any) -> None:
    for wanted, got in zip(drawn(base), drawn(base, Memory(offload=offload)), strict=True):
        assert np.array_equal(wanted, got)


def test_eight_bits_are_stored_and_thirty_two_computed(base: Path) -> None:
    """float8 (e4m3) keeps three bits of mantissa, which is 6 % of a weight at most: pictures differ, by little."""
    engine = Engine(choose_place(), Memory(storage="float8"))
    family: Any = engine.base(base)
    assert {parameter.dtype for parameter in family.unet.parameters()} >= {torch.float8_e4m3fn}
    assert {parameter.dtype for parameter in family.vae.parameters()} == {torch.float32}
    difference = max(float(np.abs(a - b).mean()) for a, b in zip(drawn(base), drawn(base, Memory(storage="float8")), strict=True))
    assert 0 < difference < 8  # levels of 255


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
    ],
)
def test_settings_that_cannot_be(memory: dict[str, Any], says: str) -> None:
    with pytest.raises(BadRequest, match=says):
        Engine(choose_place(), Memory(**memory))


def test_int8_rounds_matrices(base: Path) -> None:
    pytest.importorskip("torchao")
    difference = max(float(np.abs(a - b).mean()) for a, b in zip(drawn(base), drawn(base, Memory(quantise="int8")), strict=True))
    assert difference < 8


def test_int8_without_its_package_says_so() -> None:
    if subprocess.run([sys.executable, "-c", "import torchao"], capture_output=True, check=False).returncode == 0:
        pytest.skip("torchao is installed")
    with pytest.raises(BadRequest, match=r"quantise = 'int8' needs a package that is not installed: run 'pip install torchao'"):
        Engine(choose_place(), Memory(quantise="int8"))
