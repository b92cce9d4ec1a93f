"""Folders of control pictures, and products over rows."""

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from batch import commands
from batch.folders import Canvas, read_folder, sides
from batch.grids import parse_axis, vary
from batch.job import Job
from batch.manifest import Manifest, Row
from batch.planner import estimate
from batch.work import OpenRenderer
from core.errors import BadRequest
from core.request import ControlUnit, RenderRequest
from tests import tinymodels_flux


def save(path: Path, width: int, height: int, **more: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(path, **more)
    return path


def test_subfolders_and_proportions_are_kept(tmp_path: Path) -> None:
    save(tmp_path / "b.png", 300, 200)
    save(tmp_path / "deep" / "er" / "a.jpg", 200, 300)
    save(tmp_path / ".hidden" / "c.png", 10, 10)
    (tmp_path / "notes.txt").write_text("x")
    found = read_folder(tmp_path, "canny,low=80", None, {"prompt": "p", "steps": 5})
    rows = {row.request.controls[0].image.name: row for row in found.rows}
    assert set(rows) == {"a.jpg", "b.png"}
    assert (rows["a.jpg"].folder, rows["b.png"].folder) == ("deep/er", "")
    assert (rows["b.png"].request.width, rows["b.png"].request.height) == (160, 104)
    assert (rows["a.jpg"].request.width, rows["a.jpg"].request.height) == (104, 160)
    assert rows["b.png"].request.controls[0].params == {"low": 80}
    assert rows["b.png"].request.steps == 5


@pytest.mark.parametrize(
    ("values", "canvas", "size"),
    [
        ({"size": "96x96"}, None, (120, 80)),
        ({"width": 96, "height": 96}, None, (120, 80)),
        ({}, Canvas(16, 1024, 1024), (1248, 832)),
        ({"size": "512x512"}, Canvas(32, 1024, 1024), (640, 416)),
        ({"width": 512}, Canvas(8, 1024, 1024), (888, 592)),
    ],
)
def test_as_many_pixels_as_were_asked_for_or_the_model_is_made_for(
    tmp_path: Path, values: dict[str, Any], canvas: Canvas | None, size: tuple[int, int]
) -> None:
    save(tmp_path / "a.png", 300, 200)
    request = read_folder(tmp_path, "canny", None, {"prompt": "p"} | values, canvas=canvas).rows[0].request
    assert (request.width, request.height) == size


def test_pictures_that_a_batch_drew_are_no_controls_of_the_next(tmp_path: Path) -> None:
    save(tmp_path / "a.png", 64, 64)
    save(tmp_path / "out" / "limn-0123456789ab-0.png", 64, 64)
    found = read_folder(tmp_path, "canny", None, {"prompt": "p"}, out=tmp_path / "deep" / ".." / "out")
    assert [row.request.controls[0].image.name for row in found.rows] == ["a.png"]
    with pytest.raises(BadRequest, match="give another --out"):
        read_folder(tmp_path, "canny", None, {"prompt": "p"}, out=tmp_path / "out" / "..")


@pytest.mark.parametrize("name", ["failed", "rejected"])
def test_a_folder_called_as_one_of_a_batch_is_a_problem(tmp_path: Path, name: str) -> None:
    """Its pictures would count as neither done nor left."""
    save(tmp_path / name / "a.png", 64, 64)
    save(tmp_path / "b" / name / "a.png", 64, 64)
    found = read_folder(tmp_path, "canny", None, {"prompt": "p"})
    assert [row.folder for row in found.rows] == [f"b/{name}"]
    assert "rename the folder" in str(found.problems[0])


def test_a_turned_photograph_is_measured_as_it_is_seen(tmp_path: Path) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "a.jpg", 300, 200, exif=exif)
    request = read_folder(tmp_path, "canny", None, {"prompt": "p"}).rows[0].request
    assert request.width < request.height


def test_prompts_from_names_and_from_text_files(tmp_path: Path) -> None:
    save(tmp_path / "a_red-sphere.png", 64, 64)
    assert read_folder(tmp_path, "depth,ready", "name", {}).rows[0].request.prompt == "a red sphere"
    missing = read_folder(tmp_path, "depth,ready", "txt", {})
    assert (
        str(missing.problems[0]) == "line 1, column a_red-sphere.png: a_red-sphere.txt is missing: write the prompt there, or use --prompt"
    )
    (tmp_path / "a_red-sphere.txt").write_text("\ufeffa blue cube\n")
    assert read_folder(tmp_path, "depth,ready", "txt", {}).rows[0].request.prompt == "a blue cube"


def test_a_picture_that_is_none_is_a_problem_of_its_own(tmp_path: Path) -> None:
    save(tmp_path / "a.png", 64, 64)
    (tmp_path / "b.png").write_bytes(b"not a picture")
    found = read_folder(tmp_path, "canny", None, {"prompt": "p"})
    assert (len(found.rows), len(found.problems)) == (1, 1)


