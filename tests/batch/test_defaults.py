"""Who wins where several say what a row leaves out: the row, its manifest's first line, the command line, the YAML file, the model."""

from pathlib import Path
from typing import Any

import pytest

from batch.manifest import Manifest, read_manifest
from batch.rows import given_over
from controls.grammar import parse_control
from core.errors import BadRequest


def read(folder: Path, *lines: str, name: str = "jobs.jsonl", **defaults: Any) -> Manifest:
    (folder / name).write_text("\n".join(lines))
    return read_manifest(folder / name, defaults)


@pytest.mark.parametrize(
    ("yaml", "typed", "own", "wanted"),
    [
        ({"size": "64x64"}, {"width": 80, "height": 80}, {"size": "96x64"}, (96, 64)),
        ({"size": "64x64"}, {"width": 80, "height": 88}, {}, (80, 88)),
        ({"width": 72, "height": 72}, {}, {"size": "96x64"}, (96, 64)),
        ({"size": "96x64"}, {}, {"width": 128}, (128, 64)),
    ],
)
def test_a_size_wins_however_it_is_written(
    tmp_path: Path, yaml: dict[str, object], typed: dict[str, object], own: dict[str, object], wanted: tuple[int, int]
) -> None:
    request = read(tmp_path, '{"prompt": "x"}', **given_over(given_over(yaml, typed), own)).rows[0].request
    assert (request.width, request.height) == wanted


def test_the_first_line_wins_over_the_caller_however_it_is_written(tmp_path: Path) -> None:
    defaults = '{"defaults": {"size": "96x64", "guidance": 5, "negative": "grey"}}'
    given: dict[str, Any] = {"size": "64x64", "width": 80, "height": 80, "guidance": 3, "guidance_scale": 7.0, "negative_prompt": "ugly"}
    request = read(tmp_path, defaults, '{"prompt": "x"}', **given).rows[0].request
    assert (request.width, request.height, request.guidance_scale, request.negative_prompt) == (96, 64, 5.0, "grey")


def test_one_side_of_a_row_leaves_the_other_to_the_defaults(tmp_path: Path) -> None:
    request = read(tmp_path, '{"defaults": {"size": "64x96"}}', '{"width": 128}').rows[0].request
    assert (request.width, request.height) == (128, 96)


def test_a_control_of_the_row_takes_the_place_of_the_default_of_its_kind(tmp_path: Path) -> None:
    units = [parse_control("canny=all.png"), parse_control("depth=all.png,ready")]
    first, second = (row.request.controls for row in read(tmp_path, '{"canny": "own.png"}', '{"prompt": "x"}', controls=units).rows)
    assert [(unit.kind, unit.image.name) for unit in first] == [("depth", "all.png"), ("canny", "own.png")]
    assert [(unit.kind, unit.image.name) for unit in second] == [("canny", "all.png"), ("depth", "all.png")]


def test_an_empty_text_is_a_text_but_for_an_empty_cell(tmp_path: Path) -> None:
    """A row can take back the default's negative prompt; a model of its own would otherwise stand in its place, too."""
    rows = read(tmp_path, '{"negative": ""}', '{"negative": null}', '{"canny": ""}', negative_prompt="ugly").rows
    assert [row.request.negative_prompt for row in rows] == ["", "ugly", "ugly"]
    assert "negative_prompt" in rows[0].request.model_fields_set
    rows = read(tmp_path, "prompt,negative", "x,", "y,grey", name="jobs.csv", negative="ugly").rows
    assert [row.request.negative_prompt for row in rows] == ["ugly", "grey"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"defaults": {"step": 50}}', "line 1, defaults: unknown column 'step': did you mean 'steps'"),
        ('{"defaults": [50]}', "line 1, defaults: give an object"),
        ('{"defaults": {"steps": 50}', "line 1, column 27: defaults that are not JSON"),
    ],
)
def test_wrong_defaults_end_it_for_every_row_would_be_drawn_otherwise(tmp_path: Path, line: str, words: str) -> None:
    """`--skip-bad` must not go on without them."""
    with pytest.raises(BadRequest, match=words):
        read(tmp_path, line, '{"prompt": "x"}')
