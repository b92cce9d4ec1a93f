"""The index of the output folder follows its files; searches find what they say."""

import datetime
import os
from pathlib import Path

import numpy as np
import pytest

from core.errors import BadRequest
from core.images import encode_png
from core.provenance import ControlRecord, Fidelity, Record, WeightFile, write_picture
from core.request import ControlUnit, RenderRequest
from web.library import Entry, Library


def publish(out: Path, prompt: str, seed: int, *, fidelity: float | None = None, day: int = 1) -> Path:
    controls = () if fidelity is None else (ControlUnit(kind="canny", image=Path("edges.png"), ready=True),)
    records: tuple[ControlRecord, ...] = ()
    if fidelity is not None:
        score = Fidelity(value=fidelity, metric="edge F1", raw=fidelity, unit="")
        records = (ControlRecord(source_sha256="1" * 64, map_sha256="2" * 64, fidelity=score),)
    record = Record(
        request=RenderRequest(prompt=prompt, seed=seed, controls=controls),
        index=0,
        seed=seed,
        weights=(WeightFile(part="base", file="unet", sha256="0" * 64),),
        controls=records,
    )
    path = out / record.file_name()
    write_picture(path, np.zeros((8, 8, 3), np.uint8), record)
    time = datetime.datetime(2026, 11, day, 12).timestamp()
    os.utime(path, (time, time))
    return path


@pytest.fixture
def library(tmp_path: Path) -> Library:
    publish(tmp_path, "a blue cube", 1, fidelity=0.3, day=1)
    publish(tmp_path, "a blue cone", 2, fidelity=0.8, day=2)
    publish(tmp_path / "batch", "a red cube", 3, day=3)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (tmp_path / "controls").mkdir()
    (tmp_path / "controls" / "map.png").write_bytes(encode_png(np.zeros((8, 8, 3), np.uint8)))
    return Library(tmp_path)


def seeds(entries: list[Entry]) -> list[int]:
    return [entry.record.seed for entry in entries]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", [3, 2, 1]),
        ("BLUE", [2, 1]),
        ("blue cube", [1]),
        ("kind:canny", [2, 1]),
        ("model:toy seed:3", [3]),
        ("fidelity>0.5", [2]),
        ("fidelity<0.5", [1]),
        ("after:2026-11-02", [3, 2]),
        ("before:2026-11-02 cube", [1]),
        ("nothing", []),
    ],
)
def test_searches(library: Library, text: str, found: list[int]) -> None:
    assert seeds(library.search(text)) == found


@pytest.mark.parametrize("text", ["seed:x", "fidelity:1", "fidelity>much", "after:soon", "kind>3", "in:folder"])
def test_conditions_that_cannot_be_read_are_refused(library: Library, text: str) -> None:
    with pytest.raises(BadRequest, match="write kind:canny"):
        library.search(text)


def test_the_index_follows_the_files(library: Library, tmp_path: Path) -> None:
    assert seeds(library.entries()) == [3, 2, 1]
    new = publish(tmp_path, "a white sphere", 4, day=4)
    assert seeds(library.entries()) == [4, 3, 2, 1]
    new.unlink()
    assert seeds(library.entries()) == [3, 2, 1]


def test_what_is_discarded_lies_in_the_trash(library: Library, tmp_path: Path) -> None:
    path = library.search("red")[0].path
    data = path.read_bytes()
    target = library.discard(path)
    assert target.read_bytes() == data
    assert target.is_relative_to(tmp_path / ".trash")
    assert seeds(library.search("")) == [2, 1]
    for gone in (path, target, tmp_path / "broken.png" / ".." / ".." / "elsewhere.png"):
        with pytest.raises(BadRequest, match="no longer in the output folder"):
            library.discard(gone)


def test_what_lies_in_the_trash_is_found_there_and_comes_back(library: Library) -> None:
    path = library.search("red")[0].path
    data, target = path.read_bytes(), library.discard(path)
    assert library.search("red") == []
    assert [entry.path for entry in library.search("in:trash red")] == [entry.path for entry in library.search("in:trash")] == [target]
    assert library.search("in:trash blue") == []
    path.write_bytes(data)  # drawn again
    with pytest.raises(BadRequest, match="in the output folder already"):
        library.recover(target)
    path.unlink()
    assert library.recover(target) == path
    assert path.read_bytes() == data
    assert seeds(library.search("")) == [3, 2, 1]
    for gone in (target, path):
        with pytest.raises(BadRequest, match="no longer in the trash"):
            library.recover(gone)