@pytest.mark.parametrize(
    ("control", "prompt_from", "words"), [("canny=x.png", None, "give the kind alone"), ("cany", None, "canny"), ("canny", "exif", "txt")]
)
def test_mistakes_about_a_folder(tmp_path: Path, control: str, prompt_from: str | None, words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        read_folder(tmp_path, control, prompt_from, {"prompt": "p"})
    with pytest.raises(BadRequest, match="has no pictures"):
        read_folder(tmp_path, "canny", None, {"prompt": "p"})


@pytest.mark.parametrize(("width", "height"), [(100, 100), (1920, 1080), (10, 4000), (3, 2)])
def test_sides_keep_proportions_within_a_step(width: int, height: int) -> None:
    made = sides(width, height, 512 * 512, 16)
    assert all(side % 16 == 0 and 64 <= side <= 4096 for side in made)
    if max(width, height) / min(width, height) < 10:
        assert made[0] / made[1] == pytest.approx(width / height, rel=16 / min(made))
        assert made[0] * made[1] == pytest.approx(512 * 512, rel=32 / min(made))


def test_a_grid_is_a_product_over_every_row() -> None:
    unit = ControlUnit(kind="canny", image=Path("a.png"), weight=0.9)
    rows = [Row(i, RenderRequest(prompt=f"p{i}", controls=(unit,))) for i in (1, 2)]
    axes = [parse_axis("seed=1..3"), parse_axis("control.weight=0.5,1"), parse_axis("canny.low=50,60"), parse_axis("size=64x64,128x64")]
    found = vary(Manifest(rows=rows), axes)
    assert len(found.rows) == 2 * 3 * 2 * 2 * 2
    made = {(row.line, r.seed, u.weight, u.params["low"], r.width) for row in found.rows for r in [row.request] for u in r.controls}
    assert len(made) == 48
    assert "height" in found.rows[0].request.model_fields_set
    assert "steps" not in found.rows[0].request.model_fields_set, "what nobody set is still left to the model"


def test_a_grid_over_a_kind_leaves_the_other_controls() -> None:
    units = (ControlUnit(kind="canny", image=Path("a.png")), ControlUnit(kind="depth", image=Path("d.png"), ready=True))
    found = vary(
        Manifest(rows=[Row(1, RenderRequest(controls=units)), Row(2, RenderRequest())]), [parse_axis('canny="x.png,low=50",y.png')]
    )
    made = [sorted((unit.kind, unit.image.name) for unit in row.request.controls) for row in found.rows]
    assert made == [
        [("canny", "x.png"), ("depth", "d.png")],
        [("canny", "y.png"), ("depth", "d.png")],
        [("canny", "x.png")],
        [("canny", "y.png")],
    ]
    whole = vary(Manifest(rows=[Row(1, RenderRequest(controls=units))]), [parse_axis("controls=pose=p.png")])
    assert [unit.kind for unit in whole.rows[0].request.controls] == ["pose"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed", "KEY=VALUE"),
        ("sed=1", "did you mean 'seed'"),
        ("cany.weight=1", "did you mean 'canny'"),
        ("seed=5..1", "backwards"),
        ("seed=1..99999999", "longer"),
        ("control.=1", "control.weight"),
    ],
)
def test_a_grid_that_is_written_wrong(text: str, words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        parse_axis(text)


def test_a_grid_value_out_of_range_is_a_problem_of_the_row() -> None:
    found = vary(Manifest(rows=[Row(4, RenderRequest())]), [parse_axis("steps=10,0")])
    assert not found.rows
    assert str(found.problems[0]).startswith("line 4: grid: steps = '0'")
    with pytest.raises(BadRequest, match="over the limit"):
        vary(Manifest(rows=[Row(1, RenderRequest())] * 2), [parse_axis("seed=1..600000")])


def test_a_model_s_own_size_and_cells_count(tmp_path: Path) -> None:
    base = str(tinymodels_flux.build_base(tmp_path / "base"))
    canvas = commands._Drawn(base, "out").canvas(fetch=False)
    assert (canvas.step_px, canvas.width, canvas.height) == (16, 1024, 1024)
    jobs = [Job("0" * 64, RenderRequest(), 1), Job("1" * 64, RenderRequest(width=64, height=64), 2)]
    sizes = [job.request.width for job in commands._sized(jobs, OpenRenderer(base))]
    assert sizes == [1024, 64]


def test_maps_are_counted_as_they_are_extracted() -> None:
    """A finished map is not extracted, other settings or another size make another map, a weight does not."""
    unit = ControlUnit(kind="canny", image=Path("a.png"))
    units = [
        unit,
        unit.model_copy(update={"weight": 0.5}),
        unit.model_copy(update={"params": {"low": 50}}),
        unit.model_copy(update={"ready": True}),
    ]
    requests = [*(RenderRequest(controls=(one,)) for one in units), RenderRequest(controls=(unit,), width=64)]
    assert estimate([Job(str(i), request, i) for i, request in enumerate(requests)]).pictures == 3
