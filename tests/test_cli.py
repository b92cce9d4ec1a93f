"""The `limn` command from the outside: what it writes, prints and returns, and one line for everything that is wrong."""

import contextlib
import io
import json
import os
import re
import resource
import shutil
import signal
import struct
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

import cli
import controls
from controls import canny, estimators
from controls.prepare import load_map
from core.images import decode, encode_png
from core.provenance import read_record
from core.request import RenderRequest
from core.skeleton import draw_pose
from tests import tinymodels

SIZE = ("--size", "64x64", "--steps", "2")


@pytest.fixture(scope="session")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny base and its ControlNets beside it, as `models/toyland` is laid out."""
    folder = tmp_path_factory.mktemp("house")
    base = tinymodels.build_base(folder / "base")
    tinymodels.build_controlnet(folder / "controlnet-canny", base, seed=1)
    for kind in ("depth", "pose"):
        shutil.copytree(folder / "controlnet-canny", folder / f"controlnet-{kind}")
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test works in a folder of its own, which holds a picture and an edge map; no estimator is installed."""
    monkeypatch.setattr(estimators, "LOADERS", {})
    monkeypatch.chdir(tmp_path)
    picture = np.full((96, 128, 3), (70, 110, 60), np.uint8)
    picture[30:70, 40:90] = (210, 40, 30)
    Path("photo.png").write_bytes(encode_png(picture))
    Path("edges.png").write_bytes(encode_png(canny.extract(picture, canny.Params())))
    return tmp_path


def limn(*arguments: Any) -> int:
    return cli.run([str(argument) for argument in arguments])


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

    assert sorted(re.split(", | or ", cli.SAMPLERS)) == sorted(SAMPLERS)
    assert sorted(re.split(", | or ", cli.SCHEDULES)) == sorted(SCHEDULES)
    assert limn("render", "--help") == 0
    shown = capsys.readouterr().out
    for default in ("toyland", "128x128", "euler", "uniform", "4.0", "outputs"):
        assert f"[default: {default}]" in shown
    assert RenderRequest() == cli.DEFAULT


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


