"""A control's picture drawn on the page in real headless Chromium: without a picture, on one, and traced over one."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from playwright.sync_api import Page, expect

from core.images import decode
from core.request import ControlUnit
from tests.web.steps import choose, download, render, shown, upload

pytestmark = pytest.mark.timeout(900)  # the first test also waits for the server

LINE = ((0.2, 0.5), (0.8, 0.5))


def draw(page: Page, line: tuple[tuple[float, float], ...] = LINE) -> None:
    """A stroke on the first control's canvas, in parts of its sides."""
    canvas = page.locator("#painting-0 canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box is not None
    (x, y), *rest = ((box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in line)
    page.mouse.move(x, y)
    page.mouse.down()
    for x, y in rest:
        page.mouse.move(x, y, steps=5)
    page.mouse.up()


def drawn(page: Page, seed: int, path: Path) -> ControlUnit:
    """The first control of a picture that is drawn now."""
    render(page, steps=1, seed=seed)
    expect(page.locator("#status")).to_contain_text(f"seed {seed}.")
    return download(page, path).request.controls[0]


def open_canvas(page: Page) -> None:
    page.locator("#draw-0 button").first.click()
    expect(page.locator("#painting-0 canvas")).to_be_visible()


def test_a_map_is_drawn_without_a_picture(page: Page, tmp_path: Path) -> None:
    choose(page, "kind-0", "scribble")
    open_canvas(page)
    expect(page.locator("#painting-0 select")).to_be_hidden()  # there is nothing to choose
    draw(page)
    page.locator("#map-0 img").wait_for()
    map_HWC = shown(page, "#map-0")
    assert map_HWC.shape == (128, 128, 3)
    assert map_HWC[64, 30:98].min() == 255
    assert map_HWC[:50].max() == map_HWC[78:].max() == 0
    choose(page, "kind-0", "canny")  # what the embedded model has a ControlNet for
    unit = drawn(page, 1, tmp_path / "drawn.png")
    assert (unit.kind, unit.ready, unit.mask) == ("canny", True, None)
    assert np.array_equal(decode(unit.image), map_HWC)
    page.locator("#painting-0 button", has_text="Clear").click()
    expect(page.locator("#map-0 img")).to_have_count(0)


def test_strokes_lie_on_the_picture_or_trace_it(page: Page, photo: NDArray[np.uint8], picture_file: Path, tmp_path: Path) -> None:
    upload(page, picture_file)
    page.locator("#map-0 img").wait_for()
    open_canvas(page)
    page.wait_for_function("document.querySelector('#painting-0 .easel').style.backgroundImage.includes('url')")
    use, map_image = page.get_by_label("The strokes are").first, page.locator("#map-0 img")
    use.select_option("on the picture")
    page.locator("#painting-0 input[type=color]").fill("#0000ff")
    before = str(map_image.get_attribute("src"))
    draw(page)
    expect(map_image).not_to_have_attribute("src", before)
    unit = drawn(page, 2, tmp_path / "on.png")
    drawn_HWC = decode(unit.image)
    assert (unit.ready, unit.mask) == (False, None)
    assert (drawn_HWC[64, 30:98] == (0, 0, 255)).all()
    assert np.array_equal(drawn_HWC[:50], photo[:50])
    assert np.array_equal(drawn_HWC[78:], photo[78:])

    before = str(map_image.get_attribute("src"))
    use.select_option("the map, traced")
    expect(map_image).not_to_have_attribute("src", before)
    unit = drawn(page, 3, tmp_path / "traced.png")
    traced_HWC = decode(unit.image)
    assert (unit.ready, unit.mask) == (True, None)
    assert (traced_HWC[64, 30:98] == (0, 0, 255)).all()
    assert traced_HWC[:50].max() == traced_HWC[78:].max() == 0

    use.select_option("where it acts")
    expect(map_image).not_to_have_attribute("src", before)
    unit = drawn(page, 4, tmp_path / "region.png")
    assert unit.mask is not None
    assert decode(unit.mask)[64, 30:98].min() == 255, "a region is white, whatever the pen's colour was"
    assert np.array_equal(decode(unit.image), photo)
