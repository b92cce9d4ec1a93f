"""The `limn` command from the outside: what it writes, prints and returns, and one line for everything that is wrong."""

import io
import json
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import numpy as np
import pytest

import cli
import controls
from cli.main import repeating_dropped_interrupts
from controls import canny
from controls.prepare import load_map
from core.images import decode, encode_png
from core.provenance import read_record
from core.request import RenderRequest
from core.skeleton import draw_pose
from tests.cli.conftest import SIZE, limn


def test_render_writes_a_picture_with_its_record(house: Path, capsys: pytest.CaptureFixture[str]) -> None:
    control = "canny=photo.png,low=40,high=90,weight=0.8,end=0.9"
    assert limn("render", "-p", "a [red] box on [/grass]", "--model", house / "base", "-c", control, *SIZE, "--seed", 7) == 0
    (path,) = Path("outputs").iterdir()
    record = read_record(path)
    assert decode(path).shape == (64, 64, 3)
    assert record.seed == record.request.seed == 7
    assert record.request.prompt == "a [red] box on [/grass]"
    assert record.request.controls[0].params == {"low": 40, "high": 90}
    assert record.request.controls[0].weight == 0.8
    out = capsys.readouterr().out
    assert path.name in out
    assert "canny" in out
    assert "[red]" in out


def test_the_same_command_twice_gives_the_same_bytes_under_the_same_name(house: Path) -> None:
    command = ("render", "-p", "a red cube", "--model", house / "base", "-c", "canny=edges.png,ready", *SIZE, "--count", 2)
    assert limn(*command, "--out", "one") == 0
    assert limn(*command, "--out", "two") == 0
    assert limn(*command, "--out", "two") == 0
    first, second = sorted(Path("one").iterdir()), sorted(Path("two").iterdir())
    assert len(first) == len(second) == 2
    for a, b in zip(first, second, strict=True):
        assert a.name == b.name
        assert a.read_bytes() == b.read_bytes()


def test_output_names_hold_no_user_text(house: Path) -> None:
    assert limn("render", "-p", "../../etc/passwd\n; rm", "--model", house / "base", *SIZE) == 0
    assert [re.fullmatch(r"limn-[0-9a-f]+-0\.png", path.name) is not None for path in Path("outputs").iterdir()] == [True]


def test_json_for_machines(house: Path, capsys: pytest.CaptureFixture[str]) -> None:
    controls = ["-c", "canny=photo.png,low=20,high=60", "-c", "depth=photo.png,ready"]
    assert limn("render", "--model", house / "base", *controls, *SIZE, "--count", 2, "--seed", 3, "--json") == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert [picture["seed"] for picture in found["pictures"]] == [3, 4]
    assert all(Path(picture["path"]).is_file() for picture in found["pictures"])
    edges, depth = found["pictures"][0]["fidelity"]
    assert edges["kind"] == "canny"
    assert 0 <= edges["score"]["value"] <= 1
    assert depth == {"kind": "depth", "score": None}
    assert found["seconds"] > 0


