"""`limn render --best-of` and `--min-fidelity` without a batch: the best is what a plain render would measure as such."""

import json
from pathlib import Path
from typing import Any

import pytest

from core.images import decode
from core.provenance import read_record
from tests.cli.conftest import SIZE, limn

CONTROL = ("-c", "canny=photo.png,low=20,high=60")


def tried(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return dict(json.loads(capsys.readouterr().out.splitlines()[-1]))


def fidelity(path: str) -> float:
    (control,) = read_record(Path(path)).controls
    assert control.fidelity is not None
    return control.fidelity.value


def test_the_best_of_several_is_written_and_the_others_lie_apart(house: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw = ("render", "--model", house / "base", *CONTROL, *SIZE, "--seed", 5, "--json")
    assert limn(*draw, "--count", 4, "--out", "plain") == 0
    plain = {picture["seed"]: fidelity(picture["path"]) for picture in tried(capsys)["pictures"]}
    assert limn(*draw, "--best-of", 4, "--out", "best") == 0
    found = tried(capsys)
    assert {one["seed"]: one["score"] for one in found["tried"]} == pytest.approx(plain, abs=1e-6)
    (kept,) = [one for one in found["tried"] if one["kept"]]
    assert kept["score"] == max(one["score"] for one in found["tried"])
    assert [picture["path"] for picture in found["pictures"]] == [kept["path"]]
    assert [path.name for path in Path("best").glob("*.png")] == [Path(kept["path"]).name]
    assert len(list(Path("best/rejected").iterdir())) == 3
    same = Path("plain") / Path(kept["path"]).name  # the seed's own name, however it was found
    assert (decode(same) == decode(Path(kept["path"]))).all()
    assert all(one["seconds"] > 0 for one in found["tried"])


def test_drawing_ends_with_the_first_that_is_faithful_enough(house: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw = ("render", "--model", house / "base", *CONTROL, *SIZE, "--json")
    assert limn(*draw, "--count", 6, "--out", "plain") == 0
    plain = [fidelity(picture["path"]) for picture in tried(capsys)["pictures"]]
    later = max(range(1, 6), key=lambda i: plain[i] - max(plain[:i]))  # clearly above all before it
    wanted = (plain[later] + max(plain[:later])) / 2
    if plain[later] <= max(plain[:later]):
        later, wanted = 0, plain[0]
    assert limn(*draw, "--min-fidelity", wanted - 1e-6, "--tries", 6, "--out", "gate") == 0
    found = tried(capsys)
    assert [one["seed"] for one in found["tried"]] == list(range(later + 1))
    assert [one["kept"] for one in found["tried"]] == [False] * later + [True]


def test_where_none_is_faithful_enough_all_are_rejected_and_it_is_said(house: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw = ("render", "--model", house / "base", *CONTROL, *SIZE, "--min-fidelity", 0.99, "--tries", 3, "--best-of", 2)
    assert limn(*draw) == 3
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert "the best of 3 pictures has fidelity 0." in line
    assert "below 0.99: it lies at outputs/rejected/limn-" in line
    assert len(list(Path("outputs/rejected").iterdir())) == 3
    assert not list(Path("outputs").glob("*.png"))
    assert captured.out.count("in outputs/rejected") == 3


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--best-of", "2"], "choose by fidelity: give a --control"),
        (["--min-fidelity", "0.5"], "choose by fidelity: give a --control"),
        (["--tries", "4", *CONTROL], "say with --min-fidelity when a picture is faithful enough"),
        (["--retries", "4", *CONTROL], "--retries goes with a manifest or a folder"),
        (["jobs.jsonl", "--tries", "4"], "--tries goes with a single request"),
    ],
)
def test_what_makes_no_sense_is_refused(house: Path, arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert limn("render", "--model", house / "base", *arguments, *SIZE) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert named in line
    assert not list(Path().glob("outputs/**/*.png"))
