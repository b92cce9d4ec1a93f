"""What can be had from a finished picture's file; and settings that other programs wrote."""

import json
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import cli
from core.errors import BadImage, BadRequest
from core.images import encode_png
from core.provenance import ControlRecord, Record, WeightFile, write_picture
from core.request import ControlUnit, Hires, Inversion, LoraUnit, RenderRequest, SkipLayers
from pipelines.families.flux import Flux
from pipelines.opening import Opening
from pipelines.planning import with_defaults
from web import pictures, sizes

A1111 = """a cat, (sitting:1.2)
on a "mat"
Negative prompt: blurry, dark
Steps: 25, Sampler: DPM++ 2M Karras, CFG scale: 6.5, Seed: 4294967295, Size: 512x768, Model hash: abc, Model: some model, \
ControlNet 0: "Module: canny, Model: x [1], Weight: 1.0", Version: v1.9.0"""
COMFY: dict[str, Any] = {
    "3": {
        "class_type": "KSampler",
        "inputs": {
            "seed": 8, "steps": 12, "cfg": 5.5, "sampler_name": "dpmpp_2m", "scheduler": "karras",
            "positive": ["9", 0], "negative": ["7", 0], "latent_image": ["5", 0],
        },
    },
    "9": {"class_type": "ControlNetApply", "inputs": {"conditioning": ["6", 0], "image": ["1", 0], "strength": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a dog", "clip": ["4", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "fog", "clip": ["4", 1]}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 640, "height": 448, "batch_size": 1}},
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "some.safetensors"}},
    "1": {"class_type": "LoadImage", "inputs": {"image": "edges.png"}},
}  # fmt: skip
INVOKE = {"positive_prompt": "a fox", "negative_prompt": "snow", "seed": 9, "steps": 30, "cfg_scale": 7.5, "width": 512, "height": 512}
INVOKE |= {"scheduler": "dpmpp_2m_k", "model": {"name": "sd"}, "controlnets": [{}, {}]}


def written(folder: Path, texts: dict[str, str]) -> Path:
    path = folder / "given.png"
    path.write_bytes(encode_png(np.zeros((8, 8, 3), np.uint8), texts))
    return path


@pytest.mark.parametrize(
    ("texts", "origin", "wanted", "lost"),
    [
        (
            {"parameters": A1111},
            "AUTOMATIC1111",
            {
                "prompt": 'a cat, (sitting:1.2)\non a "mat"', "negative_prompt": "blurry, dark", "steps": 25, "sampler": "dpmpp_2m",
                "schedule": "karras", "guidance_scale": 6.5, "seed": 4294967295, "width": 512, "height": 768,
            },
            ["the model 'some model'", "ControlNet 0 (its picture is not in the file)"],
        ),
        (
            {"prompt": json.dumps(COMFY)},
            "ComfyUI",
            {
                "prompt": "a dog", "negative_prompt": "fog", "steps": 12, "sampler": "dpmpp_2m", "schedule": "karras",
                "guidance_scale": 5.5, "seed": 8, "width": 640, "height": 448,
            },
            ["the model 'some.safetensors'", "1 control (their pictures are not in the file)"],
        ),
        (
            {"invokeai_metadata": json.dumps(INVOKE)},
            "InvokeAI",
            {
                "prompt": "a fox", "negative_prompt": "snow", "steps": 30, "sampler": "dpmpp_2m", "schedule": "karras",
                "guidance_scale": 7.5, "seed": 9, "width": 512, "height": 512,
            },
            ["the model 'sd'", "2 controls (their pictures are not in the file)"],
        ),
    ],
)  # fmt: skip
def test_settings_of_other_programs(texts: dict[str, str], origin: str, wanted: dict[str, Any], lost: list[str], tmp_path: Path) -> None:
    found = pictures.read_settings(written(tmp_path, texts))
    assert found.origin == f"a picture from {origin}"
    assert found.request == RenderRequest(**wanted)
    assert found.lost == lost


