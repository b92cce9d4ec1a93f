"""The real page on a port of its own, as `limn ui` serves it: with the embedded model where it is installed, else with a tiny one."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray

from core.images import encode_png
from tests.web.running import EMBEDDED, ROOT, Site, serving
from web.service import Service

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

__all__ = ["ROOT", "Site"]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny base, and tiny ControlNets beside it."""
    from tests import tinymodels

    return tinymodels.build_models(tmp_path_factory.mktemp("web-models"))


@pytest.fixture
def service(models: Path, tmp_path: Path) -> Iterator[Service]:
    """A service whose thread runs."""
    service = Service(str(models / "base"), tmp_path / "out")
    service.start()
    yield service
    service.close()


@pytest.fixture(scope="session")
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The page, until the last test is done."""
    embedded = (EMBEDDED / "base").is_dir() and (EMBEDDED / "controlnet-canny").is_dir()
    model = None if embedded else str(request.getfixturevalue("models") / "base")
    with serving(tmp_path_factory.mktemp("web-out"), model) as running:
        yield running


@pytest.fixture(scope="session")
def photo() -> NDArray[np.uint8]:
    """A picture of the size that is drawn, with strong and weak edges: RGB uint8 (128, 128, 3)."""
    image_HWC = np.full((128, 128, 3), (90, 120, 90), np.uint8)
    image_HWC[30:90, 30:100] = (220, 40, 30)
    image_HWC[60:120, 70:110] = (75, 105, 75)
    return image_HWC


@pytest.fixture
def picture_file(photo: NDArray[np.uint8], tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    path.write_bytes(encode_png(photo))
    return path


@pytest.fixture
def page(site: Site, browser: "Browser") -> "Iterator[Page]":
    """The page, freshly opened; a request to any other machine fails the test, and so does a traceback in the server's log."""
    from playwright.sync_api import expect

    from tests.web.steps import PATIENCE_MS

    logged = len(site.log)
    context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    context.set_default_timeout(PATIENCE_MS)
    strangers: list[str] = []
    page = context.new_page()
    page.on("request", lambda request: None if request.url.startswith((site.url, "data:", "blob:")) else strangers.append(request.url))
    page.goto(site.url)
    expect(page.locator("#prompt textarea")).to_be_visible()
    expect(page.locator("#model")).to_contain_text("ready", timeout=5 * PATIENCE_MS)  # what is timed below is not the loading
    yield page
    context.close()
    assert strangers == []
    said = "".join(site.log[logged:])
    assert "Traceback" not in said, said
