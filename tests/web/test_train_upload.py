"""Datasets from a browser: good ones arrive whole, hostile ones leave nothing behind."""

import json
from pathlib import Path

import pytest

from core.errors import BadRequest
from tests.web.archives import HOSTILE, PIXELS, good, replay, zipped
from training.pairs import DataConfig
from web import train_settings, train_upload
from web.train_check import Looked, look
from web.train_settings import Places
from web.train_upload import receive


def looked(folder: Path, **more: object) -> Looked:
    *_, last = look(DataConfig.model_validate({"folder": folder, "condition": "canny"} | more))
    assert isinstance(last, Looked)
    return last


@pytest.mark.parametrize("around", ["", "shapes/"])
def test_a_zip_arrives_whole(around: str, tmp_path: Path) -> None:
    archive = good(tmp_path / "my shapes.zip", around)
    received = receive([archive], tmp_path / "uploads")
    assert received.folder.parent == tmp_path / "uploads"
    assert received.folder.name.startswith("my-shapes-")
    assert (received.files, received.left_out) == (12, 3)
    found = looked(received.folder).found
    assert (found.pairs, found.mistakes) == (4, {})
    before = received.folder.stat()
    assert receive([archive], tmp_path / "uploads") == received
    assert received.folder.stat() == before, "the same once more is not written again"


def test_loose_files_are_sorted_by_their_names(tmp_path: Path) -> None:
    names = ["a.png", "a.txt", "a.canny.png", "b.png", "b.txt", "b.canny.png", "readme.md"]
    for name in names:
        (tmp_path / name).write_bytes(PIXELS if name.endswith("png") else b"a cube")
    received = receive([tmp_path / name for name in names], tmp_path / "uploads")
    assert (received.files, received.left_out) == (6, 1)
    places = sorted(str(path.relative_to(received.folder)) for path in received.folder.rglob("*") if path.is_file())
    assert places == ["canny/a.png", "canny/b.png", "images/a.png", "images/a.txt", "images/b.png", "images/b.txt"]
    assert looked(received.folder).found.pairs == 2


def test_loose_files_with_rows_stay_as_they_are(tmp_path: Path) -> None:
    row = {"file_name": "a.png", "canny": "a.canny.png", "text": "a cube"}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row))
    for name in ("a.png", "a.canny.png"):
        (tmp_path / name).write_bytes(PIXELS)
    received = receive([tmp_path / name for name in ("metadata.jsonl", "a.png", "a.canny.png")], tmp_path / "uploads")
    assert looked(received.folder).found.pairs == 1


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_archives_leave_nothing(name: str, tmp_path: Path) -> None:
    make, words = HOSTILE[name]
    before = set(Path("/tmp").glob("limn-evil*"))
    with pytest.raises(BadRequest, match=words) as refused:
        receive([make(tmp_path / "given.zip")], tmp_path / "home" / "uploads")
    assert "\n" not in str(refused.value)
    assert not [path for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert set(Path("/tmp").glob("limn-evil*")) == before
    assert not list(tmp_path.rglob("*evil*"))


def test_the_replay_counts_what_gets_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert replay(tmp_path) == []
    monkeypatch.setattr(train_upload, "MOST_BYTES", 2**40)
    (tmp_path / "again").mkdir()
    assert replay(tmp_path / "again") == ["ZIP with many files that swell"]


@pytest.mark.parametrize("named", ["/etc/hostname", "../../secret.png", "images/../../../not-there-yet.png"])
def test_rows_name_no_file_from_elsewhere(named: str, tmp_path: Path) -> None:
    """A picture of another folder would be shown on the sheet of the pairs."""
    (tmp_path / "secret.png").write_bytes(PIXELS)
    places = Places(tmp_path / "runs", tmp_path / "data", restricted=True)
    row = {"file_name": "images/0.png", "canny": named, "text": "a cube"}
    archive = zipped(tmp_path / "rows.zip", {"metadata.jsonl": json.dumps(row).encode(), "images/0.png": PIXELS})
    folder = receive([archive], places.uploads).folder
    asked = {"folder": str(folder), "data.condition": "canny"}
    with pytest.raises(BadRequest, match="does not lie in"):
        train_settings.read_data(asked, places)
    with pytest.raises(BadRequest, match="does not lie in"):
        train_settings.read_data(asked | {"folder": str(folder / "metadata.jsonl")}, places)
    inside = {**row, "canny": "images/0.png"}
    again = zipped(tmp_path / "fine.zip", {"metadata.jsonl": json.dumps(inside).encode(), "images/0.png": PIXELS})
    assert train_settings.read_data(asked | {"folder": str(receive([again], places.uploads).folder)}, places)


def test_uploads_are_offered_and_bounded_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = Places(tmp_path / "runs", tmp_path / "data")
    first = receive([good(tmp_path / "first.zip")], places.uploads).folder
    assert places.datasets() == [str(first)]
    monkeypatch.setattr(train_upload, "MOST_BYTES_OF_ALL", sum(path.stat().st_size for path in first.rglob("*") if path.is_file()))
    with pytest.raises(BadRequest, match=r"uploaded datasets hold .* already: remove some from 'uploads'"):
        receive([good(tmp_path / "second.zip")], places.uploads)


def test_a_row_of_a_hundred_thousand_brackets_is_a_mistake(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "deep.zip", {"metadata.jsonl": b"[" * 100_000, "images/0.png": PIXELS})
    folder = receive([archive], tmp_path / "data" / "uploads").folder
    places = Places(tmp_path / "runs", tmp_path / "data", restricted=True)
    config = train_settings.read_data({"folder": str(folder), "data.condition": "canny"}, places)
    assert any("not JSON" in mistake for mistake in looked(config.folder).found.mistakes)


def test_a_zip_comes_alone(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PIXELS)
    with pytest.raises(BadRequest, match="upload one ZIP alone"):
        receive([good(tmp_path / "pairs.zip"), tmp_path / "a.png"], tmp_path / "uploads")
