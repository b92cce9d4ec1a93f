"""Manifests in all their formats: what a row may say, and how a mistake is told."""

import json
import time
from pathlib import Path

import pytest

from batch.manifest import Manifest, read_defaults, read_manifest
from batch.rows import BadRow, request_of
from core.errors import BadRequest
from core.request import SkipLayers


def written(folder: Path, text: str | bytes, name: str = "jobs.jsonl") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def problems(manifest: Manifest) -> list[str]:
    return [str(problem) for problem in manifest.problems]


def test_a_row_has_short_forms(tmp_path: Path) -> None:
    row = {
        "prompt": "x",
        "seed": "7",
        "size": "128x96",
        "pose": "f.png,ready,weight=0.8",
        "negative": "y",
        "guidance": 3,
        "lora": "bold=0.8",
    }
    request = request_of(row, tmp_path)
    assert (request.seed, request.width, request.height, request.negative_prompt, request.guidance_scale) == (7, 128, 96, "y", 3.0)
    unit = request.controls[0]
    assert (unit.kind, unit.image, unit.ready, unit.weight) == ("pose", tmp_path / "f.png", True, 0.8)
    assert (request.loras[0].name, request.loras[0].weight) == ("bold", 0.8)
    assert request.model_fields_set == {"prompt", "seed", "width", "height", "negative_prompt", "guidance_scale", "loras", "controls"}


def test_two_controls_of_a_kind_and_whole_units(tmp_path: Path) -> None:
    whole = {"kind": "depth", "image": "d.png", "ready": True, "mask": "m.png"}
    request = request_of({"canny": ["a.png,low=80", "b.png"], "controls": [whole]}, tmp_path)
    assert [unit.kind for unit in request.controls] == ["canny", "canny", "depth"]
    assert request.controls[0].params == {"low": 80}
    assert request.controls[2].mask == tmp_path / "m.png"


def test_parts_of_a_request_are_written_as_on_the_command_line(tmp_path: Path) -> None:
    """So that a cell of a CSV file can hold them."""
    request = request_of({"hires": "scale=1.5,steps=7"}, tmp_path)
    assert request.hires is not None
    assert (request.hires.scale, request.hires.steps) == (1.5, 7)
    assert request_of({"hires": 2}, tmp_path).hires == request_of({"hires": "2"}, tmp_path).hires
    inversion = request_of({"inversion": "a cat", "init_image": "a.png"}, tmp_path).inversion
    assert inversion is not None
    assert inversion.prompt == "a cat"
    skips = [request_of({"skip_layers": value}, tmp_path).skip_layers for value in ("7 9", "blocks=9 7", {"blocks": [7, 9]})]
    assert skips == [SkipLayers(blocks=(7, 9))] * 3
    assert request_of({"skip_layers": "blocks=7 8,scale=3,end=0.5"}, tmp_path).skip_layers == SkipLayers(blocks=(7, 8), scale=3, end=0.5)
    with pytest.raises(BadRow, match=r"skip_layers\.blocks"):
        request_of({"skip_layers": "7,8"}, tmp_path)
    for wrong in ("scale=2,7", "scale=2,scale=3", "scale=2,step=3"):
        with pytest.raises(BadRow, match="hires"):
            request_of({"hires": wrong}, tmp_path)


def test_mask_is_the_request_s_own_and_not_a_control(tmp_path: Path) -> None:
    request = request_of({"init_image": "a.png", "mask": "b.png"}, tmp_path)
    assert request.mask == tmp_path / "b.png"
    assert request.controls == ()


def test_jsonl_with_defaults_in_its_first_line(tmp_path: Path) -> None:
    lines = [
        '{"defaults": {"steps": 5, "size": "64x64"}}',
        '{"prompt": "a"}',
        "",
        '{"prompt": "b", "width": 128, "height": 128, "steps": 6}',
    ]
    found = read_manifest(written(tmp_path, "\n".join(lines)), {"steps": 9, "seed": 3})
    assert [(row.line, row.request.steps, row.request.width, row.request.seed) for row in found.rows] == [(2, 5, 64, 3), (4, 6, 128, 3)]


def test_csv_and_jsonl_mean_the_same(tmp_path: Path) -> None:
    csv = 'prompt,seed,canny\n"red, round",1,"a.png,low=80"\nblue,,\n'
    rows = [{"prompt": "red, round", "seed": 1, "canny": "a.png,low=80"}, {"prompt": "blue"}]
    jsonl = "\n".join(json.dumps(row) for row in rows)
    first, second = read_manifest(written(tmp_path, csv, "a.csv")), read_manifest(written(tmp_path, jsonl))
    assert [row.request for row in first.rows] == [row.request for row in second.rows]


