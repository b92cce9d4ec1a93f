"""An event carries what the page holds as one value: few inputs, no progress on many outputs, and what changes is told at once."""

import json
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from core.errors import BadRequest
from core.request import MAX_CONTROLS
from tests.web.conftest import Site
from web import held, remembered, units

pytestmark = pytest.mark.timeout(900)  # the first test also waits for the server

KNOWN = {"prompt": "", "steps": 20, "control.0.image": None, "init_image": None}
MOST_TARGETS = 450
MOST_INPUTS, MOST_PROGRESS = 10, 3  # for each, the page does work in proportion, several times per event


@pytest.fixture
def config(site: Site) -> dict[str, Any]:
    """The page as its browser is told about it."""
    with urlopen(f"{site.url}/config") as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def of_create(config: dict[str, Any]) -> list[dict[str, Any]]:
    """The events that tell the browser's memory of Create."""
    return [one for one in config["dependencies"] if f'limn.hold("{remembered.KEY}"' in str(one["js"])]


def test_no_event_of_create_asks_for_many_inputs_or_shows_progress_on_many_outputs(config: dict[str, Any]) -> None:
    inputs = {one["inputs"][0] for one in of_create(config)}
    asked = [one for one in config["dependencies"] if one["backend_fn"] and any(target in inputs for target, _ in one["targets"])]
    assert {one["api_name"].rstrip("_0123456789") for one in asked} >= {"show_maps", "notice_map", "count_tokens"}
    for one in [*asked, *(one for one in config["dependencies"] if one["api_name"] == "render" or "examine" in one["api_name"])]:
        assert len(one["inputs"]) <= MOST_INPUTS, one["api_name"]
        progress = one["outputs"] if one["show_progress_on"] is None else one["show_progress_on"]
        assert len(progress) <= MOST_PROGRESS, one["api_name"]


def test_every_input_of_create_is_told_once_and_before_anything_else(config: dict[str, Any]) -> None:
    told = of_create(config)
    assert set(Counter(one["inputs"][0] for one in told).values()) == {1}
    assert all(one["targets"] == [[one["inputs"][0], "change"]] and not one["outputs"] and not one["backend_fn"] for one in told)
    (first,) = [one for one in config["dependencies"] if "limn.begin" in str(one["js"]) and one["targets"][0][1] == "load"]
    filled = set(first["outputs"])
    assert {one["inputs"][0] for one in told} <= filled, "what is told is what the browser brings back"
    answers: dict[int, str] = {}  # the page runs what answers a change one after the other, in this order
    for one in config["dependencies"]:
        for target, event in one["targets"]:
            if event == "change":
                answers.setdefault(target, str(one["js"]))
    assert all("limn.hold" in answers[one["inputs"][0]] for one in told)


def test_what_a_map_depends_on_asks_for_that_map_alone(config: dict[str, Any]) -> None:
    pressed = {
        one["props"]["elem_id"]: one["id"] for one in config["components"] if str(one["props"].get("elem_id")).startswith("draw-map-")
    }
    assert len(pressed) == MAX_CONTROLS
    for i in range(MAX_CONTROLS):
        (answer,) = [one for one in config["dependencies"] if [pressed[f"draw-map-{i}"], "click"] in one["targets"]]
        assert len(answer["outputs"]) == 2
        told = [one["js"] for one in of_create(config) if f'"draw-map-{i}"' in one["js"]]
        assert {text.split('"')[3] for text in told} == {name for name, button in units.buttons().items() if button == f"draw-map-{i}"}
        assert all(f'"control.{i}.' in text for text in told)


def test_an_input_has_no_other_answer_than_those_it_needs(config: dict[str, Any]) -> None:
    def answers(target: int) -> list[str]:
        return [one["api_name"] for one in config["dependencies"] if one["backend_fn"] and [target, "change"] in one["targets"]]

    low = next(one["id"] for one in config["components"] if one["props"].get("label") == "Low")
    width = next(one["id"] for one in config["components"] if one["props"].get("elem_id") == "width")
    assert (answers(low), answers(width)) == ([], ["show_maps"]), "the map comes by its button; one event for all controls"
    targets = sum(len(one["targets"]) for one in config["dependencies"])
    assert targets <= MOST_TARGETS, "the page looks at each of them for each component, twice, before it can be used"


def test_the_news_of_a_render_renew_what_they_change_and_no_more(config: dict[str, Any]) -> None:
    components = {one["id"]: one for one in config["components"]}
    (render,) = [one for one in config["dependencies"] if one["api_name"] == "render"]
    assert [components[number]["props"].get("elem_id") or components[number]["type"] for number in render["outputs"]] == [
        "picture",
        "status",
        "state",
    ], "Gradio makes every output of an event anew, whether it changes or not"


def test_what_is_not_sent_is_as_the_page_opens() -> None:
    assert held.read({"steps": 4}, KNOWN) == KNOWN | {"steps": 4}
    assert held.read({"init_image": None, "control.0.image": {}}, KNOWN) == KNOWN


def test_an_upload_is_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    path = tmp_path / "a" / "photo.png"
    assert held.read({"init_image": {"path": str(path), "url": "x"}}, KNOWN)["init_image"] == str(path)


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (None, r"^the settings arrived as NoneType: send a dictionary, the values by name$"),
        (["a"], r"^the settings arrived as list: "),
        ({"step": 4}, r"^no setting is called 'step': did you mean 'steps'\?$"),
        ({"qqq": 4}, r"^no setting is called 'qqq'$"),
        ({"init_image": "/etc/passwd"}, r"^a picture did not arrive as an upload: choose its file again$"),
        ({"init_image": {"path": "/etc/passwd"}}, r"^a picture did not arrive as an upload"),
        ({"init_image": {"path": 7}}, r"^a picture did not arrive as an upload"),
        ({"control.0.image": {"path": "uploads/../../../etc/passwd"}}, r"^a picture did not arrive as an upload"),
    ],
)
def test_what_is_refused(sent: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    with pytest.raises(BadRequest, match=message):
        held.read(sent, KNOWN)
