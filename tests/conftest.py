"""What every test runs under: offline, quiet, and on the machine's own terms."""

import os
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# Before anything imports the libraries that read them.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session", autouse=True)
def limn_models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What tests train is not offered among the models of whoever runs them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIMN_MODELS", str(tmp_path_factory.mktemp("limn")))
        yield


@pytest.fixture(scope="session")
def browser() -> "Iterator[Browser]":
    """A real headless Chromium: the system's where there is one, otherwise Playwright's own."""
    from playwright.sync_api import sync_playwright

    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    # Root, as in a container, may not use Chromium's sandbox; the only page it opens is ours.
    options = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found, args=options)
        yield chromium
        chromium.close()