def test_parquet_means_the_same(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed (limn[cluster])")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table({"prompt": ["a", "b"], "seed": [1, None], "canny": [None, "x.png"]}), tmp_path / "jobs.parquet")
    rows = read_manifest(tmp_path / "jobs.parquet").rows
    assert [(row.line, row.request.prompt, row.request.seed, len(row.request.controls)) for row in rows] == [(1, "a", 1, 0), (2, "b", 0, 1)]


@pytest.mark.parametrize(
    ("line", "where", "words"),
    [
        ('{"prompt": "x", "sed": 3}', "line 1, column 17", "did you mean 'seed'?"),
        ('{"prompt": "x", "width": 100}', "line 1, column 17", "width = 100"),
        ('{"prompt" "x"}', "line 1, column 11", "not JSON"),
        ('["x"]', "line 1, column 1", "not an object"),
        ('{"canny": "a.png,wieght=2"}', "line 1, column 2", "did you mean 'weight'?"),
        ('{"prompt": "x", "size": "big"}', "line 1, column 17", "WIDTHxHEIGHT"),
        ('{"seed": 1, "seed": 2}', "line 1", "'seed' is given twice"),
        ('{"seed": NaN}', "line 1", "NaN"),
        ('{"seed": true}', "line 1, column 2", "not true or false"),
        ('{"prompt": "\\ud800"}', "line 1, column 2", "half a character"),
        (json.dumps({"prompt": "x" * 100_001}), "line 1, column 2", "at most 100000 characters"),
        ("[" * 100_000, "line 1", ""),
    ],
)
def test_a_mistake_has_a_line_and_a_column(tmp_path: Path, line: str, where: str, words: str) -> None:
    found = read_manifest(written(tmp_path, f"{line}\n" + '{"prompt": "good"}'))
    assert [row.line for row in found.rows] == [2], "one bad row is not another's"
    message = problems(found)[0]
    assert message.startswith(where)
    assert words in message
    assert "\n" not in message
    assert len(message) < 1500


def test_a_prompt_of_100_kb_is_a_prompt(tmp_path: Path) -> None:
    found = read_manifest(written(tmp_path, json.dumps({"prompt": "x" * 100_000})))
    assert len(found.rows[0].request.prompt) == 100_000


def test_broken_utf8_names_the_byte(tmp_path: Path) -> None:
    found = read_manifest(written(tmp_path, b'\xef\xbb\xbf{"prompt": "ok"}\n{"prompt": "caf\xe9"}\n'))
    assert len(found.rows) == 1
    assert problems(found) == ["line 2, column 16: byte 0xe9 is not UTF-8: save the file as UTF-8"]


def test_csv_mistakes(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=r"line 1, column 2: unknown column 'promt': did you mean 'prompt'"):
        read_manifest(written(tmp_path, "seed,promt\n1,x\n", "a.csv"))
    with pytest.raises(BadRequest, match="named twice"):
        read_manifest(written(tmp_path, "seed,seed\n1,2\n", "a.csv"))
    found = read_manifest(written(tmp_path, "prompt,seed\na,b,c\nok,1\nx,minus\n", "a.csv"))
    assert [row.line for row in found.rows] == [3]
    assert problems(found)[0].startswith("line 2, column 3: 3 cells for 2 columns")
    assert problems(found)[1].startswith("line 4, column 2: seed = 'minus'")


def test_a_file_that_is_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="jsonl"):
        read_manifest(written(tmp_path, "x", "a.txt"))
    with pytest.raises(BadRequest, match="has no rows"):
        read_manifest(written(tmp_path, "\n\n"))
    with pytest.raises(BadRequest, match="cannot be read"):
        read_manifest(tmp_path / "missing.jsonl")


def test_defaults_are_relative_to_their_file(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    path = written(tmp_path / "more", "steps: 7\ncanny: a.png,low=80\nsize: 96x64\n", "defaults.yaml")
    jobs = '{"prompt": "a"}\n{"prompt": "b", "canny": "own.png"}\n'
    rows = read_manifest(written(tmp_path, jobs), read_defaults(path)).rows
    assert [row.request.controls[0].image for row in rows] == [tmp_path / "more" / "a.png", tmp_path / "own.png"]
    assert [(row.request.steps, row.request.width) for row in rows] == [(7, 96), (7, 96)]


def test_defaults_with_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="did you mean 'steps'"):
        read_defaults(written(tmp_path, "step: 7\n", "d.yaml"))
    with pytest.raises(BadRequest, match="KEY: VALUE"):
        read_defaults(written(tmp_path, "- a\n", "d.yaml"))
    with pytest.raises(BadRow, match="half a character"):
        request_of({"prompt": "\udce9"}, tmp_path)


def test_ten_thousand_rows_are_checked_in_seconds(tmp_path: Path) -> None:
    """Ten seconds of the process are the promise; other load on the machine does not count."""
    rows = [json.dumps({"prompt": f"a red sphere {i}", "seed": i, "canny": f"{i}.png,low=80,weight=0.8"}) for i in range(10_000)]
    path = written(tmp_path, "\n".join(rows))
    started = time.process_time()
    assert len(read_manifest(path).rows) == 10_000
    assert time.process_time() - started < 10.0
