"""Settings that a model cannot follow or that do nothing are said before any weight is moved, as drawing would say them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.errors import BadRequest, LimnError, Mismatch
from core.request import RenderRequest, build_request
from pipelines.checkpoint import open_checkpoint
from pipelines.effects import levels_of
from pipelines.engine import Engine, choose_place
from pipelines.family import Hint
from renderer import Renderer, examine
from tests import tinymodels, tinymodels_flux, tinymodels_qwenimage, tinymodels_sana, tinymodels_sd3, tinymodels_sdxl, tinymodels_zimage

pytestmark = pytest.mark.filterwarnings("ignore:.FluxPosEmbed. is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with its ControlNets and an adapter, SD3 and FLUX.1."""
    folder = tinymodels.build_pictures(tmp_path_factory.mktemp("effects"))
    tinymodels.build_models(folder)
    tinymodels_sdxl.build_adapter(folder / "adapter", (32, 64))
    tinymodels_sd3.build_base(folder / "sd3", t5=False)
    tinymodels_flux.build_base(folder / "flux")
    return folder


def request(house: Path, model: str = "base", **values: Any) -> RenderRequest:
    units = [{"kind": "depth", "image": str(house / "depth.png"), "ready": True} | unit for unit in values.pop("units", [])]
    return build_request({"model": str(house / model), "width": 64, "height": 64, "steps": 3, "controls": units} | values)


@pytest.mark.parametrize(
    ("model", "values", "kind", "says"),
    [
        ("base", {"clip_skip": 12}, BadRequest, "clip_skip = 12: this model's text encoder allows 1 to 1"),
        ("sd3", {"clip_skip": 2}, BadRequest, "clip_skip = 2: this model's text encoder allows 1 to 1"),
        ("flux", {"pag_scale": 2.0}, Mismatch, "FLUX.1 has no perturbed-attention guidance: set pag_scale to 0"),
        ("base", {"skip_layers": {}}, Mismatch, "Stable Diffusion 1.x or 2.x has no skip-layer guidance, which is for transformers"),
        ("flux", {"skip_layers": {"blocks": [5]}}, BadRequest, "skip_layers.blocks = 5: this model has blocks 0 to 4"),
        (
            "sd3",
            {"skip_layers": {"blocks": [0, 1, 2, 3]}},
            BadRequest,
            "skip_layers.blocks: these are all 4 of this model: name some",
        ),
        ("base", {"prompt": "a :-1 AND b :0.5"}, BadRequest, "the weights of the prompt's ANDs add up to 0 or less"),
        ("base", {"prompt": "{a|(b:2000)}", "count": 6, "seed": 0}, BadRequest, "a prompt's weight comes to 2000: at most 1000"),
        ("base", {"units": [{"layer_weights": [1.0, 1.0]}]}, Mismatch, "layer_weights has 2 numbers, this ControlNet has 5 levels"),
        ("sd3", {"width": 128, "hires": {"scale": 2.0}}, BadRequest, "hires.scale = 2: width = 256: this model draws in patches of 16"),
    ],
)
def test_what_cannot_be_followed_is_said_first(house: Path, model: str, values: dict[str, Any], kind: type[LimnError], says: str) -> None:
    asked, seen = request(house, model, **values), list[int]()
    errors = [one.error for one in examine(asked, Engine(choose_place("cpu"))) if one.error is not None]
    assert [(type(error), str(error).startswith(says)) for error in errors] == [(kind, True)], errors
    with pytest.raises(kind) as raised:
        Renderer.open(str(house / model), "cpu").render(asked, on_step=lambda step: seen.append(step.index))
    assert str(raised.value) == str(errors[0])
    assert seen == []


def test_what_does_nothing_is_said(house: Path) -> None:
    """A window between two steps, of a control or of guidance, and a layer of CLIP where no CLIP is read."""
    renderer, engine = Renderer.open(str(house / "base"), "cpu"), Engine(choose_place("cpu"))

    def warnings(asked: RenderRequest) -> list[str]:
        return [one.text for one in examine(asked, engine) if "acts in none" in one.text or "no effect" in one.text]

    idle = "from 0.4 to 0.6 acts in none of the 3 steps, for no whole one lies in between: widen its window"
    narrow = request(house, units=[{"start": 0.4, "end": 0.6}])
    assert warnings(narrow) == [f"a control {idle}"]
    (steered,), (plain,) = renderer.render(narrow), renderer.render(request(house))
    assert np.array_equal(np.asarray(steered.image), np.asarray(plain.image))
    assert f"a control {idle}" in steered.record.notes
    assert plain.record.notes == ()
    (unguided,) = renderer.render(request(house, guidance_start=0.4, guidance_end=0.6))
    assert unguided.record.notes == (f"guidance {idle}",)
    assert warnings(request(house, units=[{"start": 0.3, "end": 0.7}, {"start": 0.4, "end": 0.6, "weight": 0.0}])) == []
    second = {"scale": 1.5, "steps": 2, "strength": 1.0}  # of whose two steps the window holds one
    assert warnings(request(house, units=[{"start": 0.5, "end": 1.0}], hires=second)) == []
    thin = [{"start": 0.34, "end": 0.67}]
    assert len(warnings(request(house, steps=9, units=thin, hires=second))) == 1
    assert warnings(request(house, steps=9, units=thin, hires=second | {"with_control": False})) == []
    narrow = request(house, "flux", skip_layers={"blocks": [1]})
    assert warnings(narrow) == ["skip-layer guidance from 0.01 to 0.2 acts in none of the 3 steps: widen its window"]
    assert warnings(request(house, "flux", steps=6, skip_layers={"blocks": [1]})) == []
    assert warnings(request(house, "flux", skip_layers={"blocks": [1], "scale": 0.0})) == []
    assert warnings(request(house, "flux", clip_skip=2)) == ["FLUX.1 reads no states of CLIP: clip_skip has no effect here"]


_NETS: dict[str, tuple[Callable[..., Path], Callable[..., Path]]] = {
    "sd3": (tinymodels_sd3.build_base, tinymodels_sd3.build_controlnet),
    "flux": (tinymodels_flux.build_base, tinymodels_flux.build_controlnet),
    "sana": (tinymodels_sana.build_base, tinymodels_sana.build_controlnet),
    "qwenimage": (tinymodels_qwenimage.build_base, tinymodels_qwenimage.build_controlnet),
    "zimage": (tinymodels_zimage.build_base, tinymodels_zimage.build_controlnet),
}


@pytest.mark.parametrize("name", ["controlnet", "adapter", "union", *_NETS])
def test_levels_are_as_configurations_say(name: str, house: Path, tmp_path: Path) -> None:
    if name in _NETS:
        base, net = (build(tmp_path / part) for build, part in zip(_NETS[name], ("base", "net"), strict=True))
    elif name == "union":
        base = tinymodels_sdxl.build_base(tmp_path / "base")
        net = tinymodels_sdxl.build_union(tmp_path / "net", base)
    else:
        base, net = house / "base", house / {"controlnet": "controlnet-depth"}.get(name, name)
    engine = Engine(choose_place("cpu"))
    family = engine.base(base)
    prepared = family.prepare(engine.control(family, net), Hint(np.zeros((64, 64, 3), np.uint8), "depth"))
    assert levels_of(open_checkpoint(net)) == prepared.levels
