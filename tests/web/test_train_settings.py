"""What Train's fields hold becomes the settings of `limn train`, and back; other folders than those allowed cannot be named."""

import contextlib
from pathlib import Path
from typing import Any

import pytest

import app
from core.errors import BadRequest
from training.config import ControlNetConfig
from web import train_settings
from web.train_process import Trainings
from web.train_settings import Places


@pytest.fixture
def places(tmp_path: Path) -> Places:
    (tmp_path / "data" / "shapes" / "images").mkdir(parents=True)
    (tmp_path / "data" / "shapes" / "images" / "0.png").touch()
    return Places(tmp_path / "runs", tmp_path / "data")


def asked(places: Places, preset: str = train_settings.presets()[0], **values: Any) -> dict[str, Any]:
    """What the page holds after a preset was chosen and a dataset was named."""
    given = {"folder": str(places.data / "shapes"), "name": "mine"}
    return train_settings.shown(train_settings.preset(preset)) | given | values


@pytest.mark.parametrize("name", train_settings.presets())
def test_a_preset_shown_and_read_again_is_the_preset(name: str, places: Places) -> None:
    values = train_settings.preset(name)
    values["train"]["out"] = places.runs / "mine"
    values["data"]["folder"] = places.data / "shapes"
    assert train_settings.read_config(asked(places, name), places) == ControlNetConfig.model_validate(values)


def test_fields_and_lines_are_read_together(places: Places) -> None:
    lines = "hint_channels=[8, 16]\n\n data.vary={low: [50, 150]}\ntrain.betas=[0.8, 0.99]"
    given = {"data.condition": "canny", "train.steps": 700, "train.learning_rate": 1e-5, "monitor.guidance_scale": "", "init": ""}
    config = train_settings.read_config(asked(places, more=lines) | given, places)
    assert (config.train.steps, config.train.learning_rate, config.train.betas) == (700, 1e-5, (0.8, 0.99))
    assert (config.hint_channels, config.data.vary) == ((8, 16), {"low": (50.0, 150.0)})
    assert (config.monitor.guidance_scale, config.init) == (None, None)
    assert config.train.out == places.runs / "mine"


def test_several_conditions_are_written_between_commas(places: Places) -> None:
    config = train_settings.read_data(asked(places) | {"data.condition": "canny, depth"}, places)
    assert tuple(config.condition) == ("canny", "depth")
    again = train_settings.shown({"data": {"condition": ["canny", "depth"]}})
    assert again["data.condition"] == "canny, depth"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "../elsewhere"}, "name '../elsewhere': write 1 to 64 letters"),
        ({"name": ""}, "name '': write 1 to 64 letters"),
        ({"folder": " "}, "no dataset is chosen"),
        ({"train.steps": 0}, r"train\.steps = 0: input should be greater than or equal to 1"),
        ({"train.steps": None}, r"train\.steps: input should be a valid integer"),
        ({"data.width": 100}, r"data\.width = 100: input should be a multiple of 8"),
        ({"train.precision": "fp7"}, r"train\.precision = 'fp7': input should be"),
        ({"more": "train.betas"}, r"further setting 'train.betas': write key=value"),
        ({"more": "train.out=/tmp/x"}, "further setting 'train.out' cannot be given here"),
        ({"more": "train={out: /tmp/x}"}, "cannot be given here"),
        ({"more": "cache=/tmp/x"}, "cannot be given here"),
        ({"more": "monitor.wandb=theirs"}, "cannot be given here"),
        ({"more": "push=theirs/model"}, "cannot be given here"),
        ({"more": "train.steps=3"}, "further setting 'train.steps' has a field of its own"),
        ({"more": "train.betas=[1, "}, "is not YAML"),
        ({"more": "blocks=[&a [1], *a]"}, "is not YAML of 500 characters without aliases"),
        ({"more": f"blocks={'[' * 5000}"}, "is not YAML of 500 characters"),
        ({"more": f"blocks={'[' * 499}"}, "is not YAML"),
        ({"more": f"{'a.' * 5000}b=1"}, "write key=value"),
        ({"more": "blocks.a=1\nblocks=2"}, "blocks"),
        ({"name": ["mine"]}, "name \"\\['mine'\\]\""),
        ({"more": "colour=red"}, "colour"),
    ],
)
def test_mistakes_are_named(values: dict[str, Any], message: str, places: Places) -> None:
    with pytest.raises(BadRequest, match=message):
        train_settings.read_config(asked(places) | values, places)
    assert not places.runs.exists()


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(BadRequest, match=r"unknown preset '\.\./train'"):
        train_settings.preset("../train")


def test_datasets_are_offered_from_the_data_folder_alone(places: Places) -> None:
    (places.data / "notes").mkdir()
    assert places.datasets() == [str(places.data / "shapes")]
    assert Places(places.runs, places.data / "missing").datasets() == []


def test_on_the_network_no_other_folder_can_be_read(places: Places, tmp_path: Path) -> None:
    outside = tmp_path / "private"
    (outside / "images").mkdir(parents=True)
    (places.data / "link").symlink_to(outside)
    closed = Places(places.runs, places.data, restricted=True)
    for folder in (outside, places.data / ".." / "private", places.data / "link", Path("/etc"), Path("\0")):
        with pytest.raises(BadRequest, match="does not lie in 'data'"):
            train_settings.read_data(asked(closed, folder=str(folder)), closed)
    for column in ("data.condition", "data.picture", "data.mask", "data.caption"):
        for value in ("../../private/images", "/etc", str(outside)):
            with pytest.raises(BadRequest, match="does not lie in 'shapes'"):
                train_settings.read_data(asked(closed) | {column: value}, closed)
    assert train_settings.read_data(asked(closed), closed).folder == places.data / "shapes"
    assert train_settings.read_data(asked(places, folder=str(outside)), places).folder == outside


def test_a_dataset_that_cannot_be_written_to_is_cached_beside_the_runs(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    assert train_settings.read_config(asked(places), places).cache is None
    monkeypatch.setattr("os.access", lambda path, mode: False)  # the tests may run as root, who may write anywhere
    assert train_settings.read_config(asked(places), places).cache == places.runs / "cache"


@pytest.mark.parametrize("listen", [False, True])
def test_the_page_closes_other_folders_when_it_listens(listen: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Trainings] = []
    monkeypatch.setattr("web.server.private_cache", contextlib.nullcontext)
    monkeypatch.setattr("web.server.serve", lambda page, service, **options: None)
    monkeypatch.setattr("app.build", lambda service, trainings: found.append(trainings))
    app.ui(listen=listen, auth="user:password", out=tmp_path / "out", data=tmp_path / "data", runs=tmp_path / "runs")
    assert [one.places for one in found] == [Places(tmp_path / "runs", tmp_path / "data", restricted=listen)]
