"""`limn evaluate control` from the outside: a folder of pictures in; table, JSON and plot out; one line for what is wrong."""

import json
from pathlib import Path

import pytest

from core.images import decode
from tests.cli.conftest import limn


def test_a_folder_of_pictures_is_measured(house: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("photos").mkdir()
    Path("photo.png").rename("photos/photo.png")
    Path("photos/photo.txt").write_text("a red box")
    command = ("evaluate", "control", "--model", house / "base", "--controls", "canny, softedge", "--pictures", "photos", "--size", "64x64")
    settings = ("--controlnet", f"softedge={house / 'controlnet-canny'}", "--steps", 1, "--sweep", 1, "--seeds", 2, "--workers", 1)
    assert limn(*command, *settings, "--out", "found") == 0
    shown = capsys.readouterr().out
    assert "canny: edge F1 within 1 px: floor 0" in shown
    assert "softedge: best of several 0." in shown
    assert decode(Path("found/fidelity.png")).shape == (340, 900, 3)
    assert Path("found/table.md").read_text().count("| 1 |") == 2
    assert limn(*command, *settings, "--out", "found", "--json") == 0  # nothing is drawn again
    values = json.loads(capsys.readouterr().out)
    assert values == json.loads(Path("found/evaluation.json").read_text())
    assert [row["kind"] for row in values["rows"]] == ["canny", "softedge"]
    assert values["settings"]["fields"] == {"steps": 1, "width": 64, "height": 64}
    weights = {at for at, _ in values["rows"][0]["weights"]}
    assert weights == {0, 0.25, 0.5, 0.75, 1, 1.25, 1.5}
    settings = (*settings[:4], "--sweep", 0, "--workers", 1)
    assert limn(*command, *settings, "--out", "found") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "written: found/evaluation.json, found/table.md"
    assert not Path("found/fidelity.png").exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--count", "0"], "count = 0"),
        (["--controls", "cany"], "did you mean 'canny'?"),
        (["--controls", ","], "no kind of control"),
        (["--controlnet", "cany=folder"], "did you mean 'canny'?"),
        (["--pictures", "absent"], "'absent' is no folder"),
        (["--pictures", "."], "'edges.png' has no caption"),
        (["--prompt", "a box"], "--prompt goes with --pictures"),
        (["--size", "64"], "write WIDTHxHEIGHT"),
        (["--model", "absent/model"], "absent/model"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert limn("evaluate", "control", *arguments) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert named in line
    assert captured.out == ""
    assert not Path("outputs").exists()
