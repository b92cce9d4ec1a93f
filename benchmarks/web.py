"""How quick the page is: until it can be used, what it adds to a render, and how soon a map follows its sliders.

    python benchmarks/web.py [--model DIR] [--repeats 7]

Three numbers against their targets: seconds from `limn ui` to a page in which a prompt can be typed, less those that importing Gradio takes
by itself, at most 2; seconds of a render through the page over `Renderer.render` of the same request, alternating, at most 5% and 0.15;
seconds from a slider to the new map at 512 × 512, at most 0.3. Medians, with the spread; a busy machine makes all of them worse.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from playwright.sync_api import Page, sync_playwright

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # this script's own folder would hide the package of its name

from core.request import RenderRequest
from renderer import Renderer
from tests.web.load import Caller
from tests.web.running import ROOT, chromium, serving

PROMPT, STEPS = "a red sphere left of a blue cube on grass at sunset", 20
_MAP_CHANGES = """before => new Promise((done) => {
  const look = () => {
    const now = document.querySelector('#map-0 img');
    now && now.getAttribute('src') !== before && now.complete ? done() : setTimeout(look, 5);
  };
  look();
})"""


def seconds(work: Callable[[], object]) -> float:
    """How long a call takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def said(name: str, found: list[float], unit: str, limit: float) -> bool:
    """Prints a median with its spread; whether it is within the limit."""
    middle = statistics.median(found)
    print(
        f"{name}: {middle:.3f} {unit} ({min(found):.3f} to {max(found):.3f}), limit {limit:.3f}: {'kept' if middle <= limit else 'MISSED'}"
    )
    return middle <= limit


def import_gradio() -> float:
    """`import gradio` in a process of its own."""
    return seconds(lambda: subprocess.run([sys.executable, "-c", "import gradio"], check=True, cwd=ROOT))


def until_usable(page: Page, out: Path, model: str | None) -> float:
    """From the command to a page whose prompt can be typed into."""
    began = time.perf_counter()
    with serving(out, model) as site:
        page.goto(site.url)
        page.locator("#prompt textarea").fill("a")
        return time.perf_counter() - began


def renders(page: Caller, renderer: Renderer, repeats: int) -> list[float]:
    """What each render through the page takes beyond the same request given to the renderer, less the 5% that it may."""
    found = []
    for i in range(repeats + 1):
        request = RenderRequest(prompt=PROMPT, steps=STEPS, seed=i)
        alone = seconds(lambda request=request: renderer.render(request))  # type: ignore[misc]
        through = seconds(lambda i=i: page.ask(i, prompt=PROMPT, steps=STEPS, width=128, height=128).result(600))  # type: ignore[misc]
        if i:  # the first of each warms up
            found.append(through - 1.05 * alone)
    return found


def maps(page: Page, folder: Path, repeats: int) -> list[float]:
    """From a change of a setting to the new map."""
    photo_HWC = cv2.resize(cv2.imread(str(ROOT / "examples" / "runner.png")), (512, 512), interpolation=cv2.INTER_CUBIC)
    cv2.imwrite(str(folder / "photo.png"), np.asarray(photo_HWC))
    for side in ("width", "height"):
        page.locator(f"#{side} input").fill("512")
    page.locator("#image-0 input[type=file]").set_input_files(folder / "photo.png")
    page.locator("#map-0 img").wait_for()
    page.wait_for_timeout(3000)
    found = []
    for i in range(repeats):
        before = page.locator("#map-0 img").get_attribute("src")
        field = page.get_by_label("number input for Low", exact=True)
        began = time.perf_counter()
        field.fill(str((20, 150)[i % 2] + i))  # far from the one before, so that the map is another one
        page.evaluate(_MAP_CHANGES, before)
        found.append(time.perf_counter() - began)
        page.wait_for_timeout(700)
    return found


def main() -> int:
    """All three; 1 where a target is missed."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--model")
    options.add_argument("--repeats", type=int, default=7)
    given = options.parse_args()
    kept = []
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        out = Path(folder)
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.set_default_timeout(300_000)
        imports = [import_gradio() for _ in range(3)][1:]
        opened = [until_usable(page, out, given.model) - statistics.median(imports) for _ in range(3)][1:]
        kept.append(said(f"a usable page, beyond import gradio ({statistics.median(imports):.2f} s)", opened, "s", 2.0))
        with serving(out, given.model) as site:
            page.goto(site.url)
            page.locator("#model").get_by_text("ready").wait_for()
            kept.append(said("a map after its slider at 512 × 512", maps(page, out, given.repeats), "s", 0.3))
            page.close()
            renderer = Renderer.open(given.model or "toyland")
            beyond = renders(Caller(site, out), renderer, given.repeats)
            kept.append(said("a render through the page, beyond 105% of the renderer's", beyond, "s", 0.15))
        browser.close()
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
