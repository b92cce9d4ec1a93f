"""`limn score`: the same numbers as the record's, from any picture and map, and one line for what is wrong."""

import json
from pathlib import Path

import numpy as np
import pytest

from controls import canny
from core.images import decode, encode_png
from core.provenance import read_record
from evaluation import known
from tests.cli.conftest import SIZE, limn

CONTROL = "canny=photo.png,low=40,high=90"


def drawn(house: Path) -> Path:
    assert limn("render", "-p", "a box", "--model", house / "base", "-c", CONTROL, *SIZE) == 0
    (path,) = Path("outputs").iterdir()
    return path


def scores(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(capsys.readouterr().out.splitlines()[-1])["scores"]
    return found


def test_a_picture_is_scored_against_what_its_record_names(house: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = drawn(house)
    fidelity = read_record(path).controls[0].fidelity
    assert fidelity is not None
    capsys.readouterr()
    assert limn("score", path, "--json") == 0
    (found,) = scores(capsys)
    assert found["kind"] == "canny"
    assert found["score"] == fidelity.model_dump()
    assert limn("score", path, "-c", CONTROL, "--json") == 0
    assert scores(capsys)[0]["score"] == fidelity.model_dump()


def test_a_picture_that_was_moved_with_its_map_is_still_scored(house: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = drawn(house)
    Path("elsewhere").mkdir()
    Path("photo.png").rename("elsewhere/photo.png")
    moved = path.rename(Path("elsewhere") / path.name)
    capsys.readouterr()
    assert limn("score", moved, "--json") == 0
    Path("elsewhere/photo.png").write_bytes(encode_png(np.zeros((8, 8, 3), np.uint8)))
    assert limn("score", moved) == 2
    assert "which is not there any more: say what to hold it against with --control" in capsys.readouterr().err


def test_the_mask_of_the_record_is_found_again_too(house: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another mask is another measurement."""
    half = np.zeros_like(decode(Path("photo.png")))
    half[: len(half) // 2] = 255
    Path("half.png").write_bytes(encode_png(half))
    assert limn("render", "-p", "a box", "--model", house / "base", "-c", f"{CONTROL},mask=half.png", *SIZE) == 0
    (path,) = Path("outputs").iterdir()
    fidelity = read_record(path).controls[0].fidelity
    assert fidelity is not None
    Path("elsewhere").mkdir()
    for name in ("photo.png", "half.png"):
        Path(name).rename(Path("elsewhere") / name)
    moved = path.rename(Path("elsewhere") / path.name)
    capsys.readouterr()
    assert limn("score", moved, "--json") == 0
    assert scores(capsys)[0]["score"] == fidelity.model_dump()
    Path("elsewhere/half.png").write_bytes(encode_png(255 - half))
    assert limn("score", moved) == 2
    assert "was drawn with mask='half.png', which is not there any more" in capsys.readouterr().err


def test_the_extracted_picture_itself_scores_all_and_the_overlay_shows_agreement(capsys: pytest.CaptureFixture[str]) -> None:
    assert limn("score", "photo.png", "-c", "canny=edges.png,ready", "-c", "tile=photo.png", "--overlay", "over.png") == 0
    shown = capsys.readouterr().out
    assert "1.000" in shown
    assert "PSNR 100 dB" in shown
    sheet_HWC = decode(Path("over.png"))
    blue, orange = (np.abs(sheet_HWC.astype(int) - colour).max(axis=2) < 8 for colour in ((86, 180, 233), (230, 159, 0)))
    assert not blue.any()
    assert not orange.any()


def test_floor_and_ceiling_stand_beside_it_where_the_model_was_measured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    row = {"kind": "canny", "floor": {"score": 0.25}, "value": {"score": 0.5}, "ceiling": {"score": 0.875}, "count": 200}
    Path("model").mkdir()
    Path("model/fidelity.json").write_text(json.dumps({"rows": [row]}))
    assert limn("score", "photo.png", "-c", "canny=edges.png,ready", "--model", "model/base", "--json") == 0
    (found,) = scores(capsys)
    assert (found["floor"], found["ceiling"]) == (0.25, 0.875)
    monkeypatch.setattr(known, "beside", lambda model: Path("model/fidelity.json"))
    assert limn("score", "photo.png", "-c", "canny=edges.png,ready", "--json") == 0
    (found,) = scores(capsys)
    assert (found["floor"], found["ceiling"]) == (None, None)  # nobody knows what drew it
    for text in ("{}", "[]", "no JSON", '{"rows": [{"kind": "canny"}]}'):
        Path("model/fidelity.json").write_text(text)
        assert known.bounds("model/base") == {}


def test_a_picture_of_another_size_than_its_map_is_scored_at_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    large_HWC = np.kron(decode(Path("photo.png")), np.ones((2, 2, 1), np.uint8))
    Path("large.png").write_bytes(encode_png(large_HWC))
    assert limn("score", "large.png", "-c", "canny=photo.png", "--json") == 0
    (found,) = scores(capsys)
    assert isinstance(found["score"], dict)
    assert found["score"]["value"] > 0.95  # an enlarged edge lies within the tolerance of the same edge drawn large


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["absent.png", "-c", "canny=edges.png,ready"], "absent.png"),
        (["photo.png"], "holds no Limn record that could name its controls: say what to hold it against with --control KIND=FILE"),
        (["photo.png", "-c", "canny=absent.png"], "absent.png"),
        (["photo.png", "-c", "cany=edges.png"], "did you mean 'canny'?"),
        (["photo.png", "-c", "depth=edges.png,ready"], "no depth estimator is installed: name a network with estimator="),
        (["photo.png", "-c", "depth=edges.png,ready,estimator=nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_scored_is_refused_in_one_line(arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert limn("score", *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert named in line


def test_a_map_at_another_resolution_and_for_another_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert limn("extract", "canny", "photo.png", "-o", "coarse.png", "--processor-px", 64) == 0
    small_HWC = canny.extract(decode(Path("photo.png")), canny.Params())
    assert (decode(Path("coarse.png")) != small_HWC).any()
    assert limn("extract", "depth", "photo.png", "--model", "owner/name") == 2
    assert "Depth-Anything-V2-Small-hf" in capsys.readouterr().err  # the published estimator is the default of other models
