"""A house of tiny models, and a folder to work in."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cli
from controls import canny, estimators
from core.images import encode_png
from tests import tinymodels

SIZE = ("--size", "64x64", "--steps", "2")


def limn(*arguments: Any) -> int:
    return cli.run([str(argument) for argument in arguments])


@pytest.fixture(scope="session")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny base and its ControlNets beside it, as `models/toyland` is laid out."""
    folder = tmp_path_factory.mktemp("house")
    base = tinymodels.build_base(folder / "base")
    tinymodels.build_controlnet(folder / "controlnet-canny", base, seed=1)
    for kind in ("depth", "pose"):
        shutil.copytree(folder / "controlnet-canny", folder / f"controlnet-{kind}")
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test works in a folder of its own, which holds a picture and an edge map; no estimator is installed."""
    monkeypatch.setattr(estimators, "LOADERS", {})
    monkeypatch.chdir(tmp_path)
    picture = np.full((96, 128, 3), (70, 110, 60), np.uint8)
    picture[30:70, 40:90] = (210, 40, 30)
    Path("photo.png").write_bytes(encode_png(picture))
    Path("edges.png").write_bytes(encode_png(canny.extract(picture, canny.Params())))
    return tmp_path
