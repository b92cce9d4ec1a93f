"""The page as it is, photographed for whoever changes how it looks, and twice, smaller, for the README: `make screenshots`.

`python -m tests.web.screenshots FOLDER light` takes the pictures of one theme or size alone.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from tests.web import scenes
from tests.web.running import ROOT, chromium, serving

PROMPT = "a red cone left of a blue sphere on snow by day"
SIZES = {"light": (1280, 1000), "dark": (1280, 1000), "narrow": (400, 900)}
PATIENCE_MS = 300_000
README, README_PX = ROOT / "docs" / "images", 960


def photograph(page: Page, out: Path, folder: Path, name: str) -> None:
    """Create after a picture, then the other tabs, Compare and Train after some work. out: the page's folder."""
    _created(page, folder, name)
    for tab in ("Compare", "Batch", "Pose", "Train", "Gallery"):
        scenes.turn_to(page, tab)
        if tab == "Compare":
            scenes.compared(page)
        if tab == "Train":
            scenes.trained(page, out)
        page.wait_for_timeout(1500)
        if tab == "Gallery":
            page.locator("#pictures button img").first.click()
            page.locator("#details .said").wait_for()
        page.screenshot(path=folder / f"{tab.lower()}-{name}.png", full_page=tab in ("Compare", "Train") or name == "narrow")


def _created(page: Page, folder: Path, name: str) -> None:
    page.locator("#image-0 input[type=file]").set_input_files(ROOT / "examples" / "shapes.png")
    page.locator("#map-0 img").wait_for()
    page.locator("#prompt textarea").fill(PROMPT)
    page.locator("#seed input").fill("1")
    page.locator("#count input").fill("4")
    page.locator("#render").click()
    page.locator("#status").get_by_text("Done in").wait_for()
    page.mouse.move(0, 0)
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_timeout(500)
    page.screenshot(path=folder / f"create-{name}.png", full_page=name == "narrow")


def main(folder: Path, names: Sequence[str] = tuple(SIZES)) -> None:
    """Sizes and themes of these names, into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as out, serving(Path(out)) as site, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        for name in names:
            width, height = SIZES[name]
            context = browser.new_context(viewport={"width": width, "height": height})
            context.set_default_timeout(PATIENCE_MS)
            page = context.new_page()
            page.goto(f"{site.url}/?__theme={'dark' if name == 'dark' else 'light'}")
            page.locator("#model").get_by_text("ready").wait_for()
            photograph(page, Path(out), folder, name)
            context.close()
        browser.close()
    for name in set(names) & {"light", "dark"}:
        image = Image.open(folder / f"create-{name}.png").convert("RGB")
        image.thumbnail((README_PX, README_PX), Image.Resampling.LANCZOS)
        image.save(README / f"page-{name}.png", optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "outputs" / "screenshots", sys.argv[2:] or tuple(SIZES))
