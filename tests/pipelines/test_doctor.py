"""The doctor's sentences: requests whose parts do not fit, found without a weight being read."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import cli
from core.errors import Mismatch, OutOfMemory, UserError
from core.request import ControlUnit, RenderRequest, SkipLayers, build_request
from pipelines import doctor, footprint
from pipelines.checkpoint import open_checkpoint
from pipelines.engine import Engine, choose_place
from pipelines.outline import outline_of
from pipelines.place import Place
from pipelines.residency import Memory
from renderer import Renderer, examine
from tests import tinymodels, tinymodels_flux, tinymodels_sd3, tinymodels_sdxl

pytestmark = pytest.mark.filterwarnings("ignore:.FluxPosEmbed. is deprecated:FutureWarning")

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bases, controls and LoRAs of several families, side by side."""
    folder = tinymodels.build_pictures(tmp_path_factory.mktemp("doctor"))
    tinymodels.build_models(folder)
    tinymodels_sdxl.build_base(folder / "sdxl")
    tinymodels_sdxl.build_union(folder / "union", folder / "sdxl", types=6)
    tinymodels_sdxl.build_adapter(folder / "adapter", (48, 96))
    tinymodels_sd3.build_base(folder / "sd3", t5=False)
    tinymodels_flux.build_controlnet(folder / "flux-net")
    save_file({"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": torch.zeros(2, 8)}, folder / "other.safetensors")
    return folder


def control(house: Path, kind: str, net: str | None) -> dict[str, Any]:
    image = {"kind": kind, "image": str(house / "depth.png"), "ready": True}
    return image if net is None else image | {"model": str(house / net)}


def mismatches(house: Path) -> list[tuple[dict[str, Any], str]]:
    """(what is wrong with a request for the tiny base, the sentence's beginning)"""
    return [
        ({"sampler": "eulr"}, r"unknown sampler 'eulr': did you mean 'euler'\?"),
        ({"model": "sd3", "schedule": "karras"}, r"schedule 'karras'"),
        ({"model": "sd3", "width": 72}, r"width = 72: this model draws in .* 16 pixels; give a multiple"),
        (
            {"controls": [control(house, "depth", "wide-net")]},
            r"ControlNet '.*wide-net' is for cross-attention width 48, the base model .* 32",
        ),
        (
            {"controls": [control(house, "depth", "flux-net")]},
            r"'.*flux-net' is a ControlNet for FLUX.1, the base model '.*' is Stable Diff",
        ),
        ({"controls": [control(house, "depth", "adapter")]}, r"T2I-Adapter '.*adapter' makes features of 48 channels at 1/8, 96 channels"),
        (
            {"model": "sdxl", "controls": [control(house, "tile", "union")]},
            r"control 0 .tile.: the union ControlNet .* is made for pose, depth",
        ),
        (
            {"controls": [control(house, "depth", "wide")]},
            r"'.*wide' is a whole model .*, not a ControlNetModel: give a ControlNet's folder",
        ),
        ({"loras": [{"name": str(house / "other.safetensors")}]}, r"LoRA 'other.safetensors' is for FLUX and does not fit this model"),
        ({"controls": [control(house, "nope", None)]}, r"unknown control 'nope': did you mean 'pose'\?"),
        ({"model": "\0/"}, r"no model '.x00/': give 'toyland', a diffusers folder"),
        ({"model": "somebody/something"}, r"hub model 'somebody/something' is not installed: run 'limn models add somebody/something'"),
        ({"true_cfg_scale": 3.0}, r"true_cfg_scale = 3: Stable Diffusion 1.x or 2.x is guided by guidance_scale; leave"),
        ({"hires": {"scale": 4.0}, "width": 2048, "height": 2048}, r"hires.scale = 4: 2048 pixels become 8192, over the limit of 4096"),
    ]