def test_models_lists_files_with_hashes(house: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(cli, "ROOT", house.parent)
    house.parent.joinpath("models").unlink(missing_ok=True)
    house.parent.joinpath("models").symlink_to(house)
    assert limn("models", "--json") == 0
    rows = json.loads(capsys.readouterr().out)["models"]
    assert {row["file"] for row in rows} >= {"base/unet/diffusion_pytorch_model.safetensors"}
    assert all(re.fullmatch("[0-9a-f]{64}", row["sha256"]) and row["bytes"] > 0 for row in rows)
    assert limn("models") == 0
    assert "base/unet/diffusion_pytorch_model.safetensors" in capsys.readouterr().out


def test_demo_draws_every_example_and_a_sheet(house: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "ROOT", here)
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
    requests = cli._read_requests(cli.ROOT / "examples" / "demo.json")
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


# What is wrong, and what the one line must name.
BAD = [
    (["-c", "canny=absent.png"], "absent.png"),
    (["-c", "canny=."], "'.'"),
    (["-c", "canny=text.png"], "is not a PNG, JPEG or WebP picture"),
    (["-c", "canny=bomb.png,ready"], "60000x60000 pixels"),
    (["-c", "canny=cut.png"], "cut.png"),
    (["-c", "canny=photo.png,mask=absent.png"], "absent.png"),
    (["-c", "cany=photo.png"], "unknown control 'cany': did you mean 'canny'?"),
    (["-c", "canny=photo.png,wait=1"], "unknown canny key 'wait'"),
    (["-c", "canny=photo.png,weight=2.5"], "less than or equal to 2"),
    (["-c", "canny=photo.png,start=0.7,end=0.2"], "start 0.7 is after end 0.2: give start <= end"),
    (["-c", "canny=photo.png,low=200,high=100"], "low 200 is above high 100: give low <= high"),
    (["-c", "depth=photo.png"], "give a finished depth map with 'ready'"),
    (["-c", "canny=photo.png"] * 9, "at most 8"),
    (["--size", "100x64"], "width = 100"),
    (["--size", "64x60"], "height = 60"),
    (["--size", "99999x64"], "width = 99999"),
    (["--size", "64"], "write WIDTHxHEIGHT"),
    (["--sampler", "eulr"], "did you mean 'euler'?"),
    (["--schedule", "karas"], "did you mean 'karras'?"),
    (["--steps", "0"], "steps = 0"),
    (["--steps", "many"], "'--steps'"),
    (["--guidance", "nan"], "guidance_scale"),
    (["--seed", "-1"], "seed = -1"),
    (["--count", "0"], "count = 0"),
    (["--stps", "3"], "No such option: --stps"),
    (["--model", "nowhere/at/all"], "no model 'nowhere/at/all'"),
    (["--model", "weights.ckpt"], "pickle"),
    (["--model", "weights.pt"], "pickle"),
    (["-c", "canny=photo.png,model=weights.bin"], "pickle"),
    (["-c", "canny=photo.png,model=absent"], "absent"),
    (["-c", "canny=photo.png,model=other-width"], "cross-attention"),
    (["-c", "canny=photo.png,model=other-family"], "SD3ControlNetModel"),
    (["-c", "canny=photo.png,model=incomplete"], "lack"),
    (["-c", "canny=photo.png,model=truncated"], "damaged or cut short"),
    (["--out", "photo.png"], "photo.png"),
]


@pytest.fixture(scope="session")
def wrong(tmp_path_factory: pytest.TempPathFactory, house: Path) -> Path:
    """Everything that is wrong in its own way."""
    from safetensors.numpy import load_file, save_file

    folder = tmp_path_factory.mktemp("wrong")
    (folder / "text.png").write_text("not a picture at all")
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    packed = [struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks]
    (folder / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))
    Pillow.effect_noise((64, 64), 90).save(folder / "whole.png")
    (folder / "cut.png").write_bytes((folder / "whole.png").read_bytes()[:2000])
    for name in ("weights.ckpt", "weights.pt", "weights.bin"):
        (folder / name).write_bytes(b"\x80\x04cos\nsystem\n")
    tinymodels.build_controlnet(folder / "other-width", tinymodels.build_base(folder / "base-64", width=64))
    for name in ("other-family", "incomplete", "truncated"):
        shutil.copytree(house / "controlnet-canny", folder / name)
    config = folder / "other-family" / "config.json"
    config.write_text(config.read_text().replace("ControlNetModel", "SD3ControlNetModel"))
    weights = "diffusion_pytorch_model.safetensors"
    tensors = load_file(folder / "incomplete" / weights)
    del tensors["controlnet_mid_block.weight"]
    save_file(tensors, folder / "incomplete" / weights, metadata={"format": "pt"})
    whole = (folder / "truncated" / weights).read_bytes()
    (folder / "truncated" / weights).write_bytes(whole[: len(whole) // 2])
    return folder


@pytest.mark.parametrize(("arguments", "named"), BAD, ids=[" ".join(arguments[:2]) for arguments, _ in BAD])
def test_bad_input_is_one_line_exit_2_and_nothing_written(
    arguments: list[str], named: str, house: Path, wrong: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for item in wrong.iterdir():
        (here / item.name).symlink_to(item)
    before = {path: path.stat().st_mtime_ns for path in here.iterdir()}
    given = [*SIZE, *arguments] if "--model" in arguments else ["--model", str(house / "base"), *SIZE, *arguments]
    assert limn("render", "-p", "a red cube", *given) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("limn: ")
    assert named in lines[0]
    assert {path: path.stat().st_mtime_ns for path in here.iterdir()} == before


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """Files can grow no further than 1 kB; no longer than needed, for the file that pytest may be writing to counts too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_nothing_half_written(house: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with full_disk():
        assert limn("render", "--model", house / "base", *SIZE) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no room to write" in line
    assert not list(Path("outputs").glob("*"))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["extract", "cany", "photo.png"], "did you mean 'canny'?"),
        (["extract", "canny"], "no picture given"),
        (["extract", "canny", "absent.png"], "absent.png"),
        (["extract", "canny", "photo.png", "lo=3"], "unknown canny setting 'lo'"),
        (["extract", "canny", "photo.png", "low"], "write KEY=VALUE"),
        (["extract", "pose", "photo.png"], "no pose estimator"),
        (["extract", "canny", "photo.png", "--resize", "squeeze"], "squeeze"),
        (["toyland", "build", "--count", "0", "--out", "data"], "count = 0"),
        (["toyland", "train", "--only", "bace", "--run", "run"], "did you mean 'base'?"),
        (["toyland", "train", "--recipe", "gup", "--run", "run"], "unknown recipe 'gup'"),
        (["train", "absent.yaml"], "absent.yaml"),
        (["evaluate", "--count", "0"], "count = 0"),
        (["evaluate", "--controlnet", "cany=folder"], "did you mean 'canny'?"),
        (["evaluate", "--controlnet", "folder"], "write KEY=VALUE"),
        (["toyland", "evaluate", "--count", "0"], "count = 0"),
        (["rendr"], "Did you mean 'render'?"),
        (["toyland", "build"], "--count"),
    ],
)
def test_other_commands_refuse_in_one_line(arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert limn(*arguments) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert named in line
    assert captured.out == ""
    assert not Path("map.png").exists()
