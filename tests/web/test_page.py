"""The page in real headless Chromium against the running app: what a visitor sees, hears and takes home."""

import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from playwright.sync_api import Page, expect

import controls
from core.images import encode_png
from tests.web.conftest import Site
from tests.web.steps import PROMPT, canny, choose, download, pixels, render, shown, upload

pytestmark = pytest.mark.timeout(900)  # the first test also waits for the server


def test_a_controlled_picture_from_prompt_to_download(
    page: Page, site: Site, photo: NDArray[np.uint8], picture_file: Path, tmp_path: Path
) -> None:
    upload(page, picture_file)
    map_image = page.locator("#map-0 img")
    expect(map_image).to_be_visible()
    assert np.array_equal(shown(page, "#map-0")[..., 0], canny(photo, 100, 200))

    before = map_image.get_attribute("src")
    page.get_by_label("number input for Low", exact=True).fill("20")
    expect(map_image).not_to_have_attribute("src", str(before))
    assert np.array_equal(shown(page, "#map-0")[..., 0], canny(photo, 20, 200))
    assert not np.array_equal(canny(photo, 20, 200), canny(photo, 100, 200))

    render(page)
    record = download(page, tmp_path / "taken.png")
    expect(page.locator("#fidelity")).to_contain_text(re.compile(r"ollows the canny map.*\d\.\d\d of 1 \(edge F1 within 1 px\)\."))
    assert (record.request.prompt, record.request.steps, record.seed) == (PROMPT, 4, 7)
    (unit,), (control,) = record.request.controls, record.controls
    assert (unit.kind, unit.ready, unit.weight, control.params) == (
        "canny",
        False,
        1.0,
        {"low": 20, "high": 200, "automatic": False, "scales": 1},
    )
    assert control.fidelity is not None
    assert f"{control.fidelity.value:.2f} of 1" in page.locator("#fidelity").inner_text()
    published = site.out / record.file_name()
    assert (tmp_path / "taken.png").read_bytes() == published.read_bytes()
    assert np.array_equal(shown(page, "#picture"), pixels(published))
    # The record stays true after the upload is gone: the control picture lies beside the pictures, without the visitor's name for it.
    assert np.array_equal(pixels(unit.image), photo)
    assert unit.image.parent == site.out / "controls"


def test_settings_follow_the_kind(page: Page) -> None:
    before: set[str] = set()
    for kind in ("depth", "invert", "lines", "shuffle", "canny"):
        choose(page, "kind-0", kind)
        fields = {name.replace("_", " ").capitalize() for name in controls.get(kind).params.model_fields}
        for label in fields | before:
            shown_label = page.locator("#settings-0").get_by_text(label, exact=True)
            expect(shown_label).to_have_count(1 if label in fields else 0)
        before = fields


def test_a_finished_map_is_noticed_and_shown_as_it_is(page: Page, photo: NDArray[np.uint8], tmp_path: Path) -> None:
    edges = np.repeat(canny(photo, 100, 200)[..., None], 3, axis=2)
    (tmp_path / "edges.png").write_bytes(encode_png(edges))
    upload(page, tmp_path / "edges.png")
    expect(page.locator("#ready-0 input")).to_be_checked()
    page.wait_for_function("document.querySelector('#map-0 img')")
    expect(page.locator("#map-note-0")).not_to_contain_text("finished")  # the first map was extracted again, and said so
    assert np.array_equal(shown(page, "#map-0"), edges)


def test_live_preview_then_cancel_then_the_same_picture_again(page: Page, site: Site, tmp_path: Path) -> None:
    render(page)
    record = download(page, tmp_path / "first.png")
    final = page.locator("#picture img").get_attribute("src")

    render(page, steps=1000)
    picture = page.locator("#picture img")
    expect(page.locator("#status")).to_contain_text(re.compile(r"Step \d+ of 1000, about .* left\."))
    expect(picture).not_to_have_attribute("src", str(final))
    preview = shown(page, "#picture")
    assert preview.shape == (128, 128, 3)
    expect(page.locator("#render")).to_be_disabled()
    expect(page.locator("#download")).to_be_hidden()

    page.locator("#cancel").click()
    expect(page.locator("#status")).to_have_text("Cancelled.")
    expect(page.locator("#cancel")).to_be_disabled()
    files = set(site.out.glob("*.png"))
    render(page)
    assert download(page, tmp_path / "second.png") == record
    assert np.array_equal(pixels(tmp_path / "first.png"), pixels(tmp_path / "second.png"))
    assert set(site.out.glob("*.png")) == files  # the cancelled picture was never published


def test_what_is_wrong_is_one_plain_sentence(page: Page, tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_text("this is no picture\n")
    upload(page, tmp_path / "photo.png")
    sentence = "'photo.png' is not a PNG, JPEG or WebP picture (it begins with b'this is '): convert it to PNG."
    expect(page.locator("#map-note-0 [role=alert]")).to_have_text(sentence)
    render(page)
    expect(page.locator("#status [role=alert]")).to_have_text(sentence)

    page.get_by_label("Remove Image").click()
    expect(page.locator("#map-note-0")).not_to_contain_text("photo.png")
    for field, value, answer in (
        ("width", "100", "Width = 100: input should be a multiple of 8, for example 96."),
        ("width", "128", None),
        ("steps", "0", "Steps = 0: input should be greater than or equal to 1."),
    ):
        page.locator(f"#{field} input").fill(value)
        if answer:
            page.locator("#render").click()
            expect(page.locator("#status [role=alert]")).to_have_text(answer)


def test_text_from_outside_is_shown_not_interpreted(page: Page, picture_file: Path) -> None:
    upload(page, picture_file)
    page.locator("#fine-0").get_by_role("button", name="Fit and").click()
    page.locator("#controlnet-0 input").fill("<b id=bold>${1+1}{{value}}</b>.safetensors")
    render(page)
    expect(page.locator("#status [role=alert]")).to_contain_text("<b id=bold>${1+1}{{value}}</b>.safetensors")
    assert page.locator("#bold").count() == 0


def test_keyboard_renders(page: Page) -> None:
    page.locator("#steps input").fill("2")
    page.locator("#prompt textarea").fill("a blue cube")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#status")).to_contain_text("Done in")
    expect(page.locator("#picture img")).to_be_visible()


def test_narrow_windows_scroll_in_one_direction(page: Page) -> None:
    page.set_viewport_size({"width": 400, "height": 800})
    page.wait_for_function("innerWidth === 400")
    assert page.evaluate("document.documentElement.scrollWidth") == 400
    order = [page.locator(name).bounding_box() for name in ("#prompt", "#render", "#picture", "#kind-0")]
    tops = [box["y"] for box in order if box is not None]
    assert len(tops) == 4
    assert tops == sorted(tops)
