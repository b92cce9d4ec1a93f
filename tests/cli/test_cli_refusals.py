"""What is wrong, in one line: exit code 2 and nothing written."""

import contextlib
import io
import resource
import shutil
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image as Pillow

from tests import tinymodels
from tests.cli.conftest import SIZE, limn

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
    (["--strength", "2"], "strength = 2"),
    (["--mask", "edges.png"], "mask without init_image"),
    (["--init-image", "absent.png"], "absent.png"),
    (["--init-image", "photo.png", "--mask", "whole.png"], "give a mask of the picture's size"),
    (["--init-image", "photo.png", "--strength", "0.1"], "none is left"),
    (["--skip-layers", "7,8"], "skip_layers.blocks.0 = '7,8'"),
    (["--skip-layers", "7 8"], "has no skip-layer guidance, which is for transformers"),
    (["--hires", "big"], "hires.scale = 'big'"),
    (["--hires", "scale=2,uspcaler=latent"], "did you mean 'upscaler'?"),
    (["--lora", "absent=0.5"], "unknown LoRA 'absent'"),
    (["--lora", "absent=much"], "loras.0.weight = 'much'"),
    (["--eta", "0.5"], "euler has no such setting"),
    (["--true-cfg-scale", "2"], "is guided by guidance_scale"),
    (["-p", "a __colour__ cube"], "wildcard"),
    (["-c", "canny=photo.png,layer_weights=1;0.5"], "layer_weights has 2 numbers"),
    (["-c", "canny=photo.png,layer_weights=much"], "layer_weights"),
    (["--count", "0"], "count = 0"),
    (["--stps", "3"], "No such option: --stps"),
    (["--model", "nowhere/at/all"], "no model 'nowhere/at/all'"),
    (["--model", "weights.ckpt"], "pickle"),
    (["--model", "weights.pt"], "pickle"),
    (["-c", "canny=photo.png,model=weights.bin"], "pickle"),
    (["-c", "canny=photo.png,model=absent"], "absent"),
    (["-c", "canny=photo.png,model=other-width"], "cross-attention"),
    (["-c", "canny=photo.png,model=other-family"], "is a ControlNet for Stable Diffusion 3"),
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
        (["extract", "canny", "photo.png", "--size", "0x64"], "a map of 0x64: sides of 1 to"),
        (["extract", "canny", "photo.png", "--size", "99999x99999"], "a map of 99999x99999: sides of 1 to"),
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


@pytest.mark.parametrize(
    "command",
    [
        ("ui", "--out"),
        ("toyland", "build", "--count", "1", "--out"),
        ("evaluate", "control", "--count", "1", "--out"),
        ("render", "jobs.jsonl", "--out"),
    ],
)
def test_a_file_is_no_folder_for_results(command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    Path("jobs.jsonl").write_text('{"prompt": "a cube"}')
    with contextlib.redirect_stderr(io.StringIO()) as said:
        assert limn(*command, "file") == 2
    assert "'file': file exists; choose another folder" in said.getvalue()


def test_what_is_to_be_verified_exists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert limn("verify", tmp_path / "absent.png") == 2
    assert "does not exist: give pictures, or folders of them" in capsys.readouterr().err
