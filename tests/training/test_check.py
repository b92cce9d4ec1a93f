"""`limn dataset check` finds what would spoil a training."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner, Result

from core.control import Image
from core.errors import BadRequest
from core.images import decode, encode_png
from tests.training.test_formats import LAYOUTS, config, folders, json_lines, picture
from training import commands
from training.check import check, refuse


def limn(*arguments: object) -> Result:
    app = typer.Typer()
    app.add_typer(commands.app, name="dataset")
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_good_dataset_passes_and_is_shown(tmp_path: Path) -> None:
    folder = folders(tmp_path / "data")
    found, page = check(config(folder))
    assert (found.pairs, found.mistakes, found.warnings) == (3, {}, {})
    assert page is not None
    sheet = tmp_path / "s.png"
    result = limn("dataset", "check", folder, "--condition", "hint", "--set", "width=64", "--set", "height=64", "--sheet", sheet)
    assert result.exit_code == 0
    assert f"3 pairs; some of them: {sheet}" in result.output
    assert np.array_equal(decode(tmp_path / "s.png"), page)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_only_condition_that_there_is_need_not_be_named(layout: str, tmp_path: Path) -> None:
    path = LAYOUTS[layout](tmp_path / "data")
    options = ["--sheet", tmp_path / "s.png", "--set", "width=64", "--set", "height=64"]
    if layout == "fill50k":  # which has the same conditions under two names there
        result = limn("dataset", "check", path, *options)
        assert re.search(r"which conditions\? give --condition NAME: dataset '.*' has source, hint", str(result.exception))
        rows = [json.loads(line) for line in (path / "prompt.json").read_text(encoding="utf-8").splitlines()]
        json_lines(path / "prompt.json", [{name: row[name] for name in ("source", "target", "prompt")} for row in rows])
    result = limn("dataset", "check", path, *options)
    assert result.exit_code == 0, result.exception
    assert "3 pairs" in result.output


def test_mistakes_of_one_kind_are_one_line(tmp_path: Path) -> None:
    folder = folders(tmp_path / "data")
    for number in range(3):
        (folder / "images" / f"{number}.txt").write_bytes("größer".encode("latin-1"))
    found, page = check(config(folder))
    first, *others = found.lines()
    assert first.endswith("0.txt' is not UTF-8 (byte 2): save it as UTF-8; and 2 more like it")
    assert [line.partition("'")[0] for line in others] == ["mistake: dataset "]
    assert page is None
    with pytest.raises(BadRequest, match="4 mistakes of 2 kinds"):
        refuse(found)


def test_what_cannot_be_extracted_does_not_hide_the_rest(tmp_path: Path) -> None:
    folder = folders(tmp_path / "data")
    (folder / "images" / "0.png").write_bytes(b"")
    found, page = check(config(folder, condition="depth", extract=True, params={"estimator": "nowhere/nothing.onnx"}))
    assert page is None
    said = "\n".join(found.lines())
    assert "a picture that cannot be decoded" in said
    assert "nothing.onnx" in said


def test_a_setting_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    result = limn("dataset", "check", folders(tmp_path / "data"), "--condition", "hint", "--set", "width=[1")
    assert isinstance(result.exception, BadRequest)
    assert "setting 'width=[1': '[1' is not YAML" in str(result.exception)


def test_every_mistake_is_found(tmp_path: Path) -> None:
    folder = folders(tmp_path / "data")
    lines_HWC = np.zeros((64, 72, 3), np.uint8)
    lines_HWC[::8] = 255

    def put(name: str, image: Image, condition: Image, caption: str) -> None:
        (folder / "images" / f"{name}.png").write_bytes(encode_png(image))
        (folder / "images" / f"{name}.txt").write_text(caption)
        (folder / "canny" / f"{name}.png").write_bytes(encode_png(condition))

    (folder / "hint").rename(folder / "canny")
    for seed in range(3):
        put(str(seed), picture(seed), lines_HWC, "x")
    put("copy", picture(0), lines_HWC, "y")
    put("inverted", picture(4), 255 - lines_HWC, "x")
    put("narrow", picture(5), lines_HWC[:, :40], "x")
    put("empty", picture(6), np.zeros((64, 72, 3), np.uint8), "x")
    put("unit", picture(7), lines_HWC // 255, "x")
    put("silent", picture(8), lines_HWC, "")
    put("small", picture(9)[:32, :36], lines_HWC, "x")
    put("cut", picture(3), lines_HWC, "x")
    cut = folder / "images" / "cut.png"
    cut.write_bytes(cut.read_bytes()[:400])
    found, _ = check(config(folder, condition="canny"))
    said = "\n".join(found.lines())
    for what in (
        "mostly white", "other proportions than its picture (40x64 for 72x64)", "an empty condition (all black)", "in the range 0 to 1",
        "cut.png", "empty caption: 1 of 11", "a duplicate: the same picture with another caption: 1 of 11", "smaller than 64x64",
    ):  # fmt: skip
        assert what in said, what
    assert "2.png" not in said
    assert "an empty condition (all black)" in found.warnings  # nobody may be in a picture
    result = limn("dataset", "check", folder, "--condition", "canny", "--sheet", tmp_path / "s.png")
    assert isinstance(result.exception, BadRequest)
    assert "mend them" in str(result.exception)
    assert "mostly white" in result.output
