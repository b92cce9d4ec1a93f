"""Twenty programs at once: every accepted request is answered with its own picture, the others are told that the queue is full."""

import tempfile
from pathlib import Path

import pytest

from tests.web.load import MOST_GROWTH_MB, rounds
from tests.web.running import Site
from web.service import CAPACITY

CALLERS, EACH = 20, 2


@pytest.mark.timeout(900)  # it also waits for the server
def test_twenty_callers_at_once(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # Gradio's client leaves a folder there for every answer
    tally = rounds(site, CALLERS, EACH, tmp_path)
    assert tally.strange == []
    assert tally.answered + len(tally.refused) == tally.asked == 3 * CALLERS * EACH
    # Whoever waits for each answer is never refused; of those that come at once, as many are taken as there is room for.
    assert tally.answered >= CALLERS * EACH + 2 * CAPACITY
    for sentence in tally.refused:
        assert f"{CAPACITY} pictures are waiting already, which is the limit: try again in a moment" in sentence
    assert tally.growth_mb < MOST_GROWTH_MB