def test_warnings_are_said_and_recorded(house: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert limn("render", "--model", house / "base", "-c", "canny=edges.png", *SIZE) == 0
    assert "limn: warning: edges.png looks like a finished canny map: add 'ready'" in capsys.readouterr().err
    (path,) = Path("outputs").iterdir()
    assert "add 'ready'" in read_record(path).notes[0]


def test_help_names_every_sampler_schedule_and_default(capsys: pytest.CaptureFixture[str]) -> None:
    from pipelines.samplers import SAMPLERS
    from pipelines.schedules import SCHEDULES

    assert sorted(re.split(", | or ", cli.render.SAMPLERS)) == sorted(SAMPLERS)
    assert sorted(re.split(", | or ", cli.render.SCHEDULES)) == sorted(SCHEDULES)
    assert limn("render", "--help") == 0
    shown = capsys.readouterr().out
    for default in ("toyland", "128x128", "euler", "uniform", "4.0", "outputs"):
        assert f"[default: {default}]" in shown
    assert RenderRequest() == cli.options.DEFAULT


def test_every_field_of_a_request_has_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert limn("render", "--help") == 0
    shown = capsys.readouterr().out
    renamed = {"negative_prompt": "negative", "guidance_scale": "guidance", "width": "size", "height": "size", "controls": "control"}
    for field in RenderRequest.model_fields:
        assert f"--{renamed.get(field, field.removesuffix('s') if field == 'loras' else field).replace('_', '-')}" in shown, field
    for heading in (cli.render.SAMPLING, cli.render.GUIDANCE, cli.render.START, cli.render.LARGER):
        assert heading in shown


def test_every_option_reaches_the_record(house: Path) -> None:
    guidance = ["--guidance", 3, "--guidance-start", 0.1, "--guidance-end", 0.9, "--guidance-rescale", 0.5, "--pag-scale", 1]
    variation = ["--variation-seed", 3, "--variation-strength", 0.2, "--sampler", "ddim", "--eta", 0.5]
    hires = ["--hires", "scale=1.5,upscaler=lanczos,strength=0.5", "--tile-vae", "on"]
    assert limn("render", "-p", "a cube", "--model", house / "base", "--size", "64x64", "--steps", 4, *guidance, *variation, *hires) == 0
    (path,) = Path("outputs").iterdir()
    asked = read_record(path).request
    assert (asked.guidance_scale, asked.guidance_start, asked.guidance_end, asked.guidance_rescale) == (3, 0.1, 0.9, 0.5)
    assert (asked.pag_scale, asked.variation_seed, asked.variation_strength, asked.eta, asked.tile_vae) == (1, 3, 0.2, 0.5, "on")
    assert asked.hires is not None
    assert (asked.hires.scale, asked.hires.upscaler, asked.hires.strength) == (1.5, "lanczos", 0.5)
    assert decode(path).shape == (96, 96, 3)
    picture = ["--init-image", "photo.png", "--mask", "edges.png", "--strength", 0.5, "--resize", "just", "--no-paste-back"]
    assert limn("render", "--model", house / "base", *SIZE, *picture, "--out", "begun") == 0
    (path,) = Path("begun").iterdir()
    asked = read_record(path).request
    assert (asked.init_image, asked.mask, asked.strength, asked.resize, asked.paste_back) == (
        Path("photo.png"),
        Path("edges.png"),
        0.5,
        "just",
        False,
    )


def test_what_is_not_typed_is_left_to_the_model(house: Path) -> None:
    """The tiny model was made for 64 pixels; the request's own default is 128."""
    assert limn("render", "--model", house / "base", "--steps", 1) == 0
    (path,) = Path("outputs").iterdir()
    assert decode(path).shape == (64, 64, 3)
    assert read_record(path).request.width == 64


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert limn() == 2
    captured = capsys.readouterr()
    assert "Usage: limn" in captured.out + captured.err


def test_extract_is_the_control_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert limn("extract", "canny", "photo.png", "-o", "maps/edges.png", "low=30", "high=60") == 0
    assert capsys.readouterr().out.strip() == "maps/edges.png"
    np.testing.assert_array_equal(decode(Path("maps/edges.png")), canny.extract(decode(Path("photo.png")), canny.Params(low=30, high=60)))
    assert limn("extract", "canny", "photo.png", "--size", "64x72", "--resize", "fill") == 0
    assert decode(Path("map.png")).shape == (72, 64, 3)


def test_extract_reads_a_kinds_own_file_at_its_own_size(capsys: pytest.CaptureFixture[str]) -> None:
    """The remedy that is named for a pose map on white."""
    people = [{"pose_keypoints_2d": [value for i in range(18) for value in (20 + 4 * i, 10 + 3 * i, 1)]}]
    Path("pose.json").write_text(json.dumps({"people": people, "canvas_width": 120, "canvas_height": 80}))
    Path("bare.json").write_text(json.dumps({"people": people}))
    np.save("depth.npy", np.arange(60.0 * 40).reshape(40, 60))
    assert limn("extract", "pose", "pose.json", "-o", "pose.png") == 0
    assert decode(Path("pose.png")).shape == (80, 120, 3)
    assert limn("extract", "depth", "depth.npy", "-o", "depth.png") == 0
    assert decode(Path("depth.png")).shape == (40, 60, 3)
    assert capsys.readouterr().err == ""
    assert limn("extract", "pose", "bare.json") == 2
    assert "give --size WxH" in capsys.readouterr().err
    assert limn("extract", "pose", "bare.json", "--size", "128x96") == 0


def test_extract_alone_lists_kinds_and_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert limn("extract") == 0
    shown = capsys.readouterr().out
    for word in ("canny", "low", "100", "high", "200", "depth", "pose", "finished maps only"):
        assert word in shown


def test_a_terminal_that_knows_ascii_alone_is_enough(house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", shown)
    monkeypatch.setattr(sys, "argv", ["limn", "render", "-p", "☃", "--model", str(house / "base"), *SIZE])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    shown.seek(0)
    assert "\\u2603" in shown.read()


def test_models_lists_files_with_hashes(capsys: pytest.CaptureFixture[str]) -> None:
    assert limn("models", "--json") == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["models"]}
    files = rows["toyland"]["files"]
    assert {row["file"] for row in files} >= {"unet/diffusion_pytorch_model.safetensors"}
    assert all(re.fullmatch("[0-9a-f]{64}", row["sha256"]) and row["bytes"] > 0 for row in files)
    assert limn("models") == 0
    assert "toyland" in capsys.readouterr().out


def test_demo_draws_every_example_and_a_sheet(house: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli.demo, "EXAMPLES", here / "examples" / "demo.json")
    examples = here / "examples"
    examples.mkdir()
    shutil.copy("edges.png", examples)
    (examples / "pose.png").write_bytes(encode_png(draw_pose(np.full((1, 18, 2), 32.0), 64, 64)))
    small = {"model": str(house / "base"), "width": 64, "height": 64, "steps": 2}
    kinds = {"canny": "edges.png", "pose": "pose.png"}
    rows = [
        {"prompt": prompt, **small, "controls": [{"kind": kind, "image": image, "ready": True}]}
        for prompt in ("a red cube", "a person")
        for kind, image in kinds.items()
    ]
    (examples / "demo.json").write_text(json.dumps(rows))
    assert limn("demo", "--out", "shown") == 0
    names = sorted(path.name for path in Path("shown").iterdir())
    assert names[0] == "contact-sheet.png"
    assert len([name for name in names if name.endswith("-0.png")]) == 4
    assert len([name for name in names if name.endswith("-canny.png")]) == 2
    assert len([name for name in names if name.endswith("-pose.png")]) == 2
    assert decode(Path("shown/contact-sheet.png")).shape[1] > 1000  # two strips of two pictures side by side


def test_the_shipped_examples_are_whole() -> None:
    requests = cli.demo.read_requests(cli.demo.EXAMPLES)
    assert len({request.prompt for request in requests}) == 3
    assert [request.controls[0].kind for request in requests] == ["canny", "depth", "pose"] * 3
    for request in requests:
        for unit in request.controls:
            assert load_map(unit, request.width, request.height).map_HWC.any()
            assert unit.ready or controls.get(unit.kind).looks_finished


def test_train_goes_from_a_config_to_a_folder_that_draws(house: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert limn("toyland", "build", "--count", 4, "--out", "data", "--size", 64, "--workers", 1) == 0
    Path("config.yaml").write_text(
        f"base: {house / 'base'}\nhint_channels: [8, 8, 16, 16]\n"
        "data: {folder: data, condition: canny, width: 64, height: 64}\n"
        "train: {out: run, steps: 9, batch_size: 2, device: cpu}\n"
    )
    assert limn("train", "config.yaml", "train.steps=2") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "run/weights"
    (folder,) = (path.parent for path in Path("run/weights").rglob("config.json"))
    assert limn("render", "--model", house / "base", "-c", f"canny=edges.png,ready,model={folder}", *SIZE) == 0
    assert limn("train", "config.yaml", "train.stepz=2") == 2
    assert "did you mean 'steps'?" in capsys.readouterr().err


def test_toyland_build_writes_a_dataset(capsys: pytest.CaptureFixture[str]) -> None:
    assert limn("toyland", "build", "--count", 2, "--seed", 5, "--out", "data", "--size", 64, "--workers", 1) == 0
    rows = [json.loads(line) for line in Path("data/metadata.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    assert capsys.readouterr().out.strip() == "data/metadata.jsonl"
    for column in ("file_name", "canny", "depth", "pose"):
        assert decode(Path("data") / rows[0][column]).shape == (64, 64, 3)


def press_ctrl_c_in(function: str, thread: int) -> None:
    """Interrupts this process as soon as a thread is inside a function."""

    def stack(frame: FrameType | None) -> Iterator[str]:
        while frame is not None:
            yield frame.f_code.co_name
            frame = frame.f_back

    while function not in stack(sys._current_frames()[thread]):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_ends_with_130(house: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job, as CI may be, ignores it
    hand = threading.Thread(target=press_ctrl_c_in, args=("denoise", threading.get_ident()))
    hand.start()
    assert limn("render", "--model", house / "base", "--size", "256x256", "--steps", 900) == 130
    hand.join()
    signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err.splitlines()[-1] == "limn: interrupted"
    assert not Path("outputs").exists()


def test_a_ctrl_c_that_python_drops_comes_again(capsys: pytest.CaptureFixture[str]) -> None:
    class Dropped:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    def work() -> None:
        Dropped()
        time.sleep(30)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt), repeating_dropped_interrupts():
        work()
    signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == ""
