"""Uploaded manifests are read beside their pictures, and nothing else of this machine is."""

from pathlib import Path

import numpy as np
import pytest

from core.errors import BadRequest
from core.images import encode_png
from web.manifest import collect

PNG = encode_png(np.zeros((8, 8, 3), np.uint8))


def given(folder: Path, **files: bytes | str) -> list[Path]:
    """Files as Gradio hands them over: each in a folder of its own."""
    paths = []
    for number, (name, data) in enumerate(files.items()):
        path = folder / f"upload-{number}" / name.replace("__", ".")
        path.parent.mkdir(parents=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        paths.append(path)
    return paths


def test_rows_find_their_pictures_and_strange_ones_are_problems(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(PNG)
    rows = ['{"prompt": "a cone", "canny": "a.png"}', '{"prompt": 7', '{"prompt": "x", "canny": "../../../secret.png"}']
    rows += [f'{{"prompt": "x", "init_image": "{tmp_path / "secret.png"}"}}', '{"prompt": "a cube", "steps": 3}']
    _, found = collect(given(tmp_path, rows__jsonl="\n".join(rows), a__png=PNG), tmp_path / "out", "canny")
    assert [row.line for row in found.rows] == [1, 5]
    assert found.rows[0].request.controls[0].image.read_bytes() == PNG
    assert sorted(problem.line for problem in found.problems) == [2, 3, 4]
    assert all("'secret.png' does not lie beside the manifest" in problem.message for problem in found.problems if problem.line > 2)


def test_pictures_alone_are_a_row_each(tmp_path: Path) -> None:
    _, found = collect(given(tmp_path, b__png=PNG, a__png=PNG, a__txt="a cone\n"), tmp_path / "out", "depth")
    assert [(row.request.prompt, row.request.controls[0].kind, row.request.controls[0].image.name) for row in found.rows] == [
        ("a cone", "depth", "a.png"),
        ("", "depth", "b.png"),
    ]


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="no manifest"):
        collect(given(tmp_path / "1", a__txt="text"), tmp_path / "out", "canny")
    with pytest.raises(BadRequest, match="2 manifests at once"):
        collect(given(tmp_path / "2", a__jsonl="{}", b__csv="x"), tmp_path / "out", "canny")
    with pytest.raises(BadRequest, match="0 files"):
        collect([], tmp_path / "out", "canny")
