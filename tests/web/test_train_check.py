"""A dataset is looked at while the page hears how far it is, and no longer than it listens."""

import json
import threading
from pathlib import Path

import pytest

from core.errors import BadRequest
from tests.web.pairs import write_pairs
from training.pairs import DataConfig
from web.train_check import Looked, Looking, look


def test_every_pair_is_looked_at(tmp_path: Path) -> None:
    *before, looked = look(DataConfig(folder=write_pairs(tmp_path / "pairs"), condition="canny"))
    assert isinstance(looked, Looked)
    assert all(isinstance(news, Looking) and news.seen <= news.total for news in before)
    assert (looked.found.pairs, looked.found.mistakes) == (4, {})
    assert looked.sheet_HWC is not None


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="there is no such folder or file"):
        list(look(DataConfig(folder=tmp_path / "missing", condition="canny")))


def test_nobody_listening_ends_it(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs")
    row = {"file_name": "images/0.png", "canny": "canny/0.png", "text": "a red cube"}
    (pairs / "metadata.jsonl").write_text(f"{json.dumps(row)}\n" * 20_000)
    news = look(DataConfig(folder=pairs, condition="canny"))
    assert isinstance(next(news), Looking)
    news.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("limn-check")]
