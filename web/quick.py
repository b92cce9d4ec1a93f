"""A quicker start: what Gradio does again and again while a page is built is done once. Nothing else is changed, and nothing for good."""

import contextlib
import functools
import gc
import inspect
import types
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def without_collecting() -> Iterator[None]:
    """What is made meanwhile is there to stay: no garbage is looked for, neither now nor in all of it later on."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()


@contextlib.contextmanager
def building() -> Iterator[None]:
    """Blocks makes a web application when it begins, ends and gets its queue, none of which is served, for `launch` makes its own; and
    each component reads the signature of its class anew."""
    from gradio import blocks, component_meta

    once = types.SimpleNamespace(**vars(inspect) | {"getfullargspec": functools.cache(inspect.getfullargspec)})
    none = types.SimpleNamespace(create_app=lambda *args, **options: None)
    with replaced(blocks, "App", none), replaced(component_meta, "inspect", once):
        yield


@contextlib.contextmanager
def replaced(owner: Any, name: str, other: Any) -> Iterator[None]:
    """Another value for an attribute, for as long as the block takes."""
    own = getattr(owner, name)
    setattr(owner, name, other)
    try:
        yield
    finally:
        setattr(owner, name, own)