def test_what_is_not_restored_is_named(tmp_path: Path) -> None:
    more = ", Variation seed: 3, Variation seed strength: 0.4, ENSD: 31337, Eta: 0.67, VAE: other.safetensors, Version: v1.9.0"
    begun = pictures.read_settings(written(tmp_path, {"parameters": f"a cat\nSteps: 9, Sampler: Euler, Denoising strength: 0.6{more}"}))
    assert (begun.request.variation_seed, begun.request.variation_strength, begun.request.steps) == (3, 0.4, 9)
    assert begun.lost == ["the picture it began from", "ENSD 31337", "Eta 0.67", "VAE other.safetensors"]
    larger = "a cat\nSteps: 9, Sampler: Euler, Denoising strength: 0.6, Hires upscale: 1.5, Hires steps: 8, Hires upscaler: "
    found = pictures.read_settings(written(tmp_path, {"parameters": f"{larger}Latent"}))
    assert (found.request.hires, found.lost) == (Hires(scale=1.5, steps=8, strength=0.6), [])
    other = pictures.read_settings(written(tmp_path, {"parameters": f"{larger}R-ESRGAN 4x+"}))
    assert (other.request.hires, other.lost) == (None, ["the second pass with the upscaler 'R-ESRGAN 4x+'"])
    graph = {key: {"class_type": node["class_type"], "inputs": dict(node["inputs"])} for key, node in COMFY.items()}
    graph["3"]["inputs"]["denoise"] = 0.5
    graph |= {"11": {"class_type": "LoraLoader", "inputs": {"lora_name": "bold.safetensors"}}}
    graph |= {"12": {"class_type": "CLIPSetLastLayer", "inputs": {"stop_at_clip_layer": -2}}}
    comfy = pictures.read_settings(written(tmp_path, {"prompt": json.dumps(graph)}))
    assert (comfy.request.clip_skip, comfy.request.pag_scale) == (2, 0.0)
    assert comfy.lost[1:3] == ["the LoRA 'bold.safetensors'", "the picture it began from"]
    graph["13"] = {"class_type": "PerturbedAttentionGuidance", "inputs": {"model": ["4", 0], "scale": 3.0}}
    graph["14"] = {"class_type": "SkipLayerGuidanceSD3", "inputs": {"model": ["13", 0], "layers": "7, 8, 9", "scale": 3.0}}
    weaker = pictures.read_settings(written(tmp_path, {"prompt": json.dumps(graph)}))
    assert weaker.request.pag_scale == 3.0
    assert "the skip-layer guidance of 7, 8, 9, whose window it counts otherwise" in weaker.lost
    graph["13"]["inputs"]["scale"] = 30
    strong = pictures.read_settings(written(tmp_path, {"prompt": json.dumps(graph)}))
    assert (strong.request.pag_scale, "the perturbed attention of 30, over Limn's 20" in strong.lost) == (0.0, True)
    invoke = INVOKE | {"loras": [{}], "clip_skip": 1, "strength": 0.5, "vae": None}
    made = pictures.read_settings(written(tmp_path, {"invokeai_metadata": json.dumps(invoke)}))
    assert (made.request.clip_skip, made.lost[1:3]) == (2, ["the picture it began from", "loras"])


