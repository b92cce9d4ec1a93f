"""The gallery in real headless Chromium: what other programs wrote is restored, and pictures are found by date, model and fidelity."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from core.images import encode_png
from tests.web.conftest import Site
from tests.web.scenes import turn_to
from tests.web.test_library import publish
from tests.web.test_pictures import COMFY, INVOKE

pytestmark = pytest.mark.timeout(900)  # the first test also waits for the server

COMFY_FIELDS = {
    "prompt textarea": "a dog", "negative textarea": "fog", "seed input": "8", "steps input": "12", "width input": "640",
    "height input": "448", "guidance input[type=number]": "5.5", "sampler input": "dpmpp_2m", "schedule input": "karras",
}  # fmt: skip
INVOKE_FIELDS = {
    "prompt textarea": "a fox", "negative textarea": "snow", "seed input": "9", "steps input": "30", "width input": "512",
    "height input": "512", "guidance input[type=number]": "7.5", "sampler input": "dpmpp_2m", "schedule input": "karras",
}  # fmt: skip


@pytest.mark.parametrize(
    ("key", "written", "fields", "said"),
    [
        ("prompt", COMFY, COMFY_FIELDS, "ComfyUI are restored, but not the model 'some.safetensors', 1 control (their pictures are not in"),
        (
            "invokeai_metadata",
            INVOKE,
            INVOKE_FIELDS,
            "InvokeAI are restored, but not the model 'sd', 2 controls (their pictures are not in",
        ),
    ],
    ids=["ComfyUI", "InvokeAI"],
)
def test_another_programs_picture_is_restored(
    key: str, written: dict[str, Any], fields: dict[str, str], said: str, page: Page, tmp_path: Path
) -> None:
    (tmp_path / "given.png").write_bytes(encode_png(np.zeros((8, 8, 3), np.uint8), {key: json.dumps(written)}))
    turn_to(page, "Gallery")
    page.locator("#foreign input[type=file]").set_input_files(tmp_path / "given.png")
    expect(page.locator("#prompt textarea")).to_have_value(fields["prompt textarea"])
    expect(page.locator("#status")).to_contain_text(said)
    for where, value in fields.items():
        expect(page.locator(f"#{where}").first).to_have_value(value)


def test_what_holds_no_settings_is_said(page: Page, tmp_path: Path) -> None:
    (tmp_path / "empty.png").write_bytes(encode_png(np.zeros((8, 8, 3), np.uint8)))
    (tmp_path / "damaged.png").write_bytes(encode_png(np.zeros((8, 8, 3), np.uint8), {"prompt": "[[[["}))
    turn_to(page, "Gallery")
    for name, sentence in (
        ("empty", "'empty.png' holds no settings of Limn"),
        ("damaged", "settings that ComfyUI wrote into this picture are"),
    ):
        page.locator("#foreign input[type=file]").set_input_files(tmp_path / f"{name}.png")
        expect(page.locator("#gallery-said [role=alert]")).to_contain_text(sentence)
        page.locator("#foreign").get_by_label("Clear").click()


def test_details_come_into_sight_in_a_narrow_window(page: Page, site: Site) -> None:
    for number in range(12):
        publish(site.out / "many", "many cubes", 200 + number)
    page.set_viewport_size({"width": 400, "height": 700})
    turn_to(page, "Gallery")
    page.locator("#search textarea, #search input").first.fill("many cubes")
    page.locator("#refresh").click()
    expect(page.locator("#gallery-said")).to_have_text("12 pictures.")
    page.locator("#pictures button img").first.click()
    expect(page.locator("#details .said")).to_be_in_viewport()


def test_pictures_are_found_by_date_model_and_fidelity(page: Page, site: Site) -> None:
    folder = site.out / "searched"
    publish(folder, "searched cube", 101, fidelity=0.3, day=1)
    publish(folder, "searched cone", 102, fidelity=0.8, day=2)
    publish(folder, "searched cone", 103, day=3)
    turn_to(page, "Gallery")
    for search, found in (
        ("searched", 3),
        ("searched after:2026-11-02", 2),
        ("searched before:2026-11-02", 1),
        ("searched after:2026-11-02 before:2026-11-03", 1),
        ("searched model:toyland", 3),
        ("searched model:sdxl", 0),
        ("searched fidelity>0.5", 1),
        ("searched fidelity<0.5", 1),
        ("searched cone kind:canny fidelity>=0.8", 1),
    ):
        page.locator("#search textarea, #search input").first.fill(search)
        page.locator("#refresh").click()
        said = {0: "No picture is found.", 1: "1 picture."}.get(found, f"{found} pictures.")
        expect(page.locator("#gallery-said")).to_have_text(said)
        expect(page.locator("#pictures button img")).to_have_count(found)
    page.locator("#search textarea, #search input").first.fill("searched after:soon")
    page.locator("#search textarea, #search input").first.press("Enter")
    expect(page.locator("#gallery-said [role=alert]")).to_contain_text("write kind:canny, model:toyland, seed:7")
