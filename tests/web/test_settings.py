"""The doctor's word as settings change, and settings over a reload, in real headless Chromium."""

from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.web.steps import choose, upload

pytestmark = pytest.mark.timeout(900)  # the first test also waits for the server


def test_the_doctor_speaks_as_settings_change(page: Page, picture_file: Path, tmp_path: Path) -> None:
    word, model_word = page.locator("#doctor"), page.locator("#model-doctor")
    expect(word.locator("li")).to_have_count(0)
    page.locator("#width input").fill("512")
    page.locator("#height input").fill("512")
    expect(word.locator(".warning")).to_contain_text("512 × 512 is far from the")
    page.locator("#width input").fill("100")
    expect(word.locator(".error")).to_have_text("Width = 100: input should be a multiple of 8, for example 96.")
    for side in ("width", "height"):
        page.locator(f"#{side} input").fill("128")
    expect(word.locator("li")).to_have_count(0)

    upload(page, picture_file)
    choose(page, "kind-0", "softedge")
    expect(word.locator(".error")).to_contain_text("is not installed")
    choose(page, "kind-0", "canny")
    expect(word.locator("li")).to_have_count(0)
    page.locator("#prompt textarea").fill("a red cube <lora:nowhere:much>")
    expect(word.locator(".error")).to_contain_text("the weight is not a number")
    page.locator("#prompt textarea").fill("a red cube")
    expect(word.locator("li")).to_have_count(0)

    choose(page, "base", "nobody/nothing")
    expect(model_word.locator(".error")).to_have_text("Hub model 'nobody/nothing' is not installed: run 'limn models add nobody/nothing'.")


def test_settings_survive_a_reload(page: Page, picture_file: Path) -> None:
    page.locator("#prompt textarea").fill("a lasting cone")
    page.locator("#steps input").fill("7")
    choose(page, "sampler", "heun")
    page.locator("#add-control").click()
    expect(page.locator("#unit-1")).to_be_visible()
    choose(page, "kind-1", "shuffle")
    upload(page, picture_file, "image-1")
    page.locator("#window-1 input").nth(1).fill("0.5")
    page.locator("#hires button").first.click()
    page.locator("#hires-on input").check()
    page.wait_for_timeout(500)

    page.reload()
    expect(page.locator("#prompt textarea")).to_have_value("a lasting cone")
    expect(page.locator("#steps input")).to_have_value("7")
    expect(page.locator("#sampler input")).to_have_value("heun")
    expect(page.locator("#kind-1 input")).to_have_value("shuffle")
    expect(page.locator("#window-1 output")).to_have_text("0% to 50%")
    expect(page.locator("#image-1 img")).to_have_count(0)
    expect(page.locator("#model")).to_contain_text("ready")  # the other choices come with the model
    page.locator("#sampler input").click()
    expect(page.get_by_role("option", name="euler", exact=True)).to_be_visible()
    page.keyboard.press("Escape")
    page.locator("#hires button").first.click()
    expect(page.locator("#hires-on input")).to_be_checked()


def test_what_is_stored_wrong_is_ignored(page: Page) -> None:
    page.locator("#prompt textarea").fill("a lasting cone")
    page.wait_for_function("localStorage.getItem('limn-create') !== null")
    page.evaluate("localStorage.setItem('limn-create', 'nonsense')")
    page.reload()
    expect(page.locator("#model")).to_contain_text("ready")
    expect(page.locator("#prompt textarea")).to_have_value("")
    page.locator("#steps input").fill("2")
    page.locator("#render").click()
    expect(page.locator("#status")).to_contain_text("Done in")
