"""The other tabs in real headless Chromium."""

import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from core.images import encode_png
from core.provenance import read_record
from core.skeleton import detect_joints
from tests.web.conftest import Site
from tests.web.steps import download, pixels, render, shown, upload
from web import pose

pytestmark = pytest.mark.timeout(900)  # the first test also waits for the server


def tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


def test_gallery_finds_restores_discards_and_brings_back(page: Page, picture_file: Path, tmp_path: Path) -> None:
    upload(page, picture_file)
    expect(page.locator("#map-0 img")).to_be_visible()
    render(page, prompt="a lonely white cone", steps=2, seed=41)
    record = download(page, tmp_path / "taken.png")

    page.reload()
    expect(page.locator("#prompt textarea")).to_be_visible()
    tab(page, "Gallery")
    page.locator("#search textarea, #search input").first.fill("lonely kind:canny seed:41")
    page.locator("#refresh").click()
    expect(page.locator("#gallery-said")).to_have_text("1 picture.")
    page.locator("#pictures button img").first.click()
    expect(page.locator("#details")).to_contain_text("a lonely white cone")
    page.locator("#restore").click()
    expect(page.locator("#prompt textarea")).to_have_value("a lonely white cone")
    expect(page.locator("#seed input")).to_have_value("41")
    expect(page.locator("#map-0 img")).to_be_visible()
    page.locator("#render").click()
    assert download(page, tmp_path / "again.png") == record
    assert np.array_equal(pixels(tmp_path / "taken.png"), pixels(tmp_path / "again.png"))

    tab(page, "Gallery")
    expect(page.locator("#details")).not_to_contain_text("lonely")  # the tab has searched again
    page.locator("#pictures button img").first.click()
    page.locator("#discard").click()
    expect(page.locator("#gallery-said")).to_have_text("No picture is found.")

    search = page.locator("#search textarea, #search input").first
    search.fill("in:trash lonely seed:41")
    search.press("Enter")
    expect(page.locator("#gallery-said")).to_have_text("1 picture.")
    page.locator("#pictures button img").first.click()
    expect(page.locator("#discard")).to_have_text("Out of the trash")
    page.locator("#discard").click()
    expect(page.locator("#gallery-said")).to_have_text("No picture is found.")
    search.fill("lonely seed:41")
    search.press("Enter")
    expect(page.locator("#gallery-said")).to_have_text("1 picture.")
    page.locator("#pictures button img").first.click()
    expect(page.locator("#discard")).to_have_text("To the trash")


def test_a_picture_of_another_program_is_restored(page: Page, tmp_path: Path) -> None:
    text = "a fox\nNegative prompt: snow\nSteps: 3, Sampler: Euler a, CFG scale: 3.5, Seed: 12, Size: 128x64, Model: other"
    (tmp_path / "fox.png").write_bytes(encode_png(np.zeros((8, 8, 3), np.uint8), {"parameters": text}))
    tab(page, "Gallery")
    page.locator("#foreign input[type=file]").set_input_files(tmp_path / "fox.png")
    expect(page.locator("#prompt textarea")).to_have_value("a fox")
    said = "Settings of a picture from AUTOMATIC1111 are restored, but not the model 'other'."
    expect(page.locator("#status")).to_have_text(said)
    values = {"negative textarea": "snow", "steps input": "3", "seed input": "12", "width input": "128", "height input": "64"}
    for where, value in values.items():
        expect(page.locator(f"#{where}")).to_have_value(value)
    expect(page.locator("#sampler input")).to_have_value("euler_ancestral")


def test_a_pose_is_dragged_and_used(page: Page, tmp_path: Path) -> None:
    tab(page, "Pose")
    canvas = page.locator("#people canvas")
    expect(canvas).to_be_visible()
    box = canvas.bounding_box()
    assert box is not None
    x, y = pose.STANDING[4]
    page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.1 * box["width"], box["y"] + 0.2 * box["height"], steps=4)
    page.mouse.up()
    expect(page.locator("#people output")).to_have_text("Person 1, right wrist")
    page.get_by_role("button", name="Add a person").click()
    page.locator("#use-pose").click()
    expect(page.locator("#kind-0 input")).to_have_value("pose")
    expect(page.locator("#map-0 img")).to_be_visible()
    people = detect_joints(shown(page, "#map-0"))
    assert len(people) == 2
    wrists = [person[4] / 128 for person in people]
    assert min(np.hypot(*(wrist - (0.1, 0.2))) for wrist in wrists) < 0.02  # two pixels and a half
    render(page, steps=2)
    record = download(page, tmp_path / "pose.png")
    assert [(unit.kind, unit.ready) for unit in record.request.controls] == [("pose", True)]

    tab(page, "Pose")
    page.locator("#write-pose").click()
    (tmp_path / "people.json").write_text(json.dumps({"people": [], "canvas_width": 8, "canvas_height": 8}))
    page.locator("#load-pose input[type=file]").set_input_files(tmp_path / "people.json")
    expect(page.locator("#pose-said [role=alert]")).to_contain_text("shows nobody")


def test_a_batch_of_five_with_one_bad_row(page: Page, site: Site, picture_file: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"batch cube {seed}", "seed": seed, "steps": 1, "canny": picture_file.name} for seed in range(4)]
    lines = [json.dumps(row) for row in rows]
    lines.insert(2, '{"prompt": "x", "steps": "many"}')
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    tab(page, "Batch")
    page.locator("#batch-files input[type=file]").set_input_files([tmp_path / "rows.jsonl", picture_file])
    ready = "4 pictures are ready to be drawn. 1 of the rows cannot be read and are left out."
    expect(page.locator("#batch-said")).to_have_text(ready)
    expect(page.locator("#batch-table")).to_contain_text(re.compile("steps", re.IGNORECASE))
    page.locator("#start-batch").click()
    page.reload()  # it goes on, and the page finds it again
    tab(page, "Batch")
    done = "All 4 pictures are done; they are in the Gallery. 1 of the rows cannot be read and are left out."
    expect(page.locator("#batch-said")).to_have_text(done)
    drawn = [read_record(path).request for path in site.out.glob("batch-*/*.png")]
    assert sorted(request.seed for request in drawn if request.prompt.startswith("batch cube")) == [0, 1, 2, 3]
    page.locator("#open-batch").click()
    expect(page.locator("#batch-pictures button img")).to_have_count(4)
    with page.expect_download() as started:
        page.locator("#batch-download").click()
    started.value.save_as(tmp_path / "all.zip")
    assert len(zipfile.ZipFile(tmp_path / "all.zip").namelist()) == 4
