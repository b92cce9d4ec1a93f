"""More of Create in real headless Chromium: several controls, painted regions, a run of several pictures and what is done with them."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from playwright.sync_api import Page, Route, expect

import controls
from core.images import encode_png
from tests.web.conftest import ROOT
from tests.web.steps import canny, choose, download, pixels, render, upload

pytestmark = pytest.mark.timeout(900)  # the first test also waits for the server


def test_two_controls_one_of_them_within_a_painted_region(page: Page, picture_file: Path, tmp_path: Path) -> None:
    upload(page, picture_file)
    page.locator("#add-control").click()
    expect(page.locator("#unit-1")).to_be_visible()
    choose(page, "kind-1", "softedge")
    upload(page, picture_file, "image-1")
    expect(page.locator("#map-1 img")).to_be_visible()
    page.locator("#draw-0 button").first.click()
    canvas = page.locator("#painting-0 canvas")
    page.wait_for_function("document.querySelector('#painting-0 .easel').style.backgroundImage.includes('url')")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 0.5 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 0.5 * box["height"], steps=5)
    page.mouse.up()
    page.locator("#window-0 input").nth(1).fill("0.5")
    page.locator("#kind-1").scroll_into_view_if_needed()
    page.locator("#controlnet-1 input").or_(page.locator("#fine-1 button")).first.click()
    field = page.locator("#controlnet-1 input")
    field.fill(str(ROOT / "models" / "toyland" / "controlnet-canny"))
    field.press("Enter")
    render(page, steps=2)
    record = download(page, tmp_path / "two.png")
    first, second = record.request.controls
    assert (first.kind, first.start, first.end, second.kind) == ("canny", 0.0, 0.5, "softedge")
    assert first.mask is not None
    mask_HW = pixels(first.mask)[..., 0]
    assert mask_HW.shape == (128, 128)
    assert mask_HW[64, 30:100].min() == 255
    assert mask_HW[:40].max() == 0
    assert record.controls[0].mask_sha256 is not None

    page.locator("#remove-0").click()
    expect(page.locator("#unit-0")).to_have_count(0)
    render(page, steps=2, seed=9)
    expect(page.locator("#status")).to_contain_text("seed 9.")
    assert [unit.kind for unit in download(page, tmp_path / "one.png").request.controls] == ["softedge"]


def test_a_run_of_several_and_what_can_be_done_with_one(page: Page, tmp_path: Path) -> None:
    page.locator("#count input").fill("2")
    page.locator("#prompt textarea").fill("a blue cube")
    expect(page.locator("#tokens")).to_have_text("3 of 30 tokens")
    render(page, steps=2, prompt="a blue cube")
    expect(page.locator("#run button img")).to_have_count(2)
    assert download(page, tmp_path / "last.png").seed == 8
    page.locator("#run button img").first.click()
    page.locator("#code button").first.click()
    expect(page.locator("#command")).to_contain_text("--seed 7")
    page.locator("#count input").fill("1")
    page.locator("#seed input").fill("99")
    page.locator("#do-reuse-seed").click()
    expect(page.locator("#seed input")).to_have_value("7")
    page.locator("#do-vary").click()
    expect(page.locator("#command")).to_contain_text("--variation-strength 0.2")
    record = download(page, tmp_path / "varied.png")
    assert (record.request.seed, record.request.variation_strength) == (7, 0.2)
    page.locator("#do-start-from").click()
    expect(page.locator("#init-image img")).to_be_visible()
    render(page, steps=2)
    expect(page.locator("#command")).to_contain_text("--init-image")
    assert download(page, tmp_path / "second.png").request.init_image is not None


def test_nothing_is_rendered_without_a_picture_that_is_on_its_way(page: Page, tmp_path: Path) -> None:
    noise_HWC = np.random.default_rng(0).integers(0, 256, (1000, 1000, 3), np.uint8)
    (tmp_path / "noise.png").write_bytes(encode_png(noise_HWC))
    network = page.context.new_cdp_session(page)
    slow = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 1_000_000}
    network.send("Network.emulateNetworkConditions", slow)  # three megabytes take three seconds
    upload(page, tmp_path / "noise.png")
    page.locator("#image-0 .uploading").wait_for()
    page.locator("#render").click()
    expect(page.locator("#status [role=alert]")).to_have_text("A picture is still being uploaded: wait until it is shown, then ask again.")
    expect(page.locator("#map-0 img")).to_be_visible()
    render(page, steps=1)
    assert len(download(page, tmp_path / "controlled.png").request.controls) == 1


def test_a_map_that_is_rendered_before_it_was_looked_at_is_taken_for_one(page: Page, photo: NDArray[np.uint8], tmp_path: Path) -> None:
    asked = page.evaluate("""gradio_config.dependencies.findIndex(({js, backend_fn}) => backend_fn && js?.includes('look("control.0.'))""")

    waiting: list[Route] = []

    def held_up(route: Route) -> None:
        if route.request.post_data_json["fn_index"] == asked:
            waiting.append(route)
        else:
            route.continue_()

    page.route("**/queue/join*", held_up)
    (tmp_path / "edges.png").write_bytes(encode_png(np.repeat(canny(photo, 100, 200)[..., None], 3, axis=2)))
    upload(page, tmp_path / "edges.png")
    while not waiting:
        page.wait_for_timeout(10)
    render(page, steps=1)
    page.wait_for_timeout(500)
    waiting[0].continue_()
    (unit,) = download(page, tmp_path / "drawn.png").request.controls
    assert unit.ready


def test_what_is_rendered_the_moment_its_kind_is_chosen_has_that_kind_s_settings(page: Page, picture_file: Path, tmp_path: Path) -> None:
    upload(page, picture_file)
    expect(page.locator("#map-0 img")).to_be_visible()
    page.locator("#steps input").fill("1")
    page.locator("#prompt textarea").fill("a blue cube")
    for number, kind in enumerate(("depth", "canny")):
        page.locator("#seed input").fill(str(number))
        page.locator("#kind-0 input").click()
        page.locator("#kind-0 [role=option]").filter(has_text=kind).first.click()
        page.keyboard.press("Control+Enter")
        expect(page.locator("#status")).to_contain_text(f"seed {number}.")
        (unit,) = download(page, tmp_path / f"{kind}.png").request.controls
        assert (unit.kind, set(unit.params)) == (kind, set(controls.get(kind).params.model_fields))
    expect(page.locator("#settings-0").get_by_text("Low", exact=True)).to_be_visible()
