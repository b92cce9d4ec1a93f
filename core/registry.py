"""Finding what a package of ours offers: one module, one value, no list to keep up to date."""

import importlib
import pkgutil
from collections.abc import Mapping
from types import ModuleType
from typing import Any, TypeVar

from core.errors import unknown_name

T = TypeVar("T")


def discover(package: ModuleType, attribute: str, key: str = "name") -> dict[str, Any]:
    """The value called `attribute` of every direct module of `package` that has one, by the value's own `key`, sorted.

    Modules are imported, so whatever is heavy in them is loaded now. Only our own package's folder is looked into:
    nothing outside can register itself.

    Raises:
        ValueError: two modules offer the same name, which is our own mistake.
    """
    found: dict[str, Any] = {}
    for module_info in pkgutil.iter_modules(package.__path__, prefix=f"{package.__name__}."):
        value = getattr(importlib.import_module(module_info.name), attribute, None)
        if value is None:
            continue
        name = getattr(value, key)
        if name in found:
            raise ValueError(f"{module_info.name} offers {attribute} {name!r}, which another module of {package.__name__} already offers")
        found[name] = value
    return dict(sorted(found.items()))


def lookup(registry: Mapping[str, T], name: str, what: str) -> T:
    """The entry called `name`; `what` says in the error what kind of thing it is ("control", "sampler").

    Raises:
        BadRequest: no such entry; the message names the nearest one and all others.
    """
    try:
        return registry[name]
    except KeyError:
        raise unknown_name(what, name, registry) from None
