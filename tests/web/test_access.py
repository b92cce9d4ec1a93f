"""The page for those who do not see it or do not use a mouse: everything has a name, and the Tab key goes in the order of reading."""

import pytest
from playwright.sync_api import Page, expect

pytestmark = pytest.mark.timeout(900)  # the first test also waits for the server

TABS = ("Create", "Compare", "Batch", "Pose", "Train", "Gallery")
_NAMELESS = """() => [...document.querySelectorAll('input, textarea, select, button, canvas, [role=slider], [tabindex="0"]')]
  .filter((part) => part.checkVisibility() && part.type !== 'file' && part.getAttribute('role') !== 'tabpanel')
  .filter((part) => !(part.getAttribute('aria-label') || part.getAttribute('aria-labelledby') || part.labels?.length || part.title
    || part.textContent.trim() || part.querySelector('[alt]:not([alt=""]), [aria-label]')))
  .map((part) => `${part.closest('[id]')?.id}: ${part.outerHTML.slice(0, 160)}`)"""


@pytest.mark.parametrize("tab", TABS)
def test_everything_that_can_be_used_has_a_name(page: Page, tab: str) -> None:
    page.get_by_role("tab", name=tab, exact=True).click()
    page.wait_for_timeout(500)
    for closed in page.locator("button.label-wrap:not(.open)").all():
        if closed.is_visible():
            closed.click()
    page.wait_for_timeout(500)
    assert page.evaluate(_NAMELESS) == []


def test_the_tab_key_goes_in_the_order_of_reading(page: Page) -> None:
    page.locator("#prompt textarea").focus()
    visited: list[str] = []
    for _ in range(40):
        page.keyboard.press("Tab")
        own = page.evaluate("document.activeElement?.closest('[id]:not(input):not([id^=range])')?.id ?? ''")
        visited += [own] if own not in visited else []
        if own == "render":
            assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid", "it is seen where one is"
    wanted = ["negative", "render", "kind-0", "remove-0", "image-0", "add-control", "base", "seed", "width", "steps"]
    found = [own for own in visited if own in wanted]
    assert found == [own for own in wanted if own in found]
    assert found[:3] == ["negative", "render", "kind-0"]
    expect(page.locator("#status")).to_have_text("")
