"""Batches on the page: drawn by the batch runner through the queue that everybody waits in, paused within a step, gone on with later."""

import json
import time
from pathlib import Path

import numpy as np
import pytest

from core.errors import BadRequest, QueueFull
from core.images import decode, encode_png
from core.provenance import read_record
from tests import tinymodels
from tests.web.test_service import at_step, finished, request
from web import batches as module
from web.batches import Batch, Batches
from web.service import Service

ROW = {"prompt": "a cone", "width": 64, "height": 64, "steps": 2}


def dropped(folder: Path, *rows: str) -> list[Path]:
    """A manifest and the picture `a.png`, as Gradio hands them over."""
    files = {"rows.jsonl": "\n".join(rows).encode(), "a.png": encode_png(tinymodels.control_map(0))}
    paths = [folder / f"upload-{name}" / name for name in files]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(files[path.name])
    return paths


def row(seed: int, **values: object) -> str:
    return json.dumps(ROW | {"seed": seed} | values)


def ended(batch: Batch) -> Batch:
    for _ in range(1000):
        if not batch.running:
            return batch
        time.sleep(0.1)
    raise AssertionError("the batch does not end")


def test_every_good_row_is_drawn_and_the_others_say_why(service: Service, tmp_path: Path) -> None:
    batches = Batches(service)
    files = dropped(tmp_path, row(1, count=2), "{", row(3, canny="a.png"), row(4, canny="b.png"), row(3, canny="a.png"), row(6, steps=0))
    batch = batches.check(files, "canny")
    assert batch.table()[0][3] == "ready"
    assert (len(batch.jobs), batch.bad, batch.done) == (3, 3, 0)
    ended(batches.start(batch.key))
    states = {cells[0]: (cells[3], cells[4]) for cells in batch.table()}
    assert states[1] == ("done", "")
    assert "not JSON" in states[2][0]
    assert states[3][0] == "done"
    assert 0.0 <= float(states[3][1]) <= 1.0
    assert "b.png" in states[4][0]
    assert states[5][0] == "asks for the same as line 3"
    assert "steps" in states[6][0]
    assert [read_record(path).seed for path in batch.paths] == [1, 2, 3]
    assert set(batch.paths) == set((tmp_path / "out").glob("batch-*/*.png")), "published once, and nowhere else"
    assert batch.problem == ""


def test_a_paused_batch_goes_on_and_its_pictures_are_the_same(service: Service, tmp_path: Path) -> None:
    batches = Batches(service)
    files = dropped(tmp_path, *(row(seed, steps=40) for seed in range(3)))
    batch = batches.check(files, "canny")
    at_step(service, 60, batch.pause)  # in the middle of the second picture
    ended(batches.start(batch.key))
    assert (batch.done, batch.failed, batch.problem) == (1, 0, "")
    first = batch.paths[0].read_bytes()
    again = Batches(service).check(files, "canny")  # a server that was started again knows what is there
    assert [cells[3] for cells in again.table()] == ["done", "ready", "ready"]
    other = Batches(service)
    other.check(files, "canny")
    ended(other.start(batch.key))
    assert sorted(read_record(path).seed for path in (tmp_path / "out").glob("batch-*/*.png")) == [0, 1, 2]
    assert batch.paths[0].read_bytes() == first
    alone = finished(service.submit(request(prompt="a cone", steps=40, seed=2), "me")).pictures[0]
    drawn = next(path for path in (tmp_path / "out").glob("batch-*/*.png") if read_record(path).seed == 2)
    assert read_record(drawn).weights == alone.record.weights
    assert np.array_equal(decode(drawn), np.asarray(alone.image))


def test_what_cannot_be_drawn_is_said_and_the_next_goes_on(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = Batches(service)
    batch = batches.check(dropped(tmp_path, row(1, guidance=3, width=64, height=72), row(2)), "canny")
    ended(batches.start(batch.key))
    assert [cells[3] for cells in batch.table()] == ["done", "done"]
    stranger = Batches(service)
    with pytest.raises(BadRequest, match="not known any more: drop its files again"):
        stranger.start(batch.key)
    assert stranger.get(batch.key) is None
    assert stranger.get(["x"]) is None
    monkeypatch.setattr(module, "MOST_RUNNING", 0)
    with pytest.raises(QueueFull, match="0 batches are running already"):
        batches.start(batch.key)
    monkeypatch.setattr(module, "MOST_PICTURES", 2)
    with pytest.raises(BadRequest, match="3 pictures, over the page's limit of 2"):
        batches.check(dropped(tmp_path, row(1, count=3)), "canny")
