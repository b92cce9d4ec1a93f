"""Train in real headless Chromium: pairs checked, a ControlNet trained by the real trainer, stopped, resumed, and drawn with."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from core.images import decode
from tests.web.archives import HOSTILE, good
from tests.web.conftest import Site
from tests.web.pairs import write_pairs
from tests.web.steps import PATIENCE_MS, choose, download, render, shown, upload

pytestmark = pytest.mark.timeout(900)  # a training imports the libraries anew, twice

SETTINGS = {
    "train-train": {"train-warmup": "0", "train-log_every": "1"},
    "train-monitor": {"monitor-every": "2", "monitor-samples": "2", "monitor-fidelity_every": "2", "monitor-steps": "2"},
}


def test_a_short_training_from_pairs_to_picture(page: Page, site: Site, picture_file: Path, tmp_path: Path) -> None:
    pairs = write_pairs(site.out / "data" / "shapes")
    (pairs / "canny" / "3.png").write_bytes((pairs / "images" / "3.png").read_bytes())
    page.get_by_role("tab", name="Train", exact=True).click()
    choose(page, "dataset", "data/missing")
    choose(page, "condition", "canny")
    page.locator("#check-dataset").click()
    sentence = "Dataset 'data/missing' cannot be read: there is no such folder or file."
    expect(page.locator("#checked [role=alert]")).to_have_text(sentence)
    choose(page, "dataset", "data/shapes")
    page.locator("#check-dataset").click()
    expect(page.locator("#checked [role=alert]")).to_contain_text("4 pairs, ")
    expect(page.locator("#findings")).to_contain_text("a condition equal to its picture: 1 of 4, the first is canny/3.png")
    assert shown(page, "#sheet").shape[2] == 3

    page.locator("#train-name input, #train-name textarea").first.fill("edges")
    page.locator("#train-steps input").fill("0")
    page.locator("#start-training").click()
    expect(page.locator("#train-said [role=alert]")).to_contain_text("Train.steps = 0: input should be greater than or equal to 1")
    page.locator("#train-steps input").fill("4")
    page.locator("#train-batch_size input").fill("2")
    for section, values in SETTINGS.items():
        page.locator(f"#{section} button").first.click()
        for name, value in values.items():
            page.locator(f"#{name} input").first.fill(value)
            page.locator(f"#{name} input").first.blur()
    choose(page, "train-schedule", "constant")
    page.locator("#start-training").click()
    expect(page.locator("#train-state")).to_contain_text("Preparing")
    page.locator("#start-training").click()
    expect(page.locator("#train-said [role=alert]")).to_contain_text("Training 'edges' is running, and there is one at a time")
    page.locator("#stop-training").click()
    expect(page.locator("#train-state")).to_contain_text(re.compile(r"Stopped (before anything was saved|at step)"))

    page.locator("#resume-training").click()
    expect(page.locator("#stop-training")).to_be_visible()
    page.reload()
    page.get_by_role("tab", name="Train", exact=True).click()
    expect(page.locator("#train-state")).to_contain_text(re.compile("Preparing|Step|Measuring"))
    expect(page.locator("#train-name input, #train-name textarea").first).to_have_value("edges")  # the form is as it was
    expect(page.locator("#condition input")).to_have_value("canny")
    expect(page.locator("#train-state")).to_have_text("Finished after 4 steps.", timeout=4 * PATIENCE_MS)
    expect(page.locator("#train-grid img")).to_be_visible()
    for curve in ("loss", "gap", "fidelity", "rate"):
        expect(page.locator(f"#curve-{curve} canvas, #curve-{curve} svg").first).to_be_visible()
    grid = sorted((site.out / "runs" / "edges" / "grids").iterdir())[-1]
    assert shown(page, "#train-grid").shape == decode(grid).shape

    page.locator("#use-training").click()
    expect(page.locator("#status")).to_have_text("The first control is drawn by the finished weights of training edges.")
    upload(page, picture_file)
    expect(page.locator("#map-0 img")).to_be_visible()
    render(page, steps=2)
    record = download(page, tmp_path / "edges.png")
    (unit,) = record.request.controls
    assert (unit.kind, unit.model) == ("canny", "runs/edges/weights")
    page.locator("#add-control").click()  # every control's picker has it now
    page.locator("#fine-1").get_by_role("button", name="Fit and").click()
    page.locator("#controlnet-1 input").click()
    expect(page.get_by_role("option", name="runs/edges/weights")).to_be_visible()


def test_an_uploaded_dataset_is_checked_like_any_other(page: Page, site: Site, tmp_path: Path) -> None:
    page.get_by_role("tab", name="Train", exact=True).click()
    page.locator("#upload-pairs button").first.click()
    drop = page.locator("#dataset-files input[type=file]")
    drop.set_input_files(HOSTILE["a name that leads out"][0](tmp_path / "evil.zip"))
    expect(page.locator("#checked [role=alert]")).to_contain_text("leads out of the dataset, or is none: pack its folder with plain names.")
    assert not (site.out / "data" / "uploads").exists()
    drop.set_input_files(good(tmp_path / "some pairs.zip"))
    expect(page.locator("#checked")).to_have_text("12 files have arrived. 3 other files were left out.")
    (folder,) = (site.out / "data" / "uploads").iterdir()
    expect(page.locator("#dataset input")).to_have_value(f"data/uploads/{folder.name}")
    choose(page, "condition", "canny")
    page.locator("#check-dataset").click()
    expect(page.locator("#checked")).to_have_text("4 pairs, nothing that training would stop at.")
    assert shown(page, "#sheet").shape[2] == 3
    page.locator("#remove-upload").click()
    expect(page.locator("#checked")).to_have_text(f"{folder.name} is removed.")
    expect(page.locator("#dataset input")).to_have_value("")
    assert not folder.exists()
    page.locator("#remove-upload").click()
    expect(page.locator("#checked [role=alert]")).to_contain_text("is no uploaded dataset: choose one from 'uploads' first.")
