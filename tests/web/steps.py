"""What a visitor does and sees, for the browser tests."""

import io
import os
import re
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from playwright.sync_api import Page, expect
from playwright.sync_api import TimeoutError as Timeout

from core.provenance import Record, read_record

PROMPT = "a red sphere left of a blue cube on grass at sunset"
PATIENCE_MS = int(os.environ.get("LIMN_PATIENCE_MS", "120000"))  # for a loaded machine; nothing waits longer than it must

expect.set_options(timeout=PATIENCE_MS)


def upload(page: Page, path: Path, where: str = "image-0") -> None:
    page.locator(f"#{where} input[type=file]").set_input_files(path)


def choose(page: Page, dropdown: str, value: str) -> None:
    """Pick from a dropdown as somebody who types does."""
    field = page.locator(f"#{dropdown} input")
    field.click()
    field.fill(value)
    option = page.locator(f"#{dropdown} [role=option]").filter(has_text=re.compile(f"{re.escape(value)}$"))
    try:
        option.first.click(timeout=2000)
    except Timeout:  # a value of one's own
        field.press("Enter")
    expect(field).to_have_value(value)


def shown(page: Page, where: str) -> NDArray[np.uint8]:
    """The pixels of the image in a part of the page; one that is just being replaced is waited for."""
    for _ in range(100):
        source = page.locator(f"{where} img").get_attribute("src")
        assert source is not None
        response = page.request.get(source)
        if response.ok and response.headers["content-type"].startswith("image/"):
            return np.asarray(Pillow.open(io.BytesIO(response.body())).convert("RGB"))
        page.wait_for_timeout(100)
    raise AssertionError(f"{where}: {source} answers {response.status} {response.text()[:200]}")


def canny(image_HWC: NDArray[np.uint8], low: int, high: int) -> NDArray[np.uint8]:
    edges: NDArray[np.uint8] = cv2.Canny(image_HWC, low, high)
    return edges


def render(page: Page, *, prompt: str = PROMPT, steps: int = 4, seed: int = 7) -> None:
    page.locator("#prompt textarea").fill(prompt)
    page.locator("#steps input").fill(str(steps))
    page.locator("#seed input").fill(str(seed))
    page.locator("#render").click()


def download(page: Page, path: Path) -> Record:
    """The finished picture, saved as a visitor would; its record."""
    expect(page.locator("#status")).to_contain_text("Done in")
    with page.expect_download() as started:
        page.locator("#download").click()
    started.value.save_as(path)
    return read_record(path)


def pixels(path: Path) -> NDArray[np.uint8]:
    return np.asarray(Pillow.open(path))
