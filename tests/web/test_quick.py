"""What starts the page sooner leaves everything as it was."""

import gc
import inspect
from collections.abc import Iterator

import gradio as gr
import pytest
from gradio import blocks, component_meta, routes

from web import quick


@pytest.fixture
def collecting() -> Iterator[None]:
    """The collector as it was, and nothing frozen for the tests that follow."""
    gc.enable()
    yield
    gc.unfreeze()
    gc.enable()


def test_no_application_is_made_meanwhile_and_signatures_are_read_once() -> None:
    with quick.building():
        assert blocks.App.create_app(None, mcp_server=False) is None
        first, again = (component_meta.inspect.getfullargspec(gr.Slider.__init__) for _ in range(2))
        assert first is again
        assert first == inspect.getfullargspec(gr.Slider.__init__)
    assert blocks.App is routes.App
    assert component_meta.inspect is inspect


def test_all_is_restored_after_a_failure() -> None:
    with pytest.raises(ZeroDivisionError), quick.building():
        1 / 0  # noqa: B018
    assert blocks.App is routes.App
    assert component_meta.inspect is inspect


@pytest.mark.usefixtures("collecting")
@pytest.mark.parametrize("enabled", [True, False])
def test_no_garbage_is_looked_for_meanwhile(enabled: bool) -> None:
    if not enabled:
        gc.disable()
    with quick.without_collecting():
        assert not gc.isenabled()
        made = [[] for _ in range(1000)]
    assert gc.isenabled() == enabled
    assert gc.get_freeze_count() > len(made), "what was made is not looked at again"