def test_mismatched_requests_are_each_one_plain_sentence(house: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    cases = mismatches(house)
    assert len(cases) >= 10
    for wrong, sentence in cases:
        model = wrong.get("model", "base")
        request = {"width": 64, "height": 64} | wrong | {"model": model if "/" in model else str(house / model)}
        (tmp_path / "request.json").write_text(json.dumps(request))
        assert cli.run(["doctor", str(tmp_path / "request.json")]) == 2, wrong
        errors = [line for line in capsys.readouterr().out.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1
        assert re.match(f"error: {sentence}", errors[0]), errors


def test_ten_requests_of_a_list_are_ten_sentences(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """As docs/models.md shows it, with what ships."""
    monkeypatch.chdir(ROOT)
    assert cli.run(["doctor", "examples/mismatches.json"]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert [re.match(r"request (\d+): error: .*\w", line) is not None for line in lines] == [True] * 10
    assert [line.split(":")[0] for line in lines] == [f"request {number}" for number in range(1, 11)]
    assert cli.run(["doctor", "examples/mismatches.json", "--json"]) == 2
    found = json.loads(capsys.readouterr().out)["findings"]
    assert [one["request"] for one in found] == list(range(1, 11))
    assert {one["level"] for one in found} == {"error"}
    assert cli.run(["doctor", "examples/demo.json"]) == 0
    assert capsys.readouterr().out == "nothing is wrong\n"


def test_a_healthy_request(house: Path, capsys: pytest.CaptureFixture[str]) -> None:
    depth = f"depth={house / 'depth.png'},ready=true"
    assert cli.run(["doctor", "--model", str(house / "base"), "-c", depth, "--size", "64x64"]) == 0
    assert capsys.readouterr().out == "nothing is wrong\n"


def test_findings_as_json(house: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["doctor", "--model", str(house / "base"), "--size", "256x256", "--sampler", "x", "--json"]) == 2
    found = json.loads(capsys.readouterr().out)["findings"]
    assert [(one["level"], one["about"]) for one in found] == [("error", "sampler"), ("warning", "size")]
    assert "far from the 64 × 64 that this model was made for, where it often repeats its subject" in found[1]["text"]


def test_the_renderer_asks_first(house: Path) -> None:
    renderer = Renderer.open(str(house / "base"))
    unit = ControlUnit(kind="depth", image=house / "depth.png", ready=True, model=str(house / "wide-net"))
    request = RenderRequest(width=64, height=64, controls=(unit,))
    found = renderer.examine(request)
    assert [type(one.error) for one in found] == [Mismatch]
    with pytest.raises(Mismatch) as raised:
        renderer.render(request)
    assert str(raised.value) == found[0].text


def test_no_weight_is_read(house: Path) -> None:
    """The outline answers as the model does, and holds nothing."""
    family = outline_of(open_checkpoint(house / "base"), choose_place())
    parameters = [parameter for network in family.networks().values() for parameter in network.parameters()]
    assert parameters
    assert all(parameter.is_meta for parameter in parameters)


def test_kinds_on_the_card_and_in_the_name(house: Path) -> None:
    engine = Engine(choose_place())

    def found(kind: str, net: str) -> list[str]:
        request = build_request({"model": str(house / "base"), "width": 64, "height": 64, "controls": [control(house, kind, net)]})
        return [one.text for one in examine(request, engine)]

    assert found("depth", "controlnet-depth") == []
    assert "going by its name alone, which proves nothing" in found("depth", "controlnet-canny")[0]
    card = house / "controlnet-canny" / "README.md"
    card.write_text("---\ntags: [controlnet, openpose]\n---\n# A net\n")
    try:
        assert found("pose", "controlnet-canny") == []
        assert "says pose: a depth map will steer it badly" in found("depth", "controlnet-canny")[0]
    finally:
        card.unlink()


@pytest.mark.parametrize(
    ("free", "fields", "says"),
    [
        (100_000_000, {"width": 1024, "height": 1024}, r"about 0.3 GB will be needed .4 MB of weights.*: with tile_vae on it would fit"),
        (30_000_000, {"width": 1024, "height": 1024}, r"will be needed .*: at 320 × 320 it would fit"),
        (100_000, {}, r"the largest network alone takes \d+ MB, 1 MB are free on cpu: use a smaller model"),
    ],
)
def test_memory(house: Path, free: int, fields: dict[str, Any], says: str) -> None:
    request = build_request({"model": str(house / "base"), "width": 64, "height": 64} | fields)
    around = doctor.Surroundings(find_net=lambda unit, family: None, free=free)
    found = [one for one in doctor.examine(request, Engine(choose_place()), around) if one.about == "memory"]
    assert len(found) == 1
    assert re.search(says, found[0].text), found[0].text
    assert isinstance(found[0].error, OutOfMemory) == (free == 100_000)


def test_memory_on_a_graphics_card(house: Path) -> None:
    """What would fit is asked of every setting, the fastest first; no card is needed to reckon."""
    request = build_request({"model": str(house / "base"), "width": 64, "height": 64, "guidance_scale": 1.0})
    place = Place(torch.device("cuda"), torch.float16)
    family = outline_of(open_checkpoint(house / "base"), place)
    settings = {
        "storage float8": Memory(storage="float8"),
        "offload model": Memory(offload="model"),
        "offload group": Memory(offload="group"),
    }
    needs = {name: footprint.footprint(family, request, [], memory=memory).total for name, memory in settings.items()}
    assert max(needs.values()) < footprint.footprint(family, request, []).total
    for free in needs.values():
        around = doctor.Surroundings(find_net=lambda unit, family: None, free=free)
        (found,) = [one for one in doctor.examine(request, Engine(place), around) if one.about == "memory"]
        if isinstance(found.error, OutOfMemory):  # the largest network alone is too much
            assert "use a smaller model, or offload group, storage float8, quantise nf4" in found.text
            continue
        named = re.search(r"with (\w+ \w+) it would fit", found.text)
        assert named is not None, found.text
        assert needs[named[1]] <= free
        asked = Engine(place, settings[named[1]])
        assert not [one for one in doctor.examine(request, asked, around) if one.about == "memory"]


def test_footprints_add_up(house: Path) -> None:
    family = outline_of(open_checkpoint(house / "base"), choose_place())
    files = sum(path.stat().st_size for path in (house / "base").rglob("*.safetensors"))
    request = RenderRequest(width=64, height=64, guidance_scale=4.0)
    one = footprint.footprint(family, request, [])
    assert one.weights == pytest.approx(files, rel=0.1)  # headers besides
    assert footprint.footprint(family, request.model_copy(update={"guidance_scale": 1.0}), []).forward * 2 == one.forward
    weaker = request.model_copy(update={"pag_scale": 1.0, "skip_layers": SkipLayers()})
    assert footprint.footprint(family, weaker, []).forward == 2 * one.forward
    assert footprint.footprint(family, request, [], together=4).decode == 4 * one.decode
    assert footprint.footprint(family, request, [], loaded=True).weights == 0


def test_every_error_is_the_users_to_mend(house: Path) -> None:
    engine = Engine(choose_place())
    for wrong, _ in mismatches(house)[:3]:
        model = str(house / wrong.get("model", "base"))
        found = examine(build_request({"width": 64, "height": 64} | wrong | {"model": model}), engine)
        assert all(isinstance(one.error, UserError) for one in found if one.error)
