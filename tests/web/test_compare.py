"""Compare in real headless Chromium."""

import json
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from core.images import read_png_text
from core.provenance import read_record
from tests.web.steps import pixels, shown, upload

pytestmark = pytest.mark.timeout(900)  # the first test also waits for the server


def fill(page: Page, axis: int, text: str) -> None:
    page.locator(f"#values-{axis} textarea, #values-{axis} input").first.fill(text)


def save(page: Page, path: Path) -> None:
    with page.expect_download() as started:
        page.locator("#grid-download").click()
    started.value.save_as(path)


def test_a_comparison_is_drawn_cell_by_cell(page: Page, picture_file: Path, tmp_path: Path) -> None:
    upload(page, picture_file)
    expect(page.locator("#map-0 img")).to_be_visible()
    page.locator("#steps input").fill("1")
    page.get_by_role("tab", name="Compare", exact=True).click()
    fill(page, 0, "1-2")
    fill(page, 1, "much")
    page.locator("#draw-grid").click()
    expect(page.locator("#compare-said [role=alert]")).to_have_text(
        "Guidance 'much' is not a number: write numbers between commas, as in 1, 2."
    )
    fill(page, 1, "1")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#compare-said")).to_have_text("2 pictures are compared.")
    expect(page.locator("#plot")).to_be_hidden()  # of seeds there is nothing to plot
    save(page, tmp_path / "grid.png")
    assert read_record(tmp_path / "grid.png").seed == 1
    assert np.array_equal(shown(page, "#grid"), pixels(tmp_path / "grid.png"))
    page.get_by_role("tab", name="Create", exact=True).click()
    expect(page.locator("#prompt textarea")).to_be_visible()
    expect(page.locator("#status p")).to_have_count(0)  # nothing was rendered behind the grid


def test_fidelity_is_plotted_against_weight_and_window(page: Page, picture_file: Path, tmp_path: Path) -> None:
    upload(page, picture_file)
    expect(page.locator("#map-0 img")).to_be_visible()
    page.locator("#steps input").fill("1")
    page.get_by_role("tab", name="Compare", exact=True).click()
    page.locator("#weight-and-window").click()
    expect(page.locator("#axis-0 input")).to_have_value("control weight")
    expect(page.locator("#axis-1 input")).to_have_value("control end")
    fill(page, 0, "0, 1")
    fill(page, 1, "0.5, 1")
    page.locator("#draw-grid").click()
    expect(page.locator("#compare-said")).to_have_text("4 pictures are compared.")
    expect(page.locator("#plot img")).to_be_visible()
    save(page, tmp_path / "grid.png")
    whole_HWC, sheet_HWC, plot_HWC = pixels(tmp_path / "grid.png"), shown(page, "#grid"), shown(page, "#plot")
    assert np.array_equal(whole_HWC[: len(sheet_HWC), : sheet_HWC.shape[1]], sheet_HWC)
    assert np.array_equal(whole_HWC[len(sheet_HWC) :, : plot_HWC.shape[1]], plot_HWC)
    found = json.loads(read_png_text(tmp_path / "grid.png")["limn-comparison"])
    assert found["axes"] == {"control weight": ["0", "1"], "control end": ["0.5", "1"]}
    assert [one["at"] for one in found["pictures"]] == [
        {"control weight": weight, "control end": end} for end in ("0.5", "1") for weight in ("0", "1")
    ]
    assert all(0 <= one["fidelity"][0] <= 1 for one in found["pictures"])
