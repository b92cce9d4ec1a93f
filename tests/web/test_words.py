"""What the page says."""

from typing import Any

import pytest

from controls import estimators
from core.control import Score
from web import words
from web.service import Drawing, Waiting


@pytest.mark.parametrize(
    ("news", "sentence"),
    [
        (Waiting(0, loading=True), "Loading the model. The picture comes right after."),
        (Waiting(0), "Preparing."),
        (Waiting(1), "Waiting: 1 picture before yours."),
        (Waiting(4), "Waiting: 4 pictures before yours."),
        (Drawing(3, 20), "Step 3 of 20."),
        (Drawing(3, 20, 4.25), "Step 3 of 20, about 4.2 s left."),
        (Drawing(3, 20, 200.0), "Step 3 of 20, about 3 min 20 s left."),
    ],
)
def test_progress(news: Any, sentence: str) -> None:
    assert words.progress(news) == sentence


@pytest.mark.parametrize(
    ("value", "grade"),
    [
        (1.0, "Follows the canny map very closely"),
        (0.9, "Follows the canny map very closely"),
        (0.89, "Follows the canny map closely"),
        (0.5, "Follows the canny map roughly"),
        (0.25, "Follows the canny map loosely"),
        (0.24, "Hardly follows the canny map"),
        (0.0, "Hardly follows the canny map"),
    ],
)
def test_fidelity_is_graded(value: float, grade: str) -> None:
    assert words.fidelity("canny", Score(value, "edge F1 within 1 px", value, "")) == f"{grade}: {value:.2f} of 1 (edge F1 within 1 px)."


def test_fidelity_names_raw_values_and_what_cannot_be_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    score = Score(0.8, "depth RMSE after scale and shift", 12.34, "grey levels of 255")
    assert words.fidelity("depth", score).endswith("closely: 0.80 of 1 (depth RMSE after scale and shift, 12.3 grey levels of 255).")
    assert words.fidelity("canny", None).endswith("the map shows nothing to compare with.")
    monkeypatch.setattr(estimators, "LOADERS", {})
    assert words.fidelity("depth", None).endswith("no depth estimator is installed.")


def test_a_message_becomes_a_sentence_without_our_paths() -> None:
    assert words.plain("'/tmp/x/photo.png' is\nmissing: check it", {"/tmp/x/": ""}) == "'photo.png' is missing: check it."
    assert words.plain("what now?", {}) == "What now?"
    counted = {f"controls.{i}.": f"control {i + 1}: " for i in range(3)} | {f"control {i}: ": f"control {i + 1}: " for i in range(3)}
    assert words.plain("controls.0.weight is 3", counted) == "Control 1: weight is 3."


def test_html_is_escaped() -> None:
    assert words.note("a <b> & c", problem=True) == '<p class="problem" role="alert">a &lt;b&gt; &amp; c</p>'
    assert words.note("") == ""
    assert 'max="20" value="3"' in words.bar(Drawing(3, 20))
