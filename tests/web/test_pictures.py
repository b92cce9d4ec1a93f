"""What can be had from a finished picture's file; and settings that other programs wrote."""

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cli
from core.errors import BadImage, BadRequest
from core.images import encode_png
from core.provenance import ControlRecord, Record, WeightFile, write_picture
from core.request import ControlUnit, Hires, Inversion, LoraUnit, RenderRequest
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
    assert words == ["limn", "render", "--vae", "some/vae", "--init-image", "a.png", "--inversion", "a photo of a cone"]


def test_the_command_asks_for_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    control = ControlUnit(kind="canny", image=Path("a, b.png"), params={"low": 20, "high": 200}, weight=0.5, end=0.7, mode="control")
    ready = ControlUnit(kind="depth", image=Path("d.png"), ready=True)
    request = RenderRequest(
        prompt="a 'red' cube, on $HOME", negative_prompt="-x", width=96, steps=3, seed=5, guidance_scale=2.5, sampler="ddim", eta=0.5,
        hires=Hires(scale=1.5), loras=(LoraUnit(name="bold", weight=0.5),), controls=(control, ready),
    )  # fmt: skip
    asked: list[RenderRequest] = []

    def noted(renderer: Any, request: RenderRequest) -> list[Any]:
        asked.append(request)
        return []

    monkeypatch.setattr(cli.render, "open_renderer", lambda *_: None)
    monkeypatch.setattr(cli.render, "stream", noted)
    monkeypatch.setattr("core.terminal.report", lambda *_: None)
    words = shlex.split(pictures.as_command(request))
    assert words[:2] == ["limn", "render"]
    cli.run(words[1:])
    (got,) = asked
    assert got.model_copy(update={"controls": ()}) == request.model_copy(update={"controls": ()})
    assert [one.model_dump(exclude={"params"}) for one in got.controls] == [one.model_dump(exclude={"params"}) for one in request.controls]
    assert got.controls[0].params["low"] == 20


def test_the_program_asks_for_the_same() -> None:
    request = RenderRequest(prompt='quote " and \\', controls=(ControlUnit(kind="depth", image=Path("d.png"), ready=True, weight=0.5),))
    program = pictures.as_python(request)
    start = program.index("request = ")
    names: dict[str, Any] = {}
    exec("from core.request import build_request\n" + program[start : program.index("for picture")], names)
    assert names["request"] == request


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
