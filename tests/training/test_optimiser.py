"""Learning rates by their closed forms."""

import math
from pathlib import Path
from typing import Any

import pytest

from training.config import TrainConfig
from training.optimiser import rate


def config(**changes: Any) -> TrainConfig:
    return TrainConfig.model_validate({"out": Path(), "steps": 110, "learning_rate": 2.0, "warmup": 10, **changes})


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
def test_the_rate_rises_linearly_over_the_warmup(schedule: str) -> None:
    settings = config(schedule=schedule)
    assert [rate(settings, step) for step in range(10)] == pytest.approx([2 * (step + 1) / 10 for step in range(10)])
    assert rate(settings, 10) == 2.0


def test_after_the_warmup_it_follows_its_schedule() -> None:
    for step in (10, 35, 60, 109):
        done = (step - 10) / 100
        assert rate(config(schedule="constant"), step) == 2.0
        assert rate(config(schedule="linear"), step) == pytest.approx(2 * (1 - done))
        assert rate(config(schedule="cosine"), step) == pytest.approx(1 + math.cos(math.pi * done))
    assert rate(config(schedule="linear"), 200) == 0.0


def test_a_warmup_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="warmup 110 leaves nothing of 110 steps"):
        config(warmup=110, schedule="cosine")
