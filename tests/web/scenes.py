"""Work done on the page, so that there is something to photograph."""

from pathlib import Path

from playwright.sync_api import Page, expect

from tests.web.steps import choose

PAIRS = 48
FOLDED = {
    "train-train": {"train-warmup": "5", "train-log_every": "2"},
    "train-monitor": {"monitor-every": "10", "monitor-samples": "4", "monitor-fidelity_every": "30", "monitor-steps": "10"},
}


def turn_to(page: Page, tab: str) -> None:
    """Another tab; where there is no room for its name it is behind a button."""
    page.wait_for_timeout(300)  # the row of tabs is laid out anew after the window's width has changed
    name = page.get_by_role("tab", name=tab, exact=True)
    if name.is_visible():
        name.click()
        return
    page.locator(".overflow-menu > button").click()
    page.locator(".overflow-dropdown button").get_by_text(tab, exact=True).click()


def compared(page: Page) -> None:
    """In Compare: what the weight and the window of Create's control are worth."""
    page.locator("#weight-and-window").click()
    expect(page.locator("#axis-1 input")).to_have_value("control end")
    page.locator("#values-1 textarea, #values-1 input").first.fill("0.3, 1")
    page.locator("#draw-grid").click()
    page.locator("#plot img").wait_for()


def trained(page: Page, out: Path) -> None:
    """In Train: a short training on toyland, finished; the second time it is there already."""
    from toyland.dataset import build

    if (out / "runs" / "edges").exists():
        page.locator("#train-state").get_by_text("Finished").wait_for()
        return
    build(out / "data" / "toyland", PAIRS, seed=1)
    choose(page, "dataset", "data/toyland")
    choose(page, "condition", "canny")
    page.locator("#check-dataset").click()
    page.locator("#sheet img").wait_for(state="attached")
    for field, value in {"train-steps": "60", "train-batch_size": "4"}.items():
        page.locator(f"#{field} input").fill(value)
    page.locator("#train-name input, #train-name textarea").first.fill("edges")
    for section, fields in FOLDED.items():
        page.locator(f"#{section} button").first.click()
        for field, value in fields.items():
            page.locator(f"#{field} input").first.fill(value)
            page.locator(f"#{field} input").first.blur()
        page.locator(f"#{section} button").first.click()
    page.locator("#start-training").click()
    page.locator("#train-state").get_by_text("Finished").wait_for()