@pytest.mark.parametrize(
    "texts",
    [
        {"parameters": "nothing at all"},
        {"parameters": "x\nSteps: many"},
        {"prompt": "[[[["},
        {"prompt": "{}"},
        {"prompt": '{"1": {"class_type": "KSampler"}}'},
        {"prompt": "[" * 100_000},
        {"invokeai_metadata": "7"},
        {"invokeai_metadata": '{"steps": "NaN"}'},
        {"limn": "{}"},
        {},
    ],
)
def test_damaged_settings_are_one_sentence(texts: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises((BadRequest, BadImage)) as refused:
        pictures.read_settings(written(tmp_path, texts))
    assert "\n" not in str(refused.value)


def test_a_loop_in_a_graph_ends(tmp_path: Path) -> None:
    looped = {key: {"class_type": node["class_type"], "inputs": dict(node["inputs"])} for key, node in COMFY.items()}
    looped["6"]["inputs"] = {"conditioning": ["9", 0]}
    assert pictures.read_settings(written(tmp_path, {"prompt": json.dumps(looped)})).request.prompt == ""


def test_an_inversion_is_asked_for_by_its_prompt() -> None:
    request = RenderRequest(init_image=Path("a.png"), inversion=Inversion(prompt="a photo of a cone"), vae="some/vae")
    words = shlex.split(pictures.as_command(request))
    own = shlex.split("--steps 20 --sampler euler --schedule uniform --guidance 4.0")
    given = ["--vae", "some/vae", *own, "--init-image", "a.png", "--size", "128x128", "--inversion", "a photo of a cone"]
    assert words == ["limn", "render", *given]


def read_back(command: str, monkeypatch: pytest.MonkeyPatch) -> tuple[RenderRequest, dict[str, Any]]:
    """What `limn render` would draw, and the options of how it opens the model."""
    asked: list[Any] = []

    def noted(renderer: Any, request: RenderRequest) -> list[Any]:
        asked.append(request)
        return []

    monkeypatch.setattr(cli.render, "open_renderer", lambda model, options: asked.append(options))
    monkeypatch.setattr(cli.render, "stream", noted)
    monkeypatch.setattr("core.terminal.report", lambda *_: None)
    words = shlex.split(command)
    assert words[:2] == ["limn", "render"]
    cli.run(words[1:])
    options, request = asked
    return request, options


def program(text: str) -> dict[str, Any]:
    """What a program's first lines make, without the drawing."""
    names: dict[str, Any] = {}
    exec(text[: text.index("for picture")], names)
    return names


def test_the_command_asks_for_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    control = ControlUnit(kind="canny", image=Path("a, b.png"), params={"low": 20, "high": 200}, weight=0.5, end=0.7, mode="control")
    ready = ControlUnit(kind="depth", image=Path("d.png"), ready=True)
    request = RenderRequest(
        prompt="a 'red' cube, on $HOME", negative_prompt="-x", width=96, steps=3, seed=5, guidance_scale=2.5, sampler="ddim", eta=0.5,
        hires=Hires(scale=1.5), skip_layers=SkipLayers(blocks=(1, 2), scale=3.0), loras=(LoraUnit(name="bold", weight=0.5),),
        controls=(control, ready),
    )  # fmt: skip
    got, _ = read_back(pictures.as_command(request), monkeypatch)
    assert got.model_copy(update={"controls": ()}) == request.model_copy(update={"controls": ()})
    assert [one.model_dump(exclude={"params"}) for one in got.controls] == [one.model_dump(exclude={"params"}) for one in request.controls]
    assert got.controls[0].params["low"] == 20


def test_the_program_asks_for_the_same() -> None:
    request = RenderRequest(prompt='quote " and \\', controls=(ControlUnit(kind="depth", image=Path("d.png"), ready=True, weight=0.5),))
    assert program(pictures.as_python(request))["request"] == request


def test_a_model_s_own_defaults_do_not_take_the_place_of_what_was_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    request = RenderRequest(model="some/model")  # all of it was asked for, though each is what Limn takes by itself
    own = {"width": 512, "height": 512, "steps": 25, "guidance_scale": 7.0, "sampler": "dpmpp_2m", "schedule": "karras"}
    family: Any = SimpleNamespace(defaults=own)
    for got in (read_back(pictures.as_command(request), monkeypatch)[0], program(pictures.as_python(request))["request"]):
        assert with_defaults(got, family) == request
    flux: Any = Flux.defaults
    assert own.keys() | flux.fget(SimpleNamespace(guidance="none", extra="nothing")).keys() <= pictures.MODELS_OWN


def test_how_the_page_has_opened_the_model_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    opening = Opening(device="cpu", dtype="bfloat16", offload="model")
    _, options = read_back(pictures.as_command(RenderRequest(), opening), monkeypatch)
    assert Opening.asked(options) == opening
    text = pictures.as_python(RenderRequest(), opening)
    assert "Renderer.open('toyland', **Opening(device='cpu', dtype='bfloat16', offload='model').arguments)" in text
    assert program(text)["Opening"] is Opening


@pytest.mark.parametrize("aspect", sizes.ASPECTS)
@pytest.mark.parametrize("size", [(128, 128), (512, 768), (1024, 1024)])
def test_an_aspect_keeps_the_area(aspect: str, size: tuple[int, int]) -> None:
    width, height = sizes.of_aspect(aspect, *size)
    assert 0.8 < width * height / (size[0] * size[1]) < 1.25
    assert abs(width / height / sizes.ASPECTS[aspect] - 1) < 0.2
    assert RenderRequest(width=width, height=height)


def test_what_is_shown_beside_the_wanted_map_was_found_as_it_was(tmp_path: Path) -> None:
    """At the same resolution, and by the same network: toyland's own does not speak for another model's pictures."""
    drawn_HWC = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    (tmp_path / "source.png").write_bytes(encode_png(drawn_HWC))
    finished = np.repeat(np.repeat(np.arange(64, dtype=np.uint8)[:, None, None] * 4, 64, axis=1), 3, axis=2)
    (tmp_path / "depth.png").write_bytes(encode_png(finished))
    units = (
        ControlUnit(kind="canny", image=tmp_path / "source.png", processor_px=128),
        ControlUnit(kind="depth", image=tmp_path / "depth.png", ready=True),
    )
    weights = (WeightFile(part="base", file="unet.safetensors", sha256="0" * 64),)
    known = [ControlRecord(source_sha256="0" * 64, map_sha256="0" * 64) for _ in units]
    for model, kinds in (("toyland", ["canny", "depth"]), ("owner/photographs", ["canny"])):
        request = RenderRequest(width=64, height=64, model=model, controls=units)
        path = tmp_path / "drawn.png"
        record = Record(request=request, index=0, seed=0, weights=weights, controls=tuple(known))
        write_picture(path, drawn_HWC, record)
        shown = pictures.overlays(path)
        assert [caption.partition(":")[0] for _, caption in shown] == kinds
        assert set(np.unique(shown[0][0].reshape(-1, 3), axis=0).ravel()) == {0, 255}  # the picture's own edges: all agree
