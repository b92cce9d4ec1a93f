"""Datasets by their names on the hub, from its cache on this machine."""

import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants

from core.errors import BadRequest
from tests.training.test_check import limn
from tests.training.test_controlnet import config
from tests.training.test_formats import imagefolder
from training.data import read_pairs
from training.hub import located
from training.run import train_controlnet

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A snapshot as the hub's own library lays it out, and nothing to be had from elsewhere."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    home = tmp_path / "hub" / "datasets--somebody--circles"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(COMMIT)
    return imagefolder(home / "snapshots" / COMMIT)


def test_a_name_is_the_folder_that_was_fetched(hub: Path, tmp_path: Path) -> None:
    assert located(Path("somebody/circles")).resolve() == hub.resolve()
    result = limn("dataset", "check", "somebody/circles", "--sheet", tmp_path / "s.png")
    assert (result.exit_code, "3 pairs" in result.output) == (0, True), result.exception
    (tmp_path / "somebody" / "circles").mkdir(parents=True)
    assert located(Path("somebody/circles")) == Path("somebody/circles")  # what is here is meant first
    assert located(tmp_path / "nowhere") == tmp_path / "nowhere"  # and no path is a name
    assert located(Path("somebody/cirlces")) == Path("somebody/cirlces")


def test_a_run_on_it_says_its_name_and_leaves_the_hubs_folder_alone(hub: Path, base: Path, tmp_path: Path) -> None:
    before = sorted(hub.rglob("*"))
    given = config(base, Path("somebody/circles"), tmp_path / "run", data={"condition": "hint"})
    train_controlnet(given)
    assert sorted(hub.rglob("*")) == before
    assert (tmp_path / "run" / "cache" / "contents.json").is_file()
    assert not (tmp_path / "somebody").exists()
    for written in ("config.yaml", "weights/README.md"):
        text = (tmp_path / "run" / written).read_text()
        assert "somebody/circles" in text
        assert str(hub) not in text


def test_a_name_that_is_nowhere_is_said_with_the_reason(hub: Path) -> None:
    with pytest.raises(BadRequest, match=r"'somebody/squares' cannot be read: there is no such folder .* HF_HUB_OFFLINE is set: unset it"):
        located(Path("somebody/squares"))
    shutil.rmtree(hub.parents[1] / "refs")
    with pytest.raises(BadRequest, match="no such folder"):
        read_pairs(config(hub, Path("somebody/circles"), hub).data)
